"""Measure how fast CLIP and the decoder train in several processes of one thread, and in one process of several.

    python tools/scaling_bench.py --threads 2
    torchrun --nproc-per-node 2 tools/scaling_bench.py

Run both in turn, on a machine that has nothing else to do.
"""

import argparse
import time

import torch

from minidalle import parallel
from minidalle.training.recipes import TINY
from minidalle.training.stages import STAGES, StageLoss, frozen_parts, stage_source
from minidalle.training.trainer import Trainer

WARMUP = 4  # steps that are not counted


def rate(stage: str, steps: int, device: torch.device) -> float:
    """Train a stage for some steps; pictures a second."""
    recipe = TINY.recipes["quick"]
    how = recipe.stages[stage]
    clip = STAGES["clip"].model_class(TINY.models["clip"]).requires_grad_(False)
    frozen = frozen_parts(stage, TINY, {"clip": clip} if STAGES[stage].needs else {}, device)
    loss_at = StageLoss(stage, stage_source(stage, TINY, recipe, 0), how, frozen, device)
    trainer = Trainer(STAGES[stage].model_class(TINY.models[stage]), how)
    for step in range(WARMUP):
        trainer.step(loss_at, step)
    started = time.perf_counter()
    for step in range(WARMUP, WARMUP + steps):
        trainer.step(loss_at, step)
    return steps * how.batch_size / (time.perf_counter() - started)


def main() -> None:
    """Print a line for each stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="of each process (default %(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="that are timed (default %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with parallel.joined("cpu") as device:
        for stage in ("clip", "decoder"):
            torch.manual_seed(0)
            found = rate(stage, args.steps, device)
            print(
                f"{parallel.number()} process(es) of {args.threads} thread(s), {stage}: {found:.0f} pictures/s",
                flush=True,
            )


if __name__ == "__main__":
    main()
