"""Batches of captioned pictures: the endless world, or a folder of your own.

The one place where pixel ranges change: models see float32 in [-1, 1], files and screens see 0 to 255.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from minidalle import tokenizer
from minidalle.captions import describe, write
from minidalle.scenes import Scene, draw_scene, render, twin

MAX_PIXELS = 4096 * 4096  # of a picture from outside
# What a bad line or a bad picture raises, in json, pathlib and Pillow
UNREADABLE = (ValueError, TypeError, OSError, SyntaxError, Image.DecompressionBombError)


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """Turn images (B, 3, H, W) in [-1, 1] into pictures; values outside are clipped."""
    pixels = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return [Image.fromarray(picture) for picture in pixels.permute(0, 2, 3, 1).cpu().numpy()]


def from_pil(pictures: list[Image.Image], size: int) -> torch.Tensor:
    """Turn pictures into images (B, 3, size, size), float32 in [-1, 1]; the middle square of each is taken."""
    rows = []
    for picture in pictures:
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise ValueError(
                f"a picture has {width} x {height} pixels and at most {MAX_PIXELS} are read: make it smaller"
            )
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        square = picture.convert("RGB").crop((left, top, left + side, top + side))
        resized = square if side == size else square.resize((size, size), Image.Resampling.BICUBIC)
        rows.append(torch.from_numpy(np.array(resized)).permute(2, 0, 1))
    return torch.stack(rows).float() / 127.5 - 1


@dataclass(frozen=True)
class Batch:
    """Pictures and what is said of them."""

    images: torch.Tensor  # (B, 3, H, W), float32 in [-1, 1]
    tokens: torch.Tensor  # (B, L), int64, as short as the longest caption allows
    scenes: list[Scene]
    captions: list[str]


@dataclass(frozen=True)
class World:
    """The endless stream of scenes. Step n of a seed is the same batch on every machine, whatever came before."""

    image_size: int = 32  # pixels
    seed: int = 0
    two_things: float = 0.5  # share of scenes with two things
    twins: bool = False  # whether every second scene differs from the one before it in one fact
    full_captions: float = 0.0  # share of captions that tell everything, beside those that tell a random part

    def batch(self, step: int, batch_size: int) -> Batch:
        """Draw the batch of a training step; held-out combinations never occur."""
        if batch_size < 1:
            raise ValueError(f"A batch of {batch_size} pictures was asked for; ask for 1 or more.")
        rng = random.Random(f"{self.seed}/{step}")
        scenes: list[Scene] = []
        while len(scenes) < batch_size:
            scenes.append(draw_scene(rng, self.two_things))
            if self.twins:
                scenes.append(twin(scenes[-1], rng))
        scenes = scenes[:batch_size]
        captions = [write(describe(scene, rng, float(rng.random() < self.full_captions)), rng) for scene in scenes]
        tokens = tokenizer.encode(captions)
        longest = int(tokenizer.caption_mask(tokens).sum(1).max())
        return Batch(render(scenes, self.image_size), tokens[:, :longest], scenes, captions)


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
