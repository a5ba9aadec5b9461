"""Captions to token ids and back: a closed vocabulary, one token a word.

The paper cuts words into byte pairs (BPE, 49,152 tokens; Radford et al. 2021, sec. 2.4); a world of about a hundred
words needs none, so a word is a token here.
"""

import difflib
from collections.abc import Sequence

import torch

PAD, END = "<pad>", "<end>"


class Tokenizer:
    """The words that a model knows.

    Args:
        words: the vocabulary, without the two special tokens, which take the ids 0 and 1.
        context_length: tokens of the longest caption, its end token included.
    """

    def __init__(self, words: Sequence[str], context_length: int = 20):
        if len(set(words)) != len(words):
            raise ValueError("A word stands twice in the vocabulary: name each once.")
        self.words = tuple(words)
        self.context_length = context_length
        self._ids = {word: i for i, word in enumerate((PAD, END, *words))}

    @property
    def vocab_size(self) -> int:
        """Count the tokens, the special ones included."""
        return len(self._ids)

    def encode(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn captions into ids.

        Args:
            captions: any number of them; an empty one becomes the end token alone.

        Returns: tokens (B, L), int64, each row ended by the end token and then padding, and mask (B, L), True for real
            tokens, the end token included. L is as short as the longest caption allows.
        Raises: ValueError: when a word is unknown (it is named) or a caption is too long.
        """
        rows = [[*self._look_up(caption), self._ids[END]] for caption in captions]
        longest = max(map(len, rows), default=0)
        tokens = torch.full((len(rows), longest), self._ids[PAD])
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return tokens, tokens != self._ids[PAD]

    def decode(self, tokens: torch.Tensor) -> list[str]:
        """Turn ids (B, L) back into captions."""
        names = (PAD, END, *self.words)
        return [" ".join(names[i] for i in row if i > self._ids[END]) for row in tokens.tolist()]

    def to_dict(self) -> dict:
        """Give all that from_dict needs, in JSON's types; it is kept with the weights."""
        return {"kind": "words", "words": list(self.words), "context_length": self.context_length}

    @classmethod
    def from_dict(cls, values: dict) -> "Tokenizer":
        """Rebuild a tokenizer from what to_dict gave.

        Raises: ValueError: when it is of another kind.
        """
        if not isinstance(values, dict) or values.get("kind") != "words":
            raise ValueError(f"a tokenizer of words was expected, found {values!r:.40}")
        return cls(values["words"], values["context_length"])

    def _look_up(self, caption: str) -> list[int]:
        words = split_words(caption)
        unknown = [word for word in words if word not in self._ids or word in (PAD, END)]
        if unknown:
            near = difflib.get_close_matches(unknown[0], self.words, n=1)
            hint = f' Did you mean "{near[0]}"?' if near else ""
            names = ", ".join(f'"{word}"' for word in list(dict.fromkeys(unknown))[:5])
            raise ValueError(f"Unknown in the prompt: {names}.{hint} The known words are: {' '.join(self.words)}.")
        if len(words) >= self.context_length:
            raise ValueError(f'"{caption}" has {len(words)} words; at most {self.context_length - 1} fit: say less.')
        return [self._ids[word] for word in words]


def split_words(caption: str) -> list[str]:
    """Split a caption into lower-case words; commas and full stops fall away."""
    return caption.lower().replace(",", " ").replace(".", " ").split()
