"""Texts beside pictures reach the reader of a page, and drawings stay readable under any style of matplotlib."""

import base64
import io
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image

from minidalle.course import LiveLoss, figures

RED = Image.new("RGB", (8, 8), "red")
STYLES = ["dark_background", "seaborn-v0_8-darkgrid", "classic"]


class Pictures(HTMLParser):
    """Collect the pictures of a page: the text beside each, and what each is."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[dict] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.found.append(dict(attrs))


def decoded(source: str) -> Image.Image:
    """Read the picture of a data address."""
    head, content = source.split(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


@given(st.text(max_size=80))
def test_any_text_survives_in_the_html_beside_the_png(alt):
    data, metadata = figures.bundle(RED, alt, 300)
    (image,) = Pictures(data["text/html"]).found
    assert (image["alt"] or "").split() == alt.split() and image["width"] == "300"  # a page may turn \r into \n
    with decoded(image["src"]) as shown, Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) as png:
        assert shown.tobytes() == png.tobytes() == RED.tobytes()
    assert data["text/plain"] == alt and metadata["image/png"] == {"alt": alt, "width": 300}


def outputs(monkeypatch) -> list:
    """Collect what is displayed, as Jupyter would."""
    made = []
    monkeypatch.setattr(figures, "display_bundle", lambda data, metadata, **_: made.append((data, metadata)))
    return made


def test_every_picture_of_a_page_of_nbconvert_has_its_text(monkeypatch):
    nbconvert, nbformat = pytest.importorskip("nbconvert"), pytest.importorskip("nbformat")
    made = outputs(monkeypatch)
    figures.show(RED, 'A "red" square, 3 < 5 & red.')
    figure, axes = pyplot.subplots()
    axes.plot([0, 1])
    figures.show(figure, "A line that rises.", width=200)
    figures.system_map("clip")
    figures.system_map(alt=False)
    live = LiveLoss("prior", [{"steps": [10, 2000], "losses": [1.0, 0.5]}], {"nothing learned": 1.0}, 2000)
    for step in range(10, 2001, 10):
        live({"step": step, "loss": 1 / step})
    cell = nbformat.v4.new_code_cell("", execution_count=1)
    cell.outputs = [nbformat.v4.new_output("display_data", data, metadata=meta) for data, meta in made]
    page, _ = nbconvert.HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    alts = [image.get("alt") for image in Pictures(page).found]
    assert alts[:2] == ['A "red" square, 3 < 5 & red.', "A line that rises."]
    assert alts[2].startswith("Map of the system") and alts[3] == "" and "No description" not in page
    assert alts[-1].startswith("Loss of prior: 0.1 at step 10, 0.0005 at step 2000. Loss over the last tenth")
    assert len(alts) == len(made) >= 6
    assert not pyplot.get_fignums()


def drawn(figure: Figure) -> np.ndarray:
    with Image.open(io.BytesIO(figures.to_png(figure))) as picture:
        return np.array(picture.convert("RGB"))


@pytest.fixture(scope="module")
def expected() -> list[np.ndarray]:
    """Draw once under matplotlib's defaults."""
    return all_drawings()


def all_drawings() -> list[np.ndarray]:
    """Draw everything that the package draws with matplotlib."""
    reference = [{"steps": [0, 100], "losses": [3.0, 1.0]}, {"steps": [0, 100], "losses": [2.0, 0.5]}]
    curve = figures.loss_curve("clip", [(10, 4.0), (50, 0.1)], reference, {"ln 128 costs $5": 4.85}, 100)
    sheet = figures.contact_sheet([("a red circle for $5", torch.zeros(2, 3, 8, 8))], "Costs $x")
    with figures.drawing(4, 3) as figure:
        left, right = figure.subplots(1, 2)
        left.plot([0, 1], [1, 2], label="a")
        left.text(0.5, 1.5, "text")
        left.set(title="title", xlabel="x")
        left.legend()
        right.imshow(np.eye(3))
        figure.suptitle("above")
    return [drawn(f) for f in (curve, figures.draw_system_map("clip"), sheet, figure)]


@pytest.mark.parametrize("style", STYLES)
def test_a_foreign_style_changes_no_drawing(style, expected):
    with matplotlib.style.context(style):
        before = dict(matplotlib.rcParams)
        found = all_drawings()
        assert dict(matplotlib.rcParams) == before
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and (one == other).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"savefig.facecolor": "black", "savefig.bbox": "tight", "savefig.dpi": 300, "figure.dpi": 33},
        {"text.color": "white", "axes.labelcolor": "white", "font.size": 40, "font.family": "monospace"},
        {"axes.prop_cycle": matplotlib.cycler(color=["white"]), "lines.linewidth": 0, "patch.linewidth": 9},
        {
            "axes.spines.top": False,
            "image.cmap": "gray",
            "path.sketch": (9, 9, 9),
            "figure.constrained_layout.use": True,
        },
    ],
)
def test_a_foreign_setting_changes_no_drawing(settings, expected):
    with matplotlib.rc_context(settings):
        found = all_drawings()
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and (one == other).all()


def test_a_figure_of_ones_own_keeps_its_own_style():
    with matplotlib.style.context("dark_background"):
        figure = Figure(figsize=(2, 2))
        figure.subplots()
        picture = drawn(figure)
    assert (picture[0, 0] == 0).all() and picture.max() > 200


@pytest.mark.parametrize(
    ("losses", "scale"),
    [([10.0, 1.0], "log"), ([4.0, 1.0], "linear"), ([10.0, 0.0], "linear"), ([1.0, -9.0], "linear")],
)
def test_a_loss_that_falls_far_is_drawn_on_a_log_scale(losses, scale):
    (axes,) = figures.loss_curve("clip", list(enumerate(losses, 1))).axes
    assert axes.get_yscale() == scale
    assert scale == "log" or axes.get_ylim()[0] == min(0, *losses)


@pytest.mark.parametrize(
    "first, last", [(0.6, 0.02), (0.004, 0.0005), (4.9, 0.6), (6e-5, 7e-6), (900.0, 80.0), (0.5, 0.4)]
)
@pytest.mark.parametrize("total", [109, 1000, 20_000])
def test_no_text_of_a_loss_curve_leaves_the_picture(first, last, total):
    figure = figures.loss_curve("decoder", [(10, first), (total, last)], lines={"always the mean": first}, total=total)
    figure.draw_without_rendering()
    shown, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(shown.min) >= 0 and shown.x1 <= width and shown.y1 <= height, shown


@pytest.mark.parametrize(
    "name, steps", [("unconditional UNet", 320), ("denoiser of points", 3000), ("learned upsampler", 12_500)]
)
def test_the_title_of_a_loss_curve_does_not_reach_its_legend(name, steps):
    curve, others = [(10, 0.6), (steps, 0.028834)], [{"steps": [10, steps], "losses": [0.6, 0.03]}] * 3
    figure = figures.loss_curve(name, curve, others)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    title = axes.get_title(loc="left")
    drawn = next(text for text in axes.findobj(match=type(axes.title)) if text.get_text() == title)
    assert drawn.get_window_extent().x1 + 5 < axes.get_legend().get_window_extent().x0


@pytest.mark.parametrize("grey", [0, 20, 128, 240, 255])
def test_few_colors_neither_pale_what_is_strong_and_rare_nor_tint_what_is_grey(grey):
    pixels = np.random.default_rng(0).integers(0, 256, (120, 240, 3), dtype=np.uint8)
    pixels[:, 120:], pixels[:4, :4] = grey, (255, 0, 0)
    data, _ = figures.bundle(Image.fromarray(pixels), "noise, a red corner and a grey half")
    with Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) as shown:
        few = np.asarray(shown.convert("RGB")).astype(int)
    assert len(np.unique(few.reshape(-1, 3), axis=0)) <= 256
    assert np.abs(few[2, 2] - (255, 0, 0)).max() < 35 and np.abs(few[:, 120:] - grey).max() <= 4


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=9), st.booleans())
def test_names_of_points_cover_neither_each_other_nor_the_edge(places, log):
    points = {f"family {i}": (x + 1, y) for i, (x, y) in enumerate(places)}
    with figures.drawing(6, 6) as figure:
        axes = figure.subplots()
        axes.plot(*zip(*points.values(), strict=True), "o")
        axes.set_xscale("log" if log else "linear")
        axes.margins(0.3, 0.2)
        figures.label_points(axes, points)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == list(points)
    assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])
    frame = axes.get_window_extent()
    assert all(frame.contains(*box.min) and frame.contains(*box.max) for box in boxes)
