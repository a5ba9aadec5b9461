"""The diffusion transformer: patches of a noised picture and words of its caption in one sequence.

Paper: Peebles and Xie 2023, sec. 3.2. We differ: the words join the patches as further tokens (Esser et al. 2024, sec.
4), since our captions are sentences and not classes; one layer modulates all blocks, and each block adds numbers of its
own (Chen et al. 2024, sec. 2.3), which saves a third of the parameters; and convolutions before and behind the
transformer draw edges across the borders of patches (Bao et al. 2023, sec. 3.1). The last is a field of the config.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

from minidalle.layers import Attention, timestep_embedding, zero_init
from minidalle.rivals.text import RivalConfig, TextEncoder
from minidalle.unet import ResBlock, norm

FOLD = 2  # pixels along each side that are folded into channels before any convolution
TIME_DIM = 128  # width of the sines and cosines of a timestep
TIME_SCALE = 1000  # steps of the usual embedding between t = 0 and t = 1
MAX_PERIOD = 32.0  # of the slowest sine of a place
PREDICTIONS = ("velocity", "x_start")


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of the transformer; the plain one has convolutions False."""

    image_size: int = 32  # pixels
    width: int = 96  # W, of a token
    depth: int = 3  # blocks
    num_heads: int = 3
    patch_size: int = 4  # pixels along each side of a token's patch
    channels: int = 32  # of the convolutions
    convolutions: bool = True  # whether they are there

    def __post_init__(self):
        if self.image_size % self.patch_size or self.patch_size % FOLD:
            raise ValueError(f"Patches of {self.patch_size} cannot tile {self.image_size} pixels: use an even divisor.")
        if self.width % 4:
            raise ValueError(f"Rows and columns cannot share {self.width} channels evenly: choose a multiple of 4.")


@dataclass(frozen=True)
class FlowConfig(RivalConfig):
    """Sizes of text encoder and transformer, and what the output means; the plain prediction is "velocity"."""

    dit: DiTConfig = field(default_factory=DiTConfig)
    prediction: str = "x_start"  # one of PREDICTIONS

    def __post_init__(self):
        if self.prediction not in PREDICTIONS:
            raise ValueError(f'"{self.prediction}" is no prediction of a flow; choose one of {", ".join(PREDICTIONS)}.')
        if self.image_size != self.dit.image_size:
            found = f"{self.dit.image_size} pixels, the pictures have {self.image_size}"
            raise ValueError(f"The transformer takes {found}: choose one size.")


def grid_embedding(size: int, width: int) -> torch.Tensor:
    """Embed the places of a grid: sines and cosines of the row, then of the column, (size * size, width).

    Paper: Peebles and Xie 2023, sec. 3.2, with frequencies that suit a few cells; here they are where learning begins.
    """
    line = timestep_embedding(torch.arange(size), width // 2, max_period=MAX_PERIOD)
    return torch.cat([repeat(line, "h w -> (h n) w", n=size), repeat(line, "h w -> (n h) w", n=size)], dim=1)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Scale and shift normalised tokens (B, N, W) by numbers (B, 1, W); zeros change nothing."""
    return x * (1 + scale) + shift


class DiTBlock(nn.Module):
    """Attention and a two-layer perceptron, each normalised, scaled and shifted before, and gated behind.

    Paper: Peebles and Xie 2023, fig. 3 (adaLN-Zero): gates start at zero, so that the block starts as the identity.
    """

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(width, num_heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.own = nn.Parameter(torch.zeros(6, 1, 1, width))

    def forward(self, x: torch.Tensor, modulation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mix tokens, then channels: (B, N, W) to (B, N, W).

        Args:
            x: tokens.
            modulation: shift, scale and gate of either half (6, B, 1, W).
            mask: (B, N) bool, True where a token may be looked at.
        """
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation + self.own
        x = x + gate_1 * self.attention(modulate(self.norm(x), shift_1, scale_1), mask=mask)
        return x + gate_2 * self.mlp(modulate(self.norm(x), shift_2, scale_2))


class DiT(nn.Module):
    """From a noised picture and its time to a picture of the same size, by an embedding and words."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config, width, self.cells = config, config.width, config.patch_size // FOLD
        channels = config.channels if config.convolutions else 3 * FOLD**2
        self.time_mlp = nn.Sequential(nn.Linear(TIME_DIM, width), nn.SiLU(), nn.Linear(width, width))
        self.to_tokens = nn.Linear(channels * self.cells**2, width)
        self.positions = nn.Parameter(grid_embedding(config.image_size // config.patch_size, width))
        self.modulation = zero_init(nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(DiTBlock(width, config.num_heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation_out = zero_init(nn.Linear(width, 2 * width))
        self.to_cells = nn.Linear(width, channels * self.cells**2)
        if config.convolutions:
            self.conv_in = nn.Conv2d(3 * FOLD**2, channels, 3, padding=1)
            self.res_in = ResBlock(channels, channels, width)
            self.res_out = ResBlock(2 * channels, channels, width)
            self.norm_out = norm(channels)
            self.conv_out = zero_init(nn.Conv2d(channels, 3 * FOLD**2, 3, padding=1))
        else:
            zero_init(self.to_cells)

    def forward(
        self, x_t: torch.Tensor, t: torch.Tensor, emb: torch.Tensor, words: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Turn noised pictures into pictures.

        Args:
            x_t: noised pictures (B, 3, S, S).
            t: times (B,), from 0, the picture, to 1, noise.
            emb: embedding that is added to the time's (B, W).
            words: further tokens (B, L, W).
            mask: (B, L) bool, True where a word counts.

        Returns: (B, 3, S, S).
        """
        emb = self.time_mlp(timestep_embedding(TIME_SCALE * t, TIME_DIM)) + emb
        h = rearrange(x_t, "b c (h p) (w q) -> b (c p q) h w", p=FOLD, q=FOLD)
        if self.config.convolutions:
            skip = self.res_in(self.conv_in(h), emb)
            h = torch.cat([self.mix(skip, emb, words, mask), skip], dim=1)
            h = self.conv_out(F.silu(self.norm_out(self.res_out(h, emb))))
        else:
            h = self.mix(h, emb, words, mask)
        return rearrange(h, "b (c p q) h w -> b c (h p) (w q)", p=FOLD, q=FOLD)

    def mix(self, h: torch.Tensor, emb: torch.Tensor, words: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Run the transformer over a map (B, C, H, W) and the words; what it makes has the map's shape."""
        p = self.cells
        patches = rearrange(h, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)
        x = torch.cat([self.to_tokens(patches) + self.positions, words], dim=1)  # (B, N + L, W)
        mask = torch.cat([mask.new_ones(patches.shape[:2]), mask], dim=1)
        modulation = rearrange(self.modulation(F.silu(emb)), "b (six w) -> six b 1 w", six=6)
        for block in self.blocks:
            x = block(x, modulation, mask)
        shift, scale = rearrange(self.modulation_out(F.silu(emb)), "b (two w) -> two b 1 w", two=2)
        x = self.to_cells(modulate(self.norm(x[:, : patches.shape[1]]), shift, scale))
        return rearrange(x, "b (h w) (c p q) -> b c (h p) (w q)", w=h.shape[3] // p, p=p, q=p)


class Flow(nn.Module):
    """A text encoder and a transformer that learn together."""

    kind, config_class = "flow", FlowConfig

    def __init__(self, config: FlowConfig):
        super().__init__()
        self.config = config
        self.text = TextEncoder(config)
        self.to_emb = nn.Linear(config.text_width, config.dit.width)
        self.to_words = nn.Linear(config.text_width, config.dit.width)
        self.dit = DiT(config.dit)

    def forward(
        self,
        x_t: torch.Tensor,
        t: torch.Tensor,
        tokens: torch.Tensor,
        mask: torch.Tensor,
        hide_text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict what the config names: x_t (B, 3, S, S) at times t (B,), with captions (B, L), to (B, 3, S, S)."""
        return self.predict(x_t, t, self.text(tokens, mask), mask, hide_text)

    def predict(
        self,
        x_t: torch.Tensor,
        t: torch.Tensor,
        text: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor,
        hide_text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Do the same with captions that are encoded already; where hide_text (B,) is True they are not seen."""
        mean = (text[1] * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)  # it learns faster than the end token's
        emb, words = self.to_emb(mean), self.to_words(text[1])
        if hide_text is not None:
            emb, mask = emb.masked_fill(hide_text[:, None], 0.0), mask & ~hide_text[:, None]
        return self.dit(x_t, t, emb, words, mask).float()
