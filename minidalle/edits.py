"""What a trained system does with pictures: invert, vary, interpolate, change by words, compose.

A picture is kept as its bipartite latent: z_image, what CLIP sees of it, and x_T, the noise from which the decoder
draws exactly it, with all that z_image leaves out. Paper: Ramesh et al. 2022, sec. 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat

from minidalle.checks import check_noise, finite_number, texts, whole_number
from minidalle.device import autocast
from minidalle.diffusion import Model
from minidalle.layers import TextEncoding, scale_embedding
from minidalle.pipeline import CANDIDATE_MARGIN, NUM_CANDIDATES, MiniDalle
from minidalle.prior import DiffusionPrior, choose_candidate
from minidalle.samplers import (
    Noise,
    ddim_inversion_loop,
    ddim_sample_loop,
    ddpm_sample_loop,
    dpm_solver_sample_loop,
    draw_noise,
    last,
    start_midway,
)

STEPS = 16  # of the decoder, there and back
PRIOR_STEPS = 32
TEXT_SHARE = 0.35  # of the way from a picture to a text difference; the paper's are 0.25 to 0.5
MAX_PICTURES = 1024  # of a call, which bounds the memory


@dataclass(frozen=True)
class Latent:
    """A picture as the decoder sees it."""

    z_image: torch.Tensor  # (B, D), unit norm
    noise: torch.Tensor  # (B, 3, H, W), x_T in the paper


def conditioned(
    pipe: MiniDalle, z_image: torch.Tensor, text: TextEncoding | None = None, guidance_scale: float = 1.0
) -> Model:
    """Make the decoder a function of x_t and t.

    Args:
        pipe: whose decoder it is.
        z_image: (B, D), unit norm.
        text: captions (B, ...); None: z_image is all that it is conditioned on.
        guidance_scale: how far from the unconditional output it is pushed; 1 is off.
    """
    scale, without = finite_number(guidance_scale, "guidance_scale"), text is None
    text = pipe.encode([""] * len(z_image)) if text is None else text
    twice = 1 if scale == 1 else 2  # with conditions, and without
    z, captions = repeat(z_image, "b d -> (n b) d", n=twice), text.tile(twice)
    hide_image = torch.arange(len(z), device=z.device) >= len(z_image)
    hide_text = torch.ones_like(hide_image) if without else hide_image

    def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with autocast(pipe.device):
            out = pipe.decoder(x_t.repeat(twice, 1, 1, 1), t.repeat(twice), z, captions, hide_image, hide_text).float()
        return out if twice == 1 else out[len(x_t) :] + scale * (out[: len(x_t)] - out[len(x_t) :])

    return predict


@torch.no_grad()
def invert(pipe: MiniDalle, images: torch.Tensor, num_steps: int = STEPS) -> Latent:
    """Find the latent of pictures: z_image by CLIP, x_T by running DDIM backwards, conditioned on z_image.

    Args:
        pipe: the system.
        images: (B, 3, H, W) in [-1, 1], of the decoder's size.
        num_steps: of DDIM, 2 to 1000; reconstruct takes as many.

    Raises: ValueError: when the pictures are of another size or type, or not finite.
    Paper: sec. 3.1; Dhariwal and Nichol 2021, appendix F.
    """
    images = checked_images(pipe, images)
    with autocast(pipe.device):
        z_image = pipe.clip.encode_image(images).float()
    loop = ddim_inversion_loop(pipe.decoder_diffusion, conditioned(pipe, z_image), images, num_steps)
    return Latent(z_image, last(loop))


@torch.no_grad()
def reconstruct(
    pipe: MiniDalle, latent: Latent, num_steps: int = STEPS, eta: float = 0.0, generator: Noise = None
) -> torch.Tensor:
    """Draw latents: with eta 0 the pictures that they are of, above it others with the same z_image.

    Args:
        pipe: the system that inverted them.
        latent: of B pictures.
        num_steps: of DDIM.
        eta: how much fresh noise takes the place of old at each step, 0 to 1.
        generator: of that noise: one for all, or one for each picture.

    Returns: (B, 3, H, W) in [-1, 1], on the CPU.
    """
    eta = share_of(eta, "eta")
    check_noise(generator, len(latent.noise))
    model = conditioned(pipe, latent.z_image)
    loop = ddim_sample_loop(pipe.decoder_diffusion, model, latent.noise, num_steps, generator=generator, eta=eta)
    return finished(last(loop))


@torch.no_grad()
def variations(
    pipe: MiniDalle,
    images: torch.Tensor,
    number: int = 4,
    eta: float = 1.0,
    num_steps: int = STEPS,
    generator: Noise = None,
    strength: float = 0.0,
    prompt: str | Sequence[str] | None = None,
) -> torch.Tensor:
    """Draw several pictures with the z_image of each picture: what CLIP sees stays, the rest is drawn anew.

    Args:
        pipe: the system.
        images: (B, 3, H, W) in [-1, 1].
        number: of variations of each.
        eta: 0 to 1; with 0 they are all the picture itself.
        num_steps: of DDIM.
        generator: of the fresh noise: one for all, or one for each of the B times number pictures.
        strength: how much of z_image is drawn anew too, by the prior, 0 to 1; see redraw.
        prompt: what is to stay where strength is above 0, one caption or B.

    Returns: (B, number, 3, H, W) in [-1, 1].
    Paper: sec. 3.1 and fig. 3, which is strength 0. We differ above it: CLIP sees nearly all of a small picture, so
    little is left to vary.
    """
    number = whole_number(number, "The number of variations", 1, MAX_PICTURES)
    strength, latent = share_of(strength, "strength"), invert(pipe, images, num_steps)
    z_image, start = (x.repeat_interleave(number, 0) for x in (latent.z_image, latent.noise))
    check_noise(generator, len(z_image))
    if strength > 0:
        text = None if prompt is None else encoded(pipe, prompt, len(latent.z_image)).repeat(number)
        z_image = redraw(pipe, z_image, strength, text, generator)
    drawn = reconstruct(pipe, Latent(z_image, start), num_steps, eta, generator)
    return rearrange(drawn, "(b n) c h w -> b n c h w", n=number)


@torch.no_grad()
def redraw(
    pipe: MiniDalle, z_image: torch.Tensor, strength: float, text: TextEncoding | None = None, generator: Noise = None
) -> torch.Tensor:
    """Noise z_image (B, D) part of the way, and let the prior clean it again, given captions (B, ...) or nothing.

    Args:
        pipe: the system, with the diffusion prior.
        z_image: (B, D), unit norm.
        strength: share of the prior's steps that are taken, 0 to 1.
        text: what the pictures show; None: the prior is not conditioned on captions.
        generator: of the noise.

    Returns: (B, D), unit norm.
    Raises: ValueError: when the prior is the autoregressive one, which knows no noise.
    Paper: Meng et al. 2022 (SDEdit), there for pictures.
    """
    need_diffusion(pipe, "Drawing a part of z_image anew")
    skip = PRIOR_STEPS - round(strength * PRIOR_STEPS)
    if skip == PRIOR_STEPS:
        return z_image
    x_start = scale_embedding(z_image)[:, None]  # (B, 1, D)
    hide = torch.full((len(z_image),), text is None, device=z_image.device)
    text = pipe.encode([""] * len(z_image)) if text is None else text

    def predict(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return pipe.prior(z_t, t, text, hide)

    noised = start_midway(pipe.prior_diffusion, x_start, PRIOR_STEPS, skip, generator)
    loop = ddpm_sample_loop(pipe.prior_diffusion, predict, noised, PRIOR_STEPS, False, generator, skip)
    return F.normalize(last(loop).float()[:, 0], dim=-1)


def need_diffusion(pipe: MiniDalle, what: str) -> None:
    """Raise ValueError unless the system has the diffusion prior."""
    if not isinstance(pipe.prior, DiffusionPrior):
        raise ValueError(f"{what} needs the diffusion prior, and this system has the other: load it with that one.")


def slerp(first: torch.Tensor, second: torch.Tensor, share: float | torch.Tensor) -> torch.Tensor:
    """Go a share of the way from one vector to another, at even speed along the arc between them.

    Args:
        first, second: (B, ...); each example is one vector, of any length.
        share: 0 gives the first, 1 the second; a number, or one for each example (B,).

    Returns: (B, ...). Lengths go evenly from the one to the other. Paper: Shoemake 1985; sec. 3.2.
    """
    a, b = first.flatten(1), second.flatten(1)
    share = torch.as_tensor(share, dtype=a.dtype, device=a.device).expand(len(a))[:, None]
    lengths = (1 - share) * a.norm(dim=1, keepdim=True) + share * b.norm(dim=1, keepdim=True)
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    angle = 2 * torch.atan2((a - b).norm(dim=1, keepdim=True), (a + b).norm(dim=1, keepdim=True))
    sine = angle.sin()
    arc = ((1 - share) * angle).sin() / sine * a + (share * angle).sin() / sine * b
    mixed = torch.where(sine > 1e-6, arc, F.normalize((1 - share) * a + share * b, dim=1))  # where there is no arc
    return (lengths * mixed).view_as(first)


@torch.no_grad()
def interpolate(
    pipe: MiniDalle,
    first: torch.Tensor,
    second: torch.Tensor,
    number: int = 8,
    noise: str = "slerp",
    num_steps: int = STEPS,
    generator: Noise = None,
) -> torch.Tensor:
    """Draw the pictures between two, by slerp of their z_image.

    Args:
        pipe: the system.
        first, second: a picture each, (1, 3, H, W) in [-1, 1].
        number: of pictures, 2 or more.
        noise: "slerp": x_T goes from the one's to the other's, so that both ends are the pictures themselves; "fixed":
            one random x_T for all, so that nothing changes but what z_image changes.
        num_steps: of DDIM.
        generator: of the fixed noise.

    Returns: (number, 3, H, W) in [-1, 1].
    Paper: sec. 3.2 and fig. 4.
    """
    number = whole_number(number, "The number of pictures", 2, MAX_PICTURES)
    if noise not in ("slerp", "fixed"):
        raise ValueError(f'"{noise}" is no way to treat x_T; choose slerp or fixed.')
    if len(first) != 1 or len(second) != 1:
        raise ValueError(f"{len(first)} and {len(second)} pictures were given; one and one were expected.")
    latent = invert(pipe, torch.cat([first, second]), num_steps)
    shares = torch.linspace(0, 1, number, device=pipe.device)
    z_image = between(latent.z_image, shares)
    if noise == "slerp":
        start = between(latent.noise, shares)
    else:
        start = draw_noise(latent.noise[:1], generator).expand(number, -1, -1, -1)
    return reconstruct(pipe, Latent(z_image, start), num_steps)


def between(ends: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Go from the first of two (2, ...) to the second, by shares (N,): (N, ...)."""
    first, second = (end.expand(len(shares), *end.shape) for end in ends)
    return slerp(first, second, shares)


@torch.no_grad()
def text_diff(
    pipe: MiniDalle,
    images: torch.Tensor,
    before: str | Sequence[str],
    after: str | Sequence[str],
    share: float = TEXT_SHARE,
    num_steps: int = STEPS,
) -> torch.Tensor:
    """Change pictures by the difference of two captions: z_image moves towards it, x_T stays.

    Args:
        pipe: the system.
        images: (B, 3, H, W) in [-1, 1].
        before: what is to change, one caption or B.
        after: what it is to become, likewise.
        share: of the way along the arc to the normed difference of both z_text, 0 to 1.
        num_steps: of DDIM.

    Returns: (B, 3, H, W) in [-1, 1].
    Raises: ValueError: when a word is unknown, or both captions say the same.
    Paper: sec. 3.3 and fig. 5.
    """
    share = share_of(share, "The share of the text difference")
    latent = invert(pipe, images, num_steps)
    old, new = (encoded(pipe, captions, len(latent.z_image)).z_text for captions in (before, after))
    if (gaps := (new - old).norm(dim=1)).min() < 1e-4:
        raise ValueError(f"Captions number {int(gaps.argmin())} say the same before and after: there is no difference.")
    z_image = slerp(latent.z_image, F.normalize(new - old, dim=1), share)
    return reconstruct(pipe, Latent(z_image, latent.noise), num_steps)


@torch.no_grad()
def compose(
    pipe: MiniDalle,
    prompts: Sequence[str | Sequence[str]],
    number: int = 1,
    num_steps: int = STEPS,
    guidance_scale: float = 1.25,
    prior_guidance_scale: float = 1.5,
    generator: Noise = None,
) -> torch.Tensor:
    """Draw pictures that show what several captions say, each a condition of its own.

    A prediction given one caption, minus that without, points to where the caption becomes likelier; the sum of all
    such arrows points to where all do. They are added in the prior, which then finds one z_image for all. (Added in the
    decoder, between a z_image for each caption, they point to different pictures.)

    Args:
        pipe: the system, with the diffusion prior.
        prompts: captions of one and the same picture, one or more; each may be a list with one for each picture.
        number: of pictures.
        num_steps: of the decoder.
        guidance_scale, prior_guidance_scale: of the decoder, and of each caption in the prior.
        generator: one for all pictures, or one for each.

    Returns: (number, 3, H, W) in [-1, 1].
    Paper: Liu et al. 2022, "Compositional visual generation with composable diffusion models", eq. 11.
    """
    need_diffusion(pipe, "Composing")
    number = whole_number(number, "The number of pictures", 1, MAX_PICTURES)
    check_noise(generator, number)
    if isinstance(prompts, str) or not prompts:
        raise ValueError("There is nothing to compose: give a list of captions.")
    text = pipe.encode([one for prompt in prompts for one in captions_of(pipe, prompt, number)])
    z_image = compose_z(pipe, text, number, prior_guidance_scale, generator)
    size = pipe.decoder.config.unet.image_size
    noise = draw_noise(z_image.new_empty(number, 3, size, size), generator)
    model = conditioned(pipe, z_image, guidance_scale=guidance_scale)
    return finished(last(dpm_solver_sample_loop(pipe.decoder_diffusion, model, noise, num_steps)))


def compose_z(
    pipe: MiniDalle, text: TextEncoding, number: int, guidance_scale: float, generator: Noise
) -> torch.Tensor:
    """Find z_image that fit several captions each, by the sum of the prior's arrows.

    Args:
        pipe: the system, with the diffusion prior.
        text: the first caption of each picture, then the second of each, and so on: (captions * number, ...).
        number: of pictures.
        guidance_scale: of each caption.
        generator: of the noise.

    Returns: (number, D), unit norm.
    """
    scale, count = finite_number(guidance_scale, "prior_guidance_scale"), len(text.z_text) // number
    rows = text.map(lambda x: torch.cat([x, x[:number]]))  # the last are hidden
    hide = torch.arange(len(rows.z_text), device=pipe.device) >= count * number

    def predict(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        *conds, uncond = pipe.prior(z_t.repeat(count + 1, 1, 1), t.repeat(count + 1), rows, hide).chunk(count + 1)
        return uncond + sum(scale * (cond - uncond) for cond in conds)

    noise = draw_noise(text.z_text.new_empty(number, NUM_CANDIDATES, text.z_text.shape[1]), generator)
    loop = ddpm_sample_loop(pipe.prior_diffusion, predict, noise, PRIOR_STEPS, False, generator)
    middle = F.normalize(text.z_text.view(count, number, -1).sum(0), dim=-1)  # near it, the cosines add up to most
    return choose_candidate(F.normalize(last(loop).float(), dim=-1), middle, CANDIDATE_MARGIN)


def checked_images(pipe: MiniDalle, images: torch.Tensor) -> torch.Tensor:
    """Take pictures that the decoder could have drawn, and move them to its device.

    Raises: ValueError: says what was found and what was expected.
    """
    size = pipe.decoder.config.unet.image_size
    if not isinstance(images, torch.Tensor):
        raise ValueError(f"The pictures are of type {type(images).__name__}; a tensor was expected: see from_pil.")
    if images.ndim != 4 or images.shape[1:] != (3, size, size) or not images.is_floating_point():
        found = f"{tuple(images.shape)}, {images.dtype}".replace("torch.", "")
        raise ValueError(f"The pictures are {found}; floats of shape (B, 3, {size}, {size}) were expected: resize.")
    if not 1 <= len(images) <= MAX_PICTURES:
        raise ValueError(f"There are {len(images)} pictures; 1 to {MAX_PICTURES} were expected.")
    if not (images.abs() <= 1).all():  # nor where one is not a number
        raise ValueError("The pictures hold values outside -1 to 1: bring them into that range.")
    return images.detach().to(pipe.device, torch.float32)


def encoded(pipe: MiniDalle, prompts: str | Sequence[str], number: int) -> TextEncoding:
    """Encode one prompt for all pictures, or one for each."""
    return pipe.encode(captions_of(pipe, prompts, number))


def captions_of(pipe: MiniDalle, prompts: str | Sequence[str], number: int) -> list[str]:
    """Bring one prompt for all pictures, or one for each, into the words that the models know.

    Raises: ValueError: when a prompt is not understood, or there is another number of them.
    """
    captions = pipe.captions(texts(prompts, "The prompt"))
    if len(captions) not in (1, number):
        raise ValueError(f"There are {len(captions)} prompts and {number} pictures: give one, or one for each.")
    return captions if len(captions) == number else captions * number


def share_of(value: float, what: str) -> float:
    """Take a number from 0 to 1."""
    number = finite_number(value, what)
    if not 0 <= number <= 1:
        raise ValueError(f"{what} is {number:g}; 0 to 1 was expected.")
    return number


def finished(images: torch.Tensor) -> torch.Tensor:
    """Bring drawn pictures to [-1, 1] and to the CPU."""
    return images.float().clamp(-1, 1).cpu()
