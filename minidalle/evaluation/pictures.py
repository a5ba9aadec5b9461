"""Pictures of pictures: grids with titles, and the contact sheet; and the plots of the report card."""

import contextlib
import io
import textwrap
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from minidalle.checks import whole_number
from minidalle.data.images import to_pil
from minidalle.evaluation.confusion import OPTIONS, Matrix, columns
from minidalle.evaluation.tables import shorten

MAX_PIXELS = 2**27  # of a sheet, 400 MB
OKABE_ITO = {  # told apart with every kind of colour vision (Okabe and Ito 2008)
    "black": "#000000",
    "orange": "#E69F00",
    "sky blue": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
}
CURVES = (("blue", "o"), ("vermillion", "s"), ("green", "D"), ("purple", "^"), ("orange", "v"), ("black", "P"))
KEYS = (  # of a sweep: panel, line and its width, what it stands for
    ("following", "-", 1.5, "held out (95 % interval)"), ("following", "--", 1.5, "seen"),
    ("fidelity", ":", 1.2, "real pictures"), ("trade", "-", 4, "real pictures, fair painter"),
)  # fmt: skip
SHEET_PROMPTS = (
    "a red circle",
    "a small blue square at the top left",
    "a large yellow triangle on a black background",
    "a green ring at the bottom right on a white background",
    "a purple cross in the center",
    "a red circle above a blue square",
    "a pink diamond to the left of a cyan triangle",
    "a yellow cross",
    "a large blue circle on a grey background",
)  # the last two ask for combinations that are held out


def own_style() -> contextlib.AbstractContextManager:
    """Open a context in which matplotlib draws by its own defaults, whatever style was chosen: our colours need white.

    Style counts when a part of a drawing is made, so all of a drawing must be made inside.
    """
    kept = ("backend", "backend_fallback", "interactive", "toolbar", "timezone", "webagg", "tk", "figure.max_open")
    return matplotlib.rc_context({k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith(kept)})


@own_style()
def contact_sheet(rows: list[tuple[str, torch.Tensor]], title: str = "") -> Figure:
    """Lay out pictures, one caption a row.

    Args:
        rows: captions and images (B, 3, H, W) in [-1, 1].
        title: written above.
    """
    columns = max(len(images) for _, images in rows)
    check_pixels(len(rows) * (columns + 3), 85, 80)
    above = 0.35 if title else 0.05  # inches
    figure = Figure(figsize=(3.0 + 0.8 * columns, above + 0.05 + 0.85 * len(rows)), dpi=100)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(rows), columns + 1, width_ratios=[3.4] + [1] * columns, wspace=0.06, hspace=0.08,
        left=0.01, right=0.99, bottom=0.01, top=1 - above / figure.get_figheight(),
    )  # fmt: skip
    for row, (caption, images) in enumerate(rows):
        label = figure.add_subplot(grid[row, 0])
        label.axis("off")
        label.text(0, 0.5, textwrap.fill(caption, 30), va="center", fontsize=10, parse_math=False)
        for column, picture in enumerate(to_pil(images)):
            axes = figure.add_subplot(grid[row, column + 1])
            axes.axis("off")
            axes.imshow(picture, interpolation="nearest")
    figure.text(
        0.01, 1 - 0.1 / figure.get_figheight(), title, va="top", fontsize=11, fontweight="bold", parse_math=False
    )
    return figure


@own_style()
def confusion_figure(matrix: Matrix, attribute: str, title: str = "", percent: bool = False) -> Figure:
    """Draw what is taken for what, 5 inches wide: a row for each option that was asked for, a column for what was read.

    Args:
        matrix: of an attribute, as confusion.confusion counts it.
        attribute: its name.
        title: written above.
        percent: whether cells hold shares of their row in place of counts; the rows then say of how many.
    """
    asked, read = [option for option in OPTIONS[attribute] if option in matrix], columns(attribute)
    counts = np.array([[matrix[row].get(column, 0) for column in read] for row in asked])
    totals = counts.sum(1)
    shares = counts / totals[:, None]
    figure = Figure(figsize=(5, 1.4 + 0.3 * len(asked)), layout="constrained")
    axes, white_to_blue = figure.add_subplot(), LinearSegmentedColormap.from_list("", ["white", OKABE_ITO["blue"]])
    axes.imshow(shares, white_to_blue, vmin=0, vmax=1, aspect="auto")
    axes.axvline(len(OPTIONS[attribute]) - 0.5, color="black", lw=0.8)
    for (y, x), share in np.ndenumerate(shares):
        if share:
            text = f"{100 * share:.0f}" if percent else str(counts[y, x])
            axes.text(x, y, text, color="white" if share > 0.5 else "black", ha="center", va="center", fontsize=8)
    names = [f"{option} ({total})" for option, total in zip(asked, totals, strict=True)] if percent else asked
    axes.set_yticks(range(len(asked)), names, fontsize=8)
    axes.set_xticks(range(len(read)), read, fontsize=8, rotation=45, ha="right", rotation_mode="anchor")
    axes.set(xlabel="read, % of what was asked" if percent else "read", ylabel="asked")
    axes.set_title(title or attribute, fontsize=10, loc="left", parse_math=False)
    return figure


@own_style()
def sweep_figure(sweeps: dict[str, dict]) -> Figure:
    """Draw what guidance does: following and fidelity over the scale, and fidelity against diversity.

    Args:
        sweeps: by the name of the system, as sweep.sweep measures them and JSON keeps them; a curve each.

    Paper: figs. 10, 11 and 13.
    """
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    panels = figure.subplot_mosaic([["following", "trade"], ["fidelity", "trade"]])
    for (name, found), (color, marker) in zip(sweeps.items(), cycle(CURVES), strict=False):
        style = {"color": OKABE_ITO[color], "marker": marker, "ms": 5, "lw": 1.5}
        draw_following(panels["following"], found["points"], style)
        scales, even, frechet = curves(found["points"])
        panels["fidelity"].plot(scales, frechet, **style)
        panels["trade"].plot(even, frechet, label=shorten(name), **style)
        for scale, x, y in list(zip(scales, even, frechet, strict=True))[:: len(scales) - 1]:  # the ends
            panels["trade"].annotate(f"{scale:g}", (x, y), (4, 4), textcoords="offset points", fontsize=8)
        real = {"color": OKABE_ITO[color], "ls": ":", "lw": 1.2}
        panels["fidelity"].axhline(found["real"]["frechet"], **real)
        panels["trade"].plot(found["real"]["fair"], [found["real"]["frechet"]] * 2, **real | {"lw": 4, "ls": "-"})
    panels["following"].set(ylabel="exact match, %")
    panels["fidelity"].set(xlabel="guidance scale", ylabel="Frechet distance")
    panels["trade"].set(xlabel="evenness of what the prompt leaves open", ylabel="Frechet distance")
    for panel, line, width, label in KEYS:
        panels[panel].plot([], [], f"k{line}", lw=width, label=label)
    for axes in panels.values():
        for text in axes.legend(frameon=False, fontsize=8).get_texts():
            text.set_parse_math(False)
    return figure


def curves(points: list[dict]) -> tuple[list[float], list[float], list[float]]:
    """Give scales, evenness (not a number where nothing was read) and Frechet distances of a sweep."""
    even = [np.nan if point["diversity"]["evenness"] is None else point["diversity"]["evenness"] for point in points]
    return [point["guidance_scale"] for point in points], even, [point["frechet"] for point in points]


def draw_following(axes: Axes, points: list[dict], style: dict) -> None:
    """Draw exact match over the scale: held out with its interval, seen as a dashed line."""
    scales = [point["guidance_scale"] for point in points]
    seen, held_out = ([point["exact"][split] for point in points] for split in ("seen", "held out"))
    low, share, high = ([100 * rate[end] for rate in held_out] for end in ("low", "share", "high"))
    axes.fill_between(scales, low, high, color=style["color"], alpha=0.15, lw=0)
    axes.plot(scales, share, **style)
    axes.plot(scales, [100 * rate["share"] for rate in seen], **style | {"ls": "--", "marker": None})


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with own_style():
        figure.savefig(path)


def to_png(picture: Image.Image | Figure, dpi: int = 72) -> bytes:
    """Write a picture, or a figure at so many dots an inch, as a PNG in memory."""
    file = io.BytesIO()
    if isinstance(picture, Figure):
        with own_style():
            picture.savefig(file, format="png", dpi=dpi)
    else:
        picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def check_pixels(number: int, height: int, width: int) -> None:
    """Refuse, before memory is taken, more pixels than a sheet of pictures should have.

    Raises: ValueError: gives their number and the limit.
    """
    if number * height * width > MAX_PIXELS:
        raise ValueError(
            f"{number} pictures of {width} x {height} make a sheet of {number * width * height} pixels; at most "
            f"{MAX_PIXELS} were expected: ask for fewer pictures, or a smaller scale."
        )


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break a text into lines of at most so many pixels; a word that is longer has a line of its own."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def grid(
    images: torch.Tensor, columns: int = 8, scale: int = 2, titles: list[str] | None = None, gap: int = 4
) -> Image.Image:
    """Lay pictures out in rows.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        columns: pictures in a row.
        scale: enlargement, a whole number, so that pixels stay squares.
        titles: one for each picture, written below it.
        gap: white pixels around each picture.

    Raises: ValueError: when there is not one title for each picture, the scale is no whole number from 1 up, or the
        sheet would be too large.
    """
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"There are {len(titles)} titles and {len(images)} pictures: give one for each.")
    scale, gap = whole_number(scale, "The scale of the pictures"), whole_number(gap, "The gap between pictures", 0)
    columns = min(whole_number(columns, "The number of columns"), max(1, len(images)))
    side_y, side_x = (scale * side for side in images.shape[-2:])
    font = ImageFont.load_default(11)
    texts = [wrap(title, font, side_x) for title in titles or []]
    line_height = 13
    below = line_height * max(map(len, texts), default=0)
    rows = -(-len(images) // columns)
    check_pixels(columns * rows, side_y + below + gap, side_x + gap)
    sheet = Image.new("RGB", (columns * (side_x + gap) + gap, rows * (side_y + below + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for i, picture in enumerate(to_pil(images)):
        x, y = gap + i % columns * (side_x + gap), gap + i // columns * (side_y + below + gap)
        sheet.paste(picture.resize((side_x, side_y), Image.Resampling.NEAREST), (x, y))
        for n, line in enumerate(texts[i] if texts else []):
            pen.text((x, y + side_y + n * line_height), line, "black", font)
    return sheet
