"""The training loop, one for every model. What a stage learns is its loss, and those stand in stages.py.

All randomness of step n comes from the seed and n alone, so a training that is stopped and resumed takes the same
steps as one that was not.
"""

from pathlib import Path

import torch
from torch import nn

from minidalle import checkpoint


class TrainingError(RuntimeError):
    """A training that cannot go on; the message says at which step and what is left of it."""


def save_state(path: Path, header: dict, model: nn.Module, averaged: nn.Module, optimizers: list) -> None:
    """Write all that a resumed training needs: both sets of weights, the optimisers' averages, the numbers beside."""
    names = {p: name for name, p in model.named_parameters()}
    tensors = {f"model.{name}": p for name, p in model.named_parameters()}
    tensors |= {f"averaged.{name}": p for name, p in averaged.named_parameters()}
    for optimizer in optimizers:
        for p, state in optimizer.state.items():
            tensors |= {f"optimizer.{key}.{names[p]}": value for key, value in state.items()}
    checkpoint.save(path, "training", tensors, header)


def load_state(
    path: Path,
    model: nn.Module,
    averaged: nn.Module,
    optimizers: list,
    scaler: torch.amp.GradScaler,
    origin: dict | None,
) -> tuple[int, float]:
    """Put back what save_state wrote, and give the step to go on from and the seconds spent so far."""
    tensors, header = checkpoint.load(path, "training")
    if header["origin"] != origin:
        raise ValueError(
            f"{path} belongs to the training {header['origin']}; {origin} was to be resumed: "
            "resume that one, name another folder, or begin anew without resuming."
        )
    groups: dict[str, dict] = {"model": {}, "averaged": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        group, rest = name.split(".", 1)
        groups[group][rest] = tensor
    try:
        model.load_state_dict(groups["model"])
        averaged.load_state_dict(groups["averaged"])
    except RuntimeError as error:
        raise ValueError(f"{path} is of a model of other sizes: name another folder, or begin anew.") from error
    parameters = dict(model.named_parameters())
    owner = {p: optimizer for optimizer in optimizers for p in optimizer.param_groups[0]["params"]}
    for name, tensor in groups["optimizer"].items():
        key, parameter = name.split(".", 1)
        p = parameters[parameter]
        owner[p].state[p][key] = tensor.to(p.device) if key != "step" else tensor
    if header["scaler"]:  # empty where losses were not scaled; this device may do so
        scaler.load_state_dict(header["scaler"])
    return header["step"], header["seconds"]
