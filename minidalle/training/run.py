"""A run: a folder in which the stages of a stack are trained one after the other, and can be taken up again."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from minidalle import checkpoint
from minidalle.checkpoint import CheckpointError, own_version, save_model
from minidalle.device import half_precision, pick_threads, threads
from minidalle.training.loop import fit, precision_name
from minidalle.training.recipes import Preset
from minidalle.training.stages import STACK, STAGES, drawn_world, frozen_parts, load_needs, stage_loss
from minidalle.world.captions import TOKENIZER


def train(
    preset: Preset,
    recipe_name: str,
    folder: Path,
    stages: Sequence[str] = STACK,
    seed: int = 0,
    device: torch.device | None = None,
    resume: bool = False,
) -> None:
    """Train stages of a system and keep each in the folder as soon as it is done.

    Args:
        preset: the sizes, and the recipes to choose from.
        recipe_name: one of the preset's recipes.
        folder: of the run; made when missing. Metrics go to <stage>.metrics.jsonl.
        stages: which of STAGES, in this order; prior and decoder need the folder's clip.
        seed: of the weights and of all that is drawn, 0 to 2**63 - 1.
        device: where to train; None: on the CPU.
        resume: whether to take up what was stopped; finished stages of the same recipe and seed are then skipped.

    Raises: ValueError: when the recipe or the seed is unknown, or another run holds the folder.
    """
    if recipe_name not in preset.recipes:
        known = ", ".join(preset.recipes)
        raise ValueError(f'The preset {preset.name} has no recipe "{recipe_name}"; choose one of {known}.')
    if not 0 <= seed < 2**63:
        raise ValueError(f"The seed is {seed}; a whole number from 0 to 2**63 - 1 was expected.")
    device = device or torch.device("cpu")
    with locked(folder):
        for stage in stages:
            if not (resume and is_finished(folder, stage, origin_of(preset, recipe_name, stage, seed, folder))):
                train_stage(preset, recipe_name, folder, stage, seed, device, resume)


def train_stage(
    preset: Preset,
    recipe_name: str,
    folder: Path,
    stage: str,
    seed: int,
    device: torch.device,
    resume: bool,
    needs_folder: Path | None = None,
    on_log: Callable[[dict], None] | None = None,
    progress: bool = True,
) -> torch.nn.Module:
    """Train one stage.

    Args:
        preset, recipe_name, folder, stage, seed, device: those of train.
        resume: whether to take up a training of this stage that was stopped.
        needs_folder: where the models lie that the stage learns from; None: in the folder.
        on_log: called with every line of metrics as well.
        progress: whether to show the progress.

    Returns: the averaged weights, which the folder holds too.
    """
    needs_folder, recipe = needs_folder or folder, preset.recipes[recipe_name]
    how = recipe.stages[stage]
    origin = origin_of(preset, recipe_name, stage, seed, needs_folder)
    source = drawn_world(stage, preset, recipe, seed)
    state_path = folder / f"{stage}.training.safetensors"
    before = checkpoint.read_header(state_path, "training") if resume and state_path.exists() else None

    # A new model, and its loss
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = STAGES[stage].model_class(preset.models[stage]).to(device)
    frozen = frozen_parts(stage, preset, load_needs(stage, needs_folder, device), device)
    loss_at = stage_loss(stage, source, how, frozen, device)

    # The training itself, with its metrics
    number = before["threads"] if before else pick_threads()
    started = time.perf_counter() - (before["seconds"] if before else 0.0)
    with threads(number), MetricsFile(folder / f"{stage}.metrics.jsonl", before["step"] if before else 0) as metrics:

        def keep(line: dict) -> None:
            metrics.write(line)
            if on_log:
                on_log(line)

        averaged = fit(model, loss_at, how, stage, state_path, before is not None, keep, origin, progress)
    spent = {"seconds": round(time.perf_counter() - started, 1), "pictures": how.steps * how.batch_size}
    precision = before["precision"] if before else precision_name(half_precision(device))
    machine = {"version": own_version(), "device": device.type, "precision": precision, "threads": number}
    tokenizer = {"tokenizer": TOKENIZER.to_dict()} if stage == "clip" else {}
    save_model(folder, averaged, {**origin, **tokenizer, **spent, **machine})
    state_path.unlink(missing_ok=True)
    return averaged


def origin_of(preset: Preset, recipe_name: str, stage: str, seed: int, needs_folder: Path) -> dict:
    """Describe all that shapes a training of a stage; two trainings of one origin take the same steps."""
    recipe = preset.recipes[recipe_name]
    origin = {
        "preset": preset.name,
        "recipe": recipe_name,
        "seed": seed,
        "world": {"name": "scenes", "two_objects": recipe.two_objects},
        "stage": asdict(recipe.stages[stage]),
    }
    if stage in preset.diffusion:
        origin["diffusion"] = asdict(preset.diffusion[stage])
    for name in STAGES[stage].needs:
        origin[name] = checkpoint.read_header(needs_folder / f"{name}.safetensors", name)["sha256"]
    return origin


def kept_step(folder: Path, stage: str, origin: dict) -> int:
    """Tell at which step a stopped training of this origin is kept; 0 where there is none."""
    try:
        header = checkpoint.read_header(folder / f"{stage}.training.safetensors", "training")
    except CheckpointError:
        return 0
    return header["step"] if header["origin"] == origin else 0


class MetricsFile:
    """A stage's metrics, a line of JSON each; lines after the step that is gone on from are dropped."""

    def __init__(self, path: Path, step: int):
        lines = metrics_until(path, step)
        if "".join(lines) != (path.read_text(encoding="utf-8") if path.exists() else None):
            checkpoint.write_whole(path, "".join(lines).encode())
        self.file = path.open("a", encoding="utf-8")

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def write(self, line: dict) -> None:
        """Add a line."""
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()


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
    """Tell whether the folder holds this stage, undamaged and trained the same way for the same CLIP."""
    path = folder / f"{stage}.safetensors"
    if not path.exists():
        return False
    try:
        header = checkpoint.load(path, stage)[1]
    except CheckpointError as error:
        print(f"{stage} is trained again: {error}", file=sys.stderr)
        return False
    return all(header.get(key) == value for key, value in origin.items())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone; a run that was killed no longer holds it.

    Where the file system has no locks, a warning says so and the folder is used without.
    Raises: ValueError: when another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.lock"
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{folder} is held by another run: wait for that to end, or name another folder. "
            f"If no other run is alive, delete {path}."
        ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, PermissionError):
            raise
        print(
            f"{folder} cannot be locked ({checkpoint.brief(error)}); see to it that no second run uses it.",
            file=sys.stderr,
        )
    for litter in folder.glob("*.partial"):  # of a process that was killed while it saved
        litter.unlink(missing_ok=True)
    try:
        yield
    finally:
        lock.release()
