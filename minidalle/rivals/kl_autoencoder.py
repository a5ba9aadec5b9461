"""The autoencoder of latent diffusion: a picture becomes a small map of numbers, four times narrower, and back.

Paper: Rombach et al. 2022, sec. 3.1.
"""

from dataclasses import dataclass

import torch
from torch import nn

from minidalle.data.batches import Batch
from minidalle.losses import Noise, draw_normal, mean_of
from minidalle.parallel import unwrap
from minidalle.rivals.pictures import PictureDecoder, PictureEncoder

NO_EMB = 1  # width of an embedding of zeros: the blocks have no condition


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
    """What shapes the autoencoder's loss; the paper's kl_weight is 1e-6 of a sum, its root_below None."""

    kl_weight: float = 1e-4  # of the mean over the latent's numbers: how near to standard normal they have to be
    root_below: float | None = 0.01  # take the root of each picture's error, see mean_of; None: the absolute error


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


def kl_autoencoder_loss(
    model: nn.Module, batch: Batch, generator: Noise, config: KLAutoencoderLossConfig
) -> torch.Tensor:
    """Learn to draw pictures again from latents that are a little noisy and not far from zero.

    Paper: Rombach et al. 2022, sec. 3.1 and appendix G. We differ: the root of each picture's squared error, so that a
    small object counts as much as a large one; by absolute errors a fifth more of the small ones was lost.
    """
    sizes = unwrap(model, KLAutoencoder).config
    shape = (len(batch.images), sizes.latent_channels, sizes.latent_size, sizes.latent_size)
    drawn, mean, log_variance = model(batch.images, draw_normal(batch.images.new_empty(shape), generator))
    errors, kl = batch.images - drawn, 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    absolute = config.root_below is None
    pixels = errors.abs().mean() if absolute else mean_of(errors.square().flatten(1).mean(1), config.root_below)
    return pixels + config.kl_weight * kl


@torch.no_grad()
def draw_latent(autoencoder: KLAutoencoder, batch: Batch, generator: Noise) -> torch.Tensor:
    """Draw a latent (B, C, h, w) of each picture."""
    mean, log_variance = autoencoder.encode(batch.images)
    return mean + (0.5 * log_variance).exp() * draw_normal(mean, generator)
