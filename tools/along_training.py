"""Measure a decoder all along its quick training: what it can draw of which condition, seen and held out.

    python tools/along_training.py run runs/along --seed 0                  # ten minutes of one core
    python tools/along_training.py run runs/along --seed 0 --embedding z_text
    python tools/along_training.py collect runs/along --out data/reference/along_training.json

CLIP and prior are the shipped ones, so that the decoder alone changes. Notebook 13 draws the curves. Every figure of a
curve is hits out of n; one row a condition and split, one column a step.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from minidalle import MiniDalle
from minidalle.checkpoint import find_folder
from minidalle.data.batches import Batch
from minidalle.device import pick_threads, threads
from minidalle.evaluation.ablations import abilities, arithmetic, draw, one_object
from minidalle.evaluation.gallery import picture_seeds
from minidalle.training.recipes import TINY
from minidalle.training.run import prepare
from minidalle.training.stages import collection_of, step_generator
from minidalle.training.trainer import Trainer
from minidalle.world import oracle
from minidalle.world.render import render

N = 96  # scenes of each split
EVERY = 40  # steps between measurements
LOSS_EVERY = 10
SPLITS = ("seen", "held out")


class Asked:
    """Scenes of one split, and the conditions that ask a decoder for them."""

    def __init__(self, pipe: MiniDalle, split: str, n: int):
        self.pipe, self.split = pipe, split
        self.scenes, self.captions = one_object(n, split, f"along training/{split}")
        self.images = render(self.scenes, pipe.image_size)
        self.seeds = picture_seeds(n, f"along training/{split}")
        self.text, self.z_image = pipe.encode(self.captions), pipe.clip.encode_image(self.images).detach()
        self.z_prior = pipe.sample_prior(self.text, generator=self.noise())
        self.z_made = arithmetic(pipe, self.scenes)

    def noise(self) -> list[torch.Generator]:
        """Give each picture the same noise whenever it is drawn."""
        return [torch.Generator().manual_seed(seed) for seed in self.seeds]

    def conditions(self) -> dict[str, tuple]:
        """Name what the decoder receives: caption, embedding."""
        return {
            "z_image": (None, self.z_image),
            "caption": (self.text, None),
            "arithmetic": (None, self.z_made),
            "prior": (self.text, self.z_prior),
            "z_text": (self.text, self.text.z_text),
        }

    def measure(self) -> dict[str, dict[str, int]]:
        """Count, for each condition, how often each attribute is drawn as asked."""
        found = {}
        for name, (text, z_image) in self.conditions().items():
            images = draw(self.pipe, text, z_image, self.noise(), guidance_scale=1.0)
            rates = abilities(self.scenes, oracle.read(images))
            found[name] = {attribute: rate.hits for attribute, rate in rates.items()}
        return found

    def batch(self) -> Batch:
        """Put the scenes together as a batch of training."""
        return Batch(self.images, *self.pipe.tokenizer.encode(self.captions), self.captions, self.scenes)


def run(args: argparse.Namespace) -> None:
    """Train one decoder and keep what was measured on the way."""
    pipe = MiniDalle.from_pretrained("tiny", "cpu")
    how = TINY.recipes["quick"].stages["decoder"]
    how = replace(how, steps=args.steps or how.steps, loss=replace(how.loss, embedding=args.embedding))
    recipe = replace(TINY.recipes["quick"], stages=TINY.recipes["quick"].stages | {"decoder": how})
    preset, cpu = replace(TINY, recipes={"quick": recipe}), torch.device("cpu")
    collection = collection_of(preset, recipe)
    model, loss_at = prepare(preset, "quick", "decoder", args.seed, cpu, find_folder("tiny"), collection)
    trainer, asked = Trainer(model.train(), how), [Asked(pipe, split, args.n) for split in SPLITS]
    kept: dict = {"seed": args.seed, "embedding": args.embedding, "n": args.n, "steps": [], "hits": {}, "loss": {}}
    for step in range(how.steps + 1):
        pipe.decoder = trainer.averaged.eval()
        if step % LOSS_EVERY == 0:
            measure_losses(kept["loss"], loss_at, trainer.averaged, asked, step)
        if step % EVERY == 0:
            measure_abilities(kept, asked, step)
        if step < how.steps:
            trainer.step(loss_at, step)
    args.runs.mkdir(parents=True, exist_ok=True)
    path = args.runs / f"{args.embedding}-{args.seed}.json"
    path.write_text(json.dumps(kept) + "\n", encoding="utf-8")
    print(f"Wrote {path}.")


@torch.no_grad()
def measure_losses(kept: dict, loss_at, model: torch.nn.Module, asked: list[Asked], step: int) -> None:
    """Measure the loss of training on fixed scenes of each split, with fixed timesteps and noise."""
    kept.setdefault("steps", []).append(step)
    for one in asked:
        loss = loss_at.of(model, one.batch(), step_generator(7, 0), step)
        kept.setdefault(one.split, []).append(round(float(loss), 5))


def measure_abilities(kept: dict, asked: list[Asked], step: int) -> None:
    """Count what is drawn as asked, of each split and condition."""
    kept["steps"].append(step)
    for one in asked:
        found = one.measure()
        for condition, hits in found.items():
            rows = kept["hits"].setdefault(one.split, {}).setdefault(condition, {})
            for attribute, number in hits.items():
                rows.setdefault(attribute, []).append(number)
        exact = ", ".join(f"{condition} {hits['exact']}" for condition, hits in found.items())
        print(f"step {step}, {one.split}, exact of {len(one.scenes)}: {exact}", flush=True)


def collect(args: argparse.Namespace) -> None:
    """Write all runs into one file, a line each."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(args.runs.glob("*.json"))]
    args.out.write_text("[\n" + ",\n".join(map(json.dumps, runs)) + "\n]\n", encoding="utf-8")
    print(f"Wrote {args.out}: {len(runs)} runs.")


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    sub = commands.add_parser("run", help="train one decoder and measure it on the way")
    sub.set_defaults(run=run)
    sub.add_argument("runs", type=Path)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--embedding", choices=("z_image", "z_text"), default="z_image", help="of its training")
    sub.add_argument("--steps", type=int, help="of the training; those of quick when not given")
    sub.add_argument("-n", type=int, default=N, help="scenes of each split (default %(default)s)")
    sub = commands.add_parser("collect", help="write all runs into one file")
    sub.set_defaults(run=collect)
    sub.add_argument("runs", type=Path)
    sub.add_argument("--out", type=Path, default=Path("data/reference/along_training.json"))
    args = parser.parse_args()
    with threads(pick_threads()):
        args.run(args)


if __name__ == "__main__":
    main()
