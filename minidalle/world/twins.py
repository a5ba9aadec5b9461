"""The world: scenes of one or two plain objects, drawn as pictures of any size.

A scene is data, its caption is in captions.py, and oracle.py reads the picture back. Positions and radii are in
units of half the canvas: x runs from -1 (left) to 1 (right), y from -1 (top) to 1 (bottom).
"""

import random
from dataclasses import replace

from minidalle.world.scenes import _BACKGROUNDS, _COLORS, _PLACES, _SIZES, PLACES, SHAPES, Scene, pick

_FACTS = {"shape": SHAPES, "color": _COLORS, "size": _SIZES}
# Which fact belongs to which thing is learned last and from such twins alone, so they come three times as often
_SWAPS = {"swap colors": ("color",), "swap shapes": ("shape",), "swap both": ("color", "shape")}
_PAIR_CHANGES = ("shape", "color", "background", "turn") + 3 * tuple(_SWAPS)


def twin(scene: Scene, rng: random.Random) -> Scene:
    """Change one fact of a scene, of one thing any; or swap the facts of two things.

    In a batch of pictures and their twins, CLIP can tell a picture from its twin only by that one fact, so it learns
    the hard facts (place, shape, which colour belongs to which thing) as soon as the easy ones.

    Returns: a scene that is not held out and differs from the given one.
    """
    change = {1: _change_one, 2: _change_two}[len(scene.things)]
    while (other := change(scene, rng)).is_held_out or other == scene:
        pass
    return other


def _another(rng: random.Random, options: tuple[str, ...], current: str) -> str:
    return pick(rng, [option for option in options if option != current])


def _change_one(scene: Scene, rng: random.Random) -> Scene:
    thing = scene.things[0]
    fact = pick(rng, ("shape", "color", "size", "place", "background"))
    if fact == "background":
        return replace(scene, background=_another(rng, _BACKGROUNDS, scene.background))
    if fact == "place":
        (x, y), (x_old, y_old) = PLACES[_another(rng, _PLACES, scene.place)], PLACES[scene.place]
        return replace(scene, things=(replace(thing, x=thing.x + x - x_old, y=thing.y + y - y_old),))
    return replace(scene, things=(replace(thing, **{fact: _another(rng, _FACTS[fact], getattr(thing, fact))}),))


def _change_two(scene: Scene, rng: random.Random) -> Scene:
    first, second = scene.things
    fact = pick(rng, _PAIR_CHANGES)
    if fact == "background":
        return replace(scene, background=_another(rng, _BACKGROUNDS, scene.background))
    if fact == "turn":
        return replace(scene, things=tuple(replace(thing, x=thing.y, y=thing.x) for thing in scene.things))
    if fact in _SWAPS:
        first_facts, second_facts = ({name: getattr(thing, name) for name in _SWAPS[fact]} for thing in scene.things)
        return replace(scene, things=(replace(first, **second_facts), replace(second, **first_facts)))
    changed = replace(first, **{fact: _another(rng, _FACTS[fact], getattr(first, fact))})
    return replace(scene, things=(changed, second))
