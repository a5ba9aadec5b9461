"""Blind degradation: each flaw against an independent implementation, and the order in which they come."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from minidalle import degrade as module
from minidalle.data.images import from_pil
from minidalle.degrade import DegradationConfig, blur_each, cosine_basis, degrade, jpeg, resize
from minidalle.world.render import render
from minidalle.world.scenes import draw_scene


def scenes(number: int, size: int = 32) -> torch.Tensor:
    rng = random.Random(0)
    return render([draw_scene(rng, 0.5) for _ in range(number)], size)


def test_the_cosines_are_orthonormal():
    basis = cosine_basis()
    torch.testing.assert_close(basis @ basis.T, torch.eye(8, dtype=torch.float64))


@pytest.mark.parametrize("quality", [90, 70, 50, 30])
def test_jpeg_rounds_as_a_file_does(quality):
    """Beside a grey file of Pillow's, in which no colour is shrunk: the same to within one level, ties apart."""
    levels = np.random.default_rng(0).integers(60, 200, (32, 32), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", quality=quality)
    theirs = np.asarray(Image.open(file)).astype(float)
    images = (torch.from_numpy(levels).float() / 127.5 - 1).expand(1, 3, -1, -1)
    errors = np.abs((jpeg(images, torch.tensor([float(quality)]))[0, 0].numpy() + 1) * 127.5 - theirs)
    assert np.quantile(errors, 0.9) <= 1 and errors.mean() < 0.5


def test_a_lower_quality_and_a_smaller_size_spoil_more():
    images = scenes(8)
    for flaw, levels in ((lambda x, q: jpeg(x, torch.full((8,), q)), (95.0, 60.0, 20.0)), (resize, (1.0, 0.75, 0.5))):
        errors = [(flaw(images, level) - images).square().mean().item() for level in levels]
        assert errors == sorted(errors) and errors[0] < errors[-1]


def test_blur_is_that_of_pillow():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    kernel = np.exp(-(np.subtract.outer(np.arange(5) - 2.0, np.zeros(1)) ** 2) / (2 * 0.8**2))
    table = (kernel @ kernel.T / kernel.sum() ** 2).ravel()
    theirs = from_pil([picture.filter(ImageFilter.Kernel((5, 5), table.tolist(), scale=1))], 24)[0]
    ours = blur_each(from_pil([picture], 24), torch.tensor([0.8]))[0]
    torch.testing.assert_close(ours[:, 2:-2, 2:-2], theirs[:, 2:-2, 2:-2], rtol=0, atol=0.02)


def test_each_picture_is_blurred_by_its_own_width():
    images = scenes(3)
    sigmas = torch.tensor([0.0, 0.5, 1.0])
    both = blur_each(images, sigmas)
    torch.testing.assert_close(both[0], images[0])
    for i in (1, 2):
        torch.testing.assert_close(both[i], blur_each(images[i : i + 1], sigmas[i : i + 1])[0])


def test_all_four_come_once_in_the_order_that_was_drawn(monkeypatch):
    """Replaced by marks that do not commute, the result of each picture tells the order of its flaws."""
    monkeypatch.setattr(module, "blur_each", lambda x, sigmas: 0.5 * x + 0.01)
    monkeypatch.setattr(module, "resize", lambda x, size: 0.5 * x + 0.02)
    monkeypatch.setattr(module, "jpeg", lambda x, quality: 0.5 * x + 0.04)
    draws = torch.rand(16, 2, 4)
    noise = torch.ones(16, 3, 8, 8)
    found = degrade(torch.zeros(16, 3, 8, 8), draws, noise, DegradationConfig(max_noise=0.1))
    for row, order, strength in zip(found, draws[:, 0].argsort(1).tolist(), draws[:, 1], strict=True):
        value = 0.0
        for number in order:
            mark = {0: 0.01, 1: 0.02, 2: 0.1 * strength[2].item(), 3: 0.04}[number]
            value = value + mark if number == 2 else 0.5 * value + mark
        torch.testing.assert_close(row, torch.full((3, 8, 8), value))


def test_a_picture_is_spoilt_alone_as_in_a_batch():
    images, draws = scenes(4, 16), torch.rand(4, 2, 4)
    noise = torch.randn(4, 3, 16, 16)
    together = degrade(images, draws, noise, DegradationConfig())
    alone = degrade(images[2:3], draws[2:3], noise[2:3], DegradationConfig())
    torch.testing.assert_close(together[2:3], alone)
    assert together.abs().max() <= 1 and (together - images).abs().mean() > 0.01
