"""Painters that the tests of the report card share."""

import random
from dataclasses import replace

from minidalle.world.captions import Description
from minidalle.world.scenes import Scene, draw_one, draw_two


def fill(description: Description, rng: random.Random) -> Scene:
    """Draw a scene of which a description is true; what it leaves open is random."""
    said, relation = description.objects, description.relation
    if relation in ("below", "right of"):
        said, relation = said[::-1], {"below": "above", "right of": "left of"}[relation]
    while True:
        scene = (draw_one, draw_two)[len(said) - 1](rng)
        sizes = all(s.size in (None, t.size) for s, t in zip(said, scene.objects, strict=True))
        if sizes and description.place in (None, scene.place) and relation in (None, scene.relation):
            break
    objects = [
        replace(t, shape=s.shape or t.shape, color=s.color or t.color) for s, t in zip(said, scene.objects, strict=True)
    ]
    return Scene(tuple(objects), description.background or scene.background)
