"""Rectified flow in few steps: a student learns where its teacher, a trained flow, goes in many.

Time is cut into windows. From the beginning of one, a noised picture, the teacher takes small steps to its end, and
the student learns the straight line between the two. One window, from noise to picture, is reflow.
Paper: Liu et al. 2022, sec. 2 (reflow, distillation); windows: Yan et al. 2024 (PeRFlow).
"""

from dataclasses import dataclass

import torch
from torch import nn

from minidalle.data.batches import Batch, Source
from minidalle.losses import EVEN, Noise, draw_mask, draw_normal, mean_of, rows_of
from minidalle.parallel import unwrap
from minidalle.rivals import flow as teacher
from minidalle.rivals.dit import Flow
from minidalle.rivals.family import Family
from minidalle.rivals.flow import draw, errors_of, euler_sample_loop, interpolate, velocity_field
from minidalle.training.recipes import StageRecipe
from minidalle.training.stages import Stage

STEPS = 4  # in which the student draws


class FewFlow(Flow):
    """A network that was taught to draw in few steps."""

    kind = "flow_few"


@dataclass(frozen=True)
class FewLossConfig:
    """What shapes the student's loss; that of reflow has windows 1, p_beginning 0 and root_below None."""

    windows: int = STEPS  # into which time is cut; in as many steps the student draws
    teacher_steps: int = 3  # in which the teacher crosses a window
    guidance_scale: float = 2.0  # the teacher's; the student needs none
    p_beginning: float = 1.0  # share of pictures learned at the beginning of a window (1: distillation), not within it
    root_below: float | None = 0.01  # as in the teacher's loss


def copy_weights(model: nn.Module, source: Source, flow: Flow) -> None:
    """Begin with the teacher's weights."""
    model.load_state_dict(flow.state_dict())


@torch.no_grad()
def cross(
    flow: Flow, batch: Batch, x_t: torch.Tensor, start: torch.Tensor, end: torch.Tensor, config: FewLossConfig
) -> torch.Tensor:
    """Let the teacher go from x_t (B, 3, S, S) at times start (B,) to times end (B,); it adds no noise."""
    velocity = velocity_field(flow, batch.tokens, batch.mask, config.guidance_scale)
    *_, x_end = euler_sample_loop(velocity, x_t, config.teacher_steps, start, end)
    return x_end


def flow_few_loss(model: nn.Module, batch: Batch, generator: Noise, config: FewLossConfig, flow: Flow) -> torch.Tensor:
    """Learn the straight line from where the teacher begins to where it ends, within a random window.

    Paper: Liu et al. 2022, sec. 2 (reflow: pairs of noise and what is drawn from it). We differ: with windows, a
    picture of the world is noised as far as a window's beginning, and the teacher crosses that window alone, which
    takes it a few steps and not all; and the student learns at the beginnings alone, where it is asked (distillation).
    """
    noise, device = draw_normal(batch.images, generator), batch.images.device
    window = (config.windows * rows_of(EVEN, (len(noise),), generator)).floor().to(device)
    share = rows_of(EVEN, (len(noise),), generator).to(device)  # of the window that is behind
    share = share.masked_fill(draw_mask(batch, config.p_beginning, generator), 0.0)
    start, end = (window + 1) / config.windows, window / config.windows
    x_start = interpolate(batch.images, noise, start)
    x_end = cross(flow, batch, x_start, start, end, config)

    def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return model(x_t, t, batch.tokens, batch.mask)

    x_t, t = interpolate(x_start, x_end, share), torch.lerp(start, end, share)
    velocity = (x_start - x_end) * config.windows
    errors = errors_of(predict, x_t, t, velocity, unwrap(model, Flow).config.prediction)
    return mean_of(errors, config.root_below)


def recipe(steps: int, ema_decay: float) -> StageRecipe:
    """Describe a training."""
    return StageRecipe(steps, 32, matrix_lr=0.005, lr=1e-3, ema_decay=ema_decay, loss=FewLossConfig())


RECIPES = {"quick": recipe(340, 0.98), "full": recipe(3_400, 0.998)}
FAMILY = Family(
    name="flow_few",
    summary="rectified flow, taught to draw in four steps",
    stages={**teacher.FAMILY.stages, "flow_few": Stage(FewFlow, flow_few_loss, needs=("flow",), before=copy_weights)},
    models={**teacher.FAMILY.models, "flow_few": teacher.FAMILY.models["flow"]},
    recipes={name: {**teacher.FAMILY.recipes[name], "flow_few": how} for name, how in RECIPES.items()},
    draw=draw,
    networks=lambda models: {"text encoder": models["flow_few"].text, "transformer": models["flow_few"].dit},
    options={"num_inference_steps": STEPS},
    teachers=("flow",),
)
