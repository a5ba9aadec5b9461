"""Painting a part of a picture anew, and continuing a picture beyond its sides.

Paper: GLIDE (Nichol et al. 2021, sec. 4), whose model is trained for it. We differ: any decoder serves, since what is
known of the picture is put in at every step.
"""

from collections.abc import Sequence

import torch

from minidalle.checks import check_noise, whole_number
from minidalle.diffusion import GaussianDiffusion, Model
from minidalle.edits import STEPS, checked_images, conditioned, encoded, finished
from minidalle.pipeline import MiniDalle
from minidalle.samplers import Noise, ddpm_sample_loop, draw_noise, last

SIDES = {"left": (0, -1), "right": (0, 1), "top": (-1, 0), "bottom": (1, 0)}  # which way a picture is continued


@torch.no_grad()
def inpaint(
    pipe: MiniDalle,
    images: torch.Tensor,
    mask: torch.Tensor,
    prompt: str | Sequence[str],
    num_steps: int = STEPS,
    guidance_scale: float = 1.25,
    prior_guidance_scale: float = 1.5,
    generator: Noise = None,
) -> torch.Tensor:
    """Repaint a region of pictures, so that the whole shows a prompt.

    At every step the network's estimate of the picture is replaced outside the region by what is known of it, and the
    next x_t is drawn from the posterior given that; so what is painted fits to what is kept.

    Args:
        pipe: the system.
        images: (B, 3, H, W) in [-1, 1].
        mask: (H, W) or (B, H, W) bool, True where it is repainted.
        prompt: of the whole picture, one or B.
        num_steps: of DDPM.
        guidance_scale, prior_guidance_scale: of decoder and prior.
        generator: one for all pictures, or one for each.

    Returns: (B, 3, H, W) in [-1, 1]; outside the mask every pixel is as it was, exactly.
    Raises: ValueError: when the mask is of another size, or of nothing, or of everything.
    Paper: GLIDE (Nichol et al. 2021, sec. 4); Sohl-Dickstein et al. 2015, sec. 2.5.
    """
    kept = images
    images = checked_images(pipe, images)
    mask = checked_mask(mask, images).to(pipe.device)
    check_noise(generator, len(images))
    text = encoded(pipe, prompt, len(images))
    z_image = pipe.sample_prior(text, guidance_scale=prior_guidance_scale, generator=generator)
    model = keeping(pipe.decoder_diffusion, conditioned(pipe, z_image, text, guidance_scale), images, mask)
    noise = draw_noise(images, generator)
    drawn = finished(last(ddpm_sample_loop(pipe.decoder_diffusion, model, noise, num_steps, generator=generator)))
    return torch.where(mask.cpu(), drawn, kept.detach().float().cpu())


def keeping(diffusion: GaussianDiffusion, model: Model, images: torch.Tensor, mask: torch.Tensor) -> Model:
    """Make a model that knows what lies outside a mask, whatever it is to predict.

    Args:
        diffusion: the process, which knows what the output means.
        model: (x_t, t) to output.
        images: (B, 3, H, W) in [-1, 1].
        mask: (B, 1, H, W) bool, True where nothing is known.
    """

    def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x_start = torch.where(mask, diffusion.p_x_start(model, x_t, t, clip_x_start=True), images)
        return diffusion.target(x_start, diffusion.pred_eps(x_start, x_t, t), t)

    return predict


def outpaint(
    pipe: MiniDalle, images: torch.Tensor, prompt: str | Sequence[str], side: str = "right", pixels: int = 16, **options
) -> torch.Tensor:
    """Continue pictures beyond one of their sides.

    Args:
        pipe: the system.
        images: (B, 3, H, W) in [-1, 1].
        prompt: what the continued end shows: the last H x W pixels on that side, old and new together.
        side: left, right, top or bottom.
        pixels: that are added, fewer than the picture has along that side.
        options: those of inpaint.

    Returns: (B, 3, H, W + pixels), or (B, 3, H + pixels, W); the old part is as it was, exactly.
    """
    if side not in SIDES:
        raise ValueError(f'"{side}" is no side of a picture; choose one of {", ".join(SIDES)}.')
    checked_images(pipe, images)
    size = images.shape[-1]
    pixels, (down, across) = whole_number(pixels, "The number of added pixels", 1, size - 1), SIDES[side]
    axis, forward = (-2, down > 0) if down else (-1, across > 0)
    shift = -pixels if forward else pixels
    window, new = images.roll(shift, axis), torch.zeros(size, size, dtype=torch.bool)
    new.narrow(axis, size - pixels if forward else 0, pixels).fill_(True)
    painted = inpaint(pipe, window, new, prompt, **options)
    strip = painted.narrow(axis, size - pixels if forward else 0, pixels)
    old = images.detach().float().cpu()
    return torch.cat([old, strip] if forward else [strip, old], dim=axis)


def checked_mask(mask: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Take a mask (H, W) or (B, H, W) bool of pictures: (B, 1, H, W).

    Raises: ValueError: when it has another size or type, or leaves nothing to paint or nothing to keep.
    """
    shapes = [tuple(images.shape[-2:]), (len(images), *images.shape[-2:])]
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
        found = str(getattr(mask, "dtype", type(mask).__name__)).replace("torch.", "")
        raise ValueError(f"The mask is of type {found}; a tensor of truth values was expected.")
    if tuple(mask.shape) not in shapes:
        expected = " or ".join(map(str, shapes))
        raise ValueError(f"The mask has shape {tuple(mask.shape)}; {expected} was expected, as the pictures have.")
    mask = mask.expand(len(images), *mask.shape[-2:])
    share = mask.flatten(1).float().mean(1)
    if share.min() == 0:
        raise ValueError("The mask is empty: mark what is to be painted.")
    if share.max() == 1:
        raise ValueError("The mask covers everything, so nothing of the picture is kept: draw the prompt instead.")
    return mask[:, None]
