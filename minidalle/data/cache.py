"""Pictures of a collection, decoded once: squares of bytes in a file that is mapped into memory.

A fingerprint of the collection is part of a file's name, so changed pictures are decoded anew. At any moment the cache
is whole: rows of pixels are written and synced first, then a line for each that says what became of it. A decoding that
was stopped goes on where it was.
"""

import contextlib
import hashlib
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
from filelock import FileLock

from minidalle.checkpoint import brief
from minidalle.data.formats import Listing
from minidalle.data.images import MAX_BYTES, decode_picture, to_square
from minidalle.data.records import Record
from minidalle.device import pick_threads

CHUNK = 256  # pictures between two syncs, which bounds the memory
LINE_SECONDS = 10.0  # between lines that say how far it is
KEPT_FREE = 2**28  # bytes of the disk that the cache leaves


@dataclass(frozen=True)
class Decoded:
    """All pictures of a collection at one size."""

    path: Path  # of the rows
    shape: tuple[int, int, int, int]  # (N, 3, S, S)
    faults: dict[int, str]  # by the number of the record: what is wrong with its picture
    fresh: int  # how many were decoded just now
    seconds: float  # that this took

    @cached_property
    def rows(self) -> np.ndarray:
        """Map the pixels into memory: uint8, zeros where a picture could not be used."""
        return np.memmap(self.path, np.uint8, "r", shape=self.shape)

    def __getstate__(self) -> dict:
        """Leave the pixels out of what a worker process is sent: it maps them itself."""
        return {name: value for name, value in self.__dict__.items() if name != "rows"}


def default_folder() -> Path:
    """Give the folder of all caches: MINIDALLE_CACHE, or ~/.cache/minidalle."""
    return Path(os.environ.get("MINIDALLE_CACHE") or "~/.cache/minidalle").expanduser()


def decoded(listing: Listing, size: int, folder: Path | None = None) -> Decoded:
    """Give the pictures of a collection, from the cache as far as it has them.

    Args:
        listing: the collection.
        size: pixels along each side; the middle square of each picture is brought to it.
        folder: of the cache; None: default_folder.

    Raises: ValueError: when the cache cannot be written.
    """
    place = hashlib.sha256(os.fsencode(listing.path)).hexdigest()[:12]
    folder, stem = (folder or default_folder()) / place, f"{listing.fingerprint(stamps=True)[:16]}-{size}"
    rows, notes = folder / f"{stem}.rows", folder / f"{stem}.notes"
    started, number = time.perf_counter(), len(listing.records)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "cache.lock"):
            forget_others(folder, stem.partition("-")[0])
            done = len(lines_of(notes))
            if done < number:
                check_space(folder, (number - done) * 3 * size * size)
                fill(listing, size, rows, notes, done)
            faults = {i: note for i, note in enumerate(lines_of(notes)) if note}
            found = Decoded(rows, (number, 3, size, size), faults, number - done, time.perf_counter() - started)
            found.rows  # noqa: B018 (mapped while the file is there for certain)
    except OSError as error:
        why = error.strerror or str(error)
        raise ValueError(
            f"{folder} cannot keep decoded pictures ({why}): name another folder in MINIDALLE_CACHE."
        ) from error
    return found


def lines_of(notes: Path) -> list[str]:
    """Read what is wrong with each picture so far, or nothing; a line that was cut off is left out."""
    if not notes.exists():
        return []
    return notes.read_text(encoding="utf-8").split("\n")[:-1]


def fill(listing: Listing, size: int, rows: Path, notes: Path, done: int) -> None:
    """Decode what is not yet in the cache, some pictures at a time."""
    number, said = len(listing.records), time.perf_counter()
    with rows.open("ab") as pixels, notes.open("ab") as lines, ThreadPoolExecutor(pick_threads()) as pool:
        pixels.truncate(done * 3 * size * size)
        lines.truncate(len("".join(f"{line}\n" for line in lines_of(notes)).encode()))
        for first in range(done, number, CHUNK):
            chunk = listing.records[first : first + CHUNK]
            found = list(pool.map(lambda record: decode(listing.root, record, size), chunk))
            pixels.write(b"".join(row.tobytes() for row, _ in found))
            sync(pixels)
            lines.write("".join(f"{note}\n" for _, note in found).encode())
            sync(lines)
            if time.perf_counter() - said > LINE_SECONDS:
                said = time.perf_counter()
                print(f"decoded {first + len(chunk)} of {number} pictures", file=sys.stderr, flush=True)


def sync(file) -> None:
    """Bring what was written to the disk."""
    file.flush()
    os.fsync(file.fileno())


def decode(root: Path, record: Record, size: int) -> tuple[np.ndarray, str]:
    """Decode one picture: its pixels (3, size, size), uint8, and a note on what is wrong with it, else an empty one."""
    try:
        picture = decode_picture(BytesIO(content(root, record)), record.size, size)
        return to_square(picture, size), ""
    except (ValueError, OSError, MemoryError) as error:
        note = brief(getattr(error, "strerror", None) or error) or type(error).__name__
        return np.zeros((3, size, size), np.uint8), note


def content(root: Path, record: Record) -> bytes:
    """Read the bytes of a picture; a link that has taken a file's place since the collection was listed is refused."""
    if record.size > MAX_BYTES:
        raise ValueError(f"it has {record.size} bytes and at most {MAX_BYTES} are read: make it smaller")
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with os.fdopen(os.open(root / record.file, flags), "rb") as file:
        file.seek(record.offset)
        found = file.read(record.size)
    if len(found) < record.size:
        raise ValueError("the file has become shorter")
    return found


def check_space(folder: Path, needed: int) -> None:
    """Refuse, before anything is decoded, what the disk has no room for.

    Raises: ValueError: gives both numbers.
    """
    free = shutil.disk_usage(folder).free - KEPT_FREE
    if needed > free:
        raise ValueError(
            f"The decoded pictures need {needed / 2**20:.0f} MB, and {folder} has room for {max(0, free) / 2**20:.0f}: "
            "make room, or name another folder in MINIDALLE_CACHE."
        )


def forget_others(folder: Path, fingerprint: str) -> None:
    """Delete what is decoded of an earlier state of the collection."""
    for path in folder.iterdir():
        if path.suffix in (".rows", ".notes") and not path.name.startswith(fingerprint):
            with contextlib.suppress(OSError):  # in use, on Windows
                path.unlink()
