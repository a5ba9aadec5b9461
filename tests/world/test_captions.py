"""Captions: what is said of a scene, in which words and how often, and the comparison with what is seen."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidalle.tokenizer import split_words
from minidalle.world.captions import (
    OPPOSITES,
    SAID,
    TOKENIZER,
    TURNED,
    WORDS,
    Description,
    SaidObject,
    describe,
    known_words,
    matches,
    stated,
    write,
)
from minidalle.world.grammar import parse
from minidalle.world.scenes import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, SPLITS, Object, Scene, draw_scene

seeds = st.integers(0, 2**32)
splits = st.sampled_from(SPLITS)
seeded = settings(deadline=None, derandomize=True, max_examples=300)


def maybe(facts):
    return st.none() | st.sampled_from(list(facts))


said_objects = st.builds(SaidObject, maybe(SHAPES), maybe(COLORS), maybe(SIZES))
descriptions = st.builds(
    Description, st.tuples(said_objects), maybe(PLACES), st.none(), maybe(BACKGROUNDS)
) | st.builds(Description, st.tuples(said_objects, said_objects), st.none(), maybe(OPPOSITES), maybe(BACKGROUNDS))


def draw(seed: int, **options) -> Scene:
    return draw_scene(random.Random(seed), **options)


@seeded
@given(descriptions, seeds)
def test_every_written_word_is_known(description, seed):
    caption = write(description, random.Random(seed))
    assert set(split_words(caption)) <= set(known_words())
    assert TOKENIZER.decode(TOKENIZER.encode([caption])[0]) == [caption]


def test_no_word_is_known_that_is_never_written():
    """A token that training never shows would be noise in a prompt."""
    rng, written = random.Random(0), set()
    for _ in range(4_000):
        written |= set(split_words(write(describe(draw_scene(rng, 0.5), rng, 0.5), rng)))
    assert written == set(known_words())


def test_known_words_are_listed_once_in_the_same_order():
    assert len(set(known_words())) == len(known_words())
    assert known_words()[:6] == ("circle", "disc", "square", "box", "triangle", "diamond")


def test_write_says_it_in_plain_english():
    description = Description((SaidObject("cross", "orange"), SaidObject()), None, "below", "white")
    assert write(description) == "an orange cross below a shape on a white background"
    texts = Counter(write(description, random.Random(seed)) for seed in range(2000))
    assert set(texts) == {
        text.format(f"an orange {shape} {below} a shape")
        for shape in ("cross", "plus")
        for below in ("below", "under")
        for text in (
            "{} on a white background", "{} on white", "{} with a white background",
            "on a white background {}", "on white {}", "with a white background {}",
        )
    }  # fmt: skip
    assert sum(n for text, n in texts.items() if text.startswith("an orange")) / 2000 == pytest.approx(0.8, abs=0.04)


def test_without_a_source_of_chance_the_usual_words_stand_in_the_usual_order():
    said = Description((SaidObject("ring", "purple", "large"),), "top left", None, "grey")
    assert write(said) == "a large purple ring at the top left on a grey background"
    said = Description((SaidObject("square"), SaidObject("circle", None, "small")), None, "left of", None)
    assert write(said) == "a square left of a small circle"


def test_each_spelling_of_a_fact_comes_equally_often():
    for fact, spellings in WORDS.items():
        if fact in SHAPES:
            said = [write(Description((SaidObject(fact),)), random.Random(seed)) for seed in range(600)]
            counts = Counter(text.removeprefix("a ") for text in said)
            assert set(counts) == set(spellings) and min(counts.values()) > 600 / len(spellings) * 0.8


@pytest.mark.parametrize("place", PLACES)
def test_a_place_is_said_before_or_behind_the_object_in_every_way(place):
    said = Description((SaidObject("circle", "red"),), place)
    texts = Counter(write(said, random.Random(seed)) for seed in range(2000))
    first = sum(n for text, n in texts.items() if not text.startswith("a red"))
    assert first / 2000 == pytest.approx(0.25, abs=0.04)
    ways = {text.replace("a red circle", "").replace("a red disc", "").strip() for text in texts}
    row, _, column = place.partition(" ")
    rows = {"top": ("top", "upper"), "bottom": ("bottom", "lower")}.get(row, ())
    corners = {
        way for r in rows for way in (f"at the {r} {column}", f"in the {r} {column} corner", f"in the {r} {column}")
    }
    usual = {
        "center": {"in the center", "in the middle", "at the center"},
        "top": {"at the top"}, "bottom": {"at the bottom"},
        "left": {"on the left", "at the left", "on the left side"},
        "right": {"on the right", "at the right", "on the right side"},
    }  # fmt: skip
    assert ways == (corners if column else usual[place])


@seeded
@given(seeds, splits)
def test_fullness_one_tells_everything(seed, split):
    scene = draw(seed, split=split)
    description = describe(scene, random.Random(seed), fullness=1.0)
    told = sorted((t.shape, t.color, t.size) for t in description.objects)
    assert told == sorted((t.shape, t.color, t.size) for t in scene.objects)
    assert (description.background, description.place) == (scene.background, scene.place)
    swapped = description.objects[0].shape != scene.objects[0].shape
    if scene.relation is not None:
        assert description.relation in (scene.relation, OPPOSITES[scene.relation])
        assert not swapped or description.relation == OPPOSITES[scene.relation]


def test_the_shares_of_what_is_said_are_those_that_were_tried():
    assert SAID == {"color": 0.7, "shape": 0.7, "size": 0.5, "place": 0.5, "relation": 0.85, "background": 0.5}
    assert TURNED == 0.25


def test_describe_leaves_out_as_often_as_it_promises():
    rng = random.Random(0)
    told = [describe(draw_scene(rng, two_objects=0.0), rng) for _ in range(4_000)]
    for name in ("color", "shape", "size"):
        assert sum(getattr(d.objects[0], name) is not None for d in told) / 4_000 == pytest.approx(SAID[name], abs=0.03)
    for name in ("place", "background"):
        assert sum(getattr(d, name) is not None for d in told) / 4_000 == pytest.approx(SAID[name], abs=0.03)
    told = [describe(draw_scene(rng, two_objects=1.0), rng) for _ in range(4_000)]
    assert sum(d.relation is not None for d in told) / 4_000 == pytest.approx(SAID["relation"], abs=0.03)
    assert sum(d.relation in ("below", "right of") for d in told) / 4_000 == pytest.approx(
        SAID["relation"] * TURNED, abs=0.03
    )


@pytest.mark.parametrize("fullness", [0.0, 0.3, 1.0])
def test_between_its_usual_share_and_everything_fullness_mixes(fullness):
    rng = random.Random(1)
    told = [describe(draw_scene(rng, 0.0), rng, fullness).num_facts for _ in range(3_000)]
    usual = sum(SAID[name] for name in ("color", "shape", "size", "place", "background"))
    assert sum(told) / 3_000 == pytest.approx(usual + fullness * (5 - usual), abs=0.08)


@seeded
@given(seeds)
def test_a_scene_that_training_may_show_is_never_described_as_another(seed):
    scene = draw(seed)
    for fullness in (0.0, 1.0):
        assert describe(scene, random.Random(seed), fullness).split == "seen"


@seeded
@given(seeds, splits)
def test_in_full_words_a_description_is_of_its_scenes_split(seed, split):
    assert describe(draw(seed, split=split), random.Random(seed), fullness=1.0).split == split


@pytest.mark.parametrize(
    ("caption", "split"),
    [
        ("a red ring", "held out"),
        ("a red shape", "seen"),
        ("a ring above a red circle", "seen"),
        ("a circle above a diamond", "held out"),
        ("a diamond below a circle", "held out"),
        ("a diamond above a circle", "seen"),
        ("a circle and a square", "seen"),
        ("a ring to the right of a square", "held out"),
        ("a square right of a ring", "seen"),
        ("a cyan triangle", "test"),
        ("a circle below a square", "test"),
        ("a circle above a square", "seen"),
        ("a cyan triangle and a red ring", "mixed"),
    ],
)
def test_the_split_of_a_caption(caption, split):
    assert parse(caption).split == split


@pytest.mark.parametrize(
    ("caption", "number"),
    [
        ("a shape", 0),
        ("a circle", 1),
        ("a small red circle at the top left on black", 5),
        ("a circle and a shape", 1),
        ("a large blue ring left of a small red cross on a white background", 8),
    ],
)
def test_facts_are_counted(caption, number):
    assert parse(caption).num_facts == number


@seeded
@given(seeds, splits, st.sampled_from([0.0, 0.5, 1.0]))
def test_a_scene_matches_its_own_description(seed, split, fullness):
    scene = draw(seed, split=split)
    description = describe(scene, random.Random(seed), fullness)
    found = matches(description, scene)
    assert set(found) == {"count", *stated(description)}
    assert all(found.values())


@seeded
@given(seeds, st.sampled_from(["shape", "color", "size"]), st.integers(0, 1))
def test_a_changed_object_fails_in_that_attribute_alone(seed, name, which):
    scene = draw(seed)
    description = describe(scene, random.Random(seed), fullness=1.0)
    objects = list(scene.objects)
    which = min(which, len(objects) - 1)
    facts = {"shape": SHAPES, "color": tuple(COLORS), "size": tuple(SIZES)}[name]
    other = facts[(facts.index(getattr(objects[which], name)) + 1) % len(facts)]
    objects[which] = replace(objects[which], **{name: other})
    found = matches(description, replace(scene, objects=tuple(objects)))
    assert [attribute for attribute, right in found.items() if not right] == [name]


def test_a_moved_object_fails_in_its_place_alone():
    scene = Scene((Object("ring", "blue", "large", -0.5, -0.5),), "black")
    description = parse("a large blue ring at the top left on a black background")
    moved = replace(scene, objects=(replace(scene.objects[0], x=0.5),))
    assert matches(description, scene)["place"]
    assert matches(description, moved) == {
        "count": True, "shape": True, "color": True, "size": True, "place": False, "background": True,
    }  # fmt: skip


def test_another_background_fails_in_the_background_alone():
    scene = Scene((Object("ring", "blue", "large", 0.0, 0.0),), "white")
    assert matches(parse("a ring on a black background"), scene) == {"count": True, "shape": True, "background": False}


PAIR = Scene((Object("circle", "red", "small", 0.0, -0.5), Object("square", "blue", "large", 0.0, 0.5)), "grey")


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("a red circle above a blue square", []),
        ("a blue square below a red circle", []),
        ("a blue square and a red circle", []),
        ("a red square and a blue circle", ["shape"]),  # colours and shapes are both there, but bound wrongly
        ("a blue circle above a red square", ["color"]),
        ("a red circle below a blue square", ["shape", "color"]),
        ("a red circle left of a blue square", ["relation"]),
        ("a shape above a shape", []),
        ("a large shape above a small shape", ["size"]),
        ("a red circle", ["count", "shape", "color"]),
    ],
)
def test_matches_of_two_objects(caption, wrong):
    found = matches(parse(caption), PAIR)
    assert [name for name, right in found.items() if not right] == wrong


def test_an_unreadable_picture_matches_nothing():
    found = matches(parse("a small red circle above a square on a grey background"), None)
    assert found == dict.fromkeys(("count", "shape", "color", "size", "relation", "background"), False)
