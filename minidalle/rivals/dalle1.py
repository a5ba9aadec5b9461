"""DALL-E, the first: caption and picture as one row of tokens, each predicted from those before it.

A discrete VAE (dvae.py) turns a picture into a grid of codes. A causal transformer reads the caption and draws code
after code, row by row; CLIP may choose among several pictures.
Paper: Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation".
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from minidalle.ar_prior import Cache, draw_bucket, extend
from minidalle.checks import finite_number, whole_number
from minidalle.clip import CLIP
from minidalle.data.batches import Batch
from minidalle.layers import Transformer
from minidalle.losses import Noise, draw_mask
from minidalle.pipeline import MAX_PICTURES
from minidalle.rivals.dvae import DiscreteVAE, DiscreteVAEConfig, DiscreteVAELossConfig, dvae_loss, start_codebook
from minidalle.rivals.family import Family, Rival
from minidalle.samplers import draw_noise
from minidalle.tokenizer import END_ID
from minidalle.training.recipes import StageRecipe
from minidalle.training.stages import Stage


@dataclass(frozen=True)
class DALLE1Config:
    """Sizes of the transformer; num_codes, grid and image_size are those of the discrete VAE."""

    vocab_size: int = 64  # V, of the tokenizer
    context_length: int = 20  # tokens of the longest caption
    width: int = 128  # W
    depth: int = 4  # blocks
    num_heads: int = 4
    num_codes: int = 128  # K
    grid: int = 8  # cells along each side of a picture
    image_size: int = 32  # pixels


@dataclass(frozen=True)
class DALLE1LossConfig:
    """What shapes the loss; the paper's own setting is p_drop_text 0."""

    text_weight: float = 1 / 8  # share of the loss that predicts the caption, sec. 2.2
    p_drop_text: float = 0.1  # share of captions that are hidden, for guidance


class DALLE1(nn.Module):
    """A causal transformer over one vocabulary: V words and K codes."""

    kind, config_class = "dalle1", DALLE1Config

    def __init__(self, config: DALLE1Config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size + config.num_codes, config.width)
        self.start = nn.Parameter(0.02 * torch.randn(config.width))  # the token that opens a picture
        self.word_positions = nn.Parameter(0.02 * torch.randn(config.context_length, config.width))
        self.rows = nn.Parameter(0.02 * torch.randn(config.grid, 1, config.width))
        self.columns = nn.Parameter(0.02 * torch.randn(config.grid, config.width))
        self.transformer = Transformer(config.width, config.depth, config.num_heads)
        self.to_logits = nn.Linear(config.width, config.vocab_size + config.num_codes)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(
        self, codes: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor, cache: Cache | None = None
    ) -> torch.Tensor:
        """Predict each token from those before it.

        Args:
            codes: (B, n), the first n of a picture.
            tokens, mask: (B, L), the captions.
            cache: of the tokens that were given before; they are not computed again. It is filled in place.

        Returns: logits (B, L + 1 + n, V + K) of what follows each token; with a cache, those of the new ones.
        """
        places = (self.rows + self.columns).flatten(0, 1)[: codes.shape[1]]
        row, seen = self.embedding(self.config.vocab_size + codes) + places, torch.ones_like(codes, dtype=torch.bool)
        if cache is None or cache.mask is None:
            words = self.embedding(tokens) + self.word_positions[: tokens.shape[1]]
            row = torch.cat([words, self.start.expand(len(codes), 1, -1), row], dim=1)
            seen = torch.cat([F.pad(mask, (0, 1), value=True), seen], dim=1)
        else:
            row, seen = (x[:, cache.mask.shape[1] - tokens.shape[1] - 1 :] for x in (row, seen))
        return self.to_logits(extend(self.transformer, row, seen, cache or Cache()))

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
        guided, cache = guidance_scale != 1, Cache() if cached else None
        if guided:
            empty = hide_captions(tokens, mask, torch.ones_like(mask[:, 0]))
            tokens, mask = (torch.cat(pair) for pair in zip((tokens, mask), empty, strict=True))
        codes = torch.empty(len(uniform), 0, dtype=torch.int64, device=uniform.device)
        for u in uniform.unbind(1):
            logits = self(codes.repeat(1 + guided, 1), tokens, mask, cache)[:, -1, self.config.vocab_size :].float()
            if guided:
                cond, uncond = logits.log_softmax(-1).chunk(2)
                logits = uncond + guidance_scale * (cond - uncond)
            codes = torch.cat([codes, draw_bucket(logits / temperature, u)[:, None]], dim=1)
        return codes


def hide_captions(tokens: torch.Tensor, mask: torch.Tensor, hide: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the empty caption in the place of those (B, L) where hide (B,) is True."""
    first = torch.arange(tokens.shape[1], device=tokens.device) == 0
    return torch.where(hide[:, None], first * END_ID, tokens), mask & (first | ~hide[:, None])


def dalle1_loss(
    model: nn.Module, batch: Batch, generator: Noise, config: DALLE1LossConfig, dvae: DiscreteVAE
) -> torch.Tensor:
    """Learn to predict each token of caption and picture from those before it: the mean cross-entropies, weighed.

    Paper: Ramesh et al. 2021, sec. 2.2. We differ: captions are hidden at random, for guidance (Ho and Salimans 2022).
    """
    codes, K = dvae.encode(batch.images), dvae.config.num_codes
    tokens, mask = hide_captions(batch.tokens, batch.mask, draw_mask(batch, config.p_drop_text, generator))
    logits = model(codes[:, :-1], tokens, mask).float().mT  # (B, V + K, L + cells)
    words, pictures = logits[:, :-K, : tokens.shape[1] - 1], logits[:, -K:, tokens.shape[1] :]
    said, of_words = mask[:, 1:], F.cross_entropy(words, tokens[:, 1:], reduction="none")
    of_words = (of_words * said).sum() / said.sum().clamp(min=1)
    return config.text_weight * of_words + (1 - config.text_weight) * F.cross_entropy(pictures, codes)


@torch.no_grad()
def token_exactness(model: DALLE1, dvae: DiscreteVAE, batch: Batch) -> float:
    """Give the share of a batch's codes that are the likeliest of all, given the caption and the true codes before."""
    codes = dvae.encode(batch.images)
    logits = model(codes[:, :-1], batch.tokens, batch.mask)[:, batch.tokens.shape[1] :, model.config.vocab_size :]
    return float((logits.argmax(-1) == codes).float().mean())


def draw(rival: Rival, tokens: torch.Tensor, mask: torch.Tensor, generator: Noise, **options: float) -> torch.Tensor:
    """Draw codes for each caption, and their pictures; of several, CLIP chooses one (Ramesh et al. 2021, sec. 2.6)."""
    number = whole_number(options["num_candidates"], "num_candidates", 1, MAX_PICTURES // len(tokens) or 1)
    scale, temperature = (finite_number(options[name], name) for name in ("guidance_scale", "temperature"))
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature:g}; it must be above 0: at 0.01 the likeliest code is drawn.")
    if number > 1 and rival.clip is None:
        raise ValueError(
            f"dalle1 is to choose among {number} pictures and found no clip.safetensors beside it to judge them by: "
            'train one into its folder by "minidalle train clip --out FOLDER", or ask for num_candidates 1.'
        )
    model, dvae = rival.models["dalle1"], rival.models["dvae"]
    captions = [x.repeat_interleave(number, 0) for x in (tokens, mask)]
    noise = draw_noise(torch.empty(len(tokens), number, model.config.grid**2, device=tokens.device), generator)
    uniform = torch.special.ndtr(noise).flatten(0, 1)  # each picture's from its own generator, as all noise
    images = dvae.decode(model.sample(*captions, uniform, scale, temperature)).clamp(-1, 1)
    return rerank(rival.clip, images, tokens, mask) if number > 1 else images


def rerank(clip: CLIP, images: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Choose for each caption (B, L) of its pictures (B * N, 3, H, W) the one nearest to it: (B, 3, H, W)."""
    z_image, z_text = clip.encode_image(images), clip.encode_text(tokens, mask).z_text
    cosines = torch.einsum("bnd,bd->bn", z_image.unflatten(0, (len(tokens), -1)), z_text)
    return images.unflatten(0, (len(tokens), -1))[torch.arange(len(tokens)), cosines.argmax(1)]


def recipes(dvae_steps: int, steps: int, ema_decay: float) -> dict[str, StageRecipe]:
    """Describe the training of both stages."""
    vae = StageRecipe(dvae_steps, 32, 0.02, 6e-3, ema_decay=ema_decay, loss=DiscreteVAELossConfig())
    row = StageRecipe(steps, 32, 0.01, 2e-3, ema_decay=ema_decay, loss=DALLE1LossConfig(), full_captions=0.5)
    return {"dvae": vae, "dalle1": row}


FAMILY = Family(
    name="dalle1",
    summary="discrete VAE and a causal transformer over words and codes",
    stages={
        "dvae": Stage(DiscreteVAE, dvae_loss, before=start_codebook, sees_progress=True),
        "dalle1": Stage(DALLE1, dalle1_loss, needs=("dvae",)),
    },
    models={"dvae": DiscreteVAEConfig(), "dalle1": DALLE1Config()},
    recipes={"quick": recipes(2400, 1200, 0.99), "full": recipes(24_000, 12_000, 0.999)},
    draw=draw,
    networks=lambda models: {"transformer": models["dalle1"], "decoder": models["dvae"].decoder},
    options={"guidance_scale": 1.5, "temperature": 0.5, "num_candidates": 1},
)
