"""Your own captioned pictures, as a collection that every stage can be trained on."""

import copy
import hashlib
import json
import re
from array import array
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from minidalle.checkpoint import brief
from minidalle.checks import whole_number
from minidalle.data.batches import Batch
from minidalle.data.cache import Decoded, decoded
from minidalle.data.formats import read_collection
from minidalle.data.images import MAX_SIDE, from_bytes
from minidalle.data.records import Damage, Record
from minidalle.tokenizer import END_ID, BytePairTokenizer

HELD_OUT = 0.1  # share of the pictures
MAX_HELD_OUT = 1000
FEW_CAPTIONS = 0.3  # different captions for each picture, below which pictures are held out and not captions
MIN_PICTURES = 2  # to train on: CLIP compares
MIN_CONTEXT, MAX_CONTEXT = 32, 64  # tokens of a caption: words that were never seen take many; what is longer is cut
VOCAB_SIZE = 4096
SIDES = re.compile(  # what would be false of a mirrored picture
    r"\b(left|right|links|rechts|gauche|droite|izquierd[ao]|derech[ao]|sinistra|destra|esquerd[ao]|direit[ao])\b"
    r"|[左右]",
    re.IGNORECASE,
)


class Pictures:
    """A collection of captioned pictures on disk.

    A tenth is held out: no batch ever has one of these pictures, nor one of their captions where captions differ enough
    for that (see split). Hashes decide which, so it stays the same when the folder is moved.

    Args:
        path: a folder, or a file in it that names the captions; formats.py has what is known.
        flip: whether pictures are mirrored at random; None: those of which no caption says left or right.
        vocab_size: tokens at most of the byte pairs, which are found in the captions of the training pictures.
        cache: folder for decoded pictures; None: MINIDALLE_CACHE, or ~/.cache/minidalle.
        announce: called with what was read and what was skipped, once for each size.

    Raises: ValueError: when there are no captioned pictures, or the package `tokenizers` is missing.
    """

    def __init__(
        self,
        path: Path,
        flip: bool | None = None,
        vocab_size: int = VOCAB_SIZE,
        cache: Path | None = None,
        announce: Callable[[str], object] = print,
    ):
        self.listing, self.flip, self.cache, self.announce = read_collection(path), flip, cache, announce
        self.records = self.listing.records
        self.by_caption, self.held_out = split(self.records)
        self.training = [i for i in range(len(self.records)) if i not in self.held_out]
        learned = (caption for i in self.training for caption in self.records[i].captions)
        byte_pairs = BytePairTokenizer.trained(learned, vocab_size)
        self.said = Said(self.records, byte_pairs)
        length = min(max(self.said.longest(self.training) + 1, MIN_CONTEXT), MAX_CONTEXT)
        self.tokenizer = BytePairTokenizer(byte_pairs.merges, length)
        self._decoded: dict[int, Decoded] = {}

    def to_dict(self) -> dict:
        """Describe it in JSON's types; the fingerprint is of names, captions, sizes and byte pairs."""
        parts = self.listing.fingerprint() + json.dumps(self.tokenizer.to_dict())
        return {
            "name": "pictures",
            "format": self.listing.format,
            "pictures": len(self.records),
            "captions": sum(len(record.captions) for record in self.records),
            "held_out": len(self.held_out),
            "flip": self.flip,
            "fingerprint": hashlib.sha256(parts.encode()).hexdigest()[:16],
        }

    def source(
        self, image_size: int, seed: int, hard_negatives: bool = False, full_captions: float = 0.0
    ) -> "PictureSource":
        """Give the batches of one stage; hard negatives and full captions are for worlds that make them to order."""
        usable = self.usable(self.training, image_size)
        if len(usable) < MIN_PICTURES:
            raise ValueError(
                f"{self.listing.path} has {len(usable)} pictures to train on; {MIN_PICTURES} or more were expected "
                f"(skipped: {self.damage(image_size).summary()})."
            )
        return PictureSource(self, self.decoded(image_size), np.array(usable), seed)

    def examples(self, which: str, image_size: int, number: int) -> Batch:
        """Give pictures to look at and to measure with, each with a caption.

        Args:
            which: "training" or "held out".
            image_size: pixels along each side.
            number: how many at most; they are spread evenly over the collection.
        """
        if which not in ("training", "held out"):
            raise ValueError(f'"{which}" is no part of a collection; choose "training" or "held out".')
        usable = self.usable(self.training if which == "training" else list(self.held_out), image_size)
        number = min(whole_number(number, "The number of pictures"), len(usable))
        chosen = np.array([usable[k * len(usable) // number] for k in range(number)], dtype=int)
        numbers = [self.held_out.get(i, [0])[0] for i in chosen]
        return self.batch(self.decoded(image_size).rows[chosen], chosen, numbers)

    def batch(self, rows: np.ndarray, chosen: np.ndarray, numbers: list[int]) -> Batch:
        """Put a batch together.

        Args:
            rows: pixels (B, 3, S, S), uint8.
            chosen: (B,), the records that they are of.
            numbers: which of its captions each has.
        """
        pieces = [
            self.said.pieces(i, k)[: self.tokenizer.context_length - 1] for i, k in zip(chosen, numbers, strict=True)
        ]
        tokens = np.zeros((len(pieces), max(map(len, pieces), default=0) + 1), np.int64)
        for row, ids in zip(tokens, pieces, strict=True):
            row[: len(ids)] = ids
            row[len(ids)] = END_ID
        captions = [self.records[i].captions[k] for i, k in zip(chosen, numbers, strict=True)]
        tokens = torch.from_numpy(tokens)
        return Batch(from_bytes(torch.from_numpy(rows)), tokens, tokens != 0, captions)

    def decoded(self, size: int) -> Decoded:
        """Decode all pictures to squares of a size, or take them from the cache; says what is skipped."""
        size = whole_number(size, "The size of the pictures", 1, MAX_SIDE)
        if size not in self._decoded:
            self._decoded[size] = decoded(self.listing, size, self.cache)
            self.announce(self.summary(size))
        return self._decoded[size]

    def usable(self, records: list[int], size: int) -> list[int]:
        """Leave out the records whose pictures are broken."""
        faults = self.decoded(size).faults
        return [i for i in records if i not in faults]

    def damage(self, size: int) -> Damage:
        """Give all faults: of names and captions, and of the pictures when they are decoded."""
        total = copy.deepcopy(self.listing.damage)
        for i, reason in self.decoded(size).faults.items():
            total.add(self.records[i].name, reason)
        return total

    def summary(self, size: int) -> str:
        """Say in a line or two what is trained on and what was skipped."""
        found, damage = self._decoded[size], self.damage(size)
        number, way = len(self.records) - len(found.faults), "caption" if self.by_caption else "picture"
        line = f"{brief(self.listing.path.name)}: {self.listing.format}, {number} pictures, "
        line += f"{len(self.held_out)} of them held out by {way}"
        if found.fresh:
            line += f"; {found.fresh} decoded to {size} x {size} in {found.seconds:.0f} s, kept in {found.path.parent}"
        return line + (f".\nSkipped: {damage.summary()}." if damage.count else ".")


class Said:
    """The captions of all records, cut into tokens."""

    def __init__(self, records: list[Record], tokenizer: BytePairTokenizer):
        self.ids, self.ends, self.firsts = array("i"), array("q", [0]), array("q")
        for record in records:
            self.firsts.append(len(self.ends) - 1)
            for caption in record.captions:
                self.ids.extend(tokenizer.pieces(caption))
                self.ends.append(len(self.ids))
        self.counts = np.array([len(record.captions) for record in records])

    def pieces(self, record: int, number: int) -> array:
        """Give the tokens of one caption of a record, without an end token."""
        at = self.firsts[record] + number
        return self.ids[self.ends[at] : self.ends[at + 1]]

    def lengths(self) -> np.ndarray:
        """Count the tokens of every caption."""
        return np.diff(np.array(self.ends))

    def longest(self, records: list[int]) -> int:
        """Count the tokens of the longest caption of some records."""
        return max((len(self.pieces(i, k)) for i in records for k in range(self.counts[i])), default=0)


class PictureSource:
    """Batches in which nothing comes twice within an epoch; step n of a seed is the same whatever came before.

    Args:
        pictures: the collection.
        images: its pixels.
        usable: the records to draw from.
        seed: of order, captions and mirrors.
    """

    def __init__(self, pictures: Pictures, images: Decoded, usable: np.ndarray, seed: int):
        self.pictures, self.images, self.usable, self.seed = pictures, images, usable, seed
        self.tokenizer = pictures.tokenizer
        captions = (pictures.records[i].captions for i in usable)
        self.may_flip = np.array([may_flip(said, pictures.flip) for said in captions])
        self._order: tuple[int, np.ndarray] | None = None  # the epoch of the last batch, and its order

    def order(self, epoch: int) -> np.ndarray:
        """Give the order of an epoch: all numbers of usable pictures, each once."""
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self.shuffled(epoch)
        return self._order[1]

    def shuffled(self, epoch: int) -> np.ndarray:
        """Shuffle the numbers of usable pictures for an epoch."""
        return np.random.default_rng([self.seed, 0, epoch]).random(len(self.usable)).argsort(kind="stable")

    def batch(self, step: int, batch_size: int) -> Batch:
        """Give the batch of a step: each picture with one of its captions, drawn at random."""
        size = whole_number(batch_size, "The size of a batch")
        epochs, places = np.divmod(step * size + np.arange(size), len(self.usable))
        drawn = np.concatenate(
            [self.order(epoch)[places[epochs == epoch]] for epoch in range(epochs[0], epochs[-1] + 1)]
        )
        chosen, rng = self.usable[drawn], np.random.default_rng([self.seed, 1, step])
        numbers = (rng.random(size) * self.pictures.said.counts[chosen]).astype(int)
        mirrored = (rng.random(size) < 0.5) & self.may_flip[drawn]
        rows = self.images.rows[chosen]
        rows[mirrored] = rows[mirrored, :, :, ::-1]
        return self.pictures.batch(rows, chosen, numbers.tolist())


def may_flip(captions: tuple[str, ...], flip: bool | None) -> bool:
    """Tell whether a picture may be mirrored: as the collection says, else where no caption names a side."""
    return not any(map(SIDES.search, captions)) if flip is None else flip


def split(records: list[Record]) -> tuple[bool, dict[int, list[int]]]:
    """Choose what is held out, by hashes alone.

    Pictures that have the same captions stay together, and a caption that a training picture has as well is not asked
    for. Where captions are few (the names of ten classes, say) to hold them out would mean to teach the rest only; then
    pictures are held out, whose captions others have too.

    Returns: whether captions are held out, and for each held-out record the numbers of the captions to ask for.
    """
    groups = defaultdict(list)
    for i, record in enumerate(records):
        groups[tuple(sorted(caption.lower() for caption in record.captions))].append(i)
    by_caption = len(groups) >= FEW_CAPTIONS * len(records)
    if not by_caption:
        groups = {(record.name, *record.captions): [i] for i, record in enumerate(records)}
    room, chosen = min(int(HELD_OUT * len(records)), MAX_HELD_OUT), []
    for key in sorted(groups, key=lambda key: hashlib.sha256(json.dumps(key).encode()).digest()):
        if len(chosen) + len(groups[key]) <= room:
            chosen += groups[key]
    if not by_caption:
        return False, {i: list(range(len(records[i].captions))) for i in sorted(chosen)}
    out = set(chosen)
    known = {caption.lower() for i, record in enumerate(records) if i not in out for caption in record.captions}
    asked = {i: [k for k, said in enumerate(records[i].captions) if said.lower() not in known] for i in sorted(chosen)}
    return True, {i: numbers for i, numbers in asked.items() if numbers}
