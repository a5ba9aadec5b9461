"""The discrete variational autoencoder: a picture as a grid of codes from a codebook, and back.

An encoder gives for each cell of the grid a distribution over the codes. A code is drawn from it by the Gumbel-softmax
relaxation, which gradients pass, and a decoder draws the picture from the codes.
Paper: Ramesh et al. 2021 (DALL-E), sec. 2.1 and appendix A; Jang et al. 2017 (Gumbel-softmax).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from minidalle.data.batches import Batch, Source
from minidalle.losses import EVEN, Noise, rows_of
from minidalle.parallel import unwrap
from minidalle.rivals.pictures import PictureDecoder, PictureEncoder
from minidalle.rivals.vae import log_likelihood

STARTED = 256  # pictures whose features the codes begin as


@dataclass(frozen=True)
class DiscreteVAEConfig:
    """Sizes of the discrete VAE."""

    image_size: int = 32  # pixels
    num_codes: int = 128  # K, of the codebook
    widths: tuple[int, ...] = (32, 80)  # channels of each level on the way down; each level halves the picture

    @property
    def grid(self) -> int:
        """Give the number of cells along each side."""
        return self.image_size // 2 ** len(self.widths)


@dataclass(frozen=True)
class DiscreteVAELossConfig:
    """What shapes the negative ELBO; in the paper the KL's weight has a warm-up and ends at 6.6."""

    sigma: float = 0.1  # of a pixel around what is drawn
    kl_weight: float = 1.0  # beta, after its warm-up; 1 is the ELBO
    kl_warmup: float = 0.0  # share of the training over which the weight rises from 0
    hot: float = 1.0  # temperature of the relaxation at the start, appendix A.2
    cold: float = 0.25  # and at the end; with 1/16, the paper's, pictures were less exact
    cooling: float = 0.5  # share of the training over which it falls


class DiscreteVAE(nn.Module):
    """Encode a picture as a grid of codes; draw a picture from one.

    We differ: the encoder has no layer of its own for the logits. A code is as likely as a feature is near it, as in a
    mixture of Gaussians, and the codes begin as features (start_codebook), or a handful of them would do all the work.
    """

    kind, config_class = "dvae", DiscreteVAEConfig

    def __init__(self, config: DiscreteVAEConfig):
        super().__init__()
        self.config = config
        self.encoder = PictureEncoder(config.widths, 1)
        self.codebook = nn.Parameter(torch.randn(config.num_codes, config.widths[-1]))
        self.decoder = PictureDecoder(config.widths[::-1], 1, config.grid)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Encode pictures (B, 3, H, W) as normalised features (B, cells, W), row by row."""
        h = self.encoder(images, images.new_zeros(len(images), 1))  # no caption: its scale and shift are constants
        h = rearrange(h, "b w rows columns -> b (rows columns) w").float()
        return F.layer_norm(h, h.shape[-1:])

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Give the logits of the codes (B, cells, K): minus half the squared distance, up to a constant of the cell."""
        return (self.features(images) @ self.codebook.mT).float() - 0.5 * self.codebook.square().sum(-1)

    def draw(self, shares: torch.Tensor) -> torch.Tensor:
        """Draw pictures (B, 3, H, W) from shares of the codes (B, cells, K), in the limit one-hot."""
        h = rearrange(shares @ self.codebook, "b (rows columns) w -> b w rows columns", rows=self.config.grid)
        return self.decoder(h, h.new_zeros(len(h), 1)).float()

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Give the likeliest codes (B, cells), int64, of pictures (B, 3, H, W)."""
        return self.logits(images).argmax(-1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Draw pictures (B, 3, H, W) from codes (B, cells)."""
        return self.draw(F.one_hot(codes, self.config.num_codes).float())

    def forward(
        self, images: torch.Tensor, noise: torch.Tensor, temperature: float | torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode pictures, draw relaxed codes by Gumbel noise (B, cells, K), and draw the pictures again.

        Returns: pictures (B, 3, H, W), logits (B, cells, K).
        """
        logits = self.logits(images)
        return self.draw(gumbel_softmax(logits, noise, temperature)), logits


def gumbel_noise(shares: torch.Tensor) -> torch.Tensor:
    """Turn numbers evenly drawn from 0 to 1 into numbers of the standard Gumbel distribution."""
    tiny = torch.finfo(shares.dtype).tiny
    return -(-shares.clamp(tiny, 1 - 2**-24).log()).log()


def gumbel_softmax(logits: torch.Tensor, noise: torch.Tensor, temperature: float | torch.Tensor) -> torch.Tensor:
    """Draw shares (..., K) whose largest is a draw from softmax(logits); one-hot as the temperature falls to 0.

    Paper: Jang et al. 2017, eq. 2.
    """
    return ((logits + noise) / temperature).softmax(-1)


def kl_to_uniform(logits: torch.Tensor) -> torch.Tensor:
    """Give KL(softmax(logits) || uniform) in nats over the last dimension: log K minus the entropy."""
    log_p = logits.log_softmax(-1)
    return math.log(logits.shape[-1]) + (log_p.exp() * log_p).sum(-1)


def dvae_loss(
    model: nn.Module, batch: Batch, generator: Noise, config: DiscreteVAELossConfig, progress: float | torch.Tensor
) -> torch.Tensor:
    """Learn to draw pictures again from codes that are nearly evenly used: the negative ELBO over the pixels.

    Paper: Ramesh et al. 2021, sec. 2.1 and appendix A.2 (temperature and weight by schedule). We differ: the pixels
    are Gaussian of a fixed width, not logit-Laplace; by absolute errors, small objects were learned last.
    """
    sizes = unwrap(model, DiscreteVAE).config
    noise = gumbel_noise(rows_of(EVEN, (len(batch.images), sizes.grid**2, sizes.num_codes), generator))
    progress = torch.as_tensor(progress, dtype=torch.float32)  # within a CUDA graph it is a tensor
    cooled, risen = ((progress / max(share, 1e-6)).clamp(max=1) for share in (config.cooling, config.kl_warmup))
    temperature = config.hot * (config.cold / config.hot) ** cooled
    drawn, logits = model(batch.images, noise.to(batch.images.device), temperature.to(batch.images.device))
    kl = kl_to_uniform(logits).sum(1)
    loss = config.kl_weight * risen * kl - log_likelihood(batch.images, drawn, config.sigma)
    return loss.mean() / batch.images[0].numel()


@torch.no_grad()
def start_codebook(model: DiscreteVAE, source: Source) -> None:
    """Begin with features of real pictures as codes, each likelier the farther it is from those before it.

    Paper: Arthur and Vassilvitskii 2007, sec. 2.2 (the seeding of k-means++).
    """
    device, generator = model.codebook.device, torch.Generator().manual_seed(source.seed)
    features = model.features(source.batch(0, STARTED).images.to(device)).flatten(0, 1).cpu()
    distances = torch.full((len(features),), 4.0 * features.shape[1])  # squared; none is farther
    for code in range(model.config.num_codes):
        chosen = features[torch.multinomial(distances + 1e-6, 1, generator=generator)]
        distances = distances.minimum((features - chosen).square().sum(-1))
        model.codebook[code] = chosen[0].to(device)


def codebook_usage(codes: torch.Tensor, num_codes: int) -> tuple[int, float]:
    """Count the codes that occur among some (any shape), and their perplexity: num_codes where all occur equally."""
    shares = torch.bincount(codes.flatten(), minlength=num_codes).double() / codes.numel()
    return int((shares > 0).sum()), float(torch.special.entr(shares).sum().exp())
