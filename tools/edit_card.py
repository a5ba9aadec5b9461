"""Measure what edits of a system do: rates with 95 % intervals, and seconds.

python tools/edit_card.py tiny -n 300
python tools/edit_card.py tiny -n 300 --only priors
"""

import argparse
import time

import torch

from minidalle import MiniDalle
from minidalle.evaluation.edits import MEASURES, draw_scenes, variation
from minidalle.evaluation.gallery import paint_all
from minidalle.evaluation.metrics import Rate
from minidalle.evaluation.report import LEVELS, count_calls, draw_prompts, pipeline_painter, score
from minidalle.pipeline import PRIORS
from minidalle.search import embed_images, embed_query, nearest
from minidalle.world import oracle
from minidalle.world.render import render

LARGE = 100_000  # pictures of a large collection
STRENGTHS = (0.5, 0.7, 0.9)  # of variations, beside none


def shown(value: object) -> str:
    """Write a figure down."""
    if not isinstance(value, Rate):
        return f"{value}"
    low, high = value.interval
    return f"{100 * value.share:.1f} % ({100 * low:.1f}-{100 * high:.1f}), n = {value.n}"


def print_rows(name: str, found: dict, seconds: float) -> None:
    """Print one measure; rows of rows are named by both."""
    for row, value in found.items():
        for inner, one in value.items() if isinstance(value, dict) else [("", value)]:
            print(f"{name:12} {row} {inner}".rstrip().ljust(44), shown(one), flush=True)
    print(f"{name:12} seconds".ljust(44), f"{seconds:.0f}", flush=True)


def large_search(pipe: MiniDalle, n: int) -> None:
    """Print what a collection of n pictures in memory costs to embed and to ask."""
    parts, seconds = [], 0.0
    for first in range(0, n, 2000):
        images = render(draw_scenes(min(2000, n - first), 0.5, f"large/{first}"), pipe.clip.config.image_size)
        started = time.perf_counter()
        parts.append(embed_images(pipe, images))
        seconds += time.perf_counter() - started
    z_image = torch.cat(parts)
    started = time.perf_counter()
    nearest(z_image, embed_query(pipe, "a red circle above a blue square"), 16)
    asked = time.perf_counter() - started
    size = z_image.numel() * z_image.element_size() / 1e6
    print_rows("large search", {"pictures": n, "seconds to ask": round(asked, 4), "MB": round(size, 1)}, seconds)


@torch.no_grad()
def compare_priors(checkpoint: str, n: int) -> None:
    """Print how well both priors follow prompts, with the same decoder, and what a z_image costs."""
    for prior in PRIORS:
        pipe = MiniDalle.from_pretrained(checkpoint, "cpu", prior=prior)
        found: dict[str, object] = {}
        for level, share in LEVELS.items():
            for split in ("seen", "held out"):
                asked = draw_prompts(n, share, split, f"priors/{level}/{split}")
                captions = pipe.captions([prompt.caption for prompt in asked])
                images = paint_all(pipeline_painter(pipe, rephrase=False), captions, f"priors/{level}/{split}")
                found[f"{level}, {split}"] = score(asked, oracle.read(images))["exact"]
        text, calls = pipe.encode(captions[:64]), count_calls(pipe)
        for size in (1, 64):
            rows = text.map(lambda x, size=size: x[:size])
            started = time.perf_counter()
            repeats = 3
            for _ in range(repeats):
                pipe.sample_prior(rows, generator=torch.Generator().manual_seed(0))
            found[f"seconds a z_image, {size} at once"] = round((time.perf_counter() - started) / repeats / size, 5)
        print_rows(prior, found | {"calls": calls["prior"]}, 0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="tiny")
    parser.add_argument("-n", type=int, default=300, help="pictures of each measure (default %(default)s)")
    parser.add_argument(
        "--only", choices=[*MEASURES, "strength", "large search", "priors"], help="one measure in place of all"
    )
    args = parser.parse_args()
    pipe = MiniDalle.from_pretrained(args.checkpoint, "cpu")
    for name, measure in MEASURES.items():
        if args.only in (None, name):
            started = time.perf_counter()
            print_rows(
                name, measure(pipe, args.n // 5 if name == "text diffs" else args.n), time.perf_counter() - started
            )
    if args.only in (None, "strength"):
        for strength in STRENGTHS:
            started = time.perf_counter()
            found = variation(pipe, args.n, strength=strength)
            print_rows(f"strength {strength}", found, time.perf_counter() - started)
    if args.only in (None, "large search"):
        large_search(pipe, LARGE)
    if args.only in (None, "priors"):
        compare_priors(args.checkpoint, args.n)


if __name__ == "__main__":
    main()
