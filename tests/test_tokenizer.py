"""Captions to ids and back: nothing is lost, and nothing unknown is passed off as known."""

import random
import re

import pytest
import torch

from minidalle import tokenizer
from minidalle.tokenizer import CONTEXT_LENGTH, END, PAD, VOCABULARY
from minidalle.world.captions import describe, known_words, write
from minidalle.world.scenes import draw_scene

LONGEST = " ".join(["red"] * (CONTEXT_LENGTH - 1))


def draw_captions(number: int, fullness: float) -> list[str]:
    rng = random.Random(0)
    return [write(describe(draw_scene(rng), rng, fullness), rng) for _ in range(number)]


@pytest.mark.parametrize("fullness", [0.0, 1.0])
def test_every_caption_of_the_world_fits_and_comes_back(fullness):
    captions = draw_captions(2000, fullness)
    tokens = tokenizer.encode(captions)
    assert tokens.shape == (len(captions), CONTEXT_LENGTH) and tokens.dtype == torch.int64
    assert tokenizer.decode(tokens) == captions


def test_case_commas_and_full_stops_do_not_matter():
    plain, typed = tokenizer.encode(["a red circle above a blue square", "A RED circle,  above a Blue square. "])
    assert torch.equal(plain, typed)


def test_a_word_is_its_place_in_the_vocabulary():
    assert (PAD, END, *known_words()) == VOCABULARY and len(set(VOCABULARY)) == len(VOCABULARY)
    tokens = tokenizer.encode(["red circle"])[0].tolist()
    words = ["red", "circle", END] + [PAD] * (CONTEXT_LENGTH - 3)
    assert [VOCABULARY[i] for i in tokens] == words


@pytest.mark.parametrize("caption", ["", "  ", " , . "])
def test_an_empty_caption_is_the_end_token_alone(caption):
    tokens = tokenizer.encode([caption])
    assert [VOCABULARY[i] for i in tokens[0]] == [END] + [PAD] * (CONTEXT_LENGTH - 1)
    assert tokenizer.decode(tokens) == [""]


def test_mask_and_end_count_the_words_and_the_end_token():
    captions = ["", "red", "a red circle", LONGEST]
    tokens = tokenizer.encode(captions)
    mask, ends = tokenizer.caption_mask(tokens), tokenizer.end_positions(tokens)
    for caption, row, seen, end in zip(captions, tokens, mask, ends, strict=True):
        number = len(caption.split())
        assert end == number and VOCABULARY[row[end]] == END
        assert seen.tolist() == [True] * (number + 1) + [False] * (CONTEXT_LENGTH - number - 1)


def test_ends_do_not_move_when_padding_is_cut_off():
    tokens = tokenizer.encode(["red", "a red circle"])
    assert torch.equal(tokenizer.end_positions(tokens[:, :4]), tokenizer.end_positions(tokens))


def test_a_caption_that_is_too_long_is_refused():
    tokenizer.encode([LONGEST])
    with pytest.raises(ValueError, match=f"{CONTEXT_LENGTH} words; at most {CONTEXT_LENGTH - 1} fit"):
        tokenizer.encode([LONGEST + " circle"])


def test_unknown_words_are_named_with_all_that_are_known():
    with pytest.raises(ValueError, match=re.escape('"sphere", "mauve"')) as caught:
        tokenizer.encode(["a red circle", "a sphere above a mauve square"])
    for word in known_words():
        assert f" {word}" in str(caught.value)
    assert '"red"' not in str(caught.value)


def test_a_near_word_is_offered_and_a_far_one_is_not():
    with pytest.raises(ValueError, match='Did you mean "circle"'):
        tokenizer.encode(["a cirkle"])
    with pytest.raises(ValueError, match="Unknown in the prompt") as caught:
        tokenizer.encode(["a xyzzy"])
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("special", [PAD, END, "<END>"])
def test_the_special_tokens_are_no_words(special):
    with pytest.raises(ValueError, match=f'Unknown in the prompt: "{special.lower()}"') as caught:
        tokenizer.encode([f"a red {special} circle"])
    known = str(caught.value).split("known words are:")[1]
    assert PAD not in known and END not in known
