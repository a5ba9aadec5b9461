"""The command line: minidalle demo, train, generate, evaluate, sheet, bench, info, data, reference."""

import argparse
import contextlib
import itertools
import json
import math
import signal
import sys
import time
from pathlib import Path

import torch

from minidalle import parallel
from minidalle.checkpoint import brief, own_version
from minidalle.checks import whole_number
from minidalle.commands.data import add_data
from minidalle.commands.edits import EXAMPLES as EDIT_EXAMPLES
from minidalle.commands.edits import add_edits
from minidalle.commands.evaluate import add_evaluate, check_scenes, evaluate
from minidalle.commands.info import info
from minidalle.commands.terminal import (
    Parser,
    check_picture,
    options_of,
    path,
    preset_of,
    printable,
    silence,
    source,
    told,
)
from minidalle.data.batches import World
from minidalle.data.folders import save_folder
from minidalle.data.pictures import Pictures
from minidalle.device import pick_device, pick_threads, threads
from minidalle.evaluation import curves
from minidalle.evaluation.report import System, has_two, report_card
from minidalle.evaluation.tables import to_json, to_text
from minidalle.pipeline import MAX_PICTURES, MiniDalle
from minidalle.rivals import FAMILIES, Family, from_pretrained
from minidalle.tokenizer import BytePairTokenizer
from minidalle.training.loop import TrainingError
from minidalle.training.recipes import PRESETS, Preset
from minidalle.training.run import train
from minidalle.training.stages import STACK, STAGES
from minidalle.world.grammar import parse

TRAINED = "runs/mine"  # where a training is kept; that of a rival under its own name
MAX_SCALE = 64
COLUMNS = 8  # pictures in a row of a written file
MAX_SEED = 2**63  # beyond, torch has no seeds
CHUNK = 64  # pictures that are drawn together, which bounds the memory
EXAMPLES = {
    "demo": "minidalle demo --out runs/demo",
    "train": "minidalle train all --recipe full --out runs/full --resume",
    "generate": 'minidalle generate "a red circle above a blue square" -n 4 --seed 0 --out pictures.png',
    "evaluate": "minidalle evaluate tiny runs/demo -n 200 --json",
    "sheet": "minidalle sheet runs/demo --out sheet.png",
    "bench": "minidalle bench --device cpu",
    "info": "minidalle info ~/runs/demo",
    "data": "minidalle data check data/scenes",
    "classroom": "minidalle classroom grade submissions",
    "reference": "minidalle reference runs/seed0 runs/seed1 runs/seed2",
} | EDIT_EXAMPLES


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 when it did what it was asked."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a letter that the terminal does not know becomes a question mark
            stream.reconfigure(errors="replace")
    try:
        try:
            return run(parser().parse_args(arguments))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as "head" has: end as a program does that SIGPIPE ends
        silence()
        return 128 + 13
    except OSError as error:
        silence()
        print(f"minidalle: what it prints cannot be written ({told(error)}).", file=sys.stderr)
        return 1


def run(args: argparse.Namespace) -> int:
    """Run what was parsed, and turn what is known to go wrong into a sentence."""
    try:
        if not -MAX_SEED <= getattr(args, "seed", 0) < MAX_SEED:
            raise ValueError(f"--seed is {brief(args.seed)}; a whole number of at most 63 bits was expected.")
        draws = "device" in args and "resume" not in args  # a training chooses its own number of threads
        with threads(pick_threads()) if draws else contextlib.nullcontext():
            args.run(args)
        return 0
    except BrokenPipeError:
        raise
    except OSError as error:
        message, code = told(error), 1
    except (ValueError, TrainingError) as error:
        message, code = str(error), 1
    except (MemoryError, torch.OutOfMemoryError):
        message, code = "the memory does not suffice: ask for fewer or smaller pictures.", 1
    except KeyboardInterrupt as error:
        finished = "stopped; stages that were finished are kept." if "resume" in args else "stopped."
        said = str(error) or finished  # a training says which step it has kept
        message = f"{said} The same command with --resume goes on." if "resume" in args else said
        code = 128 + getattr(error, "signal", signal.SIGINT)
        print(file=sys.stderr)  # below the ^C that terminals show, and below a bar
    print(f"minidalle {args.command}: {printable(message)}", file=sys.stderr)
    return code


def parser() -> argparse.ArgumentParser:
    """Describe the commands and their options."""
    top = Parser(prog="minidalle", description="DALL·E 2 (unCLIP), small, from random weights.")
    top.add_argument("--version", action="version", version=own_version())
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, summary: str, computes: bool = True) -> argparse.ArgumentParser:
        plain = argparse.RawDescriptionHelpFormatter
        example = f"example:\n  {EXAMPLES[name]}"
        sub = commands.add_parser(name, help=summary, description=summary, epilog=example, formatter_class=plain)
        sub.set_defaults(run=run)
        if computes:
            sub.add_argument("--device", help="cuda, mps or cpu; the best that is there when not given")
        return sub

    add_trainings(command)
    add_drawings(command)
    add_edits(command)
    add_tools(command)
    summary = "hand out student copies of the lessons, and grade what comes back"
    sub = command("classroom", classroom, summary, computes=False)
    sub.add_argument("words", nargs=argparse.REMAINDER, metavar="release | grade", help="each has a --help of its own")
    return top


def add_trainings(command) -> None:
    """Describe the commands that train."""
    sub = command("demo", demo, "train everything, print the report card, write a contact sheet")
    training_options(sub, "runs/demo")
    sub = command("train", train_command, "train stages of a stack")
    known = f"{', '.join(STACK)}, all of these, upsampler, or a rival: {', '.join(FAMILIES)} (default %(default)s)"
    stages = [*STAGES, *FAMILIES, "all"]
    sub.add_argument("stage", nargs="?", default="all", choices=stages, metavar="STAGE", help=known)
    known = "captioned pictures of your own to train on, in place of drawn scenes"
    sub.add_argument("--data", type=path, metavar="PATH", help=known)
    sub.add_argument(
        "--no-flip", action="store_true", help="never mirror a picture of your own, whatever is said of it"
    )
    training_options(sub, TRAINED)


def training_options(sub: argparse.ArgumentParser, out: str) -> None:
    """Describe what every training is asked."""
    sub.add_argument("--preset", default="tiny", help=f"sizes: {', '.join(PRESETS)} (default %(default)s)")
    sub.add_argument("--recipe", default="quick", help="quick or full (default %(default)s)")
    sub.add_argument("--out", type=path, default=Path(out), help="folder of the run (default %(default)s)")
    sub.add_argument("--seed", type=int, default=0, help="of the weights and of the data (default %(default)s)")
    sub.add_argument("--resume", action="store_true", help="take up a run that was stopped")


def add_drawings(command) -> None:
    """Describe the commands that draw and measure."""
    sub = command("generate", generate, "draw pictures of a prompt")
    sub.add_argument("prompt", help="what to draw")
    sub.add_argument("--out", type=path, default=Path("picture.png"), help="file to write (default %(default)s)")
    sub.add_argument("-n", type=int, default=1, help=f"how many, in rows of {COLUMNS} (default %(default)s)")
    seeds = "of the first picture's noise; the next has the next seed (default %(default)s)"
    sub.add_argument("--seed", type=int, default=0, help=seeds)
    sub.add_argument("--steps", type=int, help="of the decoder's sampler; the pipeline's own when not given")
    sub.add_argument("--guidance-scale", type=float, help="of the decoder, 1: off; likewise")
    known = "shipped weights or the folder of a run (default %(default)s)"
    sub.add_argument("--checkpoint", type=source, default="tiny", help=known)
    known = "draw it at twice the size with the upsampler; given twice, at four times with both"
    sub.add_argument("--upsample", action="count", default=0, help=known)
    sub.add_argument("--scale", type=int, default=4, help="enlargement of the written file (default %(default)s)")

    add_evaluate(command("evaluate", evaluate, "print the report card, of several systems side by side"))

    sub = command("sheet", sheet, "draw the contact sheet: fixed prompts, eight pictures each")
    known = "shipped weights or a folder (default %(default)s)"
    sub.add_argument("checkpoint", nargs="?", type=source, default="tiny", help=known)
    sub.add_argument("--out", type=path, default=Path("contact_sheet.png"), help="file (default %(default)s)")


def add_tools(command) -> None:
    """Describe the commands around it."""
    sub = command("bench", bench_command, "measure how fast this machine trains and draws")
    sub.add_argument("--preset", default="tiny", help=f"sizes: {', '.join(PRESETS)} (default %(default)s)")
    sub = command("info", info, "tell what is installed, found and shipped")
    known = "shipped weights or a folder (default %(default)s)"
    sub.add_argument("checkpoint", nargs="?", type=source, default="tiny", help=known)
    add_data(command("data", data_command, "write drawn scenes or emoji, or check pictures of your own", False))
    summary = "collect the loss curves of finished runs, to judge others by"
    sub = command("reference", reference_command, summary, computes=False)
    sub.add_argument("runs", nargs="+", type=path, metavar="RUN", help="folders of runs of one recipe, a seed each")
    sub.add_argument("--out", type=path, help="file to write (default data/reference/PRESET.json)")


def train_command(args: argparse.Namespace) -> None:
    """Train the stages that were asked for."""
    if family := FAMILIES.get(args.stage):
        preset, stages = rival_preset(family, args), tuple(family.stages)
    else:
        preset, stages = preset_of(args), STACK if args.stage == "all" else (args.stage,)
    started = time.perf_counter()
    collection = Pictures(args.data, False if args.no_flip else None) if args.data else None
    with parallel.joined(args.device) as device:
        train(preset, args.recipe, args.out, stages, args.seed, device, args.resume, collection)
        print(f"Trained {', '.join(stages)} in {time.perf_counter() - started:.0f} s; kept in {args.out}.")


def demo(args: argparse.Namespace) -> None:
    """Train everything, measure it, show it."""
    if (world := preset_of(args).world) != "scenes":
        raise ValueError(
            f"The demo measures drawn scenes, and the preset {args.preset} trains on {world}: use minidalle train."
        )
    args.stage, args.data = "all", None
    train_command(args)
    pipe = MiniDalle.from_pretrained(args.out, args.device)
    print("Measuring ...")
    card = report_card(pipe)
    (args.out / "report.json").write_text(to_json(card) + "\n")
    print(to_text(card))
    draw_sheet(pipe, args.out / "contact_sheet.png")
    print(f'Draw your own: minidalle generate "a red circle" --checkpoint {args.out}')


def rival_preset(family: Family, args: argparse.Namespace) -> Preset:
    """Make the preset of a rival, which has one size, and give its run a folder of its own where none was named."""
    if args.preset != "tiny":
        raise ValueError(f"The rival {family.name} has one size, that of tiny; leave --preset out.")
    args.out = Path("runs") / family.name if args.out == Path(TRAINED) else args.out
    return family.preset()


def sheet(args: argparse.Namespace) -> None:
    """Draw the contact sheet of a stack."""
    check_picture(args.out)
    pipe = from_pretrained(args.checkpoint, args.device)
    check_scenes(pipe, args.checkpoint)
    draw_sheet(pipe, args.out)


def draw_sheet(pipe: System, path: Path) -> None:
    """Draw the fixed prompts that a stack was trained for, from the same few seeds each, and keep all pictures."""
    from minidalle.evaluation.pictures import SHEET_PROMPTS, contact_sheet, save_figure

    prompts = [prompt for prompt in SHEET_PROMPTS if has_two(pipe) or len(parse(prompt).objects) == 1]
    noise = [torch.Generator().manual_seed(seed) for _ in prompts for seed in range(8)]  # no row depends on another
    drawn = pipe(prompts, num_images_per_prompt=8, generator=noise).tensor
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(contact_sheet(list(zip(prompts, drawn.split(8), strict=True))), path)
    print(f"Wrote {path}.")


def generate(args: argparse.Namespace) -> None:
    """Draw a prompt into a file: picture k has seed + k, and is the same when it is drawn alone."""
    from minidalle.evaluation.pictures import check_pixels, grid

    whole_number(args.scale, "--scale", 1, MAX_SCALE)
    whole_number(args.n, "-n", 1, MAX_PICTURES)
    check_picture(args.out)
    pipe = from_pretrained(args.checkpoint, args.device)
    enlarged = math.prod(model.config.factor for model in pipe.upsamplers[: args.upsample])
    side = args.scale * enlarged * pipe.image_size
    check_pixels(args.n, side, side)
    options = options_of(args) | ({"upsample": args.upsample} if args.upsample else {})
    drawn = []
    for first in range(0, args.n, CHUNK):
        noise = [torch.Generator().manual_seed(args.seed + k) for k in range(first, min(args.n, first + CHUNK))]
        output = pipe(args.prompt, num_images_per_prompt=len(noise), generator=noise, **options)
        drawn.append(output.tensor)
    gap = args.scale if args.n > 1 else 0  # or pictures on white would run into one another
    sheet = grid(torch.cat(drawn), COLUMNS, args.scale, gap=gap)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.out)
    if output.captions[0] != args.prompt:
        print(f'Read as "{output.captions[0]}".')
    if isinstance(pipe.tokenizer, BytePairTokenizer) and (rare := pipe.tokenizer.rare_words(args.prompt)):
        print(
            f"Rare or unknown in the captions that it learned from, so hardly followed: {printable(', '.join(rare))}."
        )
    print(f"Wrote {args.out}.")


def bench_command(args: argparse.Namespace) -> None:
    """Print what this machine does in a second."""
    from minidalle.evaluation.bench import bench

    print(json.dumps(bench(preset_of(args), pick_device(args.device)), indent=1))


def data_command(args: argparse.Namespace) -> None:
    """Write a sample of the world, some pictures at a time."""
    world = World(args.size, seed=0)
    first = world.batch(0, min(args.n, CHUNK))  # before there is a folder, what makes no sense is refused
    numbers = range(CHUNK, args.n, CHUNK)
    rest = (world.batch(step, min(CHUNK, args.n - number)) for step, number in enumerate(numbers, 1))
    save_folder(itertools.chain([first], rest), args.out)
    print(f"Wrote {args.n} pictures and metadata.jsonl to {args.out}.")


def classroom(args: argparse.Namespace) -> None:
    """Hand out or grade; what that needs is imported here."""
    from minidalle.course.classroom.commands import run as run_classroom

    run_classroom(args.words)


def reference_command(args: argparse.Namespace) -> None:
    """Write the curves of runs."""
    made = curves.make(args.runs)
    path = args.out or Path("data/reference") / f"{made['preset']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(curves.to_json(made), encoding="utf-8")
    print(f"Wrote {path}: {made['recipe']} of {made['preset']}, {len(args.runs)} runs.")


if __name__ == "__main__":
    sys.exit(main())
