"""The world: scenes of one or two plain objects, drawn as pictures of any size.

A scene is data, its caption is in captions.py, and oracle.py reads the picture back. Positions and radii are in
units of half the canvas: x runs from -1 (left) to 1 (right), y from -1 (top) to 1 (bottom).
"""

import random
from dataclasses import dataclass, replace

import torch

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
PAIR_SCALE = 0.85  # two objects are drawn a little smaller, so that any two fit without touching
CROSS_ARM = 0.34  # half the width of a cross's arm, as a share of its radius
RING_HOLE = 0.52  # radius of a ring's hole, likewise

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
_FACTS = {"shape": SHAPES, "color": _COLORS, "size": _SIZES}
# Which fact belongs to which thing is learned last and from such twins alone, so they come three times as often
_SWAPS = {"swap colors": ("color",), "swap shapes": ("shape",), "swap both": ("color", "shape")}
_PAIR_CHANGES = ("shape", "color", "background", "turn") + 3 * tuple(_SWAPS)


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


def twin(scene: Scene, rng: random.Random) -> Scene:
    """Change one fact of a scene, of one thing any; or swap the facts of two things.

    In a batch of pictures and their twins, CLIP can tell a picture from its twin only by that one fact, so it learns
    the hard facts (place, shape, which colour belongs to which thing) as soon as the easy ones.

    Returns: a scene that is not held out and differs from the given one.
    """
    change = {1: _change_one, 2: _change_two}[len(scene.things)]
    while (other := change(scene, rng)).is_held_out or other == scene:
        pass
    return other


def _another(rng: random.Random, options: tuple[str, ...], current: str) -> str:
    return pick(rng, [option for option in options if option != current])


def _change_one(scene: Scene, rng: random.Random) -> Scene:
    thing = scene.things[0]
    fact = pick(rng, ("shape", "color", "size", "place", "background"))
    if fact == "background":
        return replace(scene, background=_another(rng, _BACKGROUNDS, scene.background))
    if fact == "place":
        (x, y), (x_old, y_old) = PLACES[_another(rng, _PLACES, scene.place)], PLACES[scene.place]
        return replace(scene, things=(replace(thing, x=thing.x + x - x_old, y=thing.y + y - y_old),))
    return replace(scene, things=(replace(thing, **{fact: _another(rng, _FACTS[fact], getattr(thing, fact))}),))


def _change_two(scene: Scene, rng: random.Random) -> Scene:
    first, second = scene.things
    fact = pick(rng, _PAIR_CHANGES)
    if fact == "background":
        return replace(scene, background=_another(rng, _BACKGROUNDS, scene.background))
    if fact == "turn":
        return replace(scene, things=tuple(replace(thing, x=thing.y, y=thing.x) for thing in scene.things))
    if fact in _SWAPS:
        first_facts, second_facts = ({name: getattr(thing, name) for name in _SWAPS[fact]} for thing in scene.things)
        return replace(scene, things=(replace(first, **second_facts), replace(second, **first_facts)))
    changed = replace(first, **{fact: _another(rng, _FACTS[fact], getattr(first, fact))})
    return replace(scene, things=(changed, second))


def radius(scene: Scene, thing: Thing) -> float:
    """Give half the extent of a thing as it is drawn in a scene."""
    return SIZES[thing.size] * (PAIR_SCALE if len(scene.things) == 2 else 1.0)


def signed_distance(shape: str, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Measure how far points lie outside a shape of radius 1 at the origin (negative: inside), v pointing down."""
    a, b = u.abs(), v.abs()
    if shape == "circle":
        return torch.hypot(u, v) - 1
    if shape == "square":
        return torch.maximum(a, b) - 1
    if shape == "triangle":
        return torch.maximum(v - 1, (2 * a - v - 1) / 5**0.5)
    if shape == "diamond":
        return (a + b - 1) / 2**0.5
    if shape == "cross":
        long, short = torch.maximum(a, b), torch.minimum(a, b)
        return torch.maximum(long - 1, short - CROSS_ARM)
    distance = torch.hypot(u, v)
    return torch.maximum(distance - 1, RING_HOLE - distance)


def coverage(shape: str, x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor, size: int) -> torch.Tensor:
    """Draw the share of each pixel that things of one shape cover.

    Args:
        shape: one of SHAPES.
        x, y, radius: (B,) in units of half the canvas.
        size: pixels along each side of the canvas.

    Returns: (B, size, size) in [0, 1], anti-aliased.
    """
    axis = (torch.arange(size, dtype=torch.float32) + 0.5) * (2 / size) - 1
    x, y, radius = (value.view(-1, 1, 1) for value in (x, y, radius))
    u, v = torch.broadcast_tensors((axis - x) / radius, (axis[:, None] - y) / radius)
    return (0.5 - signed_distance(shape, u, v) * radius * (size / 2)).clamp(0, 1)


def as_range(colors: dict) -> torch.Tensor:
    """Turn 0-255 colours into rows of values in [-1, 1]."""
    return torch.tensor(list(colors.values()), dtype=torch.float32) / 127.5 - 1


def render(scenes: list[Scene], size: int = 32) -> torch.Tensor:
    """Draw scenes as pictures.

    Args:
        scenes: any number of them.
        size: pixels along each side, 16 to 256.

    Returns: images (B, 3, size, size), float32 in [-1, 1].
    Raises: ValueError: when the size lies outside 16 to 256.
    """
    if not 16 <= size <= 256:
        raise ValueError(f"The canvas is {size} pixels wide; scenes can be drawn from 16 to 256: choose one of those.")
    backgrounds = as_range(BACKGROUNDS)[[_BACKGROUNDS.index(scene.background) for scene in scenes]]  # (B, 3)
    images = backgrounds[:, :, None, None].repeat(1, 1, size, size)
    palette = as_range(COLORS)
    for layer in (0, 1):
        for shape in SHAPES:
            rows = [i for i, s in enumerate(scenes) if len(s.things) > layer and s.things[layer].shape == shape]
            if not rows:
                continue
            things = [scenes[i].things[layer] for i in rows]
            radii = [radius(scenes[i], thing) for i, thing in zip(rows, things, strict=True)]
            placed = torch.tensor([(thing.x, thing.y, r) for thing, r in zip(things, radii, strict=True)])
            alpha = coverage(shape, *placed.unbind(1), size)[:, None]  # (rows, 1, H, W)
            color = palette[[_COLORS.index(thing.color) for thing in things]][:, :, None, None]
            images[rows] += alpha * (color - images[rows])
    return images
