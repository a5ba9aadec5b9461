"""Paraphrases: many forms, none of them the training's, each saying the facts and nothing else."""

import itertools
import random
import re
from dataclasses import replace
from functools import cache

import pytest

from minidalle.evaluation import paraphrase as module
from minidalle.evaluation.paraphrase import ONE_OBJECT, TWO_OBJECTS, forms, paraphrase, say
from minidalle.world.captions import OPPOSITES, Description, SaidObject, describe, write
from minidalle.world.grammar import parse
from minidalle.world.scenes import BACKGROUNDS, COLORS, PLACES, SHAPES, draw_scene

SPELLINGS = {  # how each fact may be said, for a reader that knows no form
    **{color: (color,) for color in COLORS},
    **{shape: (shape,) for shape in SHAPES},
    "circle": ("circle", "circular"), "triangle": ("triangle", "triangular"),
    "small": ("small", "little", "tiny"), "large": ("large", "big"),
    **{ground: (ground,) for ground in BACKGROUNDS},
    "grey": ("grey", "gray"),
}  # fmt: skip
PLACE_WORDS = {
    "top": "top|upper", "bottom": "bottom|lower", "left": "left", "right": "right",
    "center": "cent(?:er|re)(?:ed|d)?|middle|central",
}  # fmt: skip
RELATION_WORDS = {
    "above": "above|over|on top of|higher than",
    "below": "below|under|beneath|underneath|lower than",
    "left of": "left (?:side )?of",
    "right of": "right (?:side )?of",
}


@cache
def draw(number: int, two_objects: float, seed: str = "paraphrases") -> list[Description]:
    rng = random.Random(seed)
    return [describe(draw_scene(rng, two_objects), rng, rng.random()) for _ in range(number)]


def bare(sentence: str) -> str:
    """Take a sentence without capitals and punctuation."""
    return " ".join(re.sub(r"[^a-z]", " ", sentence.lower()).split())


def count(words: tuple[str, ...], sentence: str) -> int:
    return len(re.findall(rf"\b(?:{'|'.join(words)})\b", sentence.lower()))


def test_there_are_many_forms():
    assert len(set(ONE_OBJECT)) == len(ONE_OBJECT) >= 40 and len(set(TWO_OBJECTS)) == len(TWO_OBJECTS) >= 30


def test_every_form_is_used():
    used = {form for share in (0.0, 1.0) for description in draw(300, share) for form in forms(description)}
    assert used == {*ONE_OBJECT, *TWO_OBJECTS}


def every_description():
    """Combine what may be left out: every subset of the facts of one object, and of two."""
    for shape, color, size, place, ground in itertools.product(
        ("ring", None), ("pink", None), ("large", None), ("top left", None), ("grey", None)
    ):
        yield Description((SaidObject(shape, color, size),), place, None, ground)
        for relation in (None, *OPPOSITES):
            yield Description((SaidObject(shape, color, size), SaidObject("cross", None, size)), None, relation, ground)


def test_every_description_can_be_said_in_several_forms():
    for description in every_description():
        assert len(forms(description)) >= 5, description


class Script(random.Random):
    """Give scripted numbers, so that every branch of a writer can be walked."""

    def __init__(self, numbers: tuple[float, ...]):
        super().__init__(0)
        self.numbers, self.asked = numbers, 0

    def random(self) -> float:
        self.asked += 1
        return self.numbers[self.asked - 1] if self.asked <= len(self.numbers) else 1 / 6


@cache
def written(description: Description) -> set[str]:
    """List all that write can make of a description; no draw decides between more than two, so two numbers do."""
    found, open_scripts = set(), [()]
    while open_scripts:
        script = Script(open_scripts.pop())
        found.add(bare(write(description, script)))
        for depth in range(len(script.numbers), script.asked):
            open_scripts.append((*script.numbers, *(1 / 6,) * (depth - len(script.numbers)), 5 / 6))
    return found


def test_the_walk_reaches_all_that_write_says():
    for description in draw(20, 0.0) + draw(3, 1.0):
        rng, reached = random.Random(0), written(description)
        assert {bare(write(description, rng)) for _ in range(400)} <= reached
        assert bare(write(description)) in reached


@pytest.mark.parametrize("two_objects", [0.0, 1.0])
def test_no_paraphrase_is_a_sentence_of_training(two_objects):
    rng = random.Random(0)
    for description in draw(20 if two_objects == 0 else 3, two_objects):
        reached = written(description)
        for form in forms(description):
            for _ in range(5):
                assert bare(say(form, description, rng)) not in reached, form


@pytest.mark.parametrize("form", [*ONE_OBJECT, *TWO_OBJECTS])
def test_a_form_says_every_fact_once_and_no_other(form):
    rng, number = random.Random(form), 0
    for description in draw(300, float(form in TWO_OBJECTS)):
        if form not in forms(description):
            continue
        number += 1
        sentence = say(form, description, rng)
        facts = [fact for item in description.objects for fact in (item.shape, item.color, item.size)]
        facts.append(description.background)
        for fact, spellings in SPELLINGS.items():
            assert count(spellings, sentence) == facts.count(fact), (fact, sentence)
        said = {name for name, words in PLACE_WORDS.items() if re.search(rf"\b(?:{words})\b", sentence.lower())}
        if len(description.objects) == 1:
            place = description.place.split() if description.place else []
            assert said - {"center"} == set(place) - {"center"}, sentence  # "in the middle of the left side"
            assert place != ["center"] or "center" in said, sentence
        elif description.relation is None:
            assert not said and relation_in(sentence) is None, sentence
    assert number > 10


def relation_in(sentence: str) -> tuple[str, int, int] | None:
    """Find the words of a relation, and where they begin and end."""
    found = [
        (match.start(), match.end(), name)
        for name, words in RELATION_WORDS.items()
        for match in re.finditer(rf"\b(?:{words})\b", sentence.lower())
        if not re.match(r" an? (?:\w+ )*background", sentence.lower()[match.end() :])  # "over a grey background"
    ]
    start, end, name = min(found, default=(0, 0, None))
    return (name, start, end) if name else None


@pytest.mark.parametrize("relation", OPPOSITES)
@pytest.mark.parametrize("form", [form for form in TWO_OBJECTS if re.search("relation|inverse|side_a", form)])
def test_the_relation_is_said_the_right_way_round(form, relation):
    description = Description((SaidObject("circle"), SaidObject("square")), None, relation, None)
    if form not in forms(description):
        description = Description(description.objects, None, relation, "black")
    rng = random.Random(form)
    for _ in range(20):
        sentence = say(form, description, rng).lower()
        circle, square = (re.search(words, sentence).start() for words in ("circ", "square"))
        if found := relation_in(sentence):
            name, start, end = found
            subject_first = circle < square
            if sentence[end:].split()[0].strip(".,?") == "it" or start < min(circle, square):
                subject_first = not subject_first  # "a square below it", "below a square there is a circle"
            assert (name if subject_first else OPPOSITES[name]) == relation, sentence
        else:  # "a circle on the left and a square on the right": the first side is the first object's
            sides = [name for name in PLACE_WORDS if re.search(rf"\b(?:{PLACE_WORDS[name]})\b", sentence)]
            sides.sort(key=lambda name: re.search(rf"\b(?:{PLACE_WORDS[name]})\b", sentence).start())
            first = {"above": "top", "below": "bottom", "left of": "left", "right of": "right"}[relation]
            assert len(sides) == 2 and circle < square and sides[0] == first, sentence


def test_paraphrases_are_plain_english():
    for share in (0.0, 1.0):
        rng = random.Random(0)
        for description in draw(600, share, "english"):
            sentence = paraphrase(description, rng)
            assert not re.search(r"[\[\]{}]|  |\s[,.;?!]|,,|None|^\W", sentence), sentence
            lower = sentence.lower()
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|\ba a\b|\bof of\b|\bthe the\b", lower), sentence


def test_the_words_come_from_the_generator_that_is_given():
    description = draw(1, 0.0)[0]
    state = random.getstate()
    first, again = ([paraphrase(description, rng) for _ in range(20)] for rng in map(random.Random, (3, 3)))
    assert first == again and len(set(first)) > 15
    assert random.getstate() == state


def test_all_places_and_spellings_are_said():
    rng, sentences = random.Random(0), ""
    for place in PLACES:
        description = Description((SaidObject("ring", "red", "small"),), place, None, "grey")
        sentences += " ".join(paraphrase(description, rng) for _ in range(150)).lower()
    words = "center centre gray grey colored coloured corner left-hand upper top-left backdrop little tiny please there"
    assert [word for word in words.split() if word not in sentences] == []
    assert {f"{row} {side}" for row in ("upper", "lower", "top", "bottom") for side in ("left", "right")} <= {
        pair for pair in re.findall(r"\b(?:upper|lower|top|bottom) (?:left|right)\b", sentences)
    }
    assert set(module.EDGES) == set(module.SPOTS) == {place for place in PLACES if " " not in place}


def same(a: Description, b: Description) -> bool:
    """Compare two descriptions; which of two objects is named first does not matter."""
    turned = replace(b, objects=b.objects[::-1], relation=OPPOSITES.get(b.relation))
    return a == b or (len(b.objects) == 2 and a == turned)


@pytest.mark.parametrize("two_objects", [0.0, 1.0])
def test_the_grammar_reads_every_paraphrase_as_it_was_meant(two_objects):
    rng = random.Random(0)
    for description in draw(800, two_objects, "grammar"):
        sentence = paraphrase(description, rng)
        assert same(parse(sentence), description), sentence
