"""One captioned picture of a collection, and the account of what could not be used."""

import re
from collections import defaultdict
from dataclasses import dataclass

from minidalle.checkpoint import brief

MAX_CAPTION = 10_000  # characters
MAX_NAMED = 10_000  # faults of which the names are kept; all are counted


@dataclass(frozen=True, slots=True)
class Record:
    """Where the bytes of a picture lie, and what is said of it."""

    name: str  # as messages give it
    captions: tuple[str, ...]
    file: str  # of the picture, or the shard that it lies in; below the root of its collection
    offset: int  # of its first byte in that file
    size: int  # bytes
    stamp: int  # when the file was changed last, in nanoseconds


class Damage:
    """What was skipped: how often, why, and which."""

    def __init__(self):
        self.count = 0
        self.kinds: dict[str, list[tuple[str, str]]] = defaultdict(list)  # names and reasons, by reasons without digits
        self.counts: dict[str, int] = defaultdict(int)

    def add(self, name: str, reason: object) -> None:
        """Note that something was skipped.

        Args:
            name: of the picture, or the file and line that speak of it.
            reason: why; faults of one kind differ in their numbers only.
        """
        kind = re.sub(r"\d+", "0", str(reason))
        self.counts[kind] += 1
        if self.count < MAX_NAMED:
            self.kinds[kind].append((name, str(reason)))
        self.count += 1

    def summary(self, kinds: int = 3, names: int = 2) -> str:
        """Say in one line how much was skipped, with the most frequent reasons and some names."""
        rows = self.by_kind()
        said = [f"{count} x {reason} ({', '.join(map(brief, there[:names]))})" for count, reason, there in rows[:kinds]]
        more = f"; {len(rows) - kinds} more kinds" if len(rows) > kinds else ""
        return f"{self.count} in all: {'; '.join(said)}{more}" if rows else "nothing"

    def by_kind(self) -> list[tuple[int, str, list[str]]]:
        """Give for each kind of fault, the most frequent first: how often, a reason in its words, and the names."""
        rows = [
            (count, self.kinds[kind][0][1] if self.kinds[kind] else kind, [name for name, _ in self.kinds[kind]])
            for kind, count in self.counts.items()
        ]
        return sorted(rows, key=lambda row: -row[0])


def clean_caption(caption: object) -> str:
    """Take a caption from outside, with its white space in single spaces.

    Raises: ValueError: says what is wrong with it.
    """
    if not isinstance(caption, str):
        raise ValueError(f"the caption is of type '{type(caption).__name__}'; a text was expected")
    if any("\ud800" <= character <= "\udfff" for character in caption):
        raise ValueError("the caption holds half a character; text in UTF-8 was expected")
    if len(caption) > MAX_CAPTION:
        raise ValueError(f"the caption has {len(caption)} characters; at most {MAX_CAPTION} are read")
    words = "".join(c if c.isprintable() else " " for c in caption).split()
    if not words:
        raise ValueError("the caption is empty")
    return " ".join(words)
