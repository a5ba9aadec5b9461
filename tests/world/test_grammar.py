"""From words to facts: what is accepted is understood in full, and the rest is refused by naming the part."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidalle.world import grammar
from minidalle.world.captions import OPPOSITES, WORDS, Description, SaidObject, describe, known_words, write
from minidalle.world.grammar import parse, scene_language
from minidalle.world.scenes import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, SPLITS, draw_scene

seeds = st.integers(0, 2**32)
many = settings(max_examples=300)


def maybe(facts):
    return st.none() | st.sampled_from(list(facts))


said_objects = st.builds(SaidObject, maybe(SHAPES), maybe(COLORS), maybe(SIZES))
descriptions = st.builds(
    Description, st.tuples(said_objects), maybe(PLACES), st.none(), maybe(BACKGROUNDS)
) | st.builds(Description, st.tuples(said_objects, said_objects), st.none(), maybe(OPPOSITES), maybe(BACKGROUNDS))


@many
@given(descriptions, seeds)
def test_parse_undoes_write(description, seed):
    assert parse(write(description, random.Random(seed))) == description
    assert parse(write(description)) == description


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("fullness", [0.0, 1.0])
def test_parse_undoes_write_for_scenes_of_every_split(split, fullness):
    rng = random.Random(0)
    for _ in range(500):
        description = describe(draw_scene(rng, 0.5, split), rng, fullness)
        caption = write(description, rng)
        assert parse(caption) == description, caption


@many
@given(descriptions, seeds)
def test_a_rephrased_caption_says_the_same_in_the_usual_words(description, seed):
    rephrase = scene_language({"name": "scenes", "two_objects": 0.5})
    usual = rephrase(write(description, random.Random(seed)))
    assert usual == write(description) == rephrase(usual)


def facts(description: Description) -> set[str]:
    """List all that a description states, without saying of which object."""
    items = {fact for item in description.objects for fact in (item.shape, item.color, item.size)}
    return (items | {description.background, description.relation, *(description.place or "").split()}) - {None}


MEANING = {spelling: fact for fact, words in WORDS.items() for spelling in words if " " not in spelling}
ASKED = (*SHAPES, *COLORS, *SIZES, *MEANING)
FILLING = ("a", "an", "and", "shape", "the", ",", "please", "of", "with")


@many
@given(st.lists(st.sampled_from((*ASKED, *FILLING)), min_size=1, max_size=8))
def test_no_fact_of_an_accepted_prompt_is_dropped(words):
    """Any row of words is either refused, or every fact among them is found again."""
    try:
        found = parse(" ".join(words))
    except ValueError:
        return
    stated = {MEANING.get(word, word) for word in words} & {*SHAPES, *COLORS, *SIZES, *BACKGROUNDS}
    assert stated <= facts(found)


@many
@given(
    descriptions, seeds, st.sampled_from(("glowing", "two", "not", "zebra", "striped", "without", "three")), st.data()
)
def test_a_word_that_is_not_understood_is_named_wherever_it_stands(description, seed, word, data):
    words = write(description, random.Random(seed)).split()
    words.insert(data.draw(st.integers(0, len(words))), word)
    with pytest.raises(ValueError, match=r' not understood in ".*". Understood is, for example, "(.*)"') as e:
        parse(" ".join(words))
    assert f'"{word}"' in str(e.value).split(" not understood")[0]  # with the rest of a wording that it cut in two
    parse(re.search('for example, "(.*)"', str(e.value))[1])  # what is offered is understood


@given(st.sampled_from(known_words()))
def test_every_word_of_training_is_understood(word):
    try:
        parse(f"a circle at the top left {word}")
    except ValueError as error:
        assert "not understood" not in str(error)


@many
@given(st.text(max_size=60))
def test_any_text_is_understood_or_refused_in_a_sentence(text):
    try:
        assert parse(text).objects
    except ValueError as error:
        assert str(error).endswith((".", '".'))


# What people type, and what it means in the usual words
UNDERSTOOD = {
    "A RED CIRCLE": "a red circle",
    "  a red   circle . ": "a red circle",
    "“a red circle”": "a red circle",
    "Please draw a big Red circle in the top-left corner!": "a large red circle at the top left",
    "Can you show me a tiny violet doughnut, please?": "a small purple ring",
    "I would like an image of a large cyan triangle, centered": "a large cyan triangle in the center",
    "a picture of exactly one blue ring": "a blue ring",
    "red": "a red shape",
    "round": "a circle",
    "a small object": "a small shape",
    "a circle large red": "a large red circle",
    "a circle that is red and large": "a large red circle",
    "red, small, circle": "a small red circle",
    "a small and red circle": "a small red circle",
    "a square of small size and pink color at the bottom": "a small pink square at the bottom",
    "a red-colored circle": "a red circle",
    "show me a circle, please, a red one": "a red circle",
    "a red disk on the left-hand side": "a red circle on the left",
    "a red circle on the left of the picture": "a red circle on the left",
    "a red circle to the left": "a red circle on the left",
    "in the upper right corner, a tiny violet donut": "a small purple ring at the top right",
    "a circle in the lower right hand corner": "a circle at the bottom right",
    "upper-left red circle": "a red circle at the top left",
    "a circle at the left top": "a circle at the top left",
    "a circle at the middle left": "a circle on the left",
    "a circle in the center of the image": "a circle in the center",
    "a circle right in the middle": "a circle in the center",
    "a yellow cross at the centre with a gray backdrop": "a yellow cross in the center on a grey background",
    "a circle in front of a plain white canvas": "a circle on a white background",
    "the background is white and there is a red ring in the middle": "a red ring in the center on a white background",
    "white background: a red ring": "a red ring on a white background",
    "Red circle; black background": "a red circle on a black background",
    "large red circle top left black background": "a large red circle at the top left on a black background",
    "a blue circle over a white background": "a blue circle on a white background",
    "a circle over black": "a circle on a black background",
    "a circle on top of a square": "a circle above a square",
    "a circle lies directly beneath a square": "a circle below a square",
    "a plus underneath a box": "a cross below a square",
    "a circle to the right of a small square on white": "a circle right of a small square on a white background",
    "a red circle on the right-hand side of a blue square": "a red circle right of a blue square",
    "a circle just right of a square": "a circle right of a square",
    "to the left of a blue square there is a red ring": "a red ring left of a blue square",
    "above a circle, a square": "a square above a circle",
    "a red circle on the left and a blue square on the right": "a red circle left of a blue square",
    "on the left a circle, on the right a square": "a circle left of a square",
    "on the right a circle, on the left a square": "a circle right of a square",
    "a circle at the bottom, a square at the top": "a circle below a square",
    "something red above something blue": "a red shape above a blue shape",
    "a triangle and circle": "a triangle and a circle",
    "a red circle and another circle": "a red circle and a circle",
    "a circle on a white background and a square": "a circle and a square on a white background",
}  # fmt: skip


@pytest.mark.parametrize("prompt", UNDERSTOOD)
def test_what_people_type_is_understood(prompt):
    assert write(parse(prompt)) == UNDERSTOOD[prompt]


@pytest.mark.parametrize("usual", [*SHAPES, *COLORS, *SIZES])
def test_synonyms_mean_the_same(usual):
    for word in (*WORDS.get(usual, ()), *grammar.SYNONYMS.get(usual, "").split()):
        assert parse(f"a {word} shape on white") == parse(f"a {usual} shape on white")


# What is not taken, and what the refusal says
REFUSED = {
    "": "names no object",
    "a": "names no object",
    "top left": "names no object",
    "on a black background": "names no object",
    "a glowing red circle": '"glowing" is not understood in "a glowing red circle". .* "a red circle"',
    "a red cirle": '"cirle" is not understood in "a red cirle". .* "a red circle"',
    "a red dog": '"dog" is not understood in "a red dog". .* "a red shape"',
    "two red circles": '"two", "circles" are not understood',
    "a circle next to a square": '"next" is not understood in "a circle next to a square". Understood is, for',
    "a green triangle not in the center": '"not" is not understood',
    "a circle inside a square": '"inside" is not understood',
    "a circle or a square": '"or" is not understood',
    "nothing": '"nothing" is not understood',
    "a black circle": '"black" is no color of an object .* For the background say "on a black background"',
    "a gray ring": '"gray" is no color of an object .* For the background say "on a grey background"',
    "a red shape on a purple background": "gives a background that is none of black, white, grey",
    "a circle on a background": "gives a background that is none of black, white, grey",
    "a circle on white on black": "gives two backgrounds, white and black",
    "a white background and a circle on a black background": "gives two backgrounds, white and black",
    "a red circle, green": 'gives one object two colors, red and green; say "and a" or a relation',
    "a red and blue circle": "gives one object two colors, red and blue",
    "a small large circle": "gives one object two sizes, small and large",
    "a circle square": "gives one object two shapes, circle and square",
    "a red circle blue square": "gives one object two colors",
    "a circle at the top bottom": "gives two places, top and bottom; name one",
    "a circle on the left and right": "gives two places, left and right; name one",
    "above a red circle": 'says "above" of one object; name the other',
    "a red circle above": "names one object where it announces two",
    "a circle above another": "names one object where it announces two",
    "a circle above a square at the top left": "gives two objects one place; give them a relation",
    "a small red circle at the top left, and a large blue square": "gives two objects one place",
    "a circle above a square left of a ring": "gives two relations",
    "a ring and a circle and a square": "names 3 objects; name one or two",
    "a circle, a square, a ring": "names 3 objects; name one or two",
}


@pytest.mark.parametrize("prompt", REFUSED)
def test_what_is_not_understood_is_refused_by_naming_the_part(prompt):
    with pytest.raises(ValueError, match=REFUSED[prompt]) as caught:
        parse(prompt)
    assert "\n" not in str(caught.value)


def test_a_prompt_of_any_length_is_refused_in_a_short_sentence():
    with pytest.raises(ValueError, match="The prompt has 30000 characters; at most 300 are read"):
        parse("x" * 30_000)
    with pytest.raises(ValueError, match="is not understood") as caught:
        parse("x" * 300)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("share", [0.0, None])
def test_who_has_learned_one_object_refuses_two(share):
    rephrase = scene_language({"name": "scenes"} if share is None else {"name": "scenes", "two_objects": share})
    assert rephrase("a big circle") == "a large circle"
    with pytest.raises(ValueError, match=r"a ring above a circle.* names two objects; these weights .* draw one"):
        rephrase("a ring above a circle")


@pytest.mark.parametrize(
    ("prompt", "caption"),
    [
        ("a circle at the top right in the picture", "a circle at the top right"),
        ("a circle on the right in the middle", "a circle on the right"),
        ("put it right in the middle: a ring", "a ring in the center"),
        ("a circle and a red one", "a circle and a red shape"),
        ("a circle in a white background", "a circle on a white background"),
        ("a circle in the corner at the top left", "a circle at the top left"),
        ("a circle in the top half and a square in the bottom half", "a circle above a square"),
        ("a ring in the central part of the picture", "a ring in the center"),
    ],
)
def test_a_word_of_place_is_read_with_its_neighbours(prompt, caption):
    assert write(parse(prompt)) == caption


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("half a red circle", '"half" is not understood'),
        ("a circle in the corner", '"corner" is not understood'),
        ("the corner of a square", '"corner" is not understood'),
        ("a circle and another", "announces two"),
        ("a circle together with another", "announces two"),
        ("a red circle and", "announces two"),
        ("a circle in white", "is no color of an object"),
        ("a circle on red", "background that is none of"),
        ("a circle on a ring", '"on" between two objects'),
    ],
)
def test_a_part_that_has_no_meaning_here_is_refused_and_not_dropped(prompt, why):
    with pytest.raises(ValueError, match=why):
        parse(prompt)
