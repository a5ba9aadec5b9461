"""The same numbers on another device: set MINIDALLE_TEST_DEVICE=cuda (or mps) to ask a GPU; without it, the CPU."""

import os

import pytest
import torch
from conftest import MICRO

from minidalle.layers import attend
from minidalle.pipeline import MiniDalle
from minidalle.training.loop import Trainer
from minidalle.training.stages import STAGES, frozen_parts, stage_loss, stage_source

DEVICE = torch.device(os.environ.get("MINIDALLE_TEST_DEVICE", "cpu"))


def losses(stage: str, device: torch.device, steps: int = 5) -> list[float]:
    """Train a stage in full precision for some steps and give the loss of each."""
    recipe = MICRO.recipes["quick"]
    torch.manual_seed(0)
    clip = STAGES["clip"].model_class(MICRO.models["clip"]).to(device).requires_grad_(False)
    model = STAGES[stage].model_class(MICRO.models[stage]).to(device)
    frozen = frozen_parts(stage, MICRO, {"clip": clip} if STAGES[stage].needs else {}, device)
    loss_at = stage_loss(stage, stage_source(stage, MICRO, recipe, 0), recipe.stages[stage], frozen, device)
    trainer, found = Trainer(model, recipe.stages[stage]), []
    trainer.use_precision(None)
    for step in range(steps):
        trainer.step(loss_at, step)
        found.append(trainer.mean_loss())
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_learns_the_same_on_every_device(stage):
    assert losses(stage, DEVICE) == pytest.approx(losses(stage, torch.device("cpu")), rel=2e-3)


def test_a_seed_of_the_cpu_draws_the_same_picture_on_every_device(micro_run):
    drawn = []
    for device in (DEVICE.type, "cpu"):
        pipe = MiniDalle.from_pretrained(micro_run, device)
        drawn.append(pipe("a red circle", generator=torch.Generator().manual_seed(0), num_inference_steps=4).tensor)
    assert torch.allclose(*drawn, atol=0.05)


def test_attention_is_the_formula_on_every_device():
    q, k, v = (torch.randn(2, 3, 5, 8) for _ in range(3))
    mask = torch.rand(2, 1, 5, 5) < 0.7
    mask |= torch.eye(5, dtype=torch.bool)
    wanted = (q @ k.mT / 8**0.5).masked_fill(~mask, -torch.inf).softmax(-1) @ v
    found = attend(*(x.to(DEVICE) for x in (q, k, v, mask))).cpu()
    assert torch.allclose(found, wanted, atol=1e-3)
