"""The critic of the conditional GAN: it scores pictures beside captions; and what is made of its scores."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from minidalle.rivals.pictures import PATCH
from minidalle.rivals.text import RivalConfig, TextEncoder

SHARPNESS = 3.0  # of contrast: how much likelier a caption is for a score that is higher by one


class CriticBlock(nn.Module):
    """Two convolutions with a shortcut, then half the height and width; nothing is normalised, so slopes are honest."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(in_channels, out_channels, 1))
        self.branch = nn.Sequential(
            nn.LeakyReLU(0.2),
            nn.Conv2d(in_channels, in_channels, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve and shrink: (B, C_in, H, W) to (B, C_out, H / 2, W / 2)."""
        return (self.shortcut(x) + self.branch(x)) / 2**0.5


class Critic(nn.Module):
    """Score pictures beside captions: how real a picture is, plus how well it fits.

    Paper: Miyato and Koyama 2018, eq. 3 (projection). We differ from DF-GAN, which joins caption and picture before two
    more convolutions: a product lets one reading of a picture serve for all captions of a batch.
    """

    def __init__(self, config: RivalConfig, widths: tuple[int, ...], map_shape: tuple[int, int, int]):
        super().__init__()
        self.text = TextEncoder(config)
        first, last = widths[0], widths[-1]
        self.trunk = nn.Sequential(
            nn.PixelUnshuffle(PATCH),
            nn.Conv2d(3 * PATCH**2, first, 3, padding=1),
            *(CriticBlock(before, after) for before, after in pairwise(widths)),
            nn.LeakyReLU(0.2),
            nn.Conv2d(last, last, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
        )
        self.real = nn.Linear(math.prod(map_shape), 1)
        self.fitting = nn.Linear(math.prod(map_shape), config.text_width, bias=False)

    def forward(self, images: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """Score pictures (B, 3, S, S) with encoded captions (C, W), each with each: (B, C)."""
        h = self.trunk(images)
        return self.real(h) + self.fitting(h) @ emb.mT / emb.shape[1] ** 0.5


def slopes(critic: nn.Module, images: torch.Tensor, emb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the gradients of the scores of pictures (B, ...) with their captions (B, W) by either, in full precision."""
    images, emb = images.detach().float().requires_grad_(), emb.detach().float().requires_grad_()
    with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        return torch.autograd.grad(critic(images, emb).diagonal().sum(), (images, emb), create_graph=True)


def contrast(scores: torch.Tensor, said: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Give the cross-entropy of finding each picture's caption, row said (B,), among all of a batch by scores (B, B).

    Paper: Zhang et al. 2021 (XMC-GAN), eq. 5. We differ: captions of the same words do not compete.
    """
    same = (tokens[said][:, None] == tokens).all(-1).scatter(1, said[:, None], False)
    return F.cross_entropy(SHARPNESS * scores.masked_fill(same, -torch.inf), said)


def mode_seeking(scores: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """Give how little the critic's readings of one caption's pictures differ beside their noise (B, D).

    A reading is a row of scores (B, B), with all captions of a batch; rows i and i + B / 2 are of one caption.
    Paper: Mao et al. 2019 (MSGAN), eq. 3. We differ: they compare pixels, where a place counts little beside a
    background.
    """
    half = (len(code) + 1) // 2
    read = F.layer_norm(scores, scores.shape[1:])  # how real a picture looks, the same in a whole row, is left out
    apart, noise = ((x[half:] - x[: len(x) - half]).abs().mean(1) for x in (read, code))
    return 1 / ((apart / noise).mean() + 1e-5)
