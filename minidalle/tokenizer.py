"""Captions to token ids and back: one token a word where all words are known, byte pairs where none can be.

The paper cuts words into byte pairs (BPE, 49,152 tokens; Radford et al. 2021, sec. 2.4). The drawn world has about a
hundred words and needs none, so there a word is a token; captions that people wrote need them.
"""

import difflib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib import import_module

import torch

from minidalle.checks import whole_number

PAD, END = "<pad>", "<end>"
PAD_ID, END_ID = 0, 1  # in every tokenizer
MAX_MERGES = 2**16  # of byte pairs in a header
MAX_CONTEXT = 2**10  # tokens of a caption
LONGEST_TOKEN = 32  # bytes; longer ones are of no use to any but the caption that they come from


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
        return padded([[*self._look_up(caption), END_ID] for caption in captions])

    def decode(self, tokens: torch.Tensor) -> list[str]:
        """Turn ids (B, L) back into captions."""
        names = (PAD, END, *self.words)
        return [" ".join(names[i] for i in row if i > END_ID) for row in tokens.tolist()]

    def to_dict(self) -> dict:
        """Give all that from_dict needs, in JSON's types; it is kept with the weights."""
        return {"kind": "words", "words": list(self.words), "context_length": self.context_length}

    @classmethod
    def from_dict(cls, values: dict) -> "Tokenizer":
        """Rebuild a tokenizer of either kind from what to_dict gave.

        Raises: ValueError: when it is of neither.
        """
        kind = values.get("kind") if isinstance(values, dict) else None
        if kind == "words":
            return Tokenizer(values["words"], values["context_length"])
        if kind == "bpe":
            return BytePairTokenizer(values["merges"], values["context_length"])
        raise ValueError(f'a tokenizer of kind "words" or "bpe" was expected, found {values!r:.40}')

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


def padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Put ids side by side: tokens (B, L), int64, and mask (B, L), True where a row has not ended."""
    longest = max(map(len, rows), default=0)
    tokens = torch.full((len(rows), longest), PAD_ID)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return tokens, tokens != PAD_ID


def split_words(caption: str) -> list[str]:
    """Split a caption into lower-case words; commas and full stops fall away."""
    return caption.lower().replace(",", " ").replace(".", " ").split()


class BytePairTokenizer(Tokenizer):
    """Byte pairs: every text can be said, and what is frequent is said in few tokens (Sennrich et al. 2016).

    A text is brought to lower case, and its bytes are the first tokens; each merge makes one of two neighbours. The
    ids: two special tokens, 256 bytes, and the merges in their order.

    Args:
        merges: pairs of tokens, the most frequent first, in the letters that stand for bytes (GPT-2's).
        context_length: tokens of the longest caption, its end token included.

    Raises: ValueError: when the merges are none, or the package `tokenizers` is missing.
    """

    def __init__(self, merges: Sequence[Sequence[str]], context_length: int):
        library = tokenizers_library()
        self.context_length = whole_number(context_length, "The context length", 2, MAX_CONTEXT)
        if len(merges) > MAX_MERGES:
            raise ValueError(f"{len(merges)} merges were found; at most {MAX_MERGES} were expected")
        self._ids = {
            letter: i for i, letter in enumerate(sorted(library.pre_tokenizers.ByteLevel.alphabet()), END_ID + 1)
        }
        for merge in merges:
            if len(merge) != 2 or not all(isinstance(part, str) and part in self._ids for part in merge):
                raise ValueError(f"{merge!r:.60} is no merge of two tokens that were there before")
            if len("".join(merge)) > LONGEST_TOKEN:
                raise ValueError(f"the merge {merge!r:.60} makes a token of more than {LONGEST_TOKEN} bytes")
            self._ids.setdefault("".join(merge), len(self._ids) + END_ID + 1)
        self.merges = [tuple(merge) for merge in merges]

    @classmethod
    def trained(cls, captions: Iterable[str], vocab_size: int = 4096, context_length: int = 64) -> "BytePairTokenizer":
        """Find the byte pairs of captions.

        Args:
            captions: any number of them; pairs that occur once only are left in their parts.
            vocab_size: tokens at most, 258 or more.
            context_length: that of the tokenizer.
        """
        library, untrained = tokenizers_library(), cls([], context_length)
        core = untrained._core
        core.model = library.models.BPE()
        trainer = library.trainers.BpeTrainer(
            vocab_size=whole_number(vocab_size, "The size of the vocabulary", 258, MAX_MERGES) - 2,
            min_frequency=2,
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
            max_token_length=LONGEST_TOKEN,
            show_progress=False,
        )
        core.train_from_iterator(captions, trainer)
        return cls(json.loads(core.to_str())["model"]["merges"], context_length)

    @property
    def vocab_size(self) -> int:
        """Count the tokens, the special ones included."""
        return len(self._ids) + END_ID + 1

    def pieces(self, caption: str) -> list[int]:
        """Cut a caption into ids, however many, without the end token."""
        return self._core.encode(caption).ids

    def rare_words(self, caption: str) -> list[str]:
        """Name the words that take several tokens, since they were rare in the captions or never there."""
        return [word for word in dict.fromkeys(split_words(caption)) if len(self.pieces(word)) > 1]

    def decode(self, tokens: torch.Tensor) -> list[str]:
        """Turn ids (B, L) back into captions, in lower case."""
        return [self._core.decode([i for i in row if i > END_ID]).strip() for row in tokens.tolist()]

    def to_dict(self) -> dict:
        """Give all that from_dict needs, in JSON's types; it is kept with the weights."""
        return {"kind": "bpe", "merges": [list(merge) for merge in self.merges], "context_length": self.context_length}

    @cached_property
    def _core(self):
        library = tokenizers_library()
        core = library.Tokenizer(library.models.BPE(self._ids, self.merges))
        core.normalizer = library.normalizers.Sequence([library.normalizers.NFC(), library.normalizers.Lowercase()])
        core.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)  # "red" is the same word anywhere
        core.decoder = library.decoders.ByteLevel()
        return core

    def _look_up(self, caption: str) -> list[int]:
        ids = self.pieces(caption)
        if len(ids) >= self.context_length:
            most = self.context_length - 1
            raise ValueError(f'"{caption:.80}" has {len(ids)} tokens; at most {most} fit: say less.')
        return ids


def tokenizers_library():
    """Import the package `tokenizers`, which only byte pairs need.

    Raises: ValueError: says how to install it.
    """
    try:
        return import_module("tokenizers")
    except ImportError:
        raise ValueError(
            'Captions of your own need the package "tokenizers": install it with pip install "minidalle[data]".'
        ) from None
