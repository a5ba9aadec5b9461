"""Batches of the world of signs: what is held out never comes, and shares are as they are said."""

import random
from collections import Counter

import pytest
import torch

from minidalle.data.signs import Signs, SignSource
from minidalle.training.recipes import SIGNS
from minidalle.training.stages import COLLECTIONS
from minidalle.world.sign_reader import read
from minidalle.world.sign_words import matches, parse
from minidalle.world.signs import LABELS, WORDS, Facts, Poster, draw_poster

HIDDEN = {*WORDS["held out"], *WORDS["test"]}


def of_training(hard_negatives: bool, number: int = 8) -> list[tuple[Facts, Facts]]:
    """Give what captions say and what the reader finds in batches of training."""
    source = Signs().source(32, 3, hard_negatives, 0.5)
    batches = [source.batch(step, 64) for step in range(number)]
    return [pair for b in batches for pair in zip(map(parse, b.captions), read(b.images), strict=True)]


@pytest.mark.parametrize("hard_negatives", [False, True])
def test_training_shows_what_it_says_and_nothing_that_is_held_out(hard_negatives):
    for said, shown in of_training(hard_negatives):
        assert all(matches(said, shown).values())
        kind = "quote" if said.word else "label" if shown.word else "plain"
        assert Poster(shown, ((0.0, 0.0),), quoted=kind == "quote").split == "seen"
        assert shown.word not in HIDDEN and (kind != "label" or shown.word == LABELS[shown.shape])


def test_no_hidden_word_or_combination_is_drawn_in_many_batches():
    """More than are worth drawing as pictures."""
    rng, words = random.Random(0), Counter()
    for _ in range(20_000):
        poster = draw_poster(rng, "quote")
        words[poster.facts.word] += 1
        assert poster.split == "seen"
    assert words.keys() == set(WORDS["seen"]) and min(words.values()) > 300


def test_the_shares_of_labels_and_quotes_are_those_of_the_collection():
    shown = Counter()
    source = Signs(labels=0.2, quotes=0.5).source(32, 0, False, 0.0)
    for step in range(6):
        batch = source.batch(step, 100)
        for caption, facts in zip(batch.captions, read(batch.images), strict=True):
            shown["quote" if parse(caption).word else "label" if facts.word else "plain"] += 1
    assert shown["label"] / 600 == pytest.approx(0.2, abs=0.05)
    assert shown["quote"] / 600 == pytest.approx(0.5, abs=0.06)


def test_a_batch_depends_on_seed_and_step_alone():
    source = Signs().source(32, seed=3, hard_negatives=True, full_captions=0.5)
    source.batch(0, 8)
    one, other = source.batch(7, 8), SignSource(Signs(), 32, 3, True, 0.5).batch(7, 8)
    assert torch.equal(one.images, other.images) and one.captions == other.captions
    assert source.batch(8, 8).captions != one.captions
    assert Signs().source(32, 4, True, 0.5).batch(7, 8).captions != one.captions
    assert one.images.shape == (8, 3, 32, 32) and float(one.images.abs().max()) <= 1
    assert source.tokenizer.decode(one.tokens) == one.captions


def test_captions_that_state_everything_come_as_often_as_was_asked():
    for share in (0.0, 1.0):
        said = [parse(caption) for caption in Signs().source(32, 0, False, share).batch(0, 300).captions]
        whole = sum(None not in (facts.shape, facts.color, facts.background) for facts in said) / 300
        assert whole == pytest.approx(1.0 if share else 0.7 * 0.7 * 0.5, abs=0.08)


def test_every_second_picture_is_the_twin_of_the_one_before():
    batch = Signs().source(32, 0, True, 1.0).batch(0, 60)
    facts = read(batch.images)
    for first, second in zip(facts[::2], facts[1::2], strict=True):
        differ = [name for name in vars(first) if getattr(first, name) != getattr(second, name)]
        assert len(differ) == 1 or differ == ["shape", "word"]


def test_pictures_of_another_size_are_the_same_ones():
    small, usual = (Signs().source(size, 0, False, 0.0).batch(0, 4).images for size in (16, 32))
    assert small.shape[-1] == 16
    assert torch.allclose(small, torch.nn.functional.avg_pool2d(usual, 2), atol=1e-6)


def test_the_preset_is_of_this_world_and_says_its_shares_in_every_header():
    collection = COLLECTIONS[SIGNS.world](SIGNS.recipes["quick"])
    assert collection == Signs() and collection.to_dict() == {"name": "signs", "labels": 0.3, "quotes": 0.4}
