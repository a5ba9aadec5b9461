"""Hard negatives: what they change, how often, and that they stay scenes of the world."""

import random
from collections import Counter
from dataclasses import astuple, replace

import pytest

from minidalle.world.scenes import BACKGROUNDS, COLORS, JITTER, PAIR_PLACES, PLACES, SHAPES, SIZES, Scene, draw_scene
from minidalle.world.twins import twin


def pairs(number: int, two_objects: float) -> list[tuple[Scene, Scene]]:
    rng = random.Random(0)
    scenes = [draw_scene(rng, two_objects) for _ in range(number)]
    return [(scene, twin(scene, rng)) for scene in scenes]


def facts(scene: Scene) -> dict:
    """List what a twin may change."""
    found = {name: tuple(getattr(item, name) for item in scene.objects) for name in ("shape", "color", "size")}
    return found | {"where": (scene.place, scene.relation), "background": scene.background}


def change(scene: Scene, other: Scene) -> str:
    """Name what differs: one fact, or what two objects have swapped."""
    before, after = facts(scene), facts(other)
    names = [name for name in before if before[name] != after[name]]
    if len(scene.objects) == 2 and all(after[name] == before[name][::-1] for name in names):
        return "swap " + " and ".join(names)
    (name,) = names
    if name in ("shape", "color") and len(scene.objects) == 2:
        assert sum(a != b for a, b in zip(before[name], after[name], strict=True)) == 1
    return name


@pytest.mark.parametrize("two_objects", [0.0, 1.0])
def test_a_twin_is_another_scene_that_training_may_show(two_objects):
    for scene, other in pairs(1_000, two_objects):
        assert other != scene and other.split == "seen" and facts(other) != facts(scene)


def test_of_one_object_any_fact_changes_and_each_as_often():
    changes = Counter(change(*pair) for pair in pairs(3_000, 0.0))
    assert set(changes) == {"shape", "color", "size", "where", "background"}
    assert min(changes.values()) > 0.75 * max(changes.values())


def swapped(scene: Scene, names: tuple[str, ...]) -> Scene:
    first, second = scene.objects
    return replace(
        scene,
        objects=(
            replace(first, **{name: getattr(second, name) for name in names}),
            replace(second, **{name: getattr(first, name) for name in names}),
        ),
    )


@pytest.mark.parametrize("names", [("color",), ("shape",), ("shape", "color")])
def test_of_two_objects_a_swap_comes_three_times_as_often_as_another_background(names):
    """Counted where two shapes and two colours differ, and the swap gives a scene that training may show."""
    counts = Counter()
    for scene, other in pairs(8_000, 1.0):
        differ = all(len({getattr(item, name) for item in scene.objects}) == 2 for name in ("shape", "color"))
        if differ and swapped(scene, names).split == "seen":
            counts[change(scene, other)] += 1
    assert counts["swap " + " and ".join(names)] / counts["background"] == pytest.approx(3, abs=0.5)
    assert set(counts) == {"shape", "color", "background", "where", "swap color", "swap shape", "swap shape and color"}


@pytest.mark.parametrize("two_objects", [0.0, 1.0])
def test_positions_stay_unless_they_are_what_changes_and_then_keep_their_jitter(two_objects):
    moved = 0
    for scene, other in pairs(2_000, two_objects):
        before, after = ([astuple(item)[3:] for item in s.objects] for s in (scene, other))
        if facts(scene)["where"] == facts(other)["where"]:
            assert before == after
            continue
        moved += 1
        if two_objects:
            assert after == [(y, x) for x, y in before]  # turned by a quarter
        else:
            (x, y), (x_was, y_was) = PLACES[other.place], PLACES[scene.place]
            assert after[0] == pytest.approx((before[0][0] - x_was + x, before[0][1] - y_was + y))
            assert (after[0][0] - x, after[0][1] - y) != (0, 0)
    assert moved > 50


@pytest.mark.parametrize("two_objects", [0.0, 1.0])
def test_a_twin_is_a_scene_that_the_world_could_have_drawn(two_objects):
    for _, other in pairs(1_000, two_objects):
        assert other.background in BACKGROUNDS
        places = [PLACES[other.place]] if other.place else PAIR_PLACES[other.relation]
        for item, (x, y) in zip(other.objects, places, strict=True):
            assert item.shape in SHAPES and item.color in COLORS and item.size in SIZES
            assert max(abs(item.x - x), abs(item.y - y)) <= JITTER + 1e-9


def test_a_source_of_chance_decides_the_twin():
    scene = draw_scene(random.Random(3), 1.0)
    assert twin(scene, random.Random(1)) == twin(replace(scene), random.Random(1))
    assert len({twin(scene, random.Random(seed)) for seed in range(50)}) > 5
