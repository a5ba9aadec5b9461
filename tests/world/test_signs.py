"""The world of signs: what is drawn, what is held out, and twins of one changed fact."""

import random
from collections import Counter
from dataclasses import fields, replace
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minidalle.world.letters import GLYPHS, HEIGHT
from minidalle.world.scenes import BACKGROUNDS, COLORS, SHAPES
from minidalle.world.signs import (
    CANVAS,
    CELLS_OF,
    KINDS,
    LABELS,
    MAX_COUNT,
    RADII,
    SPLITS,
    WORDS,
    Facts,
    Poster,
    draw_objects,
    draw_poster,
    place,
    render,
    twin,
)

seeds, kinds = st.integers(0, 2**32), st.sampled_from(KINDS)


def letters_at(word: str) -> set:
    """List a word's letters with their places."""
    return set(enumerate(word))


@given(seeds, kinds, st.sampled_from(SPLITS))
def test_a_picture_is_of_the_kind_and_split_that_was_asked_for(seed, kind, split):
    poster = draw_poster(random.Random(seed), kind, split)
    facts = poster.facts
    assert (poster.kind, poster.split) == (kind, split)
    assert 1 <= facts.count <= MAX_COUNT == 4 and len(poster.centers) == facts.count
    assert facts.shape in SHAPES and facts.color in COLORS and facts.background in BACKGROUNDS
    if kind == "plain":
        assert facts.word is None
    elif kind == "label":
        assert facts.word == LABELS[facts.shape]
    else:
        assert facts.word in WORDS[split] and replace(poster, quoted=False).split == "seen"
    assert poster == draw_poster(random.Random(seed), kind, split)


@pytest.mark.parametrize(
    ("count", "shape", "color", "split"),
    [
        (3, "ring", "red", "held out"),
        (2, "ring", "red", "test"),
        (2, "triangle", "red", "held out"),
        (4, "ring", "purple", "test"),
        (3, "diamond", "red", "mixed"),
        (1, "ring", "red", "seen"),
    ],
)
def test_a_combination_is_held_out_by_its_count_with_shape_or_color(count, shape, color, split):
    assert Poster(Facts(count, shape, color, "black"), ()).split == split
    assert Poster(Facts(count, shape, color, "black", "cat"), ()).split == split  # a label is no quote


def test_objects_never_touch_each_other_the_edge_or_the_sign():
    rng = random.Random(0)
    for poster in (draw_poster(rng, "plain", rng.choice(SPLITS)) for _ in range(2000)):
        radius = RADII[poster.facts.count]
        for (x, y), (other_x, other_y) in combinations(poster.centers, 2):
            assert max(abs(x - other_x), abs(y - other_y)) * CANVAS / 2 > 2 * radius * CANVAS / 2 + 1.9  # pixels apart
        for x, y in poster.centers:
            assert -1 + radius < min(x, y) and x + radius < 1
            assert (y + radius + 1) * CANVAS / 2 < CANVAS - HEIGHT - 0.5


def test_every_count_covers_as_much_as_its_objects():
    rng = random.Random(0)
    for count, radius in RADII.items():
        posters = [Poster(Facts(count, "square", "red", "black"), place(count, rng)) for _ in range(100)]
        assert float(draw_objects(posters).sum((1, 2)).mean()) == pytest.approx(
            count * (radius * CANVAS) ** 2, rel=0.01
        )


def test_the_splits_share_nothing_and_training_has_all_parts_of_what_is_hidden():
    listed = [word for words in WORDS.values() for word in words]
    assert len(listed) == len(set(listed)) == 60
    assert not set(listed) & set(LABELS.values())
    assert all(3 <= len(word) <= 4 and set(word) <= set(GLYPHS) for word in [*listed, *LABELS.values()])
    seen, hidden = WORDS["seen"], [*WORDS["held out"], *WORDS["test"]]
    pairs = {pair for word in seen for pair in pairwise(word)}
    assert {pair for word in hidden for pair in pairwise(word)} <= pairs
    assert set.union(*map(letters_at, hidden)) <= set.union(*map(letters_at, seen))
    assert set("".join(seen)) == set(GLYPHS)
    assert not CELLS_OF["held out"] & CELLS_OF["test"]
    for cells in CELLS_OF.values():
        assert all(1 <= count <= MAX_COUNT and what in (*SHAPES, *COLORS) for count, what in cells)
    hidden_cells = CELLS_OF["held out"] | CELLS_OF["test"]
    for what in (*SHAPES, *COLORS):  # each is seen in two counts or more, and each count with most of them
        assert sum((count, what) not in hidden_cells for count in RADII) >= 2


@given(seeds, kinds)
@settings(max_examples=300)
def test_a_twin_differs_in_one_fact_and_may_be_shown(seed, kind):
    rng = random.Random(seed)
    poster = draw_poster(rng, kind)
    other = twin(poster, rng)
    differ = [f.name for f in fields(Facts) if getattr(poster.facts, f.name) != getattr(other.facts, f.name)]
    assert (other.kind, other.split) == (kind, "seen")
    if kind == "label" and "shape" in differ:
        assert differ == ["shape", "word"] and other.facts.word == LABELS[other.facts.shape]
    else:
        assert len(differ) == 1
    if differ == ["word"]:
        assert sum(a != b for a, b in zip(poster.facts.word, other.facts.word, strict=True)) == 1
    if differ != ["count"]:
        assert other.centers == poster.centers
    assert len(other.centers) == other.facts.count


def test_twins_change_every_fact_and_quoted_words_most_often():
    rng, changes = random.Random(0), Counter()
    for _ in range(1500):
        poster = draw_poster(rng, "quote")
        other = twin(poster, rng)
        changes.update(f.name for f in fields(Facts) if getattr(poster.facts, f.name) != getattr(other.facts, f.name))
    assert set(changes) == {field.name for field in fields(Facts)}
    assert 0.4 < changes["word"] / 1500 < 0.6 and min(changes.values()) > 100


def test_a_picture_shows_its_background_its_objects_and_its_sign():
    facts = Facts(1, "square", "red", "black", "fox")
    (image,) = render([Poster(facts, ((0.0, -0.375),), quoted=True)])
    pixels = ((image + 1) * 127.5).round().int()

    def at(row: int, column: int) -> tuple[int, ...]:
        return tuple(pixels[:, row, column].tolist())

    assert image.shape == (3, CANVAS, CANVAS) and float(image.abs().max()) <= 1
    assert at(0, 0) == BACKGROUNDS["black"] and at(10, 16) == COLORS["red"]
    assert at(CANVAS - HEIGHT, 0) == (250, 235, 170) and at(CANVAS - HEIGHT + 1, 1) == (20, 20, 20)
    (without,) = render([Poster(Facts(1, "square", "red", "black"), ((0.0, -0.375),))])
    assert torch.equal(image[:, : CANVAS - HEIGHT], without[:, : CANVAS - HEIGHT])
    assert torch.equal(without[:, -1], without[:, 0])


def test_no_such_kind_or_split_is_refused_by_name():
    for arguments in (("poem", "seen"), ("plain", "secret")):
        with pytest.raises(ValueError, match=f'"{arguments[0]}", "{arguments[1]}" is no kind and split'):
            draw_poster(random.Random(0), *arguments)
