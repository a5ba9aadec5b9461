"""The world of signs: one to four equal objects, and in some pictures a sign below them with a word on it.

There are two kinds of signs. A label names the shape that is shown, as labels do, and no caption speaks of it; a quoted
word has nothing to do with the objects, and the caption spells it. Pictures are of 32 pixels.
"""

import random
from dataclasses import dataclass, replace

import torch

from minidalle.world.letters import HEIGHT, draw_words
from minidalle.world.render import as_range, coverage
from minidalle.world.scenes import _BACKGROUNDS, _COLORS, BACKGROUNDS, COLORS, SHAPES, SIZES, pick

CANVAS = 32  # pixels
MAX_COUNT = 4
PLATE, INK = (250, 235, 170), (20, 20, 20)  # of a sign; no background is so near to the plate that it can be mistaken
RADII = {1: SIZES["large"]} | dict.fromkeys(range(2, MAX_COUNT + 1), SIZES["small"])  # by count
# Where objects are, in units of half the canvas: one in a row of three places, several in four cells above the sign
ALONE = tuple((x, -0.375) for x in (-0.5, 0.0, 0.5))
CELLS = tuple((x, y) for y in (-0.695, -0.055) for x in (-0.5, 0.5))
JITTER = 0.015  # how far a centre may lie from there along each axis: a quarter of a pixel
LABELS = {"circle": "disc", "square": "box", "triangle": "cone", "diamond": "gem", "cross": "plus", "ring": "ring"}
WORDS = {  # that are quoted; letters, pairs of letters and letters at each place of hidden ones occur in seen ones
    "seen": tuple(
        "dog sun hat fox owl ant jam pie toe tree bird fish duck goat lamb lion moon star snow wind road ship bike "
        "book sock quiz zoo yak vase fork bell nest rope seed salt nose ball coin wool pear mint cap taxi hen".split()
    ),
    "held out": ("cat", "bear", "lake", "hand", "door", "rose", "toad", "bean"),
    "test": ("coat", "boat", "cake", "card", "soap", "bee", "sand", "ham"),
}
# Counts of a shape, and counts of a color, that no training picture shows
CELLS_OF = {
    "held out": frozenset({(2, "triangle"), (3, "circle"), (4, "cross"), (2, "green"), (3, "red"), (4, "blue")}),
    "test": frozenset({(2, "ring"), (3, "diamond"), (4, "square"), (2, "pink"), (3, "yellow"), (4, "purple")}),
}
SPLITS = ("seen", "held out", "test")
KINDS = ("plain", "label", "quote")


@dataclass(frozen=True)
class Facts:
    """What a picture shows, or what a caption says of it; None where that is unreadable, or not said."""

    count: int | None = None
    shape: str | None = None
    color: str | None = None
    background: str | None = None
    word: str | None = None  # on the sign; of a picture, None where there is no sign


@dataclass(frozen=True)
class Poster:
    """A picture: its facts, where its objects are, and whether its caption quotes the word."""

    facts: Facts
    centers: tuple[tuple[float, float], ...]
    quoted: bool = False

    @property
    def kind(self) -> str:
        """Name the kind, one of KINDS."""
        return "quote" if self.quoted else "label" if self.facts.word else "plain"

    @property
    def split(self) -> str:
        """Name the split: by the word that is quoted, and by the count with shape and color."""
        facts = self.facts
        cells = {(facts.count, facts.shape), (facts.count, facts.color)}
        found = [
            split for split, there in CELLS_OF.items() if cells & there or (self.quoted and facts.word in WORDS[split])
        ]
        return "mixed" if len(found) == 2 else found[0] if found else "seen"


def draw_poster(rng: random.Random, kind: str = "plain", split: str = "seen") -> Poster:
    """Draw a picture of a kind and a split.

    Args:
        rng: the source of randomness.
        kind: one of KINDS.
        split: one of SPLITS; a quote is held out by its word alone, the others by count with shape or color.

    Raises: ValueError: when there is no such kind or split.
    """
    if kind not in KINDS or split not in SPLITS:
        raise ValueError(f'"{kind}", "{split}" is no kind and split; choose of {KINDS} and of {SPLITS}.')
    quoted = kind == "quote"
    while (poster := draw_any(rng)).split != ("seen" if quoted else split):
        pass
    word = pick(rng, WORDS[split]) if quoted else LABELS[poster.facts.shape] if kind == "label" else None
    return replace(poster, facts=replace(poster.facts, word=word), quoted=quoted)


def draw_any(rng: random.Random) -> Poster:
    """Draw any picture without a sign, held-out combinations included."""
    facts = Facts(1 + int(rng.random() * MAX_COUNT), pick(rng, SHAPES), pick(rng, _COLORS), pick(rng, _BACKGROUNDS))
    return Poster(facts, place(facts.count, rng))


def place(count: int, rng: random.Random) -> tuple[tuple[float, float], ...]:
    """Choose the centres of so many objects; they never touch."""
    cells = list(ALONE if count == 1 else CELLS)
    chosen = [cells.pop(int(rng.random() * len(cells))) for _ in range(count)]
    return tuple(tuple(value + JITTER * (2 * rng.random() - 1) for value in center) for center in chosen)


def twin(poster: Poster, rng: random.Random) -> Poster:
    """Change one fact of a picture: count, shape, color, background, or one letter of a quoted word.

    A label goes with its shape. A changed word need not be one of WORDS, so letters have to be read one by one.

    Returns: a picture that training may show and that differs from the given one.
    """
    while (other := change(poster, rng)).split != "seen":
        pass
    return other


def change(poster: Poster, rng: random.Random) -> Poster:
    """Change one fact of a picture, whatever comes of it; a quoted word in half of all cases."""
    facts, options = poster.facts, {"shape": SHAPES, "color": _COLORS, "background": _BACKGROUNDS}
    if poster.quoted and rng.random() < 0.5:
        return replace(poster, facts=replace(facts, word=misspell(facts.word, rng)))
    fact = pick(rng, ("count", *options))
    if fact == "count":
        count = another(rng, range(1, MAX_COUNT + 1), facts.count)
        return replace(poster, facts=replace(facts, count=count), centers=place(count, rng))
    facts = replace(facts, **{fact: another(rng, options[fact], getattr(facts, fact))})
    if poster.kind == "label":
        facts = replace(facts, word=LABELS[facts.shape])
    return replace(poster, facts=facts)


def another(rng: random.Random, options, current):
    """Draw one of the options that is not the current one."""
    return pick(rng, [option for option in options if option != current])


def misspell(word: str, rng: random.Random) -> str:
    """Change one letter of a word."""
    at = int(rng.random() * len(word))
    return word[:at] + another(rng, "abcdefghijklmnopqrstuvwxyz", word[at]) + word[at + 1 :]


def render(posters: list[Poster]) -> torch.Tensor:
    """Draw pictures: (B, 3, 32, 32), float32 in [-1, 1]."""
    grounds = [_BACKGROUNDS.index(poster.facts.background) for poster in posters]
    images = as_range(BACKGROUNDS)[grounds][:, :, None, None].repeat(1, 1, CANVAS, CANVAS)
    colors = as_range(COLORS)[[_COLORS.index(poster.facts.color) for poster in posters]]
    alpha = draw_objects(posters)[:, None]
    images += alpha * (colors[:, :, None, None] - images)
    rows = [row for row, poster in enumerate(posters) if poster.facts.word is not None]
    if rows:
        plate, ink = as_range({"plate": PLATE, "ink": INK})[:, :, None, None]
        drawn = draw_words([posters[row].facts.word for row in rows])[:, None]
        images[rows, :, -HEIGHT:] = plate + drawn * (ink - plate)
    return images


def draw_objects(posters: list[Poster]) -> torch.Tensor:
    """Draw the share of each pixel that objects cover: (B, 32, 32)."""
    alpha = torch.zeros(len(posters), CANVAS, CANVAS)
    for shape in SHAPES:
        objects = [
            (row, x, y, RADII[poster.facts.count])
            for row, poster in enumerate(posters)
            if poster.facts.shape == shape
            for x, y in poster.centers
        ]
        if objects:
            rows, *placed = torch.tensor(objects, dtype=torch.float32).unbind(1)
            alpha.index_add_(0, rows.long(), coverage(shape, *placed, CANVAS))
    return alpha.clamp(max=1)
