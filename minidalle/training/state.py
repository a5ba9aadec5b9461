"""All that a stopped training needs to go on: both sets of weights, the optimisers' averages, the numbers beside."""

from pathlib import Path

import torch
from torch import nn

from minidalle import checkpoint


def save_state(
    path: Path, header: dict, model: nn.Module, averaged: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> None:
    """Write the state of a training."""
    names = {p: name for name, p in model.named_parameters()}
    tensors = {f"model.{name}": p for name, p in model.named_parameters()}
    tensors |= {f"averaged.{name}": p for name, p in averaged.named_parameters()}
    for optimizer in optimizers:
        for p, state in optimizer.state.items():
            tensors |= {f"optimizer.{key}.{names[p]}": value for key, value in state.items()}
    checkpoint.save(path, "training", tensors, header)


def load_state(
    path: Path, model: nn.Module, averaged: nn.Module, optimizers: list[torch.optim.Optimizer], origin: dict | None
) -> dict:
    """Put back what save_state wrote, and give its header.

    Raises: ValueError: when the state belongs to another training or is damaged.
    """
    tensors, header = checkpoint.load(path, "training")
    if header["origin"] != origin:
        raise ValueError(
            f"{path} belongs to another training ({differences(header['origin'], origin)}): "
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
    return header


def differences(there: dict | None, here: dict | None) -> str:
    """Say in which entries two origins differ."""
    there, here = there or {}, here or {}
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    return "; ".join(
        f"its {n} is {checkpoint.brief(there.get(n))}, {checkpoint.brief(here.get(n))} was asked" for n in names
    )
