"""Batches of captioned pictures, and where they come from."""

import random
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from minidalle.tokenizer import Tokenizer
from minidalle.world.captions import TOKENIZER, describe, write
from minidalle.world.render import render
from minidalle.world.scenes import Scene, draw_scene
from minidalle.world.twins import twin


@dataclass(frozen=True)
class Batch:
    """Pictures and what is said of them."""

    images: torch.Tensor  # (B, 3, H, W), float32 in [-1, 1]
    tokens: torch.Tensor  # (B, L), int64, as short as the longest caption allows
    mask: torch.Tensor  # (B, L) bool, True for real tokens
    captions: list[str]
    scenes: list[Scene] | None = None  # where the pictures are drawn ones

    def to(self, device: torch.device) -> "Batch":
        """Move the tensors to a device."""
        images, tokens, mask = (x.to(device, non_blocking=True) for x in (self.images, self.tokens, self.mask))
        return replace(self, images=images, tokens=tokens, mask=mask)

    def part(self, rank: int, number: int) -> "Batch":
        """Take every Nth row, from a first one: what one of N processes trains on.

        Raises: ValueError: when the rows cannot be shared out evenly.
        """
        if len(self.images) % number:
            raise ValueError(
                f"A batch of {len(self.images)} cannot be shared out among {number} processes: choose a divisor."
            )
        rows = slice(rank, None, number)
        scenes = self.scenes and self.scenes[rows]
        return Batch(self.images[rows], self.tokens[rows], self.mask[rows], self.captions[rows], scenes)


class Source(Protocol):
    """Where the batches of a training come from; step n of a seed is the same batch whatever came before."""

    seed: int  # of all that is drawn
    tokenizer: Tokenizer  # of the captions

    def batch(self, step: int, batch_size: int) -> Batch:
        """Give the batch of a step, on the CPU."""


class Collection(Protocol):
    """Captioned pictures that all stages of a system learn from, each by a source of its own."""

    tokenizer: Tokenizer  # of the captions

    def to_dict(self) -> dict:
        """Describe it in JSON's types, its name first of all: what every model trained on it keeps in its header."""

    def source(self, image_size: int, seed: int, hard_negatives: bool, full_captions: float) -> Source:
        """Give the batches of one stage.

        Args:
            image_size: pixels along each side.
            seed: of all that is drawn.
            hard_negatives: whether every second picture is one that is nearly the same as the one before it.
            full_captions: share of captions that tell everything, beside those that tell a random part.
        """


@dataclass(frozen=True)
class Scenes:
    """The drawn world, as a collection."""

    two_objects: float = 0.5  # share of scenes with two objects
    tokenizer = TOKENIZER

    def to_dict(self) -> dict:
        """Describe it in JSON's types."""
        return {"name": "scenes", "two_objects": self.two_objects}

    def source(self, image_size: int, seed: int, hard_negatives: bool = False, full_captions: float = 0.0) -> "World":
        """Give the batches of one stage."""
        return World(image_size, seed, self.two_objects, hard_negatives, full_captions)


@dataclass(frozen=True)
class World:
    """The endless stream of scenes. Step n of a seed is the same batch on every machine, whatever came before."""

    image_size: int = 32  # pixels
    seed: int = 0
    two_objects: float = 0.5  # share of scenes with two objects
    hard_negatives: bool = False  # whether every second scene differs from the one before it in one fact
    full_captions: float = 0.0  # share of captions that tell everything, beside those that tell a random part
    tokenizer = TOKENIZER

    def batch(self, step: int, batch_size: int) -> Batch:
        """Draw the batch of a training step; held-out combinations never occur."""
        if batch_size < 1:
            raise ValueError(f"A batch of {batch_size} pictures was asked for; ask for 1 or more.")
        rng = random.Random(f"{self.seed}/{step}")
        scenes: list[Scene] = []
        while len(scenes) < batch_size:
            scenes.append(draw_scene(rng, self.two_objects))
            if self.hard_negatives:
                scenes.append(twin(scenes[-1], rng))
        scenes = scenes[:batch_size]
        captions = [write(describe(scene, rng, float(rng.random() < self.full_captions)), rng) for scene in scenes]
        return Batch(render(scenes, self.image_size), *TOKENIZER.encode(captions), captions, scenes)
