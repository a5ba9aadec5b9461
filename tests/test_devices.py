"""The same numbers on another device: set MINIDALLE_TEST_DEVICE=cuda (or mps) to ask a GPU; without it, the CPU."""

import copy
import os
from dataclasses import replace

import pytest
import torch
from conftest import MICRO
from torch.utils._python_dispatch import TorchDispatchMode

from minidalle.data.batches import Batch
from minidalle.layers import attend
from minidalle.pipeline import MiniDalle
from minidalle.rivals import FAMILIES
from minidalle.training.graphs import GraphedTrainer, Steps, draw_ahead, make_trainer
from minidalle.training.loop import fit
from minidalle.training.recipes import Preset, fitted
from minidalle.training.stages import KNOWN, STAGES, StageLoss, frozen_parts, noise_seed, stage_source
from minidalle.training.trainer import Trainer
from minidalle.world.captions import TOKENIZER

DEVICE = torch.device(os.environ.get("MINIDALLE_TEST_DEVICE", "cpu"))
EVERY = [*STAGES, *(stage for stage in KNOWN if stage not in STAGES)]  # those of the rivals last


def preset_of(stage: str) -> Preset:
    """Give a small preset that has a stage."""
    if stage in STAGES:
        return MICRO
    preset = fitted(next(family for family in FAMILIES.values() if stage in family.stages).preset(), TOKENIZER)
    stages = {name: replace(how, batch_size=4) for name, how in preset.recipes["quick"].stages.items()}
    return replace(preset, recipes={"quick": replace(preset.recipes["quick"], stages=stages)})


def begin(stage: str, device: torch.device) -> tuple[torch.nn.Module, StageLoss]:
    """Make a stage's model and loss, the same on every device."""
    preset = preset_of(stage)
    torch.manual_seed(0)
    needs = {
        name: KNOWN[name].model_class(preset.models[name]).to(device).requires_grad_(False)
        for name in KNOWN[stage].needs
    }
    model, recipe = KNOWN[stage].model_class(preset.models[stage]).to(device), preset.recipes["quick"]
    source = stage_source(stage, preset, recipe, 0)
    return model, StageLoss(stage, source, recipe.stages[stage], frozen_parts(stage, preset, needs, device), device)


def losses(stage: str, device: torch.device, steps: int = 5) -> list[float]:
    """Train a stage in full precision for some steps and give the loss of each."""
    model, loss_at = begin(stage, device)
    trainer, found = Trainer(model, loss_at.recipe), []
    trainer.use_precision(None)
    for step in range(steps):
        trainer.step(loss_at, step)
        found.append(trainer.mean_loss())
    return found


@pytest.mark.parametrize("stage", EVERY)
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


on_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU: set MINIDALLE_TEST_DEVICE=cuda")


def test_batches_drawn_ahead_are_those_of_the_steps_in_order():
    _, loss_at = begin("clip", torch.device("cpu"))
    drawn = list(draw_ahead(loss_at, range(3, 7)))
    assert len(drawn) == 4
    for step, (images, tokens, mask) in enumerate(drawn, 3):
        batch = loss_at.source.batch(step, loss_at.recipe.batch_size)
        length = batch.tokens.shape[1]
        assert torch.equal(images, batch.images) and tokens.shape[1] == loss_at.source.tokenizer.context_length
        assert torch.equal(tokens[:, :length], batch.tokens) and torch.equal(mask[:, :length], batch.mask)
        assert not mask[:, length:].any()


def test_no_graph_is_made_where_there_is_no_gpu_or_where_losses_are_scaled(monkeypatch):
    model, loss_at = begin("clip", DEVICE)
    assert isinstance(make_trainer(model, loss_at.recipe, loss_at), GraphedTrainer) == (DEVICE.type == "cuda")
    assert type(make_trainer(model, loss_at.recipe, lambda model, step: None)) is Trainer
    for name, value in {"MINIDALLE_GRAPHS": "0", "MINIDALLE_DTYPE": "float16"}.items():
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert type(make_trainer(model, loss_at.recipe, loss_at)) is Trainer


class NoWaiting(TorchDispatchMode):
    """Refuse what makes a CPU wait for a GPU, or copies a number to it, neither of which can be recorded in a graph."""

    WAITS = (
        "_linalg_check_errors",
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "_unique2",
        "equal",
        "lift_fresh",
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run one operation, or refuse it."""
        name = func.overloadpacket.__name__
        chosen = args[1] if name in ("index", "index_put", "index_put_") else ()
        assert name not in self.WAITS, f"{name} makes the CPU wait for the GPU"
        assert all(x is None or x.dtype != torch.bool for x in chosen), f"{name} by a mask makes the CPU wait"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("stage", EVERY)
def test_a_step_never_waits_for_the_gpu(stage):
    model, loss_at = begin(stage, DEVICE)
    batch = loss_at.source.batch(0, loss_at.recipe.batch_size).to(DEVICE)
    step, generator = torch.zeros((), dtype=torch.int64, device=DEVICE), torch.Generator(DEVICE).manual_seed(0)
    loss_at.of(model, batch, generator, step).backward()  # as in a graph's first steps, which may fill caches
    with NoWaiting():
        loss_at.of(model, batch, generator, step).backward()


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x + torch.tensor([1.0, 2.0]),
        torch.linalg.inv,
        torch.nonzero,
    ],
)
def test_what_waits_is_found(wait):
    with NoWaiting(), pytest.raises(AssertionError, match="wait"):
        wait(torch.eye(2, device=DEVICE))


@on_cuda
@pytest.mark.parametrize("stage", EVERY)
def test_a_graph_takes_the_steps_that_its_kernels_take_one_by_one(stage):
    model, loss_at = begin(stage, DEVICE)
    graphed, plain = GraphedTrainer(model, loss_at.recipe), Trainer(copy.deepcopy(model), loss_at.recipe)
    for trainer in (graphed, plain):
        trainer.use_precision(None)
    batches, generator = Steps(loss_at), torch.Generator(DEVICE)

    def same_noise(model: torch.nn.Module, step: int) -> torch.Tensor:
        batch = Batch(*(x.to(DEVICE) for x in batches[step]), captions=[])
        return loss_at.of(model, batch, generator.manual_seed(noise_seed(loss_at.source.seed, step)))

    for step in range(10):
        graphed.step(loss_at, step)
        plain.step(same_noise, step)
        assert graphed.mean_loss() == pytest.approx(plain.mean_loss(), rel=1e-3)
    assert graphed.graph is not None and graphed.first_bad() == 0
    for one, other in zip(graphed.averaged.parameters(), plain.averaged.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-2, atol=1e-3)


@on_cuda
def test_a_graphed_training_that_was_stopped_ends_with_the_weights_of_one_that_was_not(tmp_path):
    model, loss_at = begin("prior", DEVICE)
    recipe = loss_at.recipe
    whole = fit(model, loss_at, recipe, progress=False)
    model, loss_at = begin("prior", DEVICE)

    trainer = GraphedTrainer(model, recipe)
    for step in range(6):
        trainer.step(loss_at, step)
    trainer.save(tmp_path / "state.safetensors", 6, 1.0, None)
    model, loss_at = begin("prior", DEVICE)
    resumed = fit(model, loss_at, recipe, state_path=tmp_path / "state.safetensors", resume=True, progress=False)
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))
