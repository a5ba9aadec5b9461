"""Batches: the same every time, as the world says, and true of their pictures."""

import pytest
import torch

from minidalle.data.batches import World
from minidalle.world.captions import TOKENIZER, matches
from minidalle.world.grammar import parse


def test_a_step_is_the_same_batch_every_time():
    world = World(16, seed=3, hard_negatives=True)
    first, again = world.batch(7, 6), World(16, seed=3, hard_negatives=True).batch(7, 6)
    assert first.scenes == again.scenes and first.captions == again.captions
    assert torch.equal(first.images, again.images) and torch.equal(first.tokens, again.tokens)


@pytest.mark.parametrize("other", [World(16, seed=0).batch(6, 8), World(16, seed=1).batch(5, 8)])
def test_other_steps_and_seeds_give_other_batches(other):
    assert not set(World(16).batch(5, 8).scenes) & set(other.scenes)


def test_a_larger_batch_starts_with_the_smaller_ones_scenes():
    assert World(16).batch(0, 12).scenes[:5] == World(16).batch(0, 5).scenes


def test_a_batch_has_the_promised_form():
    batch = World(20, hard_negatives=True).batch(0, 7)  # odd: the last scene has no twin
    assert batch.images.shape == (7, 3, 20, 20) and batch.images.dtype == torch.float32
    assert len(batch.scenes) == len(batch.captions) == len(batch.tokens) == 7
    assert batch.tokens.shape[1] == max(len(caption.split()) for caption in batch.captions) + 1
    assert TOKENIZER.decode(batch.tokens) == batch.captions
    assert batch.mask.sum(1).tolist() == [len(caption.split()) + 1 for caption in batch.captions]


def test_a_moved_batch_is_the_same_batch():
    batch = World(16).batch(0, 3)
    moved = batch.to(torch.device("meta"))
    assert {x.device.type for x in (moved.images, moved.tokens, moved.mask)} == {"meta"}
    assert moved.captions == batch.captions and moved.scenes == batch.scenes
    assert batch.to(torch.device("cpu")).images is batch.images


def test_captions_are_true_of_their_scenes():
    batch = World(16).batch(0, 300)
    for caption, scene in zip(batch.captions, batch.scenes, strict=True):
        assert all(matches(parse(caption), scene).values()), (caption, scene)


@pytest.mark.parametrize("number", [0, -1])
def test_a_batch_of_nothing_is_refused(number):
    with pytest.raises(ValueError, match=f"batch of {number} .* 1 or more"):
        World(16).batch(0, number)


@pytest.mark.parametrize("hard_negatives", [False, True])
def test_nothing_that_another_split_keeps_is_ever_drawn(hard_negatives):
    world = World(16, seed=9, hard_negatives=hard_negatives)
    for step in range(10):
        assert {scene.split for scene in world.batch(step, 1_000).scenes} == {"seen"}


def tells_everything(caption: str) -> bool:
    said = parse(caption)
    facts = [fact for item in said.objects for fact in (item.shape, item.color, item.size)]
    return None not in (*facts, said.background, said.place if len(said.objects) == 1 else said.relation)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_full_captions_is_the_share_that_tells_everything(share):
    captions = World(16, full_captions=share).batch(0, 1_000).captions
    by_chance = 0.03  # of captions that happen to leave nothing out
    found = sum(map(tells_everything, captions)) / 1_000
    assert found == pytest.approx(share + (1 - share) * by_chance, abs=0.05)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("hard_negatives", [False, True])
def test_two_objects_is_the_share_of_pairs(share, hard_negatives):
    scenes = World(16, two_objects=share, hard_negatives=hard_negatives).batch(0, 2_000).scenes
    assert sum(len(scene.objects) == 2 for scene in scenes) / 2_000 == pytest.approx(share, abs=0.05)


def test_hard_negatives_come_in_pairs():
    plain, paired = (World(16, hard_negatives=flag).batch(0, 400).scenes for flag in (False, True))
    for scenes, expected in ((plain, 0), (paired, 200)):
        alike = [
            len(a.objects) == len(b.objects) and differences(a, b) <= 2
            for a, b in zip(scenes[::2], scenes[1::2], strict=True)
        ]
        assert abs(sum(alike) - expected) <= 20


def differences(scene, other) -> int:
    """Count in how many respects two scenes of as many objects differ."""
    respects = [(scene.background, other.background), ((scene.place, scene.relation), (other.place, other.relation))]
    for name in ("shape", "color", "size"):
        respects.append(tuple(tuple(getattr(item, name) for item in s.objects) for s in (scene, other)))
    return sum(a != b for a, b in respects)
