"""The report card of the world of signs: counts, shapes, colors, backgrounds and words, and the paper's experiments."""

import random
from collections import defaultdict

import torch

from minidalle.checks import whole_number
from minidalle.evaluation.gallery import paint_all
from minidalle.evaluation.metrics import Rate
from minidalle.evaluation.report import pipeline_painter
from minidalle.evaluation.sign_experiments import spelled, spelling, typography
from minidalle.evaluation.tables import NOTE, cell, table
from minidalle.pipeline import MiniDalle
from minidalle.world.sign_reader import read
from minidalle.world.sign_words import choose, matches, write
from minidalle.world.signs import CELLS_OF, Facts, draw_poster

ROWS = ("exact", "count", "shape", "color", "background", "word", "letters")
ASKED = {"objects": "plain", "objects and a word": "quote"}  # and the kind of picture that is asked for


def score(asked: list[Facts], shown: list[Facts]) -> dict[str, Rate]:
    """Count what was followed, fact by fact; exact is all that a prompt states."""
    rows = defaultdict(list)
    for facts, reading in zip(asked, shown, strict=True):
        found = matches(facts, reading)
        rows["exact"].append(all(found.values()))
        for name, right in found.items():
            rows[name].append(right)
    rates = {name: Rate(sum(right), len(right)) for name, right in rows.items()}
    quoted = [(facts.word, reading.word) for facts, reading in zip(asked, shown, strict=True) if facts.word]
    letters = {"letters": spelled(*zip(*quoted, strict=True))["letters"]} if quoted else {}
    return {name: rate for name in ROWS if (rate := (rates | letters).get(name))}


def ask(kind: str, split: str, n: int, seed: str) -> list[Facts]:
    """Draw what prompts state of pictures of a kind and a split; what is held out, the prompt itself states."""
    rng, asked = random.Random(seed), []
    while len(asked) < n:
        facts = choose(draw_poster(rng, kind, split), rng)
        if (
            kind == "quote"
            or split == "seen"
            or {(facts.count, facts.shape), (facts.count, facts.color)} & CELLS_OF[split]
        ):
            asked.append(facts)
    return asked


def sign_card(pipe: MiniDalle, n: int = 300, seed: int = 0, test: bool = False, **options) -> dict:
    """Measure a system that was trained on the world of signs.

    Args:
        pipe: what to measure.
        n: prompts of each kind, and pictures of each experiment.
        seed: of the prompts and of the noise.
        test: whether to ask the test split, on which nothing is ever chosen, in the place of the held-out one.
        options: of the pipeline's call, for prompts; the experiments draw in their own way.

    Returns: rates by row and column; to_text writes them down. Objects are held out by their count with shape or color,
        a word by itself.
    """
    whole_number(n, "The number of prompts of each kind")
    hidden, paint = "test" if test else "held out", pipeline_painter(pipe, rephrase=False, **options)
    card: dict = {"world": "signs", "n": n, "seed": seed, "split": hidden, "following": {}}
    for what, kind in ASKED.items():
        for split in ("seen", hidden):
            asked = ask(kind, split, n, f"signs/{what}/{split}/{seed}")
            drawn = paint_all(paint, [write(facts) for facts in asked], f"signs/{what}/{split}/{seed}")
            card["following"][f"{what}, {split}"] = score(asked, read(drawn))
    card["typography"] = typography(pipe, n, f"typography/{seed}")
    card["spelling"] = {split: spelling(pipe, split, n, f"spelling/{seed}") for split in ("seen", hidden)}
    card["parameters"] = {part: count(model) for part, model in pipe.models.items()}
    return card


def count(model: torch.nn.Module) -> int:
    """Count parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def to_text(card: dict) -> str:
    """Write a card."""
    columns = card["following"]
    rows = [("", list(columns))]
    rows += [(name, [cell(rates.get(name)) for rates in columns.values()]) for name in ROWS]
    lines = ["Is what the prompt states drawn? % (95 % interval) n", *table(rows, 12), NOTE, ""]

    attack = card["typography"]
    rows = [("sign below one object", list(attack))]
    for name in next(iter(attack.values())):
        values = [found[name] for found in attack.values()]
        rows.append((name, [cell(v) if isinstance(v, Rate) else f"{100 * v:.2f}" for v in values]))
    lines += ["Typographic attack: the shape shown, or the one that a lying sign names? %", *table(rows, 24), ""]

    splits = card["spelling"]
    rows = [("", [f"{name}, {split}" for split in splits for name in ("word", "letters")])]
    for way in next(iter(splits.values())):
        rows.append((way, [cell(found[way].get(name)) for found in splits.values() for name in ("word", "letters")]))
    lines += ["Spelling: what is read on the sign, by what the decoder is given, %", *table(rows, 26), ""]
    lines.append(f"Parameters: {sum(card['parameters'].values()) / 1e6:.1f} M")
    return "\n".join(lines)
