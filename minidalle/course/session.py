"""What the notebooks share: the budget, trainings that are kept and drawn, the oracle's verdict."""

import math
import os
import time
from importlib import metadata
from pathlib import Path

import torch

from minidalle.checkpoint import brief
from minidalle.course.live import LiveLoss
from minidalle.course.pieces import SYSTEM, Pieces
from minidalle.device import forbid_tf32, half_precision, pick_device
from minidalle.evaluation import curves
from minidalle.evaluation.metrics import Rate
from minidalle.layers import scale_embedding
from minidalle.pipeline import MiniDalle
from minidalle.training.loop import Stopped
from minidalle.training.recipes import TINY
from minidalle.training.run import MAX_SEED, kept_step, locked, origin_of, train_stage
from minidalle.training.stages import STAGES, StageLoss, frozen_parts, load_needs, stage_source
from minidalle.training.trainer import precision_name
from minidalle.world import oracle
from minidalle.world.captions import Description, matches
from minidalle.world.grammar import parse

BUDGETS = ("smoke", "quick", "full")
ALL = ("clip", "prior", "decoder")
NEEDS = {"07": ("clip",), "08": ("clip", "prior"), "10": ALL, "11": ALL, "12": ALL}  # from lessons before

_needed: tuple[str, ...] = ()  # by the notebook that was begun


def budget() -> str:
    """Tell how much may be computed: smoke (does it run?), quick (the course), full (as the shipped weights).

    Raises: ValueError: when MINIDALLE_BUDGET is none of them.
    """
    found = os.environ.get("MINIDALLE_BUDGET") or "quick"
    if found not in BUDGETS:
        raise ValueError(f'MINIDALLE_BUDGET is "{found}"; choose one of {", ".join(BUDGETS)}.')
    return found


def seed() -> int:
    """Read the seed of your trainings from MINIDALLE_SEED; 0 where it is not set.

    Raises: ValueError: when it is no whole number from 0 to 2**63 - 1.
    """
    found = os.environ.get("MINIDALLE_SEED") or "0"
    if not found.isdecimal() or len(found) > len(str(MAX_SEED)) or int(found) > MAX_SEED:
        raise ValueError(f'MINIDALLE_SEED is "{found:.40}"; a whole number from 0 to {MAX_SEED} was expected.')
    return int(found)


def steps(quick: int, smoke: int | None = None, full: int | None = None) -> int:
    """Choose the number of steps of a training under this budget."""
    defaults = {"smoke": max(2, quick // 20), "quick": quick, "full": 4 * quick}
    given = {"smoke": smoke, "full": full}
    return given.get(budget()) or defaults[budget()]


def check(condition: bool, message: str) -> None:
    """Assert what a training must have reached; at the smoke budget nothing is reached, so nothing is asked."""
    if budget() != "smoke" and not condition:
        raise AssertionError(message)


def begin(notebook: str) -> None:
    """Say where this notebook computes, how much, and which pieces of earlier notebooks it builds on."""
    global _needed
    _needed = NEEDS.get(notebook[:2], ())
    forbid_tf32()
    device = pick_device()
    print(f"device: {device} ({precision_name(half_precision(device))} in training)\nbudget: {budget()}")
    for kind in SYSTEM:
        if pieces().folder_of(kind):
            print(f"{kind}: {pieces().whose(kind)}")


def folder() -> Path:
    """Give the folder of what you train: MINIDALLE_MODELS, or my_models in the working directory.

    Raises: ValueError: when it names the home of a user that is not known here.
    """
    named = os.environ.get("MINIDALLE_MODELS") or "my_models"
    try:
        return Path(named).expanduser()
    except RuntimeError:
        raise ValueError(f"MINIDALLE_MODELS is {brief(named)}, in the home of a user that is not known here.") from None


def pieces(needed: tuple[str, ...] | None = None) -> Pieces:
    """Give the pieces for the notebook that was begun, or for what is needed."""
    return Pieces(folder(), _needed if needed is None else needed, budget() == "smoke")


def load(kind: str) -> torch.nn.Module:
    """Load a piece: yours where there is one that fits your CLIP, else the shipped one; says which.

    Args:
        kind: clip, prior, decoder or upsampler.

    Returns: the model on the device, in eval mode and without gradients.
    Raises: CheckpointError: when there is neither.
    """
    return pieces().load(kind, pick_device())[0]


def pipeline() -> MiniDalle:
    """Put the whole system together: from your pieces where they are complete, else with the shipped ones."""
    return pieces(NEEDS["10"]).pipeline(pick_device())


def train(stage: str) -> torch.nn.Module:
    """Train a stage with this budget's recipe, keep it in your folder, and draw its loss meanwhile.

    A training that was stopped goes on from where it was kept, when it is asked for again.

    Returns: the averaged weights, in eval mode.
    Raises:
        ValueError: when there is no such stage, or your folder may not be written or is in use.
        Stopped: when it was interrupted; what was trained so far is kept.
    """
    if stage not in STAGES:
        raise ValueError(f'"{stage}" is no stage; choose one of {", ".join(STAGES)}.')
    there, device, recipe, number = folder(), pick_device(), TINY.recipes[budget()], seed()
    clips = there if stage == "clip" else pieces().clip_folder()
    if STAGES[stage].needs:
        print(f"{stage} learns from the CLIP that is {'yours' if clips == there else 'shipped'}.")
    total = recipe.stages[stage].steps
    live = LiveLoss(stage, curves.load(TINY.name, budget(), stage), theory_lines(stage, clips, device), total)
    started = time.perf_counter()
    with locked(there):
        resume = kept_step(there, stage, origin_of(TINY, budget(), stage, number, clips)) > 0
        try:
            model = train_stage(TINY, budget(), there, stage, number, device, resume, clips, live, progress=False)
        except Stopped as stop:
            print(f"{stop} Run this cell again to go on from there.")
            raise
    live.done()
    print(f"{stage}: {total} steps in {time.perf_counter() - started:.0f} s. {live.verdict()}")
    return model.eval()


def theory_lines(stage: str, clips: Path, device: torch.device) -> dict[str, float]:
    """Give the loss of what has learned nothing: ln N of N options, that of the mean, of a plain enlargement."""
    recipe = TINY.recipes[budget()]
    how = recipe.stages[stage]
    if stage in ("clip", "ar_prior"):  # which choose: a caption of the batch, a bucket
        options = how.batch_size if stage == "clip" else TINY.models[stage].num_buckets
        return {f"uniform guess: ln {options}": math.log(options)}
    frozen = frozen_parts(stage, TINY, load_needs(stage, clips, device), device)
    world = stage_source(stage, TINY, recipe, 0)
    if stage == "upsampler":
        what, answer = "the small picture, enlarged", lambda x_t, t, enlarged: enlarged
    else:
        x_start = world.batch(0, 512).images.to(device)
        if stage == "prior":
            x_start = scale_embedding(frozen["clip"].encode_image(x_start))[:, None]
        mean = x_start.mean(0, keepdim=True)
        what, answer = "always the mean", lambda x_t, *conditions: mean.expand_as(x_t)
    loss_at = StageLoss(stage, world, how, frozen, device)
    return {f"learned nothing: {what}": sum(float(loss_at(answer, step)) for step in range(4)) / 4}


def exact_match(images: torch.Tensor, descriptions: list[Description] | list[str]) -> Rate:
    """Ask the oracle how many pictures show all that was asked.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        descriptions: what was asked of each, or captions that say it.

    Raises: ValueError: when there is not one for each picture.
    """
    descriptions = [descriptions] if isinstance(descriptions, str | Description) else descriptions
    if len(images) != len(descriptions):
        raise ValueError(f"There are {len(images)} pictures and {len(descriptions)} descriptions: give one for each.")
    asked = [parse(said) if isinstance(said, str) else said for said in descriptions]
    read = oracle.read(images.detach().float().cpu().clamp(-1, 1))
    return Rate(sum(all(matches(d, scene).values()) for d, scene in zip(asked, read, strict=True)), len(read))


def badge(notebook: str) -> str:
    """Give the markdown that opens a notebook in Google Colab, made from the repository's address in pyproject.toml."""
    urls = dict(line.split(", ", 1) for line in metadata.metadata("minidalle").get_all("Project-URL") or [])
    if "Repository" not in urls:
        raise ValueError("minidalle was installed without the address of its repository: install it again.")
    path = urls["Repository"].removeprefix("https://github.com/")
    colab = "https://colab.research.google.com"
    return (
        f"[![Open in Colab]({colab}/assets/colab-badge.svg)]"
        f"({colab}/github/{path}/blob/main/notebooks/{notebook}.ipynb)"
    )
