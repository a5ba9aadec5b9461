"""Figures: every picture is on the sheet, nothing opens a window."""

import numpy as np
import torch
from matplotlib import pyplot
from PIL import Image

from minidalle.captions import parse
from minidalle.scenes import as_range
from minidalle.viz import SHEET_PROMPTS, contact_sheet, save_figure

PALETTE = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def plain(color: str, number: int) -> torch.Tensor:
    """Make pictures of one colour."""
    return as_range(PALETTE)[list(PALETTE).index(color)][None, :, None, None].repeat(number, 1, 8, 8)


def patches(picture: np.ndarray, color: str) -> int:
    """Count the patches of a colour along the row that has most of them."""
    shown = (picture == PALETTE[color]).all(-1)
    return int((np.diff(np.pad(shown, ((0, 0), (1, 0))).astype(int), axis=1) == 1).sum(1).max())


def test_a_sheet_shows_every_picture_in_its_row(tmp_path):
    rows = [("a red picture", plain("red", 3)), ("green " * 20, plain("green", 1)), ("blue", plain("blue", 2))]
    path = tmp_path / "new" / "sheet.png"
    save_figure(contact_sheet(rows, "Three rows"), path)
    with Image.open(path) as file:
        picture = np.array(file.convert("RGB"))
    assert [patches(picture, color) for color in PALETTE] == [3, 1, 2]
    heights = [np.argwhere((picture == rgb).all(-1))[:, 0] for rgb in PALETTE.values()]
    assert heights[0].max() < heights[1].min() and heights[1].max() < heights[2].min()
    assert (picture[:, 0] == 255).all()  # the captions begin inside


def test_titles_and_captions_are_written():
    figure = contact_sheet([("a red circle", plain("red", 1))], "The title")
    texts = [text.get_text() for text in figure.texts + [text for axes in figure.axes for text in axes.texts]]
    assert {"The title", "a red circle"} <= set(texts)


def test_no_figure_is_left_with_pyplot():
    contact_sheet([("a", plain("red", 1))])
    assert pyplot.get_fignums() == []


def test_the_sheets_prompts_are_of_the_world_and_the_last_two_held_out():
    assert [parse(prompt).is_held_out for prompt in SHEET_PROMPTS[-2:]] == [True, True]
    assert not any(parse(prompt).is_held_out for prompt in SHEET_PROMPTS[:5])
