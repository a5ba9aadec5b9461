"""Figures: every picture is on the sheet, nothing opens a window."""

import base64
import io

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image

from minidalle.course import figures
from minidalle.evaluation import pictures
from minidalle.evaluation.pictures import SHEET_PROMPTS, contact_sheet, save_figure
from minidalle.world.grammar import parse
from minidalle.world.render import as_range

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


def test_a_sheet_without_a_title_leaves_no_band_for_one():
    heights = []
    for title in ("", "A title"):
        figure = contact_sheet([("a red circle", plain("red", 1))], title)
        top = max(axes.get_position().y1 for axes in figure.axes)
        heights.append((1 - top) * figure.get_figheight())  # inches above the pictures
    assert heights[0] < 0.1 < 0.3 < heights[1]


def test_titles_and_captions_are_written():
    figure = contact_sheet([("a red circle", plain("red", 1))], "The title")
    texts = [text.get_text() for text in figure.texts + [text for axes in figure.axes for text in axes.texts]]
    assert {"The title", "a red circle"} <= set(texts)


def test_no_figure_is_left_with_pyplot():
    contact_sheet([("a", plain("red", 1))])
    assert pyplot.get_fignums() == []


def test_the_sheets_prompts_are_of_the_world_and_the_last_two_held_out():
    splits = [parse(prompt).split for prompt in SHEET_PROMPTS]
    assert splits[-2:] == ["held out"] * 2 and "held out" not in splits[:5]


def displayed(monkeypatch) -> list[tuple[dict, dict]]:
    """Catch what is handed to Jupyter: data and metadata."""
    caught = []
    monkeypatch.setattr("IPython.get_ipython", object)
    monkeypatch.setattr("IPython.display.display", lambda data, metadata, **_: caught.append((data, metadata)))
    return caught


def decoded(data: dict) -> Image.Image:
    with Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) as picture:
        return picture.convert("RGB")


def test_a_shown_picture_says_what_is_to_be_seen(monkeypatch, capsys):
    caught = displayed(monkeypatch)
    figures.show(Image.new("RGB", (8, 4), "red"), "a red picture", width=80)
    ((data, metadata),) = caught
    assert decoded(data).size == (8, 4) and data["text/plain"] == "a red picture"
    assert metadata == {"image/png": {"alt": "a red picture", "width": 80}}
    monkeypatch.undo()
    figures.show(Image.new("RGB", (8, 4), "red"), "a red picture")
    assert capsys.readouterr().out == "a red picture\n"  # without Jupyter


def test_a_figure_of_pyplot_is_shown_once(monkeypatch):
    figure, axes = pyplot.subplots()
    axes.plot([1, 2])
    caught = displayed(monkeypatch)
    figures.show(figure, "a line")
    assert len(caught) == 1 and decoded(caught[0][0]).width == int(72 * figure.get_figwidth())
    assert pyplot.get_fignums() == []


def test_a_grid_holds_every_picture_in_order_and_its_title():
    images = torch.cat([plain("red", 2), plain("blue", 1)])
    sheet = np.array(pictures.grid(images, columns=2, scale=3, gap=2))
    assert sheet.shape == (2 * 26 + 2, 2 * 26 + 2, 3)
    assert [tuple(sheet[y, x]) for y, x in ((5, 5), (5, 40), (40, 5), (40, 40))] == [
        (255, 0, 0), (255, 0, 0), (0, 0, 255), (255, 255, 255),
    ]  # fmt: skip
    titled = np.array(pictures.grid(images, columns=2, scale=3, gap=2, titles=["one", "two", "three"]))
    assert titled.shape[0] > sheet.shape[0] and (titled == 0).all(-1).any()
    with pytest.raises(ValueError, match="1 titles and 3 pictures"):
        pictures.grid(images, titles=["one"])


def test_the_map_lights_what_is_asked_for(monkeypatch):
    caught = displayed(monkeypatch)
    figures.system_map()
    figures.system_map("clip", "prior")
    figures.system_map("unet", alt=False)
    texts = [data["text/plain"] for data, _ in caught]
    assert "lit" not in texts[0] and "lit: clip, prior" in texts[1] and texts[2] == ""
    lit = [(np.abs(np.array(decoded(data)).astype(int) - (240, 228, 66)) < 12).all(-1).sum() for data, _ in caught]
    assert lit[0] < lit[2] < lit[1] and lit[1] > 20_000
    assert all(len(data["image/png"]) < 40_000 for data, _ in caught)  # eleven notebooks carry one
    with pytest.raises(ValueError, match='"sampler" is no part of the map'):
        figures.system_map("sampler")


def test_a_loss_curve_has_the_band_of_the_seeds_and_the_lines_of_theory():
    seeds = [{"steps": [0, 10, 20], "losses": [4.0, 2.0, value]} for value in (1.0, 1.5, 2.0)]
    figure = figures.loss_curve("clip", [(10, 3.0), (20, 1.25)], seeds, {"ln 2": 0.69}, total=40)
    (axes,) = figure.axes
    band = axes.collections[0].get_paths()[0].vertices
    assert {tuple(point) for point in band} >= {(20.0, 1.0), (20.0, 2.0), (0.0, 4.0)}
    assert axes.lines[0].get_xydata().tolist() == [[10, 3.0], [20, 1.25]]
    assert list(axes.lines[1].get_ydata()) == [0.69, 0.69]
    assert {text.get_text() for text in axes.texts} == {"ln 2"} and axes.get_xlim() == (0, 40)
    assert figures.loss_curve("x", [(10, 100.0), (20, 1.0)]).axes[0].get_yscale() == "log"


def test_colors_are_told_apart():
    assert len(set(pictures.OKABE_ITO.values())) == 8


def test_a_title_stays_below_its_own_picture():
    sheet = np.array(pictures.grid(plain("red", 2), columns=2, scale=12, gap=6, titles=["wide words wrap within", ""]))
    ink = np.argwhere((sheet < 100).all(-1))
    assert len(ink) and ink[:, 0].min() > 6 + 96 and ink[:, 1].max() < 6 + 96 + 3


def test_each_line_of_a_title_has_a_place_of_its_own():
    def ink(title: str) -> np.ndarray:
        sheet = np.array(pictures.grid(plain("red", 1), scale=12, gap=0, titles=[title]))
        return (sheet < 100).all(-1)[96:].any(1)

    one, two = ink("nnnnnnnn"), ink("nnnnnnnn nnnnnnnn")
    assert len(two) == 2 * len(one)
    assert np.array_equal(two[: len(one)], one) and np.array_equal(two[len(one) :], one) and one.any()


def test_a_loss_is_drawn_from_zero_or_from_its_least():
    assert figures.loss_curve("x", [(10, 3.0), (20, 2.0)]).axes[0].get_ylim()[0] == 0
    assert figures.loss_curve("x", [(10, 3.0), (20, -2.0)]).axes[0].get_ylim()[0] == -2
