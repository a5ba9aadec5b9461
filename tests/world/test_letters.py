"""Letters: all differ, and what is drawn is read."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minidalle.world.letters import (
    BLANK,
    GLYPHS,
    HEIGHT,
    SLOT,
    SLOTS,
    SYMBOLS,
    UNCLEAR,
    dots,
    draw_words,
    read_words,
    templates,
)

words = st.text("abcdefghijklmnopqrstuvwxyz", min_size=0, max_size=SLOTS)


def noise(size: float, like: torch.Tensor, seed: int) -> torch.Tensor:
    """Draw noise of a tensor's shape."""
    return size * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def test_any_two_letters_differ_in_two_dots_or_more():
    distances = {(a, b): int((dots(a) != dots(b)).sum()) for a, b in combinations(GLYPHS, 2)}
    assert len(distances) == 26 * 25 // 2
    assert {pair: dots for pair, dots in distances.items() if dots < 2} == {}


def test_a_letter_is_drawn_dot_by_dot():
    shown = ["".join("#" if dot else "." for dot in row) for row in dots("k").tolist()]
    assert shown == ["#.#", "##.", "#..", "##.", "#.#"]
    (line,) = draw_words(["k"])
    assert line.shape == (HEIGHT, SLOTS * SLOT)
    assert torch.equal(line[1:11:2, 1:7:2], dots("k")) and torch.equal(line[2:11:2, 2:7:2], dots("k"))
    assert float(line.sum()) == 4 * float(dots("k").sum())  # and nothing elsewhere


def test_ink_never_touches_the_edge_of_its_slot():
    ink = templates().amax(0)
    assert float(ink[[0, -1]].sum() + ink[:, [0, -1]].sum()) == 0


@given(st.lists(words, min_size=1, max_size=8), st.integers(0, 2**32))
def test_a_word_that_is_drawn_is_read_with_noise_too(drawn, seed):
    line = draw_words(drawn)
    assert read_words(line) == drawn
    assert read_words(line + noise(0.15, line, seed)) == drawn


@given(st.sampled_from(tuple(combinations(GLYPHS, 2))))
def test_what_is_half_one_letter_and_half_another_is_unclear(pair):
    first, second = draw_words(list(pair))
    (word,) = read_words(((first + second) / 2)[None])
    assert word == UNCLEAR


def framed() -> torch.Tensor:
    """Draw letters between two dark bars."""
    line = draw_words(["elfs"])
    line[:, [0, -1]] = 1
    return line


@pytest.mark.parametrize(
    "ink",
    [torch.full((1, HEIGHT, 32), 0.5), torch.ones(1, HEIGHT, 32), torch.rand(1, HEIGHT, 32), framed()],
    ids=["grey", "black", "noise", "framed"],
)
def test_what_is_no_letter_is_unclear(ink):
    assert read_words(ink) == [UNCLEAR * SLOTS]


def test_a_blank_between_letters_stays():
    line = draw_words(["d g"])
    assert read_words(line) == ["d g"] and SYMBOLS[-1] == BLANK
