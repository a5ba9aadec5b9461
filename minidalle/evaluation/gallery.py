"""Pictures for a report card: painted once, each with a seed of its own, and read."""

import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from minidalle.evaluation.features import features_of
from minidalle.evaluation.readers import SCENES, Reader

CHUNK = 128  # prompts drawn at a time, which bounds the memory
LINE_SECONDS = 10.0  # between two lines of progress
Painter = Callable[[list[str], list[int]], torch.Tensor]  # captions, a seed for each, to images (B, 3, H, W) in [-1, 1]
Understand = Callable[[str], str]  # a prompt to the caption that is painted; ValueError where it is refused


def picture_seeds(n: int, seed: int | str) -> list[int]:
    """Give each picture a seed of its own; the first ones do not depend on how many there are."""
    rng = random.Random(f"noise/{seed}")
    return [rng.getrandbits(63) for _ in range(n)]


def paint_all(paint: Painter, captions: list[str], seed: int | str = 0) -> torch.Tensor:
    """Paint any number of captions, a chunk at a time; every picture has a seed of its own."""
    seeds = picture_seeds(len(captions), seed)
    starts = range(0, len(captions), CHUNK)
    return torch.cat([paint(captions[start : start + CHUNK], seeds[start : start + CHUNK]) for start in starts])


class Answer(NamedTuple):
    """What is kept of a picture."""

    features: torch.Tensor  # (D,)
    reading: Any  # None where the picture cannot be read


class Gallery:
    """What pictures show; each pair of caption and seed is painted and read once.

    Args:
        paint: the painter.
        reader: of its world.
        name: of the model, with which progress is told on stderr; empty: it is not.
    """

    def __init__(self, paint: Painter, reader: Reader = SCENES, name: str = ""):
        self.paint, self.reader, self.name = paint, reader, name
        self.kept: dict[tuple[str, int], Answer] = {}
        self.image_size, self.seconds, self.last_line = 0, 0.0, time.perf_counter()

    def show(self, captions: Sequence[str], seeds: Sequence[int]) -> list[Answer]:
        """Answer captions; what has not been painted yet is."""
        wanted = list(zip(captions, seeds, strict=True))
        missing = [pair for pair in dict.fromkeys(wanted) if pair not in self.kept]
        for start in range(0, len(missing), CHUNK):
            part, started = missing[start : start + CHUNK], time.perf_counter()
            images = self.paint([caption for caption, _ in part], [seed for _, seed in part])
            self.seconds += time.perf_counter() - started
            self.image_size = images.shape[-1]
            answers = map(Answer, features_of(images), self.reader.read(images))
            self.kept |= zip(part, answers, strict=True)
            self.tell()
        return [self.kept[pair] for pair in wanted]

    def ask(self, prompts: list[str], seeds: list[int], understand: Understand) -> list[Answer | None]:
        """Answer prompts; None where the model refuses one."""
        captions = [understood(prompt, understand) for prompt in prompts]
        taken = [(caption, seed) for caption, seed in zip(captions, seeds, strict=True) if caption is not None]
        shown = iter(self.show([caption for caption, _ in taken], [seed for _, seed in taken]))
        return [None if caption is None else next(shown) for caption in captions]

    def tell(self) -> None:
        """Say on stderr how much is painted, if some time has passed since it was last said."""
        if self.name and time.perf_counter() - self.last_line > LINE_SECONDS:
            self.last_line = time.perf_counter()
            rate = len(self.kept) / max(self.seconds, 1e-9)
            print(f"{self.name}: {len(self.kept)} pictures painted, {rate:.1f} a second", file=sys.stderr, flush=True)


def understood(prompt: str, understand: Understand) -> str | None:
    """Give the caption of a prompt; None when it is refused."""
    try:
        return understand(prompt)
    except ValueError:
        return None
