"""The command line: minidalle demo, train, generate, evaluate, sheet, bench, info, data, reference."""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from minidalle.checkpoint import CheckpointError, find_folder, load_model, own_version
from minidalle.data.batches import World
from minidalle.data.folders import save_folder
from minidalle.data.images import from_pil
from minidalle.device import half_precision, pick_device
from minidalle.evaluation import curves
from minidalle.evaluation.report import has_two, report_card, to_json, to_text
from minidalle.pipeline import MiniDalle
from minidalle.training.loop import TrainingError
from minidalle.training.recipes import PRESETS
from minidalle.training.run import train
from minidalle.training.stages import STACK, STAGES
from minidalle.world.captions import known_words
from minidalle.world.grammar import parse

PICTURES = (".png", ".jpg", ".gif")  # what a picture can be written to
MAX_SCALE = 64
COLUMNS = 8  # pictures in a row of a written file
MAX_SEED = 2**63  # beyond, torch has no seeds


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 when it did what it was asked."""
    args = parser().parse_args(arguments)
    try:
        if not -MAX_SEED <= getattr(args, "seed", 0) < MAX_SEED:
            raise ValueError(f"--seed is {args.seed}; a whole number of at most 63 bits was expected.")
        args.run(args)
    except OSError as error:
        print(f"minidalle {args.command}: {told(error)}", file=sys.stderr)
        return 1
    except (ValueError, TrainingError) as error:
        print(f"minidalle {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        hint = "; what was trained so far can be taken up with --resume" if "resume" in args else ""
        print(f"\nminidalle {args.command}: stopped{hint}.", file=sys.stderr)
        return 130
    return 0


def told(error: OSError) -> str:
    """Say what the system refused, and for which file."""
    if error.filename is None:
        return str(error)
    return f"{error.filename} cannot be used ({error.strerror}): name another place."


def parser() -> argparse.ArgumentParser:
    """Describe the commands and their options."""
    top = argparse.ArgumentParser(prog="minidalle", description="DALL·E 2 (unCLIP), small, from random weights.")
    top.add_argument("--version", action="version", version=own_version())
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, summary: str, computes: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(run=run)
        if computes:
            sub.add_argument("--device", help="cuda, mps or cpu; the best that is there when not given")
        return sub

    def training_options(sub: argparse.ArgumentParser, out: str) -> None:
        sub.add_argument("--preset", default="tiny", help=f"sizes: {', '.join(PRESETS)} (default %(default)s)")
        sub.add_argument("--recipe", default="quick", help="quick or full (default %(default)s)")
        sub.add_argument("--out", type=Path, default=Path(out), help="folder of the run (default %(default)s)")
        sub.add_argument("--seed", type=int, default=0, help="of the weights and of the data (default %(default)s)")
        sub.add_argument("--resume", action="store_true", help="take up a run that was stopped")

    sub = command("demo", demo, "train everything, print the report card, write a contact sheet")
    training_options(sub, "runs/demo")
    sub = command("train", train_command, "train stages of a stack")
    known = f"{', '.join(STACK)}, all of these, or upsampler (default %(default)s)"
    sub.add_argument("stage", nargs="?", default="all", choices=[*STAGES, "all"], metavar="STAGE", help=known)
    training_options(sub, "runs/mine")

    sub = command("generate", generate, "draw pictures of a prompt")
    sub.add_argument("prompt", help='for example "a red circle above a blue square"')
    sub.add_argument("--out", type=Path, default=Path("picture.png"), help="file to write (default %(default)s)")
    sub.add_argument("-n", type=int, default=1, help=f"how many, in rows of {COLUMNS} (default %(default)s)")
    sub.add_argument("--seed", type=int, default=0, help="of the noise (default %(default)s)")
    sub.add_argument("--steps", type=int, default=20, help="of the decoder's sampler (default %(default)s)")
    sub.add_argument("--guidance-scale", type=float, default=1.25, help="of the decoder, 1: off (default %(default)s)")
    sub.add_argument(
        "--checkpoint", default="tiny", help="shipped weights or the folder of a run (default %(default)s)"
    )
    sub.add_argument("--upsample", action="store_true", help="draw it at twice the size, with the upsampler")
    sub.add_argument("--scale", type=int, default=4, help="enlargement of the written file (default %(default)s)")

    sub = command("evaluate", evaluate, "print the report card")
    sub.add_argument("checkpoint", nargs="?", default="tiny", help="shipped weights or a folder (default %(default)s)")
    sub.add_argument("-n", type=int, default=500, help="prompts of each kind (default %(default)s)")
    sub.add_argument("--seed", type=int, default=0, help="of prompts and noise (default %(default)s)")
    sub.add_argument("--steps", type=int, default=20, help="of the decoder's sampler (default %(default)s)")
    sub.add_argument("--guidance-scale", type=float, default=1.25, help="of the decoder, 1: off (default %(default)s)")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = command("sheet", sheet, "draw the contact sheet: fixed prompts, eight pictures each")
    sub.add_argument("checkpoint", nargs="?", default="tiny", help="shipped weights or a folder (default %(default)s)")
    sub.add_argument("--out", type=Path, default=Path("contact_sheet.png"), help="file (default %(default)s)")

    sub = command("bench", bench_command, "measure how fast this machine trains and draws")
    sub.add_argument("--preset", default="tiny", help=f"sizes: {', '.join(PRESETS)} (default %(default)s)")
    sub = command("info", info, "tell what is installed, found and shipped")
    sub.add_argument("checkpoint", nargs="?", default="tiny", help="shipped weights or a folder (default %(default)s)")
    sub = command("data", data_command, "write a sample of the world as an image folder", computes=False)
    sub.add_argument("--out", type=Path, default=Path("data/scenes"), help="folder to write (default %(default)s)")
    sub.add_argument("-n", type=int, default=64, help="how many pictures (default %(default)s)")
    sub.add_argument("--size", type=int, default=64, help="pixels along each side (default %(default)s)")
    summary = "collect the loss curves of finished runs, to judge others by"
    sub = command("reference", reference_command, summary, computes=False)
    sub.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs of one recipe, a seed each")
    sub.add_argument("--out", type=Path, help="file to write (default data/reference/PRESET.json)")
    return top


def preset_of(args: argparse.Namespace):
    """Look up the preset that was asked for."""
    if args.preset not in PRESETS:
        raise ValueError(f'"{args.preset}" is no preset; choose one of {", ".join(PRESETS)}.')
    return PRESETS[args.preset]


def train_command(args: argparse.Namespace) -> None:
    """Train the stages that were asked for."""
    stages = STACK if args.stage == "all" else (args.stage,)
    started = time.perf_counter()
    train(preset_of(args), args.recipe, args.out, stages, args.seed, pick_device(args.device), args.resume)
    print(f"Trained {', '.join(stages)} in {time.perf_counter() - started:.0f} s; kept in {args.out}.")


def demo(args: argparse.Namespace) -> None:
    """Train everything, measure it, show it."""
    args.stage = "all"
    train_command(args)
    pipe = MiniDalle.from_pretrained(args.out, args.device)
    print("Measuring ...")
    card = report_card(pipe)
    (args.out / "report.json").write_text(to_json(card) + "\n")
    print(to_text(card))
    draw_sheet(pipe, args.out / "contact_sheet.png")
    print(f'Draw your own: minidalle generate "a red circle" --checkpoint {args.out}')


def check_picture(path: Path) -> None:
    """Refuse, before anything is drawn, a file that no picture can be written to."""
    if path.suffix.lower() not in PICTURES or path.is_dir():
        raise ValueError(f"--out is {path}; a file that ends in {', '.join(PICTURES)} was expected.")


def sheet(args: argparse.Namespace) -> None:
    """Draw the contact sheet of a stack."""
    check_picture(args.out)
    draw_sheet(MiniDalle.from_pretrained(args.checkpoint, args.device), args.out)


def draw_sheet(pipe: MiniDalle, path: Path) -> None:
    """Draw the fixed prompts that a stack was trained for, from one seed, and keep all pictures."""
    from minidalle.evaluation.pictures import SHEET_PROMPTS, contact_sheet, save_figure

    prompts = [prompt for prompt in SHEET_PROMPTS if has_two(pipe) or len(parse(prompt).objects) == 1]
    drawn = pipe(prompts, num_images_per_prompt=8, generator=torch.Generator().manual_seed(0)).tensor
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(contact_sheet(list(zip(prompts, drawn.split(8), strict=True))), path)
    print(f"Wrote {path}.")


def generate(args: argparse.Namespace) -> None:
    """Draw a prompt into a file."""
    from minidalle.evaluation.pictures import grid

    if not 1 <= args.scale <= MAX_SCALE:
        raise ValueError(f"--scale is {args.scale}; an enlargement of 1 to {MAX_SCALE} was expected.")
    check_picture(args.out)
    pipe = MiniDalle.from_pretrained(args.checkpoint, args.device)
    output = pipe(
        args.prompt,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance_scale,
        num_images_per_prompt=args.n,
        generator=torch.Generator().manual_seed(args.seed),
        upsample=args.upsample,
    )
    images = from_pil(output.images, output.images[0].width)
    gap = args.scale if args.n > 1 else 0  # or pictures on white would run into one another
    sheet = grid(images, COLUMNS, args.scale, gap=gap)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.out)
    print(f"Wrote {args.out}.")


def evaluate(args: argparse.Namespace) -> None:
    """Print the report card of a stack."""
    pipe = MiniDalle.from_pretrained(args.checkpoint, args.device)
    card = report_card(pipe, args.n, args.seed, num_inference_steps=args.steps, guidance_scale=args.guidance_scale)
    print(to_json(card) if args.json else to_text(card))


def bench_command(args: argparse.Namespace) -> None:
    """Print what this machine does in a second."""
    from minidalle.evaluation.bench import bench

    print(json.dumps(bench(preset_of(args), pick_device(args.device)), indent=1))


def info(args: argparse.Namespace) -> None:
    """Print versions, device, words, and where a checkpoint comes from."""
    device = pick_device(args.device)
    precision = str(half_precision(device) or torch.float32).removeprefix("torch.")
    print(f"minidalle {own_version()}, torch {torch.__version__}, device {device}, training precision {precision}")
    print(f"words: {' '.join(known_words())}")
    folder, unusable = find_folder(args.checkpoint), []
    for kind in STAGES:
        try:
            model, header = load_model(STAGES[kind].model_class, folder)
        except CheckpointError as error:
            print(f"{kind}: {error}")
            unusable += [kind] if kind in STACK else []
            continue
        count = sum(p.numel() for p in model.parameters()) / 1e6
        keys = ("preset", "recipe", "seed", "seconds", "pictures")
        origin = ", ".join(f"{key} {header[key]}" for key in keys if key in header)
        print(f"{kind}: {count:.2f} M parameters, {origin}, sha256 {header['sha256'][:12]}")
    if unusable:
        missing = " and ".join(unusable)
        raise CheckpointError(f"{folder} draws nothing without a usable {missing}: train it, or name another folder.")


def data_command(args: argparse.Namespace) -> None:
    """Write a sample of the world."""
    save_folder(World(args.size, seed=0).batch(0, args.n), args.out)
    print(f"Wrote {args.n} pictures and metadata.jsonl to {args.out}.")


def reference_command(args: argparse.Namespace) -> None:
    """Write the curves of runs."""
    made = curves.make(args.runs)
    path = args.out or Path("data/reference") / f"{made['preset']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(curves.to_json(made), encoding="utf-8")
    print(f"Wrote {path}: {made['recipe']} of {made['preset']}, {len(args.runs)} runs.")


if __name__ == "__main__":
    sys.exit(main())
