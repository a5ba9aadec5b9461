"""The world of signs as a collection: which share of the pictures has a sign of which kind, and batches of them."""

import random
from dataclasses import dataclass

import torch.nn.functional as F

from minidalle.checks import whole_number
from minidalle.data.batches import Batch
from minidalle.world.sign_words import TOKENIZER, choose, write
from minidalle.world.signs import CANVAS, Poster, draw_poster, render, twin


@dataclass(frozen=True)
class Signs:
    """The world of signs, as all stages of a system learn from it."""

    labels: float = 0.3  # share of the pictures with a label, which names the shape and of which no caption speaks
    quotes: float = 0.4  # share with a word that the caption spells
    tokenizer = TOKENIZER

    def to_dict(self) -> dict:
        """Describe it in JSON's types."""
        return {"name": "signs", "labels": self.labels, "quotes": self.quotes}

    def source(self, image_size: int, seed: int, hard_negatives: bool, full_captions: float) -> "SignSource":
        """Give the batches of one stage."""
        return SignSource(self, image_size, seed, hard_negatives, full_captions)


@dataclass(frozen=True)
class SignSource:
    """The endless stream of pictures; step n of a seed is the same batch whatever came before."""

    signs: Signs
    image_size: int = CANVAS
    seed: int = 0
    hard_negatives: bool = False
    full_captions: float = 0.0
    tokenizer = TOKENIZER

    def batch(self, step: int, batch_size: int) -> Batch:
        """Draw the batch of a training step; what is held out never occurs."""
        rng, posters = random.Random(f"{self.seed}/{step}"), []
        while len(posters) < whole_number(batch_size, "The batch", 1):
            posters.append(draw_poster(rng, self._kind(rng.random())))
            if self.hard_negatives:
                posters.append(twin(posters[-1], rng))
        posters = posters[:batch_size]
        captions = [self._caption(poster, rng) for poster in posters]
        images = render(posters)
        if self.image_size != CANVAS:
            images = F.interpolate(images, [self.image_size] * 2, mode="area")
        return Batch(images, *TOKENIZER.encode(captions), captions)

    def _kind(self, draw: float) -> str:
        labels, quotes = self.signs.labels, self.signs.quotes
        return "label" if draw < labels else "quote" if draw < labels + quotes else "plain"

    def _caption(self, poster: Poster, rng: random.Random) -> str:
        return write(choose(poster, rng, float(rng.random() < self.full_captions)))
