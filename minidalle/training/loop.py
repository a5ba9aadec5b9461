"""The training loop, one for every model. What a stage learns is its loss, and those stand in losses.py.

All randomness of step n comes from the seed and n alone, so a training that is stopped and resumed takes the same
steps as one that was not.
"""

import contextlib
import copy
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from minidalle.device import autocast, half_precision
from minidalle.training.optim import make_optimizers
from minidalle.training.progress import Progress
from minidalle.training.recipes import StageRecipe
from minidalle.training.stages import LossAt
from minidalle.training.state import load_state, save_state

LOG_EVERY = 10  # steps between lines of metrics; numbers are fetched from a GPU as rarely
SAVE_SECONDS = 20.0  # between saves, so that a crash costs less than half a minute
MAX_SKIPS = 24  # steps in a row that may overflow while the scale of a float16 loss falls
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]


class TrainingError(RuntimeError):
    """A training that cannot go on; the message says at which step and what is left of it."""


class Stopped(KeyboardInterrupt):
    """A training that was asked to stop; `signal` is the number of the signal that asked."""

    def __init__(self, name: str, number: int, step: int, state_path: Path | None):
        kept = f"step {step} is kept in {state_path}" if state_path else "nothing was to be kept"
        super().__init__(f"{name}: stopped by {signal.Signals(number).name}; {kept}.")
        self.signal = number


def fit(
    model: nn.Module,
    loss_at: LossAt,
    recipe: StageRecipe,
    name: str = "model",
    state_path: Path | None = None,
    resume: bool = False,
    on_log: Callable[[dict], None] | None = None,
    origin: dict | None = None,
    progress: bool = True,
) -> nn.Module:
    """Train a model.

    Args:
        model: changed in place; its device is the one that is used.
        loss_at: (model, step) to the loss () of that step, whose batch it draws itself.
        recipe: how many steps, how large, how fast.
        name: shown beside the progress.
        state_path: where to keep all that a resumed training needs; None: nowhere.
        resume: whether to go on from state_path, where there is one.
        on_log: called every LOG_EVERY steps, and at the end, with step, mean loss since the last call, and seconds.
        origin: what the training is of, in JSON's types; a state of another origin is not resumed.
        progress: whether to show the progress.

    Returns: a copy of the model with averaged weights (EMA), the one to use.
    Raises:
        TrainingError: when a loss, a gradient or a weight is no longer a finite number; the last good state is kept.
        ValueError: when the state belongs to another training or is damaged.
        Stopped: after a save, when Ctrl-C was pressed or the process was asked to end.
    """
    trainer = Trainer(model, recipe)
    resumed = trainer.load(state_path, origin) if resume and state_path is not None and state_path.exists() else None
    first, spent = (resumed["step"], resumed["seconds"]) if resumed else (0, 0.0)
    started, saved, timer = time.perf_counter() - spent, first, SaveTimer()
    model.train()
    with Progress(name, first, recipe.steps, recipe.batch_size, progress) as bar, delayed_stop() as stopped_by:
        for step in range(first, recipe.steps):
            trainer.step(loss_at, step)
            done, stop = step + 1, stopped_by()
            keep = (timer.due() or stop) and state_path is not None
            log = done % LOG_EVERY == 0 or done == recipe.steps
            if (keep or log or trainer.on_cpu) and (bad := trainer.first_bad()):
                kept = f"step {saved} is kept in {state_path}" if saved else "nothing was saved before"
                raise TrainingError(
                    f"{name}: the loss, its gradient or a weight was not finite at step {bad}; {kept}: "
                    "lower the rates in its recipe."
                )
            if log:
                line = {"step": done, "loss": trainer.mean_loss(), "seconds": round(time.perf_counter() - started, 2)}
                bar.update(done, line["loss"])
                if on_log:
                    on_log(line)
            if keep:
                trainer.save(state_path, done, time.perf_counter() - started, origin)
                saved = done
                timer.restart()
            if stop:
                raise Stopped(name, stop, done, state_path)
    return trainer.averaged


class SaveTimer:
    """Tells when the next step might end later than SAVE_SECONDS after the last save."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        """Begin anew: all is saved."""
        self.saved = self.last_step = time.perf_counter()

    def due(self) -> bool:
        """Say, at the end of each step, whether another as long would be too long to wait."""
        now = time.perf_counter()
        seconds, self.last_step = now - self.last_step, now
        return now + seconds - self.saved > SAVE_SECONDS


class Trainer:
    """A model in training: its averaged copy, its optimisers, and the precision it is trained in."""

    def __init__(self, model: nn.Module, recipe: StageRecipe):
        self.model, self.recipe = model, recipe
        self.device = next(model.parameters()).device
        self.on_cpu = self.device.type == "cpu"
        self.averaged = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizers = make_optimizers(model, recipe.matrix_lr, recipe.lr, recipe.weight_decay)
        self.use_precision(half_precision(self.device))
        self.loss_sum, self.loss_count = torch.zeros((), device=self.device), 0
        self.bad_step = torch.zeros((), dtype=torch.int64, device=self.device)  # 0: all was finite
        self.skipped = 0  # steps in a row

    def use_precision(self, dtype: torch.dtype | None) -> None:
        """Compute in a 16-bit type, or in float32; float16 needs losses to be scaled."""
        self.dtype = dtype
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)

    def step(self, loss_at: LossAt, step: int) -> None:
        """Take one step: loss, gradients, weights, averaged weights."""
        factor = learning_rate_factor(step, self.recipe)
        for optimizer, full in zip(self.optimizers, (self.recipe.matrix_lr, self.recipe.lr), strict=True):
            optimizer.param_groups[0]["lr"] = full * factor

        with autocast(self.device, self.dtype):
            loss = loss_at(self.model, step)
        self.model.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)

        if self._may_step(step, loss.detach(), norm):
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
            average_weights(self.averaged, self.model, min(self.recipe.ema_decay, (step + 1) / (step + 10)))
            sizes = torch._foreach_norm(list(self.model.parameters()))
            self._note(step, torch.stack(sizes).sum().isfinite())
        self.scaler.update()
        self.loss_sum, self.loss_count = self.loss_sum + loss.detach(), self.loss_count + 1

    def _may_step(self, step: int, loss: torch.Tensor, norm: torch.Tensor) -> bool:
        """Tell whether loss and gradient can be used, and note where they cannot.

        On a GPU the question would make it wait, so there the answer is yes, and the note is read before a save.
        """
        if not self.scaler.is_enabled():
            finite = loss.isfinite() & norm.isfinite()
            self._note(step, finite)
            return not self.on_cpu or bool(finite)
        # A scaled loss may overflow in its gradient: all optimisers skip that step, and the scale falls
        self.skipped = 0 if norm.isfinite() else self.skipped + 1
        if self.skipped > MAX_SKIPS or not loss.isfinite():
            self._note(step, torch.zeros_like(self.bad_step).bool())
        return self.skipped == 0 and bool(loss.isfinite())

    def _note(self, step: int, finite: torch.Tensor) -> None:
        self.bad_step = torch.where((self.bad_step == 0) & ~finite, step + 1, self.bad_step)

    def first_bad(self) -> int:
        """Give the first step, counted from 1, whose numbers were not finite; 0 when there is none."""
        return int(self.bad_step)

    def mean_loss(self) -> float:
        """Give the mean loss since the last call."""
        mean = float(self.loss_sum) / max(1, self.loss_count)
        self.loss_sum, self.loss_count = torch.zeros_like(self.loss_sum), 0
        return mean

    def save(self, path: Path, step: int, seconds: float, origin: dict | None) -> None:
        """Keep all that a resumed training needs, its precision and number of threads included."""
        header = {
            "step": step,
            "seconds": seconds,
            "origin": origin,
            "scaler": self.scaler.state_dict(),
            "precision": precision_name(self.dtype),
            "threads": torch.get_num_threads(),
            "loss": [float(self.loss_sum), self.loss_count],
        }
        save_state(path, header, self.model, self.averaged, self.optimizers)

    def load(self, path: Path, origin: dict | None) -> dict:
        """Put back what save kept, and give its header."""
        header = load_state(path, self.model, self.averaged, self.optimizers, origin)
        self.use_precision(None if header["precision"] == "float32" else getattr(torch, header["precision"]))
        if header["scaler"]:
            self.scaler.load_state_dict(header["scaler"])
        total, self.loss_count = header["loss"]
        self.loss_sum = torch.tensor(total, device=self.device)
        return header


def precision_name(dtype: torch.dtype | None) -> str:
    """Name the type that matrix products are computed in."""
    return str(dtype or torch.float32).removeprefix("torch.")


def learning_rate_factor(step: int, recipe: StageRecipe) -> float:
    """Give the share of the full learning rate at a step: a linear rise, a plateau, a linear fall to zero."""
    rise = (step + 1) / recipe.warmup_steps
    fall = (recipe.steps - step) / (recipe.decay_share * recipe.steps)
    return min(1.0, rise, fall)


@torch.no_grad()
def average_weights(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move averaged weights towards the model's: averaged = decay * averaged + (1 - decay) * model."""
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)


@contextlib.contextmanager
def delayed_stop() -> Iterator[Callable[[], int]]:
    """Let Ctrl-C and a request to end (SIGTERM, SIGHUP) wait.

    Gives a function that tells which signal came, 0 for none: to answer it, raise. A signal that is not answered is
    sent again at the end, to whoever handled it before. One that the process ignores (nohup) stays ignored, and beside
    the main thread, where Python has no say about signals, none waits.
    """
    received: list[int] = []
    here = threading.current_thread() is threading.main_thread()
    watched = [s for s in STOPPING if here and signal.getsignal(s) is not signal.SIG_IGN]
    before = {s: signal.signal(s, lambda number, _: received.append(number)) for s in watched}
    try:
        yield lambda: received[0] if received else 0
    finally:
        for s, handler in before.items():
            usual = signal.default_int_handler if s == signal.SIGINT else signal.SIG_DFL
            signal.signal(s, usual if handler is None else handler)  # None: one that Python did not set
    if received:
        signal.raise_signal(received[0])
