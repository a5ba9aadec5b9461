"""The upsampler: from a small picture to one of twice its width, by a UNet that sees the small one enlarged.

It consists of convolutions only and has no other condition: no caption, no z_image, so no guidance either. What it adds
is local, so it learns on crops and draws whole pictures.
Paper: Ramesh et al. 2022, sec. 2.1 and table 3 (the first upsampler). We differ: the picture grows twofold in place of
fourfold; the network's output is added to the enlarged picture, so that it starts as a plain enlargement.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from minidalle.unet import UNet, UNetConfig


@dataclass(frozen=True)
class UpsamplerConfig:
    """Sizes of the upsampler."""

    unet: UNetConfig = field(
        default_factory=lambda: UNetConfig(in_channels=6, channels=32, channel_mults=(1, 2), context_dim=0)
    )  # its image_size is that of the crops: a quarter of the picture (table 3)
    image_size: int = 64  # pixels, of the result
    factor: int = 2  # how many times wider the result is than what is given

    def __post_init__(self):
        if self.image_size % (self.factor * self.unet.shrink):
            raise ValueError(
                f"An upsampler by {self.factor} cannot make pictures of {self.image_size} pixels: "
                f"choose a multiple of {self.factor * self.unet.shrink}."
            )

    @property
    def low_size(self) -> int:
        """Give the width of the picture that is given, in pixels."""
        return self.image_size // self.factor


class Upsampler(nn.Module):
    """Draw a picture's larger version."""

    kind, config_class = "upsampler", UpsamplerConfig

    def __init__(self, config: UpsamplerConfig):
        super().__init__()
        self.config = config
        self.unet = UNet(config.unet)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, enlarged: torch.Tensor) -> torch.Tensor:
        """Predict the large picture.

        Args:
            x_t: noised large pictures, or the same crop of each (B, 3, H, W).
            t: timesteps (B,).
            enlarged: the small pictures, enlarged to the same height and width (B, 3, H, W).

        Returns: (B, 3, H, W).
        """
        return enlarged + self.unet(torch.cat([x_t, enlarged], dim=1), t)


class SecondUpsampler(Upsampler):
    """Draw once more, at twice the width again; the paper's second upsampler has fewer parameters as well."""

    kind = "upsampler_2"


def enlarge(images: torch.Tensor, factor: int) -> torch.Tensor:
    """Stretch pictures (B, C, H, W) to (B, C, factor * H, factor * W), bilinearly."""
    return F.interpolate(images, scale_factor=float(factor), mode="bilinear", align_corners=False)


def shrink(images: torch.Tensor, factor: int) -> torch.Tensor:
    """Take the mean of every factor x factor pixels: (B, C, H, W) to (B, C, H / factor, W / factor)."""
    return F.avg_pool2d(images, factor)


def blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur pictures (B, C, H, W) with a Gaussian on 3 x 3 pixels; beyond the edge they go on as at the edge."""
    row = torch.exp(-((torch.arange(3, dtype=torch.float32, device=images.device) - 1) ** 2) / (2 * sigma**2))
    kernel = (row[:, None] * row / row.sum() ** 2).expand(images.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(images, [1] * 4, mode="replicate"), kernel, groups=images.shape[1])


def crop(images: torch.Tensor, corners: torch.Tensor, size: int) -> torch.Tensor:
    """Cut a square out of each picture: (B, C, H, W), first rows and columns (B, 2) to (B, C, size, size)."""
    cells = torch.arange(size, device=images.device)
    rows, columns = (corner[:, None] + cells for corner in corners.to(images.device).unbind(1))  # (B, size) each
    which = torch.arange(len(images), device=images.device)[:, None, None]
    return rearrange(images[which, :, rows[:, :, None], columns[:, None]], "b h w c -> b c h w")
