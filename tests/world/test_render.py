"""Rendering: a picture looks as its scene says, at any size, alone and in a batch."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minidalle.world.render import as_range, render
from minidalle.world.scenes import BACKGROUNDS, COLORS, SHAPES, SIZES, Object, Scene, draw_scene


def draw(number: int, seed: int = 0) -> list[Scene]:
    rng = random.Random(seed)
    return [draw_scene(rng) for _ in range(number)]


def one(shape: str, size: str = "large", color: str = "red", x: float = 0.0, y: float = 0.0) -> Scene:
    return Scene((Object(shape, color, size, x, y),), "grey")


def inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Tell which points of the unit shape are covered: written without a look at the renderer's distances."""
    if shape == "circle":
        return u**2 + v**2 <= 1
    if shape == "ring":
        return (u**2 + v**2 <= 1) & (u**2 + v**2 >= 0.52**2)
    if shape == "square":
        return (abs(u) <= 1) & (abs(v) <= 1)
    if shape == "diamond":
        return abs(u) + abs(v) <= 1
    if shape == "cross":
        return ((abs(u) <= 1) & (abs(v) <= 0.34)) | ((abs(u) <= 0.34) & (abs(v) <= 1))
    return (v <= 1) & (abs(u) <= (v + 1) / 2)  # the triangle: apex at the top, base at the bottom


def supersample(scene: Scene, size: int) -> np.ndarray:
    """Paint 8x8 points in every pixel and take their mean. Returns: (3, size, size) in 0 to 255."""
    axis = (np.arange(8 * size) + 0.5) / (8 * size) * 2 - 1
    x, y = np.meshgrid(axis, axis)
    picture = np.empty((8 * size, 8 * size, 3))
    picture[:] = BACKGROUNDS[scene.background]
    for item in scene.objects:
        extent = {"small": 0.24, "large": 0.40}[item.size] * (0.85 if len(scene.objects) == 2 else 1)
        picture[inside(item.shape, (x - item.x) / extent, (y - item.y) / extent)] = COLORS[item.color]
    return picture.reshape(size, 8, size, 8, 3).mean((1, 3)).transpose(2, 0, 1)


@pytest.mark.parametrize("size", [32, 64, 101])
def test_pictures_equal_supersampled_ones(size):
    scenes = draw(40, seed=3) + [one(shape, extent) for shape in SHAPES for extent in SIZES]
    pictures = (render(scenes, size).numpy() + 1) * 127.5
    for scene, picture in zip(scenes, pictures, strict=True):
        error = abs(picture - supersample(scene, size))
        contrast = max(np.abs(np.subtract(COLORS[t.color], BACKGROUNDS[scene.background])).max() for t in scene.objects)
        assert error.max() < 0.45 * contrast, scene  # in the one pixel of a sharp corner
        assert np.quantile(error, 0.99) < 0.1 * contrast, scene
        assert error.mean() < 0.6 * 32 / size, scene


def test_pixels_are_pinned():
    row = (render([one("square")], 16)[0, :, 4:6, 8] + 1) * 127.5  # the upper edge, a fifth of a pixel
    expected = torch.tensor([[146.4, 220.0], [110.4, 40.0], [110.4, 40.0]])
    assert (row - expected).abs().max() < 1
    column = (render([one("circle", "small", "blue", x=-0.5)], 32)[0, :, 16, 3:6] + 1) * 127.5
    expected = torch.tensor([[128.0, 65.3, 50.0], [128.0, 89.4, 80.0], [128.0, 202.0, 220.0]])
    assert (column - expected).abs().max() < 1


@settings(deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), size=st.integers(16, 256), number=st.integers(0, 4))
def test_pictures_have_the_promised_form(seed, size, number):
    images = render(draw(number, seed), size)
    assert images.shape == (number, 3, size, size)
    assert images.dtype == torch.float32
    assert number == 0 or (images.min() >= -1 and images.max() <= 1)


def test_a_scene_looks_the_same_alone_and_in_a_batch():
    scenes = draw(30, seed=5)
    together = render(scenes, 32)
    assert all(torch.equal(render([scene], 32)[0], image) for scene, image in zip(scenes, together, strict=True))


@pytest.mark.parametrize("size", [15, 257, 0, -1])
def test_a_canvas_of_another_size_is_refused(size):
    with pytest.raises(ValueError, match=rf"{size} pixels.*16 to 256"):
        render(draw(1), size)


def test_colours_become_rows_in_the_models_range():
    assert as_range({"a": (0, 255, 127.5), "b": (51, 204, 255)}).tolist() == [
        [-1.0, 1.0, 0.0],
        pytest.approx([-0.6, 0.6, 1.0]),
    ]
