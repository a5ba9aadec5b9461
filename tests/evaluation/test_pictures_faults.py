"""Sheets of pictures: what is too large or makes no sense is refused before memory is taken."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from minidalle.evaluation.pictures import MAX_PIXELS, check_pixels, contact_sheet, grid


@pytest.fixture
def no_memory(monkeypatch) -> None:
    """Fail when a sheet is made."""
    monkeypatch.setattr(Image, "new", lambda *_: pytest.fail("memory was taken"))
    monkeypatch.setattr(Figure, "add_gridspec", lambda *_, **__: pytest.fail("memory was taken"))


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 3, 64, 64), {"scale": 10**6}),
        ((1024, 3, 64, 64), {"scale": 64}),
        ((1, 3, 8, 8), {"gap": 10**6}),
        ((1, 3, 8, 8), {"scale": 2**62}),
    ],
)
def test_a_sheet_of_gigapixels_is_refused_before_memory_is_taken(no_memory, shape, options):
    with pytest.raises(ValueError, match=rf"make a sheet of \d+ pixels; at most {MAX_PIXELS} were expected"):
        grid(torch.zeros(1).expand(shape), **options)


def test_a_contact_sheet_of_gigapixels_is_refused_before_memory_is_taken(no_memory):
    with pytest.raises(ValueError, match="ask for fewer pictures"):
        contact_sheet([("a", torch.zeros(1).expand(100_000, 3, 8, 8))])


@pytest.mark.parametrize("options", [{"scale": 0}, {"scale": 1.5}, {"scale": True}, {"columns": 0}, {"gap": -1}])
def test_a_layout_that_makes_no_sense_is_refused(options):
    with pytest.raises(ValueError, match="a whole number"):
        grid(torch.zeros(1, 3, 8, 8), **options)


@pytest.mark.parametrize("make", [np.int64, np.uint8, torch.tensor])
def test_a_layout_may_be_given_in_numbers_of_any_type(make):
    images = torch.rand(5, 3, 8, 8)
    found = grid(images, columns=make(3), scale=make(2), gap=make(1))
    assert found.tobytes() == grid(images, columns=3, scale=2, gap=1).tobytes()


def test_the_limit_itself_is_allowed():
    check_pixels(1, MAX_PIXELS, 1)
    with pytest.raises(ValueError, match="pixels"):
        check_pixels(1, MAX_PIXELS + 1, 1)


def test_a_sheet_of_no_pictures_is_white():
    assert grid(torch.zeros(0, 3, 8, 8)).getcolors()[0][1] == (255, 255, 255)


def test_captions_are_words_and_no_formulas():
    contact_sheet([("costs $5 or $\\oops$ more", torch.zeros(1, 3, 8, 8))], "$").canvas.draw()
