"""The variational autoencoder, told what to draw by a caption; and the plain autoencoder that cannot draw anew.

An encoder names for each picture a Gaussian of codes, a decoder draws a picture from a code and the caption, and the
Gaussians are kept near the standard normal, so that codes can be drawn without a picture.
Paper: Kingma and Welling 2014, sec. 2; with captions: Sohn et al. 2015, sec. 4.
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn

from minidalle.data.batches import Batch
from minidalle.losses import Noise, draw_normal
from minidalle.rivals.family import Family, Rival
from minidalle.rivals.pictures import PictureDecoder, PictureEncoder
from minidalle.rivals.text import RivalConfig, TextEncoder
from minidalle.samplers import draw_noise
from minidalle.training.recipes import StageRecipe
from minidalle.training.stages import Stage


@dataclass(frozen=True)
class VAEConfig(RivalConfig):
    """Sizes of the variational autoencoder."""

    code_dim: int = 32  # numbers that stand for a picture
    widths: tuple[int, ...] = (32, 64, 96)  # channels of each level on the way down

    @property
    def map_size(self) -> int:
        """Give the cells along each side of the smallest map."""
        return self.image_size // 2 ** len(self.widths)


@dataclass(frozen=True)
class VAELossConfig:
    """What shapes the negative ELBO; the plain one has kl_weight 1, kl_warmup 0."""

    sigma: float = 0.15  # of a pixel around what is drawn: how exact a picture has to be
    kl_weight: float = 1.0  # beta (Higgins et al. 2017)
    kl_warmup: float = 0.3  # share of the training over which the weight rises from 0 (Bowman et al. 2016, sec. 3.1)


class VAE(nn.Module):
    """Encode a picture as a Gaussian of codes; draw a picture from a code and a caption."""

    kind, config_class = "vae", VAEConfig

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.text = TextEncoder(config)
        shape = (config.widths[-1], config.map_size, config.map_size)
        self.encoder = PictureEncoder(config.widths, config.text_width)
        self.to_code = nn.Linear(math.prod(shape), 2 * config.code_dim)
        self.from_code = nn.Sequential(
            nn.Linear(config.code_dim + config.text_width, math.prod(shape)), nn.Unflatten(1, shape)
        )
        self.code_to_emb = nn.Linear(config.code_dim, config.text_width)
        self.decoder = PictureDecoder(config.widths[::-1], config.text_width, config.map_size, config.text_width)

    def encode(self, images: torch.Tensor, emb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give mean and log variance of the codes (B, D) of pictures (B, 3, H, W) and captions (B, W)."""
        h = self.encoder(images, emb)
        mean, log_variance = self.to_code(rearrange(h, "b c h w -> b (c h w)")).float().chunk(2, dim=-1)
        return mean, log_variance.clamp(-12, 4)

    def decode(self, code: torch.Tensor, text: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        """Draw pictures (B, 3, H, W) of codes (B, D) and encoded captions."""
        emb, states = text
        h = self.from_code(torch.cat([code, emb], dim=-1))
        return self.decoder(h, emb + self.code_to_emb(code), states, mask).float()

    def forward(
        self, images: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encode pictures, draw a code of each by its noise (B, D), and draw the pictures again.

        Returns: pictures (B, 3, H, W), mean and log variance (B, D).
        Paper: Kingma and Welling 2014, sec. 2.4 (reparameterisation: code = mean + sigma * noise).
        """
        text = self.text(tokens, mask)
        mean, log_variance = self.encode(images, text[0])
        code = mean + (0.5 * log_variance).exp() * noise
        return self.decode(code, text, mask), mean, log_variance


def kl_divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Give KL(N(mean, variance) || N(0, 1)) in nats, summed over the last dimension.

    Paper: Kingma and Welling 2014, appendix B.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


def log_likelihood(images: torch.Tensor, drawn: torch.Tensor, sigma: float) -> torch.Tensor:
    """Give log p(picture | what is drawn) in nats, for Gaussian pixels around it: (B,)."""
    errors = (images - drawn).square().flatten(1)
    return -(errors / (2 * sigma**2) + math.log(sigma) + 0.5 * math.log(2 * math.pi)).sum(1)


def vae_loss(model: nn.Module, batch: Batch, generator: Noise, config: VAELossConfig, progress: float) -> torch.Tensor:
    """Learn to draw pictures again from codes that are nearly standard normal: the negative ELBO over the pixels.

    Paper: Kingma and Welling 2014, eq. 10, with one code a picture. We differ: the KL's weight rises at first, or the
    decoder learns to do without the code before it says anything (posterior collapse).
    """
    code_dim = next(part for part in model.modules() if isinstance(part, VAE)).config.code_dim
    noise = draw_normal(batch.images.new_empty(len(batch.images), code_dim), generator)
    drawn, mean, log_variance = model(batch.images, batch.tokens, batch.mask, noise)
    weight = config.kl_weight * min(1.0, progress / config.kl_warmup) if config.kl_warmup else config.kl_weight
    loss = weight * kl_divergence(mean, log_variance) - log_likelihood(batch.images, drawn, config.sigma)
    return loss.mean() / batch.images[0].numel()


def draw(rival: Rival, tokens: torch.Tensor, mask: torch.Tensor, generator: Noise) -> torch.Tensor:
    """Draw a code for each caption, and its picture."""
    model, text = rival.models["vae"], rival.models["vae"].text(tokens, mask)
    code = draw_noise(text[0].new_empty(len(tokens), model.config.code_dim), generator)
    return model.decode(code, text, mask)


def recipe(steps: int, ema_decay: float) -> StageRecipe:
    """Describe a training."""
    return StageRecipe(steps, 64, matrix_lr=0.01, lr=2e-3, ema_decay=ema_decay, loss=VAELossConfig())


FAMILY = Family(
    name="vae",
    summary="conditional variational autoencoder",
    stages={"vae": Stage(VAE, vae_loss, sees_progress=True)},
    models={"vae": VAEConfig()},
    recipes={"quick": {"vae": recipe(1500, 0.99)}, "full": {"vae": recipe(12_000, 0.999)}},
    draw=draw,
    networks=lambda models: {"text encoder": models["vae"].text, "decoder": models["vae"].decoder},
)
