"""How the models learn: recipes, stages, the loop, and what is kept so that a training can go on."""
