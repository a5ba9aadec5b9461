"""The world: what is drawn, that it is drawn the same everywhere, and what each split keeps to itself."""

import random
from dataclasses import replace

import pytest

from minidalle.world.render import radius
from minidalle.world.scenes import (
    COLORS,
    JITTER,
    PAIR_PLACES,
    PAIRS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    SPLITS,
    TRIPLES,
    Object,
    Scene,
    draw_scene,
)

PINNED_ONE = Scene((Object("diamond", "yellow", "large", -0.5247657051501493, 0.5055350050175779),), "black")
PINNED_TWO = Scene(
    (
        Object("diamond", "yellow", "large", -0.5047657051501493, -0.0144649949824222),
        Object("diamond", "pink", "large", 0.4881987635647356, -0.0014041827508586512),
    ),
    "black",
)


def draw(number: int, seed: int = 0, **options) -> list[Scene]:
    rng = random.Random(seed)
    return [draw_scene(rng, **options) for _ in range(number)]


def test_a_seed_gives_the_same_scenes_everywhere():
    single, double = draw(1, seed=0)[0], draw(1, seed=0, two_objects=1.0)[0]
    assert single == PINNED_ONE
    assert double == PINNED_TWO


def combinations(scene: Scene) -> tuple[set, set]:
    """List a scene's pairs of colour and shape, and its triple of shape, relation, shape."""
    shapes = [item.shape for item in scene.objects]
    return {(item.color, item.shape) for item in scene.objects}, {(shapes[0], scene.relation, shapes[-1])}


def test_training_never_draws_what_another_split_keeps():
    for scene in draw(100_000):
        pairs, triples = combinations(scene)
        assert scene.split == "seen"
        assert not any(pairs & PAIRS[name] or triples & TRIPLES[name] for name in ("held out", "test"))


@pytest.mark.parametrize(("split", "other"), [("held out", "test"), ("test", "held out")])
def test_other_splits_hold_something_out_and_reach_all_of_it(split, other):
    seen_pairs, seen_triples = set(), set()
    for scene in draw(5_000, split=split):
        pairs, triples = combinations(scene)
        assert scene.split == split and (pairs & PAIRS[split] or triples & TRIPLES[split])
        assert not (pairs & PAIRS[other] or triples & TRIPLES[other])
        seen_pairs |= pairs & PAIRS[split]
        seen_triples |= triples & TRIPLES[split]
    assert seen_pairs == PAIRS[split] and seen_triples == TRIPLES[split]


def test_no_combination_is_kept_by_two_splits_and_every_shape_and_colour_is_seen():
    assert not PAIRS["held out"] & PAIRS["test"] and not TRIPLES["held out"] & TRIPLES["test"]
    kept = PAIRS["held out"] | PAIRS["test"]
    assert len(kept) == 9 and len(TRIPLES["held out"] | TRIPLES["test"]) == 9
    for color in COLORS:
        assert sum((color, shape) not in kept for shape in SHAPES) >= 4
    for shape in SHAPES:
        assert sum((color, shape) not in kept for color in COLORS) >= 5


def test_what_mixes_two_splits_belongs_to_none():
    scene = Scene((Object("ring", "red", "small", 0, -0.5), Object("triangle", "cyan", "small", 0, 0.5)), "black")
    assert scene.split == "mixed"
    assert replace(scene, objects=scene.objects[:1]).split == "held out"
    assert replace(scene, objects=scene.objects[1:]).split == "test"


@pytest.mark.parametrize("split", ["mixed", "unseen", "", None])
def test_an_unknown_split_is_refused(split):
    with pytest.raises(ValueError, match=f'"{split}" is no split of the scenes; choose one of seen, held out, test'):
        draw_scene(random.Random(0), split=split)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_two_objects_is_the_share_of_pairs(share):
    pairs = sum(len(scene.objects) == 2 for scene in draw(3_000, two_objects=share))
    assert pairs / 3_000 == pytest.approx(share, abs=0.04)  # held-out scenes are drawn again, which shifts it a little


@pytest.mark.parametrize("split", SPLITS)
def test_objects_stay_apart_and_on_the_canvas(split):
    for scene in draw(10_000, split=split):
        for item in scene.objects:
            assert max(abs(item.x), abs(item.y)) + radius(scene, item) < 1
        if len(scene.objects) == 2:
            first, second = scene.objects
            gap = max(abs(first.x - second.x), abs(first.y - second.y)) - radius(scene, first) - radius(scene, second)
            assert gap > 4 / 32  # two pixels at 32, so that a free line shows


def test_a_lone_object_stands_at_the_place_that_is_named():
    seen = set()
    for scene in draw(5_000, two_objects=0.0):
        x, y = PLACES[scene.place]
        assert abs(scene.objects[0].x - x) <= JITTER and abs(scene.objects[0].y - y) <= JITTER
        assert scene.relation is None
        seen.add(scene.place)
    assert seen == set(PLACES)


def test_the_first_of_two_stands_above_or_to_the_left():
    seen = set()
    for scene in draw(5_000, two_objects=1.0):
        first, second = scene.objects
        across, down = second.x - first.x, second.y - first.y
        if scene.relation == "above":
            assert down > 2 * abs(across)
        else:
            assert scene.relation == "left of" and across > 2 * abs(down)
        for item, (x, y) in zip(scene.objects, PAIR_PLACES[scene.relation], strict=True):
            assert max(abs(item.x - x), abs(item.y - y)) <= JITTER
        assert scene.place is None
        seen.add(scene.relation)
    assert seen == set(RELATIONS)


def test_every_fact_is_drawn_equally_often():
    objects = [scene.objects[0] for scene in draw(12_000, two_objects=0.0)]
    for split, number in (("held out", 1_714), ("test", 857)):  # as often as their share of all 48 pairs
        objects += [scene.objects[0] for scene in draw(number, two_objects=0.0, split=split)]
    for name, facts in (("shape", SHAPES), ("color", COLORS), ("size", SIZES)):
        counts = [sum(getattr(item, name) == fact for item in objects) for fact in facts]
        assert min(counts) > 0.85 * max(counts), (name, counts)
