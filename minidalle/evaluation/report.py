"""The report card: how well a model follows prompts, measured on its pictures alone.

A card is made of a painter (captions and seeds to images), prompts, and a reader that says what a picture shows.
Prompts are drawn from the world with seeds of their own. Held-out ones ask for combinations that no training picture
shows; those of the test split are asked on request only, so that no choice is ever made by them.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from minidalle.checkpoint import read_header
from minidalle.evaluation.confusion import confusion
from minidalle.evaluation.features import features_of
from minidalle.evaluation.gallery import Answer, Gallery, Painter, Understand, picture_seeds
from minidalle.evaluation.gallery import paint_all as paint_all
from minidalle.evaluation.metrics import Rate, chance_band, frechet_distance, precision_recall
from minidalle.evaluation.paraphrase import paraphrase
from minidalle.evaluation.readers import SCENES, Reader
from minidalle.evaluation.tables import to_json as to_json
from minidalle.evaluation.tables import to_text as to_text
from minidalle.pipeline import MiniDalle, Output
from minidalle.tokenizer import Tokenizer
from minidalle.world.captions import Description, describe, matches, write
from minidalle.world.render import render
from minidalle.world.scenes import BACKGROUNDS, PLACES, SIZES, Scene, draw_scene

LEVELS = {"one object": 0.0, "two objects": 1.0}  # share of scenes with two objects
MIN_PROMPTS = 4  # of each kind: precision and recall look at each picture's three neighbours
RETRIEVED = 256  # scenes among which CLIP finds each
DIVERSITY_PROMPT = "a red circle"
MAX_FACTS = 7


@dataclass(frozen=True)
class Asked:
    """A prompt, and what it says."""

    caption: str
    description: Description
    scene: Scene  # the one that the caption was drawn from; a picture need not equal it


def draw_prompts(n: int, two_objects: float, split: str, seed: str) -> list[Asked]:
    """Draw prompts whose words themselves ask for something of a split ("seen", "held out" or "test")."""
    rng, asked = random.Random(seed), []
    while len(asked) < n:
        scene = draw_scene(rng, two_objects, split)
        description = describe(scene, rng)
        if description.split == split:
            asked.append(Asked(write(description, rng), description, scene))
    return asked


class System(Protocol):
    """What draws captions: MiniDalle, or a rival."""

    world: dict  # what its models say of the world they were trained on
    tokenizer: Tokenizer
    image_size: int  # of its pictures, in pixels
    models: dict[str, nn.Module]  # what a picture takes, by kind
    networks: dict[str, nn.Module]  # what is called to draw, by name

    def captions(self, prompts: Sequence[str], rephrase: bool = True) -> list[str]:
        """Bring prompts into the words that the models know."""

    def __call__(self, prompt: str | Sequence[str], **options) -> Output:
        """Draw pictures of prompts."""


def has_two(pipe: System) -> bool:
    """Tell whether a system was trained on scenes of two objects."""
    return pipe.world.get("two_objects", 1) > 0


def pipeline_painter(pipe: System, **options) -> Painter:
    """Make a painter of a pipeline; the options are those of its call."""

    def paint(captions: list[str], seeds: list[int]) -> torch.Tensor:
        return pipe(captions, generator=[torch.Generator().manual_seed(seed) for seed in seeds], **options).tensor

    return paint


def understood_by(pipe: System, rephrase: bool = True) -> Understand:
    """Make the function from a prompt to the words that a pipeline encodes; it refuses what the pipeline refuses."""

    def understand(prompt: str) -> str:
        (caption,) = pipe.captions([prompt], rephrase)
        pipe.tokenizer.encode([caption])
        return caption

    return understand


def score(asked: list[Asked], read: list, reader: Reader = SCENES) -> dict[str, Rate]:
    """Count exact matches, matches of each attribute that a prompt states, and readable pictures."""
    found = [reader.check(prompt.description, reading) for prompt, reading in zip(asked, read, strict=True)]
    rates = {"exact": Rate(sum(all(f.values()) for f in found), len(found))}
    for attribute in reader.attributes:
        said = [f[attribute] for f in found if attribute in f]
        if said:
            rates[attribute] = Rate(sum(said), len(said))
    rates["readable"] = Rate(sum(reading is not None for reading in read), len(read))
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


def by_facts(asked: list[Asked], read: list, reader: Reader = SCENES) -> dict[str, Rate]:
    """Count exact matches by the number of facts that a prompt states, 1 to MAX_FACTS."""
    groups: dict[int, list[bool]] = {number: [] for number in range(1, MAX_FACTS + 1)}
    for prompt, reading in zip(asked, read, strict=True):
        if prompt.description.num_facts in groups:
            exact = all(reader.check(prompt.description, reading).values())
            groups[prompt.description.num_facts].append(exact)
    return {str(number): Rate(sum(exact), len(exact)) for number, exact in groups.items()}


def by_wording(
    gallery: Gallery, asked: list[Asked], seeds: list[int], rephrase: Understand, as_typed: Understand, seed: str
) -> dict[str, dict[str, Rate]]:
    """Ask for the same descriptions, with the same noise, in several wordings.

    Args:
        gallery: of the model.
        asked: what is asked for.
        seeds: of the pictures.
        rephrase: brings a prompt into words that the model knows.
        as_typed: takes a prompt as it is, or refuses it for a word that the model does not know.
        seed: of the paraphrases.

    Returns: for each wording "exact", where a refused prompt is a miss in the rephrased ones and left out in those as
        typed; "refused"; and of the prompts that were taken, those "lost" that the canonical wording follows, and
        those "gained" that it does not.
    """
    rng, reader = random.Random(seed), gallery.reader
    canonical = [write(prompt.description) for prompt in asked]
    paraphrased = [paraphrase(prompt.description, rng) for prompt in asked]
    wordings = {
        "canonical": (canonical, rephrase, False),
        "paraphrased": (paraphrased, rephrase, False),
        "training's, as typed": ([prompt.caption for prompt in asked], as_typed, True),
        "paraphrased, as typed": (paraphrased, as_typed, True),
    }
    rows, first = {}, []
    for name, (prompts, understand, only_taken) in wordings.items():
        shown = gallery.ask(prompts, seeds, understand)
        exact = [
            answer and all(reader.check(prompt.description, answer.reading).values())
            for prompt, answer in zip(asked, shown, strict=True)
        ]  # None where it was refused
        first = first or exact
        pairs = [(bool(a), b) for a, b in zip(first, exact, strict=True) if b is not None]
        rows[name] = {
            "exact": Rate(sum(b for _, b in pairs), len(pairs) if only_taken else len(asked)),
            "refused": Rate(exact.count(None), len(asked)),
            "lost": Rate(sum(a and not b for a, b in pairs), len(pairs)),
            "gained": Rate(sum(b and not a for a, b in pairs), len(pairs)),
        }
    return rows


def diversity(read: list[Scene | None]) -> dict[str, dict]:
    """Compare what a prompt left open with the world: for each option its share, as a multiple of the world's.

    Returns: for place, size and background the multiples, and under "chance" the two that a fair painter's least and
        most frequent option would rarely leave with as many pictures (see chance_band).
    """
    scenes = [scene for scene in read if scene is not None and len(scene.objects) == 1]
    options = {
        "place": ([scene.place for scene in scenes], PLACES),
        "size": ([scene.objects[0].size for scene in scenes], SIZES),
        "background": ([scene.background for scene in scenes], BACKGROUNDS),
    }
    found: dict[str, dict] = {
        name: {o: round(seen.count(o) * len(known) / max(1, len(seen)), 3) for o in known}
        for name, (seen, known) in options.items()
    }
    bands = {name: chance_band(len(seen), len(known)) for name, (seen, known) in options.items()}
    found["chance"] = {name: [round(end, 3) if scenes else None for end in band] for name, band in bands.items()}
    return found


@torch.no_grad()
def retrieval(pipe: MiniDalle, n: int, seed: str, split: str = "held out") -> dict:
    """Ask CLIP to find each picture's full caption among n of a split, and each caption's picture.

    Scenes of the same facts occur more than once, so whatever fits is right.
    """
    rng = random.Random(seed)
    scenes = [draw_scene(rng, 0.5 * has_two(pipe), split) for _ in range(n)]
    said = [describe(scene, rng, fullness=1.0) for scene in scenes]
    z_text = pipe.encode(pipe.captions([write(description, rng) for description in said])).z_text
    z_image = pipe.clip.encode_image(render(scenes, pipe.clip.config.image_size).to(pipe.device))
    similarity = z_image @ z_text.T  # a row for each picture, a column for each caption
    caption_of, picture_of = (similarity.argmax(dim).tolist() for dim in (1, 0))
    captions_found = sum(all(matches(said[j], scenes[i]).values()) for i, j in enumerate(caption_of))
    pictures_found = sum(all(matches(said[j], scenes[i]).values()) for j, i in enumerate(picture_of))
    return {"image to text": Rate(captions_found, n), "text to image": Rate(pictures_found, n), "chance": 1 / n}


def fidelity(made: list[torch.Tensor], asked: list[Asked], size: int) -> dict[str, float] | None:
    """Compare painted pictures with real ones; as the floor, real ones of the same prompts with those.

    The real ones are of no prompt: beside the scenes that the prompts were drawn from, painted pictures would have
    more in common with them than real ones of their own.

    Args:
        made: features (D,) of the painted pictures; there may be fewer of them than prompts.
        asked: the prompts.
        size: of the pictures.

    Returns: distances and shares; None when there are too few pictures.
    """
    if len(made) < MIN_PROMPTS:
        return None
    real, other = real_features(asked, size)
    found, floor = distances(real, torch.stack(made)), distances(real, other)
    return found | {f"{name} floor": value for name, value in floor.items()}


def real_features(asked: list[Asked], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Describe real pictures: of no prompt, and those of the prompts; (N, D) each."""
    rng = random.Random("report/real")
    real = features_of(render([draw_scene(rng, len(prompt.scene.objects) - 1) for prompt in asked], size))
    return real, features_of(render([prompt.scene for prompt in asked], size))


def distances(real: torch.Tensor, made: torch.Tensor) -> dict[str, float]:
    """Compare features (N, D) of real pictures with those (M, D) of others."""
    precision, recall = precision_recall(real, made)
    frechet = round(frechet_distance(real, made), 5)
    return {"frechet": frechet, "precision": round(precision, 3), "recall": round(recall, 3)}


def check_number(n: int) -> None:
    """Raise ValueError when so many prompts of each kind are too few for the distances."""
    if n < MIN_PROMPTS:
        raise ValueError(f"{n} prompts of each kind were asked for; the distances need {MIN_PROMPTS} or more.")


def measure(
    paint: Painter,
    n: int = 500,
    seed: int = 0,
    two_objects: bool = True,
    test: bool = False,
    rephrase: Understand = str,
    as_typed: Understand | None = None,
    name: str = "",
) -> dict:
    """Measure any painter of drawn scenes: a system of this package or a rival.

    Args:
        paint: takes what rephrase gives.
        n: prompts of each kind (one object, two; seen, held out).
        seed: of the prompts and of the noise.
        two_objects: whether to ask for two objects.
        test: whether to ask the test split, by prompts of another seed, in the place of the held-out one.
        rephrase: brings a prompt into words that the painter knows, or refuses it.
        as_typed: takes a prompt as it is, or refuses it; None: as rephrase.
        name: of the model, with which progress is told on stderr; empty: it is not.

    Returns: what of a card can be measured on pictures alone.
    Raises: ValueError: when n is too small for the distances.
    """
    check_number(n)
    hidden, prefix = ("test", "report/test") if test else ("held out", "report")
    card: dict = {"n": n, "seed": seed, "split": hidden, "following": {}, "confusion": {}, "wording": {}}
    gallery, all_seen = Gallery(paint, name=name), ([], [])
    ways = (rephrase, as_typed or rephrase)
    for level, share in LEVELS.items() if two_objects else [("one object", 0.0)]:
        for split in ("seen", hidden):
            kind = f"{level}, {split}"
            asked = draw_prompts(n, share, split, f"{prefix}/{kind}/{seed}")
            seeds = picture_seeds(n, f"{prefix}/{kind}/{seed}")
            answers = gallery.ask([prompt.caption for prompt in asked], seeds, rephrase)
            card["following"][kind] = score(asked, readings(answers))
            card["confusion"][kind] = confusion([prompt.description for prompt in asked], readings(answers))
            if share:
                card["following"][kind]["swapped colors"] = swapped_colors(asked, readings(answers))
            if split == "seen":
                all_seen[0].extend(asked)
                all_seen[1].extend(answers)
                words = f"{prefix}/wording/{level}/{seed}"
                card["wording"][level] = by_wording(gallery, asked, seeds, *ways, words)
    card["facts"] = by_facts(all_seen[0], readings(all_seen[1]))
    same, seeds = [DIVERSITY_PROMPT] * n, picture_seeds(n, f"{prefix}/diversity/{seed}")
    card["diversity"] = {"prompt": DIVERSITY_PROMPT, "n": n, **diversity(readings(gallery.ask(same, seeds, rephrase)))}
    card["fidelity"] = fidelity([answer.features for answer in all_seen[1] if answer], all_seen[0], gallery.image_size)
    card["cost"] = {"seconds a picture": round(gallery.seconds / max(1, len(gallery.kept)), 4)}
    return card


def readings(answers: list[Answer | None]) -> list:
    """Take the readings; None where a prompt was refused."""
    return [answer and answer.reading for answer in answers]


def count_calls(pipe: System, **options) -> dict[str, int]:
    """Count how often each network is called for one picture."""
    networks = pipe.networks
    calls = dict.fromkeys(networks, 0)

    def count(name: str) -> Callable:
        def hook(*_) -> None:
            calls[name] += 1

        return hook

    hooks = [network.register_forward_hook(count(name)) for name, network in networks.items()]
    try:
        pipe(DIVERSITY_PROMPT, generator=torch.Generator().manual_seed(0), **options)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def training_seconds(folder: Path, kinds: Iterable[str]) -> dict[str, float]:
    """Read how long the models of a folder were trained, where their headers say so."""
    headers = {kind: read_header(folder / f"{kind}.safetensors", kind) for kind in kinds}
    return {kind: header["seconds"] for kind, header in headers.items() if "seconds" in header}


def report_card(
    pipe: System,
    n: int = 500,
    seed: int = 0,
    test: bool = False,
    folder: Path | None = None,
    name: str = "",
    **options,
) -> dict:
    """Measure a system.

    Args:
        pipe: what to measure.
        n, seed, test, name: see measure.
        folder: that the system was loaded from, whose headers tell the cost of its training; None: not told.
        options: of the pipeline's call, such as guidance_scale.

    Returns: rates, distances and costs; to_json and to_text write them down.
    Raises: ValueError: when n is too small for the distances.
    """
    paint = pipeline_painter(pipe, rephrase=False, **options)
    words = {"rephrase": understood_by(pipe), "as_typed": understood_by(pipe, rephrase=False)}
    card = measure(paint, n, seed, has_two(pipe), test, name=name, **words)
    where = f"report/test/retrieval/{seed}" if test else f"report/retrieval/{seed}"
    if isinstance(pipe, MiniDalle):
        card["retrieval"] = retrieval(pipe, RETRIEVED, where, card["split"])
    card["cost"] |= {
        "parameters": {part: sum(p.numel() for p in model.parameters()) for part, model in pipe.models.items()},
        "network calls a picture": count_calls(pipe, **options),
    }
    if folder:
        card["cost"]["training seconds"] = training_seconds(folder, pipe.models)
    return card
