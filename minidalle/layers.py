"""What two or more of the models share: timestep embedding, attention, transformer."""

import math

import torch
from torch import nn


def zero_init(layer: nn.Module) -> nn.Module:
    """Set a layer's weights to zero, so that the branch which ends in it starts as no change at all."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def timestep_embedding(t: torch.Tensor, dim: int, max_period: float = 10_000.0) -> torch.Tensor:
    """Embed timesteps as sines and cosines of geometrically spaced frequencies.

    Args:
        t: timesteps (B,), any number type.
        dim: width of the result, even.

    Returns: (B, dim), float32 in [-1, 1].
    Paper: Vaswani et al. 2017, sec. 3.5; Ho et al. 2020, appendix B.
    """
    frequencies = torch.exp(-math.log(max_period) * torch.arange(dim // 2, device=t.device) / (dim // 2))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


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
        q = self._split(self.to_q(x))  # (B, heads, N, W / heads)
        k, v = (self._split(part) for part in self.to_kv(x if context is None else context).chunk(2, dim=-1))
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # (B, heads, N, L)
        if mask is not None:
            scores = scores.masked_fill(~(mask if mask.ndim == 3 else mask[:, None])[:, None], -torch.inf)
        if causal:
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(future, -torch.inf)
        out = scores.softmax(-1) @ v  # (B, heads, N, W / heads)
        return self.to_out(out.transpose(1, 2).flatten(2))  # (B, N, W)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


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
