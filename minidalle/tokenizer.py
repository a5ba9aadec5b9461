"""Captions to token ids and back, one token a word.

The paper cuts words into byte pairs (BPE, 49,152 tokens); the world has about fifty words, so a word is a token here.
"""

import difflib

import torch

from minidalle.world.captions import known_words, words_of

PAD, END = "<pad>", "<end>"
VOCABULARY = (PAD, END, *known_words())
CONTEXT_LENGTH = 20  # tokens, the end token included

_IDS = {word: i for i, word in enumerate(VOCABULARY)}


def encode(captions: list[str]) -> torch.Tensor:
    """Turn captions into ids.

    Args:
        captions: any number of them; an empty caption becomes the end token alone, the one that guidance drops to.

    Returns: tokens (B, CONTEXT_LENGTH), int64; each row ends in the end token and then padding.
    Raises: ValueError: when a word is unknown (it is named) or a caption is too long.
    """
    tokens = torch.full((len(captions), CONTEXT_LENGTH), _IDS[PAD])
    for row, caption in zip(tokens, captions, strict=True):
        words = words_of(caption)
        check_words(words)
        if len(words) >= CONTEXT_LENGTH:
            raise ValueError(f'"{caption}" has {len(words)} words; at most {CONTEXT_LENGTH - 1} fit: say less.')
        row[: len(words) + 1] = torch.tensor([_IDS[word] for word in (*words, END)])
    return tokens


def decode(tokens: torch.Tensor) -> list[str]:
    """Turn ids (B, L) back into captions."""
    return [" ".join(VOCABULARY[i] for i in row if i > _IDS[END]) for row in tokens.tolist()]


def caption_mask(tokens: torch.Tensor) -> torch.Tensor:
    """Mark the real tokens, the end token included: (B, L) bool."""
    return tokens != _IDS[PAD]


def end_positions(tokens: torch.Tensor) -> torch.Tensor:
    """Find where each caption ends: (B,) int64."""
    return caption_mask(tokens).sum(1) - 1


def check_words(words: list[str]) -> None:
    """Refuse words that the models have never met.

    Raises: ValueError: names every unknown word, the nearest known one, and the whole vocabulary.
    """
    unknown = [word for word in words if word not in _IDS or word in (PAD, END)]
    if not unknown:
        return
    near = difflib.get_close_matches(unknown[0], VOCABULARY[2:], n=1)
    hint = f' Did you mean "{near[0]}"?' if near else ""
    names = ", ".join(f'"{word}"' for word in unknown)
    raise ValueError(f"Unknown in the prompt: {names}.{hint} The known words are: {' '.join(VOCABULARY[2:])}.")
