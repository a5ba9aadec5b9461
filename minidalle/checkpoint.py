"""Models on disk: one safetensors file each, whose header says what it holds. No pickle, so no code from data.

A file is written under a temporary name and renamed, so that a full disk or a crash leaves the old one as it was.
"""

import dataclasses
import hashlib
import json
import os
import textwrap
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FORMAT_VERSION = 1
SHIPPED = (Path(__file__).parent / "checkpoints", Path(__file__).parent.parent / "data" / "checkpoints")
HEADER = "minidalle"  # the one key of the safetensors metadata; its value is JSON


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which, why, and what to do."""


def save(path: Path, kind: str, tensors: dict[str, torch.Tensor], meta: dict) -> str:
    """Write tensors and a description of them.

    Args:
        path: ends in .safetensors; its folder is made when missing.
        kind: what it holds, such as "clip".
        tensors: any shapes and types.
        meta: what else the file says of itself; must survive JSON.

    Returns: the sha256 of tensors and header, which the header keeps.
    Raises: CheckpointError: when the disk does not take it; what was there before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"format_version": FORMAT_VERSION, "kind": kind, **meta}
    header["sha256"] = digest(tensors, header)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        save_file(tensors, partial, metadata={HEADER: json.dumps(header)})
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} could not be written ({error}); what it held before is unharmed: make room."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return header["sha256"]


def load(path: Path, kind: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Read what save wrote.

    Returns: the tensors, on the CPU, and the header.
    Raises: CheckpointError: when the file is missing, truncated, altered, foreign, of another kind or version.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: train it first, or name a folder that holds it.")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path} is truncated or is no safetensors file ({error}): copy or train it again."
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} was not written by minidalle (no {HEADER} in its header): name a file that was.")
    if header.get("format_version") != FORMAT_VERSION:
        found = header.get("format_version")
        raise CheckpointError(
            f"{path} has format version {found}; this package reads {FORMAT_VERSION}: train it again."
        )
    if header.get("kind") != kind:
        raise CheckpointError(f'{path} holds a "{header.get("kind")}"; a "{kind}" was expected: name the right file.')
    if digest(tensors, header) != header.get("sha256"):
        raise CheckpointError(
            f"{path} has been altered since it was written (its sha256 differs): copy or train it again."
        )
    return tensors, header


def digest(tensors: dict[str, torch.Tensor], header: dict) -> str:
    """Hash tensors and header, the header's own hash left out."""
    rest = {key: value for key, value in header.items() if key != "sha256"}
    total = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.contiguous().view(-1).view(torch.uint8).numpy() if tensor.numel() else b"")
    return total.hexdigest()


def config_to_dict(config) -> dict:
    """Turn a config dataclass, nested ones included, into what JSON can hold."""
    return dataclasses.asdict(config)


def config_from_dict(cls, values: dict):
    """Rebuild a config dataclass from what config_to_dict made and JSON carried.

    Raises: ValueError: when a field is unknown or missing.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if set(values) != set(fields):
        raise ValueError(f"{cls.__name__} has the fields {sorted(fields)}, the checkpoint {sorted(values)}.")
    built = {}
    for name, value in values.items():
        kind = fields[name].type
        if dataclasses.is_dataclass(kind):
            value = config_from_dict(kind, value)
        built[name] = tuple(value) if isinstance(value, list) else value
    return cls(**built)


def find_folder(source: str | Path) -> Path:
    """Find the folder of a run, or of shipped weights by their name.

    Raises: CheckpointError: when there is neither; the shipped names are listed.
    """
    for folder in (Path(source), *(root / str(source) for root in SHIPPED)):
        if folder.is_dir():
            return folder
    names = sorted({folder.name for root in SHIPPED if root.is_dir() for folder in root.iterdir() if folder.is_dir()})
    shipped = ", ".join(names) or "none"
    raise CheckpointError(
        f'"{source}" is neither a folder nor the name of shipped weights ({shipped}): '
        'train with "minidalle train", or name one of them.'
    )


def load_model(model_class, folder: Path) -> tuple[torch.nn.Module, dict]:
    """Load one model of a run, and the header of its file.

    Args:
        model_class: such as CLIP; its `kind` names the file, its `config_class` reads the sizes.
        folder: of the run.

    Raises: CheckpointError: when the file is unusable, or does not hold this model.
    """
    kind = model_class.kind
    path = folder / f"{kind}.safetensors"
    tensors, header = load(path, kind)
    try:
        with torch.random.fork_rng(devices=[]):  # a new model draws weights; the user's random numbers stay as they are
            model = model_class(config_from_dict(model_class.config_class, header["config"]))
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        why = textwrap.shorten(str(error), 200)
        raise CheckpointError(f"{path} does not fit this package's {kind} ({why}): train it again.") from error
    return model.requires_grad_(False), header


def save_model(folder: Path, model: torch.nn.Module, meta: dict) -> str:
    """Save one model of a run with its config; gives the file's sha256."""
    path = folder / f"{model.kind}.safetensors"
    return save(path, model.kind, model.state_dict(), {"config": config_to_dict(model.config), **meta})
