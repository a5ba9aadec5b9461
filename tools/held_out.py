"""Where CLIP puts the combinations that it never saw, and which of them a stack fails to draw. A script, not a test.

python tests/held_out.py runs/demo tiny -n 200

Off: how far a held-out combination lies from the sum of its parts, which is the mean of z(color, s) + z(c, shape) -
z(c, s) over all shown combinations that give it. Distances are those of the scaled space, whose vectors have length 8.
"""

import argparse
from collections import Counter
from itertools import combinations

import torch

from minidalle import MiniDalle, tokenizer
from minidalle.clip import CLIP
from minidalle.evaluation import report
from minidalle.world import oracle
from minidalle.world.captions import matches
from minidalle.world.render import render
from minidalle.world.scenes import BACKGROUNDS, COLORS, HELD_OUT_PAIRS, PLACES, SHAPES, SIZES, Scene, Object

Points = dict[tuple[str, str], torch.Tensor]  # (N, D) for each (color, shape), row by row in the same surroundings


@torch.no_grad()
def pictures(clip: CLIP) -> Points:
    """Embed every combination of colour and shape, in every size, place and background."""
    around = [(size, *place, ground) for size in SIZES for place in PLACES.values() for ground in BACKGROUNDS]

    def embed(color: str, shape: str) -> torch.Tensor:
        return clip.encode_image(render([Scene((Object(shape, color, size, x, y),), g) for size, x, y, g in around]))

    return {(color, shape): embed(color, shape) for color in COLORS for shape in SHAPES}


@torch.no_grad()
def captions(clip: CLIP) -> Points:
    """Embed the caption of every combination."""
    return {(c, s): clip.encode_text(tokenizer.encode([f"a {c} {s}"]))[0] for c in COLORS for s in SHAPES}


def off(points: Points, color: str, shape: str) -> float:
    """Measure how far a combination lies from the sum of its parts."""
    parts = [
        points[color, s] + points[c, shape] - points[c, s]
        for c in COLORS
        for s in SHAPES
        if c != color and s != shape and not {(color, s), (c, shape), (c, s)} & HELD_OUT_PAIRS
    ]
    apart = points[color, shape] - torch.stack(parts).mean(0)
    return (apart.norm(dim=1).mean() * apart.shape[1] ** 0.5).item()


def nearest_shapes(points: Points) -> tuple[float, str, str]:
    """Find the two shapes that lie nearest to each other, in the mean over colours and surroundings."""

    def apart(a: str, b: str) -> float:
        rows = torch.cat([points[color, a] - points[color, b] for color in COLORS])
        return (rows.norm(dim=1).mean() * rows.shape[1] ** 0.5).item()

    return min((apart(a, b), a, b) for a, b in combinations(SHAPES, 2))


def failures(pipe: MiniDalle, n: int) -> dict[tuple[str, str], str]:
    """Draw held-out prompts of one object, and count for each combination how many fail, of how many."""
    asked = report.draw_prompts(n, 0.0, True, "report/one object, held out/0")  # those of the report card
    read = oracle.read(report.paint_all(report.pipeline_painter(pipe), [prompt.caption for prompt in asked]))
    drawn, failed = Counter(), Counter()
    for prompt, scene in zip(asked, read, strict=True):
        item = prompt.scene.objects[0]
        drawn[item.color, item.shape] += 1
        failed[item.color, item.shape] += not all(matches(prompt.description, scene).values())
    return {pair: f"{failed[pair]} of {drawn[pair]}" for pair in drawn}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stacks", nargs="+", help="folders of runs, or names of shipped weights")
    parser.add_argument("-n", type=int, default=200, help="prompts to draw (default %(default)s)")
    args = parser.parse_args()
    for name in args.stacks:
        pipe = MiniDalle.from_pretrained(name)
        shown, said, failed = pictures(pipe.clip), captions(pipe.clip), failures(pipe, args.n)
        distance, *shapes = nearest_shapes(shown)
        print(f"{name}: the nearest shapes, {' and '.join(shapes)}, lie {distance:.1f} apart")
        print(f"{'':16} off, pictures  off, caption  failed")
        for pair in sorted(HELD_OUT_PAIRS):
            print(f"{' '.join(pair):16} {off(shown, *pair):13.1f} {off(said, *pair):13.1f}  {failed.get(pair, '-')}")


if __name__ == "__main__":
    main()
