"""Report cards for people: one in full, or several side by side. In ASCII, at most 120 columns wide."""

import json
import textwrap
from collections.abc import Iterable

from minidalle.evaluation.confusion import most_confused
from minidalle.evaluation.metrics import Rate

ATTRIBUTES = ("exact", "count", "shape", "color", "size", "place", "relation", "background", "readable")
NOTE = "The intervals cover prompts and noise, not training seeds: another training of the same recipe may lie outside."
WIDTH = 120


def to_json(card: dict) -> str:
    """Write a report card as JSON, every rate with its interval and n."""
    return json.dumps(card, indent=1, default=Rate.to_json)


def cell(rate: Rate | None) -> str:
    """Write a rate in per cent, its 95 % interval and n; a dash where nothing was asked."""
    if rate is None or not rate.n:
        return "-"
    low, high = (100 * end for end in rate.interval)
    return f"{100 * rate.share:.1f} ({low:.1f}-{high:.1f}) {rate.n}"


def table(rows: list[tuple[str, list[str]]], first: int = 18) -> list[str]:
    """Align rows of cells, the first column to the left, the others to the right."""
    widths = [max(len(cells[i]) for _, cells in rows) + 2 for i in range(len(rows[0][1]))]
    return [
        f"{label:{first}}" + "".join(f"{text:>{width}}" for text, width in zip(cells, widths, strict=True))
        for label, cells in rows
    ]


def to_text(card: dict) -> str:
    """Write a report card in full."""
    following = card["following"]
    rows = [("", list(following))]
    for name in (*ATTRIBUTES, "swapped colors"):
        if any(name in rates for rates in following.values()):
            rows.append((name, [cell(rates.get(name)) for rates in following.values()]))
    split = "the test split, on which nothing was chosen" if card["split"] == "test" else "the held-out split"
    lines = [f"Prompt following on seen combinations and on those of {split}: % (95 % interval) n"]
    lines += [*table(rows, 14), NOTE, *confusions(card), ""]
    for level, wordings in card["wording"].items():
        lines.append(
            f"By wording, {level}, same descriptions and noise; lost and gained: pictures, to the canonical one"
        )
        rows = [("", ["exact", "refused", "lost", "gained"])]
        for name, row in wordings.items():
            rows.append(
                (name, [cell(row["exact"]), cell(row["refused"]), str(row["lost"].hits), str(row["gained"].hits)])
            )
        lines += [*table(rows, 22), ""]
    rows = [("facts", list(card["facts"])), ("exact", [share(rate) for rate in card["facts"].values()])]
    rows.append(("n", [str(rate.n) for rate in card["facts"].values()]))
    rows.insert(2, ("95 % interval", [span(rate) for rate in card["facts"].values()]))
    lines += ["Exact match by the number of facts in the prompt, %", *table(rows, 14), ""]
    return "\n".join([*lines, *summary(card)])


def confusions(card: dict) -> list[str]:
    """Write what is taken for what most often, a sentence for each kind of prompts where anything is."""
    most = {kind: most_confused(found) for kind, found in card.get("confusion", {}).items()}  # older cards have none
    which = {kind: " (objects where a relation tells them apart)" * kind.startswith("two objects") for kind in most}
    return wrapped(f"Most confused, {kind}{which[kind]}: {'; '.join(cells)}" for kind, cells in most.items() if cells)


def wrapped(lines: Iterable[str]) -> list[str]:
    """Break lines that are too long; what goes on is indented."""
    return [part for line in lines for part in textwrap.wrap(line, WIDTH, subsequent_indent="   ")]


def share(rate: Rate) -> str:
    """Write a rate in per cent."""
    return f"{100 * rate.share:.1f}" if rate.n else "-"


def span(rate: Rate) -> str:
    """Write the interval of a rate in per cent."""
    return "{:.1f}-{:.1f}".format(*(100 * end for end in rate.interval)) if rate.n else "-"


def multiples(card: dict, name: str) -> str:
    """Write the least and the greatest multiple of the world's share, and what chance alone would give."""
    found, (low, high) = card["diversity"][name].values(), card["diversity"]["chance"][name]
    chance = f" ({low:.2f}-{high:.2f})" if low is not None else ""
    return f"{min(found):.2f}-{max(found):.2f}{chance}"


def summary(card: dict) -> list[str]:
    """Write what a card holds beside rates: diversity, fidelity, retrieval, cost."""
    asked, fid, cost = card["diversity"], card["fidelity"], card["cost"]
    found = ", ".join(f"{name}s {multiples(card, name)}" for name in ("place", "size", "background"))
    lines = [
        f'Diversity of "{asked["prompt"]}", n = {asked["n"]}, shares as multiples of the world\'s '
        f"(95 % of what chance alone gives): {found}"
    ]
    if fid:
        lines.append(
            f"Fidelity (real against real): Frechet distance {fid['frechet']:.4f} ({fid['frechet floor']:.4f}), "
            f"precision {fid['precision']:.2f} ({fid['precision floor']:.2f}), "
            f"recall {fid['recall']:.2f} ({fid['recall floor']:.2f})"
        )
    if "retrieval" in card:
        found = card["retrieval"]
        lines.append(
            f"CLIP retrieval@1, {card['split']}, chance {100 * found['chance']:.1f} %: "
            + ", ".join(f"{way} {cell(found[way])}" for way in ("image to text", "text to image"))
        )
    return wrapped([*lines, costs(cost)])


def costs(cost: dict) -> str:
    """Write what a model costs."""
    parts = [f"{cost['seconds a picture']:.3f} s a picture in batches"]
    if "network calls a picture" in cost:
        calls = ", ".join(f"{name} {calls}" for name, calls in cost["network calls a picture"].items())
        parts.append(f"network calls: {calls}")
    if "parameters" in cost:
        parts.insert(0, f"{sum(cost['parameters'].values()) / 1e6:.1f} M parameters")
    if cost.get("training seconds"):
        parts.append(f"{sum(cost['training seconds'].values()):.0f} s of training")
    return "Cost: " + "; ".join(parts)


def side_by_side(cards: dict[str, dict]) -> str:
    """Write several cards as one table, a column each; more than fit beside one another go below.

    Args:
        cards: by the name of the model; of the same n and seed.
    """
    names, parts = list(cards), []
    per_table = (WIDTH - 38) // 26
    for start in range(0, len(names), per_table):
        shown = names[start : start + per_table]
        columns = [flat(cards[name]) for name in shown]
        labels = dict.fromkeys(label for column in columns for label in column)
        rows = [("", [shorten(name) for name in shown])]
        rows += [(label, [column.get(label, "-") for column in columns]) for label in labels]
        parts.append("\n".join(table(rows, 38)))
    return "\n\n".join([*parts, f"Rates in %, (95 % interval) and n.\n{NOTE}"])


def shorten(name: str) -> str:
    """Keep the end of a long name, which is what tells folders apart."""
    return name if len(name) <= 24 else f"...{name[-21:]}"


def flat(card: dict) -> dict[str, str]:
    """List what a card holds, a line each."""
    lines = {}
    for kind, rates in card["following"].items():
        lines[f"exact, {kind}"] = cell(rates["exact"])
        if "swapped colors" in rates:
            lines[f"swapped colors, {kind}"] = cell(rates["swapped colors"])
    for level, wordings in card["wording"].items():
        for name in ("canonical", "paraphrased"):
            lines[f"{name}, {level}"] = cell(wordings[name]["exact"])
    for number, rate in card["facts"].items():
        lines[f"exact, {number} fact{'s' * (number != '1')}"] = cell(rate)
    for name in ("place", "size", "background"):
        lines[f"diversity, {name}s (by chance)"] = multiples(card, name)
    fid = card["fidelity"]
    for name in ("frechet", "precision", "recall") if fid else ():
        lines[f"{name} (real against real)"] = f"{fid[name]:.3f} ({fid[f'{name} floor']:.3f})"
    for way in ("image to text", "text to image"):
        if "retrieval" in card:
            lines[f"retrieval, {way}"] = cell(card["retrieval"][way])
    cost = card["cost"]
    if "parameters" in cost:
        lines["parameters, millions"] = f"{sum(cost['parameters'].values()) / 1e6:.2f}"
    lines["seconds a picture"] = f"{cost['seconds a picture']:.3f}"
    if "network calls a picture" in cost:
        lines["network calls a picture"] = str(sum(cost["network calls a picture"].values()))
    if cost.get("training seconds"):
        lines["training seconds"] = f"{sum(cost['training seconds'].values()):.0f}"
    return lines
