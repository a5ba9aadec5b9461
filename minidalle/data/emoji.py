"""The emoji world: pictures drawn by somebody else, each with its name, and combinations whose truth is known.

Most people among them come in three genders and six skin tones, so a few of these cells can be held out: the name of
each is made of words that training has met in other cells, and its true picture is known.
"""

import json
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from minidalle.checkpoint import SHIPPED
from minidalle.checks import whole_number
from minidalle.data.batches import Batch
from minidalle.tokenizer import Tokenizer, split_words

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")  # of skin; without one a person is yellow
GENDERS = {"man": "man", "men": "man", "woman": "woman", "women": "woman", "person": "person", "people": "person"}
UNUSUAL = {  # names that say a gender in words of their own
    "mermaid": "woman merperson", "merman": "man merperson", "old man": "man older person",
    "old woman": "woman older person", "prince": "man with crown", "princess": "woman with crown",
    "Santa Claus": "man mx claus", "Mrs. Claus": "woman mx claus", "boy": "man child", "girl": "woman child",
}  # fmt: skip
SPLITS = ("seen", "held out", "test")
CELLS = {"held out": 2, "test": 1}  # of each complete role, that training never shows
COUPLES = {"held out": 3, "test": 3}  # of the twenty pictures of two people of different tones
BLOCK = (8, "medium-dark")  # roles that training never shows in one tone, for the test split
MAX_SHIFT = 1  # pixels by which a training picture is moved
MAX_INDEX = 8 * 2**20  # bytes of emoji.json
WHITE = 255


@dataclass(frozen=True)
class Emoji:
    """One picture's name, and what it says."""

    characters: str
    base: str  # its name without skin tones: "woman astronaut"
    tones: tuple[str, ...] = ()  # of TONES, in the order of the name; none: yellow, or no person
    role: str | None = None  # what is left of the base without its gender, where there are three genders of it
    gender: str | None = None  # "man", "woman" or "person", likewise
    keywords: tuple[str, ...] = ()
    also: tuple[str, ...] = ()  # other names of the same picture, like parse_name's
    split: str = "seen"

    @property
    def name(self) -> str:
        """Give the name in plain words: "woman astronaut, dark skin tone"."""
        return ", ".join([self.base, *(f"{tone} skin tone" for tone in self.tones)])


def parse_name(characters: str, name: str, keywords: Sequence[str] = (), also: Sequence[str] = ()) -> Emoji:
    """Read a name of CLDR's: "woman astronaut: dark skin tone"."""
    base, *details = re.sub('[“”"()!]', "", name).replace("&", "and").replace(": ", ", ").split(", ")
    tones = tuple(detail.removesuffix(" skin tone") for detail in details if detail.endswith(" skin tone"))
    others = [detail for detail in details if not detail.endswith(" skin tone")]
    plain = tuple(parse_name(characters, other).name for other in also)
    return Emoji(characters, ", ".join([base, *others]), tones, keywords=tuple(keywords), also=plain)


def split_gender(base: str) -> tuple[str, str]:
    """Split the name of a person into role and gender; a name without a gender is of any person."""
    words = UNUSUAL.get(base, base).split()
    genders = [GENDERS[word.strip(",")] for word in words if word.strip(",") in GENDERS]
    role = " ".join(word for word in words if word.strip(",") not in GENDERS)
    return role, genders[0] if len(genders) == 1 else "person" if not genders else "several"


def with_roles(emojis: list[Emoji]) -> list[Emoji]:
    """Tell which emoji are a role in a gender: those whose role is there in all three."""
    found = [split_gender(emoji.base) for emoji in emojis]
    genders = defaultdict(set)
    for role, gender in found:
        genders[role].add(gender)
    whole = {role for role, there in genders.items() if {"man", "woman", "person"} <= there}
    return [
        replace(e, role=role, gender=gender) if role in whole and gender != "several" and len(e.tones) < 2 else e
        for e, (role, gender) in zip(emojis, found, strict=True)
    ]


def with_splits(emojis: list[Emoji]) -> list[Emoji]:
    """Hold out cells of each complete role, some couples, and a block of roles in one tone."""
    rng, roles, couples, split = random.Random("emoji/splits"), defaultdict(list), defaultdict(list), {}
    for number, emoji in enumerate(emojis):
        if emoji.role is not None:
            roles[emoji.role].append(number)
        elif len(emoji.tones) == 2:
            couples[emoji.base].append(number)
    complete = [numbers for _, numbers in sorted(roles.items()) if len(numbers) == 3 * (1 + len(TONES))]
    for groups, sizes in ((complete, CELLS), ([numbers for _, numbers in sorted(couples.items())], COUPLES)):
        for numbers in groups:
            drawn = iter(rng.sample(numbers, sum(sizes.values())))
            split |= {next(drawn): name for name, size in sizes.items() for _ in range(size)}
    for numbers in rng.sample(complete, min(BLOCK[0], len(complete))):
        split = {number: "test" for number in numbers if emojis[number].tones == (BLOCK[1],)} | split
    return [replace(emoji, split=split.get(number, "seen")) for number, emoji in enumerate(emojis)]


class EmojiSet:
    """Pictures of emoji and what their names say.

    Args:
        folder: holds atlas.png and emoji.json; emoji_font.py writes them.

    Raises: ValueError: when they are missing or do not belong together.
    """

    def __init__(self, folder: Path):
        try:
            if (folder / "emoji.json").stat().st_size > MAX_INDEX:
                raise ValueError(f"emoji.json has more than {MAX_INDEX} bytes")
            index = json.loads((folder / "emoji.json").read_text(encoding="utf-8"))
            self.image_size = whole_number(index["size"], "the size of the pictures", 8, 128)
            parsed = [parse_name(*entry) for entry in index["emoji"]]
            with Image.open(folder / "atlas.png", formats=["PNG"]) as picture:
                atlas = np.asarray(picture.convert("RGB"))
            self.pixels = torch.from_numpy(cut(atlas, self.image_size, len(parsed)))  # (N, 3, S, S), uint8
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{folder} holds no set of emoji ({error!r:.120}): make it with minidalle data emoji."
            ) from error
        self.emojis = with_splits(with_roles(parsed))
        self.by_name = {" ".join(split_words(emoji.name)): number for number, emoji in enumerate(self.emojis)}

    def __len__(self) -> int:
        return len(self.emojis)

    def images(self, numbers: list[int] | None = None) -> torch.Tensor:
        """Give pictures (N, 3, S, S), float32 in [-1, 1]; all of them when no numbers are given."""
        return (self.pixels if numbers is None else self.pixels[numbers]).float() / 127.5 - 1

    def of_split(self, split: str) -> list[int]:
        """Give the numbers of the pictures of a split, one of SPLITS."""
        return [number for number, emoji in enumerate(self.emojis) if emoji.split == split]

    @cached_property
    def siblings(self) -> list[list[int]]:
        """Give for each emoji those of training that are nearly it: of its role or base, or with a word in common."""
        groups: dict[tuple[str, str], list[int]] = defaultdict(list)
        for number in self.of_split("seen"):
            for key in keys(self.emojis[number]):
                groups[key].append(number)
        found = []
        for number, emoji in enumerate(self.emojis):
            near = [[other for other in groups[key] if other != number] for key in keys(emoji)]
            found.append(next((group for group in near if group), []))
        return found

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Make the tokenizer of all that captions can say."""
        said = {caption for emoji in self.emojis for caption in all_captions(emoji, self.neutral(emoji))}
        words = sorted({word for caption in said for word in split_words(caption)})
        return Tokenizer(words, 1 + max(len(split_words(caption)) for caption in said))

    def neutral(self, emoji: Emoji) -> str:
        """Give the base of an emoji's role without a gender; its own base where it has none."""
        return self._neutral.get(emoji.role, emoji.base)

    @cached_property
    def _neutral(self) -> dict[str | None, str]:
        return {emoji.role: emoji.base for emoji in self.emojis if emoji.gender == "person"}


def keys(emoji: Emoji) -> list[tuple[str, str]]:
    """Name the groups of near ones that an emoji belongs to, the nearest first."""
    words = sorted(split_words(emoji.base), key=len, reverse=True)
    role = [("role", emoji.role)] if emoji.role is not None else []
    return [*role, ("base", emoji.base), *(("word", word) for word in words)]


def cut(atlas: np.ndarray, size: int, number: int) -> np.ndarray:
    """Cut an atlas (H, W, 3) into its first pictures: (N, 3, S, S)."""
    rows, columns = atlas.shape[0] // size, atlas.shape[1] // size
    if rows * columns < number:
        raise ValueError(f"the atlas holds {rows * columns} pictures of {number}")
    tiles = atlas[: rows * size, : columns * size].reshape(rows, size, columns, size, 3)
    return np.ascontiguousarray(tiles.transpose(0, 2, 4, 1, 3).reshape(-1, 3, size, size)[:number])


def full_captions(emoji: Emoji) -> list[str]:
    """Say all of an emoji in each order of words."""
    if len(emoji.tones) != 1:
        return [emoji.name]
    (tone,) = emoji.tones
    return [emoji.name, f"{emoji.base} with {tone} skin tone", f"{tone} skin tone, {emoji.base}"]


def open_captions(emoji: Emoji, neutral: str) -> list[str]:
    """Say an emoji with one part left open, which the word "some" marks; nothing where there is no part to leave."""
    said = []
    if emoji.tones:
        said.append(f"{emoji.base}, some skin tone")
    if emoji.role is not None:
        tones = "".join(f", {tone} skin tone" for tone in emoji.tones)
        said += [f"some {neutral}{tones}", f"{emoji.gender} of some role{tones}"]
    return said


def all_captions(emoji: Emoji, neutral: str) -> list[str]:
    """Give every caption that training may use for an emoji."""
    return full_captions(emoji) + open_captions(emoji, neutral)


@cache
def shipped_emojis() -> EmojiSet:
    """Load the set that comes with the package."""
    folders = [root.parent / "emoji" for root in SHIPPED]
    return EmojiSet(next((path for path in folders if path.is_dir()), folders[-1]))


@dataclass(frozen=True)
class EmojiSource:
    """Batches of emoji that training may show, each moved by up to a pixel; step n of a seed is always the same."""

    emojis: EmojiSet
    image_size: int
    seed: int
    hard_negatives: bool = False
    full_captions: float = 1.0

    @property
    def tokenizer(self) -> Tokenizer:
        """Give the tokenizer of the captions."""
        return self.emojis.tokenizer

    def batch(self, step: int, batch_size: int) -> Batch:
        """Draw the batch of a training step."""
        rng, seen, numbers = random.Random(f"{self.seed}/{step}"), self._seen, []
        while len(numbers) < whole_number(batch_size, "The batch", 1):
            numbers.append(rng.choice(seen))
            if self.hard_negatives and (near := self.emojis.siblings[numbers[-1]]):
                numbers.append(rng.choice(near))
        numbers = numbers[:batch_size]
        captions = [self._caption(number, rng) for number in numbers]
        corners = [(rng.randint(0, 2 * MAX_SHIFT), rng.randint(0, 2 * MAX_SHIFT)) for _ in numbers]
        return Batch(self._pictures(numbers, corners), *self.tokenizer.encode(captions), captions)

    @cached_property
    def _seen(self) -> list[int]:
        return self.emojis.of_split("seen")

    def _caption(self, number: int, rng: random.Random) -> str:
        emoji = self.emojis.emojis[number]
        whole, part = full_captions(emoji), open_captions(emoji, self.emojis.neutral(emoji))
        return rng.choice(part if part and rng.random() >= self.full_captions else whole)

    def _pictures(self, numbers: list[int], corners: list[tuple[int, int]]) -> torch.Tensor:
        size = self.emojis.image_size
        padded = F.pad(self.emojis.pixels[numbers], [MAX_SHIFT] * 4, value=WHITE)
        moved = [picture[:, y : y + size, x : x + size] for picture, (y, x) in zip(padded, corners, strict=True)]
        images = torch.stack(moved).float() / 127.5 - 1
        return images if size == self.image_size else F.interpolate(images, [self.image_size] * 2, mode="area")


@dataclass(frozen=True)
class EmojiCollection:
    """The emoji world, as all stages of a system learn from it."""

    emojis: EmojiSet

    @property
    def tokenizer(self) -> Tokenizer:
        """Give the tokenizer of the captions."""
        return self.emojis.tokenizer

    def to_dict(self) -> dict:
        """Describe it in JSON's types."""
        return {"name": "emoji", "pictures": len(self.emojis), "seen": len(self.emojis.of_split("seen"))}

    def source(self, image_size: int, seed: int, hard_negatives: bool, full_captions: float) -> EmojiSource:
        """Give the batches of one stage."""
        return EmojiSource(self.emojis, image_size, seed, hard_negatives, full_captions)
