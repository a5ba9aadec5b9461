"""The diffusion prior: from a caption to the z_image of a picture that could have it.

Paper: Ramesh et al. 2022, sec. 2.2 and appendix C. We differ: the caption's states come from CLIP's own text tower.
"""

from dataclasses import dataclass

import torch
from torch import nn

from minidalle.layers import Transformer, timestep_embedding
from minidalle.tokenizer import CONTEXT_LENGTH

TAIL = 3  # tokens after the text: timestep, noised z_image, query
CANDIDATE_SLACK = 0.03  # of a cosine


@dataclass(frozen=True)
class PriorConfig:
    """Sizes of the prior, and how often training hides the caption."""

    embed_dim: int = 64  # D, of z_image and z_text
    text_width: int = 128  # W, of CLIP's text states
    width: int = 128  # of this transformer
    depth: int = 3
    num_heads: int = 4
    drop_text: float = 0.1  # how often the caption is hidden, sec. 2.2


class DiffusionPrior(nn.Module):
    """A causal transformer over caption, z_text, timestep, noised z_image and a query that answers with z_image.

    It works on scaled embeddings, z_image * sqrt(D), whose coordinates are as large as the noise (see scale).
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
        self.text_positions = nn.Parameter(0.02 * torch.randn(CONTEXT_LENGTH, config.width))
        self.transformer = Transformer(config.width, config.depth, config.num_heads)
        self.to_z_image = nn.Linear(config.width, config.embed_dim)

    def scale(self, z_image: torch.Tensor) -> torch.Tensor:
        """Turn unit embeddings (B, D) into the space that is diffused, where each coordinate is of size 1."""
        return z_image * self.config.embed_dim**0.5

    def forward(
        self,
        z_t: torch.Tensor,
        t: torch.Tensor,
        text_states: torch.Tensor,
        mask: torch.Tensor,
        z_text: torch.Tensor,
        drop_text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict the clean, scaled z_image.

        Args:
            z_t: noised, scaled z_image (B * K, D): K in a row for each caption, which is read only once for them.
            t: timesteps (B * K,).
            text_states: the caption as CLIP's text tower sees it (B, L, W).
            mask: (B, L) bool, True for real tokens.
            z_text: CLIP embedding of the caption (B, D), unit norm.
            drop_text: (B,) bool, True where the caption is to be hidden; None: nowhere.

        Returns: (B * K, D), in the scaled space.
        """
        text = torch.cat(
            [self.text_in(text_states), self.z_text_in(self.scale(z_text))[:, None]], dim=1
        )  # (B, L + 1, W)
        length = text_states.shape[1]
        if drop_text is not None:  # only the first token stays, or the mask would tell how long the caption was
            text = torch.where(drop_text[:, None, None], self.null_text, text)
            mask = mask & ~(drop_text[:, None] & (torch.arange(length, device=mask.device) > 0))
        text = torch.cat([text[:, :length] + self.text_positions[:length], text[:, length:]], dim=1)
        time = self.time_in(timestep_embedding(t, self.config.width))
        tails = torch.stack([time, self.z_image_in(z_t), self.query.expand(len(z_t), -1)], dim=1)  # (B K, 3, W)
        tails = tails.unflatten(0, (len(text), -1))  # (B, K, 3, W)
        x = torch.cat([text, tails.flatten(1, 2)], dim=1)  # (B, L + 1 + 3 K, W)
        x = self.transformer(x, mask=sight(mask, tails.shape[1]))
        queries = x[:, length + 1 :].view_as(tails)[:, :, -1]  # (B, K, W)
        return self.to_z_image(queries.flatten(0, 1))


def sight(mask: torch.Tensor, num_tails: int) -> torch.Tensor:
    """Tell which token looks at which: each at the text and the tail before it, none at another tail.

    Args:
        mask: (B, L) bool, True for real tokens of the caption; z_text comes after them.
        num_tails: K, runs of timestep, noised z_image and query that share the text.

    Returns: (B, N, N) bool with N = L + 1 + 3 K; plainly causal for one tail.
    """
    batch, length = mask.shape
    tail = torch.arange(num_tails, device=mask.device).repeat_interleave(TAIL) + 1
    part = torch.cat([tail.new_zeros(length + 1), tail])  # (N,), 0 for the text
    position = torch.arange(len(part), device=mask.device)
    seen = (position[:, None] >= position) & ((part == 0) | (part[:, None] == part))
    real = torch.cat([mask, mask.new_ones(batch, len(part) - length)], dim=1)
    return seen & real[:, None]


def choose_candidate(candidates: torch.Tensor, z_text: torch.Tensor) -> torch.Tensor:
    """Choose for each caption the first candidate that is about as near to z_text as the nearest.

    Args:
        candidates: embeddings of pictures (B, candidates, D), unit norm.
        z_text: (B, D), unit norm.

    Returns: (B, D).
    Paper: sec. 2.2 (two candidates, the higher dot product). We differ: a small difference says which place, or which
    background, lies nearer to the words, not which candidate follows them, and would only narrow the choice.
    """
    near = (candidates * z_text[:, None]).sum(-1)  # (B, candidates)
    first = (near >= near.amax(1, keepdim=True) - CANDIDATE_SLACK).int().argmax(1)
    return candidates[torch.arange(len(first), device=first.device), first]
