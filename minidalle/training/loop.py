"""The training loop, one for every model. What a stage learns is its loss, and those stand in losses.py.

All randomness of step n comes from the seed and n alone, so a training that is stopped and resumed takes the same
steps as one that was not.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import nn

from minidalle import parallel
from minidalle.training.graphs import make_trainer
from minidalle.training.progress import Progress
from minidalle.training.recipes import StageRecipe
from minidalle.training.stages import LossAt

LOG_EVERY = 10  # steps between lines of metrics; numbers are fetched from a GPU as rarely
SAVE_SECONDS = 20.0  # between saves, so that a crash costs less than half a minute
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
    trainer = make_trainer(model, recipe, loss_at)
    resumed = trainer.load(state_path, origin) if resume and state_path is not None and state_path.exists() else None
    first, spent = (resumed["step"], resumed["seconds"]) if resumed else (0, 0.0)
    started, saved, timer = time.perf_counter() - spent, first, SaveTimer()
    alone, writes = parallel.number() == 1, parallel.rank() == 0
    model.train()
    bar = Progress(name, first, recipe.steps, recipe.batch_size, progress and writes)
    with bar, delayed_stop() as stopped_by:
        for step in range(first, recipe.steps):
            trainer.step(loss_at, step)
            done, log = step + 1, (step + 1) % LOG_EVERY == 0 or step + 1 == recipe.steps
            together = alone or log  # several processes agree, and the first of them saves, with each log
            stop = parallel.most(stopped_by(), trainer.device) if together else 0
            keep = (timer.due() or stop) and state_path is not None and together and writes
            if (keep or log or trainer.on_cpu) and (bad := trainer.first_bad()):
                raise not_finite(name, bad, saved, state_path)
            if log:
                loss = parallel.mean(trainer.mean_loss(), trainer.device)
                line = {"step": done, "loss": loss, "seconds": round(time.perf_counter() - started, 2)}
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


def not_finite(name: str, bad: int, saved: int, state_path: Path | None) -> TrainingError:
    """Make the error of a training whose numbers are no longer finite."""
    kept = f"step {saved} is kept in {state_path}" if saved else "nothing was saved before"
    what = f"{name}: the loss, its gradient or a weight was not finite at step {bad}"
    return TrainingError(f"{what}; {kept}: lower the rates in its recipe.")


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
