"""Reference curves: the losses of several seeds of a recipe, small enough to ship, so that a loss can be judged.

A file holds {"preset", "recipe", "stages": {stage: {seed: {"steps": [...], "losses": [...]}}}}.
"""

import json
from pathlib import Path

from minidalle import checkpoint
from minidalle.training.run import read_metrics
from minidalle.training.stages import STACK, STAGES

MAX_POINTS = 60  # of a curve
PACKAGE = Path(__file__).parent.parent
FOLDERS = (PACKAGE / "curves", PACKAGE.parent / "data" / "reference")


def make(runs: list[Path]) -> dict:
    """Collect the curves of finished runs of one recipe.

    Raises: ValueError: when the runs differ in anything but their seed, or a stage is missing.
    """
    found = [stage for stage in STAGES if stage in STACK or (runs[0] / f"{stage}.safetensors").exists()]
    stages: dict[str, dict] = {stage: {} for stage in found}
    origins = set()
    for run in runs:
        for stage in found:
            header = checkpoint.read_header(run / f"{stage}.safetensors", stage)
            origins.add((header["preset"], header["recipe"]))
            if str(header["seed"]) in stages[stage]:
                raise ValueError(f"{run}: the seed {header['seed']} of {stage} comes twice: name runs of other seeds.")
            stages[stage][str(header["seed"])] = thin(curve_of(run / f"{stage}.metrics.jsonl"))
    if len(origins) != 1:
        several = ", ".join(f"{recipe} of {preset}" for preset, recipe in sorted(origins))
        raise ValueError(f"The runs are of {several}; name runs of one recipe of one preset.")
    preset, recipe = origins.pop()
    return {"preset": preset, "recipe": recipe, "stages": stages}


def curve_of(path: Path) -> list[tuple[int, float]]:
    """Read steps and losses of a stage's metrics."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist: name the folder of a run, which keeps its metrics.")
    return [(line["step"], line["loss"]) for line in read_metrics(path)]


def thin(curve: list[tuple[int, float]]) -> dict:
    """Shorten a curve to MAX_POINTS or fewer: the mean of neighbouring losses, at the last of their steps."""
    group = -(-len(curve) // MAX_POINTS)
    parts = [curve[start : start + group] for start in range(0, len(curve), group or 1)]
    losses = [sum(loss for _, loss in part) / len(part) for part in parts]
    return {"steps": [part[-1][0] for part in parts], "losses": [float(f"{loss:.4g}") for loss in losses]}


def to_json(reference: dict) -> str:
    """Write reference curves, one a line."""
    head = {key: value for key, value in reference.items() if key != "stages"}
    stages = (
        f'  "{stage}": {{\n'
        + ",\n".join(f'   "{seed}": {json.dumps(curve)}' for seed, curve in sorted(curves.items()))
        + "\n  }"
        for stage, curves in reference["stages"].items()
    )
    return json.dumps(head)[:-1] + ', "stages": {\n' + ",\n".join(stages) + "\n}}\n"


def load(preset: str, recipe: str, stage: str) -> list[dict]:
    """Find the shipped curves of a stage; none when there are none for this preset and recipe."""
    for folder in FOLDERS:
        path = folder / f"{preset}.json"
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            return list(found["stages"].get(stage, {}).values()) if found["recipe"] == recipe else []
    return []


def shipped(name: str) -> list | dict:
    """Read a file of figures that come with the package, such as the cards of rivals in rivals.json.

    Raises: ValueError: when there is none of that name.
    """
    for folder in FOLDERS:
        if (folder / name).is_file():
            return json.loads((folder / name).read_text(encoding="utf-8"))
    raise ValueError(f"{name} does not come with this package: install it again.")


def final_loss(curve: list[tuple[int, float]] | dict) -> float:
    """Give the mean loss of the last tenth of the steps of a curve, as drawn or as shipped."""
    points = list(zip(curve["steps"], curve["losses"], strict=True)) if isinstance(curve, dict) else curve
    last = [loss for step, loss in points if step > 0.9 * points[-1][0]]
    return sum(last) / len(last)
