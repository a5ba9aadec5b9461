"""Folders of captioned pictures."""

import json
from pathlib import Path

import torch
from PIL import Image

from minidalle.data.batches import Batch
from minidalle.data.images import from_pil, to_pil

# What a bad line or a bad picture raises, in json, pathlib and Pillow
UNREADABLE = (ValueError, TypeError, OSError, SyntaxError, Image.DecompressionBombError)


def save_folder(batch: Batch, folder: Path) -> None:
    """Write a batch as an image folder: PNG files and metadata.jsonl with a file name and a caption a line."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, (picture, caption) in enumerate(zip(to_pil(batch.images), batch.captions, strict=True)):
        name = f"{i:04d}.png"
        picture.save(folder / name, optimize=True)
        lines.append(json.dumps({"file_name": name, "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def load_folder(folder: Path, size: int) -> tuple[torch.Tensor, list[str]]:
    """Read an image folder.

    Args:
        folder: holds metadata.jsonl, whose lines have file_name and text.
        size: pixels along each side that the pictures are brought to.

    Returns: images (B, 3, size, size) in [-1, 1], and their captions.
    Raises: ValueError: when the metadata is missing or a line of it is broken (file and line are named).
    """
    index = folder / "metadata.jsonl"
    if not index.is_file():
        raise ValueError(f"{index} does not exist; a folder of pictures needs it: a file_name and a text on each line.")
    pictures, captions = [], []
    for number, line in enumerate(index.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not {"file_name", "text"} <= set(row):
                raise ValueError("a file_name and a text were expected")
            path = (folder / row["file_name"]).resolve()
            if not path.is_relative_to(folder.resolve()):
                raise ValueError("the file lies outside the folder")
            with Image.open(path) as picture:
                pictures.append(from_pil([picture], size))
            captions.append(str(row["text"]))
        except UNREADABLE as error:
            raise ValueError(f"{index}, line {number}, cannot be read: {error}; mend or remove it.") from error
    if not pictures:
        raise ValueError(f"{index} is empty; a file_name and a text were expected on each line.")
    return torch.cat(pictures), captions
