"""Letters of 3 x 5 dots: a line of them as it is drawn, and read again by comparing each with all.

A line has four slots of eight pixels, so that each letter lies within one patch of CLIP and one cell of the decoder's
middle. A word stands at the left; what is left of the line is blank.
"""

from collections.abc import Sequence
from functools import cache
from string import ascii_lowercase

import torch
import torch.nn.functional as F
from einops import rearrange, repeat

# Five rows of each letter, from the top; the bits of a row are its dots: 4 left, 2 middle, 1 right
GLYPHS = dict(
    zip(
        ascii_lowercase,
        "25755 65656 34443 65556 74647 74644 34553 44655 72227 11152 56465 44447 57755 "
        "67555 75557 65644 25563 75665 34216 72222 55553 55522 55575 55255 55222 71247".split(),
        strict=True,
    )
)
BLANK, UNCLEAR = " ", "?"
SYMBOLS = (*GLYPHS, BLANK)
DOT = 2  # pixels along each side of a dot
SLOTS, SLOT = 4, 8  # letters in a line; pixels from one to the next
HEIGHT = 12  # pixels of a line, of which a letter takes ten
CLEAR = 0.3  # lead over the second best; 1: exactly the best, 0: half way between the two
MISFIT = 0.15  # mean squared difference from the best, in units of the contrast, above which it is no letter


def dots(letter: str) -> torch.Tensor:
    """Give the dots of a letter: (5, 3), 1 where there is one."""
    return torch.tensor([[int(row) >> bit & 1 for bit in (2, 1, 0)] for row in GLYPHS[letter]], dtype=torch.float32)


@cache
def templates() -> torch.Tensor:
    """Draw every symbol in its slot: (27, HEIGHT, SLOT), 1 where there is ink."""
    drawn = torch.stack([dots(letter) for letter in GLYPHS] + [torch.zeros(5, 3)])
    drawn = repeat(drawn, "n h w -> n (h a) (w b)", a=DOT, b=DOT)
    return F.pad(drawn, [1, 1, 1, 1])


def draw_words(words: Sequence[str]) -> torch.Tensor:
    """Draw words of at most four letters a to z as lines: (B, HEIGHT, SLOTS * SLOT), 1 where there is ink."""
    ids = torch.tensor([[SYMBOLS.index(letter) for letter in word.ljust(SLOTS)] for word in words])
    return rearrange(templates()[ids], "b s h w -> b h (s w)")


def read_words(ink: torch.Tensor) -> list[str]:
    """Read lines.

    Args:
        ink: (B, HEIGHT, SLOTS * SLOT), about 1 where there is ink and 0 elsewhere.

    Returns: for each line its letters, UNCLEAR for one that is like none, or like two; blanks at the end fall away.
    """
    slots = rearrange(ink, "b h (s w) -> b s (h w)", s=SLOTS)
    flat = templates().flatten(1)
    errors = slots.square().sum(-1, keepdim=True) + flat.square().sum(1) - 2 * slots @ flat.T  # (B, S, 27)
    (first, second), (best, other) = (x.unbind(-1) for x in errors.topk(2, largest=False))
    lead = (second - first) / torch.cdist(flat, flat).square()[best, other]
    sure = (lead > CLEAR) & (first / flat.shape[1] < MISFIT)
    rows = torch.where(sure, best, -1).tolist()
    return ["".join(SYMBOLS[i] if i >= 0 else UNCLEAR for i in row).rstrip() for row in rows]
