"""minidalle data: write drawn scenes or emoji, or check pictures of your own."""

import argparse
import json
from pathlib import Path

from minidalle.commands.terminal import path, preset_of, printable
from minidalle.data.check import inspect, to_text
from minidalle.data.pictures import Pictures
from minidalle.device import pick_device
from minidalle.evaluation import own_pictures
from minidalle.pipeline import MiniDalle
from minidalle.training.recipes import PRESETS


def add_data(sub: argparse.ArgumentParser) -> None:
    """Describe the kinds of data; drawn scenes are written when none is named."""
    sub.set_defaults(out=Path("data/scenes"), n=64, size=64)
    kinds = sub.add_subparsers(metavar="KIND", dest="kind")
    for scenes in (sub, kinds.add_parser("scenes", help="write a sample of the drawn world as an image folder")):
        absent = {"default": argparse.SUPPRESS}
        scenes.add_argument("--out", type=path, help="folder to write (default data/scenes)", **absent)
        scenes.add_argument("-n", type=int, help="how many pictures (default 64)", **absent)
        scenes.add_argument("--size", type=int, help="pixels along each side (default 64)", **absent)
    check = kinds.add_parser("check", help="say what a training would find in captioned pictures of your own")
    check.set_defaults(run=check_command)
    check.add_argument("path", type=path, metavar="PATH", help="a folder, an index of captions, or a shard")
    check.add_argument("--preset", default="tiny", help=f"sizes: {', '.join(PRESETS)} (default %(default)s)")
    check.add_argument("--recipe", default="quick", help="quick or full (default %(default)s)")
    check.add_argument("--device", help="of the estimate; the best that is there when not given")
    check.add_argument("--json", action="store_true", help="print JSON, with all names")
    emoji = kinds.add_parser("emoji", help="draw every emoji of a colour font that has a name")
    emoji.set_defaults(run=emoji_command)
    for name, what in (("font", "a colour font"), ("names", "names of the emoji (CLDR)"), ("out", "folder to write")):
        emoji.add_argument(f"--{name}", type=path, required=True, help=what)


def check_command(args: argparse.Namespace) -> None:
    """Say what is in a collection, and how long a training on it takes."""
    preset, pictures = preset_of(args), Pictures(args.path, announce=quiet)
    report = inspect(pictures, preset.models["clip"].image_size)
    report["minutes"] = own_pictures.minutes_to_train(preset, args.recipe, pictures, pick_device(args.device))
    print(json.dumps(report, indent=1) if args.json else printable(to_text(report), "\n"))


def emoji_command(args: argparse.Namespace) -> None:
    """Draw the emoji of a font."""
    from minidalle.data.emoji_font import write_emoji

    print(f"Drew {write_emoji(args.font, args.names, args.out)} emoji into {args.out}.")


def quiet(line: str) -> None:
    """Say nothing of what a report says as well."""


def evaluate_own(pipes: dict[str, MiniDalle], args: argparse.Namespace, options: dict) -> None:
    """Print how well systems follow the held-out captions of the pictures that they were trained on."""
    pictures, number = Pictures(args.data, announce=quiet), options.pop("num_inference_steps", None)
    options |= {} if number is None else {"num_steps": number}
    cards = {name: own_pictures.own_card(pipe, pictures, args.n, args.seed, **options) for name, pipe in pipes.items()}
    if args.json:
        print(json.dumps(cards, indent=1))
    for name, card in () if args.json else cards.items():
        print(f"{name}:\n{own_pictures.to_text(card)}")
