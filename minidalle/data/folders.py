"""Folders of captioned pictures."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from minidalle.checkpoint import brief
from minidalle.checks import whole_number
from minidalle.data.batches import Batch
from minidalle.data.images import MAX_SIDE, from_pil, read_picture, to_pil

MAX_INDEX = 64 * 2**20  # bytes of metadata.jsonl
MAX_LINE = 64 * 2**10  # bytes of one of its lines, which bounds how deeply JSON can be nested
MAX_VALUES = 2**30  # of all pictures together, 4 GB


def save_folder(batches: Batch | Iterable[Batch], folder: Path) -> None:
    """Write batches as an image folder: PNG files and metadata.jsonl with a file name and a caption a line."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    with (folder / "metadata.jsonl").open("w", encoding="utf-8", newline="\n") as index:
        for batch in [batches] if isinstance(batches, Batch) else batches:
            for picture, caption in zip(to_pil(batch.images), batch.captions, strict=True):
                name = f"{number:04d}.png"
                picture.save(folder / name, optimize=True)
                index.write(json.dumps({"file_name": name, "text": caption}) + "\n")
                number += 1


def load_folder(folder: Path, size: int) -> tuple[torch.Tensor, list[str]]:
    """Read an image folder.

    Args:
        folder: holds metadata.jsonl, whose lines have file_name and text.
        size: pixels along each side that the pictures are brought to.

    Returns: images (B, 3, size, size) in [-1, 1], and their captions.
    Raises: ValueError: when the metadata is missing, or too large, or a line of it is broken (file and line are named).
    """
    index, size = folder / "metadata.jsonl", whole_number(size, "The size of the pictures", 1, MAX_SIDE)
    most = MAX_VALUES // (3 * size * size)
    images, captions = [], []
    for number, line in enumerate(read_lines(index), 1):
        if number > most:
            raise ValueError(
                f"{index} has more than the {most} pictures of {size} x {size} that are held in memory: split it."
            )
        try:
            path, caption = read_line(line, folder)
            images.append(from_pil([read_picture(path)], size))
        except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: links that lead round in a circle
            reason = error.strerror if isinstance(error, OSError) and error.strerror else brief(error)
            raise ValueError(f"{index}, line {number}, cannot be read: {reason}; mend or remove it.") from error
        captions.append(caption)
    if not images:
        raise ValueError(f"{index} is empty; a file_name and a text were expected on each line.")
    return torch.cat(images), captions


def read_lines(index: Path) -> Iterator[bytes]:
    """Read the lines of a file, one after the other; of a line that is too long no more than shows that it is."""
    if not index.is_file():
        raise ValueError(f"{index} does not exist; a folder of pictures needs it: a file_name and a text on each line.")
    with index.open("rb") as file:
        if (found := index.stat().st_size) > MAX_INDEX:
            raise ValueError(f"{index} has {found} bytes and at most {MAX_INDEX} are read: split the folder.")
        while line := file.readline(MAX_LINE + 1):
            yield line


def read_line(line: bytes, folder: Path) -> tuple[Path, str]:
    """Read a line of metadata: where its picture lies, and the caption.

    Raises: ValueError: says what is wrong with the line.
    """
    if len(line) > MAX_LINE:
        raise ValueError(f"it has more than {MAX_LINE} bytes")
    try:
        row = json.loads(line)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    if not isinstance(row, dict) or not {"file_name", "text"} <= set(row):
        raise ValueError("a file_name and a text were expected")
    for key in ("file_name", "text"):
        if not isinstance(row[key], str):
            raise ValueError(f"{key} is of type '{type(row[key]).__name__}'; a text was expected")
        if any("\ud800" <= character <= "\udfff" for character in row[key]):
            raise ValueError(f"{key} holds half a character; text was expected")
    path = (folder / row["file_name"]).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError("the file lies outside the folder")
    return path, row["text"]
