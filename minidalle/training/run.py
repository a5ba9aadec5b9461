"""A run: a folder in which the stages of a stack are trained one after the other, and can be taken up again."""

import contextlib
import errno
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from minidalle import checkpoint, parallel
from minidalle.checkpoint import AccessError, CheckpointError, MissingError, own_version, save_model
from minidalle.checks import whole_number
from minidalle.data.batches import Collection
from minidalle.device import choose_threads, half_precision, threads
from minidalle.training.loop import delayed_stop, fit
from minidalle.training.recipes import Preset, fitted
from minidalle.training.stages import (
    KNOWN,
    STACK,
    LossAt,
    StageLoss,
    collection_of,
    frozen_parts,
    load_needs,
    stage_source,
)
from minidalle.training.state import check_origin, differences, load_tensors, read_state
from minidalle.training.trainer import precision_name

MAX_SEED = 2**63 - 1  # beyond, torch has no seeds
MAX_METRICS = 2**26  # bytes of a file of metrics; a line has about 60
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


def train(
    preset: Preset,
    recipe_name: str,
    folder: Path,
    stages: Sequence[str] = STACK,
    seed: int = 0,
    device: torch.device | None = None,
    resume: bool = False,
    collection: Collection | None = None,
) -> None:
    """Train stages of a system and keep each in the folder as soon as it is done.

    Args:
        preset: the sizes, and the recipes to choose from.
        recipe_name: one of the preset's recipes.
        folder: of the run; made when missing. Metrics go to <stage>.metrics.jsonl.
        stages: which stages, in this order; prior and decoder need the folder's clip.
        seed: of the weights and of all that is drawn, 0 to 2**63 - 1.
        device: where to train; None: on the CPU.
        resume: whether to take up what was stopped; finished stages of the same recipe and seed are then skipped.
            One that is damaged, was trained otherwise, or for another CLIP is trained again, which is said.
        collection: captioned pictures to learn from; None: what the preset is made for.

    Raises: ValueError: when recipe, stage or seed is unknown, another run holds the folder, or it may not be written.
    """
    if recipe_name not in preset.recipes:
        known = ", ".join(preset.recipes)
        raise ValueError(f'The preset {preset.name} has no recipe "{recipe_name}"; choose one of {known}.')
    known = preset.recipes[recipe_name].stages
    if unknown := [stage for stage in stages if stage not in known]:
        raise ValueError(f'"{unknown[0]}" is no stage of {preset.name}; choose of {", ".join(known)}.')
    seed = checked_seed(seed)
    device = device or torch.device("cpu")
    collection = collection or collection_of(preset, preset.recipes[recipe_name])
    preset = fitted(preset, collection.tokenizer)
    with locked(folder) if parallel.rank() == 0 else contextlib.nullcontext():
        parallel.barrier()  # the folder is there
        for stage in stages:
            origin = origin_of(preset, recipe_name, stage, seed, folder, collection)
            # A state beside a finished model is of a second training, or of one killed before it was tidied away
            if not (resume and is_finished(folder, stage, origin) and not kept_step(folder, stage, origin)):
                train_stage(preset, recipe_name, folder, stage, seed, device, resume, collection=collection)


def checked_seed(seed: int) -> int:
    """Take a seed that works in every stage.

    Raises: ValueError: when it is no whole number from 0 to MAX_SEED.
    """
    return whole_number(seed, "The seed", low=0, high=MAX_SEED)


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
    collection: Collection | None = None,
) -> torch.nn.Module:
    """Train one stage.

    Args:
        preset, recipe_name, folder, stage, seed, device: those of train.
        resume: whether to take up a training of this stage that was stopped.
        needs_folder: where the models lie that the stage learns from; None: in the folder.
        on_log: called with every line of metrics as well.
        progress: whether to show the progress.
        collection: that of train.

    Returns: the averaged weights, which the folder holds too.
    """
    collection = collection or collection_of(preset, preset.recipes[recipe_name])
    needs_folder, how = needs_folder or folder, preset.recipes[recipe_name].stages[stage]
    origin = origin_of(preset, recipe_name, stage, seed, needs_folder, collection)
    model, loss_at = prepare(preset, recipe_name, stage, seed, device, needs_folder, collection)
    state_path = folder / f"{stage}.training.safetensors"
    before, first = stopped_training(state_path, stage, origin, model) if resume else None, parallel.rank() == 0
    parallel.barrier()  # all have read what is there before the first changes it
    if first and before is None and state_path.exists():
        print(f"{stage}: {state_path}, of a training that was stopped, is deleted.")
        state_path.unlink()
    number, why = choose_threads(before and before["threads"])
    precision = before["precision"] if before else precision_name(half_precision(device))
    begun = f"goes on from step {before['step']} of" if before else "begins:"
    print(f"{stage} {begun} {how.steps} steps, {precision}, {number} thread{'s' * (number > 1)}{why}.")

    started = time.perf_counter() - (before["seconds"] if before else 0.0)
    path, step = folder / f"{stage}.metrics.jsonl", before["step"] if before else 0
    with threads(number), MetricsFile(path, step) if first else contextlib.nullcontext() as metrics:

        def keep(line: dict) -> None:
            if metrics:
                metrics.write(line)
            if on_log:
                on_log(line)

        averaged = fit(model, loss_at, how, stage, state_path, before is not None, keep, origin, progress)
    spent = {"seconds": round(time.perf_counter() - started, 1), "pictures": how.steps * how.batch_size}
    machine = {"version": own_version(), "device": device.type, "precision": precision, "threads": number}
    tokenizer = {"tokenizer": collection.tokenizer.to_dict()} if "clip" not in KNOWN[stage].needs else {}
    if first:
        with delayed_stop():
            save_model(folder, averaged, {**origin, **tokenizer, **spent, **machine})
            state_path.unlink(missing_ok=True)
    parallel.barrier()  # the next stage reads the file
    return averaged


def prepare(
    preset: Preset,
    recipe_name: str,
    stage: str,
    seed: int,
    device: torch.device,
    needs_folder: Path,
    collection: Collection,
) -> tuple[torch.nn.Module, LossAt]:
    """Make a stage's new model, and its loss."""
    recipe = preset.recipes[recipe_name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = KNOWN[stage].model_class(preset.models[stage]).to(device, torch.float32)
    if preset.compiled and device.type == "cuda":
        model.to(memory_format=torch.channels_last).compile()
    needs, source = load_needs(stage, needs_folder, device), stage_source(stage, preset, recipe, seed, collection)
    KNOWN[stage].before(model, source, **needs)
    frozen = frozen_parts(stage, preset, needs, device)
    return model, StageLoss(stage, source, recipe.stages[stage], frozen, device)


def origin_of(
    preset: Preset,
    recipe_name: str,
    stage: str,
    seed: int,
    needs_folder: Path,
    collection: Collection | None = None,
) -> dict:
    """Describe all that shapes a training of a stage, in JSON's types; two of one origin take the same steps."""
    recipe = preset.recipes[recipe_name]
    collection = collection or collection_of(preset, recipe)
    origin = {
        "preset": preset.name,
        "recipe": recipe_name,
        "seed": seed,
        "world": collection.to_dict(),
        "config": checkpoint.config_to_dict(preset.models[stage]),
        "stage": recipe.stages[stage].to_dict(),
    }
    if stage in preset.diffusion:
        origin["diffusion"] = asdict(preset.diffusion[stage])
    for name in KNOWN[stage].needs:
        origin[name] = checkpoint.read_header(needs_folder / f"{name}.safetensors", name)["sha256"]
    return json.loads(json.dumps(origin))


def kept_step(folder: Path, stage: str, origin: dict) -> int:
    """Tell at which step a stopped training of this origin is kept; 0 where there is none.

    Raises: AccessError: when there is one that may not be read.
    """
    try:
        header = read_state(folder / f"{stage}.training.safetensors")
    except AccessError:
        raise
    except CheckpointError:
        return 0
    return header["step"] if header["origin"] == origin else 0


def stopped_training(path: Path, stage: str, origin: dict, model: torch.nn.Module) -> dict | None:
    """Read the header of a stopped training to go on with; None, with a word on why, where there is none.

    Raises:
        AccessError: when there is one that may not be read.
        ValueError: when it is of another training, which is not to be thrown away.
    """
    try:
        header = read_state(path)
        other = changed(header["origin"] or {}, origin)
        if other and set(other) <= set(KNOWN[stage].needs):
            print(
                f"{stage} is trained from the start: what is kept learned from another {' and another '.join(other)}."
            )
            return None
        check_origin(path, header, origin)
        load_tensors(path, model)
    except MissingError:
        return None
    except AccessError:
        raise
    except CheckpointError as error:
        print(f"{stage} is trained from the start: {error}", file=sys.stderr)
        return None
    return header


class MetricsFile:
    """A stage's metrics, a line of JSON each; lines after the step that is gone on from are dropped."""

    def __init__(self, path: Path, step: int):
        lines = metrics_until(path, step) if step else []
        if lines != metrics_lines(path):
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
    lines = metrics_lines(path)
    whole = [line for line in lines if line.endswith("\n")]
    return [line for line, metrics in zip(whole, read_metrics(path), strict=True) if metrics["step"] <= step]


def read_metrics(path: Path) -> list[dict]:
    """Read the metrics of a stage, a line each; a last line that was cut off is left out.

    Raises: ValueError: when a line is broken (file and line are named); there are none when the file is missing.
    """
    metrics = []
    for number, line in enumerate(metrics_lines(path), 1):
        try:
            if line.endswith("\n"):
                found = json.loads(line)
                metrics.append({**found, "step": int(found["step"]), "loss": float(found["loss"])})
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}, holds no step and loss: remove that line.") from error
    return metrics


def metrics_lines(path: Path) -> list[str]:
    """Read the lines of a file of metrics; none when it is missing.

    Raises: ValueError: when it is larger than any that was written by a training.
    """
    if not path.exists():
        return []
    if (size := path.stat().st_size) > MAX_METRICS:
        raise ValueError(f"{path} has {size} bytes; metrics have at most {MAX_METRICS}: move it away.")
    return path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)


def is_finished(folder: Path, stage: str, origin: dict) -> bool:
    """Tell whether the folder holds this stage, undamaged and trained the same way; a word says why not.

    Raises: AccessError: when it holds one that may not be read.
    """
    try:
        header = checkpoint.load_model(KNOWN[stage].model_class, folder)[1]
    except MissingError:
        return False
    except AccessError:
        raise
    except CheckpointError as error:
        print(f"{stage} is trained again: {error}", file=sys.stderr)
        return False
    if other := changed(header, origin):
        there, here = ({name: values.get(name) for name in other} for values in (header, origin))
        print(f"{stage} is trained again: {differences(there, here)}.", file=sys.stderr)
    return not other


def changed(there: dict, here: dict) -> list[str]:
    """Name the entries of an origin that are not the same there."""
    return [name for name, value in here.items() if there.get(name) != value]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone; a run that was killed no longer holds it.

    Where the file system has no locks, a warning says so and the folder is used without.
    Raises: ValueError: when another run holds it, or it may not be written.
    """
    path = folder / "run.lock"
    lock = FileLock(path, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(action="ignore"):  # filelock's, where it makes do with a file that it deletes
            lock.acquire()
    except Timeout:
        raise ValueError(
            f"{folder} is held by another run: wait for that to end, or name another folder. "
            f"If no other run is alive, delete {path}."
        ) from None
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{folder} cannot be made, since a file is in its place: name another folder.") from None
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", None) in NOT_ALLOWED:
            place = path if path.exists() else folder
            raise ValueError(f"{place} may not be written ({checkpoint.reason(error)}): name another folder.") from None
        why = checkpoint.reason(error)
        if not os.path.isdir(folder):  # a Path would raise where its name is too long
            raise ValueError(f"{folder} cannot be made ({why}): name another folder.") from None
        print(f"{folder} cannot be locked ({why}); see to it that no second run uses it.", file=sys.stderr)
    else:
        remove_litter(folder)
    try:
        yield
    finally:
        lock.release()


def remove_litter(folder: Path) -> None:
    """Delete what processes left that were killed while they saved into a folder that is now held."""
    for kind in ("safetensors", "jsonl"):
        for litter in folder.glob(f"*.{kind}.*.partial"):
            litter.unlink(missing_ok=True)
