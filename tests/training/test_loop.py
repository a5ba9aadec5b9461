"""The loop: it learns, and stopping it at any point changes nothing of the result."""

import itertools
import os
import signal
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from minidalle import checkpoint
from minidalle.training import loop, trainer
from minidalle.training.loop import SaveTimer, TrainingError
from minidalle.training.recipes import StageRecipe
from minidalle.training.trainer import average_weights, learning_rate_factor

RECIPE = StageRecipe(steps=30, batch_size=16, matrix_lr=0.02, lr=1e-2, warmup_steps=3, ema_decay=0.9)


def toy() -> nn.Module:
    """Make a small model, always the same."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 1))


fit = partial(loop.fit, progress=False)


def regression(model: nn.Module, step: int) -> torch.Tensor:
    """Give the loss of learning a sum, on examples that depend on the step alone."""
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
    return (model(x) - x.sum(1, keepdim=True)).float().square().mean()


def at(step: int, act: Callable[[], object], loss_at=regression):
    """Do something in the middle of a step."""

    def acting(model: nn.Module, n: int) -> torch.Tensor:
        if n == step:
            act()
        return loss_at(model, n)

    return acting


def times(factor: float, step: int, loss_at=regression):
    """Multiply the loss of one step."""
    return lambda model, n: loss_at(model, n) * (factor if n == step else 1)


@pytest.fixture
def save_every(monkeypatch):
    """Have a training saved after a number of steps, and not of seconds."""

    def every(steps: int) -> None:
        class Counter(SaveTimer):
            def restart(self) -> None:
                self.steps = 0

            def due(self) -> bool:
                self.steps += 1
                return self.steps == steps

        monkeypatch.setattr(loop, "SaveTimer", Counter)

    return every


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def crash() -> None:
    raise OSError("the power is gone")


def weights(*models: nn.Module) -> list[torch.Tensor]:
    return [p for model in models for p in model.state_dict().values()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def uninterrupted(recipe: StageRecipe = RECIPE) -> list[torch.Tensor]:
    """Train in one go: the model's weights and the averaged ones."""
    model = toy()
    return weights(model, fit(model, regression, recipe))


def test_the_learning_rate_rises_stays_and_falls():
    recipe = StageRecipe(steps=100, batch_size=1, matrix_lr=1, lr=1, warmup_steps=10, decay_share=0.4)
    factors = [learning_rate_factor(step, recipe) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10:60] == [1.0] * 50
    assert factors[60:] == pytest.approx([(100 - step) / 40 for step in range(60, 100)])
    assert factors[-1] > 0


@pytest.mark.parametrize(("warmup", "decay"), [(0, 0.5), (3, 0.0), (0, 0.0)])
def test_a_rate_may_do_without_a_rise_or_a_fall(warmup, decay):
    recipe = StageRecipe(steps=10, batch_size=1, matrix_lr=1, lr=1, warmup_steps=warmup, decay_share=decay)
    factors = [learning_rate_factor(step, recipe) for step in range(10)]
    assert factors[:3] == ([1.0] * 3 if warmup == 0 else pytest.approx([1 / 3, 2 / 3, 1]))
    assert factors[3:6] == [1.0] * 3
    assert factors[6:] == ([1.0] * 4 if decay == 0 else pytest.approx([0.8, 0.6, 0.4, 0.2]))


def test_a_notebook_that_forbids_gradients_trains_as_any_other():
    with torch.no_grad():
        found = uninterrupted()
    assert equal(found, uninterrupted())


def test_each_optimizer_gets_its_own_rate(monkeypatch):
    made, make = [], trainer.make_optimizers
    monkeypatch.setattr(trainer, "make_optimizers", lambda *args: made.extend(make(*args)) or made)
    rates = []

    def watched(model: nn.Module, step: int) -> torch.Tensor:
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in made])
        return regression(model, step)

    recipe = StageRecipe(steps=6, batch_size=16, matrix_lr=0.3, lr=0.002, warmup_steps=2)
    fit(toy(), watched, recipe)
    assert [type(optimizer).__name__ for optimizer in made] == ["Muon", "AdamW"]
    for step, (ours, theirs) in enumerate(rates):
        factor = learning_rate_factor(step, recipe)
        assert (ours, theirs) == (pytest.approx(0.3 * factor), pytest.approx(0.002 * factor))


def test_averaged_weights_follow_the_closed_form():
    averaged, model = toy(), toy()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    for _ in range(7):
        average_weights(averaged, model, 0.8)
    for p, start in zip(averaged.parameters(), toy().parameters(), strict=True):
        torch.testing.assert_close(p, start + 1 - 0.8**7)


def test_averaged_weights_begin_with_a_short_memory():
    model = toy()
    recipe = StageRecipe(steps=1, batch_size=16, matrix_lr=0.02, lr=1e-2, warmup_steps=1, ema_decay=0.999)
    averaged = fit(model, regression, recipe)
    for start, p, mean in zip(weights(toy()), weights(model), weights(averaged), strict=True):
        torch.testing.assert_close(mean, start + 0.9 * (p - start))  # a memory of 1 / (0 + 10), not of 0.999


def test_the_loss_falls_and_the_averaged_model_is_the_one_to_use():
    model = toy()
    before = regression(model, 999).item()
    averaged = fit(model, regression, StageRecipe(steps=200, batch_size=16, matrix_lr=0.05, lr=2e-2))
    assert regression(averaged, 999).item() < 0.1 * before
    assert not averaged.training and not any(p.requires_grad for p in averaged.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_matrices_decay_as_the_recipe_says_and_nothing_else_does():
    model = toy()
    recipe = StageRecipe(steps=1, batch_size=1, matrix_lr=0.1, lr=0.1, weight_decay=0.5, warmup_steps=1)
    before = [p.clone() for p in weights(model)]
    fit(model, lambda model, step: sum(0 * p.sum() for p in model.parameters()), recipe)
    kept = 1 - 0.05 * learning_rate_factor(0, recipe)
    assert kept < 1
    for now, was in zip(weights(model), before, strict=True):
        torch.testing.assert_close(now, was * kept if was.ndim == 2 else was)


def test_every_log_line_holds_the_mean_since_the_last():
    model, losses, lines = toy(), [], []

    def recording(model: nn.Module, step: int) -> torch.Tensor:
        loss = regression(model, step)
        losses.append(loss.item())
        return loss

    fit(model, recording, StageRecipe(steps=24, batch_size=16, matrix_lr=0.02, lr=1e-2), on_log=lines.append)
    assert [line["step"] for line in lines] == [10, 20, 24]
    means = [sum(losses[a:b]) / (b - a) for a, b in ((0, 10), (10, 20), (20, 24))]
    assert [line["loss"] for line in lines] == pytest.approx(means, rel=1e-5)
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds) and seconds[0] >= 0


@pytest.mark.parametrize("step", [0, 8, 9, 10, 28, 29])
def test_ctrl_c_ends_a_whole_step_and_resuming_changes_nothing(tmp_path, step):
    """Neither the weights nor the lines of metrics, whose means go over the stop."""
    path, before = tmp_path / "state.safetensors", signal.getsignal(signal.SIGINT)
    model, lines, whole = toy(), [], []
    with pytest.raises(KeyboardInterrupt):
        fit(model, at(step, press_ctrl_c), RECIPE, state_path=path, on_log=lines.append)
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoint.load(path, "training")[1]["step"] == step + 1

    model = toy()
    averaged = fit(model, regression, RECIPE, state_path=path, resume=True, on_log=lines.append)
    assert equal(weights(model, averaged), uninterrupted())
    fit(toy(), regression, RECIPE, on_log=whole.append)
    assert [line["step"] for line in lines] == [line["step"] for line in whole] == [10, 20, 30]
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in whole], rel=1e-6)
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)


def test_ctrl_c_without_a_state_file_still_ends_the_training():
    model = toy()
    with pytest.raises(KeyboardInterrupt):
        fit(model, at(4, press_ctrl_c), RECIPE)


def test_a_crash_costs_the_steps_since_the_last_save_and_nothing_else(tmp_path, save_every):
    save_every(7)
    path, model = tmp_path / "state.safetensors", toy()
    with pytest.raises(OSError, match="power"):
        fit(model, at(17, crash), RECIPE, state_path=path)
    assert checkpoint.load(path, "training")[1]["step"] == 14
    model = toy()
    averaged = fit(model, regression, RECIPE, state_path=path, resume=True)
    assert equal(weights(model, averaged), uninterrupted())


def test_without_resume_a_training_begins_anew(tmp_path, save_every):
    save_every(7)
    path, steps = tmp_path / "state.safetensors", []
    for _ in range(2):
        model = toy()
        fit(model, lambda m, n: (steps.append(n), regression(m, n))[1], RECIPE, state_path=path)
    assert steps == [*range(30), *range(30)]


def test_a_state_of_another_training_is_not_resumed(tmp_path, save_every):
    save_every(7)
    path, model = tmp_path / "state.safetensors", toy()
    fit(model, regression, RECIPE, state_path=path, origin={"seed": 0})
    before = weights(toy())
    model = toy()
    message = r"state\.safetensors belongs to another training \(its seed is 0, 1 was asked\)"
    with pytest.raises(ValueError, match=message):
        fit(model, regression, RECIPE, state_path=path, resume=True, origin={"seed": 1})
    assert equal(weights(model), before)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
@pytest.mark.parametrize("step", [13, 19, 22])
def test_a_loss_that_is_no_number_stops_the_training_at_once(tmp_path, save_every, step, factor):
    save_every(10)
    path, recipe = tmp_path / "state.safetensors", StageRecipe(steps=24, batch_size=16, matrix_lr=0.02, lr=1e-2)
    kept = step // 10 * 10
    with pytest.raises(TrainingError, match=rf"toy: .* not finite at step {step + 1}; step {kept} is kept in .*state"):
        fit(toy(), times(factor, step), recipe, "toy", path)
    tensors, header = checkpoint.load(path, "training")
    assert header["step"] == kept and all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_gradient_that_is_no_number_stops_the_training_before_a_weight_is_moved():
    model = toy()
    model[0].weight.register_hook(lambda gradient: gradient * float("nan") if len(seen) == 6 else gradient)
    seen = []

    def recording(model: nn.Module, step: int) -> torch.Tensor:
        seen.append([p.detach().clone() for p in model.parameters()])
        return regression(model, step)

    with pytest.raises(TrainingError, match="not finite at step 6"):
        fit(model, recording, RECIPE)
    assert len(seen) == 6 and equal(seen[-1], [p.detach() for p in model.parameters()])


def test_a_broken_state_is_not_saved_over_a_good_one(tmp_path, save_every):
    save_every(10)
    path = tmp_path / "state.safetensors"
    with pytest.raises(TrainingError, match="at step 14; step 10 is kept"):
        fit(toy(), at(13, press_ctrl_c, times(float("inf"), 13)), RECIPE, state_path=path)
    assert checkpoint.load(path, "training")[1]["step"] == 10


def test_the_first_steps_failing_says_that_nothing_is_kept():
    with pytest.raises(TrainingError, match="nothing was saved before"):
        fit(toy(), times(float("nan"), 0), RECIPE)


def test_one_huge_gradient_is_no_longer_than_the_recipe_allows(monkeypatch):
    """AdamW divides by what the gradient was, and Muon turns any into one, so what they are handed is watched."""
    handed = []
    real = torch.optim.AdamW.step

    def step(self, *args):
        handed.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
        return real(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    model, whole = toy(), []
    fit(model, at(0, lambda: None), StageRecipe(3, 16, 0.02, 1e-2, clip_norm=0.5))
    model = toy()
    model[3].weight.register_hook(lambda gradient: whole.append(gradient) or gradient)
    fit(model, times(1e6, 1), StageRecipe(3, 16, 0.02, 1e-2, clip_norm=0.5))
    assert all(sum(g.square().sum() for g in gradients).sqrt() <= 0.5 * 1.0001 for gradients in handed)
    assert whole[1].norm() > 1e4


def test_on_the_cpu_losses_are_not_scaled(monkeypatch):
    made = []
    real = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda *args, **options: made.append(real(*args, **options)) or made[-1]
    )
    uninterrupted()
    assert [scaler.is_enabled() for scaler in made] == [False]


def test_where_losses_are_scaled_stopping_changes_nothing_either(tmp_path, monkeypatch):
    # As on a GPU without bfloat16. The first scale overflows, so that steps are skipped until it has been halved often.
    monkeypatch.setattr(trainer, "half_precision", lambda device: torch.float16)
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**30))
    whole, path = uninterrupted(), tmp_path / "state.safetensors"
    assert all(tensor.isfinite().all() for tensor in whole) and not equal(whole[:1], weights(toy())[:1])
    model = toy()
    with pytest.raises(KeyboardInterrupt):
        fit(model, at(15, press_ctrl_c), RECIPE, state_path=path)
    assert checkpoint.load(path, "training")[1]["scaler"]["scale"] < 2.0**30
    model = toy()
    assert equal(weights(model, fit(model, regression, RECIPE, state_path=path, resume=True)), whole)


@pytest.mark.parametrize("layer", [0, 2], ids=["Muon's", "AdamW's"])
@pytest.mark.parametrize("factor", [float("inf"), float("nan")])
def test_a_gradient_that_overflows_stops_the_step_of_all_weights(monkeypatch, layer, factor):
    monkeypatch.setattr(trainer, "half_precision", lambda device: torch.float16)
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=1.0))
    model, seen = toy(), []
    bad = model[layer].weight
    bad.register_hook(lambda gradient: gradient * factor if len(seen) == 6 else gradient)

    def recording(model: nn.Module, step: int) -> torch.Tensor:
        seen.append([p.detach().clone() for p in model.parameters()])
        return regression(model, step)

    fit(model, recording, RECIPE)
    moved = [not equal(before, after) for before, after in itertools.pairwise(seen)]
    assert moved == [step != 5 for step in range(RECIPE.steps - 1)]
    assert all(tensor.isfinite().all() for tensor in seen[-1])


@pytest.mark.parametrize(("before", "after"), [(torch.bfloat16, torch.float16), (torch.float16, torch.bfloat16)])
def test_a_training_goes_on_where_losses_are_scaled_otherwise(tmp_path, monkeypatch, before, after):
    # As from a CPU to a GPU without bfloat16, and back.
    monkeypatch.setattr(trainer, "half_precision", lambda device: before)
    path, model = tmp_path / "state.safetensors", toy()
    with pytest.raises(KeyboardInterrupt):
        fit(model, at(15, press_ctrl_c), RECIPE, state_path=path)
    monkeypatch.setattr(trainer, "half_precision", lambda device: after)
    model, lines = toy(), []
    fit(model, regression, RECIPE, state_path=path, resume=True, on_log=lines.append)
    assert lines[-1]["step"] == RECIPE.steps and all(tensor.isfinite().all() for tensor in weights(model))


def test_a_training_does_not_depend_on_the_global_seed():
    results = []
    for seed in (1, 2):
        model = toy()
        torch.manual_seed(seed)
        results.append(weights(fit(model, regression, RECIPE)))
    assert all(equal(a, b) for a, b in itertools.pairwise(results))
