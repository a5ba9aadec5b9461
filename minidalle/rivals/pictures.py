"""From pictures to small maps of features and back: what the rivals' encoders and decoders are made of."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from minidalle.unet import Downsample, ResBlock, SpatialAttention, Upsample, norm

PATCH = 2  # pixels along each side that are folded into channels, as in the UNet


class PictureEncoder(nn.Module):
    """Halve a picture once by folding and once for each further width.

    Args:
        widths: channels of each level; the result has those of the last.
        emb_dim: of the embedding that scales and shifts each block.
    """

    def __init__(self, widths: tuple[int, ...], emb_dim: int):
        super().__init__()
        self.conv_in = nn.Conv2d(3 * PATCH**2, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(
            ResBlock(before, width, emb_dim) for before, width in zip((widths[0], *widths), widths, strict=False)
        )
        self.downsamples = nn.ModuleList([*(Downsample(width) for width in widths[:-1]), nn.Identity()])

    def forward(self, images: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """Encode pictures (B, 3, S, S), with an embedding (B, E), as (B, C, S / 2^n, S / 2^n) for n widths."""
        h = self.conv_in(rearrange(images, "b c (h p) (w q) -> b (c p q) h w", p=PATCH, q=PATCH))
        for block, downsample in zip(self.blocks, self.downsamples, strict=True):
            h = downsample(block(h, emb))
        return h


class PictureDecoder(nn.Module):
    """Double a small map once for each further width and once by unfolding; the way back of PictureEncoder.

    Args:
        widths: channels of each level, those of the small map first.
        emb_dim: of the embedding that scales and shifts each block.
        size: cells along each side of the small map.
        context_dim: of words that the second level attends to; 0: there are none.
    """

    def __init__(self, widths: tuple[int, ...], emb_dim: int, size: int, context_dim: int = 0):
        super().__init__()
        self.blocks = nn.ModuleList(ResBlock(width, width, emb_dim) for width in widths)
        self.upsamples = nn.ModuleList([*(Upsample(width, after) for width, after in pairwise(widths)), nn.Identity()])
        self.attention = SpatialAttention(widths[1], 2 * size, context_dim) if context_dim else None
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3 * PATCH**2, 3, padding=1)

    def forward(
        self,
        h: torch.Tensor,
        emb: torch.Tensor,
        context: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Decode a map (B, C, s, s), with an embedding (B, E) and words (B, L, W), as pictures (B, 3, S, S)."""
        for level, (block, upsample) in enumerate(zip(self.blocks, self.upsamples, strict=True)):
            h = block(h, emb)
            if level == 1 and self.attention is not None:
                h = self.attention(h, context, mask)
            h = upsample(h)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return rearrange(h, "b (c p q) h w -> b c (h p) (w q)", p=PATCH, q=PATCH)
