"""Batches of captioned pictures: the endless world, or a folder of your own.

The one place where pixel ranges change: models see float32 in [-1, 1], files and screens see 0 to 255.
"""

import random
from dataclasses import dataclass

import torch

from minidalle import tokenizer
from minidalle.world.captions import describe, write
from minidalle.world.render import render
from minidalle.world.scenes import Scene, draw_scene
from minidalle.world.twins import twin


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
