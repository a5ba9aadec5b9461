"""Collections of captioned pictures that others made: which format a folder has, and what lies in it.

Nothing is decoded here. What cannot be used is skipped, counted and named.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from minidalle.checkpoint import brief
from minidalle.data import shards
from minidalle.data.indices import (
    FOREIGN,
    PICTURES,
    Said,
    header_of,
    read_json,
    read_jsonl,
    read_sidecars,
    read_table,
    read_tokens,
    walk,
)
from minidalle.data.indices import (
    SIDECARS as TEXTS,
)
from minidalle.data.records import Damage, Record, clean_caption

MAX_PICTURES = 2**20  # of a collection
MAX_CAPTIONS = 2**23  # of one index
MAX_PLACES = 100  # folders in which the pictures of one index are looked for


class TooManyError(ValueError):
    """More than can be held in memory."""


@dataclass(frozen=True)
class Listing:
    """The captioned pictures of a collection."""

    path: Path  # that was named
    root: Path  # what all names are below
    format: str
    records: list[Record]
    damage: Damage  # what was skipped

    def fingerprint(self, stamps: bool = False) -> str:
        """Hash names, captions and sizes, and on request when each file was changed last."""
        total = hashlib.sha256()
        for r in self.records:
            parts = (r.name, *r.captions, r.offset, r.size, r.stamp if stamps else 0)
            total.update("\0".join(map(str, parts)).encode("utf-8", "surrogatepass") + b"\n")
        return total.hexdigest()


@dataclass(frozen=True)
class Format:
    """One way to keep captions beside pictures."""

    name: str
    markers: tuple[str, ...]  # names of its files, as patterns below the folder; the first that is there decides
    read: Callable[[Path, Damage], Iterator[Said]]
    endings: tuple[str, ...] = ()  # of a single file that may be named in place of the folder


TABLE = Format(
    "table of captions", ("captions.txt", "*.csv", "*.tsv", "*/captions.txt", "*/*.csv"), read_table, (".csv", ".tsv")
)
FORMATS = (
    Format("image folder with metadata.jsonl", ("metadata.jsonl", "*/metadata.jsonl"), read_jsonl),
    Format("image folder with metadata.csv", ("metadata.csv", "*/metadata.csv"), read_table),
    Format("COCO captions", ("captions*.json", "annotations/captions*.json", "dataset*.json"), read_json, (".json",)),
    Format("Flickr tokens", ("*.token.txt", "*/*.token.txt", "*.token", "*/*.token"), read_tokens, (".token",)),
    TABLE,
    Format("lines of JSON", ("*.jsonl",), read_jsonl, (".jsonl",)),
)
JSON = Format("JSON of captions", ("*.json",), read_json)  # looked for last: many a folder holds JSON of something else
AT_HOME = FORMATS[:2]  # whose pictures lie where their index says, and nowhere else
SHARDS = Format("webdataset shards", ("*.tar", "*/*.tar"), lambda path, damage: iter(()), (".tar",))
SIDECARS = Format("pictures with a text beside each", (), read_sidecars)
PACKED = (".tar.gz", ".tgz", ".zip", ".parquet", ".arrow")  # what is to be written as a folder or as shards first
EXPECTED = (
    "an image folder with metadata.jsonl or metadata.csv (file_name, text), a text beside each picture (a.png, a.txt), "
    "COCO's captions*.json, Flickr's token file or table, or webdataset's shards (*.tar)"
)


def read_collection(path: Path) -> Listing:
    """List the captioned pictures of a folder, or of the one file that names them.

    Args:
        path: the folder, an index of captions, or a shard.

    Raises: ValueError: when nothing is there that is known, no picture is left, or there are too many.
    """
    path, damage = Path(path).expanduser(), Damage()
    if not path.exists():
        raise ValueError(f"{path} does not exist; a folder of captioned pictures was expected.")
    path = path.resolve()
    kind, files = find_format(path)
    root = path if path.is_dir() else path.parent.parent if path.parent.name == "annotations" else path.parent
    found = in_shards(root, files, damage) if kind is SHARDS else gather(root, kind, files, damage)
    records = list(islice(found, MAX_PICTURES + 1))
    if not records:
        raise ValueError(
            f"{path} is read as {kind.name} and holds no picture that can be used. Skipped: {damage.summary()}."
        )
    if len(records) > MAX_PICTURES:
        raise ValueError(f"{path} holds more than the {MAX_PICTURES} pictures that are read: split it.")
    return Listing(path, root, kind.name, records, damage)


def find_format(path: Path) -> tuple[Format, list[Path]]:
    """Find out how captions are kept in a folder, and in which files; a file decides by its ending.

    Raises: ValueError: when it is in no known way.
    """
    if not path.is_dir():
        for kind in (*FORMATS, SHARDS):
            if path.name.lower().endswith(kind.endings) or path.name in kind.markers:
                return kind, [path]
        raise ValueError(f"{path} is of no known format; expected was {EXPECTED}.")
    for kind in (*FORMATS, SHARDS):
        for marker in kind.markers:
            files = sorted(file for file in path.glob(marker) if not file.name.startswith("."))
            files = [file for file in files if kind is not TABLE or is_table(file)]
            if files:
                return kind, files
    there = [name for _, names in walk(path, Damage()) for name in names]
    pictures = [name for name in there if name.lower().endswith((*PICTURES, *FOREIGN))]
    texts = {Path(name).stem for name in there if name.lower().endswith(TEXTS)}
    if any(Path(name).stem in texts for name in pictures):
        return SIDECARS, [path]
    files = sorted(path.glob(JSON.markers[0]))
    if pictures and len(files) == 1 and holds_captions(files[0]):
        return JSON, files
    packed = [name for name in there if name.lower().endswith(PACKED)]
    found = (
        f"{packed[0]}: write its pictures and captions as a folder"
        if packed
        else f"{len(pictures)} pictures without captions"
    )
    raise ValueError(f"{path} holds {found}; expected was {EXPECTED}.")


def is_table(path: Path) -> bool:
    """Tell whether a file begins as a table of pictures and captions does."""
    try:
        return path.is_file() and bool(header_of(path))
    except (ValueError, OSError):
        return False


def holds_captions(path: Path) -> bool:
    """Tell whether a file of JSON can be read as captions."""
    try:
        return path.is_file() and next(read_json(path, Damage()), None) is not None
    except (ValueError, OSError):
        return False


def gather(root: Path, kind: Format, files: list[Path], damage: Damage) -> Iterator[Record]:
    """Read the indices of a collection, and find the pictures that they name."""
    captions: dict[str, dict[str, None]] = {}  # of each picture, by its place below the root
    for index in files:
        base = index if kind is SIDECARS else index.parent
        places = [base] if kind in (*AT_HOME, SIDECARS) else around(base, root)
        found: dict[str, str | None] = {}
        for name, caption in said_in(index, kind, damage, alone=len(files) == 1):
            try:
                if name not in found:
                    found[name] = None  # a picture that cannot be used is named once
                    found[name] = locate(name, places, root)
                if (file := found[name]) is not None:
                    cleaned = clean_caption(caption)
                    captions.setdefault(file, {})[cleaned] = None
            except (ValueError, OSError) as error:
                damage.add(name, reason(error))
    for file, said in captions.items():
        try:
            status = os.lstat(root / file)
            yield Record(file, tuple(said), file, 0, status.st_size, status.st_mtime_ns)
        except OSError as error:
            damage.add(file, reason(error))


def said_in(index: Path, kind: Format, damage: Damage, alone: bool) -> Iterator[Said]:
    """Read an index; one that is no index at all is damage, unless there is no other.

    Raises: ValueError: when it is alone and cannot be used, or speaks of too many pictures.
    """
    try:
        if kind is not SIDECARS and (index.is_symlink() or not index.is_file()):
            raise ValueError(f"{index} is a link or no regular file: put the file itself there.")
        for number, said in enumerate(kind.read(index, damage)):
            if number >= MAX_CAPTIONS:
                raise TooManyError(f"{index} has more than {MAX_CAPTIONS} captions, which is too many: split it.")
            yield said
    except TooManyError:
        raise
    except ValueError as error:
        if alone:
            raise
        damage.add(index.name, reason(error))


def around(base: Path, root: Path) -> list[Path]:
    """List the folders in which the pictures of an index may lie: beside it, below, and below the root."""
    places = [base, *folders_in(base), root]
    for folder in folders_in(root):
        places += [folder, *folders_in(folder)]
    return list(dict.fromkeys(places))[:MAX_PLACES]


def folders_in(folder: Path) -> list[Path]:
    """List the folders in a folder, without hidden ones and links."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink() and not p.name.startswith("."))


def locate(name: str, places: list[Path], root: Path) -> str:
    """Find a picture by the name that an index gives it: its place below the root.

    Raises: ValueError: says why it cannot be used.
    """
    if "\0" in name:
        raise ValueError("its name holds a NUL")
    inside = False
    for spelling in dict.fromkeys((name, name.replace("\\", "/"))):  # as Windows writes it
        for place in places:
            path = os.path.normpath(os.path.join(place, spelling))
            if not Path(path).is_relative_to(root):
                continue
            inside = True
            try:
                mode = os.lstat(path).st_mode
            except (FileNotFoundError, NotADirectoryError):
                continue
            if stat.S_ISLNK(mode) or os.path.realpath(path) != path:
                raise ValueError("it is a link, or lies behind one: put the file itself there")
            if not stat.S_ISREG(mode):
                raise ValueError(f"it is {'a folder' if stat.S_ISDIR(mode) else 'a pipe or a device'}, no regular file")
            return Path(path).relative_to(root).as_posix()
    raise ValueError("there is no such file" if inside else "it lies outside the folder")


def in_shards(root: Path, files: list[Path], damage: Damage) -> Iterator[Record]:
    """List the pictures of shards."""
    for shard in files:
        file = shard.relative_to(root).as_posix()
        try:
            if shard.is_symlink() or not shard.is_file():
                raise ValueError("it is a link or no regular file")
            stamp = shard.stat().st_mtime_ns
            for member, said in shards.samples(shard, damage):
                captions: dict[str, None] = {}
                for caption in said:
                    try:
                        captions[clean_caption(caption)] = None
                    except ValueError as error:
                        damage.add(f"{file}/{member.name}", error)
                if captions:
                    yield Record(f"{file}/{member.name}", tuple(captions), file, member.offset, member.size, stamp)
        except (ValueError, OSError) as error:
            damage.add(file, reason(error))


def reason(error: Exception) -> str:
    """Say what went wrong with a file, without its path."""
    return brief(getattr(error, "strerror", None) or error)
