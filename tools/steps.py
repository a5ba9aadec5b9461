"""Try numbers of sampling steps and guidance scales: share of prompts followed, and milliseconds a picture.

    python tools/steps.py [CHECKPOINT] [-n PROMPTS]

Prompts are of the held-out split, on which choices are made; the test split stays unasked.
"""

import argparse
import time

import torch

from minidalle import MiniDalle
from minidalle.device import pick_threads, threads
from minidalle.evaluation.report import LEVELS, draw_prompts, has_two, score
from minidalle.world import oracle

SETTINGS = (  # steps of the prior, its guidance, steps of the decoder, its guidance
    (64, 1.5, 50, 1.25), (64, 1.0, 50, 1.0), (64, 1.5, 20, 1.25), (64, 1.0, 20, 1.25), (32, 1.0, 8, 1.25),
    (16, 1.5, 8, 1.25), (16, 1.0, 8, 1.25), (16, 1.0, 8, 1.0), (16, 1.0, 4, 1.0), (16, 1.0, 2, 1.0), (16, 1.0, 1, 1.0),
    (8, 1.0, 8, 1.0), (8, 1.0, 4, 1.0),
)  # fmt: skip


def main() -> None:
    """Print one line a setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?", default="tiny")
    parser.add_argument("-n", type=int, default=200, help="prompts of each kind")
    args = parser.parse_args()
    pipe = MiniDalle.from_pretrained(args.checkpoint)
    levels = {name: share for name, share in LEVELS.items() if not share or has_two(pipe)}
    asked = {
        f"{name}, {split}": draw_prompts(args.n, share, split, f"steps/{name}/{split}")
        for name, share in levels.items()
        for split in ("seen", "held out")
    }
    print("prior       decoder    " + "".join(f"{kind:>24}" for kind in asked) + "   ms of one picture")
    for prior_steps, prior_scale, steps, scale in SETTINGS:
        options = {
            "prior_num_inference_steps": prior_steps,
            "prior_guidance_scale": prior_scale,
            "num_inference_steps": steps,
            "guidance_scale": scale,
        }
        shares = []
        for prompts in asked.values():
            images = []
            for start in range(0, len(prompts), 100):
                captions = [prompt.caption for prompt in prompts[start : start + 100]]
                images.append(pipe(captions, generator=torch.Generator().manual_seed(start), **options).tensor)
            shares.append(score(prompts, oracle.read(torch.cat(images)))["exact"].share)
        times = []
        for _ in range(5):
            started = time.perf_counter()
            pipe("a red circle above a blue square" if has_two(pipe) else "a red circle", **options)
            times.append(time.perf_counter() - started)
        line = "".join(f"{100 * share:>22.1f} %" for share in shares)
        print(
            f"{prior_steps:3} at {prior_scale:<4} {steps:3} at {scale:<4}{line}{1000 * sorted(times)[2]:>12.0f}",
            flush=True,
        )


if __name__ == "__main__":
    with threads(pick_threads()):
        main()
