"""The drawings of the notebooks, and how Jupyter shows a picture together with a text for those who do not see it."""

import base64
import contextlib
import html
import io
import sys
from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from PIL import Image

from minidalle.evaluation.pictures import OKABE_ITO, contact_sheet, grid, own_style, to_png

__all__ = [
    "OKABE_ITO",
    "contact_sheet",
    "drawing",
    "grid",
    "label_points",
    "loss_curve",
    "show",
    "system_map",
    "to_png",
]


def bundle(picture: Image.Image | Figure, alt: str, width: int | None = None) -> tuple[dict, dict]:
    """Make what Jupyter displays: the picture with a text for those who do not see it, and its metadata.

    The picture is there twice. Neither JupyterLab nor a page of nbconvert reads the text beside a PNG, but both prefer
    HTML, where a picture can carry it; what shows no HTML, such as a PDF, takes the PNG.
    """
    png = base64.b64encode(small_png(picture)).decode()
    sized = {"width": width} if width else {}
    attributes = {"src": f"data:image/png;base64,{png}", "alt": alt} | sized
    image = " ".join(f'{name}="{html.escape(str(value))}"' for name, value in attributes.items())
    return {"image/png": png, "text/html": f"<img {image}>", "text/plain": alt}, {"image/png": {"alt": alt} | sized}


def small_png(picture: Image.Image | Figure) -> bytes:
    """Write a picture as a PNG of at most 256 colours, a third of the size where there is noise in it."""
    png, plain = to_png(picture), Image.Dither.NONE
    with Image.open(io.BytesIO(png)) as opened:
        drawn = opened.convert("RGB")
    # Median cut pales what is strong and rare, coverage alone tints what is grey; a ninth of the pixels is enough
    some = drawn.resize([max(1, side // 3) for side in drawn.size], Image.Resampling.NEAREST)
    colors = some.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=plain)
    return min(png, to_png(drawn.quantize(palette=colors, dither=plain)), key=len)


@contextlib.contextmanager
def drawing(width: float, height: float, **options) -> Iterator[Figure]:
    """Open a figure of so many inches that looks the same whatever style of matplotlib is chosen.

    Args:
        width, height: in inches.
        options: further ones of matplotlib's Figure; the layout is "constrained" unless they say otherwise.
    """
    with own_style():
        yield Figure(figsize=(width, height), **{"layout": "constrained"} | options)


def display_bundle(data: dict, metadata: dict, **options):
    """Hand to Jupyter what bundle made, and give display's handle; without Jupyter, print the text."""
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        print(data["text/plain"])
        return None
    return display(data, metadata=metadata, raw=True, **options)


def show(picture_or_figure: Image.Image | Figure, alt: str, width: int | None = None) -> None:
    """Display a picture or a figure in a notebook.

    Args:
        picture_or_figure: from PIL or matplotlib; a figure of pyplot is closed, or it would be shown twice.
        alt: what is to be seen, for those who cannot.
        width: in pixels on the screen; None: the picture's own.
    """
    display_bundle(*bundle(picture_or_figure, alt, width))
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot and isinstance(picture_or_figure, Figure):
        pyplot.close(picture_or_figure)


@own_style()
def loss_curve(
    name: str,
    curve: list[tuple[int, float]],
    reference: list[dict] | None = None,
    lines: dict[str, float] | None = None,
    total: int | None = None,
) -> Figure:
    """Draw a loss over steps.

    Args:
        name: of what is trained.
        curve: steps and losses so far.
        reference: curves of other seeds, {"steps": [...], "losses": [...]} each; drawn as one band.
        lines: what theory says, a value for each name.
        total: steps that the training will take; None: not known.
    """
    figure = Figure(figsize=(7.2, 3.2))
    axes = figure.add_axes((0.13, 0.15, 0.83, 0.75))  # a layout that is computed would double the time
    if reference:
        steps = sorted({step for other in reference for step in other["steps"]})
        others = [np.interp(steps, other["steps"], other["losses"]) for other in reference]
        color, label = OKABE_ITO["sky blue"], f"{len(reference)} reference seeds"
        axes.fill_between(steps, np.min(others, 0), np.max(others, 0), color=color, alpha=0.5, lw=1, label=label)
    axes.plot(*zip(*curve, strict=True), color=OKABE_ITO["vermillion"], lw=1.8, label="yours")
    for text, value in (lines or {}).items():
        axes.axhline(value, color=OKABE_ITO["black"], ls="--", lw=1)
        place = dict(xycoords=("axes fraction", "data"), textcoords="offset points", ha="right", va="top")
        axes.annotate(text, (1, value), (-4, -3), parse_math=False, **place)
    losses = [loss for _, loss in curve]
    if min(losses) > 0 and max(losses) > 5 * min(losses):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=min(0, *losses))
    axes.set_xlim(0, total or None)
    axes.set(xlabel="step", ylabel="loss")
    axes.set_title(f"{name}: {losses[-1]:.4g} at step {curve[-1][0]}", loc="left", size=11, parse_math=False)
    narrow = dict(ncols=2, handlelength=1.2, columnspacing=1, handletextpad=0.5, borderaxespad=0.2, borderpad=0.1)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, **narrow)
    return figure


SPOTS = [  # where a point's name may stand: how far away, in points, and which end of it is near
    (dx, dy, "left" if dx > 0 else "right")
    for distance in (4, 14, 24, 36)
    for dx, dy in ((5, distance), (5, -distance), (-5, distance), (-5, -distance), (8, 0), (-8, 0))
]


def label_points(axes: Axes, points: dict[str, tuple[float, float]], size: float = 8) -> None:
    """Write each point's name beside it, where it covers no other name, no point and no edge, if there is such a spot.

    Args:
        axes: as they will be shown: with all points, scales and limits.
        points: x and y by name.
        size: of the letters.
    """
    axes.figure.draw_without_rendering()  # the layout is settled only then
    frame = axes.get_window_extent()
    taken = [Bbox.from_extents(x - 4, y - 4, x + 4, y + 4) for x, y in axes.transData.transform([*points.values()])]
    for name, point in points.items():
        text = axes.annotate(name, point, (0, 0), textcoords="offset points", va="center", size=size, parse_math=False)

        def covered(spot: tuple[float, float, str], text: Annotation = text) -> int:
            text.set(position=spot[:2], ha=spot[2])
            box = text.get_window_extent()
            return box.count_overlaps(taken) + 2 * (not (frame.contains(*box.min) and frame.contains(*box.max)))

        covered(min(SPOTS, key=covered))  # the first of the best
        taken.append(text.get_window_extent())


PARTS = {  # of the system: left, bottom, width, height, and what it does; the map is 12 wide and 3.6 high
    "pipeline": (1.55, 1.75, 10.35, 1.75, "text to picture"),
    "clip": (1.75, 2.0, 2.0, 1.05, "words to z_text"),
    "prior": (4.3, 2.0, 2.0, 1.05, "z_text to z_image"),
    "decoder": (6.85, 2.0, 2.3, 1.05, "z_image to 32 x 32"),
    "upsampler": (9.7, 2.0, 2.0, 1.05, "32 x 32 to 64 x 64"),
    "scenes": (0.1, 0.1, 3.65, 1.05, "pictures with captions, and the oracle"),
    "diffusion": (4.3, 0.1, 3.2, 1.05, "from noise to data"),
    "unet": (8.1, 0.1, 3.6, 1.05, "the network that cleans pictures"),
}
ARROWS = (  # from, to
    ((3.75, 2.52), (4.3, 2.52)), ((6.3, 2.52), (6.85, 2.52)), ((9.15, 2.52), (9.7, 2.52)), ((0.9, 2.52), (1.75, 2.52)),
    ((2.75, 1.15), (2.75, 2.0)), ((5.3, 1.15), (5.3, 2.0)), ((7.1, 1.15), (7.5, 2.0)), ((8.7, 1.15), (8.4, 2.0)),
    ((10.7, 1.15), (10.7, 2.0)),
)  # fmt: skip


@own_style()
def draw_system_map(*lit: str) -> Figure:
    """Draw the system; the parts that are lit are filled, have a bold frame and bold letters."""
    if unknown := [part for part in lit if part not in PARTS]:
        raise ValueError(f'"{unknown[0]}" is no part of the map; choose of {", ".join(PARTS)}.')
    figure = Figure(figsize=(9.6, 2.9))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 12), ylim=(0, 3.6))
    axes.axis("off")
    for name, (x, y, width, height, does) in PARTS.items():
        on, frame = name in lit, name == "pipeline"
        color = OKABE_ITO["yellow"] if on else "none" if frame else "#F2F2F2"
        box = FancyBboxPatch(
            (x, y), width, height, "round,pad=0,rounding_size=0.12", fc=color, ec="black" if on else "#767676"
        )
        box.set(lw=2.6 if on else 1, ls="--" if frame and not on else "-", alpha=0.5 if on and frame else 1)
        axes.add_patch(box)
        weight = "bold" if on else "normal"
        if frame:
            axes.text(x + 0.15, y + height - 0.08, f"{name}: {does}", va="top", fontsize=10, fontweight=weight)
            continue
        axes.text(x + width / 2, y + 0.72 * height, name, ha="center", va="center", fontsize=13, fontweight=weight)
        axes.text(x + width / 2, y + 0.3 * height, does, ha="center", va="center", fontsize=8.5)
    for start, end in ARROWS:
        axes.add_patch(
            FancyArrowPatch(
                start, end, arrowstyle="-|>", mutation_scale=11, color="black", lw=1.1, shrinkA=0, shrinkB=0
            )
        )
    axes.text(0.1, 2.52, '"a red\ncircle"', va="center", fontsize=9.5, fontstyle="italic")
    return figure


def system_map(*lit: str, alt: bool = True) -> None:
    """Display the map of the system with some of its parts lit.

    Args:
        lit: any of scenes, clip, diffusion, prior, unet, decoder, upsampler, pipeline.
        alt: whether to say in words what is to be seen; without, the map counts as decoration.
    """
    today = f"; lit: {', '.join(lit)}" if lit else ""
    text = (
        "Map of the system: a caption goes through clip (z_text), prior (z_image), decoder (32 x 32 pixels) and "
        f"upsampler (64 x 64); scenes feed all of them, diffusion and unet work inside{today}."
    )
    with Image.open(io.BytesIO(to_png(draw_system_map(*lit), dpi=120))) as picture:
        few_colors = picture.convert("RGB").quantize(32)
    display_bundle(*bundle(few_colors, text if alt else "", width=768))
