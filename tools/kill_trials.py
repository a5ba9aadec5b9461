"""Kill trainings at random moments with kill -9, resume them, and compare their weights with those of unbroken runs.

Each trial is a training of all stages by "minidalle train", killed at a moment drawn at random, or while it saves, or
right after it was resumed; then it is resumed to the end. A short recipe and a short time between saves stand in for
the real ones: a trial takes seconds, and the work lost is compared with that time.

    python tools/kill_trials.py --trials 20
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from minidalle import cli, parallel
from minidalle.checkpoint import CheckpointError, load
from minidalle.training import loop
from minidalle.training.recipes import PRESETS, TINY, Recipe
from minidalle.training.stages import STACK
from minidalle.training.state import read_state
from minidalle.training.trainer import Trainer

STEPS = {"clip": 24, "prior": 32, "decoder": 20, "upsampler": 24, "ar_prior": 16}
BATCH_SIZE = 8
SAVE_SECONDS = 0.5
KINDS = ("random", "save", "resume")
PROCESSES = [1]
PIDS = "pids.txt"  # of all processes that ever trained in a folder
TRACE = "trace.txt"  # a line for each step done: stage, step, when


def main() -> int:
    """Run the trials; 0 when all ended with the weights of an unbroken run and lost no more than they may."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--processes", type=int, default=1, help="of each training; one of them is killed")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    PROCESSES[0] = args.processes
    if args.worker:
        return work(args.worker)
    with tempfile.TemporaryDirectory() as root:
        return trials(Path(root), args.trials, random.Random(args.seed))


def trials(root: Path, number: int, rng: random.Random) -> int:
    """Compare trials with an unbroken run, and print a line for each."""
    whole, equal, losses = root / "whole", 0, []
    finish(whole)
    for trial in range(number):
        folder, kind = root / f"trial-{trial}", KINDS[trial % len(KINDS)]
        moments = [
            interrupt(
                folder, kind == "save", rng.randrange(sum(STEPS[stage] for stage in trained()) - 2), rng.uniform(0, 0.2)
            )
        ]
        if kind == "resume":
            moments.append(interrupt(folder, False, 1, rng.uniform(0, 0.2)))
        finish(folder)
        same, litter = same_weights(whole, folder), [*folder.glob("*.partial"), *folder.glob("*.training.*")]
        ok = same and not litter and same_metrics(whole, folder)
        equal += ok
        losses += [lost for _, lost in moments]
        told = "; ".join(f"{where}, {lost:.2f} s lost" for where, lost in moments)
        print(f"{trial + 1:3} {kind:7} killed in {told}: {'equal' if ok else 'DIFFERENT'}", flush=True)
    print(f"{equal} of {number} equal; at most {max(losses):.2f} s lost, with {SAVE_SECONDS} s between saves")
    return equal != number


def start(folder: Path) -> subprocess.Popen:
    """Begin, or go on with, a training of all stages."""
    folder.mkdir(exist_ok=True)
    with (folder / "log.txt").open("ab") as log:
        several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES[0]}"]
        command = [sys.executable, *(several if PROCESSES[0] > 1 else []), __file__, "--worker", str(folder)]
        # One thread for all: a run on a machine that is busier than before would choose fewer, and round otherwise
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"MINIDALLE_THREADS": "1"})


def finish(folder: Path) -> None:
    """Train to the end."""
    if code := start(folder).wait():
        raise SystemExit(f"A training ended with {code}:\n{(folder / 'log.txt').read_text()}")


def interrupt(folder: Path, saving: bool, steps: int, seconds: float) -> tuple[str, float]:
    """Begin or resume a training and kill it so many steps and seconds later, or when it saves next after that.

    Returns: where it was, and how many seconds of steps were lost.
    """
    before, process = len(trace(folder)), start(folder)
    while len(trace(folder)) < before + steps and process.poll() is None:
        time.sleep(0.005)
    time.sleep(seconds)
    while saving and not list(folder.glob("*.partial")) and process.poll() is None:
        time.sleep(0.0002)
    os.kill(random.choice(pids(folder) or [process.pid]) if PROCESSES[0] > 1 else process.pid, signal.SIGKILL)
    killed = time.time()
    if process.wait() == 0:
        raise SystemExit("A training ended before it could be killed.")
    done = trace(folder)[before:]
    if not done:
        return "no step", 0.0
    stage, step, _ = done[-1]
    safe = [when for name, n, when in done if name != stage or n <= kept(folder, stage)]  # stages before are finished
    since = max(safe, default=done[0][2])
    return f"{stage} at step {step}", killed - since if not finished(folder, stage) else 0.0


def pids(folder: Path) -> list[int]:
    """Read the numbers of the processes of a training that are alive."""
    found = [int(line) for line in (folder / PIDS).read_text().split()] if (folder / PIDS).exists() else []
    return [pid for pid in found if Path(f"/proc/{pid}").exists()]


def kept(folder: Path, stage: str) -> int:
    """Tell which step of a stage is kept."""
    try:
        return read_state(folder / f"{stage}.training.safetensors")["step"]
    except CheckpointError:
        return 0


def finished(folder: Path, stage: str) -> bool:
    """Tell whether a stage is done."""
    return (folder / f"{stage}.safetensors").exists()


def trace(folder: Path) -> list[tuple[str, int, float]]:
    """Read which steps were done, and when."""
    path = folder / TRACE
    lines = path.read_text().splitlines(True) if path.exists() else []
    return [(a, int(b), float(c)) for a, b, c in (line.split() for line in lines if line.endswith("\n"))]


def same_weights(a: Path, b: Path) -> bool:
    """Compare the weights of two runs bit by bit."""
    for stage in trained():
        one, other = (load(folder / f"{stage}.safetensors", stage)[0] for folder in (a, b))
        if one.keys() != other.keys() or not all(torch.equal(one[name], other[name]) for name in one):
            return False
    return True


def same_metrics(a: Path, b: Path) -> bool:
    """Compare the steps and losses of two runs."""
    from minidalle.training.run import read_metrics

    def curve(folder: Path, stage: str) -> list[tuple[int, float]]:
        return [(line["step"], line["loss"]) for line in read_metrics(folder / f"{stage}.metrics.jsonl")]

    return all(curve(a, stage) == curve(b, stage) for stage in trained())


def work(folder: Path) -> int:
    """Train as the command line does, with the short recipe; run by the trials, and killed by them."""
    quick = TINY.recipes["quick"].stages
    stages = {name: replace(stage, steps=STEPS[name], batch_size=BATCH_SIZE) for name, stage in quick.items()}
    PRESETS["trial"] = replace(TINY, name="trial", recipes={"short": Recipe(0.5, stages)})
    loop.SAVE_SECONDS, loop.LOG_EVERY = SAVE_SECONDS, 5
    with (folder / PIDS).open("a") as file:
        file.write(f"{os.getpid()}\n")
    step = Trainer.step
    with (folder / TRACE).open("a") as lines:

        def traced(trainer: Trainer, loss_at, number: int) -> None:
            step(trainer, loss_at, number)
            if parallel.rank() == 0:
                lines.write(f"{trainer.model.kind} {number + 1} {time.time()}\n")
                lines.flush()

        Trainer.step = traced
        options = ["--preset", "trial", "--recipe", "short", "--out", str(folder), "--device", "cpu", "--resume"]
        rest = [stage for stage in trained() if stage not in STACK]
        return max(cli.main(["train", stage, *options]) for stage in ("all", *rest))


def trained() -> tuple[str, ...]:
    """Name the stages that are trained; several processes can join one another once only, so for the stack alone."""
    return STACK if int(os.environ.get("WORLD_SIZE", PROCESSES[0])) > 1 else tuple(STEPS)


if __name__ == "__main__":
    sys.exit(main())
