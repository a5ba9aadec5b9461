"""Models on disk: one safetensors file each, whose header says what it holds. No pickle, so no code from data.

A file is written under a temporary name, synced and renamed, so that a full disk or a crash leaves the old one as it
was. A header is read without the weights; the weights are hashed when they are loaded.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import stat
import textwrap
import typing
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

FORMAT_VERSION = 2
HEADER = "minidalle"  # the one key of the safetensors metadata; its value is JSON
MAX_HEADER = 8 * 2**20  # bytes; the largest that this package writes has some 100,000
MAX_NESTING = 32  # of lists and objects in a header
MAX_SIZE = 2**16  # of a number in a config; MAX_DEPTH of one that counts layers, MAX_LEVELS of one for each level
MAX_DEPTH = 256
MAX_LEVELS = 16
ZERO_MEANS_NONE = ("context_dim",)  # the numbers of a config that may be 0
PACKAGE = Path(__file__).parent
SHIPPED = (PACKAGE / "checkpoints", PACKAGE.parent / "data" / "checkpoints")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which, why, and what to do."""


class MissingError(CheckpointError):
    """A checkpoint that is not there."""


class AccessError(CheckpointError):
    """A checkpoint that is there and may not be read."""


def save(path: Path, kind: str, tensors: dict[str, torch.Tensor], meta: dict) -> str:
    """Write tensors and a description of them.

    Args:
        path: ends in .safetensors; its folder is made when missing.
        kind: what it holds, such as "clip".
        tensors: any shapes and types.
        meta: what else the file says of itself; must survive JSON.

    Returns: the sha256 of tensors and header, which the header keeps.
    Raises: CheckpointError: when a number is not finite, or the disk does not take the file; what was there before is
        still there.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if bad := not_finite(tensors):
        raise CheckpointError(f"{path} was not written: {bad} holds numbers that are not finite; train it again.")
    header = {"format_version": FORMAT_VERSION, "kind": kind, **meta}
    header["sha256"] = digest(tensors, header)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, to_bytes(tensors, metadata={HEADER: json.dumps(header)}))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} could not be written ({reason(error)}); what it held before is unharmed: "
            "make room, or name another place."
        ) from error
    return header["sha256"]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file such that at any moment either the old content is there or the new one, whole."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not every system can sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_header(path: Path, kind: str) -> dict:
    """Read what a file says of itself, without its tensors.

    Raises: CheckpointError: when the file is missing (MissingError), may not be read (AccessError), or is foreign, of
        another kind or version.
    """
    try:
        header = json.loads(metadata_of(path).get(HEADER, "null"))
        check_nesting(header)
    except CheckpointError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(f"{path} does not exist: train it first, or name a folder that holds it.") from None
    except PermissionError:
        raise AccessError(f"{path} may not be read: ask its owner for the right to.") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged or is no safetensors file ({reason(error)}): copy or train it again."
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} was not written by minidalle (no {HEADER} in its header): name a file that was.")
    if header.get("format_version") != FORMAT_VERSION:
        found = brief(header.get("format_version"))
        raise CheckpointError(
            f"{path} has format version {found}; this package reads {FORMAT_VERSION}: train it again."
        )
    if header.get("kind") != kind:
        raise CheckpointError(
            f'{path} holds a "{brief(header.get("kind"))}"; a "{kind}" was expected: name the right file.'
        )
    if not re.fullmatch("[0-9a-f]{64}", str(header.get("sha256"))):
        raise CheckpointError(f"{path} does not say its sha256: copy or train it again.")
    return header


def metadata_of(path: Path) -> dict:
    """Read the metadata of a safetensors file; only from a regular file, since a pipe would keep us waiting."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise CheckpointError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}: name a file.")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= MAX_HEADER:
            raise ValueError(f"a header of {length} bytes")
        return json.loads(file.read(length)).get("__metadata__") or {}


def check_nesting(value: object, levels: int = MAX_NESTING) -> None:
    """Refuse JSON that is nested deeper than any that this package writes, before something recurses into it."""
    if levels == 0:
        raise ValueError(f"its header is nested more than {MAX_NESTING} levels deep")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inner:
        check_nesting(item, levels - 1)


def load(path: Path, kind: str, most: int | None = None) -> tuple[dict[str, torch.Tensor], dict]:
    """Read what save wrote.

    Args:
        path, kind: those of save.
        most: how many numbers the file may hold; None: any number. More are refused before memory is taken for them.

    Returns: the tensors, on the CPU, and the header.
    Raises: CheckpointError: when the file is missing, truncated, altered, foreign, of another kind or version, too
        large, or holds a number that is not finite.
    """
    header = read_header(path, kind)
    size, largest = path.stat().st_size, math.inf if most is None else MAX_HEADER + 8 * most
    if size > largest:
        raise CheckpointError(f"{path} has {size} bytes; at most {largest} were expected: train it again.")
    try:
        with safe_open(path, framework="pt") as file:
            # A copy, so that the file may be replaced while the tensors are in use
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
        total, bad = digest(tensors, header), not_finite(tensors)
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({reason(error)}): copy or train it again.") from error
    if total != header["sha256"]:
        raise CheckpointError(
            f"{path} has been altered since it was written (its sha256 differs): copy or train it again."
        )
    if bad:
        raise CheckpointError(f"{path} holds numbers that are not finite (in {brief(bad)}): train it again.")
    return tensors, header


def own_version() -> str:
    """Give the installed version; a checkout that is used without being installed has none."""
    try:
        return version("minidalle")
    except PackageNotFoundError:
        return "not installed"


def brief(text: object) -> str:
    """Shorten what comes from a file, a user or a library to one printable line."""
    line = textwrap.shorten(" ".join(str(text).split()), 120, placeholder=" ...")
    if line == "...":  # one long word
        line = f"{' '.join(str(text).split())[:116]} ..."
    return "".join(c if c.isprintable() else "?" for c in line)


def reason(error: Exception) -> str:
    """Say what went wrong, without the path that a system's error carries."""
    return brief(getattr(error, "strerror", None) or error)


def not_finite(tensors: dict[str, torch.Tensor]) -> str | None:
    """Name the first tensor that holds an infinity or a NaN; None when there is none."""
    return next((name for name, x in tensors.items() if x.is_floating_point() and not x.isfinite().all()), None)


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

    Raises: ValueError: when a field is unknown, missing or of another type, or a number is too large to be meant.
    """
    fields = {field.name: field.type for field in dataclasses.fields(cls)}
    if not isinstance(values, dict) or set(values) != set(fields):
        found = sorted(values) if isinstance(values, dict) else values
        raise ValueError(f"{cls.__name__} has the fields {sorted(fields)}, the checkpoint {brief(found)}")
    return cls(**{name: checked(name, kind, values[name]) for name, kind in fields.items()})


def checked(name: str, kind: type, value: object):
    """Take a value of a config if it is of its field's type, and a number only within bounds."""
    if dataclasses.is_dataclass(kind):
        return config_from_dict(kind, value)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or len(value) > MAX_LEVELS:
            raise ValueError(f"{name} is {brief(value)}; a list of at most {MAX_LEVELS} was expected")
        return tuple(checked(f"each of {name}", typing.get_args(kind)[0], item) for item in value)
    if type(value) is not kind:  # True is an int to isinstance
        raise ValueError(f"{name} is {brief(repr(value))}; {kind.__name__} was expected")
    if kind is int:
        least = 0 if name in ZERO_MEANS_NONE or name.startswith("each of") else 1
        largest = MAX_DEPTH if name.endswith(("depth", "blocks")) else MAX_SIZE
        if not least <= value <= largest:
            raise ValueError(f"{name} is {brief(value)}; {least} to {largest} was expected")
    return value


def find_folder(source: str | Path, kinds: Sequence[str] = ("clip",)) -> Path:
    """Find the folder of a run, or of shipped weights by their name: those that hold one of these kinds.

    A folder of your own that is called like shipped weights is meant by a path, such as ./tiny.
    Raises: CheckpointError: when there is neither; the shipped names are listed.
    """
    shipped = {
        folder.name: folder
        for root in reversed(SHIPPED)
        if root.is_dir()
        for folder in root.iterdir()
        if any((folder / f"{kind}.safetensors").is_file() for kind in kinds)
    }
    if isinstance(source, str) and source in shipped:
        return shipped[source]
    try:
        folder = Path(source).expanduser()
        if stat.S_ISDIR(folder.stat().st_mode):
            return folder
    except PermissionError:
        raise AccessError(f"{brief(source)} may not be read: ask its owner for the right to.") from None
    except (OSError, TypeError, ValueError, RuntimeError):  # not there, no path at all, or of a user that is not there
        pass
    others = {path.parent.name for root in SHIPPED for path in root.glob("*/*.safetensors")}
    if isinstance(source, str) and source in others:
        raise MissingError(f'"{source}" holds no {" or ".join(kinds)}, which is needed here: name "tiny", or your own.')
    names = ", ".join(sorted(shipped)) or "none"
    raise MissingError(
        f'"{brief(source)}" is neither a folder nor the name of shipped weights ({names}): '
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
    header = read_header(path, kind)
    try:
        # Sizes from a file are compared before memory is taken for them
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            model = model_class(config_from_dict(model_class.config_class, header.get("config")))
        tensors, header = load(path, kind, most=sum(x.numel() for x in model.state_dict().values()))
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    except CheckpointError:
        raise
    except Exception as error:  # whatever the numbers of a foreign config break
        raise CheckpointError(f"{path} does not fit this package's {kind} ({brief(error)}): train it again.") from error
    return model.requires_grad_(False), header


def save_model(folder: Path, model: torch.nn.Module, meta: dict) -> str:
    """Save one model of a run with its config; gives the file's sha256."""
    path = folder / f"{model.kind}.safetensors"
    return save(path, model.kind, model.state_dict(), {"config": config_to_dict(model.config), **meta})
