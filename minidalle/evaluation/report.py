"""The report card: how well a stack does what it is told, read off its pictures by the oracle.

The oracle sees pictures only. Prompts are drawn from the world with seeds of their own; held-out ones ask for
combinations that no training picture shows.
"""

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from minidalle.evaluation.metrics import Rate, frechet_distance, precision_recall
from minidalle.pipeline import MiniDalle
from minidalle.world import oracle
from minidalle.world.captions import Description, describe, matches, write
from minidalle.world.render import render
from minidalle.world.scenes import BACKGROUNDS, PLACES, SIZES, Scene, draw_scene

LEVELS = {"one object": 0.0, "two objects": 1.0}  # share of scenes with two objects
CHUNK = 128  # prompts drawn at a time, which bounds the memory
MIN_PROMPTS = 4  # of each kind: precision and recall look at each picture's three neighbours
DIVERSITY_PROMPT = "a red circle"
ATTRIBUTES = ("count", "shape", "color", "size", "place", "relation", "background")
Painter = Callable[[list[str], int], torch.Tensor]  # captions and a seed to images (B, 3, H, W) in [-1, 1]


@dataclass(frozen=True)
class Asked:
    """A prompt, and what it says."""

    caption: str
    description: Description
    scene: Scene  # the one that the caption was drawn from; a picture need not equal it


def draw_prompts(n: int, two_objects: float, split: str, seed: str) -> list[Asked]:
    """Draw prompts, such that the words of a held-out one ask for something held out."""
    rng, asked = random.Random(seed), []
    while len(asked) < n:
        scene = draw_scene(rng, two_objects, split)
        description = describe(scene, rng)
        if description.split == split:
            asked.append(Asked(write(description, rng), description, scene))
    return asked


def has_two(pipe: MiniDalle) -> bool:
    """Tell whether a system was trained on scenes of two objects."""
    return pipe.world.get("two_objects", 1) > 0


def pipeline_painter(pipe: MiniDalle, **options) -> Painter:
    """Make a painter of a pipeline; the options are those of its call."""

    def paint(captions: list[str], seed: int) -> torch.Tensor:
        return pipe(captions, generator=torch.Generator().manual_seed(seed), **options).tensor

    return paint


def paint_all(paint: Painter, captions: list[str], seed: int = 0) -> torch.Tensor:
    """Paint any number of captions, a chunk at a time; every chunk has a seed of its own."""
    starts = range(0, len(captions), CHUNK)
    return torch.cat([paint(captions[start : start + CHUNK], seed + start) for start in starts])


def score(asked: list[Asked], read: list[Scene | None]) -> dict[str, Rate]:
    """Count exact matches, matches of each attribute that a caption states, and readable pictures."""
    found = [matches(prompt.description, scene) for prompt, scene in zip(asked, read, strict=True)]
    rates = {"exact": Rate(sum(all(f.values()) for f in found), len(found))}
    for attribute in ATTRIBUTES:
        said = [f[attribute] for f in found if attribute in f]
        if said:
            rates[attribute] = Rate(sum(said), len(said))
    rates["readable"] = Rate(sum(scene is not None for scene in read), len(read))
    return rates


def swapped_colors(asked: list[Asked], read: list[Scene | None]) -> Rate:
    """Count pictures of two differently coloured objects that show exactly the two colours the wrong way round."""
    swapped, total = 0, 0
    for prompt, scene in zip(asked, read, strict=True):
        description = prompt.description
        colors = [item.color for item in description.objects]
        if description.relation is None or None in colors or len(set(colors)) < 2:
            continue
        total += 1
        if scene is not None and len(scene.objects) == 2:
            seen = [item.color for item in scene.objects]
            swapped += seen == (colors if description.relation in ("below", "right of") else colors[::-1])
    return Rate(swapped, total)


def diversity(read: list[Scene | None]) -> dict[str, dict[str, float]]:
    """Compare what a prompt left open with the world: for each option its share, as a multiple of the world's."""
    scenes = [scene for scene in read if scene is not None and len(scene.objects) == 1]
    options = {
        "place": ([scene.place for scene in scenes], PLACES),
        "size": ([scene.objects[0].size for scene in scenes], SIZES),
        "background": ([scene.background for scene in scenes], BACKGROUNDS),
    }
    return {
        name: {o: round(seen.count(o) * len(known) / max(1, len(seen)), 3) for o in known}
        for name, (seen, known) in options.items()
    }


@torch.no_grad()
def retrieval(pipe: MiniDalle, n: int, seed: str) -> dict:
    """Ask CLIP to find each held-out picture's full caption among n, and each caption's picture.

    Scenes of the same facts occur more than once, so whatever fits is right.
    """
    rng = random.Random(seed)
    scenes = [draw_scene(rng, 0.5 * has_two(pipe), split="held out") for _ in range(n)]
    said = [describe(scene, rng, fullness=1.0) for scene in scenes]
    z_text = pipe.encode([write(description, rng) for description in said]).z_text
    z_image = pipe.clip.encode_image(render(scenes, pipe.clip.config.image_size).to(pipe.device))
    similarity = z_image @ z_text.T
    caption_of, picture_of = (similarity.argmax(dim).tolist() for dim in (1, 0))
    fits = [
        [all(matches(said[j], scenes[i]).values()) for i, j in found]
        for found in (enumerate(caption_of), zip(picture_of, range(n), strict=True))
    ]
    hits = [sum(found) for found in fits]
    return {"image to text": Rate(hits[0], n), "text to image": Rate(hits[1], n), "chance": 1 / n}


@torch.no_grad()
def fidelity(pipe: MiniDalle, made: torch.Tensor, asked: list[Asked]) -> dict:
    """Compare painted pictures with real ones; as the floor, real ones of the same prompts with those.

    The real ones are of no prompt: beside the scenes that the prompts were drawn from, painted pictures would have
    more in common with them than real ones of their own.
    """
    size, rng = pipe.clip.config.image_size, random.Random("report/real")
    real = render([draw_scene(rng, len(prompt.scene.objects) - 1) for prompt in asked], size)
    other = render([prompt.scene for prompt in asked], size)
    made, real, other = (pipe.clip.encode_image(images.to(pipe.device)).cpu() for images in (made, real, other))
    precision, recall = precision_recall(real, made)
    floor_precision, floor_recall = precision_recall(real, other)
    return {
        "frechet": round(frechet_distance(real, made), 5),
        "frechet floor": round(frechet_distance(real, other), 5),
        "precision": round(precision, 3),
        "recall": round(recall, 3),
        "precision floor": round(floor_precision, 3),
        "recall floor": round(floor_recall, 3),
    }


def report_card(pipe: MiniDalle, n: int = 500, seed: int = 0, **options) -> dict:
    """Measure a stack.

    Args:
        pipe: what to measure.
        n: prompts of each kind (one object, two where the stack was trained on them; seen, held out).
        seed: of the prompts and of the noise.
        options: of the pipeline's call, such as guidance_scale.

    Returns: rates, distances and costs; to_json and to_text write them down.
    Raises: ValueError: when n is too small for the distances.
    """
    if n < MIN_PROMPTS:
        raise ValueError(f"{n} prompts of each kind were asked for; the distances need {MIN_PROMPTS} or more.")
    paint = pipeline_painter(pipe, **options)
    card: dict = {"n": n, "seed": seed, "following": {}}
    seen_prompts, seen_images = [], []
    started, painted = time.perf_counter(), 0
    for level, share in LEVELS.items():
        if share and not has_two(pipe):
            continue
        for split in ("seen", "held out"):
            kind = f"{level}, {split}"
            asked = draw_prompts(n, share, split, f"report/{kind}/{seed}")
            images = paint_all(paint, [prompt.caption for prompt in asked], seed)
            read = oracle.read(images)
            card["following"][kind] = score(asked, read)
            painted += n
            if level == "two objects":
                card["following"][kind]["swapped colors"] = swapped_colors(asked, read)
            if split == "seen":
                seen_prompts += asked
                seen_images.append(images)
    seconds = (time.perf_counter() - started) / painted
    same = paint_all(paint, [DIVERSITY_PROMPT] * n, seed + 1)
    card["diversity"] = {"prompt": DIVERSITY_PROMPT, "n": n, **diversity(oracle.read(same))}
    card["fidelity"] = fidelity(pipe, torch.cat(seen_images), seen_prompts)
    card["retrieval"] = retrieval(pipe, 256, f"report/retrieval/{seed}")
    parameters = {
        name: sum(p.numel() for p in getattr(pipe, name).parameters()) for name in ("clip", "prior", "decoder")
    }
    card["cost"] = {"parameters": parameters, "seconds a picture": round(seconds, 4)}
    return card


def to_json(card: dict) -> str:
    """Write a report card as JSON, every rate with its interval and n."""
    return json.dumps(card, indent=1, default=Rate.to_json)


def to_text(card: dict) -> str:
    """Write a report card for people."""
    kinds = list(card["following"])
    lines = [f"Prompt following, share of {card['n']} prompts each (95 % interval of exact match), read by the oracle"]
    lines.append(f"{'':16}" + "".join(f"{kind:>24}" for kind in kinds))
    for name in ("exact", *ATTRIBUTES, "readable", "swapped colors"):
        if not any(name in rates for rates in card["following"].values()):
            continue
        cells = []
        for kind in kinds:
            rate = card["following"][kind].get(name)
            text = f"{100 * rate.share:.1f} %" if rate and rate.n else "-"
            if name == "exact":
                text += f" ({100 * rate.interval[0]:.1f}-{100 * rate.interval[1]:.1f})"
            cells.append(f"{text:>24}")
        lines.append(f"{name:16}" + "".join(cells))
    varied = [card["diversity"][name].values() for name in ("place", "size", "background")]
    spans = [f"{min(v):.2f} to {max(v):.2f}" for v in varied]
    fid, found = card["fidelity"], card["retrieval"]
    lines += [
        f'Diversity of "{card["diversity"]["prompt"]}", shares as multiples of the world\'s: '
        f"places {spans[0]}, sizes {spans[1]}, backgrounds {spans[2]}",
        f"Fidelity: Fréchet distance {fid['frechet']:.4f} (real against real {fid['frechet floor']:.4f}), "
        f"precision {fid['precision']:.2f} ({fid['precision floor']:.2f}), "
        f"recall {fid['recall']:.2f} ({fid['recall floor']:.2f})",
        f"CLIP retrieval@1, held out: image to text {100 * found['image to text'].share:.1f} %, "
        f"text to image {100 * found['text to image'].share:.1f} % (chance {100 * found['chance']:.1f} %)",
        f"Cost: {sum(card['cost']['parameters'].values()) / 1e6:.1f} M parameters, "
        f"{card['cost']['seconds a picture']:.3f} s a picture in batches of {CHUNK}",
    ]
    return "\n".join(lines)
