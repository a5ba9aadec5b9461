"""Captions of the world of signs: what is said parses back, and what is not understood is refused by name."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidalle.world.letters import GLYPHS
from minidalle.world.scenes import BACKGROUNDS, COLORS, SHAPES
from minidalle.world.sign_words import PLURALS, TOKENIZER, choose, matches, parse, sign_language, write
from minidalle.world.signs import KINDS, SPLITS, WORDS, Facts, draw_poster

letters = st.text("".join(GLYPHS), min_size=3, max_size=4)
any_facts = st.builds(
    Facts,
    st.integers(1, 4),
    st.none() | st.sampled_from(SHAPES),
    st.none() | st.sampled_from(tuple(COLORS)),
    st.none() | st.sampled_from(tuple(BACKGROUNDS)),
    st.none() | letters,
)


@given(any_facts)
def test_whatever_can_be_said_parses_back_and_fits_the_tokenizer(facts):
    caption = write(facts)
    assert parse(caption) == facts
    tokens, _ = TOKENIZER.encode([caption])
    assert TOKENIZER.decode(tokens) == [caption] and tokens.shape[1] <= TOKENIZER.context_length


def test_no_token_is_idle_and_the_longest_caption_fits_exactly():
    said = {
        word
        for count in (1, 2, 3, 4)
        for shape in (None, *SHAPES)
        for color in (None, *COLORS)
        for ground in BACKGROUNDS
        for word in write(Facts(count, shape, color, ground, "abc")).split()
    }
    assert set(TOKENIZER.words) == said | set(GLYPHS)
    longest = max(len(write(Facts(n, "ring", "red", "grey", "quiz")).split()) for n in (1, 2, 3, 4))
    assert TOKENIZER.context_length == longest + 1


@given(st.integers(0, 2**32), st.sampled_from(KINDS), st.sampled_from(SPLITS))
def test_a_caption_tells_the_truth_and_never_speaks_of_a_label(seed, kind, split):
    rng = random.Random(seed)
    poster = draw_poster(rng, kind, split)
    said = choose(poster, rng)
    assert all(matches(said, poster.facts).values())
    assert said.count == poster.facts.count and said.word == (poster.facts.word if kind == "quote" else None)
    assert choose(poster, rng, 1.0) == Facts(*[*vars(poster.facts).values()][:4], said.word)


def test_parts_are_left_out_and_told():
    rng = random.Random(0)
    said = [choose(draw_poster(rng), rng) for _ in range(1000)]
    for name, share in {"shape": 0.7, "color": 0.7, "background": 0.5}.items():
        assert sum(getattr(facts, name) is not None for facts in said) / 1000 == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize(
    ("facts", "caption"),
    [
        (Facts(1, "ring", "orange"), "an orange ring"),
        (Facts(3, "cross"), "three crosses"),
        (Facts(2, None, "pink", "grey"), "two pink shapes on a grey background"),
        (Facts(1, "circle", None, None, "dog"), "a circle and a sign that says d o g"),
        (Facts(4, None, None, None, "quiz"), "four shapes and a sign that says q u i z"),
    ],
)
def test_captions_read_as_plain_english(facts, caption):
    assert write(facts) == caption and parse(caption) == facts


@pytest.mark.parametrize(
    ("prompt", "caption"),
    [
        ('Draw me three small red circles, and a sign that says "dog".', None),
        ("a sign that reads DOG and three red discs", None),
        ("3 red circles with a plate saying d o g", None),
        ("one violet box on gray", "a purple square on a grey background"),
        ("a picture of a pair of donuts", "two rings"),
        ("there are two pluses", "two crosses"),
        ("a round disc", "a circle"),
        ("boxes and discs", ValueError),
        ("a large ring", "a ring"),
    ],
)
def test_other_wordings_become_the_words_of_training(prompt, caption):
    language = sign_language({"name": "signs"})
    if caption is ValueError:
        with pytest.raises(ValueError, match="does not say how many; say two, three or four"):
            language(prompt)
    else:
        assert language(prompt) == (caption or "three red circles and a sign that says d o g")


@pytest.mark.parametrize("ask", ["says", "saying", "that reads", "with the word", "which says the word"])
@pytest.mark.parametrize("quoted", ["moon", '"moon"', "M O O N", "'moon'"])
def test_a_sign_is_asked_for_before_or_after_its_objects(ask, quoted):
    wanted = Facts(2, "ring", "red", None, "moon")
    for prompt in (
        f"two red rings and a sign {ask} {quoted}",
        f"two red rings above a sign {ask} {quoted}",
        f"Two red rings with a plate below them {ask} {quoted}.",
        f"two red rings, and below them a sign {ask} {quoted}",
        f"a sign {ask} {quoted} below two red rings",
        f"a sign {ask} {quoted}, two red rings",
    ):
        assert parse(prompt) == wanted, prompt


@pytest.mark.parametrize(
    "prompt",
    [
        "two red rings with the word moon",
        'two red rings over the text "moon"',
        "two red rings that say moon",
        "two red rings labelled moon",
        "two red rings labelled with the word moon",
        "two red rings and a sign saying the four letters m o o n",
        "a sign that says m o o n and two red rings",
        "two red rings with the letters m o o n",
        "two red rings with the word moon written below them",
        "the word moon under two red rings",
    ],
)
def test_a_word_may_be_asked_for_without_a_sign(prompt):
    assert parse(prompt) == Facts(2, "ring", "red", None, "moon")


def test_no_sign_is_no_sign():
    for prompt in ("two red rings without a sign", "two red rings and no text", "no sign and two red rings"):
        assert parse(prompt) == Facts(2, "ring", "red")


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (
            "a red circle with a sign",
            '"sign" is not understood in "a red circle with a sign". Say what it says, in one',
        ),
        ("a circle with no sign that says the word dog", "asks for a sign and for none"),
        ("a circle without text and sign that says cat", "asks for a sign and for none"),
        ("a circle with text and a black background", "does not say what its sign says"),
        ("a circle and a sign with the word", "does not say what its sign says"),
        ("a circle with the word over a black background", "does not say what its sign says"),
        (
            "a circle and a blue sign that says dog",
            'asks for a sign that is blue; all signs look alike: leave "blue" out',
        ),
        ("two red signs that say dog and a circle", 'leave "red" out'),
        ("a circle with a white sign that says dog", 'leave "white" out'),
        ("a ring and a sign that says dog and is red", "asks for a sign that is red; all signs look alike"),
        ("a ring and a sign that says dog which is small", "asks for a sign that is small"),
        ("a ring and the word dog written in blue", "asks for a sign that is blue"),
        ("a ring and a sign that says d o g in white", "asks for a sign that is white"),
        ("a ring " * 50, "The prompt has 350 characters; at most 300 are read"),
        ("a ring with the word dog and the word cat", "asks for two signs; a picture has one"),
        (
            "a ring below a sign that says dog",
            "Objects of one kind stand anywhere, and a sign below them: leave the place out",
        ),
        ("a ring to the left", "leave the place out"),
        ("a red crcle", '"crcle" is not understood in "a red crcle". Did you mean "circle"'),
        ("five circles", '"five" is not understood'),
        ("a red circle above a blue square", '"above" is not understood'),
        ("a red circle and a blue square", "names 2 kinds of objects; one was expected"),
        ("three red blue circles", "gives two colors"),
        ("two three circles", "gives two counts"),
        ("a sign that says dog", "names 0 kinds of objects"),
        ("a ring and a sign that says hello", '"hello" was asked for; it holds 3 or 4 letters'),
        ("a ring and a sign that says o k", '"ok" was asked for; it holds 3 or 4 letters'),
        ("a ring and a sign that says 4you", '"4you" was asked for; it holds 3 or 4 letters'),
        ("four big rings", "asks for large objects; 4 are always small"),
        ("a small ring", "asks for small objects; 1 are always large"),
    ],
)
def test_what_is_not_understood_is_named(prompt, said):
    with pytest.raises(ValueError) as refused:
        parse(prompt)
    assert said in str(refused.value)


def test_what_is_asked_for_is_compared_fact_by_fact():
    shown = Facts(2, "ring", None, "black", "fo?")
    assert matches(Facts(2, "ring", "red", "white", "fox"), shown) == {
        "count": True, "shape": True, "color": False, "background": False, "word": False,
    }  # fmt: skip
    assert matches(Facts(2), shown) == {"count": True}


def test_every_plural_and_every_word_is_one_of_its_own():
    assert len(set(PLURALS.values()) | set(PLURALS)) == 2 * len(PLURALS) and PLURALS["cross"] == "crosses"
    assert all(parse(f"a ring and a sign that says {word}").word == word for word in sum(WORDS.values(), ()))


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a red circle and a red circle", "names its objects twice"),
        ("two red circles and a red circle", "names its objects twice"),
        ("a ring, three rings", "names its objects twice"),
        ("a ring and an object", "names its objects twice"),
        ("two rings and two things", "names its objects twice"),
        ("a circle with a circle", "names its objects twice"),
        ("a circle and three shapes", "names its objects twice"),
        ("a circle and two signs that say dog", "asks for two signs"),
        ("3 signs that say dog and a circle", "asks for 3 signs"),
        ("a black circle", 'say "on a black background"'),
    ],
)
def test_no_part_of_a_prompt_is_dropped(prompt, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        parse(prompt)


def test_a_comma_ends_a_word_and_a_background_needs_no_preposition():
    assert parse("a sign that says d o g, a red circle") == parse("a red circle and a sign that says dog")
    assert parse("a red circle, black background").background == "black"
    assert parse("a red circle shape").shape == "circle"


def test_an_article_after_spelled_letters_is_none_of_them():
    for prompt in (
        "a sign that says c a t a ring",
        "a sign that says cat, a ring",
        "a ring and a sign that says c a t",
    ):
        assert parse(prompt) == Facts(1, "ring", None, None, "cat"), prompt
    assert parse("a ring and a sign that says t e a").word == "tea"
