"""Captions to ids and back: nothing is lost, and nothing unknown is passed off as known."""

import json
import random
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minidalle.tokenizer import END, PAD, Tokenizer
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
    with pytest.raises(ValueError, match="a tokenizer of words was expected"):
        Tokenizer.from_dict(values)


def test_a_word_that_stands_twice_is_refused():
    with pytest.raises(ValueError, match="stands twice in the vocabulary"):
        Tokenizer(("red", "red"))
