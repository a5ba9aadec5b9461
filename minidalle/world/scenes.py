"""The world: scenes of one or two plain objects, and which combinations of them training never shows.

A scene is data; render.py draws it, captions.py says it, oracle.py reads the picture back. Positions and radii are in
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
# Combinations that no training picture shows. Settings were chosen on the held-out ones, so they tell less with every
# choice; the test ones are asked at the end, by `minidalle evaluate --test`, and nothing is ever chosen by them
PAIRS = {
    "held out": frozenset(
        {("red", "ring"), ("green", "triangle"), ("blue", "circle"), ("yellow", "cross"), ("purple", "square"),
         ("orange", "diamond")}
    ),
    "test": frozenset({("cyan", "triangle"), ("pink", "circle"), ("green", "square")}),
}  # fmt: skip
TRIPLES = {
    "held out": frozenset(
        {("circle", "above", "diamond"), ("diamond", "above", "ring"), ("cross", "above", "triangle"),
         ("square", "left of", "ring"), ("triangle", "left of", "circle"), ("ring", "left of", "cross")}
    ),
    "test": frozenset(
        {("square", "above", "circle"), ("ring", "left of", "diamond"), ("cross", "left of", "square")}
    ),
}  # fmt: skip
SPLITS = ("seen", "held out", "test")


@dataclass(frozen=True)
class Object:
    """One object: what it is and where its centre lies."""

    shape: str
    color: str
    size: str
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """One or two objects on a background; of two, the first is the upper or the left one."""

    objects: tuple[Object, ...]
    background: str

    @property
    def place(self) -> str | None:
        """Name the place of a lone object; None for two."""
        if len(self.objects) != 1:
            return None
        item = self.objects[0]
        return min(PLACES, key=lambda name: (PLACES[name][0] - item.x) ** 2 + (PLACES[name][1] - item.y) ** 2)

    @property
    def relation(self) -> str | None:
        """Name how the first of two objects stands to the second; None for one."""
        if len(self.objects) != 2:
            return None
        first, second = self.objects
        return "above" if abs(first.y - second.y) > abs(first.x - second.x) else "left of"

    @property
    def split(self) -> str:
        """Name the split that the scene belongs to, see split_of."""
        pairs = [(item.color, item.shape) for item in self.objects]
        return split_of(pairs, [item.shape for item in self.objects], self.relation)


def split_of(pairs: list[tuple], shapes: list[str | None], relation: str | None) -> str:
    """Name the split of a combination.

    Args:
        pairs: colour and shape of each object; None where it is not known.
        shapes: of the objects.
        relation: of the first to the second, "above" or "left of"; None for one object, or where it is not known.

    Returns: "seen" where training may show it; "held out" or "test" where it holds a combination of that split;
        "mixed" where it holds combinations of both, which no split draws.
    """
    triple = (shapes[0], relation, shapes[-1])
    found = [name for name in PAIRS if triple in TRIPLES[name] or any(pair in PAIRS[name] for pair in pairs)]
    return "mixed" if len(found) == 2 else found[0] if found else "seen"


def pick(rng: random.Random, options):
    """Draw one of a sequence with a single call of rng.random(), whose stream is the same on every Python."""
    return options[int(rng.random() * len(options))]


_COLORS, _SIZES, _PLACES, _BACKGROUNDS = map(tuple, (COLORS, SIZES, PLACES, BACKGROUNDS))


def draw_one(rng: random.Random) -> Scene:
    """Draw any scene of one object, held-out combinations included."""
    center = PLACES[pick(rng, _PLACES)]
    return Scene((draw_object(rng, center),), pick(rng, _BACKGROUNDS))


def draw_two(rng: random.Random) -> Scene:
    """Draw any scene of two objects, held-out combinations included."""
    centers = PAIR_PLACES[pick(rng, RELATIONS)]
    return Scene(tuple(draw_object(rng, center) for center in centers), pick(rng, _BACKGROUNDS))


def draw_object(rng: random.Random, center: tuple[float, float]) -> Object:
    """Draw any object near a nominal place."""
    x, y = (value + JITTER * (2 * rng.random() - 1) for value in center)
    return Object(pick(rng, SHAPES), pick(rng, _COLORS), pick(rng, _SIZES), x, y)


def draw_scene(rng: random.Random, two_objects: float = 0.5, split: str = "seen") -> Scene:
    """Draw a scene of a split.

    Args:
        rng: the source of randomness; the same state gives the same scene on every machine.
        two_objects: share of the scenes that show two objects, 0 to 1.
        split: "seen" draws what training may show, "held out" and "test" only what it never shows.

    Raises: ValueError: when there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f'"{split}" is no split of the scenes; choose one of {", ".join(SPLITS)}.')
    draw = draw_two if rng.random() < two_objects else draw_one
    while (scene := draw(rng)).split != split:
        pass
    return scene
