"""Where to compute, and in which precision."""

import contextlib
import time
import warnings
from functools import cache

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
    """Choose the 16-bit type that a device computes fast in; None where it has none."""
    if device.type == "cuda":  # is_bf16_supported() counts emulation, which is slow, unless told not to
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() and bfloat16_pays():
        return torch.bfloat16
    return None


@cache
def bfloat16_pays() -> bool:
    """Time matrix products, once a process: some processors have instructions for bfloat16 and are slower with them.

    The clock is the processor's, which does not count waiting for other processes. Where it is too coarse to tell
    (Windows), the answer is no.
    """
    seconds = {torch.bfloat16: float("inf"), torch.float32: float("inf")}
    with torch.autocast("cpu", enabled=False):
        for _ in range(10):  # in turn, and the least of each
            for dtype in seconds:
                square = torch.ones(512, 512, dtype=dtype, device="cpu")
                started = time.process_time()
                square @ square
                seconds[dtype] = min(seconds[dtype], time.process_time() - started)
    return seconds[torch.bfloat16] < seconds[torch.float32]


def autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Open a context in which matrix products run in 16 bits where the device is fast at it."""
    dtype = half_precision(device)
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def forbid_tf32() -> None:
    """Have GPUs convolve float32 in full: TF32's ten bits of mantissa are too few to compare two ways to one result."""
    with warnings.catch_warnings(action="ignore"):  # torch 2.9 announces another name for the setting
        torch.backends.cudnn.allow_tf32 = False
