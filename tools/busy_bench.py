"""Measure how fast the decoder trains on a machine that does something else as well. To be run on an idle one.

For each load (none, one and two busy processes, a quota of one core): pictures a second with one thread, with as many
as there are cores, with as many and OMP_WAIT_POLICY=PASSIVE, and with the number that minidalle chooses by itself.

    python tools/busy_bench.py --seconds 15
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

LOADS = {"idle": 0, "beside one busy process": 1, "beside two": 2, "quota of one core": 0}
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
WAYS = {
    "one thread": {"MINIDALLE_THREADS": "1"},
    "a thread for each core": {"MINIDALLE_THREADS": str(CORES)},
    "the same, passive": {"MINIDALLE_THREADS": str(CORES), "OMP_WAIT_POLICY": "PASSIVE"},
    "chosen": {},
}
SETTINGS = ("MINIDALLE_THREADS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
GROUPS = (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup"))
BUSY = "while True: pass"


def main() -> None:
    """Measure every way under every load, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement (default %(default)s)")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.seconds)))
        return
    print(f"{CORES} cores, load average {os.getloadavg()[0]:.2f} before")
    for load, number in LOADS.items():
        with busy(number), quota(1.0 if "quota" in load else None) as command:
            for way, settings in WAYS.items():
                environment = {k: v for k, v in os.environ.items() if k not in SETTINGS} | settings
                child = [*command, sys.executable, __file__, "--measure", "--seconds", str(args.seconds)]
                found = json.loads(subprocess.run(child, env=environment, capture_output=True, check=True).stdout)
                print(f"{load:24} {way:24} {found['pictures']:6.0f} pictures/s, {found['said']}", flush=True)


def measure(seconds: float) -> dict:
    """Train the decoder for some seconds: pictures a second, and how many threads that took."""
    import torch

    from minidalle.device import choose_threads, threads
    from minidalle.evaluation.bench import stage_steps
    from minidalle.training.recipes import TINY

    number, why = choose_threads()
    with threads(number):
        step, batch_size = stage_steps(TINY, 64, torch.device("cpu"))["decoder"], 64
        step(), step()
        started, steps = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            step()
            steps += 1
        rate = steps * batch_size / (time.perf_counter() - started)
    return {"pictures": rate, "said": f"{number} thread{'s' * (number > 1)}{why}"}


@contextlib.contextmanager
def busy(number: int) -> Iterator[None]:
    """Keep so many processes busy."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def quota(cores: float | None) -> Iterator[list[str]]:
    """Give what to put before a command so that it may use only so many cores' time; one core, where nobody may say."""
    if cores is None:
        yield []
        return
    group = next(filter(None, (make_group(root, cores) for root in GROUPS)), None)
    if group is None:
        yield ["taskset", "-c", "0"]
        return
    try:
        yield ["sh", "-c", f'echo $$ > "{group}/cgroup.procs" && exec "$@"', "sh"]
    finally:
        group.rmdir()


def make_group(root: Path, cores: float) -> Path | None:
    """Make a control group with a quota; None where that is not allowed."""
    group, period = root / f"busy-bench-{os.getpid()}", 100_000
    try:
        group.mkdir()
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text(f"{int(cores * period)} {period}")
        else:
            (group / "cpu.cfs_quota_us").write_text(str(int(cores * period)))
        return group
    except OSError:
        if group.is_dir():
            group.rmdir()
        return None


if __name__ == "__main__":
    main()
