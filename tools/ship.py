"""Copy the models of a finished run to where shipped weights lie, in float16.

    python tools/ship.py runs/tiny data/checkpoints/tiny

Half precision halves the download; whoever loads them computes in float32. Compare the report cards of both folders
before you commit the copy.
"""

import argparse
from pathlib import Path

from minidalle import checkpoint
from minidalle.rivals import FAMILIES as FAMILIES  # makes the stages of rivals known
from minidalle.training.stages import KNOWN

OWN = ("format_version", "kind", "sha256")  # of the header, which save writes itself


def ship(run: Path, folder: Path) -> None:
    """Write each model of a run in float16; models that learned from one another still name each other's hash."""
    hashes: dict[str, tuple[str, str]] = {}  # of the file there, and of the file here
    for stage, how in KNOWN.items():
        source = run / f"{stage}.safetensors"
        if not source.exists():
            continue
        tensors, header = checkpoint.load(source, stage)
        meta = {key: value for key, value in header.items() if key not in OWN}
        for need in how.needs:
            there, here = hashes[need]
            if meta[need] != there:
                raise SystemExit(f"The {stage} in {run} was trained with another {need} than the one beside it.")
            meta[need] = here
        halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        hashes[stage] = header["sha256"], checkpoint.save(folder / source.name, stage, halves, meta)
        print(f"{folder / source.name}: {(folder / source.name).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    ship(**vars(parser.parse_args()))
