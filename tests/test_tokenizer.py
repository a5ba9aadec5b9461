"""Captions to ids and back: nothing is lost, and nothing unknown is passed off as known."""

import itertools
import json
import random
import re
import sys
import unicodedata
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minidalle.tokenizer import END, MAX_MERGES, PAD, BytePairTokenizer, Tokenizer
from minidalle.world.captions import TOKENIZER, describe, known_words, write
from minidalle.world.scenes import SPLITS, draw_scene

SMALL = Tokenizer(("a", "red", "circle"), context_length=6)
LONGEST = " ".join(["red"] * (TOKENIZER.context_length - 1))


def names(row: torch.Tensor) -> list[str]:
    """Read ids without the tokenizer's own way back."""
    return [(PAD, END, *known_words())[i] for i in row.tolist()]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("fullness", [0.0, 1.0])
def test_every_caption_of_the_world_fits_and_comes_back(fullness, split):
    rng = random.Random(0)
    captions = [write(describe(draw_scene(rng, 0.7, split), rng, fullness), rng) for _ in range(1000)]
    tokens, mask = TOKENIZER.encode(captions)
    assert tokens.dtype == torch.int64 and mask.dtype == torch.bool and mask.shape == tokens.shape
    assert tokens.shape[1] <= TOKENIZER.context_length
    assert TOKENIZER.decode(tokens) == captions


@given(st.lists(st.lists(st.sampled_from(SMALL.words), max_size=5).map(" ".join), max_size=5))
def test_rows_are_as_short_as_the_longest_caption_allows(captions):
    tokens, mask = SMALL.encode(captions)
    lengths = [len(caption.split()) + 1 for caption in captions]
    assert tokens.shape == mask.shape == (len(captions), max(lengths, default=0))
    assert mask.sum(1).tolist() == lengths and not (mask.int().diff(dim=1) > 0).any()
    assert SMALL.decode(tokens) == captions


def test_case_commas_and_full_stops_do_not_matter():
    plain, typed = TOKENIZER.encode(["a red circle above a blue square", "A RED circle,  above a Blue square. "])[0]
    assert torch.equal(plain, typed)


def test_a_word_is_its_place_in_the_vocabulary():
    tokens, mask = TOKENIZER.encode(["red circle", "red", ""])
    assert [names(row) for row in tokens] == [["red", "circle", END], ["red", END, PAD], [END, PAD, PAD]]
    assert mask.tolist() == [[True, True, True], [True, True, False], [True, False, False]]
    assert TOKENIZER.vocab_size == 2 + len(known_words()) and TOKENIZER.words == known_words()


@pytest.mark.parametrize("caption", ["", "  ", " , . "])
def test_an_empty_caption_is_the_end_token_alone(caption):
    tokens, _ = TOKENIZER.encode([caption])
    assert names(tokens[0]) == [END] and TOKENIZER.decode(tokens) == [""]


def test_a_caption_that_is_too_long_is_refused():
    longest = TOKENIZER.context_length - 1
    assert TOKENIZER.encode([LONGEST])[0].shape == (1, longest + 1)
    with pytest.raises(ValueError, match=f"{longest + 1} words; at most {longest} fit"):
        TOKENIZER.encode([LONGEST + " circle"])


def test_unknown_words_are_named_with_all_that_are_known():
    with pytest.raises(ValueError, match=re.escape('"sphere", "mauve"')) as caught:
        TOKENIZER.encode(["a red circle", "a sphere above a mauve square"])
    for word in known_words():
        assert f" {word}" in str(caught.value)
    assert '"red"' not in str(caught.value)


def test_a_near_word_is_offered_and_a_far_one_is_not():
    with pytest.raises(ValueError, match='Did you mean "circle"'):
        TOKENIZER.encode(["a cirkle"])
    with pytest.raises(ValueError, match="Unknown in the prompt") as caught:
        TOKENIZER.encode(["a xyzzy"])
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("special", [PAD, END, "<END>"])
def test_the_special_tokens_are_no_words(special):
    with pytest.raises(ValueError, match=f'Unknown in the prompt: "{special.lower()}"') as caught:
        TOKENIZER.encode([f"a red {special} circle"])
    known = str(caught.value).split("known words are:")[1]
    assert PAD not in known and END not in known


def test_a_tokenizer_survives_the_way_through_json():
    again = Tokenizer.from_dict(json.loads(json.dumps(SMALL.to_dict())))
    assert again.words == SMALL.words and again.context_length == 6 and again.vocab_size == 5
    assert torch.equal(again.encode(["a red circle"])[0], SMALL.encode(["a red circle"])[0])


@pytest.mark.parametrize("values", [{}, {"kind": "bytes"}, {"kind": None, "words": []}])
def test_a_tokenizer_of_another_kind_is_refused(values):
    with pytest.raises(ValueError, match='a tokenizer of kind "words" or "bpe" was expected'):
        Tokenizer.from_dict(values)


CAPTIONS = [f"a {color} {shape}" for color in ("red", "blue", "green") for shape in ("circle", "square")] * 3
PAIRS = BytePairTokenizer.trained(CAPTIONS, context_length=200)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_comes_back_from_its_bytes(text):
    text = " ".join(text.split())
    tokens, mask = PAIRS.encode([text, "red"])
    assert tokens.max() < PAIRS.vocab_size and tokens.min() >= 0
    assert PAIRS.decode(tokens)[0] == unicodedata.normalize("NFC", text).lower().strip()
    assert mask[0].sum() <= 2 + len(unicodedata.normalize("NFC", text).lower().encode())


def test_what_is_frequent_is_one_token_wherever_it_stands():
    assert len(PAIRS.pieces("red")) == len(PAIRS.pieces("circle")) == 1
    assert PAIRS.pieces("a red circle") == PAIRS.pieces("a") + PAIRS.pieces("red") + PAIRS.pieces("circle")
    assert PAIRS.pieces("A RED Circle") == PAIRS.pieces("a red circle")
    assert len(PAIRS.pieces("zebra")) > 3


def test_rare_words_are_those_that_no_token_stands_for():
    assert PAIRS.rare_words("A red zebra, a blue zebra. On Mars") == ["zebra", "on", "mars"]
    assert PAIRS.rare_words("a green square") == PAIRS.rare_words("") == []


def test_byte_pairs_merge_the_most_frequent_neighbours_first():
    """Sennrich et al. 2016, algorithm 1, by hand."""
    words = [[" ", *word] for caption in CAPTIONS for word in caption.split()]
    for merge in PAIRS.merges:
        pair = tuple("".join(part).replace("Ġ", " ") for part in merge)
        counts = Counter(neighbours for word in words for neighbours in itertools.pairwise(word))
        assert counts[pair] == max(counts.values()) >= 2
        for word in words:
            k = 0
            while k < len(word) - 1:
                if (word[k], word[k + 1]) == pair:
                    word[k : k + 2] = ["".join(pair)]
                k += 1
    assert not [count for count in Counter(n for w in words for n in itertools.pairwise(w)).values() if count >= 2]


def test_byte_pairs_are_the_same_every_time_and_no_more_than_asked_for():
    assert BytePairTokenizer.trained(iter(CAPTIONS), context_length=200).merges == PAIRS.merges
    few = BytePairTokenizer.trained(CAPTIONS, vocab_size=264)
    assert few.vocab_size == 264 and few.merges == PAIRS.merges[:6]
    assert BytePairTokenizer.trained([]).vocab_size == 258


@pytest.mark.parametrize("special", [PAD, END])
def test_the_special_tokens_are_plain_text_in_byte_pairs(special):
    trained = BytePairTokenizer.trained([special] * 9)
    tokens, mask = trained.encode([f"a {special} b"])
    assert trained.decode(tokens) == [f"a {special} b"] and mask.all() and (tokens == 1).sum() == 1


def test_byte_pairs_survive_the_way_through_json():
    again = Tokenizer.from_dict(json.loads(json.dumps(PAIRS.to_dict())))
    assert isinstance(again, BytePairTokenizer) and again.merges == PAIRS.merges and again.context_length == 200
    assert again.vocab_size == PAIRS.vocab_size
    assert torch.equal(again.encode(CAPTIONS)[0], PAIRS.encode(CAPTIONS)[0])


def test_a_prompt_of_too_many_tokens_is_refused():
    short = BytePairTokenizer(PAIRS.merges, 4)
    assert short.encode(["a red circle"])[0].shape == (1, 4)
    with pytest.raises(ValueError, match='"a red circle circle" has 4 tokens; at most 3 fit: say less'):
        short.encode(["a red circle circle"])


BAD_PAIRS = {
    "a token that is not there": ([["aa", "b"]], 20, "is no merge of two tokens"),
    "three tokens": ([["a", "b", "c"]], 20, "is no merge of two tokens"),
    "a text": (["abc"], 20, "is no merge of two tokens"),
    "numbers": ([[1, 2]], 20, "is no merge of two tokens"),
    "a letter for no byte": ([["a", "円"]], 20, "is no merge of two tokens"),
    "tokens without end": ([["a" * 2**k] * 2 for k in range(20)], 20, "makes a token of more than 32 bytes"),
    "too many": ([["a", "b"]] * (MAX_MERGES + 1), 20, f"at most {MAX_MERGES} were expected"),
    "no room": ([], 1, "The context length is 1"),
    "a giant context": ([], 10**9, "The context length is 1000000000"),
    "a context of no number": ([], "20", "The context length is '20'"),
}


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_byte_pairs_of_a_damaged_header_are_refused(name):
    merges, length, reason = BAD_PAIRS[name]
    with pytest.raises(ValueError, match=reason) as refused:
        Tokenizer.from_dict({"kind": "bpe", "merges": merges, "context_length": length})
    assert len(str(refused.value)) < 200


def test_byte_pairs_without_their_library_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(
        ValueError, match=r'need the package "tokenizers": install it with pip install "minidalle\[data'
    ):
        BytePairTokenizer.trained(CAPTIONS)
    assert SMALL.encode(["a red circle"])[0].shape == (1, 4)  # words need none


def test_a_word_that_stands_twice_is_refused():
    with pytest.raises(ValueError, match="stands twice in the vocabulary"):
        Tokenizer(("red", "red"))
