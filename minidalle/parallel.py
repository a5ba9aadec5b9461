"""Several processes, one training: torchrun starts them, and each takes its rows of every batch.

All draw the same batch and the same noise and keep their own rows, so a training of N processes takes the steps of one
process, and can go on with another number of them. Gradients are averaged by torch's DistributedDataParallel. In a
program that torchrun did not start, there is one process, and nothing here does anything.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from minidalle.device import pick_device

Kind = TypeVar("Kind", bound=nn.Module)


def number() -> int:
    """Count the processes of this training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Give the number of this process, from 0; process 0 writes files and prints."""
    return dist.get_rank() if number() > 1 else 0


@contextlib.contextmanager
def joined(device_name: str | None = None) -> Iterator[torch.device]:
    """Join the other processes where torchrun started several, each with a GPU of its own; only the first prints.

    Gives the device of this process.
    Raises: ValueError: when the device is not there, or there are more processes than GPUs.
    """
    device, several = pick_device(device_name), int(os.environ.get("WORLD_SIZE", "1"))
    if several < 2:
        yield device
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"There are {torch.cuda.device_count()} GPUs and process {local} was to have one of its own: "
                "start as many processes as there are GPUs."
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    quiet = contextlib.redirect_stdout(io.StringIO()) if dist.get_rank() else contextlib.nullcontext()
    try:
        with quiet:
            yield device
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until all processes are here."""
    if number() > 1:
        dist.barrier()


def most(value: int, device: torch.device) -> int:
    """Give the largest of all processes' values."""
    if number() == 1:
        return value
    values = torch.tensor(value, device=device)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return int(values)


def mean(value: float, device: torch.device) -> float:
    """Average a value over all processes."""
    if number() == 1:
        return value
    values = torch.tensor(value, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
    dist.all_reduce(values)
    return float(values) / number()


class Gather(torch.autograd.Function):
    """Collect rows; the gradient of a row is the sum of what all processes have of it."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        """Collect the rows of all processes."""
        parts = [torch.empty_like(rows) for _ in range(number())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        """Sum the gradients of all processes, and keep those of this one's rows."""
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(number())[rank()]


def gather(rows: torch.Tensor) -> torch.Tensor:
    """Collect the rows (B / N, ...) of all processes: (B, ...), process by process; gradients find their way back."""
    return rows if number() == 1 else Gather.apply(rows)


def wrap(model: nn.Module) -> nn.Module:
    """Have the gradients of a model averaged over all processes at each backward pass."""
    return model if number() == 1 else nn.parallel.DistributedDataParallel(model)


def unwrap(model: nn.Module, model_class: type[Kind]) -> Kind:
    """Find the model of a class in what may be wrapped around it."""
    return next(part for part in model.modules() if isinstance(part, model_class))
