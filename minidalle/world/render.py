"""How a scene is drawn: shapes by their signed distance, anti-aliased, at any size.

Positions and radii are in units of half the canvas: x from -1 (left) to 1 (right), y from -1 (top) to 1 (bottom).
"""

import torch

from minidalle.world.scenes import _BACKGROUNDS, _COLORS, BACKGROUNDS, COLORS, SHAPES, SIZES, Object, Scene

PAIR_SCALE = 0.85  # two objects are drawn a little smaller, so that any two fit without touching
CROSS_ARM = 0.34  # half the width of a cross's arm, as a share of its radius
RING_HOLE = 0.52  # radius of a ring's hole, likewise


def radius(scene: Scene, item: Object) -> float:
    """Give half the extent of an object as it is drawn in a scene."""
    return SIZES[item.size] * (PAIR_SCALE if len(scene.objects) == 2 else 1.0)


def signed_distance(shape: str, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Measure how far points lie outside a shape of radius 1 at the origin (negative: inside), v pointing down."""
    a, b = u.abs(), v.abs()
    if shape == "circle":
        return torch.hypot(u, v) - 1
    if shape == "square":
        return torch.maximum(a, b) - 1
    if shape == "triangle":
        return torch.maximum(v - 1, (2 * a - v - 1) / 5**0.5)
    if shape == "diamond":
        return (a + b - 1) / 2**0.5
    if shape == "cross":
        long, short = torch.maximum(a, b), torch.minimum(a, b)
        return torch.maximum(long - 1, short - CROSS_ARM)
    distance = torch.hypot(u, v)
    return torch.maximum(distance - 1, RING_HOLE - distance)


def coverage(shape: str, x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor, size: int) -> torch.Tensor:
    """Draw the share of each pixel that objects of one shape cover.

    Args:
        shape: one of SHAPES.
        x, y, radius: (B,) in units of half the canvas.
        size: pixels along each side of the canvas.

    Returns: (B, size, size) in [0, 1], anti-aliased.
    """
    axis = (torch.arange(size, dtype=torch.float32) + 0.5) * (2 / size) - 1
    x, y, radius = (value.view(-1, 1, 1) for value in (x, y, radius))
    u, v = torch.broadcast_tensors((axis - x) / radius, (axis[:, None] - y) / radius)
    return (0.5 - signed_distance(shape, u, v) * radius * (size / 2)).clamp(0, 1)


def as_range(colors: dict) -> torch.Tensor:
    """Turn 0-255 colours into rows of values in [-1, 1]."""
    return torch.tensor(list(colors.values()), dtype=torch.float32) / 127.5 - 1


def render(scenes: list[Scene], size: int = 32) -> torch.Tensor:
    """Draw scenes as pictures.

    Args:
        scenes: any number of them.
        size: pixels along each side, 16 to 256.

    Returns: images (B, 3, size, size), float32 in [-1, 1].
    Raises: ValueError: when the size lies outside 16 to 256.
    """
    if not 16 <= size <= 256:
        raise ValueError(f"The canvas is {size} pixels wide; scenes can be drawn from 16 to 256: choose one of those.")
    backgrounds = as_range(BACKGROUNDS)[[_BACKGROUNDS.index(scene.background) for scene in scenes]]  # (B, 3)
    images = backgrounds[:, :, None, None].repeat(1, 1, size, size)
    palette = as_range(COLORS)
    for layer in (0, 1):
        for shape in SHAPES:
            rows = [i for i, s in enumerate(scenes) if len(s.objects) > layer and s.objects[layer].shape == shape]
            if not rows:
                continue
            objects = [scenes[i].objects[layer] for i in rows]
            radii = [radius(scenes[i], item) for i, item in zip(rows, objects, strict=True)]
            placed = torch.tensor([(item.x, item.y, r) for item, r in zip(objects, radii, strict=True)])
            alpha = coverage(shape, *placed.unbind(1), size)[:, None]  # (rows, 1, H, W)
            color = palette[[_COLORS.index(item.color) for item in objects]][:, :, None, None]
            images[rows] += alpha * (color - images[rows])
    return images
