"""Latent diffusion: an autoencoder makes a picture four times narrower, and diffusion happens there.

Paper: Rombach et al. 2022 (the idea of Stable Diffusion), sec. 3.
"""

from dataclasses import dataclass

import torch
from torch import nn

from minidalle.ar_prior import fixed
from minidalle.data.batches import Batch, Source
from minidalle.diffusion import DiffusionConfig, GaussianDiffusion
from minidalle.losses import Noise, draw_normal
from minidalle.parallel import unwrap
from minidalle.rivals.denoiser import Denoiser, DenoiserConfig, DenoisingLossConfig, captioned_loss, reader, recipe
from minidalle.rivals.family import Family, Rival
from minidalle.rivals.pictures import PictureDecoder, PictureEncoder
from minidalle.samplers import SAMPLERS, draw_noise, last
from minidalle.training.recipes import StageRecipe
from minidalle.training.stages import Stage
from minidalle.unet import UNetConfig

NO_EMB = 1  # width of an embedding of zeros: the autoencoder's blocks have no condition
SAMPLER = "ddpm"
UNET = UNetConfig(
    8, in_channels=4, out_channels=4, patch_size=1, channels=40, channel_mults=(1, 2), emb_dim=64, context_dim=96
)
FITTED = 2048  # pictures from which the scale of the latents is found


@dataclass(frozen=True)
class KLAutoencoderConfig:
    """Sizes of the autoencoder."""

    image_size: int = 32  # pixels
    widths: tuple[int, ...] = (24, 48)  # channels on the way down, which halves once for each: f = 4
    latent_channels: int = 4

    @property
    def latent_size(self) -> int:
        """Give the cells along each side of a latent."""
        return self.image_size // 2 ** len(self.widths)


@dataclass(frozen=True)
class KLAutoencoderLossConfig:
    """What shapes the autoencoder's loss; the paper's kl_weight is 1e-6 of a sum, its square_weight 0."""

    kl_weight: float = 1e-4  # of the mean over the latent's numbers: how near to standard normal they have to be
    square_weight: float = 1.0  # of the squared error, beside the absolute one


@dataclass(frozen=True)
class LatentConfig(DenoiserConfig):
    """Sizes of the diffusion model; the UNet's image_size is that of a latent, image_size that of the picture."""

    unet: UNetConfig = UNET


class KLAutoencoder(nn.Module):
    """Encode a picture as a Gaussian of latents, a small map; draw it again from one. It knows no captions.

    Paper: Rombach et al. 2022, sec. 3.1 (KL-reg). We differ: pixels alone are compared, without a perceptual loss or a
    discriminator, which flat shapes do not need.
    """

    kind, config_class = "kl_autoencoder", KLAutoencoderConfig

    def __init__(self, config: KLAutoencoderConfig):
        super().__init__()
        self.config = config
        widths = config.widths
        self.encoder = PictureEncoder(widths, NO_EMB)
        self.to_latent = nn.Conv2d(widths[-1], 2 * config.latent_channels, 1)
        self.from_latent = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.decoder = PictureDecoder(widths[::-1], NO_EMB, config.latent_size)

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give mean and log variance of the latents (B, C, h, w) of pictures (B, 3, H, W)."""
        h = self.encoder(images, images.new_zeros(len(images), NO_EMB))
        mean, log_variance = self.to_latent(h).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 4)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Draw pictures (B, 3, H, W) of latents (B, C, h, w)."""
        return self.decoder(self.from_latent(latent), latent.new_zeros(len(latent), NO_EMB)).float()

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encode pictures, draw a latent of each by its noise, and draw the pictures again.

        Returns: pictures (B, 3, H, W), mean and log variance (B, C, h, w).
        """
        mean, log_variance = self.encode(images)
        return self.decode(mean + (0.5 * log_variance).exp() * noise), mean, log_variance


class Latent(Denoiser):
    """Draw the latent of a caption."""

    kind, config_class = "latent", LatentConfig

    def __init__(self, config: LatentConfig):
        super().__init__(config)
        self.scale = fixed(torch.ones(()))  # brings latents to unit variance, appendix G


def kl_autoencoder_loss(
    model: nn.Module, batch: Batch, generator: Noise, config: KLAutoencoderLossConfig
) -> torch.Tensor:
    """Learn to draw pictures again from latents that are a little noisy and not far from zero.

    Paper: Rombach et al. 2022, sec. 3.1 and appendix G.
    """
    sizes = unwrap(model, KLAutoencoder).config
    shape = (len(batch.images), sizes.latent_channels, sizes.latent_size, sizes.latent_size)
    drawn, mean, log_variance = model(batch.images, draw_normal(batch.images.new_empty(shape), generator))
    errors = batch.images - drawn
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return errors.abs().mean() + config.square_weight * errors.square().mean() + config.kl_weight * kl


@torch.no_grad()
def fit_scale(model: Latent, source: Source, kl_autoencoder: KLAutoencoder) -> None:
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
    with torch.no_grad():
        mean, log_variance = kl_autoencoder.encode(batch.images)
        scale = unwrap(model, Latent).scale
        x_start = scale * (mean + (0.5 * log_variance).exp() * draw_normal(mean, generator))
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
    model, unet = rival.models["latent"], rival.models["latent"].config.unet
    shape = (len(tokens), unet.in_channels, unet.image_size, unet.image_size)
    noise, predict = draw_noise(model.scale.new_empty(shape), generator), reader(model, tokens, mask, guidance_scale)
    steps = SAMPLERS[SAMPLER](rival.diffusion["latent"], predict, noise, num_inference_steps, False, generator)
    return rival.models["kl_autoencoder"].decode(last(steps) / model.scale)


def recipes(autoencoder: int, latent: int, ema_decay: float) -> dict[str, StageRecipe]:
    """Describe a training by the steps of autoencoder and diffusion model."""
    return {
        "kl_autoencoder": recipe(autoencoder, KLAutoencoderLossConfig(), ema_decay),
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
    recipes={"quick": recipes(1500, 1500, 0.99), "full": recipes(15_000, 15_000, 0.999)},
    draw=draw,
    networks=lambda models: {
        "text encoder": models["latent"].text,
        "denoiser": models["latent"].unet,
        "decoder": models["kl_autoencoder"].decoder,
    },
    options={"num_inference_steps": 24, "guidance_scale": 2.0},
    diffusion={"latent": DiffusionConfig()},
)
