"""Confusion matrices: each fact of a prompt is held against what the picture shows in its place."""

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from painters import fill

from minidalle.evaluation.confusion import MISCOUNTED, OPTIONS, UNREADABLE, columns, confusion, most_confused
from minidalle.evaluation.metrics import Rate
from minidalle.evaluation.report import Asked, measure, score
from minidalle.evaluation.tables import to_json, to_text
from minidalle.world.captions import Description, SaidObject, describe, matches, write
from minidalle.world.grammar import parse
from minidalle.world.render import render
from minidalle.world.scenes import Object, Scene, draw_one, draw_two

PAIR = Description((SaidObject("circle", "red"), SaidObject("square", "blue")), relation="above", background="grey")


def scene(*objects: str, across: bool = False, background: str = "grey") -> Scene:
    """Draw objects such as "red circle", the first above the others or, across, to their left."""
    places = [(0.5 * i, 0.0) if across else (0.0, 0.5 * i) for i in range(len(objects))]
    named = [words.split() for words in objects]
    return Scene(
        tuple(Object(shape, color, "small", *at) for (color, shape), at in zip(named, places, strict=True)), background
    )


CASES = {
    "as asked": (PAIR, scene("red circle", "blue square"), {
        "shape": {"circle": {"circle": 1}, "square": {"square": 1}},
        "color": {"red": {"red": 1}, "blue": {"blue": 1}},
        "relation": {"above": {"above": 1}}, "background": {"grey": {"grey": 1}},
    }),
    "asked from below": (replace(PAIR, relation="below"), scene("blue square", "pink circle", background="white"), {
        "shape": {"circle": {"circle": 1}, "square": {"square": 1}},
        "color": {"red": {"pink": 1}, "blue": {"blue": 1}},
        "relation": {"above": {"above": 1}}, "background": {"grey": {"white": 1}},
    }),
    "swapped": (replace(PAIR, background=None), scene("blue circle", "red square"), {
        "shape": {"circle": {"circle": 1}, "square": {"square": 1}},
        "color": {"red": {"blue": 1}, "blue": {"red": 1}}, "relation": {"above": {"above": 1}},
    }),
    "along the other axis nothing tells which is which": (PAIR, scene("blue square", "red circle", across=True), {
        "relation": {"above": {"left of": 1}}, "background": {"grey": {"grey": 1}},
    }),
    "without a relation neither": (replace(PAIR, relation=None), scene("blue square", "red circle"), {
        "background": {"grey": {"grey": 1}},
    }),
    "nor where nothing is to be read": (replace(PAIR, relation=None), None, {"background": {"grey": {UNREADABLE: 1}}}),
    "one in place of two": (replace(PAIR, background=None), scene("red circle"), {
        "shape": {"circle": {MISCOUNTED: 1}, "square": {MISCOUNTED: 1}},
        "color": {"red": {MISCOUNTED: 1}, "blue": {MISCOUNTED: 1}}, "relation": {"above": {MISCOUNTED: 1}},
    }),
    "two in place of one": (parse("a large ring at the top"), scene("red ring", "blue ring"), {
        "shape": {"ring": {MISCOUNTED: 1}}, "size": {"large": {MISCOUNTED: 1}}, "place": {"top": {MISCOUNTED: 1}},
    }),
    "unreadable": (parse("a small cross in the center on black"), None, {
        "shape": {"cross": {UNREADABLE: 1}}, "size": {"small": {UNREADABLE: 1}}, "place": {"center": {UNREADABLE: 1}},
        "background": {"black": {UNREADABLE: 1}},
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_fact_is_held_against_what_is_shown(name):
    asked, shown, expected = CASES[name]
    assert confusion([asked], [shown]) == expected


def drawn(seed: int, two: bool, number: int = 40) -> tuple[list[Description], list[Scene | None]]:
    """Draw prompts, and pictures of which some fit, some are of anything, and some unreadable."""
    rng, asked, read = random.Random(seed), [], []
    for i in range(number):
        asked.append(describe((draw_two if two else draw_one)(rng), rng))
        read.append((fill(asked[-1], rng), draw_one(rng), draw_two(rng), None)[i % 4])
    return asked, read


def diagonal(matrix: dict) -> int:
    return sum(row.get(wanted, 0) for wanted, row in matrix.items())


@given(st.integers(0, 10**6))
def test_of_one_object_the_diagonal_is_what_the_card_calls_right(seed):
    asked, read = drawn(seed, two=False)
    rates = score([Asked(write(description), description, None) for description in asked], read)
    found = confusion(asked, read)
    assert set(found) == set(rates) - {"exact", "count", "readable"}
    for name, matrix in found.items():
        total = sum(sum(row.values()) for row in matrix.values())
        assert Rate(diagonal(matrix), total) == rates[name]


@given(st.integers(0, 10**6))
def test_of_two_objects_whatever_matches_is_on_the_diagonal_and_nothing_else(seed):
    asked, read = drawn(seed, two=True)
    for description, shown in zip(asked, read, strict=True):
        right = matches(description, shown)
        for name, matrix in confusion([description], [shown]).items():
            everything = sum(sum(row.values()) for row in matrix.values())
            assert right[name] == (diagonal(matrix) == everything), name


@given(st.integers(0, 10**6), st.booleans())
def test_every_fact_of_a_prompt_that_tells_its_objects_apart_is_counted(seed, two):
    rng = random.Random(seed)
    asked = describe((draw_two if two else draw_one)(rng), rng)
    for shown in (fill(asked, rng), None):
        counted = sum(sum(row.values()) for matrix in confusion([asked], [shown]).values() for row in matrix.values())
        told_apart = not two or asked.relation is not None
        assert counted == (asked.num_facts if told_apart else asked.background is not None)


@given(st.integers(0, 10**6), st.booleans())
def test_matrices_are_in_the_order_of_the_options_and_hold_no_zeros(seed, two):
    found = confusion(*drawn(seed, two))
    assert list(found) == [name for name in OPTIONS if name in found]
    for name, matrix in found.items():
        assert list(matrix) == [option for option in OPTIONS[name] if option in matrix]
        for row in matrix.values():
            assert list(row) == [shown for shown in columns(name) if shown in row] and min(row.values()) > 0


def test_the_most_confused_come_first_and_chance_hits_not_at_all():
    found = {
        "shape": {"ring": {"ring": 9, "circle": 3}, "cross": {"square": 1}},
        "color": {
            "red": {"red": 52, "orange": 12}, "blue": {"purple": 2, UNREADABLE: 40, MISCOUNTED: 30},
            "pink": {"red": 4, "purple": 5, "orange": 6},
        },
    }  # fmt: skip
    assert most_confused(found) == [
        "color red as orange 12 of 64", "color pink as orange 6 of 15", "color pink as purple 5 of 15",
        "color pink as red 4 of 15", "shape ring as circle 3 of 12",
    ]  # fmt: skip
    assert most_confused(found, number=1) == ["color red as orange 12 of 64"]
    assert most_confused(found, number=9)[-1] == "color blue as purple 2 of 72"
    assert most_confused({}) == []


@pytest.fixture(scope="module")
def card() -> dict:
    """Measure a painter who draws every ring as a circle, and count what is painted."""
    painted = []

    def paint(captions, seeds):
        painted.extend(zip(captions, seeds, strict=True))
        scenes = [fill(parse(caption), random.Random(seed)) for caption, seed in painted[-len(captions) :]]
        return render([replace(s, objects=tuple(map(round_off, s.objects))) for s in scenes], 32)

    card = measure(paint, n=40, rephrase=lambda prompt: write(parse(prompt)))
    assert len(painted) == len(set(painted))
    return card


def round_off(item: Object) -> Object:
    return replace(item, shape="circle") if item.shape == "ring" else item


def test_the_card_tells_what_a_painter_takes_for_what(card):
    assert list(card["confusion"]) == list(card["following"])
    for kind, found in card["confusion"].items():
        matrix = found["shape"]
        assert list(matrix["ring"]) == ["circle"], kind
        assert all(list(row) == [wanted] for wanted, row in matrix.items() if wanted != "ring")
        assert all(list(row) == [w] for a in set(found) - {"shape"} for w, row in found[a].items())
        count = matrix["ring"]["circle"]
        which = "" if kind.startswith("one") else " (objects where a relation tells them apart)"
        assert f"\nMost confused, {kind}{which}: shape ring as circle {count} of {count}\n" in to_text(card)
    assert json.loads(to_json(card))["confusion"] == card["confusion"]


def test_who_confuses_nothing_has_no_line_and_an_older_card_no_matrices(card):
    kind = "one object, seen"
    flawless = card | {"confusion": {kind: {"shape": {"ring": {"ring": 9, "circle": 1}}}}}
    older = {name: part for name, part in card.items() if name != "confusion"}
    assert "Most confused" in to_text(card)
    assert "Most confused" not in to_text(flawless) and to_text(older) == to_text(flawless)


def test_long_lines_are_broken(card):
    cells = {
        name: {wanted: {shown: 9999 for shown in options} for wanted in options} for name, options in OPTIONS.items()
    }
    text = to_text(card | {"confusion": dict.fromkeys(card["following"], cells)})
    assert max(map(len, text.splitlines())) <= 120 and text.count("Most confused") == 4
