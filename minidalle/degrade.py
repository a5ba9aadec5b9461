"""Blind degradation: blur, resizing, noise and JPEG in random order, so that an upsampler expects no certain flaw.

Paper: Ramesh et al. 2022, sec. 2.1 (the second upsampler), after Zhang et al. 2021 (BSRGAN), sec. 3, and its lighter
form in Rombach et al. 2022, appendix E.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from einops import rearrange

BLOCK = 8  # pixels along each side of a block of JPEG
TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))  # ITU-T T.871, sec. 7
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)  # quantisation steps at quality 50, ITU-T T.81, table K.1; here of colour as well


@dataclass(frozen=True)
class DegradationConfig:
    """How strong each flaw may be."""

    max_sigma: float = 1.0  # of the blur, in pixels
    sizes: tuple[float, ...] = (1.0, 0.75, 0.5)  # that a picture may be shrunk to, and stretched again from
    max_noise: float = 0.08  # standard deviation, of values in [-1, 1]
    min_quality: float = 30.0  # of JPEG; the best is 100


def degrade(images: torch.Tensor, draws: torch.Tensor, noise: torch.Tensor, config: DegradationConfig) -> torch.Tensor:
    """Spoil each picture by all four flaws, in an order of its own.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        draws: (B, 2, 4), even in 0 to 1: for each flaw when its turn comes, and how strong it is.
        noise: standard normal, like images.
        config: how strong it may be.

    Returns: (B, 3, H, W) in [-1, 1].
    """
    order, strength = draws[:, 0].argsort(1), draws[:, 1]
    flaws: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
        lambda x: blur_each(x, config.max_sigma * strength[:, 0]),
        lambda x: among([resize(x, size) for size in config.sizes], strength[:, 1]),
        lambda x: x + config.max_noise * strength[:, 2, None, None, None] * noise,
        lambda x: jpeg(x, 100 - (100 - config.min_quality) * strength[:, 3]),
    )
    for turn in order.unbind(1):
        for number, spoil in enumerate(flaws):  # of all pictures, so that a CUDA graph can hold it
            images = torch.where((turn == number)[:, None, None, None], spoil(images), images)
    return images.clamp(-1, 1)


def among(versions: list[torch.Tensor], draws: torch.Tensor) -> torch.Tensor:
    """Choose for each picture one of several versions (B, ...) by a draw (B,) in 0 to 1."""
    chosen = (draws * len(versions)).long().clamp(max=len(versions) - 1)
    return torch.stack(versions, 1)[torch.arange(len(draws), device=draws.device), chosen]


def blur_each(images: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Blur each picture (B, C, H, W) by a Gaussian of its own width (B,) on 5 x 5 pixels."""
    offsets = torch.arange(-2, 3, dtype=torch.float32, device=images.device)
    rows = torch.exp(-(offsets**2) / (2 * sigmas.clamp(min=1e-2)[:, None] ** 2))  # (B, 5)
    rows = rows / rows.sum(1, keepdim=True)
    kernels = (rows[:, :, None] * rows[:, None]).repeat_interleave(images.shape[1], 0)[:, None]  # (B C, 1, 5, 5)
    flat = rearrange(F.pad(images, [2] * 4, mode="replicate"), "b c h w -> 1 (b c) h w")
    return F.conv2d(flat, kernels, groups=len(kernels)).view_as(images)


def resize(images: torch.Tensor, size: float) -> torch.Tensor:
    """Shrink pictures (B, C, H, W) to a share of their size, and stretch them again."""
    if size == 1:
        return images
    height, width = images.shape[2:]
    small = F.interpolate(images, [max(1, round(size * height)), max(1, round(size * width))], mode="area")
    return F.interpolate(small, [height, width], mode="bilinear", align_corners=False)


def jpeg(images: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    """Round pictures (B, 3, H, W) in [-1, 1] as JPEG does: in blocks of 8 x 8, as sums of cosines, in YCbCr.

    Args:
        images: height and width multiples of 8.
        quality: (B,), 1 to 100; at 50 the steps are those of the table.

    We differ from a file: colour is not shrunk, and has the steps of brightness.
    """
    scale = torch.where(quality < 50, (5000 / quality).floor(), (200 - 2 * quality).floor()) / 100
    luminance, to_ycbcr, to_rgb, cosines = (table.to(images.dtype) for table in tables(images.device))
    steps = rearrange((luminance * scale[:, None, None] + 0.5).floor().clamp(min=1), "b y x -> b 1 1 1 y x")
    levels = 127.5 * images - 0.5  # those of a byte, less 128
    blocks = rearrange(levels, "b c (h y) (w x) -> b h w c y x", y=BLOCK, x=BLOCK)
    blocks = torch.einsum("kc,bhwcyx->bhwkyx", to_ycbcr, blocks)
    waves = (cosines @ blocks @ cosines.T / steps).round() * steps
    blocks = torch.einsum("ck,bhwkyx->bhwcyx", to_rgb, cosines.T @ waves @ cosines)
    return (rearrange(blocks, "b h w c y x -> b c (h y) (w x)") + 0.5) / 127.5


@cache
def tables(device: torch.device) -> tuple[torch.Tensor, ...]:
    """Give what JPEG is made of, float32: LUMINANCE, TO_YCBCR, its inverse and the cosines.

    They are kept on each device, since a CUDA graph takes nothing from the CPU.
    """
    luminance, to_ycbcr = (torch.tensor(table, dtype=torch.float64) for table in (LUMINANCE, TO_YCBCR))
    made = luminance, to_ycbcr, torch.linalg.inv(to_ycbcr), cosine_basis()
    return tuple(table.to(device, torch.float32) for table in made)


def cosine_basis() -> torch.Tensor:
    """Give the orthonormal cosines of a block's rows, (8, 8): the DCT-II of ITU-T T.81, sec. A.3.3."""
    places = torch.arange(BLOCK, dtype=torch.float64)
    waves = torch.cos(math.pi / BLOCK * (places + 0.5) * places[:, None]) * (2 / BLOCK) ** 0.5
    return torch.cat([waves[:1] / 2**0.5, waves[1:]])
