"""Train rivals by their recipes, measure each, and collect the cards that notebook 21 draws.

    python tools/rival_cards.py train runs/rivals vae --recipe quick --seed 0  # one training and its card
    python tools/rival_cards.py time runs/rivals --steps 12                    # seconds a step, of all, in turn, idle
    python tools/rival_cards.py collect runs/rivals --out data/reference/rivals.json
    python tools/rival_cards.py table --recipe quick                           # of docs/results.md
    python tools/rival_cards.py own gan latent dalle1 runs/rivals/gan-full-0   # bins, tokens, ...

A card holds the share of prompts followed, seen and held out, by number of facts; diversity; Frechet distance; costs.
Trainings beside one another spoil each other's seconds, so time measures a step of each alone, and collect multiplies.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch

from minidalle.checkpoint import load_model
from minidalle.data.batches import Batch
from minidalle.device import choose_threads, threads
from minidalle.evaluation.edits import draw_scenes, shows, told
from minidalle.evaluation.metrics import Rate
from minidalle.evaluation.report import System, draw_prompts, report_card
from minidalle.evaluation.tables import to_json
from minidalle.rivals import FAMILIES, folder_of, from_pretrained, rivals_in
from minidalle.rivals.dalle1 import token_exactness
from minidalle.rivals.unclip import load_variant
from minidalle.training.recipes import TINY, Preset, fitted
from minidalle.training.run import prepare, train
from minidalle.training.stages import KNOWN, STACK, collection_of
from minidalle.training.trainer import Trainer
from minidalle.world import oracle
from minidalle.world.captions import write
from minidalle.world.render import render

RECIPES = ("quick", "full")
AUTOENCODERS = ("kl_autoencoder", "dvae")  # stages that give pictures back
UNCLIP = {  # beside the rivals, on the same budget
    "unclip": STACK,
    "unclip_ar": ("clip", "ar_prior", "decoder"),
    "unclip_caption": ("clip", "decoder"),
}


def stages_of(name: str) -> tuple[str, ...]:
    """Name the stages of a rival, or of unCLIP, in the order of training."""
    return UNCLIP[name] if name in UNCLIP else tuple(FAMILIES[name].stages)


def preset_of(name: str) -> Preset:
    """Give the preset of a rival, or of unCLIP."""
    return TINY if name in UNCLIP else FAMILIES[name].preset()


def train_one(args: argparse.Namespace) -> None:
    """Train one rival and keep its card beside it."""
    folder = args.runs / f"{args.family}-{args.recipe}-{args.seed}"
    stages = STACK if args.family == "unclip_caption" else stages_of(args.family)  # it is loaded with a prior, unused
    train(preset_of(args.family), args.recipe, folder, stages, args.seed, resume=True)
    card = report_card(load(folder, args.family), args.n, args.seed, folder=folder)
    (folder / "card.json").write_text(to_json(card) + "\n", encoding="utf-8")
    exact = {kind: rates["exact"].share for kind, rates in card["following"].items()}
    print(f"{folder.name}: {exact}")


def load(folder: Path, name: str) -> System:
    """Load what draws: unCLIP from its folder, a rival from its file."""
    return (
        load_variant(name, folder, "cpu") if name in UNCLIP else from_pretrained(folder / f"{name}.safetensors", "cpu")
    )


def drawing_seconds(system: System) -> float:
    """Measure the seconds of a picture in a batch of 64, the faster of two, with one thread."""
    seconds = []
    prompts = [prompt.caption for prompt in draw_prompts(64, 0.0, "seen", "time")]
    with threads(1):
        for _ in range(2):
            started = time.perf_counter()
            system(prompts, generator=torch.Generator().manual_seed(0))
            seconds.append((time.perf_counter() - started) / len(prompts))
    return round(min(seconds), 5)


def time_all(args: argparse.Namespace) -> None:
    """Measure the seconds of a step of every stage, in turn, twice, with the threads of a training; keep the faster."""
    found: dict[str, dict[str, float]] = {}
    for _ in range(2):
        for name in (*UNCLIP, *FAMILIES):
            collection = collection_of(TINY, TINY.recipes["quick"])
            preset = fitted(preset_of(name), collection.tokenizer)
            for stage in stages_of(name):
                needs = args.runs / f"{name}-quick-0"
                model, loss_at = prepare(preset, "quick", stage, 0, torch.device("cpu"), needs, collection)
                with threads(choose_threads(None)[0]):
                    trainer = Trainer(model.train(), preset.recipes["quick"].stages[stage])
                    trainer.step(loss_at, 0)
                    started = time.perf_counter()
                    for step in range(1, args.steps):
                        trainer.step(loss_at, step)
                    seconds = (time.perf_counter() - started) / (args.steps - 1)
                there = found.setdefault(name, {})
                there[stage] = min(seconds, there.get(stage, seconds))
                print(f"{name}, {stage}: {1000 * there[stage]:.1f} ms a step", flush=True)
    for name in (*UNCLIP, *FAMILIES):
        found[name]["a picture"] = drawing_seconds(load(args.runs / f"{name}-quick-0", name))
        print(f"{name}: {1000 * found[name]['a picture']:.1f} ms a picture", flush=True)
    (args.runs / "seconds.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def origin(folder: Path) -> tuple[str, str, int]:
    """Read family, recipe and seed off the name of a training's folder."""
    match folder.name.rsplit("-", 2):
        case [name, recipe, seed] if name in {*UNCLIP, *FAMILIES} and recipe in RECIPES and seed.isdecimal():
            return name, recipe, int(seed)
    raise SystemExit(f"{folder} holds a card, but is not named FAMILY-RECIPE-SEED, as gan-full-0 is: rename it.")


def collect(args: argparse.Namespace) -> None:
    """Write all cards into one file, with the seconds that their trainings take on an idle machine."""
    seconds = json.loads((args.runs / "seconds.json").read_text(encoding="utf-8"))
    rows = []
    for path in sorted(args.runs.glob("*/card.json")):
        name, recipe, seed = origin(path.parent)
        card = json.loads(path.read_text(encoding="utf-8"))
        stages = preset_of(name).recipes[recipe].stages
        spent = sum(seconds[name][stage] * stages[stage].steps for stage in stages_of(name))
        card.pop("confusion", None)  # half of a card, and not drawn
        card["cost"] |= {"training seconds": round(spent, 1), "seconds a picture": seconds[name]["a picture"]}
        rows.append({"family": name, "recipe": recipe, "seed": seed, "card": card})
    args.out.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")
    print(f"Wrote {args.out}: {len(rows)} cards.")


def table(args: argparse.Namespace) -> None:
    """Print the collected cards of a recipe as a table in Markdown, the best family first."""
    families: dict[str, list[dict]] = {}
    for row in json.loads(args.cards.read_text(encoding="utf-8")):
        if row["recipe"] == args.recipe:
            families.setdefault(row["family"], []).append(row["card"])

    def shares(name: str, kind: str, fact: str = "exact") -> list[float]:
        return [100 * card["following"][kind][fact]["share"] for card in families[name]]

    def joined(values: list[float], digits: int = 1) -> str:
        return ", ".join(f"{value:.{digits}f}" for value in values)

    kinds, held_out = list(next(iter(families.values()))[0]["following"]), "one object, held out"
    titles = [f"{kind}, %" for kind in kinds] + ["place", "Frechet", "training, s", "ms a picture", "M parameters"]
    rows = [["family", "held out, median", *titles], ["---"] * (2 + len(titles))]
    for name in sorted(families, key=lambda name: -median(shares(name, held_out))):
        cost = families[name][0]["cost"]
        rows.append(
            [f"`{name}`", f"**{median(shares(name, held_out)):.1f}**", *(joined(shares(name, kind)) for kind in kinds)]
        )
        rows[-1] += [joined(shares(name, held_out, "place"), 0)]
        rows[-1] += [f"{median(card['fidelity']['frechet'] for card in families[name]):.3f}"]
        rows[-1] += [f"{cost['training seconds']:.0f}", f"{1000 * cost['seconds a picture']:.1f}"]
        rows[-1] += [f"{sum(cost['parameters'].values()) / 1e6:.2f}"]
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))


def print_own(args: argparse.Namespace) -> None:
    """Print what no card holds: bins that "a red circle" hits, reconstructions read right, likeliest tokens."""
    for source in args.sources:
        folder = folder_of(source)
        for name in rivals_in(folder):
            rival = from_pretrained(folder / f"{name}.safetensors", "cpu")
            print(f"{source}, {name}: {bins_hit(rival, args.n)}")
            if name == "dalle1":
                for kind in ("one object, seen", "one object, held out", "two objects, seen", "two objects, held out"):
                    print(f"{source}, tokens, {kind}: {likeliest_tokens(rival, kind, args.n):.3f} are the likeliest")
        for kind in AUTOENCODERS:
            if (folder / f"{kind}.safetensors").is_file():
                rate = reconstructed(load_model(KNOWN[kind].model_class, folder)[0].eval(), args.n)
                low, high = rate.interval
                print(f"{source}, {kind}: {rate.share:.1%} ({low:.1%} to {high:.1%}) read right of {rate.n} held-out")


def bins_hit(rival: System, n: int) -> str:
    """Count the bins of place and background that pictures of "a red circle" hit."""
    noise = torch.Generator().manual_seed(0)
    drawn = torch.cat([rival(["a red circle"] * 50, generator=noise).tensor for _ in range(n // 50)])
    lone = [scene for scene in oracle.read(drawn) if scene is not None and len(scene.objects) == 1]
    right = [s for s in lone if (s.objects[0].color, s.objects[0].shape) == ("red", "circle")]
    return f"{len(right)} right of {len(drawn)}, in {len({(s.place, s.background) for s in right})} of 27 bins"


@torch.no_grad()
def likeliest_tokens(rival: System, kind: str, n: int) -> float:
    """Give the share of picture tokens that are the likeliest, given a caption of all facts and the tokens before."""
    objects, split = kind.split(", ")
    scenes = draw_scenes(n, float(objects == "two objects"), "tokens", split)
    captions = [write(told(scene)) for scene in scenes]
    batch = Batch(render(scenes), *rival.tokenizer.encode(captions), captions, scenes)
    return token_exactness(rival.models["dalle1"], rival.models["dvae"], batch)


@torch.no_grad()
def reconstructed(model: torch.nn.Module, n: int) -> Rate:
    """Count the held-out scenes whose reconstructions are read right."""
    scenes = draw_scenes(n, 0.0, "reconstructions", "held out")
    code = model.encode(render(scenes))
    drawn = model.decode(code[0] if isinstance(code, tuple) else code)  # the mean, or the likeliest codes
    return Rate(sum(shows([told(scene) for scene in scenes], drawn.clamp(-1, 1))), n)


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    sub = commands.add_parser("train", help="train one rival and measure it")
    sub.set_defaults(run=train_one)
    sub.add_argument("runs", type=Path)
    sub.add_argument("family", choices=(*UNCLIP, *FAMILIES))
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--recipe", default="quick", choices=RECIPES, help="of the family (default %(default)s)")
    sub.add_argument("-n", type=int, default=200, help="prompts of each kind (default %(default)s)")
    sub = commands.add_parser("time", help="measure a step of every stage")
    sub.set_defaults(run=time_all)
    sub.add_argument("runs", type=Path)
    sub.add_argument("--steps", type=int, default=12)
    sub = commands.add_parser("collect", help="write all cards into one file")
    sub.set_defaults(run=collect)
    sub.add_argument("runs", type=Path)
    sub.add_argument("--out", type=Path, default=Path("data/reference/rivals.json"))
    sub = commands.add_parser("table", help="print the cards of a recipe as a table")
    sub.set_defaults(run=table)
    sub.add_argument("--recipe", default="quick", choices=RECIPES, help="default %(default)s")
    sub.add_argument("--cards", type=Path, default=Path("data/reference/rivals.json"))
    sub = commands.add_parser("own", help="print what no card holds: bins, reconstructions, tokens")
    sub.set_defaults(run=print_own)
    sub.add_argument("sources", nargs="+", help="shipped rivals, or folders of runs")
    sub.add_argument("-n", type=int, default=500, help="pictures, a multiple of 50 (default %(default)s)")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
