"""Patients by number, their lab reports, and what to say of a diagnosis."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from minidalle import checkpoint
from minidalle.checks import whole_number
from minidalle.course import figures
from minidalle.course.clinic.instruments import measure
from minidalle.course.clinic.mistakes import KIND, MISTAKES, digest_of
from minidalle.course.clinic.patients import Patient, load, path_of

# Who has what: digest_of(number, mistake), so that nobody reads the answers by accident
WARD = (
    "1e63ea2507f9", "072123a3da36", "de38267f5980", "72f5b822562d", "92fec6d2bbe6",
    "e2c825bb7fc9", "60e0c2978842", "11bb6a4ae38c", "ae600e508fe2", "355bf206f5ee",
    "62f137c7a792", "32bf57d5f4a9", "dfeeb67bc58a", "e7c7f33fbdc9",
)  # fmt: skip
FAR = 1.0  # widths of the healthy range outside of it, from which a number counts as ill
LEAST_SHARE, LEAST = 0.05, 1e-4  # width of a range: as a share of its numbers, and near 0


@dataclass(frozen=True)
class Case:
    """What is known of a mistake."""

    instrument: str  # the one that tells most
    moves: str  # up or down
    why: str
    mend: str


CASES = {
    "pictures in [0, 1]": Case(
        "pixels: darkest",
        "up",
        "The decoder learned pictures from 0 to 1, and whoever shows its drawings takes 0 for grey.",
        "Bring pictures to [-1, 1] in one place, images * 2 - 1, and assert the range where training begins.",
    ),
    "clipped outside its range": Case(
        "pixels: share outside [-1, 1]",
        "up",
        "Standardised pixels reach beyond 1, and the sampler cuts them off at every step.",
        "Train on [-1, 1], or clip to the range that the normalisation has.",
    ),
    "beta for alpha-bar": Case(
        "forward: picture left at t = 750",
        "up",
        "With one step's beta in place of the product of all, training never showed a picture that is mostly noise.",
        "Multiply: alphas_cumprod = cumprod(1 - betas). At T the picture must be gone.",
    ),
    "variance for deviation": Case(
        "way back: narrowest x_t / forward",
        "down",
        "Fresh noise was multiplied by the variance. Below 1 that is less than its root, so x_t becomes too narrow.",
        "Multiply noise by the root of the posterior's variance.",
    ),
    "no noise on the way back": Case(
        "way back: x_t of two noises apart",
        "down",
        "The sampler takes DDPM's mean and adds nothing, so it walks towards an average.",
        "Add fresh noise at every step but the last, or use a sampler that is made for none, such as DDIM.",
    ),
    "unscaled z_image": Case(
        "prior: width of z_image before noise",
        "down",
        "A vector of norm 1 has coordinates of 1 / sqrt(D), so noise of width 1 buries it at once; its loss is small.",
        "Scale it by sqrt(D) before noise is added, and normalise what is sampled.",
    ),
    "prior at every step": Case(
        "received z_image: last with first step",
        "down",
        "The prior was asked anew at every step, so the decoder followed a new plan each time.",
        "Sample z_image once for each picture, before the decoder's loop.",
    ),
    "z_text for z_image": Case(
        "received z_image: variety for one caption",
        "down",
        "The decoder received z_text, which is one vector for each caption: what a caption leaves open does not vary.",
        "Ask the prior, and give the decoder what it samples.",
    ),
    "no dropped conditions": Case(
        "decoder: error at t = 900, nothing shown",
        "up",
        "Training never hid the conditions, so the estimate without them means nothing, and guidance adds it.",
        "Hide each condition in a share of the examples; the paper hides z_image in 10 % and the caption in 50 %.",
    ),
    "shuffled captions": Case(
        "prior: loss, wrong captions / right",
        "down",
        "The prior met each picture with another picture's caption, so it ignores captions.",
        "Shuffle pairs, not lists; look at ten examples of a batch before training.",
    ),
    "duplicates as negatives": Case(
        "CLIP: loss of a batch twice - once",
        "up",
        "A caption that occurs twice in a batch counts as wrong for its own picture.",
        "Leave equal captions out of the negatives, or draw batches without them.",
    ),
    "CLIP not frozen": Case(
        "CLIP: cosine of different pictures",
        "up",
        "The prior's loss moved CLIP too. It is least where all pictures have one embedding, so that is what it found.",
        "requires_grad_(False) for CLIP, no_grad around it, and only the prior's parameters for the optimiser.",
    ),
    "EMA forgotten": Case(
        "decoder: error at t = 900",
        "up",
        "The weights of the last step were kept. At a constant rate they jump about the average.",
        "Keep and load the averaged weights.",
    ),
}


@cache
def patient(number: int) -> Patient:
    """Admit a patient.

    Args:
        number: 1 to 14.

    Raises:
        ValueError: when there is no such patient.
        CheckpointError: when a file is missing or damaged.
    """
    return load(mistake_of(number), f"patient {number}")


def mistake_of(number: int) -> str:
    """Look up what a patient has."""
    whole_number(number, "The number of a patient", 1, len(WARD))
    return next(mistake for mistake in MISTAKES if digest_of(number, mistake) == WARD[number - 1])


@cache
def examine(subject: Patient, seed: int = 0) -> dict[str, float]:
    """Examine a patient with all instruments; a second time the numbers are those of the first."""
    return measure(subject, seed)


@cache
def healthy_ranges() -> dict[str, tuple[float, float]]:
    """Give the least and the greatest value of each instrument over nine examinations: three trainings, three seeds."""
    ranges = checkpoint.read_header(path_of("healthy"), KIND)["ranges"]
    return {name: (low, high) for name, (low, high) in ranges.items()}


def deviation(name: str, value: float) -> float:
    """Tell how many widths of the healthy range a value lies outside of it; negative below, 0 inside."""
    low, high = healthy_ranges()[name]
    width = max(high - low, LEAST_SHARE * max(abs(low), abs(high)), LEAST)
    return (value - high) / width if value > high else min(0.0, (value - low) / width)


def mark(name: str, value: float) -> str:
    """Say whether a value is high or low; nothing where it is neither."""
    far = deviation(name, value)
    return "" if abs(far) < FAR else "HIGH" if far > 0 else "LOW"


def report(values: dict[str, float]) -> str:
    """Write a lab report: each instrument's healthy range, the patient's value, and a mark where that is ill."""
    lines = [f"{'instrument':42} {'healthy':>18} {'patient':>10}"]
    for name, value in values.items():
        low, high = healthy_ranges()[name]
        lines.append(f"{name:42} {low:7.4f} .. {high:7.4f} {value:10.4f}  {mark(name, value)}".rstrip())
    return "\n".join(lines)


def chart(reports: dict[str, dict[str, float]]) -> figures.Figure:
    """Draw which instruments are ill in which patients: a row for each instrument, H for high and L for low."""
    names = list(next(iter(reports.values())))
    with figures.drawing(8.4, 0.28 * len(names) + 0.7) as figure:
        axes = figure.subplots()
        marks = [[mark(name, values[name])[:1] for values in reports.values()] for name in names]
        shades = np.array([[{"H": 1.0, "L": -1.0, "": 0.0}[m] for m in row] for row in marks])
        colors = np.full((*shades.shape, 3), 0.96)
        for sign, color in ((1.0, "orange"), (-1.0, "sky blue")):
            colors[shades == sign] = [int(figures.OKABE_ITO[color][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        axes.imshow(colors, aspect="auto")
        for y, row in enumerate(marks):
            for x, letter in enumerate(row):
                axes.text(x, y, letter, ha="center", va="center", fontsize=9)
        axes.set_xticks(range(len(reports)), [str(name).removeprefix("patient ") for name in reports])
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.xaxis.tick_top()
        axes.set_title("patient", fontsize=9)
    return figure


def is_right(number: int, mistake: str) -> bool:
    """Tell whether a patient has a mistake."""
    return digest_of(number, mistake) == digest_of(number, mistake_of(number))


def diagnose(number: int, mistake: str) -> bool:
    """Say whether a patient has a mistake, and what speaks for it or against it.

    Args:
        number: of the patient.
        mistake: one of MISTAKES, "healthy" among them.

    Returns: whether it is right.
    Raises: ValueError: when there is no such patient or no such mistake.
    """
    if mistake not in MISTAKES:
        raise ValueError(f'"{mistake}" is no diagnosis; choose one of {", ".join(MISTAKES)}.')
    right = is_right(number, mistake)
    print(f"patient {number}: {'right' if right else 'no'}. {_because(number, mistake, right)}")
    return right


def _because(number: int, mistake: str, right: bool) -> str:
    values = examine(patient(number))
    if mistake == "healthy":
        worst = max(values, key=lambda name: abs(deviation(name, values[name])))
        return "No instrument has left its healthy range." if right else f'Look at "{worst}": {values[worst]:.4f}.'
    case = CASES[mistake]
    if right:
        return f"{case.why} Mend: {case.mend}"
    value, (low, high) = values[case.instrument], healthy_ranges()[case.instrument]
    also = deviation(case.instrument, value) * (1 if case.moves == "up" else -1) >= FAR
    more = " It has moved here too: look at what else has." if also else ""
    return (
        f'That moves "{case.instrument}" {case.moves}; here it is {value:.4f}, healthy {low:.4f} to {high:.4f}.{more}'
    )
