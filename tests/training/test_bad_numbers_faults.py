"""Numbers that are not finite: noticed at the step where they arise, and never kept in place of good ones."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from minidalle import checkpoint
from minidalle.checkpoint import CheckpointError
from minidalle.training import loop
from minidalle.training.loop import TrainingError, fit
from minidalle.training.optim import Muon
from minidalle.training.recipes import StageRecipe
from minidalle.training.state import load_state, read_state, save_state
from minidalle.training.trainer import MAX_SKIPS, Trainer

RECIPE = StageRecipe(steps=25, batch_size=4, matrix_lr=0.02, lr=1e-2, warmup_steps=3)
BAD = [float("nan"), float("inf"), float("-inf")]


def toy() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1))


def loss_at(model: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(step))
    return (model(x) - x.sum(1, keepdim=True)).float().square().mean()


class Gradient(torch.autograd.Function):
    """Hand a number on as it is, and another gradient back."""

    @staticmethod
    def forward(context, x, factor):
        context.factor = factor
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * context.factor, None


def spoil_picture(model, step, bad):
    x = torch.randn(4, 4)
    x[2, 1] = bad
    return model(x).square().mean()


SPOILT = {
    "loss": lambda model, step, bad: loss_at(model, step) + bad,
    "gradient": lambda model, step, bad: Gradient.apply(loss_at(model, step), bad),
    "picture": spoil_picture,
}


def spoilt(kind: str, at: int, bad: float = float("nan"), last: int = 10**9):
    def loss(model: nn.Module, step: int) -> torch.Tensor:
        return SPOILT[kind](model, step, bad) if at <= step + 1 <= last else loss_at(model, step)

    return loss


def finite(*models: nn.Module) -> bool:
    return all(p.isfinite().all() for model in models for p in model.parameters())


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("at", [1, 2, 9, 10, 25])
def test_a_bad_number_ends_the_training_at_its_step_and_the_last_good_state_stays(tmp_path, monkeypatch, kind, at, bad):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    path, model = tmp_path / "a.safetensors", toy()
    kept = f"step {at - 1} is kept in" if at > 1 else "nothing was saved before"
    with pytest.raises(TrainingError, match=f"not finite at step {at}; {kept}"):
        fit(model, spoilt(kind, at, bad, last=at), RECIPE, state_path=path, progress=False)
    assert finite(model)  # the step was not taken
    assert path.exists() == (at > 1)
    if at > 1:
        assert checkpoint.load(path, "training")[1]["step"] == at - 1
        averaged = fit(toy(), loss_at, RECIPE, state_path=path, resume=True, progress=False)
        whole = fit(toy(), loss_at, RECIPE, progress=False)
        assert all(map(torch.equal, averaged.state_dict().values(), whole.state_dict().values()))


@pytest.mark.parametrize("owner", [Muon, torch.optim.AdamW])
@pytest.mark.parametrize("at", [3, 10, 25])
def test_a_weight_that_an_optimiser_breaks_is_noticed_at_once(tmp_path, monkeypatch, owner, at):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    path, step, calls = tmp_path / "a.safetensors", owner.step, [0]

    def breaking(self, *arguments, **options):
        step(self, *arguments, **options)
        calls[0] += 1
        if calls[0] == at:
            with torch.no_grad():
                self.param_groups[0]["params"][-1].view(-1)[-1] = torch.nan

    monkeypatch.setattr(owner, "step", breaking)
    with pytest.raises(TrainingError, match=f"a weight was not finite at step {at}; step {at - 1} is kept"):
        fit(toy(), loss_at, RECIPE, state_path=path, progress=False)
    assert checkpoint.load(path, "training")[1]["step"] == at - 1


def test_a_rate_that_is_far_too_high_is_noticed(tmp_path):
    recipe = StageRecipe(steps=50, batch_size=4, matrix_lr=1e30, lr=1e30, warmup_steps=1)
    with pytest.raises(TrainingError, match="not finite at step"):
        fit(toy(), loss_at, recipe, state_path=tmp_path / "a.safetensors", progress=False)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def unwatched(monkeypatch):
    """Train as on a GPU: nobody asks after each step whether its numbers were finite."""
    made = Trainer.__init__

    def init(self, *arguments):
        made(self, *arguments)
        self.on_cpu = False

    monkeypatch.setattr(Trainer, "__init__", init)


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize(("at", "saves"), [(1, False), (7, False), (7, True), (25, True), (20, False)])
def test_where_no_step_waits_the_right_step_is_named_and_nothing_bad_is_kept(
    tmp_path, monkeypatch, unwatched, kind, at, saves
):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0 if saves else 1e9)
    path, model, taken = tmp_path / "a.safetensors", toy(), []

    def loss(model: nn.Module, step: int) -> torch.Tensor:
        taken.append(step + 1)
        return spoilt(kind, at, last=at)(model, step)

    kept = f"step {at - 1} is kept in" if saves else "nothing was saved before"
    with pytest.raises(TrainingError, match=f"not finite at step {at}; {kept}"):
        fit(model, loss, RECIPE, state_path=path, progress=False)
    assert taken[-1] == (at if saves else -(-at // loop.LOG_EVERY) * loop.LOG_EVERY)  # asked at a save, or with a log
    assert finite(model) == (kind == "loss")  # what is in memory is lost
    assert path.exists() == saves
    assert not saves or checkpoint.load(path, "training")[1]["step"] == at - 1


def test_where_no_step_waits_a_stop_keeps_nothing_bad(tmp_path, unwatched):
    path = tmp_path / "a.safetensors"

    def loss(model: nn.Module, step: int) -> torch.Tensor:
        if step == 4:
            loop.signal.raise_signal(loop.signal.SIGINT)
        return spoilt("gradient", 3, last=3)(model, step)

    with pytest.raises(TrainingError, match="not finite at step 3; nothing was saved before"):
        fit(toy(), loss, RECIPE, state_path=path, progress=False)
    assert not path.exists()


@pytest.fixture
def float16(monkeypatch):
    monkeypatch.setenv("MINIDALLE_DTYPE", "float16")


def test_an_overflow_of_a_scaled_loss_skips_a_step_and_no_more(tmp_path, float16):
    model, plain = toy(), toy()
    averaged = fit(model, spoilt("gradient", 5, last=7), RECIPE, state_path=tmp_path / "a.safetensors", progress=False)
    assert finite(model, averaged)
    fit(plain, loss_at, RECIPE, progress=False)
    assert not torch.equal(model[0].weight, plain[0].weight)  # three steps fewer


def test_gradients_that_overflow_at_every_scale_end_the_training(tmp_path, monkeypatch, float16):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    recipe = StageRecipe(steps=100, batch_size=4, matrix_lr=0.02, lr=1e-2)
    with pytest.raises(TrainingError, match=f"not finite at step {5 + MAX_SKIPS}; step {4 + MAX_SKIPS} is kept"):
        fit(toy(), spoilt("gradient", 5), recipe, state_path=tmp_path / "a.safetensors", progress=False)
    assert checkpoint.load(tmp_path / "a.safetensors", "training")[1]["scaler"]["scale"] < 1


def test_a_loss_that_is_not_finite_is_no_overflow_of_its_scale(float16):
    with pytest.raises(TrainingError, match="not finite at step 4;"):
        fit(toy(), spoilt("loss", 4), RECIPE, progress=False)


def stopped_state(path: Path) -> dict:
    def loss(model: nn.Module, step: int) -> torch.Tensor:
        if step == 4:
            loop.signal.raise_signal(loop.signal.SIGINT)
        return loss_at(model, step)

    with pytest.raises(loop.Stopped):
        fit(toy(), loss, RECIPE, state_path=path, progress=False)
    return checkpoint.load(path, "training")


def test_after_a_resume_it_is_the_resumed_state_that_is_kept(tmp_path):
    path = tmp_path / "a.safetensors"
    step = stopped_state(path)[1]["step"]
    with pytest.raises(TrainingError, match=rf"not finite at step 9; step {step} is kept in .*a\.safetensors"):
        fit(toy(), spoilt("loss", 9), RECIPE, state_path=path, resume=True, progress=False)


@pytest.mark.parametrize("group", ["model.", "averaged.", "optimizer.average.", "optimizer.exp_avg_sq."])
@pytest.mark.parametrize("bad", BAD)
def test_a_state_that_holds_a_bad_number_is_refused_and_never_written(tmp_path, group, bad):
    path = tmp_path / "a.safetensors"
    tensors, header = stopped_state(path)
    name = next(name for name in tensors if name.startswith(group))
    tensors[name].view(-1)[0] = bad
    whole = path.read_bytes()
    with pytest.raises(CheckpointError, match="not written"):
        checkpoint.save(path, "training", tensors, header)
    assert path.read_bytes() == whole
    header.pop("sha256")
    header["sha256"] = checkpoint.digest(tensors, header)
    path.write_bytes(checkpoint.to_bytes(tensors, metadata={checkpoint.HEADER: json.dumps(header)}))
    with pytest.raises(CheckpointError, match="not finite"):
        fit(toy(), loss_at, RECIPE, state_path=path, resume=True, progress=False)


def test_averaged_weights_and_averages_of_optimisers_are_looked_at_before_a_save(tmp_path):
    trainer = Trainer(toy(), RECIPE)
    trainer.step(loss_at, 0)
    path = tmp_path / "a.safetensors"
    for spoil in (
        next(trainer.averaged.parameters()),
        next(iter(trainer.optimizers[0].state.values()))["average"],
        next(iter(trainer.optimizers[1].state.values()))["exp_avg_sq"],
    ):
        before = spoil.detach().clone()
        with torch.no_grad():
            spoil.view(-1)[0] = torch.inf
        with pytest.raises(CheckpointError, match="not finite"):
            trainer.save(path, 1, 0.0, None)
        with torch.no_grad():
            spoil.copy_(before)
    trainer.save(path, 1, 0.0, None)
    assert read_state(path)["step"] == 1


@pytest.mark.parametrize(
    "lie",
    [
        {"step": 0}, {"step": -3}, {"step": True}, {"step": "4"}, {"step": 1.5}, {"step": None},
        {"seconds": "NaN"}, {"seconds": None}, {"seconds": float("inf")}, {"seconds": [1]},
        {"threads": 0}, {"threads": 10**9}, {"threads": "2"}, {"threads": None},
        {"precision": "load"}, {"precision": "float64"}, {"precision": ["float16"]}, {"precision": None},
        {"loss": 3}, {"loss": [1.0]}, {"loss": [float("nan"), 1]}, {"loss": ["x", "y"]}, {"loss": None},
        {"scaler": {"scale": 1.0}}, {"scaler": [1]}, {"scaler": {"scale": "big"}},
        {"scaler": {**torch.amp.GradScaler("cpu").state_dict(), "scale": float("inf")}},
        {"origin": "mine"}, {"origin": [1]}, {"origin": 7},
    ],
    ids=str,
)  # fmt: skip
def test_what_a_state_says_of_itself_is_checked(tmp_path, lie):
    path = tmp_path / "a.safetensors"
    trainer = Trainer(toy(), RECIPE)
    trainer.step(loss_at, 0)
    trainer.save(path, 1, 0.0, None)
    tensors, header = checkpoint.load(path, "training")
    checkpoint.save(path, "training", tensors, {**header, **lie})
    with pytest.raises(CheckpointError) as error:
        read_state(path)
    assert str(path) in str(error.value) and str(error.value).isprintable()


def test_the_averages_of_another_model_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    trainer = Trainer(toy(), RECIPE)
    trainer.step(loss_at, 0)
    trainer.save(path, 1, 0.0, None)
    tensors, header = checkpoint.load(path, "training")
    for change in (
        {"optimizer.average.0.weight": torch.zeros(3, 3)},
        {"optimizer.average.nowhere": torch.zeros(3)},
        {"stranger": torch.zeros(3)},
        {"stranger.x": torch.zeros(3)},
        {"model.0.weight": torch.zeros(2, 2)},
    ):
        checkpoint.save(path, "training", {**tensors, **change}, header)
        with pytest.raises(ValueError, match="of a model of other sizes"):
            load_state(path, toy(), toy(), Trainer(toy(), RECIPE).optimizers, None)
    save_state(path, header, nn.Linear(900, 900), nn.Linear(900, 900), [])
    with path.open("ab") as file:
        file.truncate(2**28)
    with pytest.raises(ValueError, match=r"has \d+ bytes; at most"):
        load_state(path, toy(), toy(), Trainer(toy(), RECIPE).optimizers, None)


@pytest.mark.parametrize("asked", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("then", ["bfloat16", "float16", "float32", ""])
def test_the_precision_of_a_training_is_kept_and_used_again(tmp_path, monkeypatch, asked, then):
    path = tmp_path / "a.safetensors"
    monkeypatch.setenv("MINIDALLE_DTYPE", asked)
    whole = fit(toy(), loss_at, RECIPE, progress=False)
    assert stopped_state(path)[1]["precision"] == asked
    monkeypatch.setenv("MINIDALLE_DTYPE", then)
    resumed = fit(toy(), loss_at, RECIPE, state_path=path, resume=True, progress=False)
    assert all(map(torch.equal, resumed.state_dict().values(), whole.state_dict().values()))
