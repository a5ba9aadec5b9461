"""The variational autoencoder, told what to draw by a caption; and the plain autoencoder that cannot draw anew.

An encoder names for each picture a Gaussian of codes, a decoder draws a picture from a code and the caption, and the
Gaussians are kept near one that the caption alone names, so that codes can be drawn without a picture.
Paper: Kingma and Welling 2014, sec. 2; with captions: Sohn et al. 2015, sec. 4.
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn

from minidalle.data.batches import Batch
from minidalle.layers import zero_init
from minidalle.losses import Noise, draw_normal
from minidalle.parallel import unwrap
from minidalle.rivals.family import Family, Rival
from minidalle.rivals.pictures import PictureDecoder, PictureEncoder
from minidalle.rivals.text import RivalConfig, TextEncoder
from minidalle.samplers import draw_noise
from minidalle.training.recipes import StageRecipe
from minidalle.training.stages import Stage

Gaussian = tuple[torch.Tensor, torch.Tensor]  # mean and log variance, (B, D) each


@dataclass(frozen=True)
class VAEConfig(RivalConfig):
    """Sizes of the variational autoencoder."""

    code_dim: int = 8  # numbers that stand for a picture
    learned_prior: bool = True  # whether codes are drawn around what the caption says; else around 0
    widths: tuple[int, ...] = (24, 48, 64)  # channels of each level on the way down

    @property
    def map_size(self) -> int:
        """Give the cells along each side of the smallest map."""
        return self.image_size // 2 ** len(self.widths)


@dataclass(frozen=True)
class VAELossConfig:
    """What shapes the negative ELBO; the plain one has kl_weight 1, kl_warmup 0."""

    sigma: float = 0.3  # of a pixel around what is drawn: how exact a picture has to be
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
        self.to_prior = zero_init(nn.Linear(config.text_width, 2 * config.code_dim))

    def encode(self, images: torch.Tensor, emb: torch.Tensor) -> Gaussian:
        """Give mean and log variance of the codes (B, D) of pictures (B, 3, H, W) and captions (B, W)."""
        h = self.encoder(images, emb)
        mean, log_variance = self.to_code(rearrange(h, "b c h w -> b (c h w)")).float().chunk(2, dim=-1)
        return mean, log_variance.clamp(-12, 4)

    def prior(self, emb: torch.Tensor) -> Gaussian:
        """Give mean and log variance of the codes (B, D) that captions (B, W) leave possible.

        Paper: Sohn et al. 2015, eq. 4; in Kingma and Welling's every caption has the standard normal.
        """
        mean, log_variance = self.to_prior(emb).float().chunk(2, dim=-1)
        return (mean, log_variance.clamp(-12, 4)) if self.config.learned_prior else (0 * mean, 0 * log_variance)

    def decode(self, code: torch.Tensor, text: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        """Draw pictures (B, 3, H, W) of codes (B, D) and encoded captions."""
        emb, states = text
        h = self.from_code(torch.cat([code, emb], dim=-1))
        return self.decoder(h, emb + self.code_to_emb(code), states, mask).float()

    def forward(
        self, images: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, Gaussian, Gaussian]:
        """Encode pictures, draw a code of each by its noise (B, D), and draw the pictures again.

        Returns: pictures (B, 3, H, W); mean and log variance of their codes (B, D), and of those of their captions.
        """
        text = self.text(tokens, mask)
        posterior, prior = self.encode(images, text[0]), self.prior(text[0])
        return self.decode(draw_code(*posterior, noise), text, mask), posterior, prior


def draw_code(mean: torch.Tensor, log_variance: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Turn standard normal noise (B, D) into codes, such that gradients reach mean and variance.

    Paper: Kingma and Welling 2014, sec. 2.4 (reparameterisation).
    """
    return mean + (0.5 * log_variance).exp() * noise


def kl_divergence(p: Gaussian, q: Gaussian) -> torch.Tensor:
    """Give KL(p || q) in nats of Gaussians with independent coordinates, summed over the last dimension.

    Paper: Kingma and Welling 2014, appendix B, for a standard normal q.
    """
    (mean, log_variance), (other, other_log_variance) = p, q
    squares = (mean - other).square() + log_variance.exp()
    return 0.5 * (squares / other_log_variance.exp() - 1 + other_log_variance - log_variance).sum(-1)


def log_likelihood(images: torch.Tensor, drawn: torch.Tensor, sigma: float) -> torch.Tensor:
    """Give log p(picture | what is drawn) in nats, for Gaussian pixels around it: (B,)."""
    errors = (images - drawn).square().flatten(1)
    return -(errors / (2 * sigma**2) + math.log(sigma) + 0.5 * math.log(2 * math.pi)).sum(1)


def vae_loss(
    model: nn.Module, batch: Batch, generator: Noise, config: VAELossConfig, progress: float | torch.Tensor
) -> torch.Tensor:
    """Learn to draw pictures again from codes that are nearly what the prior says: the negative ELBO over the pixels.

    Paper: Kingma and Welling 2014, eq. 10, with one code a picture. We differ: the KL's weight rises at first, or the
    decoder learns to do without the code before it says anything (posterior collapse).
    """
    code_dim = unwrap(model, VAE).config.code_dim
    noise = draw_normal(batch.images.new_empty(len(batch.images), code_dim), generator)
    drawn, posterior, prior = model(batch.images, batch.tokens, batch.mask, noise)
    risen = torch.as_tensor(progress / max(config.kl_warmup, 1e-6)).clamp(max=1)  # within a CUDA graph a tensor
    kl = kl_divergence(posterior, prior)
    loss = config.kl_weight * risen * kl - log_likelihood(batch.images, drawn, config.sigma)
    return loss.mean() / batch.images[0].numel()


def draw(rival: Rival, tokens: torch.Tensor, mask: torch.Tensor, generator: Noise) -> torch.Tensor:
    """Draw a code for each caption, and its picture."""
    model, text = rival.models["vae"], rival.models["vae"].text(tokens, mask)
    noise = draw_noise(text[0].new_empty(len(tokens), model.config.code_dim), generator)
    return model.decode(draw_code(*model.prior(text[0]), noise), text, mask)


def recipe(steps: int, ema_decay: float) -> StageRecipe:
    """Describe a training."""
    return StageRecipe(steps, 64, matrix_lr=0.01, lr=2e-3, ema_decay=ema_decay, loss=VAELossConfig(), full_captions=0.5)


FAMILY = Family(
    name="vae",
    summary="conditional variational autoencoder",
    stages={"vae": Stage(VAE, vae_loss, sees_progress=True)},
    models={"vae": VAEConfig()},
    recipes={"quick": {"vae": recipe(1800, 0.99)}, "full": {"vae": recipe(18_000, 0.999)}},
    draw=draw,
    networks=lambda models: {"text encoder": models["vae"].text, "decoder": models["vae"].decoder},
)
