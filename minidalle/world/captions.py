"""What is said of a scene: a random part of it, in plain English. The way back, from words to facts, is in grammar.py.

A Description holds the facts that a caption states; None stands for "not said".
"""

import random
from dataclasses import dataclass

from minidalle.tokenizer import Tokenizer, split_words
from minidalle.world.scenes import BACKGROUNDS, COLORS, SHAPES, SIZES, Object, Scene, pick, split_of

# The words of each fact, the usual one first
WORDS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "cross": ("cross", "plus"),
    "ring": ("ring", "donut"),
    "purple": ("purple", "violet"),
    "small": ("small", "little"),
    "large": ("large", "big"),
    "grey": ("grey", "gray"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "top": ("top", "upper"),
    "bottom": ("bottom", "lower"),
}
CORNERS = ("at the {}", "in the {} corner", "in the {}")
PLACE_WORDS = {
    "center": ("in the center", "in the middle", "at the center"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "left": ("on the left", "at the left", "on the left side"),
    "right": ("on the right", "at the right", "on the right side"),
}
GROUNDS = ("on a {} background", "on {}", "with a {} background")
OPPOSITES = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
SAID = {"color": 0.7, "shape": 0.7, "size": 0.5, "place": 0.5, "relation": 0.85, "background": 0.5}  # how often
# How often the second of two objects is named first. At one half, order and relation together say which is the upper
# one and neither does alone: an exclusive or, which CLIP did not begin to learn in 2,000 batches
TURNED = 0.25
USUAL = 0.5  # how often the usual words are taken; the others share the rest
PLACE_FIRST, GROUND_FIRST = 0.25, 0.2  # how often a place and a background open the sentence


@dataclass(frozen=True)
class SaidObject:
    """What a caption says of one object; None where it says nothing."""

    shape: str | None = None
    color: str | None = None
    size: str | None = None


@dataclass(frozen=True)
class Description:
    """What a caption says of a scene; None where it says nothing."""

    objects: tuple[SaidObject, ...]
    place: str | None = None
    relation: str | None = None  # of the first object named to the second; all four directions
    background: str | None = None

    @property
    def split(self) -> str:
        """Name the split that the words alone ask for: "seen", "held out", "test", or "mixed" (see scenes.split_of)."""
        shapes, relation = [item.shape for item in self.objects], self.relation
        if relation in ("below", "right of"):
            shapes, relation = shapes[::-1], OPPOSITES[relation]
        return split_of([(item.color, item.shape) for item in self.objects], shapes, relation)

    @property
    def num_facts(self) -> int:
        """Count the facts that are stated."""
        of_objects = sum(fact is not None for item in self.objects for fact in (item.shape, item.color, item.size))
        return of_objects + sum(fact is not None for fact in (self.place, self.relation, self.background))


def describe(scene: Scene, rng: random.Random, fullness: float = 0.0) -> Description:
    """Choose at random which facts of a scene to tell.

    Args:
        scene: what there is to tell.
        rng: the source of randomness.
        fullness: 0 leaves out as much as SAID states, 1 tells everything; between, a mixture of both.
    """

    def maybe(attribute: str, fact: str | None) -> str | None:
        return fact if rng.random() < SAID[attribute] + fullness * (1 - SAID[attribute]) else None

    def said(item: Object) -> SaidObject:
        return SaidObject(maybe("shape", item.shape), maybe("color", item.color), maybe("size", item.size))

    objects = [said(item) for item in scene.objects]
    relation = maybe("relation", scene.relation)
    if len(objects) == 2 and rng.random() < TURNED:
        objects, relation = objects[::-1], OPPOSITES.get(relation)
    return Description(tuple(objects), maybe("place", scene.place), relation, maybe("background", scene.background))


def write(description: Description, rng: random.Random | None = None) -> str:
    """Put a description into words.

    Args:
        description: what to say.
        rng: draws the words and the order; None: the usual words in the usual order.
    """

    def choose(options: tuple[str, ...]) -> str:
        if rng is None or len(options) == 1 or rng.random() < USUAL:
            return options[0]
        return pick(rng, options[1:])

    def word(fact: str) -> str:
        return choose(WORDS.get(fact, (fact,)))

    def phrase(item: SaidObject) -> str:
        words = [word(fact) for fact in (item.size, item.color) if fact] + [word(item.shape or "shape")]
        return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)

    def first(share: float) -> bool:
        return rng is not None and rng.random() < share

    text = phrase(description.objects[0])
    if len(description.objects) == 2:
        link = word(description.relation) if description.relation else "and"
        text = f"{text} {link} {phrase(description.objects[1])}"
    if description.place:
        row, _, column = description.place.partition(" ")
        where = choose(CORNERS).format(f"{word(row)} {column}") if column else choose(PLACE_WORDS[row])
        text = f"{where} {text}" if first(PLACE_FIRST) else f"{text} {where}"
    if description.background:
        ground = choose(GROUNDS).format(word(description.background))
        text = f"{ground} {text}" if first(GROUND_FIRST) else f"{text} {ground}"
    return text


def known_words() -> tuple[str, ...]:
    """List every word that a caption can hold, in a fixed order."""
    facts = (*SHAPES, *COLORS, *SIZES, *BACKGROUNDS, *OPPOSITES, "top", "bottom", "left", "right")
    phrases = [spelling for fact in facts for spelling in WORDS.get(fact, (fact,))]
    phrases += [*CORNERS, *GROUNDS, *(words for options in PLACE_WORDS.values() for words in options), "a an and shape"]
    words = (word for phrase in phrases for word in split_words(phrase.replace("{}", "")))
    return tuple(dict.fromkeys(words))


TOKENIZER = Tokenizer(known_words())  # of the drawn world


def matches(description: Description, scene: Scene | None) -> dict[str, bool]:
    """Compare what was asked for with what a picture shows, attribute by attribute.

    Args:
        description: what the caption states.
        scene: what the oracle read, or None for an unreadable picture.

    Returns: for each attribute that the caption states (and "count"), whether the picture shows it so. Where the
        caption gives two objects no relation, the pairing that fits best is taken.
    """
    if scene is None or len(scene.objects) != len(description.objects):
        return {attribute: False for attribute in ("count", *stated(description))}
    orders = [scene.objects]
    if len(scene.objects) == 2:
        orders = [scene.objects, scene.objects[::-1]]
        if description.relation is not None:
            orders = [scene.objects[::-1]] if description.relation in ("below", "right of") else orders[:1]
    return max((_compare(description, scene, order) for order in orders), key=lambda found: sum(found.values()))


def stated(description: Description) -> list[str]:
    """List the attributes on which a description says anything."""
    names = [a for a in ("shape", "color", "size") if any(getattr(item, a) for item in description.objects)]
    return names + [a for a in ("place", "relation", "background") if getattr(description, a)]


def _compare(description: Description, scene: Scene, order: tuple[Object, ...]) -> dict[str, bool]:
    found = {"count": True}
    for name in stated(description):
        if name in ("shape", "color", "size"):
            pairs = zip(description.objects, order, strict=True)
            found[name] = all(getattr(said, name) in (None, getattr(seen, name)) for said, seen in pairs)
        elif name == "relation":
            found[name] = scene.relation in (description.relation, OPPOSITES[description.relation])
        else:
            found[name] = getattr(description, name) == getattr(scene, name)
    return found
