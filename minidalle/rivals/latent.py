"""Latent diffusion: an autoencoder makes a picture four times narrower, and diffusion happens there.

Paper: Rombach et al. 2022 (the idea of Stable Diffusion), sec. 3.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn

from minidalle.ar_prior import fixed
from minidalle.data.batches import Batch, Source
from minidalle.diffusion import DiffusionConfig, GaussianDiffusion, Model
from minidalle.losses import Noise
from minidalle.parallel import unwrap
from minidalle.rivals.denoiser import Denoiser, DenoiserConfig, DenoisingLossConfig, captioned_loss, reader, recipe
from minidalle.rivals.family import Family, Rival
from minidalle.rivals.kl_autoencoder import (
    KLAutoencoder,
    KLAutoencoderConfig,
    KLAutoencoderLossConfig,
    draw_latent,
    kl_autoencoder_loss,
)
from minidalle.samplers import SAMPLERS, draw_noise, last
from minidalle.training.recipes import StageRecipe
from minidalle.training.stages import Stage
from minidalle.unet import UNetConfig

SAMPLER = "ddpm"
UNET = UNetConfig(
    8, in_channels=4, out_channels=4, patch_size=1, channels=40, channel_mults=(1, 2), emb_dim=64, context_dim=96
)
FITTED = 2048  # pictures from which the scale of the latents is found


@dataclass(frozen=True)
class LatentConfig(DenoiserConfig):
    """Sizes of the diffusion model; the UNet's image_size is that of a latent, image_size that of the picture."""

    unet: UNetConfig = UNET


class Latent(Denoiser):
    """Draw the latent of a caption."""

    kind, config_class = "latent", LatentConfig

    def __init__(self, config: LatentConfig):
        super().__init__(config)
        self.scale = fixed(torch.ones(()))  # brings latents to unit variance, appendix G


@torch.no_grad()
def fit_scale(model: Latent, source: Source, kl_autoencoder: KLAutoencoder, **_: nn.Module) -> None:
    """Find the scale of the latents from the first pictures of the training.

    Paper: Rombach et al. 2022, appendix G: 1 / the standard deviation of all numbers.
    """
    device = model.scale.device
    means = [kl_autoencoder.encode(source.batch(step, FITTED // 8).images.to(device))[0] for step in range(8)]
    model.scale.copy_(1 / torch.cat(means).std())


def latent_loss(
    model: nn.Module,
    batch: Batch,
    generator: Noise,
    config: DenoisingLossConfig,
    kl_autoencoder: KLAutoencoder,
    diffusion: GaussianDiffusion,
) -> torch.Tensor:
    """Learn to draw the latents of captions, some of which are hidden, for guidance.

    Paper: Rombach et al. 2022, eq. 3. We differ as the decoder does, see decoder_loss: the network predicts the latent
    itself, noisy timesteps come more often, and of each latent's error the root is taken.
    """
    x_start = draw_latent(kl_autoencoder, batch, generator) * unwrap(model, Latent).scale
    return captioned_loss(model, x_start, batch, generator, config, diffusion)


def draw(
    rival: Rival,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    generator: Noise,
    num_inference_steps: int,
    guidance_scale: float,
) -> torch.Tensor:
    """Draw a latent of each caption, and its picture."""
    model = rival.models["latent"]
    predict = reader(model, tokens, mask, guidance_scale)
    return sample(rival, model, predict, len(tokens), generator, num_inference_steps)


def sample(
    rival: Rival, model: Latent, predict: Model, number: int, generator: Noise, num_inference_steps: int
) -> torch.Tensor:
    """Draw so many latents by a prediction that knows the captions, and their pictures."""
    unet = model.config.unet
    shape = (number, unet.in_channels, unet.image_size, unet.image_size)
    noise = draw_noise(model.scale.new_empty(shape), generator)
    steps = SAMPLERS[SAMPLER](rival.diffusion[model.kind], predict, noise, num_inference_steps, False, generator)
    return rival.models["kl_autoencoder"].decode(last(steps) / model.scale)


def recipes(autoencoder: int, latent: int, ema_decay: float) -> dict[str, StageRecipe]:
    """Describe a training by the steps of autoencoder and diffusion model."""
    return {
        "kl_autoencoder": replace(recipe(autoencoder, KLAutoencoderLossConfig(), ema_decay), batch_size=32),
        "latent": recipe(latent, DenoisingLossConfig(timestep_power=0.5), ema_decay),
    }


FAMILY = Family(
    name="latent",
    summary="diffusion in the latents of an autoencoder",
    stages={
        "kl_autoencoder": Stage(KLAutoencoder, kl_autoencoder_loss),
        "latent": Stage(Latent, latent_loss, needs=("kl_autoencoder",), before=fit_scale),
    },
    models={"kl_autoencoder": KLAutoencoderConfig(), "latent": LatentConfig()},
    recipes={"quick": recipes(2600, 1500, 0.99), "full": recipes(26_000, 15_000, 0.999)},
    draw=draw,
    networks=lambda models: {
        "text encoder": models["latent"].text,
        "denoiser": models["latent"].unet,
        "decoder": models["kl_autoencoder"].decoder,
    },
    options={"num_inference_steps": 24, "guidance_scale": 2.0},
    diffusion={"latent": DiffusionConfig()},
)
