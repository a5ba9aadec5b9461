"""How fast a folder of pictures is read: the first epoch, which decodes, against the second, and the memory of both.

    python tools/bench_pictures.py /path/to/an/empty/folder --pictures 20000 --side 256

The folder is filled with JPEG files of noisy discs and deleted afterwards.
"""

import argparse
import itertools
import json
import random
import resource
import shutil
import time
from pathlib import Path

import numpy as np
from PIL import Image

from minidalle.data.pictures import Pictures

BATCH = 128
WORDS = "red green blue large small round bright dark near far old new smooth rough".split()


def make(folder: Path, number: int, side: int) -> None:
    """Write pictures that a camera might have made: smooth areas, edges and grain."""
    folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    y, x = np.mgrid[:side, :side] / side
    grain = rng.normal(0, 6, (8, side, side, 3))
    for i in range(number):
        center, radius, colors = rng.random(2), 0.1 + 0.3 * rng.random(), rng.integers(0, 256, (2, 3))
        inside = ((x - center[0]) ** 2 + (y - center[1]) ** 2 < radius**2)[..., None]
        pixels = np.where(inside, colors[0], colors[1] * (0.5 + 0.5 * y[..., None])) + grain[i % 8]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:06d}.jpg", quality=90)
        text = f"number {i}, {' '.join(random.Random(i).choices(WORDS, k=5))}"
        rows.append(json.dumps({"file_name": f"{i:06d}.jpg", "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))


def peak_memory() -> float:
    """Give the most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    """Make the folder, go through two epochs, and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=256, help="pixels of the files")
    parser.add_argument("--size", type=int, default=32, help="pixels that they are brought to")
    args = parser.parse_args()
    make(args.folder / "pictures", args.pictures, args.side)
    try:
        before, started = peak_memory(), time.perf_counter()
        pictures = Pictures(args.folder / "pictures", cache=args.folder / "cache")
        listed = time.perf_counter()
        source = pictures.source(args.size, seed=0)
        steps = len(pictures.training) // BATCH
        times = [started]
        for epoch in range(3):
            for step in range(steps):
                source.batch(epoch * steps + step, BATCH)
            times.append(time.perf_counter())
        rates = [steps * BATCH / (end - begin) for begin, end in itertools.pairwise(times)]
        print(f"listed in {listed - started:.1f} s; pictures/s: {', '.join(f'{rate:,.0f}' for rate in rates)}")
        print(
            f"second epoch {rates[1] / rates[0]:.1f} times the first; memory {before:.0f}, then {peak_memory():.0f} MB"
        )
    finally:
        shutil.rmtree(args.folder / "pictures")
        shutil.rmtree(args.folder / "cache", ignore_errors=True)


if __name__ == "__main__":
    main()
