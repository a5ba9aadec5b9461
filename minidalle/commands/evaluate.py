"""minidalle evaluate: the report card of systems, or what guidance does to them."""

import argparse
import json
import sys

from minidalle.commands.data import evaluate_own
from minidalle.commands.terminal import check_picture, options_of, path, source
from minidalle.evaluation import emoji_card, sign_card, sweep
from minidalle.evaluation.report import System, report_card
from minidalle.evaluation.tables import side_by_side, to_json, to_text
from minidalle.pipeline import MiniDalle
from minidalle.rivals import Rival, folder_of, from_pretrained

CARDS = {  # of worlds other than drawn scenes: what measures a system, and what writes that down
    "emoji": (emoji_card.emoji_card, emoji_card.to_text),
    "signs": (sign_card.sign_card, sign_card.to_text),
}


def add_evaluate(sub: argparse.ArgumentParser) -> None:
    """Describe the command."""
    known = "shipped weights (also unclip, unclip_ar, unclip_caption: tiny by either prior, or none) or folders of runs"
    sub.add_argument("checkpoints", nargs="*", type=source, default=["tiny"], metavar="CHECKPOINT", help=known)
    known = "pictures of your own that it was trained on: measure how well it follows their held-out captions"
    sub.add_argument("--data", type=path, metavar="PATH", help=known)
    sub.add_argument("-n", type=int, default=500, help="prompts of each kind (default %(default)s)")
    sub.add_argument("--seed", type=int, default=0, help="of prompts and noise (default %(default)s)")
    sub.add_argument("--test", action="store_true", help="ask the test split, on which nothing is ever chosen")
    sub.add_argument("--steps", type=int, help="of the decoder's sampler; the pipeline's own when not given")
    sub.add_argument("--guidance-scale", type=float, help="of the decoder, 1: off; likewise")
    known = "measure, in place of the card, following, fidelity and diversity at each of these guidance scales of the "
    known += "decoder, such as 1 1.25 2 3 4; CHECKPOINTs go before it"
    sub.add_argument("--sweep", nargs="+", type=scale, metavar="SCALE", help=known)
    sub.add_argument("--plot", type=path, metavar="FILE", help="of a sweep: draw its curves into this PNG file")
    sub.add_argument("--json", action="store_true", help="print JSON")


def scale(text: str) -> float:
    """Read a guidance scale."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is no number; checkpoints go before --sweep") from None


def evaluate(args: argparse.Namespace) -> None:
    """Print the report card of a system, or of several side by side; or what guidance does to them."""
    if args.sweep:
        check_sweep(args)
    elif args.plot:
        raise ValueError("--plot draws the curves of a sweep, and there is none: name guidance scales by --sweep.")
    options = options_of(args)
    pipes = {name: from_pretrained(name, args.device) for name in args.checkpoints}
    if args.sweep:
        sweep_guidance(pipes, args, options)
        return
    worlds = {pipe.world.get("name", "scenes") for pipe in pipes.values()}
    of_one_world = len(worlds) == 1 and worlds <= CARDS.keys()
    if args.data or of_one_world:
        refuse_rivals(pipes)
    (evaluate_own if args.data else evaluate_other if of_one_world else evaluate_scenes)(pipes, args, options)


def evaluate_other(pipes: dict[str, MiniDalle], args: argparse.Namespace, options: dict) -> None:
    """Print the report cards of systems that were trained on one and the same of the other worlds."""
    measure, write = CARDS[next(iter(pipes.values())).world["name"]]
    cards = {name: measure(pipe, args.n, args.seed, args.test, **options) for name, pipe in pipes.items()}
    if args.json:
        print(to_json(cards if len(cards) > 1 else next(iter(cards.values()))))
    else:
        print("\n\n".join(f"{name}\n{write(card)}" for name, card in cards.items()))


def check_sweep(args: argparse.Namespace) -> None:
    """Refuse, before anything is loaded, what makes no sense of a sweep."""
    against = {
        "--data": (args.data, "asks for drawn scenes, and not for pictures of your own"),
        "--test": (args.test, "is there to choose a scale, and nothing is ever chosen on the test split"),
        "--guidance-scale": (args.guidance_scale is not None, "names the guidance scales itself"),
    }
    for option, (given, why) in against.items():
        if given:
            raise ValueError(f"--sweep {why}: leave {option} out.")
    args.sweep = sweep.check_scales(args.sweep)
    if args.plot:
        check_picture(args.plot, "--plot", (".png",))


def sweep_guidance(pipes: dict[str, System], args: argparse.Namespace, options: dict) -> None:
    """Print, and draw where that was asked for, what guidance does to systems."""
    for name, pipe in pipes.items():
        if pipe.world.get("name", "scenes") != "scenes":
            raise ValueError(f"{name} was trained on other pictures than drawn scenes, which --sweep asks for.")
        if isinstance(pipe, Rival):
            pipe.check_options(options | {"guidance_scale": args.sweep[0]})  # of all, before any is measured
    found = {name: sweep.sweep(pipe, args.sweep, args.n, args.seed, name, **options) for name, pipe in pipes.items()}
    written = to_json(found if len(found) > 1 else next(iter(found.values())))
    print(written if args.json else sweep.to_text(found))
    if args.plot:
        from minidalle.evaluation.pictures import save_figure, sweep_figure

        save_figure(sweep_figure(json.loads(to_json(found))), args.plot)
        print(f"Wrote {args.plot}.", file=sys.stderr if args.json else sys.stdout)


def refuse_rivals(pipes: dict[str, System]) -> None:
    """Refuse to take apart what has none of unCLIP's parts."""
    for name, pipe in pipes.items():
        if isinstance(pipe, Rival):
            raise ValueError(
                f"{name} is a rival, and only drawn scenes have a card for it; your own pictures, emoji and signs are "
                "measured by CLIP and prior, which it lacks: look at what it draws by minidalle generate."
            )


def evaluate_scenes(pipes: dict[str, System], args: argparse.Namespace, options: dict) -> None:
    """Print the report card of systems that were trained on drawn scenes."""
    for name, pipe in pipes.items():
        check_scenes(pipe, name)
        if isinstance(pipe, Rival):
            pipe.check_options(options)  # of all, before any is measured
    cards = {
        name: report_card(pipe, args.n, args.seed, args.test, folder_of(name), name, **options)
        for name, pipe in pipes.items()
    }
    first, *others = cards.values()
    if args.json:
        print(to_json(cards if others else first))
    else:
        print(side_by_side(cards) if others else to_text(first))


def check_scenes(pipe: System, name: str) -> None:
    """Refuse to ask a system for drawn scenes that never saw any."""
    if pipe.world.get("name", "scenes") != "scenes":
        refuse_rivals({name: pipe})
        if (world := pipe.world.get("name")) in CARDS:
            raise ValueError(
                f'{name} was trained on {world}, which have a card of their own: "minidalle evaluate {name}".'
            )
        raise ValueError(
            f"{name} was trained on pictures of another kind than drawn scenes, which this command asks for; "
            f'try "minidalle evaluate {name} --data PATH" with its pictures.'
        )
