"""What two or more of the models share: encoded captions, timestep embedding, attention, transformer."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn


@dataclass(frozen=True)
class TextEncoding:
    """Captions as CLIP's text tower encodes them: what prior and decoder are conditioned on."""

    z_text: torch.Tensor  # (B, D), unit norm
    states: torch.Tensor  # (B, L, W), of each token
    mask: torch.Tensor  # (B, L) bool, True for real tokens

    @property
    def end(self) -> torch.Tensor:
        """Give the state of each caption's end token, which has seen all the others: (B, W)."""
        return end_of(self.states, self.mask)

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "TextEncoding":
        """Change all three tensors alike."""
        return TextEncoding(change(self.z_text), change(self.states), change(self.mask))

    def repeat(self, times: int) -> "TextEncoding":
        """Repeat each caption so many times in a row: a a b b."""
        return self.map(lambda x: repeat(x, "b ... -> (b n) ...", n=times))

    def tile(self, times: int) -> "TextEncoding":
        """Repeat the whole batch of captions: a b a b."""
        return self.map(lambda x: repeat(x, "b ... -> (n b) ...", n=times))


def zero_init(layer: nn.Module) -> nn.Module:
    """Set a layer's weights to zero, so that the branch which ends in it starts as no change at all."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def end_of(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Take the state of the last real token of each row: states (B, L, W) and mask (B, L) to (B, W)."""
    return states[torch.arange(len(mask), device=mask.device), mask.sum(1) - 1]


def scale_embedding(z: torch.Tensor) -> torch.Tensor:
    """Turn unit embeddings (..., D) into ones whose coordinates are of size 1, as large as Gaussian noise."""
    return z * z.shape[-1] ** 0.5


def timestep_embedding(t: torch.Tensor, dim: int, max_period: float = 10_000.0) -> torch.Tensor:
    """Embed timesteps as sines and cosines of geometrically spaced frequencies.

    Args:
        t: timesteps (...), any number type.
        dim: width of the result, even.

    Returns: (..., dim), float32 in [-1, 1].
    Paper: Vaswani et al. 2017, sec. 3.5; Ho et al. 2020, appendix B.
    """
    steps = torch.arange(dim // 2, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(-math.log(max_period) * steps / (dim // 2))
    angles = t.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mix values by how well queries and keys agree: softmax(q k^T / sqrt(d)) v.

    Args:
        q: queries (B, heads, N, d).
        k, v: keys and values (B, heads, L, d).
        mask: bool, broadcasts to (B, heads, N, L); True where a query may look.

    Returns: (B, heads, N, d). On a GPU torch's fused kernel, which never writes the scores to memory; on a CPU, where
    that is slower for short rows, the formula as it stands.
    Paper: Vaswani et al. 2017, eq. 1.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, mask)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # (B, heads, N, L)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v


class Attention(nn.Module):
    """Multi-head attention of queries over a context (over themselves when no context is given).

    Paper: Vaswani et al. 2017, sec. 3.2.
    """

    def __init__(self, width: int, num_heads: int, context_width: int | None = None):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"Attention of width {width} cannot be split into {num_heads} heads: choose a divisor.")
        self.num_heads = num_heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(context_width or width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(
        self,
        x: torch.Tensor,
        context: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        causal: bool = False,
    ) -> torch.Tensor:
        """Attend.

        Args:
            x: queries (B, N, W).
            context: keys and values (B, L, C); x itself when None.
            mask: (B, L) bool, True where the context may be looked at; or (B, N, L), for each query.
            causal: whether position n sees only positions up to n.

        Returns: (B, N, W).
        """
        context = x if context is None else context
        q = rearrange(self.to_q(x), "b n (h d) -> b h n d", h=self.num_heads)
        k, v = rearrange(self.to_kv(context), "b l (kv h d) -> kv b h l d", kv=2, h=self.num_heads)
        if mask is not None:
            mask = rearrange(mask, "b n l -> b 1 n l" if mask.ndim == 3 else "b l -> b 1 1 l")
        if causal:
            past = torch.ones(x.shape[1], context.shape[1], dtype=torch.bool, device=x.device).tril()
            mask = past if mask is None else mask & past
        out = attend(q, k, v, mask)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


class TransformerBlock(nn.Module):
    """Attention and a two-layer perceptron, each normalised before and added to its input."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)
        self.norm_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, causal: bool = False) -> torch.Tensor:
        """Mix tokens, then channels: (B, N, W) to (B, N, W); mask and causal as in Attention."""
        x = x + self.attention(self.norm_1(x), mask=mask, causal=causal)
        return x + self.mlp(self.norm_2(x))


class Transformer(nn.Module):
    """A stack of blocks and a last normalisation."""

    def __init__(self, width: int, depth: int, num_heads: int):
        super().__init__()
        self.blocks = nn.ModuleList(TransformerBlock(width, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, causal: bool = False) -> torch.Tensor:
        """Run the stack: (B, N, W) to (B, N, W); mask and causal as in Attention."""
        for block in self.blocks:
            x = block(x, mask, causal)
        return self.norm(x)
