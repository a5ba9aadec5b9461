"""Hard negatives: scenes that differ from a given one in a single fact."""

import random
from dataclasses import replace

from minidalle.world.scenes import _BACKGROUNDS, _COLORS, _PLACES, _SIZES, PLACES, SHAPES, Scene, pick

_FACTS = {"shape": SHAPES, "color": _COLORS, "size": _SIZES}
# Which fact belongs to which object is learned last and from such twins alone, so they come three times as often
_SWAPS = {"swap colors": ("color",), "swap shapes": ("shape",), "swap both": ("color", "shape")}
_PAIR_CHANGES = ("shape", "color", "background", "turn") + 3 * tuple(_SWAPS)


def twin(scene: Scene, rng: random.Random) -> Scene:
    """Change one fact of a scene, of one object any; or swap the facts of two objects.

    In a batch of pictures and their twins, CLIP can tell a picture from its twin only by that one fact, so it learns
    the hard facts (place, shape, which colour belongs to which object) as soon as the easy ones.

    Returns: a scene that training may show and that differs from the given one.
    """
    change = {1: _change_one, 2: _change_two}[len(scene.objects)]
    while (other := change(scene, rng)).split != "seen" or other == scene:
        pass
    return other


def _another(rng: random.Random, options: tuple[str, ...], current: str) -> str:
    return pick(rng, [option for option in options if option != current])


def _change_one(scene: Scene, rng: random.Random) -> Scene:
    item = scene.objects[0]
    fact = pick(rng, ("shape", "color", "size", "place", "background"))
    if fact == "background":
        return replace(scene, background=_another(rng, _BACKGROUNDS, scene.background))
    if fact == "place":
        (x, y), (x_old, y_old) = PLACES[_another(rng, _PLACES, scene.place)], PLACES[scene.place]
        return replace(scene, objects=(replace(item, x=item.x + x - x_old, y=item.y + y - y_old),))
    return replace(scene, objects=(replace(item, **{fact: _another(rng, _FACTS[fact], getattr(item, fact))}),))


def _change_two(scene: Scene, rng: random.Random) -> Scene:
    first, second = scene.objects
    fact = pick(rng, _PAIR_CHANGES)
    if fact == "background":
        return replace(scene, background=_another(rng, _BACKGROUNDS, scene.background))
    if fact == "turn":
        return replace(scene, objects=tuple(replace(item, x=item.y, y=item.x) for item in scene.objects))
    if fact in _SWAPS:
        first_facts, second_facts = ({name: getattr(item, name) for name in _SWAPS[fact]} for item in scene.objects)
        return replace(scene, objects=(replace(first, **second_facts), replace(second, **first_facts)))
    changed = replace(first, **{fact: _another(rng, _FACTS[fact], getattr(first, fact))})
    return replace(scene, objects=(changed, second))
