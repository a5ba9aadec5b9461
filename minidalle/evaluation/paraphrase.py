"""Other words for a description: sentences as people type them, written without a look at the grammar that reads them.

A form is a sentence with slots. A part in square brackets is left out when its slot has nothing to say, and a form fits
a description when its slots say every fact that is stated, and only those. The training's captions (captions.write) use
none of these sentences, so they ask whether a wording that is accepted is followed as well as the training's own.
"""

import random
import re

from minidalle.world.captions import OPPOSITES, Description, SaidObject
from minidalle.world.scenes import pick

ONE_OBJECT = (
    # requests
    "Draw {a}[ {at}][ {on}].",
    "Please draw me {a}[ {at}][ {on}]",
    "Can you draw {a}[ {at}][ {on}]?",
    "Could you please paint {a}[ {at}][, {on}]?",
    "I want {a}[ {at}][ {on}]",
    "I would like to see {a}[ {at}][ {on}], please.",
    "I'd like {a}[ {at}][ {on}]",
    "Show me {a}[ {at}][ {on}]!",
    "Give me a picture of {a}[ {at}][ {on}]",
    "Generate an image of {a}[ {at}][ {on}]",
    "Create an image that shows {a}[ {at}][ {on}]",
    "Put {a} {at}[ {on}].",
    "Place {a} {at}[, {on}]",
    "Make {a} and put it {at}[ {on}]",
    "Make the background {shade} and draw {a}[ {at}]",
    # noun phrases
    "A picture of {a}[ {at}][ {on}]",
    "An image with {a}[ {at}][ {on}].",
    "a simple drawing of {a}[ {at}][, {on}]",
    "picture showing {a}[ {at}][ {on}]",
    "just {a}[ {at}][ {on}]",
    "a single {bare}[ {at}][ {on}]",
    "one {bare}[, {at}][, {on}], nothing else",
    "{a} located {at}[ {on}]",
    "{A}, placed {at}[ {on}].",
    "{A}[ {at}], please[, {on}].",
    "{a}[ {at}]; {ground}",
    "{bare}[, {spot}], {ground}",
    "{bare} - {spot}[ - {ground}]",
    # facts after the noun
    "{kind} that is {traits}[, {at}][, {on}]",
    "{Kind} which is {traits}[, {at}][, {on}].",
    "Draw {kind}, {traits}[, {at}][, {on}]",
    "{Kind}: {traits}[; {spot}][; {ground}]",
    "a picture of {kind}. It is {traits}[, {at}][, {on}].",
    # sentences
    "There is {a}[ {at}][ {on}].",
    "There's {a}[ {at}][, {on}]",
    "{A} is {at}[, {on}].",
    "{A} sits {at}[ {on}]",
    "I see {a}[ {at}][ {on}].",
    "The picture shows {a}[ {at}][ {on}].",
    # place first, background first, background last
    "{At}, I want {a}[ {on}]",
    "{At} there is {a}[ {on}].",
    "{At} {a}; {ground}",
    "{On}, show me {a}[ {at}]",
    "{On} there is {a}[ {at}].",
    "A {ground} with {a}[ {at}]",
    "{Ground}, {a}[ {at}]",
    "The background is {shade}, and there is {a}[ {at}].",
    "{A}[ {at}]. The background is {shade}.",
    "{A}[ {at}], and the background should be {shade}",
)
TWO_OBJECTS = (
    # in a relation
    "Draw {a} {relation} {b}[ {on}].",
    "Please draw {a} {relation} {b}[, {on}]",
    "Can you show me {a} {relation} {b}[ {on}]?",
    "I'd like to see {a} {relation} {b}[ {on}]",
    "A picture of {a} {relation} {b}[ {on}].",
    "Generate an image with {a} {relation} {b}[ {on}]",
    "There is {a} {relation} {b}[ {on}].",
    "{A} is {relation} {b}[, {on}].",
    "{a} that is {relation} {b}[, {on}]",
    "{A}, placed {relation} {b}[, {on}].",
    "two objects: {a} {relation} {b}[, {ground}]",
    "{A} {relation} {b}. The background is {shade}.",
    "{Ground}, {a} {relation} {b}",
    "{On}, {a} is {relation} {b}",
    "{Relation} {b} there is {a}[ {on}].",
    "{Relation} {b}, {a}[, {on}]",
    "{a} with {b} {inverse} it[, {on}]",
    "{A}, and {inverse} it {b}[, {on}]",
    "There is {a}, and {b} is {inverse} it[, {on}].",
    "{a} {side_a} and {b} {side_b}[, {on}]",
    "Draw {a} {side_a}, {b} {side_b}[, {on}]",
    "{Side_a} {a}, {side_b} {b}[, {on}]",
    "{Side_a} there is {a}, and {side_b} there is {b}[, {on}].",
    # in none
    "Draw {a} and {b}[ {on}].",
    "Please paint both {a} and {b}[, {on}]",
    "I want {a} and {b}[ {on}]",
    "A picture of {a} and {b}[, {on}]",
    "an image of {a} together with {b}[ {on}]",
    "There are two objects, {a} and {b}[, {on}].",
    "There is {a}, and there is {b}[, {on}]",
    "two shapes: {a}, {b}[; {ground}]",
    "{a} as well as {b}[ {on}]",
    "{Ground}, {a} and {b}",
    "{On} there are {a} and {b}.",
)
SLOTS = {  # the facts that each slot says
    "a": {"objects"}, "b": {"objects"}, "bare": {"objects"}, "kind": {"objects"}, "traits": {"traits"},
    "at": {"place"}, "spot": {"place"}, "on": {"background"}, "ground": {"background"}, "shade": {"background"},
    "relation": {"relation"}, "inverse": {"relation"}, "side_a": {"relation"}, "side_b": {"relation"},
}  # fmt: skip
SIZES = {"small": ("small", "small", "little", "tiny"), "large": ("large", "large", "big")}
UNNAMED = ("object", "shape", "thing")  # what an object is called whose shape is not said
SHAPED = {"circle": "circular", "triangle": "triangular"}  # the others: square-shaped
ROWS = {"top": ("top", "upper"), "bottom": ("bottom", "lower")}
CORNERS = (
    "in the {row} {side} corner", "in the {row}-{side} corner", "in the {row} {side}-hand corner",
    "at the {row} {side} of the picture", "near the {row} {side} corner", "in the {row} {side} of the image",
    "in the {row} {side} part of the picture", "towards the {row} {side}",
)  # fmt: skip
EDGES = {
    "top": ("at the top of the picture", "near the top", "in the upper part of the image", "at the top edge",
            "in the top middle", "at the top centre", "towards the top"),
    "bottom": ("at the bottom of the picture", "near the bottom", "in the lower part of the image",
               "at the bottom edge", "in the bottom middle", "at the bottom center", "towards the bottom"),
    "left": ("on the left side", "on the left-hand side", "at the left edge", "on the left of the picture",
             "in the left part of the image", "in the middle of the left side", "towards the left"),
    "right": ("on the right side", "on the right-hand side", "at the right edge", "on the right of the picture",
              "in the right part of the image", "in the middle of the right side", "towards the right"),
    "center": ("in the middle of the picture", "in the middle", "in the centre of the image", "in the exact center",
               "at the centre", "in the very middle", "at the center of the canvas", "in the central part"),
}  # fmt: skip
SPOTS = {
    "top": ("top middle", "top edge", "upper part"), "bottom": ("bottom middle", "bottom edge", "lower part"),
    "left": ("left side", "left-hand side"), "right": ("right side", "right-hand side"),
    "center": ("centered", "centred", "middle", "centre"),
}  # fmt: skip
GROUNDS = (
    "on {}", "against {}", "against a {} backdrop", "on a {} backdrop", "against a {} background",
    "over a {} background", "in front of a {} background", "with a {} backdrop", "on a plain {} background",
    "on a solid {} background", "on a {} canvas", "with a background that is {}",
)  # fmt: skip
RELATIONS = {
    "above": ("above", "over", "directly above", "just above", "on top of", "higher than"),
    "below": ("below", "under", "beneath", "underneath", "directly below", "lower than"),
    "left of": ("to the left of", "on the left of", "left of", "on the left side of", "directly to the left of"),
    "right of": ("to the right of", "on the right of", "right of", "on the right side of", "just to the right of"),
}
SIDES = {
    "above": (("at the top", "at the bottom"), ("on top", "at the bottom"), ("in the upper half", "in the lower half")),
    "left of": (("on the left", "on the right"), ("on the left side", "on the right side"), ("at left", "at right")),
}


def paraphrase(description: Description, rng: random.Random) -> str:
    """Say a description in a sentence that the training's captions do not use.

    Args:
        description: what the sentence says, and nothing else.
        rng: chooses the form and its words.
    """
    return say(pick(rng, forms(description)), description, rng)


def forms(description: Description) -> list[str]:
    """List the sentence forms that fit a description."""
    stated = {name for name in ("place", "relation", "background") if getattr(description, name)} | {"objects"}
    traits = {"traits"} if description.objects[0].size or description.objects[0].color else set()
    return [
        form
        for form in (ONE_OBJECT if len(description.objects) == 1 else TWO_OBJECTS)
        if facts_of(re.sub(r"\[.*?\]", "", form)) <= stated | traits and stated <= facts_of(form)
    ]


def facts_of(form: str) -> set[str]:
    """List the facts that a form's slots say."""
    return set().union(*(SLOTS[slot.lower()] for slot in re.findall(r"{(\w+)}", form)))


def say(form: str, description: Description, rng: random.Random) -> str:
    """Fill the slots of a form, and type the sentence with or without capitals."""
    chosen = words(description, rng)

    def fill(match: re.Match) -> str:
        text = chosen[match[1].lower()]
        return text[0].upper() + text[1:] if match[1][0].isupper() else text

    kept = re.sub(r"\[(.*?{(\w+)}.*?)\]", lambda part: part[1] if part[2] in chosen else "", form)
    sentence, typed = re.sub(r"{(\w+)}", fill, kept), rng.random()
    return sentence.lower() if typed < 0.25 else sentence.upper() if typed > 0.95 else sentence


def words(description: Description, rng: random.Random) -> dict[str, str]:
    """Choose what each slot says; a slot that has nothing to say is not there."""
    first, last, relation = description.objects[0], description.objects[-1], description.relation
    bare = noun_phrase(first, rng)
    found = {"a": with_article(bare), "b": with_article(noun_phrase(last, rng)), "bare": bare}
    found["kind"] = with_article(first.shape or pick(rng, UNNAMED))
    found["traits"] = traits(first, rng)
    if description.place:
        found |= place(description.place, rng)
    if description.background:
        shade = pick(rng, ("gray", "grey")) if description.background == "grey" else description.background
        ground = f"{shade} {pick(rng, ('background', 'backdrop'))}"
        found |= {"on": pick(rng, GROUNDS).format(shade), "ground": ground, "shade": shade}
    if relation:
        sides = pick(rng, SIDES[relation] if relation in SIDES else [pair[::-1] for pair in SIDES[OPPOSITES[relation]]])
        found |= dict(zip(("side_a", "side_b"), sides, strict=True))
        found |= {"relation": pick(rng, RELATIONS[relation]), "inverse": pick(rng, RELATIONS[OPPOSITES[relation]])}
    return found


def noun_phrase(item: SaidObject, rng: random.Random) -> str:
    """Say an object without an article, in one of the orders that English has for it."""
    size, color = item.size and pick(rng, SIZES[item.size]), item.color
    noun, style = item.shape or pick(rng, UNNAMED), rng.random()
    if color and style < 0.1:
        color = f"{color}-{pick(rng, ('colored', 'coloured'))}"
    elif color and style < 0.2:
        color, noun = None, f"{noun} {pick(rng, ('colored', 'coloured', 'in'))} {color}"
    elif item.shape and style < 0.25:
        noun = f"{SHAPED.get(item.shape, f'{item.shape}-shaped')} {pick(rng, ('object', 'thing'))}"
    elif item.size and style < 0.3:
        size, noun = None, f"{noun} of {item.size} size"
    return f"{size}, {color} {noun}" if size and color and style > 0.9 else " ".join(filter(None, (size, color, noun)))


def traits(item: SaidObject, rng: random.Random) -> str:
    """Say size and colour of an object after its noun, in either order."""
    color = item.color and pick(rng, ("{}", "{}", "{} in color", "{} in colour")).format(item.color)
    found = [word for word in (item.size and pick(rng, SIZES[item.size]), color) if word]
    return pick(rng, (" and ", ", ")).join(found if rng.random() < 0.5 else found[::-1])


def place(name: str, rng: random.Random) -> dict[str, str]:
    """Say a place: where something is, and as a tag between commas."""
    row, _, side = name.partition(" ")
    if not side:
        return {"at": pick(rng, EDGES[name]), "spot": pick(rng, SPOTS[name])}
    row = pick(rng, ROWS[row])
    spot = pick(rng, ("{} {}", "{}-{} corner")).format(row, side)
    return {"at": pick(rng, CORNERS).format(row=row, side=side), "spot": spot}


def with_article(phrase: str) -> str:
    """Put "a" or "an" before a noun phrase."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"
