"""What is said of a scene: a random part of it, in plain English, and back from the words to the facts.

A Description holds the facts that a caption states; None stands for "not said".
"""

import random
from dataclasses import dataclass

from minidalle.world.scenes import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT_PAIRS,
    HELD_OUT_RELATIONS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    pick,
)

SYNONYMS = {  # the world's own word first; each is drawn as often as the others
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "cross": ("cross", "plus"),
    "ring": ("ring", "donut"),
    "purple": ("purple", "violet"),
    "small": ("small", "little"),
    "large": ("large", "big"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "center": ("center", "middle"),
    "top": ("top", "upper"),
    "bottom": ("bottom", "lower"),
}
OPPOSITES = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
SAID = {"color": 0.7, "shape": 0.7, "size": 0.5, "place": 0.5, "relation": 0.85, "background": 0.5}  # how often
# How often the second of two things is named first. At one half, order and relation together say which is the upper one
# and neither does alone: an exclusive or, which CLIP did not begin to learn in 2,000 batches
TURNED = 0.25
_CANONICAL = {word: fact for fact, words in SYNONYMS.items() for word in words if " " not in word}
_FILLERS = frozenset("a an the at in on against to of background shape corner".split())
_KINDS = {"shape": SHAPES, "color": COLORS, "size": SIZES}
_PLACE_WORDS = frozenset(("top", "bottom", "left", "right", "center"))


@dataclass(frozen=True)
class SaidThing:
    """What a caption says of one thing; None where it says nothing."""

    shape: str | None = None
    color: str | None = None
    size: str | None = None


@dataclass(frozen=True)
class Description:
    """What a caption says of a scene; None where it says nothing."""

    things: tuple[SaidThing, ...]
    place: str | None = None
    relation: str | None = None  # of the first thing named to the second; all four directions
    background: str | None = None

    @property
    def is_held_out(self) -> bool:
        """Tell whether the words alone ask for a combination that training never shows."""
        if any((thing.color, thing.shape) in HELD_OUT_PAIRS for thing in self.things):
            return True
        if self.relation is None:
            return False
        first, second = (thing.shape for thing in self.things)
        if self.relation in ("below", "right of"):
            first, second = second, first
        relation = self.relation if self.relation in ("above", "left of") else OPPOSITES[self.relation]
        return (first, relation, second) in HELD_OUT_RELATIONS


def describe(scene: Scene, rng: random.Random, fullness: float = 0.0) -> Description:
    """Choose at random which facts of a scene to tell.

    Args:
        scene: what there is to tell.
        rng: the source of randomness.
        fullness: 0 leaves out as much as SAID states, 1 tells everything; between, a mixture of both.
    """

    def told(attribute: str, fact: str | None) -> str | None:
        return fact if rng.random() < SAID[attribute] + fullness * (1 - SAID[attribute]) else None

    things = [SaidThing(told("shape", t.shape), told("color", t.color), told("size", t.size)) for t in scene.things]
    relation = told("relation", scene.relation)
    if len(things) == 2 and rng.random() < TURNED:
        things, relation = things[::-1], OPPOSITES.get(relation)
    return Description(tuple(things), told("place", scene.place), relation, told("background", scene.background))


def write(description: Description, rng: random.Random) -> str:
    """Put a description into words, with a random choice of synonyms and order."""

    def word(fact: str) -> str:
        return pick(rng, SYNONYMS[fact]) if fact in SYNONYMS else fact

    def phrase(thing: SaidThing) -> str:
        words = [word(fact) for fact in (thing.size, thing.color) if fact] + [word(thing.shape or "shape")]
        return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)

    text = phrase(description.things[0])
    if len(description.things) == 2:
        link = word(description.relation) if description.relation else "and"
        text = f"{text} {link} {phrase(description.things[1])}"
    if description.place:
        words = description.place.split()
        where = " ".join([word(w) if len(words) == 2 or w == "center" else w for w in words])
        where = f"in the {where}" if description.place == "center" else f"at the {where}"
        text = f"{where} {text}" if rng.random() < 0.25 else f"{text} {where}"
    if description.background:
        ground = f"on a {description.background} background"
        text = f"{ground} {text}" if rng.random() < 0.2 else f"{text} {ground}"
    return text


def words_of(caption: str) -> list[str]:
    """Split a caption into lower-case words; commas and full stops fall away."""
    return caption.lower().replace(",", " ").replace(".", " ").split()


def parse(caption: str) -> Description:
    """Read the facts back out of a caption; the inverse of write.

    Raises: ValueError: when a word is not one of the world's, or the words name no thing or more than two.
    """
    words = words_of(caption)
    things, place, relation, background = [{}], [], None, None
    for i, original in enumerate(words):
        word = _CANONICAL.get(original, original)
        before_of = words[i + 1 : i + 2] == ["of"]
        if kind := next((kind for kind, known in _KINDS.items() if word in known), None):
            if things[-1].get(kind) not in (None, word):
                raise ValueError(
                    f'"{caption}" gives one thing two {kind}s; say "and" or a relation between two things.'
                )
            things[-1][kind] = word
        elif word == "shape":
            things[-1].setdefault("shape", None)
        elif word in BACKGROUNDS:
            if background is not None or words[i + 1 : i + 2] != ["background"]:
                raise ValueError(f'"{caption}" is unclear: "{word}" is said once, as in "on a {word} background".')
            background = word
        elif word == "and" or word in OPPOSITES or (word in ("left", "right") and before_of):
            relation = None if word == "and" else word if word in OPPOSITES else f"{word} of"
            things.append({})
        elif word in _PLACE_WORDS:
            place.append(word)
        elif word == "background" and words[i - 1 : i] != [background]:
            known = ", ".join(BACKGROUNDS)
            raise ValueError(f'"{caption}" gives a background that is none of {known}; choose one of those.')
        elif word not in _FILLERS:
            raise ValueError(f'"{original}" is not a word of this world; it knows {", ".join(known_words())}.')
    if len(things) > 2:
        raise ValueError(f'"{caption}" names {len(things)} things; name one or two.')
    if not all(things):
        found = "one thing where it announces two" if any(things) else "no thing"
        raise ValueError(f'"{caption}" names {found}; name each, such as "a red circle" or "a shape".')
    where = " ".join(place) or None
    if where is not None and where not in PLACES:
        raise ValueError(f'"{where}" is not a place; the places are {", ".join(PLACES)}.')
    if where is not None and len(things) == 2:
        raise ValueError(f'"{caption}" gives two things one place; give them a relation, such as "above".')
    return Description(tuple(SaidThing(**thing) for thing in things), where, relation, background)


def known_words() -> tuple[str, ...]:
    """List every word that a caption can hold, in a fixed order."""
    facts = (*SHAPES, *COLORS, *SIZES, *BACKGROUNDS, *PLACES, *OPPOSITES)
    words = [w for fact in facts for spelling in SYNONYMS.get(fact, (fact,)) for w in spelling.split()]
    return tuple(dict.fromkeys([*words, "and", *sorted(_FILLERS)]))


def matches(description: Description, scene: Scene | None) -> dict[str, bool]:
    """Compare what was asked for with what a picture shows, attribute by attribute.

    Args:
        description: what the caption states.
        scene: what the oracle read, or None for an unreadable picture.

    Returns: for each attribute that the caption states (and "count"), whether the picture shows it so. Where the
        caption gives two things no relation, the pairing that fits best is taken.
    """
    if scene is None or len(scene.things) != len(description.things):
        return {attribute: False for attribute in ("count", *stated(description))}
    orders = [scene.things]
    if len(scene.things) == 2:
        orders = [scene.things, scene.things[::-1]]
        if description.relation is not None:
            orders = [scene.things[::-1]] if description.relation in ("below", "right of") else orders[:1]
    return max((_compare(description, scene, order) for order in orders), key=lambda found: sum(found.values()))


def stated(description: Description) -> list[str]:
    """List the attributes on which a description says anything."""
    names = [a for a in ("shape", "color", "size") if any(getattr(thing, a) for thing in description.things)]
    return names + [a for a in ("place", "relation", "background") if getattr(description, a)]


def _compare(description: Description, scene: Scene, order: tuple) -> dict[str, bool]:
    found = {"count": True}
    for name in stated(description):
        if name in ("shape", "color", "size"):
            pairs = [
                (getattr(said, name), getattr(seen, name)) for said, seen in zip(description.things, order, strict=True)
            ]
            found[name] = all(said in (None, seen) for said, seen in pairs)
        elif name == "relation":
            found[name] = scene.relation in (description.relation, OPPOSITES[description.relation])
        else:
            found[name] = getattr(description, name) == getattr(scene, name)
    return found
