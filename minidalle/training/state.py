"""All that a stopped training needs to go on: both sets of weights, the optimisers' averages, the numbers beside."""

from pathlib import Path

import torch
from torch import nn

from minidalle import checkpoint
from minidalle.checkpoint import CheckpointError, brief
from minidalle.checks import finite_number, whole_number

PRECISIONS = ("float32", "bfloat16", "float16")
SAID = 4  # differences between two trainings, at most
SETS = 4  # of numbers as large as the model: its weights, the averaged ones, and at most two averages of an optimiser


def save_state(
    path: Path, header: dict, model: nn.Module, averaged: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> None:
    """Write the state of a training; header holds step, seconds, origin, scaler, precision, threads and loss."""
    names = {p: name for name, p in model.named_parameters()}
    tensors = {f"model.{name}": p for name, p in model.named_parameters()}
    tensors |= {f"averaged.{name}": p for name, p in averaged.named_parameters()}
    for optimizer in optimizers:
        for p, state in optimizer.state.items():
            tensors |= {f"optimizer.{key}.{names[p]}": value for key, value in state.items()}
    checkpoint.save(path, "training", tensors, header)


def read_state(path: Path) -> dict:
    """Read what the state of a training says of itself.

    Raises: CheckpointError: when it is missing, may not be read, is damaged, or says nothing that can be used.
    """
    header = checkpoint.read_header(path, "training")
    try:
        whole_number(header["step"], "its step")
        finite_number(header["seconds"], "its time")
        whole_number(header["threads"], "its number of threads", high=1024)
        total, count = header["loss"]
        finite_number(total, "its loss"), whole_number(count, "its count of losses", low=0)
        scaler = header["scaler"]
        if scaler:
            for name in torch.amp.GradScaler("cpu").state_dict():
                finite_number(scaler[name], f"its {name}")
        if header["precision"] not in PRECISIONS or not isinstance(header["origin"], dict | None):
            raise ValueError(f"its precision is {brief(header['precision'])}")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is no usable state of a training ({brief(error)}): delete it.") from error
    return header


def load_state(
    path: Path, model: nn.Module, averaged: nn.Module, optimizers: list[torch.optim.Optimizer], origin: dict | None
) -> dict:
    """Put back what save_state wrote, and give its header.

    Raises: ValueError: when the state belongs to another training or is damaged.
    """
    check_origin(path, read_state(path), origin)
    tensors, header = load_tensors(path, model)
    groups: dict[str, dict] = {"model": {}, "averaged": {}, "optimizer": {}}
    parameters = dict(model.named_parameters())
    owner = {p: optimizer for optimizer in optimizers for p in optimizer.param_groups[0]["params"]}
    try:
        for name, tensor in tensors.items():
            group, rest = name.split(".", 1)
            groups[group][rest] = tensor
        model.load_state_dict(groups["model"])
        averaged.load_state_dict(groups["averaged"])
        for name, tensor in groups["optimizer"].items():
            key, parameter = name.split(".", 1)
            p = parameters[parameter]
            if tensor.shape != (p.shape if key != "step" else ()):
                raise ValueError(f"{name} has other sizes")
            stays = key == "step" and not owner[p].defaults.get("capturable")  # AdamW counts on the CPU, but in a graph
            owner[p].state[p][key] = tensor if stays else tensor.to(p.device)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is of a model of other sizes: name another folder, or begin anew.") from error
    return header


def check_origin(path: Path, header: dict, origin: dict | None) -> None:
    """Refuse the state of another training, which is not to be thrown away.

    Raises: ValueError: says in what the two differ.
    """
    if header["origin"] != origin:
        raise ValueError(
            f"{path} belongs to another training ({differences(header['origin'], origin)}): "
            "resume that one, name another folder, or begin anew without resuming."
        )


def load_tensors(path: Path, model: nn.Module) -> tuple[dict[str, torch.Tensor], dict]:
    """Read the state of a training of this model; no more memory is taken than such a state needs.

    Raises: CheckpointError: when it cannot be read, is damaged, or is larger.
    """
    sizes = [p.numel() for p in model.parameters()]
    return checkpoint.load(path, "training", most=SETS * sum(sizes) + len(sizes))


def differences(there: dict | None, here: dict | None) -> str:
    """Say in which entries two origins differ; of many, the first few."""
    there, here = flat(there or {}), flat(here or {})
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    said = [f"its {brief(n)} is {brief(there.get(n))}, {brief(here.get(n))} was asked" for n in names[:SAID]]
    return "; ".join([*said, f"and {len(names) - SAID} more"] if len(names) > SAID else said)


def flat(entries: dict, above: str = "") -> dict:
    """Bring nested entries to one level: {"stage": {"lr": 1}} to {"stage.lr": 1}."""
    found = {}
    for name, value in entries.items():
        found |= flat(value, f"{above}{name}.") if value and isinstance(value, dict) else {above + name: value}
    return found
