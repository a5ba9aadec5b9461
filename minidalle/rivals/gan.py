"""The conditional GAN: a generator draws from noise and a caption, a critic says how real and how fitting it looks.

The critic is shown real pictures with their captions, real pictures with wrong ones, and drawn pictures; the generator
learns from the critic's slope alone and never sees a picture.
Paper: Goodfellow et al. 2014; matching-aware: Reed et al. 2016, sec. 4.2; in one stage: Tao et al. 2022 (DF-GAN).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from minidalle.clip import CLIP
from minidalle.data.batches import Batch
from minidalle.losses import Noise, draw_normal
from minidalle.parallel import unwrap
from minidalle.rivals.critic import Critic, contrast, mode_seeking, slopes
from minidalle.rivals.family import Family, Rival
from minidalle.rivals.pictures import PictureDecoder
from minidalle.rivals.text import RivalConfig, TextEncoder
from minidalle.samplers import draw_noise
from minidalle.training.recipes import StageRecipe
from minidalle.training.stages import Stage


@dataclass(frozen=True)
class GANConfig(RivalConfig):
    """Sizes of both networks."""

    text_depth: int = 1
    code_dim: int = 32  # numbers of noise that decide what the caption leaves open
    widths: tuple[int, ...] = (32, 64, 96)  # channels of each level on the critic's way down, the generator's way up

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """Give the shape of the smallest map of either network."""
        return (self.widths[-1], *2 * [self.image_size // 2 ** len(self.widths)])


@dataclass(frozen=True)
class GANLossConfig:
    """What shapes the losses; DF-GAN's are all_wrong False, r1_weight 0, ma_weight 2, penalized 1, the last two 0."""

    all_wrong: bool = True  # whether a picture is shown with all other captions of the batch; else with one
    r1_weight: float = 1.0  # gamma (Mescheder et al. 2018)
    ma_weight: float = 0.0  # k of the matching-aware gradient penalty (DF-GAN, eq. 1)
    ma_power: float = 6.0  # p of it
    penalized: float = 0.25  # share of the batch whose slopes are penalised, which costs two more passes
    contrast: float = 0.0  # weight of naming a picture's caption among all of the batch (Zhang et al. 2021, XMC-GAN)
    mode_seeking: float = 0.0  # weight of being read differently for other noise (Mao et al. 2019)


class Generator(nn.Module):
    """Draw a picture from noise and a caption; both scale and shift every block."""

    def __init__(self, config: GANConfig):
        super().__init__()
        self.text = TextEncoder(config)
        self.from_code = nn.Linear(config.code_dim + config.text_width, math.prod(config.map_shape))
        self.to_map = nn.Unflatten(1, config.map_shape)
        self.code_to_emb = nn.Linear(config.code_dim, config.text_width)
        self.decoder = PictureDecoder(config.widths[::-1], config.text_width, config.map_shape[-1])

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Draw captions (B, L) with noise (B, D): (B, 3, S, S) between -1 and 1."""
        emb, _ = self.text(tokens, mask)
        h = self.to_map(self.from_code(torch.cat([code, emb], dim=-1)))
        return self.decoder(h, emb + self.code_to_emb(code)).float().tanh()


class GAN(nn.Module):
    """A generator and its critic; only the generator draws."""

    kind, config_class = "gan", GANConfig

    def __init__(self, config: GANConfig):
        super().__init__()
        self.config = config
        self.generator, self.critic = Generator(config), Critic(config, config.widths, config.map_shape)

    def forward(
        self, images: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor, code: torch.Tensor, said: torch.Tensor,
        penalized: int,
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        """Score real and drawn pictures, so that one backward pass gives each network the gradient of its own loss.

        Args:
            images, tokens, mask: a batch.
            code, said: noise (B, D), and the rows of the captions (B,) that are drawn with it.
            penalized: how many rows to take the critic's slopes of.

        Returns: scores (B, B) of real and of drawn pictures with all captions, of which gradients reach the critic
            alone; those of drawn pictures again, for the generator alone; the critic's slopes.
        """
        drawn, (emb, _) = self.generator(tokens[said], mask[said], code), self.critic.text(tokens, mask)
        real, fake = self.critic(images, emb), self.critic(drawn.detach(), emb)
        fixed = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        judged = functional_call(self.critic, fixed, (drawn, emb.detach()))
        rows = images[:penalized], emb[:penalized]
        return real, fake, judged, *(slopes(self.critic, *rows) if penalized else rows)


def penalty(by_image: torch.Tensor, by_caption: torch.Tensor, config: GANLossConfig) -> torch.Tensor:
    """Penalise slopes around real pictures: R1, and DF-GAN's matching-aware gradient penalty.

    Paper: Mescheder et al. 2018, eq. 9; Tao et al. 2022, eq. 1.
    """
    by_image = by_image.flatten(1)
    r1 = by_image.square().sum(1).mean()
    matching_aware = (by_image.norm(dim=1) + by_caption.norm(dim=1)).pow(config.ma_power).mean()
    return config.r1_weight / 2 * r1 + config.ma_weight * matching_aware


def critic_loss(real: torch.Tensor, fake: torch.Tensor, tokens: torch.Tensor, all_wrong: bool) -> torch.Tensor:
    """Give the hinge loss: real pictures with their captions above 1; with wrong ones, and drawn ones, below -1.

    Args:
        real, fake: scores of real pictures with all captions (B, B), and of drawn ones (B,).
        tokens: of the captions (B, L); the same words are never wrong.
        all_wrong: whether all other captions are shown, or only that of the picture before.

    Paper: Tao et al. 2022, eq. 1.
    """
    wrong = (tokens[:, None] != tokens).any(-1)
    if not all_wrong:
        wrong = wrong & torch.eye(len(real), dtype=torch.bool, device=real.device).roll(-1, 1)
    mismatched = (F.relu(1 + real) * wrong).sum() / wrong.sum().clamp(min=1)
    return F.relu(1 - real.diagonal()).mean() + (F.relu(1 + fake).mean() + mismatched) / 2


def gan_loss(model: nn.Module, batch: Batch, generator: Noise, config: GANLossConfig) -> torch.Tensor:
    """Learn both at once: the critic to tell apart, the generator to score high.

    Each has its own part of the sum and no gradient from the other's. Paper: Tao et al. 2022, eq. 1. We differ: both
    step at the same time (simultaneous gradient descent; Mescheder et al. 2018, sec. 2), not in turn.
    """
    code = draw_normal(batch.images.new_empty(len(batch.images), unwrap(model, GAN).config.code_dim), generator)
    rows = torch.arange(len(code), device=code.device)
    said = rows % ((len(code) + 1) // 2) if config.mode_seeking else rows
    penalized = round(config.penalized * len(code)) if config.r1_weight or config.ma_weight else 0
    *scores, by_image, by_caption = model(batch.images, batch.tokens, batch.mask, code, said, penalized)
    real, fake, judged = (x.float() for x in scores)
    fake, pleased = (x.gather(1, said[:, None])[:, 0] for x in (fake, judged))
    loss = critic_loss(real, fake, batch.tokens, config.all_wrong) - pleased.mean()
    if penalized:
        loss = loss + penalty(by_image, by_caption, config)
    found = contrast(real, rows, batch.tokens) + contrast(judged, said, batch.tokens)
    return loss + config.contrast * found + (config.mode_seeking and config.mode_seeking * mode_seeking(judged, code))


def clip_as_critic_loss(model: nn.Module, batch: Batch, generator: Noise, config: None, clip: CLIP) -> torch.Tensor:
    """Please a frozen CLIP alone: the negative cosine of drawings and captions. None is trained so: it is fooled."""
    model, text = unwrap(model, GAN), clip.encode_text(batch.tokens, batch.mask)
    code = draw_normal(batch.images.new_empty(len(batch.images), model.config.code_dim), generator)
    drawn = model.generator(batch.tokens, batch.mask, code)
    return -(clip.encode_image(drawn) * text.z_text).sum(-1).mean()


def draw(rival: Rival, tokens: torch.Tensor, mask: torch.Tensor, generator: object) -> torch.Tensor:
    """Draw noise for each caption, and its picture."""
    model = rival.models["gan"]
    code = draw_noise(tokens.new_empty(len(tokens), model.config.code_dim), generator)
    return model.generator(tokens, mask, code)


def recipe(steps: int, ema_decay: float) -> StageRecipe:
    """Describe a training; with the usual momenta of 0.95 and 0.9 it collapses (docs/experiments.md)."""
    return StageRecipe(
        steps, 64, matrix_lr=0.02, lr=2e-3, matrix_momentum=0.5, betas=(0.5, 0.99), ema_decay=ema_decay,
        hard_negatives=True, full_captions=0.5, loss=GANLossConfig(contrast=1.0, mode_seeking=0.2),
    )  # fmt: skip


FAMILY = Family(
    name="gan",
    summary="conditional GAN with a matching-aware hinge loss",
    stages={"gan": Stage(GAN, gan_loss)},
    models={"gan": GANConfig()},
    recipes={"quick": {"gan": recipe(1450, 0.99)}, "full": {"gan": recipe(14_500, 0.999)}},
    draw=draw,
    networks=lambda models: {"text encoder": models["gan"].generator.text, "generator": models["gan"].generator},
)
