"""Numbers and texts of every type are taken, or refused in a sentence that is true."""

from collections import deque
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minidalle.checks import finite_number, texts, whole_number

MAKERS = (int, np.int64, np.int16, torch.tensor, np.array, lambda n: torch.tensor([[n]]), lambda n: np.array([n]))


@given(st.integers(-1000, 1000))
def test_a_whole_number_of_any_type_is_taken(number):
    for make in MAKERS:
        found = whole_number(make(number), "n", -1000, 1000)
        assert type(found) is int and found == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_finite_number_of_any_type_is_taken(number):
    for make in (float, np.float64, Decimal, Fraction, lambda x: torch.tensor(x, dtype=torch.float64), np.array):
        found = finite_number(make(number), "x")
        assert type(found) is float and found == number


class Odd:
    def __repr__(self):
        raise RuntimeError("no")


NEVER = [
    True, False, np.True_, torch.tensor(False), np.array(True), "3", b"3", bytearray(b"3"), np.str_("3"), None, [3],
    (3,), 3 + 0j, np.complex64(3), torch.tensor([3, 4]), np.array([3, 4]), torch.tensor([]), float("nan"), float("inf"),
    np.float32("-inf"), torch.tensor(float("nan")), Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"), Path("3"),
    {}, object(), Odd(), torch.empty((), device="meta"), np.datetime64(3, "s"),
]  # fmt: skip


@pytest.mark.parametrize("value", NEVER, ids=[f"{i} {type(value).__name__}" for i, value in enumerate(NEVER)])
def test_what_is_no_number_is_refused(value):
    for check, expected in (
        (whole_number, "a whole number, 1 or more, was expected"),
        (finite_number, "a finite number"),
    ):
        with pytest.raises(ValueError, match=rf"^The width is .*; {expected}") as found:
            check(value, "The width")
        assert len(str(found.value)) < 130 and str(found.value).isprintable()


@pytest.mark.parametrize(
    "value",
    [
        0,
        -1,
        11,
        2.5,
        2.0,
        np.float32(2),
        torch.tensor(2.0),
        Decimal(2),
        Decimal("2.5"),
        Fraction(5, 2),
        np.float32(2.5),
        1e300,
        10**5000,
        Decimal("1e999999999"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_whole_number_in_the_bounds_is_refused_at_once(value):
    with pytest.raises(ValueError, match=r"^n is .*; a whole number from 1 to 10 was expected") as found:
        whole_number(value, "n", 1, 10)
    assert len(str(found.value)) < 130


def test_one_text_or_several_of_any_type_are_taken():
    assert texts("a b", "The prompt") == texts(np.str_("a b"), "The prompt") == texts(np.array("a b"), "") == ["a b"]
    several = ["a", "b"]
    for make in (list, tuple, np.array, deque):
        found = texts(make(several), "The prompt")
        assert found == several and all(type(text) is str for text in found)


@pytest.mark.parametrize(
    "value", [None, 3, b"a", bytearray(b"a"), Path("a"), {"a": 1}, {"a"}, (t for t in "ab"), True, 2.5, object()]
)
def test_what_is_no_text_is_refused_by_its_type(value):
    with pytest.raises(ValueError, match=f"^The prompt is of type {type(value).__name__}; a text or a list of texts"):
        texts(value, "The prompt")


@pytest.mark.parametrize("value", [None, 3, b"a", Path("a"), ["a"]])
def test_what_is_no_text_among_texts_is_refused_by_its_place(value):
    with pytest.raises(ValueError, match=f"The prompt number 1 is of type {type(value).__name__}; a text was expected"):
        texts(["a", value], "The prompt")


@pytest.mark.parametrize("value", [[], (), np.array([])])
def test_no_texts_are_refused(value):
    with pytest.raises(ValueError, match=r"empty list|number 0 is of type"):
        texts(value, "The prompt")
