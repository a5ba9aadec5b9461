"""Rectified flow: straight lines from noise to pictures, and a network that learns their direction.

A picture and noise are joined by a line, x_t = (1 - t) x_start + t noise. Where many lines cross, the network learns
their mean velocity; following it from t = 1 to t = 0 turns noise into pictures. There is no noise schedule to choose.
Paper: Liu et al. 2022, "Flow straight and fast", sec. 2; Lipman et al. 2023, sec. 4; the network: dit.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import repeat
from torch import nn

from minidalle.checks import whole_number
from minidalle.data.batches import Batch
from minidalle.diffusion import Model, guided
from minidalle.losses import EVEN, NORMAL, Noise, draw_mask, draw_normal, mean_of, rows_of
from minidalle.parallel import unwrap
from minidalle.rivals.dit import Flow, FlowConfig
from minidalle.rivals.family import Family, Rival
from minidalle.samplers import draw_noise
from minidalle.training.recipes import StageRecipe
from minidalle.training.stages import Stage

MAX_STEPS = 1000


@dataclass(frozen=True)
class FlowLossConfig:
    """What shapes the loss; the plain one has logit_normal None and root_below None, with even times."""

    p_drop_text: float = 0.1  # share of captions that are hidden, for guidance
    logit_normal: tuple[float, float] | None = (1.2, 1.3)  # mean and deviation of log(t / (1 - t)); None: even times
    root_below: float | None = 0.01  # take the root of each picture's error, but below this leave it a square


def per_picture(numbers: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Append dimensions of size 1 to numbers (B,), so that they multiply a tensor of like's shape."""
    return numbers.view(-1, *[1] * (like.ndim - 1))


def interpolate(x_start: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Give the point at times t (B,) of the lines from data to noise, both (B, ...).

    Paper: Liu et al. 2022, eq. 1, with time reversed: t = 0 is the data, as everywhere in this package.
    """
    return torch.lerp(x_start, noise, per_picture(t, x_start))


def draw_times(number: int, generator: Noise, config: FlowLossConfig) -> torch.Tensor:
    """Draw times (B,) on the generator's device.

    Paper: Esser et al. 2024, sec. 3.1 (logit-normal).
    """
    if config.logit_normal is None:
        return 1 - rows_of(EVEN, (number,), generator)  # never 0, where a velocity cannot be had from a picture
    mean, deviation = config.logit_normal
    return torch.sigmoid(mean + deviation * rows_of(NORMAL, (number,), generator))


def velocity_of(output: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor, prediction: str) -> torch.Tensor:
    """Turn a network's output at times above 0 into a velocity: x_t = x_start + t velocity."""
    return output if prediction == "velocity" else (x_t - output) / per_picture(t, x_t)


def errors_of(
    model: Model, x_t: torch.Tensor, t: torch.Tensor, velocity: torch.Tensor, prediction: str
) -> torch.Tensor:
    """Give the mean squared error (B,) of a network's output, where the line through x_t has a velocity.

    Paper: Liu et al. 2022, eq. 1.
    """
    target = velocity if prediction == "velocity" else x_t - per_picture(t, x_t) * velocity
    return (model(x_t, t).float() - target).square().flatten(1).mean(1)


def flow_loss(model: nn.Module, batch: Batch, generator: Noise, config: FlowLossConfig) -> torch.Tensor:
    """Learn the direction from a picture to noise, at a random point between them.

    Paper: Liu et al. 2022, eq. 1. We differ three times, each a field of a config: the network predicts the picture,
    from which the velocity follows, since a small network learns plain pictures faster (Li and He 2025); times are
    logit-normal, with more noise than even ones, since there it is decided what is drawn and where; and of each
    picture's error the root is taken, so that a small object counts as much as a large one.
    """
    noise, t = draw_normal(batch.images, generator), draw_times(len(batch.images), generator, config)
    t = t.to(batch.images.device)
    hide_text = draw_mask(batch, config.p_drop_text, generator)

    def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return model(x_t, t, batch.tokens, batch.mask, hide_text)

    x_t = interpolate(batch.images, noise, t)
    errors = errors_of(predict, x_t, t, noise - batch.images, unwrap(model, Flow).config.prediction)
    return mean_of(errors, config.root_below)


def euler_sample_loop(
    velocity: Model,
    x_t: torch.Tensor,
    num_steps: int,
    start: torch.Tensor | float = 1.0,
    end: torch.Tensor | float = 0.0,
) -> Iterator[torch.Tensor]:
    """Follow a velocity in even steps of time; each x_t (B, ...) is given, the result last.

    Args:
        velocity: (x_t, t) to the velocity at times t (B,).
        x_t: where to begin (B, ...), at the time start.
        num_steps: 1 or more.
        start, end: times, one for all or (B,) one for each.

    Paper: Liu et al. 2022, sec. 2 (forward Euler, N steps of 1 / N).
    """
    start, end = (torch.as_tensor(time, dtype=x_t.dtype, device=x_t.device).expand(len(x_t)) for time in (start, end))
    size = per_picture((end - start) / num_steps, x_t)
    for step in range(num_steps):
        x_t = x_t + size * velocity(x_t, torch.lerp(start, end, step / num_steps))
        yield x_t


def velocity_field(model: Flow, tokens: torch.Tensor, mask: torch.Tensor, guidance_scale: float = 1.0) -> Model:
    """Give the velocity that a network sees towards pictures of captions (B, L), with guidance.

    The picture that it points at is kept within [-1, 1].
    """
    copies = 1 if guidance_scale == 1 else 2
    mask = repeat(mask, "b l -> (n b) l", n=copies)
    text = model.text(repeat(tokens, "b l -> (n b) l", n=copies), mask)
    output = guided(lambda x_t, t, hide: model.predict(x_t, t, text, mask, hide), guidance_scale)

    def velocity(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        raw = velocity_of(output(x_t, t), x_t, t, model.config.prediction)
        x_start = (x_t - per_picture(t, x_t) * raw).clamp(-1, 1)
        return velocity_of(x_start, x_t, t, "x_start")

    return velocity


def draw(
    rival: Rival,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    generator: Noise,
    num_inference_steps: float,
    guidance_scale: float = 1.0,
) -> torch.Tensor:
    """Draw noise for each caption, and follow the velocity from it to a picture."""
    steps = whole_number(num_inference_steps, "num_inference_steps", 1, MAX_STEPS)
    model = rival.models[rival.family.name]
    size = model.config.image_size
    x_t = draw_noise(tokens.new_empty(len(tokens), 3, size, size, dtype=torch.float32), generator)
    *_, images = euler_sample_loop(velocity_field(model, tokens, mask, guidance_scale), x_t, steps)
    return images


def recipe(steps: int, ema_decay: float) -> StageRecipe:
    """Describe a training."""
    return StageRecipe(
        steps,
        64,
        matrix_lr=0.01,
        lr=2e-3,
        weight_decay=0.1,
        ema_decay=ema_decay,
        loss=FlowLossConfig(),
        full_captions=0.5,
    )


FAMILY = Family(
    name="flow",
    summary="rectified flow with a diffusion transformer",
    stages={"flow": Stage(Flow, flow_loss)},
    models={"flow": FlowConfig()},
    recipes={"quick": {"flow": recipe(1250, 0.99)}, "full": {"flow": recipe(12_500, 0.999)}},
    draw=draw,
    networks=lambda models: {"text encoder": models["flow"].text, "transformer": models["flow"].dit},
    options={"num_inference_steps": 20, "guidance_scale": 2.0},
)
