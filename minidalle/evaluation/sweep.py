"""The guidance sweep: how well prompts are followed, how real and how varied pictures are, over the guidance scale.

Every scale is asked the same prompts with the same noise. The paper's own curves: figs. 9 to 11 and 13.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import product

import torch

from minidalle.checks import finite_number
from minidalle.evaluation.gallery import Answer, Gallery, picture_seeds
from minidalle.evaluation.metrics import Rate, evenness, fair_evenness
from minidalle.evaluation.report import (
    DIVERSITY_PROMPT,
    System,
    check_number,
    distances,
    draw_prompts,
    has_two,
    pipeline_painter,
    readings,
    real_features,
    score,
)
from minidalle.evaluation.tables import NOTE, table, wrapped
from minidalle.world.scenes import BACKGROUNDS, PLACES, SIZES, Scene

SPLITS = ("seen", "held out")
LEFT_OPEN = tuple(product(PLACES, SIZES, BACKGROUNDS))  # by DIVERSITY_PROMPT


def check_scales(scales: Sequence[float]) -> list[float]:
    """Take guidance scales, and give them in ascending order.

    Raises: ValueError: on one that is not finite or negative, on one that is there twice, and on fewer than two.
    """
    found = sorted(finite_number(scale, "A guidance scale of the sweep") for scale in scales)
    if len(found) < 2:
        raise ValueError(f"The sweep has {len(found)} of the two or more guidance scales that make a curve: name more.")
    if found[0] < 0:
        raise ValueError(f"A guidance scale of the sweep is {found[0]:g}; 0 or more was expected: 0 ignores prompts.")
    if twice := [scale for scale, count in Counter(found).items() if count > 1]:
        raise ValueError(f"The sweep has the guidance scale {twice[0]:g} more than once: name it once.")
    return found


def sweep(
    pipe: System, scales: Sequence[float], n: int = 500, seed: int = 0, name: str = "", **options
) -> dict[str, object]:
    """Measure a system at each of several guidance scales of its decoder.

    Args:
        pipe: what to measure.
        scales: see check_scales.
        n: prompts of each split, half of them of two objects where the system draws two; and pictures of one prompt
            that leaves most open.
        seed: of the prompts and of the noise.
        name: of the system, with which progress is told on stderr; empty: it is not.
        options: of its call, the same at all scales.

    Returns: a point for each scale, and under "real" what real pictures get; to_text writes it down.
    Raises: ValueError: on scales or an n that make no sense.
    """
    scales = check_scales(scales)
    check_number(n)
    asked = {split: draw_prompts(n, 0.5 * has_two(pipe), split, f"sweep/{split}/{seed}") for split in SPLITS}
    prompts = {split: [prompt.caption for prompt in drawn] for split, drawn in asked.items()}
    prompts["open"] = [DIVERSITY_PROMPT] * n
    captions = {kind: pipe.captions(drawn) for kind, drawn in prompts.items()}
    seeds = {kind: picture_seeds(n, f"sweep/{kind}/{seed}") for kind in prompts}
    real, other = real_features(asked["seen"], pipe.image_size)
    points = []
    for scale in scales:
        paint = pipeline_painter(pipe, rephrase=False, guidance_scale=scale, **options)
        gallery = Gallery(paint, name=name and f"{name} at {scale:g}")
        shown = {kind: gallery.show(captions[kind], seeds[kind]) for kind in captions}
        exact = {split: score(asked[split], readings(shown[split]))["exact"] for split in SPLITS}
        point = {"guidance_scale": scale, "exact": exact, **distances(real, stacked(shown["seen"]))}
        seconds = round(gallery.seconds / len(gallery.kept), 4)
        points.append(point | {"diversity": variety(readings(shown["open"])), "seconds a picture": seconds})
    ideal = {**distances(real, other), "fair": fair(n)}
    return {"n": n, "seed": seed, "prompt": DIVERSITY_PROMPT, "real": ideal, "points": points}


def stacked(answers: list[Answer]) -> torch.Tensor:
    """Stack the features of pictures: (N, D)."""
    return torch.stack([answer.features for answer in answers])


def variety(read: list[Scene | None]) -> dict[str, object]:
    """Measure how evenly pictures of one object spread over what DIVERSITY_PROMPT leaves open.

    Returns: the evenness over places, sizes and backgrounds together (see metrics.evenness), None where nothing was
        read; n, the pictures that were; and fair(n).
    """
    scenes = [scene for scene in read if scene is not None and len(scene.objects) == 1]
    counts = Counter((scene.place, scene.objects[0].size, scene.background) for scene in scenes)
    found = round(evenness([counts[option] for option in LEFT_OPEN]), 3) if scenes else None
    return {"evenness": found, "n": len(scenes), "fair": fair(len(scenes))}


def fair(n: int) -> list[float] | None:
    """Tell between which two values a fair painter's evenness lies with n pictures; None without any."""
    return [round(end, 3) for end in fair_evenness(n, len(LEFT_OPEN))] if n else None


def to_text(sweeps: dict[str, dict]) -> str:
    """Write sweeps as tables, one for each system.

    Args:
        sweeps: by the name of the system; of the same n and seed.
    """
    first = next(iter(sweeps.values()))
    about = (
        f"Guidance of the decoder; at each scale the same n = {first['n']} prompts of each split, with the same noise. "
        "Exact: prompts followed, % (95 % interval); Frechet distance, precision and recall: of pictures of seen "
        f'combinations; evenness: of place, size and background in pictures of "{first["prompt"]}", at most 1 (95 % '
        "of what a fair painter gets)."
    )
    lines = wrapped([about])
    for name, found in sweeps.items():
        heads = ["exact, seen", "exact, held out", "Frechet", "precision", "recall", "evenness", "s a picture"]
        real = ["-", "-", *quality(found["real"]), "{:.3f}-{:.3f}".format(*found["real"]["fair"]), "-"]
        rows = [(f"{point['guidance_scale']:g}", row(point)) for point in found["points"]]
        lines += ["", name, *table([("scale", heads), *rows, ("real", real)], 6)]
    return "\n".join([*lines, NOTE])


def row(point: dict) -> list[str]:
    """Write what was measured at a scale."""
    spread = point["diversity"]
    even = "{:.3f} ({:.3f}-{:.3f})".format(spread["evenness"], *spread["fair"]) if spread["n"] else "-"
    exact = [per_cent(point["exact"][split]) for split in SPLITS]
    return [*exact, *quality(point), even, f"{point['seconds a picture']:.3f}"]


def per_cent(rate: Rate) -> str:
    """Write a rate and its interval in per cent."""
    return "{:.1f} ({:.1f}-{:.1f})".format(*(100 * share for share in (rate.share, *rate.interval)))


def quality(found: dict) -> list[str]:
    """Write how near pictures come to real ones."""
    return [f"{found['frechet']:.4f}", f"{found['precision']:.2f}", f"{found['recall']:.2f}"]
