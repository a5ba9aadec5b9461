"""DALL-E, the first: caption and picture as one row of tokens, each predicted from those before it.

A discrete VAE (dvae.py) turns pictures into a grid of codes. A causal transformer reads the caption's tokens, then the
codes row by row. It draws code after code, and CLIP chooses among several pictures.
Paper: Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation".
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from minidalle.ar_prior import Cache, draw_bucket, extend
from minidalle.checks import finite_number, whole_number
from minidalle.clip import CLIP
from minidalle.data.batches import Batch
from minidalle.layers import Transformer
from minidalle.losses import EVEN, Noise, draw_mask, rows_of
from minidalle.pipeline import MAX_PICTURES
from minidalle.rivals.dvae import DiscreteVAE, DiscreteVAEConfig, DiscreteVAELossConfig, dvae_loss
from minidalle.rivals.family import Family, Rival
from minidalle.samplers import draw_noise
from minidalle.training.recipes import StageRecipe
from minidalle.training.stages import Stage


@dataclass(frozen=True)
class DALLE1Config:
    """Sizes of the transformer; num_codes, grid and image_size are those of the discrete VAE."""

    vocab_size: int = 64  # of the tokenizer
    context_length: int = 20  # tokens of the longest caption
    width: int = 128
    depth: int = 4  # blocks
    num_heads: int = 4
    num_codes: int = 128  # K
    grid: int = 8  # cells along each side of a picture
    image_size: int = 32  # pixels


@dataclass(frozen=True)
class DALLE1LossConfig:
    """What shapes the loss; the paper's own settings are p_drop_text 0, p_drop_codes 0."""

    text_weight: float = 1 / 8  # share of the loss that predicts the caption, sec. 2.2
    p_drop_text: float = 0.1  # share of captions that are hidden, for guidance
    p_drop_codes: float = 0.0  # share of pictures of which a random share of codes is hidden


class DALLE1(nn.Module):
    """A causal transformer over one vocabulary: the caption's tokens, then the picture's codes after them."""

    kind, config_class = "dalle1", DALLE1Config

    def __init__(self, config: DALLE1Config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size + config.num_codes, config.width)
        self.word_positions = learned(config.context_length, config.width)
        self.rows, self.columns = learned(config.grid, config.width), learned(config.grid, config.width)
        self.start, self.hidden_word, self.hidden_code = (learned(config.width) for _ in range(3))
        self.transformer = Transformer(config.width, config.depth, config.num_heads)
        self.to_logits = nn.Linear(config.width, config.vocab_size + config.num_codes)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(
        self,
        codes: torch.Tensor,
        tokens: torch.Tensor,
        mask: torch.Tensor,
        hide_text: torch.Tensor | None = None,
        cache: Cache | None = None,
        hide_codes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict each token from those before it.

        Args:
            codes: (B, n), the first n of a picture.
            tokens, mask: (B, L), the captions.
            hide_text: (B,) bool, True where the caption is not to be seen; None: nowhere.
            cache: of the tokens that were given before; they are not computed again. It is filled in place.
            hide_codes: (B, n) bool, True where a code is not to be seen; None: nowhere.

        Returns: logits (B, L + 1 + n, vocab_size + K) of what follows each token; with a cache, those of the new ones.
        """
        fresh = cache is None or cache.mask is None
        done = 0 if fresh else cache.mask.shape[1] - tokens.shape[1] - 1
        row = self.embed_codes(codes, hide_codes)[:, done:]
        seen = torch.ones_like(row[..., 0], dtype=torch.bool)
        if fresh:
            words, seen_words = self.embed_caption(tokens, mask, hide_text)
            row, seen = torch.cat([words, row], dim=1), torch.cat([seen_words, seen], dim=1)
        return self.to_logits(extend(self.transformer, row, seen, cache or Cache()))

    def embed_caption(
        self, tokens: torch.Tensor, mask: torch.Tensor, hide_text: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed captions and the token that opens a picture: (B, L + 1, W), and which may be looked at (B, L + 1)."""
        words = self.embedding(tokens)
        if hide_text is not None:  # only the first token stays, or the mask would tell how long the caption was
            words = torch.where(hide_text[:, None, None], self.hidden_word, words)
            mask = mask & ~(hide_text[:, None] & (torch.arange(mask.shape[1], device=mask.device) > 0))
        words = words + self.word_positions[: tokens.shape[1]]
        start = self.start.expand(len(words), 1, -1)
        return torch.cat([words, start], dim=1), F.pad(mask, (0, 1), value=True)

    def embed_codes(self, codes: torch.Tensor, hide_codes: torch.Tensor | None) -> torch.Tensor:
        """Embed the first n codes (B, n) and the row and column that each stands in: (B, n, W)."""
        embedded = self.embedding(self.config.vocab_size + codes)
        if hide_codes is not None:
            embedded = torch.where(hide_codes[..., None], self.hidden_code, embedded)
        places = rearrange(self.rows[:, None] + self.columns, "row column w -> (row column) w")
        return embedded + places[: codes.shape[1]]

    def sample(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor,
        uniform: torch.Tensor,
        guidance_scale: float = 1.0,
        temperature: float = 1.0,
        cached: bool = True,
    ) -> torch.Tensor:
        """Draw a picture's codes for each caption, one after the other.

        Args:
            tokens, mask: (B, L), the captions.
            uniform: (B, cells), in 0 to 1: all the randomness.
            guidance_scale: how far the logits are pushed away from those without the caption; 1 is off.
            temperature: by which the logits are divided; below 1 the likeliest codes are drawn more often.
            cached: whether keys and values are kept; the answer is the same, and later.

        Returns: (B, cells), int64.
        """
        twice = 1 if guidance_scale == 1 else 2  # with the caption, and without
        hide = torch.arange(twice * len(uniform), device=uniform.device) >= len(uniform)
        tokens, mask, cache = tokens.repeat(twice, 1), mask.repeat(twice, 1), Cache() if cached else None
        codes = torch.empty(len(uniform), 0, dtype=torch.int64, device=uniform.device)
        for u in uniform.unbind(1):
            logits = self(codes.repeat(twice, 1), tokens, mask, hide, cache)[:, -1, self.config.vocab_size :].float()
            if twice == 2:
                cond, uncond = logits.log_softmax(-1).chunk(2)
                logits = uncond + guidance_scale * (cond - uncond)
            codes = torch.cat([codes, draw_bucket(logits / temperature, u)[:, None]], dim=1)
        return codes


def learned(*shape: int) -> nn.Parameter:
    """Make an embedding that is learned from small random numbers."""
    return nn.Parameter(0.02 * torch.randn(*shape))


def dalle1_loss(
    model: nn.Module, batch: Batch, generator: Noise, config: DALLE1LossConfig, dvae: DiscreteVAE
) -> torch.Tensor:
    """Learn to predict each token of caption and picture from those before it: the mean cross-entropies, weighed.

    Paper: Ramesh et al. 2021, sec. 2.2. We differ: captions are hidden at random, for guidance (Ho and Salimans 2022),
    and so are codes, or the network would go by the codes beside it and not by the caption.
    """
    with torch.no_grad():
        codes = dvae.encode(batch.images)
    hide_text = draw_mask(batch, config.p_drop_text, generator)
    shares = rows_of(EVEN, (len(codes), 1), generator).to(codes.device)
    shares = shares * draw_mask(batch, config.p_drop_codes, generator)[:, None]
    hide_codes = rows_of(EVEN, codes[:, :-1].shape, generator).to(codes.device) < shares
    logits = model(codes[:, :-1], batch.tokens, batch.mask, hide_text, hide_codes=hide_codes).float()
    words, length = logits.shape[-1] - dvae.config.num_codes, batch.tokens.shape[1]
    of_text = F.cross_entropy(
        logits[:, : length - 1, :words].flatten(0, 1),
        batch.tokens[:, 1:].masked_fill(~batch.mask[:, 1:] | hide_text[:, None], -100).flatten(),
        reduction="sum",
    ) / batch.mask[:, 1:].sum().clamp(min=1)
    of_codes = F.cross_entropy(logits[:, length:, words:].flatten(0, 1), codes.flatten())
    return config.text_weight * of_text + (1 - config.text_weight) * of_codes


@torch.no_grad()
def token_exactness(model: DALLE1, dvae: DiscreteVAE, batch: Batch) -> float:
    """Give the share of a batch's codes that are the likeliest of all, given the caption and the true codes before."""
    codes = dvae.encode(batch.images)
    logits = model(codes[:, :-1], batch.tokens, batch.mask)[:, batch.tokens.shape[1] :, model.config.vocab_size :]
    return float((logits.argmax(-1) == codes).float().mean())


def draw(
    rival: Rival,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    generator: Noise,
    guidance_scale: float,
    temperature: float,
    num_candidates: int,
) -> torch.Tensor:
    """Draw codes for each caption, and their pictures; of several, CLIP chooses one.

    Paper: Ramesh et al. 2021, sec. 2.6 (reranking). Raises: ValueError: on an option out of range, or without a CLIP.
    """
    number = whole_number(num_candidates, "num_candidates", 1, max(1, MAX_PICTURES // len(tokens)))
    guidance_scale, temperature = (
        finite_number(guidance_scale, "guidance_scale"),
        finite_number(temperature, "temperature"),
    )
    if temperature <= 0:
        raise ValueError(
            f"temperature is {temperature:g}; a number above 0 was expected: 0.01 draws the likeliest code."
        )
    if number > 1 and rival.clip is None:
        raise ValueError(
            f"dalle1 is to choose among {number} pictures and found no clip.safetensors beside it to judge them by: "
            'train one by "minidalle train clip --out FOLDER" into its folder, or ask for num_candidates 1.'
        )
    model, dvae = rival.models["dalle1"], rival.models["dvae"]
    noise = draw_noise(torch.empty(len(tokens), number, model.config.grid**2, device=tokens.device), generator)
    uniform = torch.special.ndtr(noise).flatten(0, 1)  # each picture's from its own generator, as all noise
    many = (x.repeat_interleave(number, 0) for x in (tokens, mask))
    images = dvae.decode(model.sample(*many, uniform, guidance_scale, temperature)).clamp(-1, 1)
    return images if number == 1 else rerank(rival.clip, images, tokens, mask)


def rerank(clip: CLIP, images: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Choose for each caption (B, L) of its pictures (B * N, 3, H, W) the one nearest to it: (B, 3, H, W)."""
    z_image, z_text = clip.encode_image(images), clip.encode_text(tokens, mask).z_text
    cosines = torch.einsum("bnd,bd->bn", z_image.unflatten(0, (len(tokens), -1)), z_text)
    return images.unflatten(0, (len(tokens), -1))[torch.arange(len(tokens)), cosines.argmax(1)]


def recipes(dvae_steps: int, steps: int, ema_decay: float) -> dict[str, StageRecipe]:
    """Describe the training of both stages."""
    return {
        "dvae": StageRecipe(dvae_steps, 32, matrix_lr=0.01, lr=2e-3, ema_decay=ema_decay, loss=DiscreteVAELossConfig()),
        "dalle1": StageRecipe(
            steps, 32, matrix_lr=0.01, lr=2e-3, ema_decay=ema_decay, loss=DALLE1LossConfig(), full_captions=0.5
        ),
    }


FAMILY = Family(
    name="dalle1",
    summary="discrete VAE and a causal transformer over words and codes",
    stages={
        "dvae": Stage(DiscreteVAE, dvae_loss, sees_progress=True),
        "dalle1": Stage(DALLE1, dalle1_loss, needs=("dvae",)),
    },
    models={"dvae": DiscreteVAEConfig(), "dalle1": DALLE1Config()},
    recipes={"quick": recipes(800, 700, 0.99), "full": recipes(8000, 7000, 0.999)},
    draw=draw,
    networks=lambda models: {"transformer": models["dalle1"], "decoder": models["dvae"].decoder},
    options={"guidance_scale": 1.0, "temperature": 1.0, "num_candidates": 1},
)
