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


def pick_device(name: str | None = None) -> torch.device:
    """Choose a device: the one that is named, or the best that is there.

    Raises: ValueError: when the named device is unknown or not there.
    """
    there = [d for d in DEVICES if d == "cpu" or getattr(torch, d).is_available()]
    if name is None:
        return torch.device(there[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in DEVICES:
        raise ValueError(f'"{name}" is no device; choose one of {", ".join(DEVICES)}.')
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

    Threads wait for one another at every operation, and torch's wait by spinning, so one thread that shares its core
    with another program holds up all. MINIDALLE_THREADS or OMP_NUM_THREADS decides where it is set.
    Raises: ValueError: when MINIDALLE_THREADS is no whole number.
    """
    asked = os.environ.get("MINIDALLE_THREADS", "")
    if asked:
        if not asked.isdecimal() or not int(asked):
            raise ValueError(f'MINIDALLE_THREADS is "{asked}"; a whole number, 1 or more, was expected.')
        return int(asked)
    if os.environ.get("OMP_NUM_THREADS"):
        return torch.get_num_threads()
    return max(1, min(torch.get_num_threads(), round(free_cores())))


def free_cores(seconds: float = 0.3) -> float:
    """Measure how many cores this process could use: allowed by affinity and quota, and not busy with others."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    idle = idle_cores(seconds)
    return min(allowed, cpu_quota(), allowed if idle is None else idle)


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Read how many cores a container may use; infinity where it may use all, or none can be read."""
    try:
        if (root / "cpu.max").is_file():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return math.inf if quota.strip() in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf


def idle_cores(seconds: float, path: Path = Path("/proc/stat")) -> float | None:
    """Measure how many of the machine's cores had nothing to do during some seconds; None where nobody says."""
    try:
        before = [int(field) for field in path.read_text().split()[1:9]]
        time.sleep(seconds)
        after = [int(field) for field in path.read_text().split()[1:9]]
    except (OSError, ValueError):
        return None
    spent = [b - a for a, b in zip(before, after, strict=True)]
    return (os.cpu_count() or 1) * (spent[3] + spent[4]) / max(1, sum(spent))  # idle, and waiting for a disk


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
