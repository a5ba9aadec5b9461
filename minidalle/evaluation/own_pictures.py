"""A system and pictures of your own: how long a training takes, whether it follows text, and what it copies.

No oracle knows what such pictures show. CLIP itself has to judge, so its own rate on held-out pictures comes first: it
bounds what the others can reach. The rates stand in the order of the system; the first that falls says what to mend.
"""

import copy
import time
from collections.abc import Sequence

import torch

from minidalle.checks import whole_number
from minidalle.data.batches import Batch, Collection
from minidalle.data.pictures import Pictures
from minidalle.device import autocast
from minidalle.evaluation.metrics import Rate
from minidalle.layers import TextEncoding
from minidalle.pipeline import MiniDalle
from minidalle.training.recipes import Preset, fitted
from minidalle.training.stages import STACK, STAGES, StageLoss, frozen_parts, stage_source
from minidalle.training.trainer import Trainer

TIMED_STEPS = 3  # after one that is not counted
CHUNK = 64  # pictures that are drawn together
ROWS = 4096  # training pictures that are compared at once
CLOSE = 0.05  # share of real new pictures that lie as near to a training picture as what counts as a copy
MIN_HELD_OUT = 2
ADVICE = {
    "CLIP": "CLIP does not match captions and pictures that it has not seen: more pictures, captions that share "
    "words, or more steps of clip",
    "prior": "the prior does not find a caption's z_image: more steps of prior, or prior_guidance_scale 2 to 3",
    "decoder": "the decoder does not draw the z_image that it is given: more steps of decoder, or guidance_scale 2",
}


def minutes_to_train(
    preset: Preset, recipe_name: str, collection: Collection, device: torch.device
) -> dict[str, float]:
    """Estimate the minutes of each stage by a few of its steps.

    Args:
        preset, recipe_name: of the training.
        collection: what it would learn from.
        device: where it would compute.

    Raises: ValueError: when there is no such recipe, or too few pictures.
    """
    if recipe_name not in preset.recipes:
        known = ", ".join(preset.recipes)
        raise ValueError(f'The preset {preset.name} has no recipe "{recipe_name}"; choose one of {known}.')
    preset, recipe, minutes = fitted(preset, collection.tokenizer), preset.recipes[recipe_name], {}
    models = {stage: STAGES[stage].model_class(preset.models[stage]).to(device) for stage in STACK}
    clip = copy.deepcopy(models["clip"]).requires_grad_(False)
    for stage, model in models.items():
        how = recipe.stages[stage]
        frozen = frozen_parts(stage, preset, {"clip": clip} if STAGES[stage].needs else {}, device)
        loss = StageLoss(stage, stage_source(stage, preset, recipe, 0, collection), how, frozen, device)
        trainer = Trainer(model, how)
        for step in range(1 + TIMED_STEPS):
            if step == 1:
                started = time.perf_counter()
            trainer.step(loss, step)
        float(trainer.loss_sum)  # a device has done its work once a number is fetched from it
        minutes[stage] = (time.perf_counter() - started) / TIMED_STEPS * how.steps / 60
    return minutes


def found(a: torch.Tensor, b: torch.Tensor, captions: Sequence[str]) -> Rate:
    """Count how often the nearest row of b belongs to the caption of a row of a.

    Args:
        a, b: (N, D), unit norm; row n of both is of captions[n].
        captions: of which several may be the same; each of these is right.
    """
    nearest = (a.float() @ b.float().T).argmax(1).tolist()
    said = [caption.lower() for caption in captions]
    return Rate(sum(said[k] == said[i] for i, k in enumerate(nearest)), len(said))


def nearest_training(images: torch.Tensor, rows, chosen: Sequence[int]) -> torch.Tensor:
    """Measure how far each picture is from the nearest training picture, itself or its mirror image.

    Args:
        images: (B, 3, S, S) in [-1, 1].
        rows: pixels of a collection, (N, 3, S, S), uint8.
        chosen: which of the rows are compared.

    Returns: (B,), the root of the mean squared difference.
    """
    both = torch.cat([images, images.flip(3)]).flatten(1)
    best = torch.full((len(both),), torch.inf)
    for first in range(0, len(chosen), ROWS):
        others = torch.from_numpy(rows[list(chosen[first : first + ROWS])]).flatten(1).float() / 127.5 - 1
        best = torch.minimum(best, torch.cdist(both, others).amin(1))
    return best.view(2, -1).amin(0) / both.shape[1] ** 0.5


@torch.no_grad()
def draw(pipe: MiniDalle, batch: Batch, seed: int, **options) -> tuple[TextEncoding, torch.Tensor, torch.Tensor]:
    """Draw a picture of each caption of a batch: its encoding, the z_image that the prior found, and the picture."""
    noise = [torch.Generator().manual_seed(seed + k) for k in range(len(batch.captions))]
    with autocast(pipe.device):
        text = pipe.clip.encode_text(batch.tokens.to(pipe.device), batch.mask.to(pipe.device))
    z_image = pipe.sample_prior(text, generator=noise)
    for step in pipe.decode(text, z_image, generator=noise, **options):
        images = step.x_prev
    return text, z_image, images.float().clamp(-1, 1)


@torch.no_grad()
def measure(pipe: MiniDalle, batch: Batch, seed: int, **options) -> tuple[dict[str, Rate], torch.Tensor]:
    """Measure each part of a system on captioned pictures: its rates, and what was drawn (B, 3, S, S).

    Args:
        pipe: the system.
        batch: real pictures with their captions.
        seed: of the noise of the first picture; the next has the next seed.
        options: those of the decoder.
    """
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in ("text", "real", "prior", "drawn", "images")}
    for first in range(0, len(batch.captions), CHUNK):
        some = slice(first, first + CHUNK)
        one = Batch(batch.images[some], batch.tokens[some], batch.mask[some], batch.captions[some])
        text, z_image, images = draw(pipe, one, seed + first, **options)
        real, drawn = (pipe.clip.encode_image(x.to(pipe.device)) for x in (one.images, images))
        for name, value in zip(parts, (text.z_text, real, z_image, drawn, images), strict=True):
            parts[name].append(value.float().cpu())
    z = {name: torch.cat(values) for name, values in parts.items()}
    rates = {
        "CLIP": found(z["real"], z["text"], batch.captions),
        "prior": found(z["prior"], z["text"], batch.captions),
        "decoder": found(z["drawn"], z["prior"], batch.captions),
        "all": found(z["drawn"], z["text"], batch.captions),
    }
    return rates, z["images"]


def own_card(pipe: MiniDalle, pictures: Pictures, n: int = 200, seed: int = 0, **options) -> dict:
    """Measure a system that was trained on a collection, by the captions that were held out.

    Args:
        pipe: the system.
        pictures: the collection.
        n: captions of each kind at most.
        seed: of the noise.
        options: those of the decoder.

    Raises: ValueError: when too little is held out, or the system was trained on something else.
    """
    n = whole_number(n, "The number of captions", MIN_HELD_OUT)
    if pipe.world.get("fingerprint") != pictures.to_dict()["fingerprint"]:
        raise ValueError(f"The system was trained on something else than {pictures.listing.path} as it is now.")
    size = pipe.decoder.config.unet.image_size
    held_out = pictures.examples("held out", size, n)
    if len(held_out.captions) < MIN_HELD_OUT:
        raise ValueError(f"{len(held_out.captions)} captions are held out; {MIN_HELD_OUT} or more were expected.")
    seen = pictures.examples("training", size, len(held_out.captions))
    card: dict = {"n": len(held_out.captions), "held out by": "caption" if pictures.by_caption else "picture"}
    for name, batch in (("held out", held_out), ("training", seen)):
        rates, images = measure(pipe, batch, seed, **options)
        card[name] = {part: rate.to_json() for part, rate in rates.items()}
        card[name]["different captions"] = len({caption.lower() for caption in batch.captions})
        if name == "held out":
            drawn = images
    training, rows = pictures.usable(pictures.training, size), pictures.decoded(size).rows
    real, made = (nearest_training(images, rows, training) for images in (held_out.images, drawn))
    copies = made < real.quantile(CLOSE)
    card["nearest training picture"] = {"real": float(real.median()), "drawn": float(made.median())}
    card["copies"] = Rate(int(copies.sum()), len(copies)).to_json()
    card["advice"] = advice(card["held out"])
    return card


def advice(rates: dict) -> str:
    """Name the first part of a system that loses more than half of what it is given."""
    chance = 1 / rates["different captions"]
    given = 1.0
    for part, what in ADVICE.items():
        reached = rates[part]["share"]
        if reached < max(0.5 * given, 3 * chance):
            return f"{what} ({100 * reached:.0f} %, by chance {100 * chance:.1f} %)."
        given = reached if part == "CLIP" else given
    return "every part does more than half of what it could."


def to_text(card: dict) -> str:
    """Lay a card out for people."""
    lines = [f"{'':10}{'held out':>24}{'training':>24}"]
    for part in ("CLIP", "prior", "decoder", "all"):
        cells = (card[name][part] for name in ("held out", "training"))
        shown = (f"{100 * c['share']:.1f} ({100 * c['low']:.1f}-{100 * c['high']:.1f}) {c['n']}" for c in cells)
        lines.append(f"{part:10}" + "".join(f"{cell:>24}" for cell in shown))
    near, copies = card["nearest training picture"], card["copies"]
    return "\n".join(
        [
            f"Which of {card['n']} captions is it? Nearest by CLIP, % (95 % interval) n; "
            f"chance {100 / card['held out']['different captions']:.1f} %",
            *lines,
            "CLIP: a real picture; prior: its z_image; decoder: what is drawn, among the prior's; all: what is drawn",
            f"Distance to the nearest training picture: real {near['real']:.3f}, drawn {near['drawn']:.3f}; "
            f"{100 * copies['share']:.0f} % are as near as the nearest {100 * CLOSE:.0f} % of real new ones",
            f"Advice: {card['advice']}",
        ]
    )
