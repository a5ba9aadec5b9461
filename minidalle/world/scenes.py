"""The world: scenes of one or two plain objects, drawn as pictures of any size.

A scene is data, its caption is in captions.py, and oracle.py reads the picture back. Positions and radii are in
units of half the canvas: x runs from -1 (left) to 1 (right), y from -1 (top) to 1 (bottom).
"""

import random
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (50, 80, 220),
    "yellow": (240, 210, 50),
    "purple": (150, 60, 190),
    "orange": (245, 140, 40),
    "cyan": (60, 200, 215),
    "pink": (250, 140, 190),
}
BACKGROUNDS = {"black": (20, 20, 20), "white": (240, 240, 240), "grey": (128, 128, 128)}
SIZES = {"small": 0.24, "large": 0.40}  # half the extent of the shape
PLACES = {
    f"{row} {column}".strip() or "center": (x, y)
    for row, y in (("top", -0.52), ("", 0.0), ("bottom", 0.52))
    for column, x in (("left", -0.52), ("", 0.0), ("right", 0.52))
}
RELATIONS = ("above", "left of")  # of the first object to the second; "below" and "right of" name the same scenes
JITTER = 0.03  # how far a centre may lie from its nominal place along each axis: half a pixel at 32
PAIR_PLACES = {"above": ((0.0, -0.5), (0.0, 0.5)), "left of": ((-0.5, 0.0), (0.5, 0.0))}
HELD_OUT_PAIRS = frozenset(
    {("red", "ring"), ("green", "triangle"), ("blue", "circle"), ("yellow", "cross"), ("purple", "square"),
     ("orange", "diamond")}
)  # fmt: skip
HELD_OUT_RELATIONS = frozenset(
    {("circle", "above", "diamond"), ("diamond", "above", "ring"), ("cross", "above", "triangle"),
     ("square", "left of", "ring"), ("triangle", "left of", "circle"), ("ring", "left of", "cross")}
)  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """One object: what it is and where its centre lies."""

    shape: str
    color: str
    size: str
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """One or two things on a background; of two, the first is the upper or the left one."""

    things: tuple[Thing, ...]
    background: str

    @property
    def place(self) -> str | None:
        """Name the place of a lone thing; None for two."""
        if len(self.things) != 1:
            return None
        thing = self.things[0]
        return min(PLACES, key=lambda name: (PLACES[name][0] - thing.x) ** 2 + (PLACES[name][1] - thing.y) ** 2)

    @property
    def relation(self) -> str | None:
        """Name how the first of two things stands to the second; None for one."""
        if len(self.things) != 2:
            return None
        first, second = self.things
        return "above" if abs(first.y - second.y) > abs(first.x - second.x) else "left of"

    @property
    def is_held_out(self) -> bool:
        """Tell whether the scene shows a combination that training never draws."""
        if any((thing.color, thing.shape) in HELD_OUT_PAIRS for thing in self.things):
            return True
        shapes = tuple(thing.shape for thing in self.things)
        return len(shapes) == 2 and (shapes[0], self.relation, shapes[1]) in HELD_OUT_RELATIONS


def pick(rng: random.Random, options):
    """Draw one of a sequence with a single call of rng.random(), whose stream is the same on every Python."""
    return options[int(rng.random() * len(options))]


_COLORS, _SIZES, _PLACES, _BACKGROUNDS = map(tuple, (COLORS, SIZES, PLACES, BACKGROUNDS))


def draw_one(rng: random.Random) -> Scene:
    """Draw any scene of one thing, held-out combinations included."""
    center = PLACES[pick(rng, _PLACES)]
    return Scene((draw_thing(rng, center),), pick(rng, _BACKGROUNDS))


def draw_two(rng: random.Random) -> Scene:
    """Draw any scene of two things, held-out combinations included."""
    centers = PAIR_PLACES[pick(rng, RELATIONS)]
    return Scene(tuple(draw_thing(rng, center) for center in centers), pick(rng, _BACKGROUNDS))


def draw_thing(rng: random.Random, center: tuple[float, float]) -> Thing:
    """Draw any thing near a nominal place."""
    x, y = (value + JITTER * (2 * rng.random() - 1) for value in center)
    return Thing(pick(rng, SHAPES), pick(rng, _COLORS), pick(rng, _SIZES), x, y)


def draw_scene(rng: random.Random, two_things: float = 0.5, held_out: bool = False) -> Scene:
    """Draw a scene that is held out, or one that is not.

    Args:
        rng: the source of randomness; the same state gives the same scene on every machine.
        two_things: share of the scenes that show two things, 0 to 1.
        held_out: False draws what training may see, True only what it never sees.
    """
    draw = draw_two if rng.random() < two_things else draw_one
    while (scene := draw(rng)).is_held_out != held_out:
        pass
    return scene
