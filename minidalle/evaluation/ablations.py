"""Parts of the whole, one by one: what a decoder draws of z_image alone, of the caption alone, of a z_image made up.

Paper: Ramesh et al. 2022, fig. 8 and sec. 5.1 (which of its conditions does the decoder need?), figs. 14 and 15 (what a
z_image does not hold).
"""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from minidalle.device import autocast
from minidalle.diffusion import guided
from minidalle.evaluation.edits import draw_scenes, told
from minidalle.evaluation.metrics import Rate
from minidalle.layers import TextEncoding
from minidalle.pipeline import MiniDalle
from minidalle.samplers import SAMPLERS, Noise, draw_noise, last
from minidalle.world.captions import matches, write
from minidalle.world.render import render
from minidalle.world.scenes import COLORS, SHAPES, Scene, split_of

ATTRIBUTES = ("shape", "color", "size", "place", "background")


@torch.no_grad()
def draw(
    pipe: MiniDalle,
    text: TextEncoding | None,
    z_image: torch.Tensor | None,
    generator: Noise = None,
    guidance_scale: float = 1.25,
    num_steps: int = 8,
) -> torch.Tensor:
    """Draw pictures of one condition of the decoder, or of both.

    Args:
        pipe: the system.
        text: captions (B, ...); None: the caption is hidden.
        z_image: (B, D), unit norm; None: it is hidden.
        generator: where the noise comes from, see MiniDalle.
        guidance_scale: away from what is drawn with both hidden; 1 is off.
        num_steps: of the sampler.

    Returns: images (B, 3, H, W) in [-1, 1], on the CPU.
    Raises: ValueError: when both are hidden, since the number of pictures is not known then.
    """
    if text is None and z_image is None:
        raise ValueError("Both the caption and z_image are hidden; one of them was expected.")
    number = len(z_image) if text is None else len(text.z_text)
    captions = pipe.encode([""] * number) if text is None else text
    z = captions.z_text if z_image is None else z_image.to(pipe.device)

    def predict(x_t: torch.Tensor, t: torch.Tensor, hide: torch.Tensor) -> torch.Tensor:
        times = len(x_t) // number
        hide_image, hide_text = (hide | (condition is None) for condition in (z_image, text))
        with autocast(pipe.device):
            return pipe.decoder(x_t, t, z.repeat(times, 1), captions.tile(times), hide_image, hide_text).float()

    size = pipe.decoder.config.unet.image_size
    noise = draw_noise(z.new_empty(number, 3, size, size), generator)
    model = guided(predict, guidance_scale)
    return (
        last(SAMPLERS["dpm"](pipe.decoder_diffusion, model, noise, num_steps, generator=generator)).clamp(-1, 1).cpu()
    )


def other_ways(scene: Scene, rng: random.Random) -> tuple[Scene, Scene, Scene]:
    """Give the scenes of which a combination is made up: of its colour, of its shape, and of neither.

    Args:
        scene: one object.
        rng: draws another shape and another colour, so that training may show all three scenes.

    Returns: the same object in another shape, in another colour, and in both.
    """
    (item,) = scene.objects
    while True:
        shape, color = rng.choice(SHAPES), rng.choice(list(COLORS))
        pairs = ((item.color, shape), (color, item.shape), (color, shape))
        new = shape != item.shape and color != item.color
        if new and all(split_of([pair], [pair[1]], None) == "seen" for pair in pairs):
            return tuple(replace(scene, objects=(replace(item, color=c, shape=s),)) for c, s in pairs)


@torch.no_grad()
def arithmetic(pipe: MiniDalle, scenes: Sequence[Scene], seed: str = "arithmetic") -> torch.Tensor:
    """Make up a z_image for each scene of one object from three others: colour + shape - neither.

    Returns: (B, D), unit norm. For a red ring: red circle + blue ring - blue circle; no red ring is embedded.
    """
    rng, size = random.Random(seed), pipe.clip.config.image_size
    made_of = zip(*(other_ways(scene, rng) for scene in scenes), strict=True)
    colored, shaped, neither = (pipe.clip.encode_image(render(list(s), size).to(pipe.device)) for s in made_of)
    return F.normalize(colored + shaped - neither, dim=-1)


def abilities(scenes: Sequence[Scene], read: Sequence[Scene | None]) -> dict[str, Rate]:
    """Count how often each attribute of one object is drawn as asked, the pair of shape and colour, and all of them."""
    found = [matches(told(scene), reading) for scene, reading in zip(scenes, read, strict=True)]
    rates = {name: Rate(sum(one[name] for one in found), len(found)) for name in ATTRIBUTES}
    rates["pair"] = Rate(sum(one["shape"] and one["color"] for one in found), len(found))
    rates["exact"] = Rate(sum(all(one.values()) for one in found), len(found))
    rates["readable"] = Rate(sum(one["count"] for one in found), len(found))
    return rates


def product(rates: dict[str, Rate], attributes: Sequence[str] = ATTRIBUTES) -> float:
    """Give the share of pictures that would show all attributes if each were right or wrong by itself.

    An unreadable picture has all wrong at once, so the shares are those of readable ones, times that of these.
    """
    readable = rates["readable"].hits
    shares = [rates[name].hits / readable if readable else 0.0 for name in attributes]
    return rates["readable"].share * math.prod(shares)


def one_object(n: int, split: str, seed: str) -> tuple[list[Scene], list[str]]:
    """Draw scenes of one object, and for each the caption that states all of it."""
    scenes = draw_scenes(n, 0.0, seed, split)
    return scenes, [write(told(scene)) for scene in scenes]
