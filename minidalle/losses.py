"""What each stage of the stack learns: the loss of a training step, with everything that is drawn at random for it."""

from collections.abc import Callable

import torch

from minidalle.clip import CLIP, clip_loss
from minidalle.data.batches import Batch, World
from minidalle.decoder import Decoder
from minidalle.diffusion import GaussianDiffusion
from minidalle.prior import DiffusionPrior
from minidalle.tokenizer import caption_mask
from minidalle.upsampler import Upsampler, blur, crop, enlarge, shrink

LossAt = Callable[[int], torch.Tensor]
SOFTENING = 0.01  # below this root mean squared error, the decoder's loss is an error's square again
MAX_WEIGHT = 5  # of a timestep in the prior's loss, beside pure noise (before all are scaled to a mean of 1)
NOISES = 6  # that each z_image gets in a step of the prior, which reads its caption once for all of them


def step_generator(seed: int, step: int) -> torch.Generator:
    """Make the source of a step's noise; it lives on the CPU, so that every device trains on the same noise."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def clip_stage(clip: CLIP, world: World, batch_size: int) -> LossAt:
    """Learn to match pictures and captions."""
    device = clip.logit_scale.device

    def loss_at(step: int) -> torch.Tensor:
        batch = world.batch(step, batch_size)
        tokens = batch.tokens.to(device)
        z_text, _ = clip.encode_text(tokens)
        return clip_loss(clip.encode_image(batch.images.to(device)), z_text, clip.logit_scale, tokens)

    return loss_at


@torch.no_grad()
def embed(clip: CLIP, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run a frozen CLIP over a batch: z_image (B, D), z_text (B, D), text_states (B, L, W), mask (B, L)."""
    device = clip.logit_scale.device
    tokens = batch.tokens.to(device)
    z_text, text_states = clip.encode_text(tokens)
    return clip.encode_image(batch.images.to(device)), z_text, text_states, caption_mask(tokens)


def prior_stage(
    prior: DiffusionPrior, clip: CLIP, diffusion: GaussianDiffusion, world: World, batch_size: int
) -> LossAt:
    """Learn to find the z_image of a picture that has a given caption.

    We differ: an error counts more where there is little noise (see prior_weights). What tells a cross from a diamond
    is a small part of z_image, and is learned last when all timesteps weigh the same.
    """
    weights = prior_weights(diffusion)

    def loss_at(step: int) -> torch.Tensor:
        z_image, z_text, text_states, mask = embed(clip, world.batch(step, batch_size))
        generator, device = step_generator(world.seed, step), z_image.device
        x_start = prior.scale(z_image).repeat_interleave(NOISES, 0)  # (B * NOISES, D)
        t = torch.randint(diffusion.num_timesteps, (len(x_start),), generator=generator).to(device)
        noise = torch.randn(x_start.shape, generator=generator).to(device)
        drop_text = (torch.rand(batch_size, generator=generator) < prior.config.drop_text).to(device)

        def model(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return prior(z_t, t, text_states, mask, z_text, drop_text)

        return (weights[t] * diffusion.training_loss(model, x_start, t, noise)).mean()

    return loss_at


def prior_weights(diffusion: GaussianDiffusion) -> torch.Tensor:
    """Weigh the timesteps of the prior's loss; who always answers the same still pays the same.

    Returns: (T,), float32, of mean 1.
    Paper: Salimans and Ho 2022, sec. 4 (signal-to-noise ratio + 1, which makes the error of x_start that of v), cut off
    as in Hang et al. 2023, sec. 3.4.
    """
    weights = (1 / (1 - diffusion.alphas_cumprod)).clamp(max=MAX_WEIGHT)
    return weights / weights.mean()


def decoder_stage(decoder: Decoder, clip: CLIP, diffusion: GaussianDiffusion, world: World, batch_size: int) -> LossAt:
    """Learn to draw the picture that a z_image, or a caption, or both describe.

    We differ twice. A timestep is drawn in proportion to its number, not evenly: what is drawn and where is decided
    where there is most noise, and a network that predicts the picture learns the rest on the way. And of each picture's
    error the root is taken, so that a small thing, which can only cause a small error, counts as much as a large one (a
    pseudo-Huber loss as in Song and Dhariwal 2023, sec. 3.3).
    """

    def loss_at(step: int) -> torch.Tensor:
        batch = world.batch(step, batch_size)
        z_image, _, text_states, mask = embed(clip, batch)
        generator, device = step_generator(world.seed, step), z_image.device
        t = (diffusion.num_timesteps * torch.rand(batch_size, generator=generator).sqrt()).long().to(device)
        noise = torch.randn(batch.images.shape, generator=generator).to(device)
        drop_image = (torch.rand(batch_size, generator=generator) < decoder.config.drop_image).to(device)
        drop_text = (torch.rand(batch_size, generator=generator) < decoder.config.drop_text).to(device)

        noise_z = torch.randn(z_image.shape, generator=generator).to(device) / z_image.shape[1] ** 0.5
        told = z_image + decoder.config.image_noise * noise_z

        def model(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return decoder(x_t, t, told, text_states, mask, drop_image, drop_text)

        errors = diffusion.training_loss(model, batch.images.to(device), t, noise)  # (B,), mean squared error of each
        return (errors + SOFTENING**2).sqrt().mean()

    return loss_at


def upsampler_stage(upsampler: Upsampler, diffusion: GaussianDiffusion, world: World, batch_size: int) -> LossAt:
    """Learn to draw a crop of a large picture, shown the same crop of the small one, enlarged and often blurred."""
    config, device = upsampler.config, next(upsampler.parameters()).device

    def loss_at(step: int) -> torch.Tensor:
        images, generator = world.batch(step, batch_size).images, step_generator(world.seed, step)
        low, size = shrink(images, config.factor), config.unet.image_size
        blurred = torch.rand(batch_size, generator=generator) < config.blur_share
        low = torch.where(blurred[:, None, None, None], blur(low, config.blur_sigma), low)
        places = (images.shape[2] - size) // config.factor + 1  # whole pixels of the small picture
        corners = config.factor * torch.randint(places, (batch_size, 2), generator=generator)
        enlarged = crop(enlarge(low, config.factor), corners, size).to(device)
        x_start = crop(images, corners, size).to(device)
        t = torch.randint(diffusion.num_timesteps, (batch_size,), generator=generator).to(device)
        noise = torch.randn(x_start.shape, generator=generator).to(device)

        def model(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return upsampler(x_t, t, enlarged)

        return diffusion.training_loss(model, x_start, t, noise).mean()

    return loss_at
