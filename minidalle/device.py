"""Where to compute, and in which precision."""

import contextlib
import math
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

DEVICES = ("cuda", "mps", "cpu")
MAX_THREADS = 1024


def pick_device(name: str | None = None) -> torch.device:
    """Choose a device: the one that is named, or the best that is there.

    Raises: ValueError: when the named device is unknown or not there.
    """
    there = [d for d in DEVICES if d == "cpu" or getattr(torch, d).is_available()]
    if name is None:
        return torch.device(there[0])
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in DEVICES:
        raise ValueError(f'"{name!s:.40}" is no device; choose one of {", ".join(DEVICES)}.')
    if device.type not in there or (device.index or 0) >= getattr(torch, device.type).device_count():
        raise ValueError(f'The device "{name}" was asked for and is not there; found here: {", ".join(there)}.')
    return device


def half_precision(device: torch.device) -> torch.dtype | None:
    """Choose the 16-bit type that a device computes fast in; None where it has none.

    MINIDALLE_DTYPE (float32, bfloat16 or float16) decides where it is set. Else it is bfloat16 on GPUs that have it and
    float16 on older ones; on processors bfloat16 where they have tile instructions (AMX), since others that can
    multiply bfloat16 do so more slowly than float32 as often as not.

    Raises: ValueError: when MINIDALLE_DTYPE is none of them.
    """
    if asked := os.environ.get("MINIDALLE_DTYPE"):
        if asked not in ("float32", "bfloat16", "float16"):
            raise ValueError(f'MINIDALLE_DTYPE is "{asked}"; choose float32, bfloat16 or float16.')
        return None if asked == "float32" else getattr(torch, asked)
    if device.type == "cuda":  # is_bf16_supported() counts emulation, which is slow, unless told not to
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and getattr(torch.cpu, "_is_amx_tile_supported", bool)():
        return torch.bfloat16
    return None


def autocast(device: torch.device, dtype: torch.dtype | str | None = "fast") -> contextlib.AbstractContextManager:
    """Open a context in which matrix products run in 16 bits.

    Args:
        device: where they run.
        dtype: the type; None: full precision; "fast": the one that half_precision chooses.
    """
    dtype = half_precision(device) if dtype == "fast" else dtype
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def pick_threads() -> int:
    """Choose how many threads compute on the CPU: as many as cores are free at this moment, one at least.

    Raises: ValueError: when MINIDALLE_THREADS is no whole number.
    """
    return choose_threads()[0]


def choose_threads(kept: int | None = None) -> tuple[int, str]:
    """Choose how many threads compute on the CPU, and say why, in words that may follow "2 threads".

    Threads wait for one another at every operation, and torch's wait by spinning, so one thread that shares its core
    with another program holds up all. MINIDALLE_THREADS decides where it is set, then what was kept, then
    OMP_NUM_THREADS; else it is as many as cores are allowed and free at this moment, one at least.

    Args:
        kept: how many computed so far, in a training that goes on; another number would change its last digits.

    Raises: ValueError: when MINIDALLE_THREADS is no whole number.
    """
    if asked := os.environ.get("MINIDALLE_THREADS"):
        if not asked.isdecimal() or len(asked) > 9 or not 1 <= int(asked) <= MAX_THREADS:
            raise ValueError(
                f'MINIDALLE_THREADS is "{asked:.40}"; a whole number from 1 to {MAX_THREADS} was expected.'
            )
        return int(asked), " as MINIDALLE_THREADS says"
    if kept:
        return kept, " as before"
    possible = torch.get_num_threads()
    if os.environ.get("OMP_NUM_THREADS") or possible == 1:
        return possible, ""
    allowed = max(1, min(possible, allowed_cores()))
    idle = idle_cores() if allowed > 1 else None
    free = allowed if idle is None else max(1, min(allowed, round(idle)))
    if free < allowed:
        return free, f", since the other core{' is' if allowed - free == 1 else 's are'} busy"
    return free, ", since this process may use no more" if free < possible else ""


def allowed_cores() -> int:
    """Count the cores that this process may use, by its affinity and by the quotas of its control groups."""
    return max(1, math.floor(min(len(affinity()), cpu_quota())))


def affinity() -> set[int]:
    """Give the numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Read how many cores' time a container may use; infinity where it may use all, or none can be read.

    A group's time is part of its parents', so the least of all counts. Within a container the group that it is in may
    be out of sight; then its root is what limits it.
    """
    quotas = [quota_of(root), quota_of(root / "cpu")]
    try:
        lines = [line.split(":", 2) for line in own.read_text(errors="surrogateescape").splitlines()]
    except OSError:
        lines = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        inner = Path(path.lstrip("/"))
        for base in (root / controllers, root / "cpu") if controllers else (root, root / "unified"):
            quotas += [quota_of(base / group) for group in (inner, *inner.parents)]
    return min(quotas)


def quota_of(group: Path) -> float:
    """Read the quota of one control group, of the second version (cpu.max) or the first; infinity where it has none."""
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        try:
            quota, period = (word for name in names for word in (group / name).read_text().split())
            if quota not in ("max", "-1"):
                return int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return math.inf


def idle_cores(seconds: float = 0.3, path: Path = Path("/proc/stat")) -> float | None:
    """Measure how many of the cores that this process may use have nothing to do; None where nobody says."""
    try:
        before = core_times(path.read_text())
        time.sleep(seconds)
        after = core_times(path.read_text())
    except (OSError, ValueError):
        return None
    allowed = affinity() & before.keys() & after.keys() or before.keys()  # a container may number its cores anew
    spent = [[b - a for a, b in zip(before[core], after[core], strict=True)] for core in allowed if core in after]
    if not sum(map(sum, spent)):
        return None
    return sum(sum(times[3:5]) / max(1, sum(times)) for times in spent)  # idle, and waiting for a disk


def core_times(text: str) -> dict[int, list[int]]:
    """Read the ticks that each core has spent in each way, from the text of /proc/stat."""
    lines = (line.split() for line in text.splitlines() if line.startswith("cpu"))
    return {int(name[3:]): [int(field) for field in fields[:8]] for name, *fields in lines if name != "cpu"}


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Compute with so many threads, and afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def forbid_tf32() -> None:
    """Have GPUs convolve float32 in full: TF32's ten bits of mantissa are too few to compare two ways to one result."""
    with warnings.catch_warnings(action="ignore"):  # torch 2.9 announces another name for the setting
        torch.backends.cudnn.allow_tf32 = False
