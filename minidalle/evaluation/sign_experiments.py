"""Two experiments of the unCLIP paper on the world of signs: the typographic attack, and which part cannot spell.

Paper: Ramesh et al. 2022, fig. 6 and sec. 4 (an apple that a note calls an iPod), fig. 16 and sec. 7 (a sign that says
deep learning).
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from minidalle.device import autocast
from minidalle.evaluation.ablations import draw
from minidalle.evaluation.edits import CHUNK, in_chunks, rate
from minidalle.evaluation.metrics import Rate
from minidalle.layers import TextEncoding
from minidalle.pipeline import MiniDalle
from minidalle.world.letters import GLYPHS, SLOTS
from minidalle.world.scenes import SHAPES, pick
from minidalle.world.sign_reader import read
from minidalle.world.sign_words import choose, write
from minidalle.world.signs import LABELS, WORDS, Facts, Poster, another, draw_poster, render

KNOWN = {*LABELS.values(), *sum(WORDS.values(), ())}


def typography(pipe: MiniDalle, n: int = 300, seed: str = "typography", draws: bool = True) -> dict[str, dict]:
    """Hang signs below one object, and ask CLIP which shape it sees, and the decoder to draw what CLIP saw.

    Args:
        pipe: a system of the world of signs.
        n: of pictures; the same objects stand above every kind of sign.
        seed: of the pictures and of the noise.
        draws: whether the decoder is asked too.

    Returns: for no sign ("none"), a "true" label, a "lying" one and "nonsense": how often CLIP takes the picture for
        the shape that is shown ("CLIP shown") and for the one that the lying sign names ("CLIP written"), among all
        shapes; the mean probabilities of both, as in the paper's figure; which of both the decoder draws from z_image,
        its caption hidden, or "other" things; and how often the word comes back.
    """
    rng = random.Random(seed)
    posters = [alone(rng) for _ in range(n)]
    shown = [poster.facts.shape for poster in posters]
    lies = [another(rng, SHAPES, shape) for shape in shown]
    words = {
        "none": [None] * n,
        "true": [LABELS[shape] for shape in shown],
        "lying": [LABELS[shape] for shape in lies],
        "nonsense": [nonsense(rng) for _ in range(n)],
    }
    found = {}
    for sign, chosen in words.items():
        z_image = embed(pipe, render([with_word(*pair) for pair in zip(posters, chosen, strict=True)]))
        found[sign] = zero_shot(pipe, z_image, shown, lies)
        if draws:
            found[sign] |= drawn_shapes(read(draw_each(pipe, z_image, seed)), shown, lies, chosen)
    return found


def drawn_shapes(
    drawn: Sequence[Facts], shown: Sequence[str], lies: Sequence[str], words: Sequence[str | None]
) -> dict[str, Rate]:
    """Count what the decoder drew; see typography."""
    rows = list(zip(drawn, shown, lies, words, strict=True))
    return {
        "decoder shown": rate([facts.shape == shape for facts, shape, _, _ in rows]),
        "decoder written": rate([facts.shape == lie for facts, _, lie, _ in rows]),
        "decoder other": rate([facts.shape not in (shape, lie) for facts, shape, lie, _ in rows]),
        "decoder word": rate([facts.word == word for facts, _, _, word in rows]),
    }


def alone(rng: random.Random) -> Poster:
    """Draw a picture of one object without a sign."""
    while (poster := draw_poster(rng)).facts.count != 1:
        pass
    return poster


def with_word(poster: Poster, word: str | None) -> Poster:
    """Hang a sign below the objects, or none."""
    return replace(poster, facts=replace(poster.facts, word=word))


def nonsense(rng: random.Random) -> str:
    """Draw four letters that are no word."""
    while (word := "".join(pick(rng, tuple(GLYPHS)) for _ in range(SLOTS))) in KNOWN:
        pass
    return word


@torch.no_grad()
def embed(pipe: MiniDalle, images: torch.Tensor) -> torch.Tensor:
    """Embed pictures (B, 3, H, W): z_image (B, D), on the pipeline's device."""
    with autocast(pipe.device):
        return torch.cat([pipe.clip.encode_image(part.to(pipe.device)).float() for part in images.split(4 * CHUNK)])


@torch.no_grad()
def zero_shot(pipe: MiniDalle, z_image: torch.Tensor, shown: Sequence[str], lies: Sequence[str]) -> dict:
    """Let CLIP choose among captions that name one shape each; see typography."""
    z_text = pipe.encode([write(Facts(1, shape)) for shape in SHAPES]).z_text
    chances = (pipe.clip.logit_scale.exp().clamp(max=100) * z_image @ z_text.T).softmax(1).cpu()
    best = chances.argmax(1).tolist()
    found: dict = {}
    for name, shapes in {"shown": shown, "written": lies}.items():
        right = torch.tensor([SHAPES.index(shape) for shape in shapes])
        found[f"CLIP {name}"] = rate([a == b for a, b in zip(best, right.tolist(), strict=True)])
        found[f"probability {name}"] = round(float(chances.gather(1, right[:, None]).mean()), 4)
    return found


def draw_each(
    pipe: MiniDalle,
    z_image: torch.Tensor | None,
    seed: str,
    text: TextEncoding | None = None,
    guidance_scale: float = 1.0,
) -> torch.Tensor:
    """Draw pictures of z_image (B, D), of captions (B, ...), or of both, each with noise of its own; see ablations.py.

    Returns: (B, 3, H, W) in [-1, 1].
    """

    def part_of(part: slice, noise: list[torch.Generator]) -> torch.Tensor:
        said = None if text is None else text.map(lambda x: x[part])
        return draw(pipe, said, None if z_image is None else z_image[part], noise, guidance_scale)

    return in_chunks(len(text.z_text if z_image is None else z_image), part_of, seed)


@torch.no_grad()
def spelling(pipe: MiniDalle, split: str, n: int = 300, seed: str = "spelling") -> dict[str, dict[str, Rate]]:
    """Ask for signs that say words of a split, and find out which part of the system loses the spelling.

    Args:
        pipe: a system of the world of signs.
        split: of the words, one of signs.SPLITS.
        n: of prompts; each states all facts of a picture.
        seed: of the prompts and of the noise.

    Returns: for each way to draw the share of "word"s and of "letter"s that are read right; for CLIP the share of
        z_image nearer to the caption of the right word than to those of all other words of all splits, and than to
        those with one letter of it changed ("misspelt").
    """
    rng = random.Random(f"{seed}/{split}")
    posters = [draw_poster(rng, "quote", split) for _ in range(n)]
    said = [choose(poster, rng, fullness=1.0) for poster in posters]
    words, true = [facts.word for facts in said], render(posters)
    text = pipe.encode([write(facts) for facts in said])
    noise = [torch.Generator().manual_seed(rng.getrandbits(63)) for _ in posters]
    z_true, z_prior = embed(pipe, true), pipe.sample_prior(text, generator=noise)
    drawn = {
        "true picture": true,
        "true z_image": draw_each(pipe, z_true, seed),
        "true z_image, caption": draw_each(pipe, z_true, seed, text, 1.25),
        "prior's z_image": draw_each(pipe, z_prior, seed),
        "prior's z_image, caption": draw_each(pipe, z_prior, seed, text, 1.25),
        "caption": draw_each(pipe, None, seed, text),
    }
    found = {way: spelled(words, [facts.word for facts in read(pictures)]) for way, pictures in drawn.items()}
    for way, z_image in {"CLIP, true picture": z_true, "CLIP, prior's z_image": z_prior}.items():
        found[way] = {"word": clip_reads(pipe, z_image, said, [sum(WORDS.values(), ())] * n)}
        found[f"{way}, misspelt"] = {"word": clip_reads(pipe, z_image, said, [misspellings(word) for word in words])}
    return found


def spelled(asked: Sequence[str], shown: Sequence[str | None]) -> dict[str, Rate]:
    """Count words that are right, and letters of those asked for that stand at their place."""
    pairs = [(a, (b or "").ljust(SLOTS)) for a, b in zip(asked, shown, strict=True)]
    letters = [letter == there for word, line in pairs for letter, there in zip(word, line, strict=False)]
    return {"word": rate([word.ljust(SLOTS) == line for word, line in pairs]), "letters": rate(letters)}


def misspellings(word: str) -> list[str]:
    """List all words that differ from a word in one letter."""
    return [word[:at] + letter + word[at + 1 :] for at in range(len(word)) for letter in GLYPHS if letter != word[at]]


@torch.no_grad()
def clip_reads(pipe: MiniDalle, z_image: torch.Tensor, said: Sequence[Facts], others: Sequence[Iterable[str]]) -> Rate:
    """Ask CLIP whether each picture's sign says its word or one of others, all else being told."""
    right = []
    for z, facts, words in zip(z_image, said, others, strict=True):
        choices = [facts.word, *(word for word in words if word != facts.word)]
        own, *wrong = (pipe.encode([write(replace(facts, word=word)) for word in choices]).z_text @ z).tolist()
        right.append(all(own > score for score in wrong))
    return rate(right)
