"""Figures: every picture is on the sheet, nothing opens a window."""

import base64
import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image

from minidalle.course import figures
from minidalle.evaluation import pictures
from minidalle.evaluation.confusion import OPTIONS, columns
from minidalle.evaluation.pictures import SHEET_PROMPTS, confusion_figure, contact_sheet, save_figure, sweep_figure
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


MATRIX = {"small": {"small": 3, "large": 1}, "large": {"large": 8, "unreadable": 2, "miscounted": 6}}


def cells(figure) -> dict[tuple[str, str], str]:
    """Read what stands in the cells of a matrix."""
    (axes,) = figure.axes
    rows, read = ([label.get_text() for label in labels] for labels in (axes.get_yticklabels(), axes.get_xticklabels()))
    places = [(*map(round, text.get_position()), text.get_text()) for text in axes.texts]
    return {(rows[y], read[x]): text for x, y, text in places}


def test_a_matrix_shows_every_count_in_its_cell():
    figure = confusion_figure(MATRIX, "size", "Sizes, $5")
    assert cells(figure) == {(row, read): str(count) for row, found in MATRIX.items() for read, count in found.items()}
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "Sizes, $5" and axes.get_ylabel() == "asked" and axes.get_xlabel() == "read"
    assert [label.get_text() for label in axes.get_xticklabels()] == list(columns("size"))


def test_a_matrix_in_per_cent_says_of_how_many():
    shown = cells(confusion_figure(MATRIX, "size", percent=True))
    assert shown == {
        ("small (4)", "small"): "75", ("small (4)", "large"): "25", ("large (16)", "large"): "50",
        ("large (16)", "unreadable"): "12", ("large (16)", "miscounted"): "38",
    }  # fmt: skip


@pytest.mark.parametrize("attribute", OPTIONS)
@pytest.mark.parametrize("percent", [False, True])
def test_a_matrix_can_be_read_at_five_inches(attribute, percent):
    full = {option: dict.fromkeys(columns(attribute), 100) for option in OPTIONS[attribute]}
    figure = confusion_figure(full, attribute, percent=percent)
    pictures.to_png(figure)
    (axes,) = figure.axes
    assert figure.get_figwidth() == 5 and figure.get_figheight() < 5
    width = axes.get_window_extent().width / len(columns(attribute))
    assert len(axes.texts) == len(full) * len(columns(attribute))
    assert all(text.get_window_extent().width < width for text in axes.texts)
    assert all(text.get_fontsize() >= 8 for text in [*axes.texts, *axes.get_yticklabels(), *axes.get_xticklabels()])
    labels = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(low.y1 <= high.y0 for high, low in pairwise(labels)) and min(label.x0 for label in labels) >= 0


def rate(share: float) -> dict:
    return {"share": share, "low": share - 0.1, "high": share + 0.1, "n": 9}


def curve(*frechet: float, even: float | None = 0.8) -> dict:
    """Make a sweep with a point at scales 1, 2, ..., as JSON keeps it."""
    points = [
        {
            "guidance_scale": 1.0 + i, "exact": {"seen": rate(0.9 - i / 10), "held out": rate(0.5 + i / 10)},
            "frechet": distance, "diversity": {"evenness": even and even - i / 10, "n": 9, "fair": [0.7, 0.8]},
        }
        for i, distance in enumerate(frechet)
    ]  # fmt: skip
    return {"points": points, "real": {"frechet": 0.05, "fair": [0.75, 0.85]}}


def lines(axes) -> list[list[list[float]]]:
    """Give the points of what is drawn; the keys of a legend have none."""
    return [line.get_xydata().tolist() for line in axes.lines if len(line.get_xdata())]


def test_a_sweep_has_a_curve_for_each_system_in_each_panel(tmp_path):
    figure = sweep_figure({"tiny": curve(0.1, 0.2), "runs/of $a$ system with a long name": curve(0.3, 0.4, 0.6)})
    following, trade, fidelity = figure.axes
    for expected in ([[1, 50], [2, 60]], [[1, 90], [2, 80]], [[1, 50], [2, 60], [3, 70]]):
        assert any(np.allclose(line, expected) for line in lines(following) if len(line) == len(expected))
    assert [line.get_linestyle() for line in following.lines] == ["-", "--"] * 3  # held out, seen
    band = following.collections[0].get_paths()[0].vertices
    assert [band[:, 1].min(), band[:, 1].max()] == pytest.approx([40, 70])
    assert lines(fidelity)[0] == [[1, 0.1], [2, 0.2]] and lines(fidelity)[2] == [[1, 0.3], [2, 0.4], [3, 0.6]]
    assert lines(fidelity)[1] == [[0, 0.05], [1, 0.05]]  # real pictures, across all of it
    np.testing.assert_allclose(lines(trade)[0], [[0.8, 0.1], [0.7, 0.2]])
    assert lines(trade)[1] == [[0.75, 0.05], [0.85, 0.05]]
    assert [text.get_text() for text in trade.texts] == ["1", "2", "1", "3"]
    names = [text.get_text() for text in trade.get_legend().get_texts()]
    assert names == ["tiny", "...stem with a long name", "real pictures, fair painter"]
    save_figure(figure, tmp_path / "new" / "sweep.png")
    with Image.open(tmp_path / "new" / "sweep.png") as picture:
        assert picture.width == 900
    assert pyplot.get_fignums() == []


def test_a_sweep_without_anything_read_and_of_many_systems_is_drawn_all_the_same():
    figure = sweep_figure({str(i): curve(0.1, 0.2, even=None if i else 0.8) for i in range(9)})
    pictures.to_png(figure)
    assert len({(line.get_color(), line.get_marker()) for line in figure.axes[1].lines[0:17:2]}) == 6
