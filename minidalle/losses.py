"""What each model learns: the loss of one training step, with all that is drawn at random for it.

A loss takes the model first, so that it may come wrapped (DistributedDataParallel, torch.compile); then a batch, the
generator of the step's noise, and the numbers that shape it. Noise is drawn where the generator lives: on the CPU, so
that every device trains on the same noise, or on the GPU, so that a step can be a CUDA graph. What stays fixed in
training (a frozen CLIP, the diffusion process) comes last.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from minidalle.ar_prior import AutoregressivePrior
from minidalle.clip import CLIP, contrastive_loss
from minidalle.data.batches import Batch
from minidalle.degrade import DegradationConfig, degrade
from minidalle.diffusion import GaussianDiffusion
from minidalle.layers import TextEncoding, scale_embedding
from minidalle.parallel import unwrap
from minidalle.upsampler import blur, crop, enlarge, shrink


@dataclass(frozen=True)
class PriorLossConfig:
    """What shapes the prior's loss; the paper's own settings are noises 1, max_weight 1."""

    p_drop_text: float = 0.1  # share of captions that are hidden, sec. 2.2
    noises: int = 6  # noised versions of each z_image; three times cheaper than as many captions
    max_weight: float = 5.0  # of a timestep with little noise, see prior_weights


@dataclass(frozen=True)
class AutoregressivePriorLossConfig:
    """What shapes the autoregressive prior's loss; the paper's own settings are p_drop_buckets 0, blur 0."""

    p_drop_text: float = 0.1  # share of captions that are hidden, sec. 2.2
    p_drop_buckets: float = 0.5  # share of examples of which a random share of buckets is hidden, see ar_prior_loss
    blur: float = 1.0  # buckets by which each answer is blurred: neighbours are nearly right


@dataclass(frozen=True)
class DecoderLossConfig:
    """What shapes the decoder's loss; the paper's own settings are timestep_power 1, root_below None, image_noise 0."""

    embedding: str = "z_image"  # or "z_text": the decoder that needs no prior, sec. 5.1
    p_drop_image: float = 0.1  # share of z_image that are hidden, sec. 2.1
    p_drop_text: float = 0.5  # share of captions that are hidden, sec. 2.1
    image_noise: float = 0.1  # added to z_image, per coordinate of size 1, since a prior is never exact
    timestep_power: float = 0.5  # t = T u^power for an even u: below 1, noisy timesteps come more often
    root_below: float | None = 0.01  # take the root of each picture's error, but below this leave it a square


@dataclass(frozen=True)
class UpsamplerLossConfig:
    """What shapes an upsampler's loss; the paper blurs for the first and degrades for the second."""

    p_blur: float = 0.5  # share of small pictures that are blurred
    blur_sigma: float = 0.6  # in their pixels, sec. 2.1
    p_degrade: float = 0.0  # share of small pictures that are spoilt in many ways, see degrade.py
    degradation: DegradationConfig = field(default_factory=DegradationConfig)


@dataclass(frozen=True)
class Share:
    """The noise of one process of several: it draws that of the whole batch and keeps its rows, every Nth."""

    generator: torch.Generator
    rank: int
    number: int

    @property
    def device(self) -> torch.device:
        """Give the device that the noise is drawn on."""
        return self.generator.device


Noise = torch.Generator | Share
EVEN, NORMAL = (partial(draw, dtype=torch.float32) for draw in (torch.rand, torch.randn))  # whatever torch's default is


def clip_loss(
    model: nn.Module,
    batch: Batch,
    generator: Noise,
    config: None = None,
    gather: Callable[[torch.Tensor], torch.Tensor] = lambda rows: rows,
) -> torch.Tensor:
    """Learn to match pictures and captions: all pairs of a batch, whose rows gather collects from all processes.

    Paper: Radford et al. 2021, fig. 3.
    """
    z_image, z_text, scale = model(batch.images, batch.tokens, batch.mask)
    return contrastive_loss(gather(z_image), gather(z_text), scale, gather(batch.tokens))


def prior_loss(
    model: nn.Module,
    batch: Batch,
    generator: Noise,
    config: PriorLossConfig,
    clip: CLIP,
    diffusion: GaussianDiffusion,
) -> torch.Tensor:
    """Learn to find the z_image of a picture that has a given caption.

    Paper: sec. 2.2. We differ: an error counts more where there is little noise (see prior_weights), and a caption is
    read once for several noised z_image.
    """
    z_image, text = embed(clip, batch)
    x_start = scale_embedding(z_image)[:, None].expand(-1, config.noises, -1)  # (B, K, D)
    t = draw_integers(diffusion.num_timesteps, x_start.shape[:2], generator).to(x_start.device)
    noise = draw_normal(x_start, generator)
    hide_text = draw_mask(batch, config.p_drop_text, generator)

    def predict(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return model(z_t, t, text, hide_text)

    errors = diffusion.training_loss(predict, x_start, t, noise)  # (B, K)
    return (prior_weights(diffusion, config.max_weight)[t] * errors).mean()


def ar_prior_loss(
    model: nn.Module, batch: Batch, generator: Noise, config: AutoregressivePriorLossConfig, clip: CLIP
) -> torch.Tensor:
    """Learn to predict each bucket of a z_image from the caption and the buckets before it.

    Returns: the mean cross-entropy (); ln num_buckets for a uniform guess.
    Paper: sec. 2.2. We differ: an answer is blurred over the buckets beside it (Imani and White 2018, sec. 3), and
    buckets are hidden at random (Bowman et al. 2016, sec. 3.1), or the network would go by them and not by the caption.
    """
    z_image, text = embed(clip, batch)
    buckets = unwrap(model, AutoregressivePrior).quantize(z_image, text.z_text)
    hide_text = draw_mask(batch, config.p_drop_text, generator)
    shares = rows_of(EVEN, (len(buckets), 1), generator).to(buckets.device)
    shares = shares * draw_mask(batch, config.p_drop_buckets, generator)[:, None]
    draws = rows_of(EVEN, buckets[:, :-1].shape, generator).to(buckets.device)
    logits = model(buckets[:, :-1], text, hide_text, hide_buckets=draws < shares).float()  # (B, 1 + M, num_buckets)
    return F.cross_entropy(logits.flatten(0, 1), blurred_answers(buckets, logits.shape[-1], config.blur).flatten(0, 1))


def blurred_answers(buckets: torch.Tensor, number: int, blur: float) -> torch.Tensor:
    """Give each right bucket (B, n) as a distribution over all: a Gaussian of a width in buckets, (B, n, number)."""
    distance = torch.arange(number, device=buckets.device) - buckets[..., None]
    return torch.softmax(-0.5 * (distance / max(blur, 1e-3)) ** 2, dim=-1)


def decoder_loss(
    model: nn.Module,
    batch: Batch,
    generator: Noise,
    config: DecoderLossConfig,
    clip: CLIP,
    diffusion: GaussianDiffusion,
) -> torch.Tensor:
    """Learn to draw the picture that a z_image, or a caption, or both describe.

    Paper: sec. 2.1. We differ twice. A timestep is drawn in proportion to its number, not evenly: what is drawn and
    where is decided where there is most noise, and a network that predicts the picture learns the rest on the way. And
    of each picture's error the root is taken, so that a small object, which can only cause a small error, counts as
    much as a large one (a pseudo-Huber loss as in Song and Dhariwal 2023, sec. 3.3). Both are fields of the config.
    """
    z_image, text = embed(clip, batch)
    u = rows_of(EVEN, (len(z_image),), generator)
    t = (diffusion.num_timesteps * u**config.timestep_power).long().to(z_image.device)
    noise = draw_normal(batch.images, generator)
    hide_image = draw_mask(batch, config.p_drop_image, generator)
    hide_text = draw_mask(batch, config.p_drop_text, generator)
    noise_z = draw_normal(z_image, generator) / z_image.shape[1] ** 0.5
    noisy_z = (text.z_text if config.embedding == "z_text" else z_image) + config.image_noise * noise_z

    def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return model(x_t, t, noisy_z, text, hide_image, hide_text)

    return mean_of(diffusion.training_loss(predict, batch.images, t, noise), config.root_below)


def mean_of(errors: torch.Tensor, root_below: float | None) -> torch.Tensor:
    """Average the squared errors (B,) of pictures, or their roots, which below a bound stay squares: ()."""
    return errors.mean() if root_below is None else (errors + root_below**2).sqrt().mean()


def upsampler_loss(
    model: nn.Module,
    batch: Batch,
    generator: Noise,
    config: UpsamplerLossConfig,
    diffusion: GaussianDiffusion,
    crop_size: int,
    factor: int,
) -> torch.Tensor:
    """Learn to draw a crop of a large picture, shown the same crop of the small one, enlarged and often blurred.

    Paper: sec. 2.1 (blurred or degraded conditions; training on crops).
    """
    images = batch.images
    low = shrink(images, factor)
    blurred = draw_mask(batch, config.p_blur, generator)
    low = torch.where(blurred[:, None, None, None], blur(low, config.blur_sigma), low)
    if config.p_degrade:
        spoilt = draw_mask(batch, config.p_degrade, generator)[:, None, None, None]
        draws = rows_of(EVEN, (len(low), 2, 4), generator).to(low.device)
        low = torch.where(spoilt, degrade(low, draws, draw_normal(low, generator), config.degradation), low)
    places = (images.shape[2] - crop_size) // factor + 1  # whole pixels of the small picture
    corners = factor * draw_integers(places, (len(images), 2), generator).to(images.device)
    enlarged = crop(enlarge(low, factor), corners, crop_size)
    x_start = crop(images, corners, crop_size)
    t = draw_integers(diffusion.num_timesteps, (len(images),), generator).to(images.device)
    noise = draw_normal(x_start, generator)

    def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return model(x_t, t, enlarged)

    return diffusion.training_loss(predict, x_start, t, noise).mean()


@torch.no_grad()
def embed(clip: CLIP, batch: Batch) -> tuple[torch.Tensor, TextEncoding]:
    """Run a frozen CLIP over a batch: z_image (B, D) and the captions' encoding."""
    text = clip.encode_text(batch.tokens, batch.mask)
    return clip.encode_image(batch.images), text


def prior_weights(diffusion: GaussianDiffusion, max_weight: float) -> torch.Tensor:
    """Weigh the timesteps of the prior's loss; a uniform answer has the same loss as before.

    Args:
        diffusion: the prior's process.
        max_weight: of a timestep beside pure noise, before all are scaled to a mean of 1; 1 weighs all alike.

    Returns: (T,), float32, of mean 1.
    Paper: Salimans and Ho 2022, sec. 4 (signal-to-noise ratio + 1, which makes the error of x_start that of v), cut off
    as in Hang et al. 2023, sec. 3.4. We differ with it: what tells a cross from a diamond is a small part of z_image,
    and is learned last when all timesteps weigh the same.
    """
    weights = (1 / (1 - diffusion.alphas_cumprod)).clamp(max=max_weight)
    return weights / weights.mean()


def draw_normal(like: torch.Tensor, generator: Noise) -> torch.Tensor:
    """Draw standard normal noise of a tensor's shape, on its device."""
    return rows_of(NORMAL, like.shape, generator).to(like.device)


def draw_integers(end: int, shape: Sequence[int], generator: Noise) -> torch.Tensor:
    """Draw whole numbers from 0 to end - 1, int64, on the generator's device."""
    return rows_of(partial(torch.randint, end), shape, generator)


def draw_mask(batch: Batch, share: float, generator: Noise) -> torch.Tensor:
    """Draw for each example whether it belongs to a share: (B,) bool, on the batch's device."""
    return (rows_of(EVEN, (len(batch.images),), generator) < share).to(batch.images.device)


def rows_of(draw: Callable[..., torch.Tensor], shape: Sequence[int], generator: Noise) -> torch.Tensor:
    """Draw random numbers of a shape, on the generator's device."""
    if isinstance(generator, Share):
        whole = rows_of(draw, (shape[0] * generator.number, *shape[1:]), generator.generator)
        return whole[generator.rank :: generator.number]
    return draw(tuple(shape), generator=generator, device=generator.device)
