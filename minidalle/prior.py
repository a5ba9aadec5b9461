"""The diffusion prior: from a caption to the z_image of a picture that could have it.

Paper: Ramesh et al. 2022, sec. 2.2 and appendix C. We differ: the caption's states come from CLIP's own text tower.
"""

from dataclasses import dataclass

import torch
from einops import pack, rearrange, repeat, unpack
from torch import nn

from minidalle.layers import TextEncoding, Transformer, scale_embedding, timestep_embedding

TAIL = 3  # tokens after the text: timestep, noised z_image, query


@dataclass(frozen=True)
class PriorConfig:
    """Sizes of the prior."""

    context_length: int = 20  # tokens of the longest caption
    embed_dim: int = 64  # D, of z_image and z_text
    text_width: int = 128  # W, of CLIP's text states
    width: int = 128  # of this transformer
    depth: int = 3
    num_heads: int = 4


class DiffusionPrior(nn.Module):
    """A causal transformer over caption, z_text, timestep, noised z_image and a query that answers with z_image.

    It works on scaled embeddings, whose coordinates are as large as the noise (see scale_embedding).
    """

    kind, config_class = "prior", PriorConfig

    def __init__(self, config: PriorConfig):
        super().__init__()
        self.config = config
        self.text_in = nn.Sequential(nn.LayerNorm(config.text_width), nn.Linear(config.text_width, config.width))
        self.z_text_in = nn.Linear(config.embed_dim, config.width)
        self.time_in = nn.Linear(config.width, config.width)
        self.z_image_in = nn.Linear(config.embed_dim, config.width)
        self.query = nn.Parameter(0.02 * torch.randn(config.width))
        self.null_text = nn.Parameter(0.02 * torch.randn(config.width))
        self.text_positions = nn.Parameter(0.02 * torch.randn(config.context_length, config.width))
        self.transformer = Transformer(config.width, config.depth, config.num_heads)
        self.to_z_image = nn.Linear(config.width, config.embed_dim)

    def forward(
        self, z_t: torch.Tensor, t: torch.Tensor, text: TextEncoding, hide_text: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Predict the clean, scaled z_image.

        Args:
            z_t: noised, scaled z_image (B, K, D): K for each caption, which is read only once for all of them.
            t: timesteps (B, K), or (B,) where the K share one.
            text: the captions (B, ...).
            hide_text: (B,) bool, True where the caption is not to be seen; None: nowhere.

        Returns: (B, K, D), in the scaled space.
        """
        t = t if t.ndim == 2 else repeat(t, "b -> b k", k=z_t.shape[1])
        words, z_text, mask = self.text_in(text.states), self.z_text_in(scale_embedding(text.z_text)), text.mask
        if hide_text is not None:  # only the first token stays, or the mask would tell how long the caption was
            words = torch.where(hide_text[:, None, None], self.null_text, words)
            z_text = torch.where(hide_text[:, None], self.null_text, z_text)
            mask = mask & ~(hide_text[:, None] & (torch.arange(mask.shape[1], device=mask.device) > 0))
        words = words + self.text_positions[: mask.shape[1]]  # (B, L, W)
        time = self.time_in(timestep_embedding(t, self.config.width))  # (B, K, W)
        tails = torch.stack([time, self.z_image_in(z_t), self.query.expand_as(time)], dim=2)  # (B, K, 3, W)
        row, parts = pack([words, z_text[:, None], tails], "b * w")  # (B, L + 1 + 3 K, W)
        row = self.transformer(row, mask=sight(mask, z_t.shape[1]))
        _, _, tails = unpack(row, parts, "b * w")
        return self.to_z_image(tails[:, :, -1])  # the query's answers


def sight(mask: torch.Tensor, num_tails: int) -> torch.Tensor:
    """Tell which token looks at which: each at the text and the tail before it, none at another tail.

    Args:
        mask: (B, L) bool, True for real tokens of the caption; z_text comes after them.
        num_tails: K, runs of timestep, noised z_image and query that share the text.

    Returns: (B, N, N) bool with N = L + 1 + 3 K; plainly causal for one tail.
    """
    batch, length = mask.shape
    tail = repeat(torch.arange(num_tails, device=mask.device), "k -> (k three)", three=TAIL) + 1
    part = torch.cat([tail.new_zeros(length + 1), tail])  # (N,), 0 for the text
    position = torch.arange(len(part), device=mask.device)
    seen = (position[:, None] >= position) & ((part == 0) | (part[:, None] == part))
    real = torch.cat([mask, mask.new_ones(batch, len(part) - length)], dim=1)
    return seen & rearrange(real, "b n -> b 1 n")


def choose_candidate(candidates: torch.Tensor, z_text: torch.Tensor, margin: float = 0.0) -> torch.Tensor:
    """Choose for each caption the first candidate that is about as near to z_text as the nearest.

    Args:
        candidates: embeddings of pictures (B, K, D), unit norm.
        z_text: (B, D), unit norm.
        margin: cosines that differ by less count as equal; 0 is the paper's rule.

    Returns: (B, D).
    Paper: sec. 2.2 (two candidates, the higher dot product). We differ where the margin is above 0: a small difference
    says which place, or which background, lies nearer to the words, not which candidate follows them, and would only
    narrow the choice.
    """
    near = (candidates * z_text[:, None]).sum(-1)  # (B, K)
    first = (near >= near.amax(1, keepdim=True) - margin).int().argmax(1)
    return candidates[torch.arange(len(first), device=first.device), first]
