"""Make the files of data/clinic: python -m minidalle.course.clinic.make FOLDER (ten minutes on one thread)."""

import sys
from pathlib import Path

from minidalle import checkpoint
from minidalle.course.clinic.instruments import measure
from minidalle.course.clinic.mistakes import KIND, MISTAKES, Networks, file_name, train
from minidalle.course.clinic.patients import Patient, read

SEEDS = (0, 1, 2)  # of trainings, and of the examinations of each


def write_files(
    folder: Path, seed: int = 0, steps: int | None = None, names: tuple[str, ...] = tuple(MISTAKES)
) -> None:
    """Train patients and write what differs from the healthy system."""
    healthy = train(MISTAKES["healthy"], seed, steps)
    for name in names:
        models = healthy if name == "healthy" else train(MISTAKES[name], seed, steps, healthy)
        if models:
            save(folder / file_name(name), models)


def save(path: Path, models: Networks, **meta) -> None:
    """Write networks into one file, in float16."""
    tensors = {f"{kind}.{name}": x.half() for kind, model in models.items() for name, x in model.state_dict().items()}
    checkpoint.save(path, KIND, tensors, meta)


def find_ranges(folders: list[Path]) -> dict[str, list[float]]:
    """Examine the healthy systems of several trainings: the least and the greatest value of each instrument."""
    reports = []
    for folder in folders:
        subject = Patient("healthy", read(folder / file_name("healthy")), MISTAKES["healthy"])
        reports += [measure(subject, seed) for seed in SEEDS]
    return {name: [f([r[name] for r in reports]) for f in (min, max)] for name in reports[0]}


def main(folder: Path) -> None:
    """Make all files, and put the healthy ranges into the header of the healthy one."""
    others = [folder / f"seed {seed}" for seed in SEEDS[1:]]
    write_files(folder, SEEDS[0])
    for seed, other in zip(SEEDS[1:], others, strict=True):
        write_files(other, seed, names=("healthy",))
    finish(folder, others)


def finish(folder: Path, others: list[Path]) -> None:
    """Put the healthy ranges into the header of the healthy file."""
    path = folder / file_name("healthy")
    save(path, read(path), ranges=find_ranges([folder, *others]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
