"""Readers: what a picture shows of what was asked. A world brings its own; a report card takes any."""

from typing import Any, Protocol

import torch

from minidalle.world import oracle
from minidalle.world.captions import Description, matches
from minidalle.world.scenes import Scene


class Reader(Protocol):
    """What the report card needs to know of a world."""

    attributes: tuple[str, ...]  # what a prompt can state, in the order of the card

    def read(self, images: torch.Tensor) -> list:
        """Read images (B, 3, H, W) in [-1, 1]: one reading for each, None where there is none."""

    def check(self, asked: Any, reading: Any) -> dict[str, bool]:
        """Tell for each attribute that is asked for whether a reading, None included, shows it so."""


class SceneReader:
    """Read drawn scenes by the oracle, which sees the picture alone."""

    attributes = ("count", "shape", "color", "size", "place", "relation", "background")

    def read(self, images: torch.Tensor) -> list[Scene | None]:
        """Read images (B, 3, H, W) in [-1, 1]; None where a picture shows no scene clearly."""
        return oracle.read(images)

    def check(self, asked: Description, reading: Scene | None) -> dict[str, bool]:
        """Compare what a description states with a scene, attribute by attribute."""
        return matches(asked, reading)


SCENES = SceneReader()
