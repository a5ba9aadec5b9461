"""What the notebooks share: the budget, the pieces that you train and keep, the live loss, the oracle's verdict."""

import dataclasses
import os
import time
from importlib import metadata
from pathlib import Path

import torch

from minidalle.checkpoint import CheckpointError, find_folder, load_model
from minidalle.course.live import LiveLoss
from minidalle.data.batches import World
from minidalle.device import forbid_tf32, half_precision, pick_device
from minidalle.evaluation import curves
from minidalle.evaluation.metrics import Rate
from minidalle.pipeline import MiniDalle
from minidalle.training.recipes import STAGES, TINY, Preset, StageRecipe
from minidalle.training.run import locked, train_stage
from minidalle.training.stages import KINDS, loss_of
from minidalle.world import oracle
from minidalle.world.captions import Description, matches, parse

FOLDER = Path(os.environ.get("MINIDALLE_MODELS") or "my_models")  # in the working directory: what you train
BUDGETS = ("smoke", "quick", "full")
SHIPPED = "tiny"
LESSONS = {"clip": "02", "prior": "07", "decoder": "08", "upsampler": "09"}
NEEDS = {"07": ("clip",), "08": ("clip", "prior"), "10": ("clip", "prior", "decoder")}  # from lessons before
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

    Raises: ValueError: when it is no whole number.
    """
    found = os.environ.get("MINIDALLE_SEED") or "0"
    if not found.isdecimal():
        raise ValueError(f'MINIDALLE_SEED is "{found}"; a whole number was expected.')
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
    precision = str(half_precision(device) or torch.float32).removeprefix("torch.")
    print(f"device: {device} ({precision} in training)\nbudget: {budget()}")
    for kind in KINDS:
        if piece_folder(kind):
            print(f"{kind}: {whose(kind)}")


def preset() -> Preset:
    """Give the course's preset; its smoke recipe is the quick one with a twentieth of the steps."""
    quick = TINY.recipes["quick"]
    stages = {f.name: getattr(quick, f.name) for f in dataclasses.fields(quick)}
    short = {
        name: dataclasses.replace(stage, steps=max(2, stage.steps // 20), warmup_steps=2)
        for name, stage in stages.items()
        if isinstance(stage, StageRecipe)
    }
    return dataclasses.replace(TINY, recipes=TINY.recipes | {"smoke": dataclasses.replace(quick, **short)})


def own(kind: str) -> dict | None:
    """Read the header of the piece that you trained; None where there is none that can be used."""
    try:
        header = load_model(KINDS[kind], FOLDER)[1]
    except CheckpointError:
        return None
    return header if header.get("recipe") != "smoke" or budget() == "smoke" else None


def clip_folder() -> Path:
    """Choose the CLIP: yours where all that this notebook needs is yours and was trained with it, else the shipped."""
    clip, needed = own("clip"), {kind: own(kind) for kind in _needed if kind != "clip"}
    if clip and all(piece and piece.get("clip") == clip["sha256"] for piece in needed.values()):
        return FOLDER
    return find_folder(SHIPPED)


def piece_folder(kind: str) -> Path | None:
    """Choose a piece: yours where it fits the chosen CLIP, else the shipped one; None where there is neither."""
    if kind == "clip":
        return clip_folder()
    piece, shipped = own(kind), find_folder(SHIPPED)
    if piece and piece.get("clip") in (None, load_model(KINDS["clip"], clip_folder())[1]["sha256"]):
        return FOLDER
    return shipped if (shipped / f"{kind}.safetensors").is_file() else None


def whose(kind: str) -> str:
    """Say whose piece is used, and why the shipped one where yours is there."""
    folder, piece = piece_folder(kind), own(kind)
    if folder == FOLDER:
        return f"yours ({FOLDER}, {piece['recipe']} budget, {piece['seconds']:.0f} s of training)"
    if piece is None:
        unusable = "yours is damaged or was only a smoke test; " if (FOLDER / f"{kind}.safetensors").exists() else ""
        return f"shipped ({unusable}notebook {LESSONS[kind]} trains your own)"
    if kind == "clip":
        missing = [k for k in _needed if k != "clip" and (own(k) or {}).get("clip") != own("clip")["sha256"]]
        return f"shipped (yours has no {' and no '.join(missing)} yet: notebook {LESSONS[missing[0]]})"
    return f"shipped (yours was trained with another CLIP; notebook {LESSONS[kind]} trains it again)"


def load(kind: str) -> torch.nn.Module:
    """Load a piece: yours where there is one that fits your CLIP, else the shipped one; says which.

    Args:
        kind: clip, prior, decoder or upsampler.

    Returns: the model on the device, in eval mode and without gradients.
    Raises: CheckpointError: when there is neither.
    """
    if kind not in KINDS:
        raise ValueError(f'"{kind}" is no piece of the system; choose one of {", ".join(KINDS)}.')
    folder = piece_folder(kind) or find_folder(SHIPPED)
    model, _ = load_model(KINDS[kind], folder)
    if folder != FOLDER and kind in STAGES[1:] and clip_folder() == FOLDER:
        print(f"{kind}: shipped. It knows the shipped CLIP and not yours: train it in notebook {LESSONS[kind]}.")
    else:
        print(f"{kind}: {whose(kind)}")
    return model.to(pick_device()).eval()


def pipeline() -> MiniDalle:
    """Put the whole system together: from your pieces where they are complete, else with the shipped ones."""
    global _needed
    before, _needed = _needed, NEEDS["10"]
    try:
        folders = {kind: folder for kind in KINDS if (folder := piece_folder(kind))}
        headers = [load_model(KINDS[kind], folder)[1] for kind, folder in folders.items() if kind in STAGES]
        pieces = {kind: load(kind) for kind in folders}
    finally:
        _needed = before
    return MiniDalle(**pieces, device=pick_device(), two_things=all(h.get("two_things", 1) > 0 for h in headers))


def train(stage: str) -> torch.nn.Module:
    """Train a stage with this budget's recipe, keep it in FOLDER, and draw its loss meanwhile.

    Returns: the averaged weights, in eval mode.
    """
    clips, device = FOLDER if stage == "clip" else clip_folder(), pick_device()
    recipe = getattr(preset().recipes[budget()], stage)
    if stage in STAGES[1:]:
        print(f"{stage} learns from the CLIP that is {'yours' if clips == FOLDER else 'shipped'}.")
    live = LiveLoss(
        stage, curves.load(TINY.name, budget(), stage), theory_lines(stage, clips, device), total=recipe.steps
    )
    started = time.perf_counter()
    with locked(FOLDER):
        model = train_stage(
            preset(),
            budget(),
            FOLDER,
            stage,
            seed(),
            device,
            resume=False,
            clip_folder=clips,
            on_log=live,
            progress=False,
        )
    live.done()
    print(f"{stage}: {recipe.steps} steps in {time.perf_counter() - started:.0f} s. {live.verdict()}")
    return model.eval()


def theory_lines(stage: str, clips: Path, device: torch.device) -> dict[str, float]:
    """Say what a stage loses that has learned nothing: ln N for CLIP, that of the mean, of a plain enlargement."""
    recipe = preset().recipes[budget()]
    if stage == "clip":
        size = recipe.clip.batch_size
        return {f"knows nothing: ln {size}": torch.tensor(size).log().item()}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = KINDS[stage](getattr(TINY, stage)).to(device)
        if stage == "upsampler":
            what, model.forward = "the small picture, enlarged", lambda x_t, t, enlarged: enlarged
        else:
            x_start = World(TINY.clip.image_size, 0, recipe.two_things).batch(0, 512).images.to(device)
            if stage == "prior":
                x_start = model.scale(load_model(KINDS["clip"], clips)[0].to(device).encode_image(x_start))
            mean = x_start.mean(0, keepdim=True)
            what, model.forward = "always the mean", lambda x_t, *told: mean.expand_as(x_t)
        loss_at = loss_of(stage, model, clips, recipe, TINY.clip.image_size, 0, device)
        return {f"knows nothing: {what}": sum(float(loss_at(step)) for step in range(4)) / 4}


def exact_match(images: torch.Tensor, descriptions: list[Description] | list[str]) -> Rate:
    """Ask the oracle how many pictures show all that was asked.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        descriptions: what was asked of each, or captions that say it.

    Raises: ValueError: when there is not one for each picture.
    """
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
