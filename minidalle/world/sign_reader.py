"""Read pictures of the world of signs: how many objects, which shape and color, and what the sign says.

The upper part is cut into connected pieces, each of which the oracle of drawn scenes names; letters are compared with
all letters. Nothing here is learned, and nothing knows a prompt.
"""

import torch
import torch.nn.functional as F

from minidalle.world import oracle
from minidalle.world.letters import HEIGHT, SLOTS, UNCLEAR, read_words, templates
from minidalle.world.render import as_range
from minidalle.world.scenes import BACKGROUNDS
from minidalle.world.signs import CANVAS, INK, PLATE, Facts

MAX_PIECES = 8  # of a picture; with more it shows no objects but confetti
PLATE_ERROR = 0.4  # of the plate's color around letters, whose blur darkens it; the nearest background is 0.56 away
CHUNK = 256  # pictures read at a time, which bounds the memory


def read(images: torch.Tensor) -> list[Facts]:
    """Read what pictures show.

    Args:
        images: (B, 3, H, W), float32 in [-1, 1], square, 16 to 256 pixels wide.

    Returns: the facts of each picture. The count is None where there are no objects, or too many; shape and color where
        not every object is clearly of the same; the background where it is none. The word is None where there is no
        sign, and holds UNCLEAR for each letter that cannot be read.
    Raises: ValueError: when the tensor has another shape, type or range.
    """
    oracle.check_images(images)
    return [facts for chunk in images.detach().cpu().split(CHUNK) if len(chunk) for facts in read_chunk(chunk)]


def read_chunk(images: torch.Tensor) -> list[Facts]:
    """Read as many pictures as fit into memory at a time."""
    if images.shape[-1] != CANVAS:
        images = F.interpolate(images, (CANVAS, CANVAS), mode="bilinear", antialias=True)
    upper, lower = images.split([CANVAS - HEIGHT, HEIGHT], dim=2)
    ground, plain = oracle.find_background(upper)
    words = read_signs(lower, ground)
    objects = read_objects(upper, ground)
    names = [tuple(BACKGROUNDS)[g] if ok else None for g, ok in zip(ground.tolist(), plain.tolist(), strict=True)]
    return [Facts(*found, name, word) for found, name, word in zip(objects, names, words, strict=True)]


def read_signs(lower: torch.Tensor, ground: torch.Tensor) -> list[str | None]:
    """Read the lower parts of pictures (B, 3, HEIGHT, W) on backgrounds (B,): see read."""
    plate, ink = as_range({"plate": PLATE, "ink": INK})
    free = (templates().amax(0) == 0).repeat(1, SLOTS)  # where no letter has ink
    mean = lower[:, :, free].mean(2)
    shown = (mean - plate).norm(dim=1) < PLATE_ERROR
    rest = oracle.smooth(lower - as_range(BACKGROUNDS)[ground][:, :, None, None])
    absent = rest.norm(dim=1).mean((1, 2)) < oracle.COLOR_ERROR
    contrast = (ink - plate)[:, None, None]
    amount = ((lower - plate[:, None, None]) * contrast).sum(1) / contrast.square().sum()
    words = read_words(amount)
    return [
        word if sign else None if none else UNCLEAR * SLOTS
        for word, sign, none in zip(words, shown.tolist(), absent.tolist(), strict=True)
    ]


def read_objects(upper: torch.Tensor, ground: torch.Tensor) -> list[tuple[int | None, str | None, str | None]]:
    """Read the upper parts of pictures (B, 3, h, W) on backgrounds (B,): count, shape and color of each."""
    foreground = F.pad(upper - as_range(BACKGROUNDS)[ground][:, :, None, None], [0, 0, 0, HEIGHT])
    pieces = [cut(*one) for one in zip(foreground, oracle.visible(ground), strict=True)]
    rows = [row for row, found in enumerate(pieces) for _ in found if len(found) <= MAX_PIECES]
    named: list[list] = [[] for _ in pieces]
    if rows:
        parts = torch.cat([found for found in pieces if len(found) <= MAX_PIECES])
        for row, item in zip(rows, oracle.name_objects(parts, ground[rows], 1.0), strict=True):
            named[row].append(item)
    return [common(items) for items in named]


def common(items: list) -> tuple[int | None, str | None, str | None]:
    """Give the number of objects, and shape and color where all have the same."""
    shapes, colors = ({item and getattr(item, fact) for item in items} for fact in ("shape", "color"))
    return len(items) or None, *(found.pop() if len(found) == 1 else None for found in (shapes, colors))


def cut(foreground: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    """Cut what differs from a background (3, H, W) into its connected pieces: (N, 3, H, W), zero elsewhere.

    A piece of which no 3x3 mean is above what is visible, least (), is none.
    """
    labels = connected(foreground.norm(dim=0) > least)
    present = oracle.smooth(foreground[None])[0].norm(dim=0)
    masks = [labels == label for label in labels.unique().tolist() if label]
    masks = [mask for mask in masks if present[mask].max() > least]
    if not masks:
        return foreground.new_zeros(0, *foreground.shape)
    inside = torch.stack(masks).float()
    near = F.max_pool2d(inside, 5, stride=1, padding=2)  # with its faint edge
    own = near * (1 - (inside.sum(0) - inside).clamp(max=1))
    return own[:, None] * foreground


def connected(mask: torch.Tensor) -> torch.Tensor:
    """Number the pieces of a mask (H, W) that hang together, diagonally too; 0 where there is nothing."""
    labels = torch.arange(1, mask.numel() + 1, dtype=torch.float32).view(mask.shape) * mask
    while True:
        spread = F.max_pool2d(labels[None], 3, stride=1, padding=1)[0] * mask
        if torch.equal(spread, labels):
            return labels.long()
        labels = spread
