"""The report card of the emoji world: is the picture that was drawn nearest to the one that was asked for?

Every name has one true picture, so what a drawn picture shows is told by the nearest of all, those of held-out names
among them. Two lines stand beside: what pixel arithmetic on three training pictures reaches on the same cells, and how
many drawn pictures are a training picture over again.
"""

import random
from collections import defaultdict
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from minidalle.data.emoji import Emoji, EmojiSet, shipped_emojis
from minidalle.evaluation.gallery import CHUNK, Painter, paint_all
from minidalle.evaluation.metrics import Rate
from minidalle.evaluation.tables import NOTE, cell, table
from minidalle.pipeline import MiniDalle

UNREADABLE = 0.3  # root mean squared distance to the nearest above which a picture shows no emoji: more than real ones
# with noise of a standard deviation of 0.3 have (tests/evaluation/test_emoji_card.py)
SAME = 0.06  # likewise, below which a picture is a training picture over again; neighbouring tones differ by 0.12
SHIFTS = tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1))  # pixels by which a picture may have moved
ROWS = ("exact", "role", "gender", "tone", "readable", "memorised")


@dataclass(frozen=True)
class Reading:
    """What a picture is nearest to."""

    number: int  # of the nearest of all emoji
    distance: float  # root mean squared difference, of values in [-1, 1]
    from_training: float  # likewise, to the nearest that training showed


class EmojiReader:
    """Find the nearest of all pictures, moved by up to a pixel."""

    def __init__(self, emojis: EmojiSet):
        self.emojis, self.size = emojis, emojis.image_size
        flat = emojis.images().flatten(1)  # (N, P)
        self.flat, self.squares = flat, flat.square().sum(1)
        self.shown = torch.tensor([emoji.split == "seen" for emoji in emojis.emojis])

    def read(self, images: torch.Tensor) -> list[Reading]:
        """Read images (B, 3, H, W) in [-1, 1], of any size."""
        if images.shape[-1] != self.size:
            images = F.interpolate(images, [self.size] * 2, mode="area")
        distances = torch.cat([self.distances(part) for part in images.split(CHUNK)])  # (B, N)
        best, numbers = distances.min(1)
        trained = distances[:, self.shown].min(1).values
        return [Reading(*found) for found in zip(numbers.tolist(), best.tolist(), trained.tolist(), strict=True)]

    def distances(self, images: torch.Tensor) -> torch.Tensor:
        """Measure how far pictures (B, 3, S, S) are from each emoji: (B, N), the least over all shifts."""
        padded = F.pad(images, [1] * 4, value=1.0)
        least = None
        for y, x in SHIFTS:
            moved = padded[:, :, 1 + y : 1 + y + self.size, 1 + x : 1 + x + self.size].flatten(1)
            squared = moved.square().sum(1, keepdim=True) + self.squares - 2 * moved @ self.flat.T
            least = squared if least is None else torch.minimum(least, squared)
        return (least.clamp(min=0) / self.flat.shape[1]).sqrt()


def check(asked: Emoji, shown: Emoji) -> dict[str, bool]:
    """Tell for each part of a name whether an emoji shows it so."""
    found = {"exact": asked.characters == shown.characters}
    if asked.role is not None:
        found |= {"role": asked.role == shown.role, "gender": asked.gender == shown.gender}
    if asked.role is not None or asked.tones:
        found["tone"] = asked.tones == shown.tones
    return found


def score(emojis: EmojiSet, asked: list[int], readings: list[Reading]) -> dict[str, Rate]:
    """Count what was followed, what can be read at all, and what is a training picture over again."""
    rows = defaultdict(list)
    for number, reading in zip(asked, readings, strict=True):
        for name, right in check(emojis.emojis[number], emojis.emojis[reading.number]).items():
            rows[name].append(right)
        rows["readable"].append(reading.distance <= UNREADABLE)
        rows["memorised"].append(reading.from_training <= SAME)
    return {name: Rate(sum(rows[name]), len(rows[name])) for name in ROWS if name in rows}


def additive(emojis: EmojiSet, asked: list[int], seed: str = "additive") -> tuple[list[int], torch.Tensor]:
    """Make held-out cells by pixel arithmetic: x(g', t) + x(g, t') - x(g', t'), of three pictures that training shows.

    Returns: the numbers of the cells that have three such neighbours, and their pictures (N, 3, S, S).
    """
    rng = random.Random(seed)
    cells = {(e.role, e.gender, e.tones): number for number, e in enumerate(emojis.emojis) if e.role is not None}
    made, pictures = [], []
    for number in asked:
        emoji = emojis.emojis[number]
        if emoji.role is None:
            continue
        others = [(g, t) for role, g, t in cells if role == emoji.role and g != emoji.gender and t != emoji.tones]
        for gender, tones in rng.sample(others, len(others)):
            places = [(gender, emoji.tones), (emoji.gender, tones), (gender, tones)]
            three = [cells.get((emoji.role, *place)) for place in places]
            if all(n is not None and emojis.emojis[n].split == "seen" for n in three):
                one, other, both = emojis.images(three)
                made.append(number)
                pictures.append(one + other - both)
                break
    return made, torch.stack(pictures).clamp(-1, 1)


def ask(emojis: EmojiSet, split: str, n: int, seed: int) -> list[int]:
    """Choose what is asked of a split: all of it, or n drawn at random."""
    there = emojis.of_split(split)
    return there if len(there) <= n else random.Random(f"emoji/{split}/{seed}").sample(there, n)


@torch.no_grad()
def retrieval(pipe: MiniDalle, emojis: EmojiSet, asked: list[int]) -> Rate:
    """Ask CLIP to find each name's picture among all."""
    z_text = pipe.encode([emojis.emojis[number].name for number in asked]).z_text
    pictures = sized(emojis.images(), pipe.clip.config.image_size).to(pipe.device)
    z_image = torch.cat([pipe.clip.encode_image(part) for part in pictures.split(4 * CHUNK)])
    found = (z_text @ z_image.T).argmax(1).tolist()
    return Rate(sum(a == b for a, b in zip(asked, found, strict=True)), len(asked))


def sized(images: torch.Tensor, size: int) -> torch.Tensor:
    """Bring pictures to a size."""
    return images if images.shape[-1] == size else F.interpolate(images, [size] * 2, mode="area")


def emoji_card(
    pipe: MiniDalle, n: int = 300, seed: int = 0, test: bool = False, emojis: EmojiSet | None = None, **options
) -> dict:
    """Measure a system that was trained on emoji.

    Args:
        pipe: what to measure.
        n: names of each split, at most; all where there are fewer.
        seed: of the names and of the noise.
        test: whether to ask the test split, on which nothing is ever chosen, in the place of the held-out one.
        emojis: the set; None: the shipped one.
        options: of the pipeline's call.

    Returns: rates by row and column; to_text writes them down.
    """
    emojis = emojis or shipped_emojis()
    reader, hidden = EmojiReader(emojis), "test" if test else "held out"
    card: dict = {"world": "emoji", "n": n, "seed": seed, "split": hidden, "following": {}, "retrieval": {}}

    def painter(true_z: dict[str, torch.Tensor] | None) -> Painter:
        def paint(captions: list[str], seeds: list[int]) -> torch.Tensor:
            noise = [torch.Generator().manual_seed(seed) for seed in seeds]
            z = torch.stack([true_z[caption] for caption in captions]) if true_z else None
            return pipe(captions, generator=noise, z_image=z, rephrase=False, **options).tensor

        return paint

    for split in ("seen", hidden):
        asked = ask(emojis, split, n, seed)
        names = [emojis.emojis[number].name for number in asked]
        with torch.no_grad():
            z = pipe.clip.encode_image(sized(emojis.images(asked), pipe.clip.config.image_size).to(pipe.device)).cpu()
        drawn = paint_all(painter(None), names, f"emoji/{seed}")
        card["following"][split] = score(emojis, asked, reader.read(drawn))
        drawn = paint_all(painter(dict(zip(names, z, strict=True))), names, f"emoji/{seed}")
        card["following"][f"{split}, true z_image"] = score(emojis, asked, reader.read(drawn))
        card["retrieval"][split] = retrieval(pipe, emojis, asked)
    made, pictures = additive(emojis, ask(emojis, hidden, n, seed))
    card["following"][f"{hidden}, additive"] = score(emojis, made, reader.read(pictures))
    parts = {"clip": pipe.clip, "prior": pipe.prior, "decoder": pipe.decoder}
    card["parameters"] = {part: sum(p.numel() for p in model.parameters()) for part, model in parts.items()}
    return card


def to_text(card: dict) -> str:
    """Write an emoji card."""
    columns = card["following"]
    rows = [("", list(columns))]
    rows += [(name, [cell(rates.get(name)) for rates in columns.values()]) for name in ROWS]
    lines = ["Is the nearest of all pictures the one that was asked for? % (95 % interval) n"]
    lines += [*table(rows, 10), NOTE, ""]
    found = ", ".join(f"{split} {cell(rate)}" for split, rate in card["retrieval"].items())
    lines.append(f"CLIP finds a name's picture among all: {found}")
    lines.append(f"Parameters: {sum(card['parameters'].values()) / 1e6:.1f} M")
    return "\n".join(lines)
