"""The training loop, one for every model. What a stage learns is its loss, and those stand in stages.py.

All randomness of step n comes from the seed and n alone, so a training that is stopped and resumed takes the same
steps as one that was not.
"""

import contextlib
import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from minidalle.device import autocast, half_precision
from minidalle.training.optim import make_optimizers
from minidalle.training.recipes import StageRecipe
from minidalle.training.state import TrainingError, load_state, save_state

LOG_EVERY = 10  # steps between lines of metrics; the loss is fetched from the device as rarely
SAVE_EVERY = 500  # steps between checkpoints


def learning_rate_factor(step: int, recipe: StageRecipe) -> float:
    """Give the share of the full learning rate at a step: a linear rise, a plateau, a linear fall to zero."""
    rise = (step + 1) / recipe.warmup_steps
    fall = (recipe.steps - step) / (recipe.decay_share * recipe.steps)
    return min(1.0, rise, fall)


def fit(
    model: nn.Module,
    loss_at: Callable[[int], torch.Tensor],
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
        loss_at: gives the loss () of a step, drawing that step's batch itself.
        recipe: how many steps, how large, how fast.
        name: shown beside the progress bar.
        state_path: where to keep all that a resumed training needs; None: nowhere.
        resume: whether to go on from state_path, where there is one.
        on_log: called every LOG_EVERY steps, and at the end, with step, mean loss since the last call, and seconds.
        origin: what the training is of, in JSON's types; a state of another origin is not resumed.
        progress: whether to show a progress bar.

    Returns: a copy of the model with averaged weights (EMA), the one to use.
    Raises:
        TrainingError: when the loss is no longer a finite number.
        ValueError: when the state belongs to another training or is damaged.
        KeyboardInterrupt: passes through, after a save.
    """
    device = next(model.parameters()).device
    averaged = copy.deepcopy(model).eval().requires_grad_(False)
    optimizers = make_optimizers(model, recipe.matrix_lr, recipe.lr, recipe.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=half_precision(device) == torch.float16)
    first, spent = 0, 0.0
    if resume and state_path is not None and state_path.exists():
        first, spent = load_state(state_path, model, averaged, optimizers, scaler, origin)

    model.train()
    started, total, logged, saved = time.perf_counter() - spent, 0.0, first, first
    bar = tqdm(
        range(first, recipe.steps), initial=first, total=recipe.steps, desc=name, unit="step", disable=not progress
    )
    with bar, delayed_interrupt() as interrupted:
        for step in bar:
            for optimizer, full in zip(optimizers, (recipe.matrix_lr, recipe.lr), strict=True):
                optimizer.param_groups[0]["lr"] = full * learning_rate_factor(step, recipe)

            with autocast(device):
                loss = loss_at(step)
            model.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            if not scaler.is_enabled() or norm.isfinite():  # one optimiser's overflow must stop the others too
                for optimizer in optimizers:
                    scaler.step(optimizer)
            scaler.update()
            average_weights(averaged, model, min(recipe.ema_decay, (step + 1) / (step + 10)))

            done, stop = step + 1, interrupted()
            total = total + loss.detach()
            seconds = time.perf_counter() - started
            if done % LOG_EVERY == 0 or done == recipe.steps or stop:
                mean, total, logged = float(total) / (done - logged), 0.0, done
                if not math.isfinite(mean):
                    kept = f"step {saved} is kept in {state_path}" if saved else "nothing was saved before"
                    raise TrainingError(
                        f"{name}: the loss became {mean} by step {done}; {kept}: lower the rates in its recipe."
                    )
                bar.set_postfix(loss=f"{mean:.4f}", pictures_per_s=round(recipe.batch_size * done / seconds))
                if on_log:
                    on_log({"step": done, "loss": mean, "seconds": round(seconds, 2)})
            if state_path is not None and (done % SAVE_EVERY == 0 or stop):
                header = {"step": done, "seconds": seconds, "scaler": scaler.state_dict(), "origin": origin}
                save_state(state_path, header, model, averaged, optimizers)
                saved = done
            if stop:
                raise KeyboardInterrupt
    return averaged


@contextlib.contextmanager
def delayed_interrupt() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C wait for the end of a step; gives a function that tells whether it was pressed."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    before = signal.signal(signal.SIGINT, lambda *_: pressed.set())
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


@torch.no_grad()
def average_weights(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move averaged weights towards the model's: averaged = decay * averaged + (1 - decay) * model."""
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)
