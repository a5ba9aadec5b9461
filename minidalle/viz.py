"""Pictures of pictures. One of the two files that import matplotlib or ipywidgets."""

import textwrap
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from minidalle.data import to_pil

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


def contact_sheet(rows: list[tuple[str, torch.Tensor]], title: str = "") -> Figure:
    """Lay out pictures, one caption a row.

    Args:
        rows: captions and images (B, 3, H, W) in [-1, 1].
        title: written above.
    """
    columns = max(len(images) for _, images in rows)
    figure = Figure(figsize=(3.0 + 0.8 * columns, 0.4 + 0.85 * len(rows)), dpi=100)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(rows), columns + 1, width_ratios=[3.4] + [1] * columns, wspace=0.06, hspace=0.08,
        left=0.01, right=0.99, bottom=0.01, top=1 - 0.35 / figure.get_figheight(),
    )  # fmt: skip
    for row, (caption, images) in enumerate(rows):
        label = figure.add_subplot(grid[row, 0])
        label.axis("off")
        label.text(0, 0.5, textwrap.fill(caption, 30), va="center", fontsize=10)
        for column, picture in enumerate(to_pil(images)):
            axes = figure.add_subplot(grid[row, column + 1])
            axes.axis("off")
            axes.imshow(picture, interpolation="nearest")
    figure.text(0.01, 1 - 0.1 / figure.get_figheight(), title, va="top", fontsize=11, fontweight="bold")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
