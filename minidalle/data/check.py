"""What there is to know of a collection before anything is trained on it."""

import hashlib
import re
from collections import Counter, defaultdict

from minidalle.checkpoint import brief
from minidalle.data.formats import SHARDS, SIDECARS
from minidalle.data.indices import PICTURES, walk
from minidalle.data.pictures import Pictures, may_flip
from minidalle.data.records import Damage

NAMED = 5  # names of each kind of fault that a text shows
FEW_PICTURES = 1000
RARE_SHARE = 0.5  # of the words


def inspect(pictures: Pictures, size: int) -> dict:
    """Describe a collection in JSON's types, every picture decoded.

    Args:
        pictures: the collection.
        size: pixels along each side of what would be trained on.
    """
    faults, damage = pictures.decoded(size).faults, pictures.damage(size)
    records = [record for i, record in enumerate(pictures.records) if i not in faults]
    captions = [caption for record in records for caption in record.captions]
    words = Counter(word for caption in captions for word in re.findall(r"\w+", caption.lower()))
    lengths = pictures.said.lengths()
    copies, leaks = duplicates(pictures, size)
    unlisted = without_captions(pictures)
    return {
        "path": str(pictures.listing.path),
        "format": pictures.listing.format,
        "pictures": len(records),
        "captions": len(captions),
        "different captions": len({caption.lower() for caption in captions}),
        "words": len(words),
        "words that occur once": sum(count == 1 for count in words.values()),
        "tokens": pictures.tokenizer.vocab_size,
        "tokens of the longest caption": int(lengths.max()),
        "captions that are cut": int((lengths >= pictures.tokenizer.context_length).sum()),
        "held out": len([i for i in pictures.held_out if i not in faults]),
        "held out by": "caption" if pictures.by_caption else "picture",
        "mirrored at random": sum(may_flip(record.captions, pictures.flip) for record in records),
        "copies": copies,
        "held out with a copy in training": leaks,
        "pictures without a caption": unlisted,
        "skipped": damage.count,
        "faults": [{"count": n, "reason": why, "names": names} for n, why, names in damage.by_kind()],
    }


def duplicates(pictures: Pictures, size: int) -> tuple[list[list[str]], int]:
    """Find pictures that are the same in every pixel once they are decoded.

    Returns: the names of each set of copies, and how many held-out pictures have a copy in training.
    """
    images, same = pictures.decoded(size), defaultdict(list)
    for i, row in enumerate(images.rows):
        if i not in images.faults:
            same[hashlib.blake2b(row.tobytes(), digest_size=16).digest()].append(i)
    sets = [found for found in same.values() if len(found) > 1]
    leaks = [i for found in sets for i in found if i in pictures.held_out and set(found) - pictures.held_out.keys()]
    return [[pictures.records[i].name for i in found] for found in sets], len(leaks)


def without_captions(pictures: Pictures) -> list[str]:
    """Name the pictures in the folder of which nothing is said; of shards and sidecars they are faults."""
    listing = pictures.listing
    if not listing.path.is_dir() or listing.format in (SHARDS.name, SIDECARS.name):
        return []
    known = {record.name for record in listing.records}
    there = (
        (folder / name).relative_to(listing.root).as_posix()
        for folder, names in walk(listing.root, Damage())
        for name in names
    )
    return [name for name in there if name.lower().endswith(PICTURES) and name not in known]


def hints(report: dict) -> list[str]:
    """Say what is to be expected of a collection, and what to do about it."""
    said = []
    if report["pictures"] < FEW_PICTURES:
        said.append(
            f"{report['pictures']} pictures are few: the decoder comes to know them by heart. Compare what it draws "
            "with the nearest training picture, and judge by held-out captions."
        )
    if not report["held out"]:
        said.append(
            "Of fewer than ten pictures none is held out: nothing can be said of captions that were never seen."
        )
    if report["different captions"] == 1:
        said.append("All captions are the same: text cannot steer what is drawn.")
    elif report["held out by"] == "picture":
        said.append(
            f"There are {report['different captions']} different captions, so pictures are held out whose captions "
            "occur in training: the checks say nothing of new captions."
        )
    if report["words that occur once"] > RARE_SHARE * report["words"]:
        said.append(
            f"{report['words that occur once']} of {report['words']} words occur once: a prompt with one of them has "
            "little to rest on. Captions that share words teach more."
        )
    if cut := report["captions that are cut"]:
        said.append(f"{cut} captions are longer than a model reads and are cut: put what matters first.")
    if leaks := report["held out with a copy in training"]:
        said.append(f"{leaks} held-out pictures have a copy in training: delete copies, or the checks flatter.")
    return said


def to_text(report: dict) -> str:
    """Lay a report out for people."""
    rare, cut = report["words that occur once"], report["captions that are cut"]
    unlisted, copies = report["pictures without a caption"], report["copies"]
    rows = [
        ("format", report["format"]),
        ("pictures", f"{report['pictures']:,}, of which {report['mirrored at random']:,} may be mirrored"),
        ("captions", f"{report['captions']:,}, of which {report['different captions']:,} are different"),
        ("words", f"{report['words']:,}, of which {rare:,} occur once"),
        (
            "tokens",
            f"{report['tokens']:,}; {report['tokens of the longest caption']} in the longest caption, {cut:,} cut",
        ),
        ("held out", f"{report['held out']:,}, by {report['held out by']}"),
        ("copies", f"{len(copies):,} sets of equal pictures"),
        *(("", shortened(names)) for names in copies[:NAMED]),
        ("uncaptioned", f"{len(unlisted):,}{': ' if unlisted else ''}{shortened(unlisted)}"),
        ("skipped", f"{report['skipped']:,}"),
        *(("", f"{row['count']} x {row['reason']}: {shortened(row['names'])}") for row in report["faults"]),
    ]
    if minutes := report.get("minutes"):
        rows.append(("minutes", ", ".join(f"{stage} {value:.1f}" for stage, value in minutes.items())))
    rows += [("note", hint) for hint in hints(report)]
    return "\n".join(f"{name:12}{value}" for name, value in rows)


def shortened(names: list[str]) -> str:
    """Name the first few of many."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(map(brief, names[:NAMED])) + more
