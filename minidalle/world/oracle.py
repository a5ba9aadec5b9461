"""The measuring instrument: reads a picture back into the scene that it shows, or says that it cannot.

Analysis by synthesis: find the background, part the picture where a free line runs between two objects, draw every
shape in every position and radius on each part, and compare the best drawing with the picture. Nothing here is learned,
and nothing knows a prompt. Every picture is brought to 32 pixels first, so all pixels below are of that size.
"""

from functools import cache

import torch
import torch.nn.functional as F

from minidalle.world.render import PAIR_SCALE, as_range, coverage
from minidalle.world.scenes import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, Object, Scene

CANVAS = 32
WINDOW = 25  # pixels along each side of a drawing: the largest shape, blurred and shifted
PADDING = WINDOW // 2
SHIFTS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)  # pixels from the centroid, along each axis, where a search starts
RADII = (2.7, 3.05, 3.45, 3.9, 4.4, 5.0, 5.7, 6.5, 7.4)  # in pixels, from the least to the greatest that is named
RIVALS = 3  # of the shapes, those that are refined
STEPS = 3  # of the refinement
DAMPING = 0.1  # keeps the steps small where a drawing has no slope
CHUNK = 256  # pictures read at a time, which bounds the memory
# What is still read. Colour differences are lengths in [-1, 1] RGB; an object's contrast is one of 0.74 to 2.43.
VISIBLE = 0.4  # a 3x3 mean above this share of the faintest contrast on the background: there is something
FREE_LINE = 0.5  # what the emptiest line between two objects may hold, as a share of the fainter one
COLOR_ERROR = 0.22  # of the background, and of an object as a whole
TINT = 0.35  # the worst 3x3 mean of what no mixture of colour and background explains
MISFIT = 0.4  # the worst 3x3 mean of picture minus reading near an object, as a share of its contrast
CLEAR = 0.3  # lead over the second best; 1: exactly the best, 0: half way between the two
SIZE_ERROR = 0.15  # of the radius, as a share
NEAR_PLACE = 0.2  # of a lone object's centre from the nominal place, along each axis
ASLANT = 2 / 3  # of two objects, the shorter distance between the centres along an axis, as a share of the longer


def read(images: torch.Tensor) -> list[Scene | None]:
    """Read the scenes that pictures show.

    Args:
        images: (B, 3, H, W), float32 in [-1, 1], square, 16 to 256 pixels wide; below 32 more remain unread.

    Returns: one scene for each picture, None for one that cannot be read.
    Raises: ValueError: when the tensor has another shape, type or range.
    """
    check_images(images)
    return [scene for chunk in images.detach().cpu().split(CHUNK) if len(chunk) for scene in read_chunk(chunk)]


def check_images(images: torch.Tensor) -> None:
    """Raise ValueError unless a tensor holds square pictures in [-1, 1]."""
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or not 16 <= shape[2] <= 256:
        raise ValueError(
            f"images has the shape {shape}; the oracle reads (B, 3, H, W) with H = W from 16 to 256: reshape or resize."
        )
    if images.dtype != torch.float32:
        raise ValueError(f"images is {images.dtype}; the oracle reads torch.float32: convert it to values in [-1, 1].")
    if not len(images):
        return
    low, high = images.min().item(), images.max().item()
    if not -1.001 <= low <= high <= 1.001:  # false for NaN too
        raise ValueError(f"images runs from {low:g} to {high:g}; the oracle reads values in [-1, 1]: rescale or clamp.")


def read_chunk(images: torch.Tensor) -> list[Scene | None]:
    """Read as many pictures as fit into memory at a time."""
    if images.shape[-1] != CANVAS:
        images = F.interpolate(images, (CANVAS, CANVAS), mode="bilinear", antialias=True)
    ground, plain = find_background(images)
    foreground = images - as_range(BACKGROUNDS)[ground][:, :, None, None]
    first, second, paired = part(foreground, visible(ground))
    alone, twice = ~paired, ground[paired].repeat(2)
    single = iter(name_objects(foreground[alone], ground[alone], 1.0))
    double = name_objects(torch.cat([first[paired], second[paired]]), twice, PAIR_SCALE)
    double = zip(double[: len(double) // 2], double[len(double) // 2 :], strict=True)
    objects = [next(double) if two else (next(single),) for two in paired]
    names = tuple(BACKGROUNDS)
    scenes = [Scene(found, names[g]) if None not in found else None for found, g in zip(objects, ground, strict=True)]
    return [scene if ok and scene and is_clear(scene) else None for scene, ok in zip(scenes, plain, strict=True)]


def is_clear(scene: Scene) -> bool:
    """Tell whether the place, or the relation of two objects, leaves no doubt."""
    if scene.place is not None:
        item, (x, y) = scene.objects[0], PLACES[scene.place]
        return max(abs(item.x - x), abs(item.y - y)) <= NEAR_PLACE
    first, second = scene.objects
    shorter, longer = sorted((abs(first.x - second.x), abs(first.y - second.y)))
    return shorter <= ASLANT * longer


def smooth(maps: torch.Tensor) -> torch.Tensor:
    """Take the mean of each pixel's 3x3 neighbourhood, with zeros beyond the edge. (N, C, H, W) either way."""
    return F.avg_pool2d(maps, 3, stride=1, padding=1)


def length(maps: torch.Tensor) -> torch.Tensor:
    """Measure colour differences: (N, 3, ...) to (N, ...). linalg.vector_norm is many times slower along this axis."""
    return maps.square().sum(1).sqrt()


def find_background(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the background nearest to the border's median; which (B,), and whether it is near enough (B,)."""
    sides = [images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]]
    border = torch.cat(sides, dim=2).median(dim=2).values  # (B, 3)
    distance, ground = torch.cdist(border, as_range(BACKGROUNDS)).min(dim=1)
    return ground, distance < COLOR_ERROR


def visible(ground: torch.Tensor) -> torch.Tensor:
    """Tell how much a 3x3 mean must differ from backgrounds (N,) for something to be there. Returns: (N,)."""
    return VISIBLE * torch.cdist(as_range(BACKGROUNDS), as_range(COLORS)).amin(1)[ground]


def part(foreground: torch.Tensor, least: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Part pictures at the emptiest row or column that has something on both sides.

    Args:
        foreground: (B, 3, H, W), difference from the background.
        least: (B,) of what is visible.

    Returns: what lies above or to the left of the line and what lies beyond it, each (B, 3, H, W) with zeros
        elsewhere, and (B,) whether there are two objects.
    """
    present = length(smooth(foreground))  # (B, H, W)
    emptiness, lines = [], []
    for axis in (2, 1):  # across the rows, across the columns
        kernel, padding = ((1, 3), (0, 1)) if axis == 2 else ((3, 1), (1, 0))
        along = length(F.avg_pool2d(foreground, kernel, stride=1, padding=padding))
        line, peak = along.amax(axis), present.amax(axis)  # (B, 32)
        before = F.pad(peak.cummax(1).values, (1, -1))  # what the lines before this one hold
        after = F.pad(peak.flip(1).cummax(1).values.flip(1), (-1, 1))
        fainter = torch.minimum(before, after)
        share, at = torch.where(fainter > least[:, None], line / fainter, torch.inf).min(dim=1)
        emptiness.append(share)
        lines.append(at[:, None])
    in_rows = (emptiness[0] < emptiness[1])[:, None, None]
    index = torch.arange(CANVAS)
    sides = []
    for row, column in ((index < lines[0], index < lines[1]), (index > lines[0], index > lines[1])):
        sides.append(foreground * torch.where(in_rows, row[:, :, None], column[:, None])[:, None])
    return *sides, torch.minimum(*emptiness) < FREE_LINE


@cache
def drawings() -> tuple[torch.Tensor, torch.Tensor]:
    """Draw every shape in many positions and radii.

    Returns: the drawings (6, M, WINDOW * WINDOW), and their poses (6, M, 4) as draw() takes them.
    """
    shifts = torch.tensor(SHIFTS)
    poses = torch.cartesian_prod(shifts, shifts, torch.tensor(RADII), torch.tensor([0.5])).repeat(len(SHAPES), 1, 1)
    shape = torch.arange(len(SHAPES)).repeat_interleave(poses.shape[1])
    return draw(shape, poses.flatten(0, 1))[0].view(*poses.shape[:2], -1), poses


def draw(shape: torch.Tensor, pose: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw objects into windows.

    Args:
        shape: (N,), index into SHAPES.
        pose: (N, 4): x and y in pixels from the middle of the window, radius in pixels, and softness: the share of a
            3x3 mean, since a generated picture may be blurred.

    Returns: the share of each pixel that is covered (N, WINDOW, WINDOW), and its slope along the softness.
    """
    sharp = torch.empty(len(shape), WINDOW, WINDOW)
    for i, name in enumerate(SHAPES):
        rows = (shape == i).nonzero()[:, 0]
        sharp[rows] = coverage(name, *(pose[rows, :3] * (2 / WINDOW)).unbind(1), WINDOW)
    slope = smooth(sharp[:, None])[:, 0] - sharp
    return sharp + pose[:, 3, None, None] * slope, slope


def find_color(parts: torch.Tensor, contrasts: torch.Tensor) -> torch.Tensor:
    """Find the colour whose mixtures with the background explain a part best. Returns: (N,) which."""
    squares = contrasts.square().sum(2)[:, :, None]  # (N, 8, 1)
    dots = contrasts @ parts.flatten(2)  # (N, 8, H * W)
    shares = (dots / squares).clamp(0, 1)
    return (shares * (2 * dots - shares * squares)).sum(2).argmax(1)


def find_window(alpha: torch.Tensor) -> torch.Tensor:
    """Centre a window on what stands out of coverage maps (N, H, W).

    Returns: the window's left and top pixel (N, 2) on a canvas padded by PADDING.
    """
    weight = (smooth(alpha[:, None])[:, 0] - VISIBLE).clamp(min=0)
    mass = weight.sum((1, 2))
    pixel = torch.arange(CANVAS, dtype=torch.float32)
    moments = torch.stack([weight.sum(1) @ pixel, weight.sum(2) @ pixel], dim=1)
    return (moments / mass.clamp(min=1e-6)[:, None]).round().long()


def fit(windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the drawings nearest to coverage maps (N, WINDOW, WINDOW), by least squares.

    Returns: shape (N,), pose (N, 4) and drawing (N, WINDOW, WINDOW) of the best, and its lead (N,) over the best of
        another shape.
    """
    bank, poses = drawings()
    scores = 2 * windows.flatten(1) @ bank.flatten(0, 1).T - bank.square().sum(2).flatten()
    best, variant = scores.unflatten(1, bank.shape[:2]).max(2)  # (N, 6)
    shapes = best.topk(RIVALS).indices
    start = poses[shapes, variant.gather(1, shapes)]  # (N, RIVALS, 4)
    pose, drawing = refine(windows.repeat_interleave(RIVALS, 0), shapes.flatten(), start.flatten(0, 1))
    drawing = drawing.unflatten(0, (-1, RIVALS))
    error, order = (drawing - windows[:, None]).square().sum((2, 3)).topk(2, largest=False)  # (N, 2)
    every = torch.arange(len(windows))
    first, second = (every, order[:, 0]), (every, order[:, 1])
    lead = (error[:, 1] - error[:, 0]) / (drawing[second] - drawing[first]).square().sum((1, 2))
    return shapes[first], pose.view_as(start)[first], drawing[first], lead


def refine(windows: torch.Tensor, shape: torch.Tensor, pose: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Move, grow and soften drawings of known shapes until they fit best, by Gauss-Newton steps.

    Returns: the poses (N, 4) and the drawings (N, WINDOW, WINDOW).
    """
    axis = torch.arange(WINDOW) - PADDING
    for _ in range(STEPS):
        drawing, softer = draw(shape, pose)
        down, right = torch.gradient(drawing, dim=(1, 2))
        x, y, radius, _ = pose[:, :, None, None].unbind(1)
        growth = -((axis - x) * right + (axis[:, None] - y) * down) / radius
        slopes = torch.stack([-right, -down, growth, softer], dim=1).flatten(2)  # (N, 4, WINDOW * WINDOW)
        normal = slopes @ slopes.mT + DAMPING * torch.eye(4)
        change = torch.linalg.solve(normal, slopes @ (windows - drawing).flatten(1)[:, :, None])[:, :, 0]
        x, y, radius, softness = (pose + change.clamp(-1, 1)).unbind(1)
        pose = torch.stack([x, y, radius.clamp(RADII[0], RADII[-1]), softness.clamp(0, 1)], dim=1)
    return pose, draw(shape, pose)[0]


def is_clear_color(mean: torch.Tensor, contrasts: torch.Tensor, color: torch.Tensor) -> torch.Tensor:
    """Tell whether objects' mean colours (N, 3) are the ones chosen (N,), and not half way to others. Returns: (N,)."""
    distance, nearest = torch.cdist(mean[:, None], contrasts)[:, 0].topk(2, largest=False)  # (N, 2)
    first, second = contrasts.gather(1, nearest[:, :, None].expand(-1, -1, 3)).unbind(1)
    lead = (distance[:, 1] ** 2 - distance[:, 0] ** 2) / (first - second).square().sum(1)
    return (nearest[:, 0] == color) & (distance[:, 0] < COLOR_ERROR) & (lead > CLEAR)


def name_objects(parts: torch.Tensor, ground: torch.Tensor, scale: float) -> list[Object | None]:
    """Name the one object that each part of a picture shows.

    Args:
        parts: (N, 3, H, W), difference from the background.
        ground: (N,) which background.
        scale: of the radii.

    Returns: for each part an object, or None where none fits well or a second one fits nearly as well.
    """
    contrasts = as_range(COLORS) - as_range(BACKGROUNDS)[ground][:, None]  # (N, 8, 3)
    color = find_color(parts, contrasts)
    every = torch.arange(len(parts))
    contrast = contrasts[every, color][:, :, None, None]  # (N, 3, 1, 1)
    strength = length(contrast)  # (N, 1, 1)
    alpha = (parts * contrast).sum(1) / strength**2  # (N, H, W)
    corner = find_window(alpha)
    offset = torch.arange(WINDOW)
    window = every[:, None, None], (corner[:, 1:] + offset)[:, :, None], (corner[:, :1] + offset)[:, None]
    shape, pose, drawing, lead = fit(F.pad(alpha, [PADDING] * 4)[window])

    covered = F.pad(torch.zeros_like(alpha), [PADDING] * 4)
    covered[window] = drawing
    covered, padded = covered[:, None], F.pad(parts, [PADDING] * 4)  # (N, 1, H, W), (N, 3, H, W)
    mean = (padded * covered).sum((2, 3)) / covered.square().sum((2, 3))
    growth = pose[:, 2:3] / (torch.tensor(list(SIZES.values())) * scale * CANVAS / 2) - 1  # (N, 2)
    size = growth.abs().argmin(1)

    tint = length(smooth(parts - alpha[:, None] * contrast))
    misfit = length(smooth(padded - covered * contrast))
    near = F.max_pool2d(covered, 5, stride=1, padding=2)[:, 0] > 0.05
    bound = torch.where(near, MISFIT * strength, visible(ground)[:, None, None])
    sure = (tint < TINT).flatten(1).all(1) & (misfit < bound).flatten(1).all(1) & (lead > CLEAR)
    sure &= is_clear_color(mean, contrasts, color) & (growth[every, size].abs() < SIZE_ERROR)
    x, y = ((corner + pose[:, :2] + 0.5) * (2 / CANVAS) - 1).T.tolist()
    names = [[tuple(words)[i] for i in index] for words, index in ((SHAPES, shape), (COLORS, color), (SIZES, size))]
    return [Object(*facts) if ok else None for ok, *facts in zip(sure, *names, x, y, strict=True)]
