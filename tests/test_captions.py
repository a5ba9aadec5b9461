"""Captions: from a scene's facts to words and back, and the comparison of what is said with what is seen."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidalle.world.captions import (
    OPPOSITES,
    SAID,
    TURNED,
    Description,
    SaidThing,
    describe,
    known_words,
    matches,
    parse,
    stated,
    write,
)
from minidalle.world.scenes import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, Scene, Thing, draw_scene

seeds = st.integers(0, 2**32)
seeded = settings(deadline=None, derandomize=True, max_examples=300)


def maybe(facts):
    return st.none() | st.sampled_from(list(facts))


said_things = st.builds(SaidThing, maybe(SHAPES), maybe(COLORS), maybe(SIZES))
descriptions = st.builds(Description, st.tuples(said_things), maybe(PLACES), st.none(), maybe(BACKGROUNDS)) | st.builds(
    Description, st.tuples(said_things, said_things), st.none(), maybe(OPPOSITES), maybe(BACKGROUNDS)
)


def draw(seed: int, **options) -> Scene:
    return draw_scene(random.Random(seed), **options)


@seeded
@given(descriptions, seeds)
def test_parse_undoes_write(description, seed):
    assert parse(write(description, random.Random(seed))) == description


@seeded
@given(descriptions, seeds)
def test_every_written_word_is_known(description, seed):
    assert set(write(description, random.Random(seed)).split()) <= set(known_words())


@given(st.sampled_from(known_words()))
def test_every_known_word_can_be_said(word):
    try:
        parse(f"a shape {word}")
    except ValueError as error:
        assert "not a word of this world" not in str(error)


def test_known_words_are_listed_once_in_the_same_order():
    assert len(set(known_words())) == len(known_words())
    assert known_words()[:6] == ("circle", "disc", "square", "box", "triangle", "diamond")


def test_capitals_commas_and_stops_do_not_matter():
    assert parse("A Small red Circle, at the top left.") == parse("a small red circle at the top left")


def test_synonyms_mean_the_same():
    assert parse("a big violet donut in the middle") == parse("a large purple ring in the center")
    assert parse("a box over a disc") == parse("a square above a circle")
    assert parse("a plus to the left of a ring") == parse("a cross left of a ring")
    assert parse("a cross at the upper left") == parse("a cross at the top left")


def test_write_says_it_in_plain_english():
    description = Description((SaidThing("cross", "orange"), SaidThing()), None, "below", "white")
    texts = {write(description, random.Random(seed)) for seed in range(200)}
    assert "an orange cross below a shape on a white background" in texts
    assert "on a white background an orange plus under a shape" in texts
    assert len(texts) == 8


@seeded
@given(seeds, st.booleans())
def test_fullness_one_tells_everything(seed, held_out):
    scene = draw(seed, held_out=held_out)
    description = describe(scene, random.Random(seed), fullness=1.0)
    told = sorted((t.shape, t.color, t.size) for t in description.things)
    assert told == sorted((t.shape, t.color, t.size) for t in scene.things)
    assert (description.background, description.place) == (scene.background, scene.place)
    swapped = description.things[0].shape != scene.things[0].shape
    if scene.relation is not None:
        assert description.relation in (scene.relation, OPPOSITES[scene.relation])
        assert not swapped or description.relation == OPPOSITES[scene.relation]


def test_describe_leaves_out_as_often_as_it_promises():
    rng = random.Random(0)
    told = [describe(draw_scene(rng, two_things=0.0), rng) for _ in range(4_000)]
    for name in ("color", "shape", "size"):
        assert sum(getattr(d.things[0], name) is not None for d in told) / 4_000 == pytest.approx(SAID[name], abs=0.03)
    for name in ("place", "background"):
        assert sum(getattr(d, name) is not None for d in told) / 4_000 == pytest.approx(SAID[name], abs=0.03)
    told = [describe(draw_scene(rng, two_things=1.0), rng) for _ in range(4_000)]
    assert sum(d.relation is not None for d in told) / 4_000 == pytest.approx(SAID["relation"], abs=0.03)
    assert sum(d.relation in ("below", "right of") for d in told) / 4_000 == pytest.approx(
        SAID["relation"] * TURNED, abs=0.03
    )


@seeded
@given(seeds)
def test_a_scene_that_is_not_held_out_is_never_described_as_held_out(seed):
    scene = draw(seed)
    for fullness in (0.0, 1.0):
        assert not describe(scene, random.Random(seed), fullness).is_held_out


@seeded
@given(seeds)
def test_a_held_out_scene_is_held_out_in_full_words(seed):
    assert describe(draw(seed, held_out=True), random.Random(seed), fullness=1.0).is_held_out


@pytest.mark.parametrize(
    ("caption", "held_out"),
    [
        ("a red ring", True),
        ("a red shape", False),
        ("a ring above a red circle", False),
        ("a circle above a diamond", True),
        ("a diamond below a circle", True),
        ("a diamond above a circle", False),
        ("a circle and a square", False),
        ("a ring to the right of a square", True),
        ("a square right of a ring", False),
    ],
)
def test_held_out_in_words(caption, held_out):
    assert parse(caption).is_held_out is held_out


@seeded
@given(seeds, st.booleans(), st.sampled_from([0.0, 0.5, 1.0]))
def test_a_scene_matches_its_own_description(seed, held_out, fullness):
    scene = draw(seed, held_out=held_out)
    description = describe(scene, random.Random(seed), fullness)
    found = matches(description, scene)
    assert set(found) == {"count", *stated(description)}
    assert all(found.values())


@seeded
@given(seeds, st.sampled_from(["shape", "color", "size"]), st.integers(0, 1))
def test_a_changed_thing_fails_in_that_attribute_alone(seed, name, which):
    scene = draw(seed)
    description = describe(scene, random.Random(seed), fullness=1.0)
    things = list(scene.things)
    which = min(which, len(things) - 1)
    facts = {"shape": SHAPES, "color": tuple(COLORS), "size": tuple(SIZES)}[name]
    other = facts[(facts.index(getattr(things[which], name)) + 1) % len(facts)]
    things[which] = replace(things[which], **{name: other})
    found = matches(description, replace(scene, things=tuple(things)))
    assert [attribute for attribute, right in found.items() if not right] == [name]


def test_a_moved_thing_fails_in_its_place_alone():
    scene = Scene((Thing("ring", "blue", "large", -0.5, -0.5),), "black")
    description = parse("a large blue ring at the top left on a black background")
    moved = replace(scene, things=(replace(scene.things[0], x=0.5),))
    assert matches(description, scene)["place"]
    assert matches(description, moved) == {
        "count": True, "shape": True, "color": True, "size": True, "place": False, "background": True,
    }  # fmt: skip


def test_another_background_fails_in_the_background_alone():
    scene = Scene((Thing("ring", "blue", "large", 0.0, 0.0),), "white")
    assert matches(parse("a ring on a black background"), scene) == {"count": True, "shape": True, "background": False}


PAIR = Scene((Thing("circle", "red", "small", 0.0, -0.5), Thing("square", "blue", "large", 0.0, 0.5)), "grey")


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
def test_matches_of_two_things(caption, wrong):
    found = matches(parse(caption), PAIR)
    assert [name for name, right in found.items() if not right] == wrong


def test_an_unreadable_picture_matches_nothing():
    found = matches(parse("a small red circle above a square on a grey background"), None)
    assert found == dict.fromkeys(("count", "shape", "color", "size", "relation", "background"), False)


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a red zebra", r'"zebra" is not a word of this world; it knows circle, .*red'),
        ("", "names no thing"),
        ("on a black background", "names no thing"),
        ("a red circle and", "one thing where it announces two"),
        ("above a red circle", "one thing where it announces two"),
        ("a shape and", "one thing where it announces two"),
        ("a ring and a circle and a square", "names 3 things; name one or two"),
        ("a shape above a shape and a shape below a shape", "names 4 things; name one or two"),
        ("a red circle blue square", 'gives one thing two colors; say "and"'),
        ("a circle square", "gives one thing two shapes"),
        ("a circle at the top bottom", '"top bottom" is not a place; the places are top left, top, '),
        ("a circle above a square at the top left", "gives two things one place; give them a relation"),
        ("a circle in the left center", '"left center" is not a place'),
    ],
)
def test_what_cannot_be_meant_is_refused(caption, message):
    with pytest.raises(ValueError, match=message):
        parse(caption)
