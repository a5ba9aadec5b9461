"""The UNet: from a noised picture to a picture of the same size. It knows nothing of text or of CLIP.

Its conditions come in two ways: an embedding, which joins that of the timestep, and context tokens to attend to.
Paper: Ho et al. 2020, appendix B; Dhariwal and Nichol 2021, sec. 3. We differ: pixels are folded 2 x 2 into channels
first, one down and one up block share a skip connection, and the embedding also enters the middle as a small map.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from minidalle.layers import Attention, timestep_embedding, zero_init

TIME_DIM = 128  # width of the sines and cosines of a timestep
MAP_SIZE = 4  # cells along each side of the map that the embedding draws in the middle
HEAD_WIDTH = 32  # channels of one attention head


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a UNet."""

    image_size: int = 32  # pixels; without attention that of training only
    in_channels: int = 3
    out_channels: int = 3
    patch_size: int = 2  # pixels along each side that are folded into channels
    channels: int = 48  # at the first level
    channel_mults: tuple[int, ...] = (1, 2, 2)  # channels of each level, as multiples
    num_blocks: int = 1  # of each level, on the way down and again on the way up
    attention_levels: tuple[int, ...] = ()  # levels whose blocks attend; the middle always does
    emb_dim: int = 128  # of the embedding
    context_dim: int = 128  # of each context token; 0: convolutions only, without attention and without the map

    def __post_init__(self):
        if self.channels < 4 or any(
            self.channels * mult % min(8, self.channels * mult // 4) for mult in self.channel_mults
        ):
            raise ValueError(
                f"{self.channels} channels times {self.channel_mults} cannot be normalised in groups: "
                "choose a multiple of 8, or of 4 below 32."
            )
        if unknown := [level for level in self.attention_levels if not 0 <= level < len(self.channel_mults)]:
            raise ValueError(f"There is no level {unknown[0]}: name levels from 0 to {len(self.channel_mults) - 1}.")
        if self.image_size % self.shrink:
            raise ValueError(
                f"A UNet of {len(self.channel_mults)} levels on patches of {self.patch_size} pixels cannot halve "
                f"{self.image_size} pixels that often: choose a multiple of {self.shrink}."
            )
        if self.attention_levels and not self.context_dim:
            raise ValueError(
                f"context_dim 0 means convolutions only, and the levels {self.attention_levels} are to attend: "
                "give context tokens a width, or name no levels."
            )

    @property
    def shrink(self) -> int:
        """Give how many times narrower the middle is than the picture."""
        return self.patch_size * 2 ** (len(self.channel_mults) - 1)


def norm(channels: int) -> nn.GroupNorm:
    """Normalise over groups of channels, eight where there are enough."""
    return nn.GroupNorm(min(8, channels // 4), channels)


class ResBlock(nn.Module):
    """Two convolutions with a shortcut; the embedding scales and shifts what lies between them.

    Paper: Dhariwal and Nichol 2021, sec. 3.1 (adaptive group normalisation).
    """

    def __init__(self, in_channels: int, out_channels: int, emb_dim: int):
        super().__init__()
        self.norm_1 = norm(in_channels)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.scale_shift = nn.Linear(emb_dim, 2 * out_channels)
        self.norm_2 = norm(out_channels)
        self.conv_2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """Convolve: (B, C_in, H, W) and (B, E) to (B, C_out, H, W)."""
        h = self.conv_1(F.silu(self.norm_1(x)))
        scale, shift = rearrange(self.scale_shift(F.silu(emb)), "b (two c) -> two b c 1 1", two=2)
        h = self.conv_2(F.silu(self.norm_2(h) * (1 + scale) + shift))
        return self.shortcut(x) + h


class SpatialAttention(nn.Module):
    """Every pixel looks at all others, and at the context tokens, and knows where it stands."""

    def __init__(self, channels: int, size: int, context_dim: int):
        super().__init__()
        num_heads = max(1, channels // HEAD_WIDTH)
        self.norm = norm(channels)
        self.positions = nn.Parameter(0.5 * torch.randn(size * size, channels))
        self.self_attention = Attention(channels, num_heads)
        self.cross_attention = Attention(channels, num_heads, context_dim)
        zero_init(self.self_attention.to_out)
        zero_init(self.cross_attention.to_out)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor:
        """Attend: (B, C, H, W) with context (B, L, W), or with none, to (B, C, H, W)."""
        h = rearrange(self.norm(x), "b c h w -> b (h w) c") + self.positions
        from_context = 0 if context is None else self.cross_attention(h, context, mask)
        h = self.self_attention(h) + from_context
        return x + rearrange(h, "b (h w) c -> b c h w", h=x.shape[2])


class Block(nn.Module):
    """A residual block, and attention where the level has it."""

    def __init__(self, in_channels: int, out_channels: int, config: UNetConfig, attention_size: int | None):
        super().__init__()
        self.res = ResBlock(in_channels, out_channels, config.emb_dim)
        attends = attention_size is not None
        self.attention = SpatialAttention(out_channels, attention_size, config.context_dim) if attends else None

    def forward(self, x: torch.Tensor, emb: torch.Tensor, context: torch.Tensor | None, mask: torch.Tensor | None):
        """Run the block: (B, C_in, H, W) to (B, C_out, H, W)."""
        x = self.res(x, emb)
        return x if self.attention is None else self.attention(x, context, mask)


class Downsample(nn.Module):
    """Halve height and width with a strided convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shrink (B, C, H, W) to (B, C, H / 2, W / 2)."""
        return self.conv(x)


class Upsample(nn.Module):
    """Convolve to the next level's channels, then double height and width.

    The usual order, first double and then convolve, costs four times as much for the same channels and gained nothing.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Grow (B, C_in, H, W) to (B, C_out, 2 H, 2 W)."""
        return F.interpolate(self.conv(x), scale_factor=2.0, mode="nearest")


class UNet(nn.Module):
    """A stack of levels that halve the picture, a middle, and the same levels back, joined by skip connections."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        widths = [config.channels * mult for mult in config.channel_mults]
        sizes = [config.image_size // config.patch_size // 2**level for level in range(len(widths))]
        attends = [sizes[level] if level in config.attention_levels else None for level in range(len(widths))]

        self.time_mlp = nn.Sequential(
            nn.Linear(TIME_DIM, config.emb_dim), nn.SiLU(), nn.Linear(config.emb_dim, config.emb_dim)
        )
        self.conv_in = nn.Conv2d(config.in_channels * config.patch_size**2, widths[0], 3, padding=1)

        width, skips = widths[0], []
        self.down, self.downsamples = nn.ModuleList(), nn.ModuleList()
        for level, out in enumerate(widths):
            blocks = nn.ModuleList()
            for _ in range(config.num_blocks):
                blocks.append(Block(width, out, config, attends[level]))
                width = out
                skips.append(out)
            self.down.append(blocks)
            self.downsamples.append(Downsample(out) if level < len(widths) - 1 else nn.Identity())

        middle_attends = sizes[-1] if config.context_dim else None
        self.middle = nn.ModuleList([Block(width, width, config, middle_attends), Block(width, width, config, None)])
        self.to_map = nn.Linear(config.emb_dim, width * MAP_SIZE**2) if config.context_dim else None

        self.up, self.upsamples = nn.ModuleList(), nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            blocks = nn.ModuleList()
            for _ in range(config.num_blocks):
                blocks.append(Block(width + skips.pop(), out, config, attends[level]))
                width = out
            self.up.append(blocks)
            if level > 0:
                width = widths[level - 1]
                self.upsamples.append(Upsample(out, width))
            else:
                self.upsamples.append(nn.Identity())

        self.norm_out = norm(width)
        self.conv_out = zero_init(nn.Conv2d(width, config.out_channels * config.patch_size**2, 3, padding=1))

    def forward(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        emb: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict the diffusion target.

        Args:
            x: noised pictures (B, in_channels, H, W); of convolutions only, H and W may be any multiple of shrink.
            t: timesteps (B,).
            emb: embedding that is added to the timestep's (B, E); None: the timestep is all there is.
            context: tokens to attend to (B, L, W); None: the picture attends to itself alone.
            mask: (B, L) bool, True where a context token counts; None: everywhere.

        Returns: (B, out_channels, H, W).
        Raises: ValueError: when the pictures have the wrong shape.
        """
        self._check(x.shape[1:])
        time = self.time_mlp(timestep_embedding(t, TIME_DIM))  # (B, E)
        emb = time if emb is None else emb + time
        patch = self.config.patch_size
        h = self.conv_in(rearrange(x, "b c (h p) (w q) -> b (c p q) h w", p=patch, q=patch))

        skips = []
        for blocks, downsample in zip(self.down, self.downsamples, strict=True):
            for block in blocks:
                h = block(h, emb, context, mask)
                skips.append(h)
            h = downsample(h)

        if self.to_map is not None:
            h = h + self._map(emb, h)
        h = self.middle[0](h, emb, context, mask)
        h = self.middle[1](h, emb, context, mask)

        for blocks, upsample in zip(self.up, self.upsamples, strict=True):
            for block in blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), emb, context, mask)
            h = upsample(h)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return rearrange(h, "b (c p q) h w -> b c (h p) (w q)", p=patch, q=patch)

    def _check(self, shape: torch.Size) -> None:
        """Raise ValueError unless pictures of this shape (C, H, W) can be taken."""
        channels, size, shrink = self.config.in_channels, self.config.image_size, self.config.shrink
        if self.config.context_dim:
            expected, fits = f"shape {(channels, size, size)}", shape == (channels, size, size)
        else:
            expected = f"{channels} channels, height and width multiples of {shrink}"
            fits = shape[0] == channels and not (shape[1] % shrink or shape[2] % shrink)
        if not fits:
            raise ValueError(f"The UNet was built for pictures of {expected}; found {tuple(shape)}.")

    def _map(self, emb: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        drawn = rearrange(self.to_map(F.silu(emb)), "b (c h w) -> b c h w", h=MAP_SIZE, w=MAP_SIZE)
        if drawn.shape == like.shape:
            return drawn
        return F.interpolate(drawn, size=like.shape[2:], mode="bilinear", align_corners=False)
