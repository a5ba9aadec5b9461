"""The instruments of the clinic: each takes a patient and a seed, and gives a number whose healthy range is known."""

from collections.abc import Callable

import torch

from minidalle.course.clinic.mistakes import SmallWorld, shuffled
from minidalle.course.clinic.patients import Drawing, Patient
from minidalle.data.batches import Batch
from minidalle.world import oracle
from minidalle.world.captions import matches
from minidalle.world.grammar import parse

DRAWN, SAME = 32, 16  # pictures of different captions, and of one caption, to see what varies
CAPTION = "a red circle"


def examples(seed: int, number: int = 128) -> Batch:
    """Draw pictures and captions that no training met."""
    return SmallWorld(7_000 + seed).batch(0, number)


def pixels(patient: Patient, seed: int) -> dict[str, float]:
    """Look at the pixels that the decoder was trained on; it samples pictures clipped to [-1, 1]."""
    x = patient.train_pixels(examples(seed).images)
    return {
        "pixels: darkest": float(x.min()),
        "pixels: brightest": float(x.max()),
        "pixels: share outside [-1, 1]": float((x.abs() > 1.0).float().mean()),
    }


def forward(patient: Patient, seed: int) -> dict[str, float]:
    """Correlate a picture noised as in training with what it was, at three quarters of the way to noise."""
    images = examples(seed).images
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    x_t, x_start = patient.noised(images, 750, noise), patient.train_pixels(images)
    return {
        "forward: picture left at t = 750": float(torch.corrcoef(torch.stack([x_t.flatten(), x_start.flatten()]))[0, 1])
    }


def clip_towers(patient: Patient, seed: int) -> dict[str, float]:
    """Ask CLIP for the caption of each picture, compare different pictures, and give its loss a batch twice."""
    batch = examples(seed)
    with torch.no_grad():
        z_image = patient.clip.encode_image(batch.images)
        z_text = patient.clip.encode_text(batch.tokens, batch.mask).z_text
    best = (z_image @ z_text.T).argmax(1).tolist()
    right = follow([batch.captions[j] for j in best], batch.scenes)
    once, twice = Batch(*_rows(batch, 1)), Batch(*_rows(batch, 2))
    return {
        "CLIP: right captions found": right,
        "CLIP: cosine of different pictures": alike(z_image),
        "CLIP: loss of a batch twice - once": patient.clip_loss(twice) - patient.clip_loss(once),
    }


def follow(captions: list[str], scenes: list) -> float:
    """Give the share of scenes that show all that their caption states."""
    return sum(all(matches(parse(c), s).values()) for c, s in zip(captions, scenes, strict=True)) / len(captions)


def _rows(batch: Batch, times: int) -> tuple:
    """Take 32 rows of a batch so many times."""
    keep = list(range(32)) * times
    return batch.images[keep], batch.tokens[keep], batch.mask[keep], [batch.captions[i] for i in keep]


def prior(patient: Patient, seed: int) -> dict[str, float]:
    """Measure the prior's loss with right and with wrong captions, and how wide the z_image are that it learns."""
    batch = examples(seed)
    right, wrong = patient.prior_loss(batch, seed), patient.prior_loss(shuffled(batch), seed)
    return {
        "prior: width of z_image before noise": float(patient.z_start(batch.images).square().mean().sqrt()),
        "prior: loss": right,
        "prior: loss, wrong captions / right": wrong / right,
    }


def decoder(patient: Patient, seed: int) -> dict[str, float]:
    """Measure the decoder's error where there is little noise and much, and with its conditions hidden."""
    batch = examples(seed)
    little, much = (float(patient.decoder_errors(batch, t, seed).mean()) for t in (100, 900))
    hidden = float(patient.decoder_errors(batch, 900, seed, hide=True).mean())
    return {
        "decoder: error at t = 100": little,
        "decoder: error at t = 900": much,
        "decoder: error at t = 900, nothing shown": hidden,
    }


def sampling(patient: Patient, seed: int) -> dict[str, float]:
    """Draw captions; look at what is drawn, at the width of x_t on the way, and at what the decoder received."""
    batch = examples(seed, DRAWN)
    drawing = patient.draw(batch.captions + [CAPTION] * SAME, seed)
    asked, same = oracle.read(drawing.images[:DRAWN]), oracle.read(drawing.images[DRAWN:])
    one, other = (patient.draw(batch.captions[:8], seed, noise_seed=n).halfway for n in (1, 2))
    return {
        "drawing: exact": follow(batch.captions, asked),
        "drawing: readable": sum(scene is not None for scene in asked) / DRAWN,
        "drawing: places of one caption": float(len({scene.place for scene in same if scene})),
        "way back: narrowest x_t / forward": narrowest(patient, drawing, batch.images),
        "way back: x_t of two noises apart": float((one - other).square().mean().sqrt()),
        "received z_image: last with first step": float((drawing.z_images[0] * drawing.z_images[-1]).sum(1).mean()),
        "received z_image: variety for one caption": max(0.0, 1 - alike(drawing.z_images[0, DRAWN:])) ** 0.5,
    }


def narrowest(patient: Patient, drawing: Drawing, images: torch.Tensor) -> float:
    """Compare x_t on the way back with a picture noised as far by the forward process; 1 where they are as wide."""
    power = float(patient.train_pixels(images).square().mean())
    wanted = [(level * power + 1 - level) ** 0.5 for level in drawing.levels]
    return min(found / wanted for found, wanted in zip(drawing.rms, wanted, strict=True))


def alike(z: torch.Tensor) -> float:
    """Give the mean cosine of all pairs of unit vectors (N, D)."""
    n = len(z)
    return float((z.sum(0).square().sum() - n) / (n * (n - 1)))


INSTRUMENTS: tuple[Callable[[Patient, int], dict[str, float]], ...] = (
    pixels, forward, clip_towers, prior, decoder, sampling,
)  # fmt: skip


def measure(patient: Patient, seed: int = 0) -> dict[str, float]:
    """Examine a patient with all instruments."""
    return {name: value for instrument in INSTRUMENTS for name, value in instrument(patient, seed).items()}
