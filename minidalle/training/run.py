"""A run: a folder in which the stages of a stack are trained one after the other, and can be taken up again."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from minidalle import checkpoint
from minidalle.checkpoint import load_model, save_model
from minidalle.training.loop import fit
from minidalle.training.recipes import STAGES, Preset
from minidalle.training.stages import KINDS, loss_of


def train(
    preset: Preset,
    recipe_name: str,
    folder: Path,
    stages: tuple[str, ...] = STAGES,
    seed: int = 0,
    device: torch.device | None = None,
    resume: bool = False,
) -> None:
    """Train stages of a stack and keep each in the folder as soon as it is done.

    Args:
        preset: the sizes, and the recipes to choose from.
        recipe_name: one of the preset's recipes.
        folder: of the run; made when missing. Metrics go to <stage>.metrics.jsonl.
        stages: which of ALL_STAGES, in this order; prior and decoder need the folder's clip.
        seed: of the weights and of all that is drawn.
        device: where to train; None: on the CPU.
        resume: whether to take up what was stopped; finished stages of the same recipe and seed are then skipped.

    Raises: ValueError: when the recipe is unknown, or another run holds the folder.
    """
    if recipe_name not in preset.recipes:
        known = ", ".join(preset.recipes)
        raise ValueError(f'The preset {preset.name} has no recipe "{recipe_name}"; choose one of {known}.')
    with locked(folder):
        for stage in stages:
            train_stage(preset, recipe_name, folder, stage, seed, device or torch.device("cpu"), resume)


def train_stage(
    preset: Preset,
    recipe_name: str,
    folder: Path,
    stage: str,
    seed: int,
    device: torch.device,
    resume: bool,
    clip_folder: Path | None = None,
    on_log: Callable[[dict], None] | None = None,
    progress: bool = True,
) -> torch.nn.Module:
    """Train one stage.

    Args:
        preset, recipe_name, folder, stage, seed, device, resume: those of train.
        clip_folder: where the CLIP lies that prior and decoder learn from; None: in the folder.
        on_log: called with every line of metrics as well.
        progress: whether to show a progress bar.

    Returns: the averaged weights, which the folder holds too.
    """
    clip_folder = clip_folder or folder
    origin = {"preset": preset.name, "recipe": recipe_name, "seed": seed}
    if stage in STAGES[1:]:
        origin["clip"] = checkpoint.load(clip_folder / "clip.safetensors", "clip")[1]["sha256"]
    if resume and is_finished(folder, stage, origin):
        return load_model(KINDS[stage], folder)[0].to(device).eval()
    recipe = preset.recipes[recipe_name]
    torch.manual_seed(seed)
    model = KINDS[stage](getattr(preset, stage)).to(device)
    loss_at = loss_of(stage, model, clip_folder, recipe, preset.clip.image_size, seed, device)
    state_path, metrics_path = folder / f"{stage}.training.safetensors", folder / f"{stage}.metrics.jsonl"
    resume = resume and state_path.exists()
    before = checkpoint.load(state_path, "training")[1] if resume else {"step": 0, "seconds": 0.0}

    started, kept = time.perf_counter() - before["seconds"], metrics_until(metrics_path, before["step"])
    with metrics_path.open("w", encoding="utf-8") as metrics:
        metrics.writelines(kept)

        def keep(line: dict) -> None:
            metrics.write(json.dumps(line) + "\n")
            metrics.flush()
            if on_log:
                on_log(line)

        whose = {**origin, "stage": asdict(getattr(recipe, stage))}
        averaged = fit(model, loss_at, getattr(recipe, stage), stage, state_path, resume, keep, whose, progress)
    cost = {
        "seconds": round(time.perf_counter() - started, 1),
        "pictures": getattr(recipe, stage).steps * getattr(recipe, stage).batch_size,
        "two_things": recipe.two_things,
    }
    save_model(folder, averaged, {**origin, **cost})
    state_path.unlink(missing_ok=True)
    return averaged


def metrics_until(path: Path, step: int) -> list[str]:
    """Give the lines of metrics up to a step; those after it are of steps that a resumed training takes again."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    return [line for line, metrics in zip(whole, read_metrics(path), strict=True) if metrics["step"] <= step]


def read_metrics(path: Path) -> list[dict]:
    """Read the metrics of a stage, a line each; a last line that was cut off is left out.

    Raises: ValueError: when a line is broken (file and line are named); there are none when the file is missing.
    """
    metrics = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(True) if path.exists() else [], 1):
        try:
            if line.endswith("\n"):
                found = json.loads(line)
                metrics.append({**found, "step": int(found["step"]), "loss": float(found["loss"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number}, holds no step and loss: remove that line.") from error
    return metrics


def is_finished(folder: Path, stage: str, origin: dict) -> bool:
    """Tell whether the folder holds this stage, trained by the same preset, recipe and seed, and for the same CLIP."""
    path = folder / f"{stage}.safetensors"
    if not path.exists():
        return False
    header = checkpoint.load(path, stage)[1]
    return all(header.get(key) == value for key, value in origin.items())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone; a run that was killed no longer holds it.

    Raises: ValueError: when another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "run.lock", timeout=0):
            yield
    except Timeout:
        raise ValueError(f"{folder} is held by another run: wait for that to end, or name another folder.") from None
