"""Shards: archives (tar) of pictures and captions, as webdataset reads them and img2dataset writes them.

An archive that is not compressed holds each picture whole and at one place, so a shard need only be listed once: then
any picture is read by itself, in any order, and no shard has to fit the memory. The libraries that read shards as
streams shuffle what happens to be in a buffer; here step n of a seed has to be the same batch whatever came before.
"""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from minidalle.data.indices import CAPTIONS, FOREIGN, PICTURES, SIDECARS, captions_in, first_of
from minidalle.data.records import Damage

BLOCK = 512  # bytes; headers and contents begin at multiples
MAX_NAME = 64 * 2**10  # bytes of a long name
MAX_TEXT = 2**20  # bytes of a text or JSON beside a picture
LONG_NAME, PAX, PAX_GLOBAL = tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive."""

    name: str
    offset: int  # of its first byte
    size: int


def samples(path: Path, damage: Damage) -> Iterator[tuple[Member, list[str]]]:
    """List the pictures of a shard with their captions; members of one sample have one name up to its first dot."""
    pictures, captions = {}, {}
    with path.open("rb") as file:
        for member in members(file, path.name, damage):
            folder, slash, name = member.name.rpartition("/")
            stem, _, ending = name.partition(".")
            key, ending = f"{folder}{slash}{stem}", f".{ending.lower()}"
            if not stem:
                continue  # hidden
            if ending in (*PICTURES, *FOREIGN):
                pictures[key] = member
            elif ending in SIDECARS or (ending == ".json" and key not in captions):
                try:
                    captions[key] = texts_of(file, member, ending)
                except ValueError as error:
                    damage.add(f"{path.name}/{member.name}", error)
    for key, member in pictures.items():
        if captions.get(key):
            yield member, captions[key]
        else:
            damage.add(f"{path.name}/{member.name}", "there is no caption beside it (.txt or .json)")


def texts_of(file: BinaryIO, member: Member, ending: str) -> list:
    """Read the captions of a member, and leave the file where it was."""
    if member.size > MAX_TEXT:
        raise ValueError(f"its text has {member.size} bytes; at most {MAX_TEXT} are read")
    here = file.tell()
    file.seek(member.offset)
    content = file.read(member.size)
    file.seek(here)
    if ending != ".json":
        return captions_in(content)
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    said = first_of(CAPTIONS, values) if isinstance(values, dict) else None
    return [] if said is None else values[said] if isinstance(values[said], list) else [values[said]]


def members(file: BinaryIO, shard: str, damage: Damage) -> Iterator[Member]:
    """Walk through the headers of an archive; links, devices and folders are no members.

    Only headers and long names are read, so an archive of any size takes little memory.
    Raises: ValueError: when it is no archive, or a compressed one.
    """
    end, at, long_name = file.seek(0, 2), 0, None
    while at + BLOCK <= end:
        file.seek(at)
        block = file.read(BLOCK)
        if not block.strip(b"\0"):
            return  # the archive's end
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            if header.size < 0:
                raise tarfile.HeaderError("a negative size")
        except tarfile.HeaderError as error:
            if at == 0:
                raise ValueError(
                    f"it is no archive, or a compressed one ({error}): unpack it or write it anew"
                ) from None
            damage.add(shard, f"the header at byte {at} is broken ({error}); what follows is not read")
            return
        first, size = at + BLOCK, header.size
        at = first + -(-size // BLOCK) * BLOCK
        if first + size > end:
            damage.add(f"{shard}/{long_name or header.name}", "the archive ends within it")
            return
        if header.type in (LONG_NAME, PAX, PAX_GLOBAL):
            long_name = name_in(file, first, size, header.type) or long_name
            continue
        name, long_name = long_name or header.name, None
        if header.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not name.endswith("/"):
            yield Member(name, first, size)
        elif header.type != tarfile.DIRTYPE:
            damage.add(f"{shard}/{name}", "it is a link or a device in the archive")


def name_in(file: BinaryIO, offset: int, size: int, kind: bytes) -> str | None:
    """Read the name of the next member from a header of its own: None where it gives none, or is too long."""
    if size > MAX_NAME or kind == PAX_GLOBAL:
        return None
    file.seek(offset)
    content = file.read(size)
    if kind == LONG_NAME:
        return content.rstrip(b"\0").decode("utf-8", "surrogateescape")
    for line in content.split(b"\n"):  # "30 path=a/long/name.png", a line for each
        _, _, entry = line.partition(b" ")
        if entry.startswith(b"path="):
            return entry.removeprefix(b"path=").decode("utf-8", "surrogateescape")
    return None
