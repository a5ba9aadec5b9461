"""How fast a folder of pictures is read: the first epoch, which decodes, against the second, and the memory of both.

    python tools/bench_pictures.py /path/to/an/empty/folder --pictures 20000 --side 256

The folder is filled with JPEG files of noisy discs and deleted afterwards.
"""

import argparse
import contextlib
import io
import itertools
import json
import random
import resource
import shutil
import tarfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from minidalle.data.pictures import Pictures
from minidalle.device import pick_threads, threads

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


def pack(folder: Path, shards: int) -> None:
    """Move an image folder into archives, a picture and a text for each sample."""
    with contextlib.ExitStack() as stack:
        archives = [stack.enter_context(tarfile.open(folder / f"{k:05d}.tar", "w")) for k in range(shards)]
        for i, line in enumerate((folder / "metadata.jsonl").read_text().splitlines()):
            row, archive = json.loads(line), archives[i % shards]
            archive.add(folder / row["file_name"], row["file_name"])
            text, entry = row["text"].encode(), tarfile.TarInfo(row["file_name"].replace(".jpg", ".txt"))
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))
            (folder / row["file_name"]).unlink()
    (folder / "metadata.jsonl").unlink()


def peak_memory() -> float:
    """Give the most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(folder: Path, size: int) -> None:
    """Go through three epochs, and print how fast, and the memory."""
    before, started = peak_memory(), time.perf_counter()
    pictures = Pictures(folder / "pictures", cache=folder / "cache")
    listed = time.perf_counter()
    source = pictures.source(size, seed=0)
    steps = len(pictures.training) // BATCH
    times = [started]
    for epoch in range(3):
        for step in range(steps):
            source.batch(epoch * steps + step, BATCH)
        times.append(time.perf_counter())
    rates = [steps * BATCH / (end - begin) for begin, end in itertools.pairwise(times)]
    print(f"listed in {listed - started:.1f} s; pictures/s: {', '.join(f'{rate:,.0f}' for rate in rates)}")
    print(f"second epoch: {rates[1] / rates[0]:.1f} times the first; MB: {before:.0f}, then {peak_memory():.0f}")


def main() -> None:
    """Make the folder, measure, and delete it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=256, help="pixels of the files")
    parser.add_argument("--size", type=int, default=32, help="pixels that they are brought to")
    parser.add_argument("--shards", type=int, default=0, help="archives to pack them into; 0: an image folder")
    args = parser.parse_args()
    make(args.folder / "pictures", args.pictures, args.side)
    if args.shards:
        pack(args.folder / "pictures", args.shards)
    try:
        with threads(pick_threads()):
            measure(args.folder, args.size)
    finally:
        shutil.rmtree(args.folder / "pictures")
        shutil.rmtree(args.folder / "cache", ignore_errors=True)


if __name__ == "__main__":
    main()
