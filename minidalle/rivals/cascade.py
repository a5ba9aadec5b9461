"""A cascade: a caption is drawn at half the width by diffusion of pixels, and a second network enlarges the picture.

There is no CLIP and no z_image; the base reads the caption by a text encoder of its own.
Paper: Saharia et al. 2022 (Imagen), sec. 2; Nichol et al. 2021 (GLIDE), sec. 2.3 and 4.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn

from minidalle.checks import finite_number
from minidalle.data.batches import Batch
from minidalle.diffusion import DiffusionConfig, Model
from minidalle.diffusion import GaussianDiffusion as Process
from minidalle.layers import timestep_embedding
from minidalle.losses import EVEN, Noise, draw_normal, rows_of
from minidalle.rivals.denoiser import (
    Denoiser,
    DenoiserConfig,
    DenoisingLossConfig,
    captioned_loss,
    denoising_loss,
    reader,
    recipe,
)
from minidalle.rivals.family import Family, Rival
from minidalle.samplers import SAMPLERS, draw_noise, last
from minidalle.training.recipes import StageRecipe
from minidalle.training.stages import Stage
from minidalle.unet import TIME_DIM, UNet, UNetConfig
from minidalle.upsampler import enlarge, shrink

BASE = UNetConfig(image_size=16, patch_size=1, channels=32, channel_mults=(1, 2), emb_dim=64, context_dim=96)
UPSAMPLER = UNetConfig(in_channels=6, channels=24, channel_mults=(1, 2), emb_dim=64, context_dim=0)
SAMPLER = "ddpm"  # of both networks
UPSAMPLER_STEPS = 4  # what there is to draw is clear from the start


@dataclass(frozen=True)
class CascadeConfig(DenoiserConfig):
    """Sizes of the base; the UNet's image_size is that of the small picture, image_size that of the result."""

    unet: UNetConfig = BASE

    @property
    def factor(self) -> int:
        """Give how many times wider the result is than the small picture."""
        return self.image_size // self.unet.image_size


@dataclass(frozen=True)
class CascadeUpsamplerConfig:
    """Sizes of the upsampler."""

    unet: UNetConfig = UPSAMPLER
    image_size: int = 32  # pixels, of the result
    factor: int = 2  # how many times wider the result is than what is given


@dataclass(frozen=True)
class UpsamplerLossConfig(DenoisingLossConfig):
    """What shapes the upsampler's loss; the paper's max_augmentation is 1."""

    max_augmentation: float = 0.1  # share of the timesteps from which the small picture's noise is drawn


class Cascade(Denoiser):
    """The base: draw a small picture of a caption."""

    kind, config_class = "cascade", CascadeConfig


class CascadeUpsampler(nn.Module):
    """Draw a picture's larger version; the small one comes noised, and the network is told how much."""

    kind, config_class = "cascade_upsampler", CascadeUpsamplerConfig

    def __init__(self, config: CascadeUpsamplerConfig):
        super().__init__()
        self.config = config
        self.unet = UNet(config.unet)
        emb_dim = config.unet.emb_dim
        self.level_mlp = nn.Sequential(nn.Linear(TIME_DIM, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim))

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, low: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """Predict large pictures from noised ones (B, 3, H, W), as those of timesteps t (B,), and noised small ones.

        Here low is (B, 3, H / factor, W / factor), and level (B,) are the timesteps of its noise.
        """
        emb = self.level_mlp(timestep_embedding(level, TIME_DIM))
        enlarged = enlarge(low, self.config.factor)
        return enlarged + self.unet(torch.cat([x_t, enlarged], dim=1), t, emb)


def cascade_loss(
    model: nn.Module, batch: Batch, generator: Noise, config: DenoisingLossConfig, diffusion: Process, factor: int
) -> torch.Tensor:
    """Learn to draw small pictures of captions.

    Paper: Saharia et al. 2022, sec. 2.2. We differ as the decoder does, see decoder_loss: of each picture's error
    the root is taken.
    """
    return captioned_loss(model, shrink(batch.images, factor), batch, generator, config, diffusion)


def cascade_upsampler_loss(
    model: nn.Module, batch: Batch, generator: Noise, config: UpsamplerLossConfig, diffusion: Process, factor: int
) -> torch.Tensor:
    """Learn to enlarge small pictures, however much noise was added to them: what a base draws is never exact.

    Paper: Saharia et al. 2022, sec. 2.4 (noise conditioning augmentation); Ho et al. 2022 (cascaded diffusion), sec. 4.
    """
    low, end = shrink(batch.images, factor), config.max_augmentation * diffusion.num_timesteps
    level = (end * rows_of(EVEN, (len(low),), generator)).long().to(low.device)
    low = diffusion.q_sample(low, level, draw_normal(low, generator))

    def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return model(x_t, t, low, level)

    return denoising_loss(predict, batch.images, generator, config, diffusion)


def thresholded(model: Model, percentile: float) -> Model:
    """Bring each guess of a picture into [-1, 1] by its own largest values, so that guidance does not saturate it.

    Args:
        model: (x_t, t) to x_start.
        percentile: p in 0 to 1: beyond the p-th share of its absolute values a picture is clipped, and divided by that
            where it is above 1. 0: all is clipped to [-1, 1] (static thresholding).

    Raises: ValueError: when the percentile is out of range.
    Paper: Saharia et al. 2022, sec. 2.3 (dynamic thresholding).
    """
    if not 0 <= finite_number(percentile, "percentile") <= 1:
        raise ValueError(f"percentile is {percentile:g}; a share from 0 (static) to 1 was expected.")

    def bounded(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x_start = model(x_t, t)
        bound = rearrange(x_start.abs().flatten(1).quantile(percentile, dim=1).clamp(min=1), "b -> b 1 1 1")
        return x_start.clamp(-bound, bound) / bound

    return bounded


def upsample(rival: Rival, low: torch.Tensor, generator: Noise, augmentation: float) -> torch.Tensor:
    """Draw small pictures (B, 3, h, w) again, larger, after noise of a level that is a share of all timesteps."""
    model, diffusion = rival.models["cascade_upsampler"], rival.diffusion["cascade_upsampler"]
    if not 0 <= finite_number(augmentation, "augmentation") <= 1:
        raise ValueError(f"augmentation is {augmentation:g}; a share of all timesteps, 0 to 1, was expected.")
    level = torch.full((len(low),), round(augmentation * (diffusion.num_timesteps - 1)), device=low.device)
    low = diffusion.q_sample(low, level, draw_noise(low, generator))
    noise = draw_noise(enlarge(low, model.config.factor), generator)

    def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return model(x_t, t, low, level).float()

    return last(SAMPLERS[SAMPLER](diffusion, predict, noise, UPSAMPLER_STEPS, generator=generator))


def draw(
    rival: Rival, tokens: torch.Tensor, mask: torch.Tensor, generator: Noise, num_inference_steps: int,
    guidance_scale: float, percentile: float, augmentation: float,
) -> torch.Tensor:  # fmt: skip
    """Draw a small picture of each caption, and enlarge it."""
    model, size = rival.models["cascade"], rival.models["cascade"].config.unet.image_size
    predict = thresholded(reader(model, tokens, mask, guidance_scale), percentile)
    noise = draw_noise(torch.empty(len(tokens), 3, size, size, device=tokens.device), generator)
    steps = SAMPLERS[SAMPLER](rival.diffusion["cascade"], predict, noise, num_inference_steps, generator=generator)
    return upsample(rival, last(steps), generator, augmentation)


def recipes(base: int, upsampler: int, ema_decay: float) -> dict[str, StageRecipe]:
    """Describe a training by the steps of base and upsampler."""
    return {
        "cascade_upsampler": recipe(upsampler, UpsamplerLossConfig(), ema_decay),
        "cascade": recipe(base, DenoisingLossConfig(), ema_decay),
    }


def factor_of(config: CascadeConfig | CascadeUpsamplerConfig) -> dict[str, int]:
    """Give what the losses take beside model and batch."""
    return {"factor": config.factor}


FAMILY = Family(
    name="cascade",
    summary="diffusion of pixels by caption alone, and an upsampler",
    stages={
        "cascade_upsampler": Stage(CascadeUpsampler, cascade_upsampler_loss, sizes=factor_of),
        "cascade": Stage(Cascade, cascade_loss, sizes=factor_of),
    },
    models={"cascade_upsampler": CascadeUpsamplerConfig(), "cascade": CascadeConfig()},
    recipes={"quick": recipes(1350, 450, 0.99), "full": recipes(13_500, 4500, 0.999)},
    draw=draw,
    networks=lambda models: {"text encoder": models["cascade"].text} | {kind: m.unet for kind, m in models.items()},
    options={"num_inference_steps": 24, "guidance_scale": 2.0, "percentile": 0.995, "augmentation": 0.0},
    diffusion={"cascade_upsampler": DiffusionConfig(), "cascade": DiffusionConfig()},
)
