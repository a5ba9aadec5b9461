"""The autoregressive prior: z_image as a sequence of whole numbers, each drawn given the caption and those before it.

Paper: Ramesh et al. 2022, sec. 2.2 and table 3. We differ: the caption's states come from CLIP's own text tower, and a
bucket is embedded by its number's sines and cosines, so that neighbours are alike before anything is learned.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

from minidalle.layers import TextEncoding, Transformer, attend, scale_embedding, timestep_embedding
from minidalle.pca import principal_axes

TOP = 0.5  # share of the dot product's distribution that is sampled from, sec. 2.2


@dataclass(frozen=True)
class AutoregressivePriorConfig:
    """Sizes of the autoregressive prior."""

    context_length: int = 20  # tokens of the longest caption
    embed_dim: int = 64  # D, of z_image and z_text
    text_width: int = 128  # W, of CLIP's text states
    width: int = 128  # of this transformer
    depth: int = 3
    num_heads: int = 4
    num_coordinates: int = 32  # M, of z_image along its principal axes; tiny: 29 hold 99 % of the variance, 32 99.5 %
    num_buckets: int = 64  # of each coordinate, and of the dot product


@dataclass
class Cache:
    """Keys and values of the tokens that a transformer has seen, block by block; empty at the start."""

    blocks: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)  # each (B, heads, N, d)
    mask: torch.Tensor | None = None  # (B, N) bool, True for real tokens


class AutoregressivePrior(nn.Module):
    """A causal transformer over caption, z_text, their dot product with z_image, and z_image's principal coordinates.

    Every number is a bucket, 0 to num_buckets - 1. What each means (mean, axes, range) is found by fit() before the
    training, and stays.
    """

    kind, config_class = "ar_prior", AutoregressivePriorConfig

    def __init__(self, config: AutoregressivePriorConfig):
        super().__init__()
        if not 1 <= config.num_coordinates <= config.embed_dim:
            raise ValueError(
                f"{config.num_coordinates} coordinates of a z_image of {config.embed_dim} cannot be kept: keep fewer."
            )
        self.config = config
        self.text_in = nn.Sequential(nn.LayerNorm(config.text_width), nn.Linear(config.text_width, config.width))
        self.z_text_in = nn.Linear(config.embed_dim, config.width)
        self.null_text = nn.Parameter(0.02 * torch.randn(config.width))
        self.text_positions = nn.Parameter(0.02 * torch.randn(config.context_length, config.width))
        self.bucket_in = nn.Linear(config.width, config.width)
        self.so_far_in = nn.Linear(self.num_tokens, config.width, bias=False)
        self.z_text_to_buckets = nn.Linear(config.embed_dim, config.width, bias=False)
        self.null_bucket = nn.Parameter(0.02 * torch.randn(config.width))
        self.positions = nn.Parameter(0.02 * torch.randn(self.num_tokens, config.width))
        self.transformer = Transformer(config.width, config.depth, config.num_heads)
        self.to_buckets = nn.Linear(config.width, config.num_buckets)
        self.mean = fixed(torch.zeros(config.embed_dim))
        self.axes = fixed(torch.eye(config.embed_dim)[:, : config.num_coordinates])  # (D, M)
        self.low, self.high = fixed(-torch.ones(self.num_tokens)), fixed(torch.ones(self.num_tokens))

    @property
    def num_tokens(self) -> int:
        """Count the buckets that stand for one z_image: the dot product's and the coordinates'."""
        return 1 + self.config.num_coordinates

    @torch.no_grad()
    def fit(self, z_image: torch.Tensor, z_text: torch.Tensor) -> None:
        """Find what the buckets mean: mean and axes of many z_image, and the range of each number.

        Args:
            z_image: (N, D), unit norm, more of them than D.
            z_text: (N, D), of their captions.
        """
        mean, axes, _ = principal_axes(z_image)
        self.mean.copy_(mean)
        self.axes.copy_(axes[:, : self.config.num_coordinates])
        numbers = self.numbers(z_image, z_text)
        self.low.copy_(numbers.amin(0))
        self.high.copy_(numbers.amax(0))

    def numbers(self, z_image: torch.Tensor, z_text: torch.Tensor) -> torch.Tensor:
        """Give dot product and principal coordinates, before they are quantised: (B, 1 + M)."""
        dot = (z_image * z_text).sum(-1, keepdim=True)
        return torch.cat([dot, (z_image - self.mean) @ self.axes], dim=-1)

    def quantize(self, z_image: torch.Tensor, z_text: torch.Tensor) -> torch.Tensor:
        """Turn z_image (B, D) and the z_text of its caption into buckets (B, 1 + M), int64."""
        share = (self.numbers(z_image, z_text) - self.low) / (self.high - self.low)
        return (share * self.config.num_buckets).long().clamp(0, self.config.num_buckets - 1)

    def restore(self, buckets: torch.Tensor) -> torch.Tensor:
        """Turn buckets (B, 1 + M) into z_image (B, D), unit norm, from the middle of each coordinate's bucket."""
        share = (buckets + 0.5) / self.config.num_buckets
        coordinates = (self.low + share * (self.high - self.low))[:, 1:]
        return F.normalize(self.mean + coordinates @ self.axes.T, dim=-1)

    def forward(
        self,
        buckets: torch.Tensor,
        text: TextEncoding,
        hide_text: torch.Tensor | None = None,
        cache: Cache | None = None,
        hide_buckets: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict each bucket from the caption and the buckets before it.

        Args:
            buckets: (B, n), the first n of 1 + M, n from 0 to M.
            text: the captions (B, ...).
            hide_text: (B,) bool, True where the caption is not to be seen; None: nowhere.
            cache: of the tokens that were given before; they are not computed again. It is filled in place.
            hide_buckets: (B, n) bool, True where a bucket is not to be seen; None: nowhere.

        Returns: logits (B, n + 1, num_buckets), whose row i is of bucket i; with a cache, those of the new rows alone.
        """
        cache, fresh = cache or Cache(), cache is None or cache.mask is None
        done = 0 if fresh else cache.mask.shape[1] - text.mask.shape[1] - 1
        row = self.embed_buckets(buckets, text, hide_text, hide_buckets)[:, done:]
        mask = row.new_ones(row.shape[:2], dtype=torch.bool)
        if fresh:
            prefix, prefix_mask = self.embed_text(text, hide_text)
            row, mask = torch.cat([prefix, row], dim=1), torch.cat([prefix_mask, mask], dim=1)
        row = extend(self.transformer, row, mask, cache)
        return self.to_buckets(row[:, -(buckets.shape[1] - done + fresh) :])

    def embed_text(self, text: TextEncoding, hide_text: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Make the prefix of caption and z_text: (B, L + 1, W) and its mask (B, L + 1)."""
        words, z_text, mask = self.text_in(text.states), self.z_text_in(scale_embedding(text.z_text)), text.mask
        if hide_text is not None:  # only the first token stays, or the mask would tell how long the caption was
            words = torch.where(hide_text[:, None, None], self.null_text, words)
            z_text = torch.where(hide_text[:, None], self.null_text, z_text)
            mask = mask & ~(hide_text[:, None] & (torch.arange(mask.shape[1], device=mask.device) > 0))
        words = words + self.text_positions[: mask.shape[1]]
        return torch.cat([words, z_text[:, None]], dim=1), F.pad(mask, (0, 1), value=True)

    def embed_buckets(
        self,
        buckets: torch.Tensor,
        text: TextEncoding,
        hide_text: torch.Tensor | None,
        hide_buckets: torch.Tensor | None,
    ) -> torch.Tensor:
        """Embed the first n buckets (B, n): (B, n, W).

        A token holds its own bucket, its place, z_text, and all buckets up to it, which attention need not collect.
        """
        values = (2 * buckets + 1) / self.config.num_buckets - 1  # the middle of each bucket, in -1 to 1
        own = self.bucket_in(timestep_embedding(buckets, self.config.width, max_period=2.0 * self.config.num_buckets))
        if hide_buckets is not None:
            values = values.masked_fill(hide_buckets, 0.0)
            own = torch.where(hide_buckets[..., None], self.null_bucket, own)
        so_far = repeat(values, "b m -> b n m", n=buckets.shape[1]).tril()
        so_far = F.pad(so_far, (0, self.num_tokens - buckets.shape[1]))  # (B, n, 1 + M)
        z_text = self.z_text_to_buckets(scale_embedding(text.z_text))
        if hide_text is not None:
            z_text = z_text.masked_fill(hide_text[:, None], 0.0)
        return own + self.so_far_in(so_far) + z_text[:, None] + self.positions[: buckets.shape[1]]

    def sample(
        self,
        text: TextEncoding,
        uniform: torch.Tensor,
        guidance_scale: float = 1.0,
        top: float = TOP,
        cached: bool = True,
    ) -> torch.Tensor:
        """Draw a z_image for each caption, one bucket after the other.

        Args:
            text: the captions (B, ...).
            uniform: (B, 1 + M), in 0 to 1: all the randomness.
            guidance_scale: how far the logits are pushed away from those without the caption; 1 is off.
            top: share of the dot product's distribution, from its upper end, that is drawn from.
            cached: whether keys and values are kept; the answer is the same, and later.

        Returns: (B, D), unit norm. Paper: sec. 2.2.
        """
        hide = torch.arange(2 * len(uniform), device=uniform.device) >= len(uniform)
        twice = 1 if guidance_scale == 1 else 2  # with the caption, and without
        text, hide, cache = text.tile(twice), hide[: twice * len(uniform)], Cache() if cached else None
        buckets = torch.empty(len(uniform), 0, dtype=torch.int64, device=uniform.device)
        for i, u in enumerate(uniform.unbind(1)):
            logits = self(buckets.repeat(twice, 1), text, hide, cache)[:, -1].float()
            if twice == 2:
                cond, uncond = logits.log_softmax(-1).chunk(2)
                logits = uncond + guidance_scale * (cond - uncond)
            bucket = draw_bucket(logits, 1 - top * (1 - u) if i == 0 else u)
            buckets = torch.cat([buckets, bucket[:, None]], dim=1)
        return self.restore(buckets)


def draw_bucket(logits: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Find the bucket at which the distribution of logits (B, K) has reached the shares u (B,): (B,), int64."""
    reached = logits.softmax(-1).cumsum(-1)
    return (reached < u[:, None] * reached[:, -1:]).sum(-1).clamp(max=logits.shape[-1] - 1)


def extend(transformer: Transformer, row: torch.Tensor, mask: torch.Tensor, cache: Cache) -> torch.Tensor:
    """Run a causal transformer over new tokens (B, n, W), which look at those of the cache and join it.

    What Transformer computes for a whole row, since a token never looks at a later one.
    """
    cache.mask = mask if cache.mask is None else torch.cat([cache.mask, mask], dim=1)  # (B, N)
    new, total = row.shape[1], cache.mask.shape[1]
    past = torch.ones(new, total, dtype=torch.bool, device=row.device).tril(total - new)
    sight = past & rearrange(cache.mask, "b n -> b 1 1 n")
    cache.blocks += [()] * (len(transformer.blocks) - len(cache.blocks))
    for i, block in enumerate(transformer.blocks):
        layer, x = block.attention, block.norm_1(row)
        q = rearrange(layer.to_q(x), "b n (h d) -> b h n d", h=layer.num_heads)
        kv = tuple(rearrange(layer.to_kv(x), "b n (two h d) -> two b h n d", two=2, h=layer.num_heads))
        if cache.blocks[i]:
            kv = tuple(torch.cat([before, now], dim=2) for before, now in zip(cache.blocks[i], kv, strict=True))
        cache.blocks[i] = kv
        row = row + layer.to_out(rearrange(attend(q, *kv, sight), "b h n d -> b n (h d)"))
        row = row + block.mlp(block.norm_2(row))
    return transformer.norm(row)


def fixed(values: torch.Tensor) -> nn.Parameter:
    """Make numbers that are kept with the weights and never trained."""
    return nn.Parameter(values.clone(), requires_grad=False)
