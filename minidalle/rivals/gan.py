"""The conditional GAN: a generator draws from noise and a caption, a critic says how real and how fitting it looks.

The critic is shown real pictures with their captions, real pictures with wrong ones, and drawn pictures; the generator
learns from the critic's slope alone and never sees a picture.
Paper: Goodfellow et al. 2014; matching-aware: Reed et al. 2016, sec. 4.2; in one stage: Tao et al. 2022 (DF-GAN).
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.func import functional_call

from minidalle.clip import CLIP
from minidalle.data.batches import Batch
from minidalle.losses import Noise, draw_normal
from minidalle.rivals.family import Family, Rival
from minidalle.rivals.pictures import PATCH, PictureDecoder
from minidalle.rivals.text import RivalConfig, TextEncoder
from minidalle.samplers import draw_noise
from minidalle.training.recipes import StageRecipe
from minidalle.training.stages import Stage

leaky = partial(F.leaky_relu, negative_slope=0.2)


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
    """What shapes the losses; DF-GAN's own settings are all_wrong False, r1_weight 0, ma_weight 2, penalized 1."""

    all_wrong: bool = True  # whether a picture is shown with all other captions of the batch; else with one
    r1_weight: float = 1.0  # gamma (Mescheder et al. 2018)
    ma_weight: float = 0.0  # k of the matching-aware gradient penalty (DF-GAN, eq. 1)
    ma_power: float = 6.0  # p of it
    penalized: float = 0.25  # share of the batch whose slopes are penalised, which costs two more passes


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


class CriticBlock(nn.Module):
    """Two convolutions with a shortcut, then half the height and width; nothing is normalised, so slopes are honest."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv_1 = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.conv_2 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve and shrink: (B, C_in, H, W) to (B, C_out, H / 2, W / 2)."""
        h = self.conv_2(leaky(self.conv_1(leaky(x))))
        return (h + self.shortcut(F.avg_pool2d(x, 2))) / 2**0.5


class Critic(nn.Module):
    """Score pictures beside captions: how real a picture is, plus how well it fits.

    Paper: Miyato and Koyama 2018, eq. 3 (projection). We differ from DF-GAN, which joins caption and picture before two
    more convolutions: a product lets one reading of a picture serve for all captions of a batch.
    """

    def __init__(self, config: GANConfig):
        super().__init__()
        self.text = TextEncoder(config)
        self.conv_in = nn.Conv2d(3 * PATCH**2, config.widths[0], 3, padding=1)
        self.blocks = nn.Sequential(*(CriticBlock(before, after) for before, after in pairwise(config.widths)))
        self.conv_out = nn.Conv2d(config.widths[-1], config.widths[-1], 3, padding=1)
        self.real = nn.Linear(math.prod(config.map_shape), 1)
        self.fitting = nn.Linear(math.prod(config.map_shape), config.text_width, bias=False)

    def forward(self, images: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """Score pictures (B, 3, S, S) with encoded captions (C, W), each with each: (B, C)."""
        h = self.conv_in(rearrange(images, "b c (h p) (w q) -> b (c p q) h w", p=PATCH, q=PATCH))
        h = leaky(self.conv_out(leaky(self.blocks(h)))).flatten(1)
        return self.real(h) + self.fitting(h) @ emb.mT / emb.shape[1] ** 0.5


class GAN(nn.Module):
    """A generator and its critic; only the generator draws."""

    kind, config_class = "gan", GANConfig

    def __init__(self, config: GANConfig):
        super().__init__()
        self.config = config
        self.generator, self.critic = Generator(config), Critic(config)

    def forward(
        self, images: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor, code: torch.Tensor, penalized: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
        """Score real and drawn pictures, so that one backward pass gives each network the gradient of its own loss.

        Args:
            images, tokens, mask, code: a batch, and noise (B, D).
            penalized: how many rows to take the critic's slopes of.

        Returns: scores of real pictures with all captions (B, B) and of drawn ones with their own (B,), of which
            gradients reach the critic alone; the latter again, for the generator alone; the slopes, None for 0 rows.
        """
        drawn, (emb, _) = self.generator(tokens, mask, code), self.critic.text(tokens, mask)
        real, fake = self.critic(images, emb), self.critic(drawn.detach(), emb).diagonal()
        fixed = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        judged = functional_call(self.critic, fixed, (drawn, emb.detach())).diagonal()
        return real, fake, judged, slopes(self.critic, images[:penalized], emb[:penalized]) if penalized else None


def slopes(critic: nn.Module, images: torch.Tensor, emb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the gradients of the scores of pictures (B, ...) with their captions (B, W) by either, in full precision."""
    images, emb = images.detach().float().requires_grad_(), emb.detach().float().requires_grad_()
    with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        return torch.autograd.grad(critic(images, emb).diagonal().sum(), (images, emb), create_graph=True)


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
    code = draw_normal(batch.images.new_empty(len(batch.images), inner(model).config.code_dim), generator)
    penalized = round(config.penalized * len(code)) if config.r1_weight or config.ma_weight else 0
    *scores, found = model(batch.images, batch.tokens, batch.mask, code, penalized)
    real, fake, judged = (x.float() for x in scores)
    loss = critic_loss(real, fake, batch.tokens, config.all_wrong) - judged.mean()
    return loss if found is None else loss + penalty(*found, config)


def clip_as_critic_loss(model: nn.Module, batch: Batch, generator: Noise, config: None, clip: CLIP) -> torch.Tensor:
    """Please a frozen CLIP alone: the mean cosine of drawn pictures and their captions, negative.

    No family trains by it. A judge that does not learn is fooled: its favourites are patterns that show nothing.
    """
    model, text = inner(model), clip.encode_text(batch.tokens, batch.mask)
    code = draw_normal(batch.images.new_empty(len(batch.images), model.config.code_dim), generator)
    drawn = model.generator(batch.tokens, batch.mask, code)
    return -(clip.encode_image(drawn) * text.z_text).sum(-1).mean()


def inner(model: nn.Module) -> GAN:
    """Find the GAN within what may be wrapped."""
    return next(part for part in model.modules() if isinstance(part, GAN))


def draw(rival: Rival, tokens: torch.Tensor, mask: torch.Tensor, generator: object) -> torch.Tensor:
    """Draw noise for each caption, and its picture."""
    model = rival.models["gan"]
    code = draw_noise(tokens.new_empty(len(tokens), model.config.code_dim), generator)
    return model.generator(tokens, mask, code)


def recipe(steps: int, ema_decay: float) -> StageRecipe:
    """Describe a training."""
    return StageRecipe(steps, 64, matrix_lr=0.005, lr=1e-3, ema_decay=ema_decay, loss=GANLossConfig())


FAMILY = Family(
    name="gan",
    summary="conditional GAN with a matching-aware hinge loss",
    stages={"gan": Stage(GAN, gan_loss)},
    models={"gan": GANConfig()},
    recipes={"quick": {"gan": recipe(850, 0.99)}, "full": {"gan": recipe(8500, 0.999)}},
    draw=draw,
    networks=lambda models: {"text encoder": models["gan"].generator.text, "generator": models["gan"].generator},
)
