"""What is taken for what: for each attribute, what prompts asked for against what the oracle read."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product

from minidalle.world.captions import OPPOSITES, Description
from minidalle.world.scenes import BACKGROUNDS, COLORS, PLACES, RELATIONS, SHAPES, SIZES, Scene

OPTIONS = {  # of each attribute
    "shape": SHAPES, "color": tuple(COLORS), "size": tuple(SIZES), "place": tuple(PLACES), "relation": RELATIONS,
    "background": tuple(BACKGROUNDS),
}  # fmt: skip
MISCOUNTED, UNREADABLE = "miscounted", "unreadable"  # read where another number of objects is shown, or nothing clear
Matrix = dict[str, dict[str, int]]  # asked, read, how often; what never occurred is left out


def confusion(asked: Sequence[Description], read: Sequence[Scene | None]) -> dict[str, Matrix]:
    """Count, for each attribute that prompts state, what pictures show in its place.

    Args:
        asked: what each prompt says.
        read: what each picture shows; None where it is unreadable.

    Returns: a matrix for each attribute that is asked for, in the order of OPTIONS. "below" is counted as "above" of
        the objects the other way round, and "right of" likewise.
    """
    pairs = zip(asked, read, strict=True)
    counts = Counter(fact for description, scene in pairs for fact in compared(description, scene))
    found: dict[str, Matrix] = {}
    for name, options in OPTIONS.items():
        for wanted, shown in product(options, columns(name)):
            if count := counts[name, wanted, shown]:
                found.setdefault(name, {}).setdefault(wanted, {})[shown] = count
    return found


def columns(attribute: str) -> tuple[str, ...]:
    """List what can be read where an attribute is asked for."""
    return (*OPTIONS[attribute], MISCOUNTED, UNREADABLE)


def compared(description: Description, scene: Scene | None) -> Iterator[tuple[str, str, str]]:
    """Give each fact that a prompt states: its attribute, what was asked, and what the picture shows.

    Of two objects, the relation tells which is which, as in captions.matches. Where the prompt states none, or the
    picture shows them along the other axis, nothing does, and shapes, colours and sizes are left out.
    """
    objects, relation = description.objects, description.relation
    if relation in ("below", "right of"):
        objects, relation = objects[::-1], OPPOSITES[relation]
    missed = UNREADABLE if scene is None else MISCOUNTED if len(scene.objects) != len(objects) else None
    of_scene = {"place": description.place, "relation": relation, "background": description.background}
    for name, wanted in of_scene.items():
        if wanted:
            yield name, wanted, missed or getattr(scene, name)
    told_apart = len(objects) == 1 or (relation and (missed or scene.relation == relation))
    if not told_apart:
        return
    for item, seen in zip(objects, objects if missed else scene.objects, strict=True):
        for name in ("shape", "color", "size"):
            if wanted := getattr(item, name):
                yield name, wanted, missed or getattr(seen, name)


def most_confused(found: dict[str, Matrix], number: int = 5, least: int = 2) -> list[str]:
    """Name the options that are taken for others most often, such as "color red as orange 12 of 64".

    Args:
        found: by confusion.
        number: of those to name at most.
        least: how often one must occur to be named.
    """
    cells = [
        (count, f"{name} {wanted} as {shown} {count} of {sum(row.values())}")
        for name, matrix in found.items()
        for wanted, row in matrix.items()
        for shown, count in row.items()
        if shown not in (wanted, MISCOUNTED, UNREADABLE) and count >= least
    ]
    return [text for _, text in sorted(cells, key=lambda cell: -cell[0])[:number]]
