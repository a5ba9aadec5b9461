"""Measure systems of the world of signs, and collect their cards for notebook 13.

minidalle train all --preset signs --recipe quick --seed 0 --out runs/signs_0
python tools/sign_cards.py card runs/signs_0                     # its report card, kept as card.json
python tools/sign_cards.py labels runs/signs_0 --shares 0 0.1    # CLIPs that met fewer labels, attacked likewise
python tools/sign_cards.py misspelt runs/signs_0                 # a decoder that met misspelt words, likewise
python tools/sign_cards.py collect runs/signs_0 runs/signs_1 --out data/reference/signs.json
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from minidalle.checkpoint import load_model, read_header
from minidalle.clip import CLIP
from minidalle.data.signs import Signs
from minidalle.evaluation.sign_card import sign_card
from minidalle.evaluation.sign_experiments import spelling, typography
from minidalle.evaluation.tables import to_json
from minidalle.pipeline import MiniDalle
from minidalle.training.recipes import SIGNS, fitted
from minidalle.training.run import train, train_stage
from minidalle.world.sign_words import TOKENIZER


def seed_of(run: Path) -> int:
    """Read the seed that a run was trained with."""
    return read_header(run / "clip.safetensors", "clip")["seed"]


def measure_card(args: argparse.Namespace) -> None:
    """Measure a system, and keep its card."""
    card = sign_card(MiniDalle.from_pretrained(args.run, "cpu"), args.n)
    (args.run / "card.json").write_text(to_json(card) + "\n", encoding="utf-8")


def attack_by_labels(args: argparse.Namespace) -> None:
    """Train CLIPs on pictures with other shares of labels, of the seed of a run, and hang signs before each."""
    pipe, found = MiniDalle.from_pretrained(args.run, "cpu"), {}
    for share in args.shares:
        folder = args.run / f"labels_{share:g}"
        train(SIGNS, "quick", folder, ("clip",), seed_of(args.run), resume=True, collection=Signs(labels=share))
        pipe.clip = load_model(CLIP, folder)[0].eval()
        found[f"{share:g}"] = typography(pipe, args.n, "typography/0", draws=False)
    (args.run / "labels.json").write_text(to_json(found) + "\n", encoding="utf-8")


def spell_by_misspelt(args: argparse.Namespace) -> None:
    """Train another decoder on the twins of pictures too, in half of which a letter is wrong, and ask it to spell."""
    pipe, folder = MiniDalle.from_pretrained(args.run, "cpu"), args.run / "misspelt"
    folder.mkdir(exist_ok=True)
    quick, seed, device = SIGNS.recipes["quick"], seed_of(args.run), torch.device("cpu")
    stages = {"decoder": replace(quick.stages["decoder"], hard_negatives=True)}
    preset = fitted(replace(SIGNS, recipes={"quick": replace(quick, stages=stages)}), TOKENIZER)
    decoder = train_stage(preset, "quick", folder, "decoder", seed, device, resume=True, needs_folder=args.run)
    pipe.decoder = decoder.eval()
    found = {split: spelling(pipe, split, args.n, "spelling/0") for split in ("seen", "held out")}
    (args.run / "misspelt.json").write_text(to_json(found) + "\n", encoding="utf-8")


def collect(args: argparse.Namespace) -> None:
    """Write all cards into one file, with the experiments beside them that were made."""
    rows = []
    for run in args.runs:
        row = {"seed": seed_of(run), "card": json.loads((run / "card.json").read_text(encoding="utf-8"))}
        for name in ("labels", "misspelt"):
            if (path := run / f"{name}.json").exists():
                row[name] = json.loads(path.read_text(encoding="utf-8"))
        rows.append(row)
    args.out.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")
    print(f"Wrote {args.out}: {len(rows)} cards.")


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run in {"card": measure_card, "misspelt": spell_by_misspelt, "labels": attack_by_labels}.items():
        sub = commands.add_parser(name, help=run.__doc__)
        sub.set_defaults(run_command=run)
        sub.add_argument("run", type=Path)
        sub.add_argument("-n", type=int, default=300, help="prompts of each kind (default %(default)s)")
    sub.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.1], help="of pictures with a label")
    sub = commands.add_parser("collect", help=collect.__doc__)
    sub.set_defaults(run_command=collect)
    sub.add_argument("runs", nargs="+", type=Path)
    sub.add_argument("--out", type=Path, default=Path("data/reference/signs.json"))
    args = parser.parse_args()
    args.run_command(args)


if __name__ == "__main__":
    main()
