"""Presets: models that fit together, and recipes that say every number."""

import json
from dataclasses import asdict, replace

import pytest
from conftest import MICRO

from minidalle.tokenizer import Tokenizer
from minidalle.training.recipes import PRESETS, TINY, StageRecipe, fitted
from minidalle.training.stages import COLLECTIONS, STACK, STAGES
from minidalle.world.captions import TOKENIZER


@pytest.mark.parametrize(
    ("stage", "change", "what"),
    [
        ("clip", {"embed_dim": 32}, "embed_dim"),
        ("prior", {"embed_dim": 32}, "embed_dim"),
        ("decoder", {"embed_dim": 32}, "embed_dim"),
        ("clip", {"width": 32}, "text width"),
        ("prior", {"text_width": 32}, "text width"),
        ("decoder", {"text_width": 32}, "text width"),
        ("clip", {"context_length": 30}, "context length"),
        ("prior", {"context_length": 30}, "context length"),
        ("clip", {"image_size": 32}, "image_size"),
        ("decoder", {"unet": replace(MICRO.models["decoder"].unet, image_size=32)}, "image_size"),
        ("upsampler", {"image_size": 64}, "image_size"),
    ],
)
def test_models_that_do_not_fit_together_are_refused(stage, change, what):
    models = MICRO.models | {stage: replace(MICRO.models[stage], **change)}
    with pytest.raises(ValueError, match=f"The models of the preset micro differ in {what}: .*; choose one"):
        replace(MICRO, models=models)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_preset_has_a_model_and_a_recipe_for_every_stage(preset):
    assert set(STACK) <= set(preset.models) <= set(STAGES)
    for recipe in preset.recipes.values():
        assert set(STACK) <= set(recipe.stages) <= set(preset.models)
        json.dumps(asdict(recipe))  # what shaped a training goes into the header of its model
    assert preset.world in COLLECTIONS
    if preset.world == "scenes":
        assert fitted(preset, TOKENIZER) == preset


def test_a_preset_takes_the_sizes_that_a_tokenizer_asks_for():
    models = fitted(TINY, Tokenizer(["one", "word"], context_length=7)).models
    assert (models["clip"].vocab_size, models["clip"].context_length, models["prior"].context_length) == (4, 7, 7)
    assert models["decoder"] == TINY.models["decoder"]


def test_the_smoke_recipe_is_the_quick_one_with_few_steps():
    quick, smoke = (TINY.recipes[name] for name in ("quick", "smoke"))
    for stage, how in quick.stages.items():
        assert 2 <= smoke.stages[stage].steps <= how.steps / 20
        assert replace(smoke.stages[stage], steps=how.steps, warmup_steps=how.warmup_steps) == how
    assert smoke.two_objects == quick.two_objects and smoke.stages.keys() == quick.stages.keys()


def test_the_processes_are_the_papers_and_the_networks_predict_the_clean_data():
    for process in TINY.diffusion.values():
        assert (process.schedule, process.num_timesteps, process.prediction) == ("cosine", 1000, "x_start")


def test_a_recipe_says_its_momenta_where_they_are_not_the_usual_ones():
    usual = StageRecipe(steps=1, batch_size=1, matrix_lr=0.1, lr=0.1)
    assert asdict(usual).items() - usual.to_dict().items() == {("matrix_momentum", 0.95), ("betas", (0.9, 0.99))}
    for said in ({"matrix_momentum": 0.5}, {"betas": (0.0, 0.99)}):
        assert replace(usual, **said).to_dict() == usual.to_dict() | said
