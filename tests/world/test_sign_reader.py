"""The reader of the world of signs reads what was drawn, and says so where nothing can be read."""

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from minidalle.world.letters import GLYPHS
from minidalle.world.scenes import SHAPES
from minidalle.world.sign_reader import connected, cut, read
from minidalle.world.signs import KINDS, SPLITS, Facts, Poster, draw_poster, render


def with_noise(images: torch.Tensor, size: float, seed: int = 0) -> torch.Tensor:
    """Add noise, and stay in the range."""
    return (images + size * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))).clamp(-1, 1)


@given(st.integers(0, 2**32), st.text("".join(GLYPHS), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_what_is_drawn_is_read_with_a_little_noise_too(seed, letters):
    rng = random.Random(seed)
    posters = [draw_poster(rng, rng.choice(KINDS), rng.choice(SPLITS)) for _ in range(3)]
    posters.append(replace(posters[0], facts=replace(posters[0].facts, word=letters)))
    images, facts = render(posters), [poster.facts for poster in posters]
    assert read(images) == facts
    assert read(with_noise(images, 0.05, seed)) == facts


def test_a_thousand_pictures_are_read_without_a_mistake():
    rng = random.Random(0)
    posters = [draw_poster(rng, kind, split) for kind in KINDS for split in SPLITS for _ in range(110)]
    assert read(render(posters)) == [poster.facts for poster in posters]


def test_a_blurred_and_a_larger_picture_are_read():
    rng = random.Random(1)
    posters = [draw_poster(rng, rng.choice(KINDS)) for _ in range(60)]
    images, facts = render(posters), [poster.facts for poster in posters]
    soft = 0.6 * images + 0.4 * F.avg_pool2d(F.pad(images, [1] * 4, mode="replicate"), 3, stride=1)
    assert sum(a == b for a, b in zip(read(soft), facts, strict=True)) >= 57
    assert read(F.interpolate(images, scale_factor=2.0, mode="nearest")) == facts


def poster(word: str | None = None, count: int = 2) -> Poster:
    """Make a picture of blue rings."""
    centers = ((-0.5, -0.695), (0.5, -0.055), (0.5, -0.695), (-0.5, -0.055))[:count]
    return Poster(Facts(count, "ring", "blue", "white", word), centers)


def test_each_part_is_unreadable_by_itself():
    (image,) = render([poster("fox")])
    whole = Facts(2, "ring", "blue", "white", "fox")
    assert read(image[None]) == [whole]
    tinted, smeared, dirty, empty = image.clone(), image.clone(), image.clone(), image.clone()
    tinted[:, :20] = tinted[:, :20] * 0.4  # no background is so grey
    smeared[:, 21:31, 0:7] = smeared[:, 21:31, 0:7].mean((1, 2), keepdim=True)
    dirty[:, 20:] = torch.linspace(-1, 1, 32)
    empty[:, :20] = empty[:, :1, :1]
    readings = read(torch.stack([tinted, smeared, dirty, empty]))
    assert readings[0].background is None and readings[0].word == "fox"
    assert readings[1] == replace(whole, word="?ox")
    assert readings[2] == replace(whole, word="????")
    assert readings[3] == Facts(None, None, None, "white", "fox")


def test_objects_that_differ_have_no_common_shape_and_are_counted_all_the_same():
    pictures = render([poster(), replace(poster(), facts=replace(poster().facts, shape="square", color="red"))])
    mixed = torch.cat([pictures[0, :, :, :16], pictures[1, :, :, 16:]], dim=2)
    assert read(mixed[None]) == [Facts(2, None, None, "white", None)]


def test_a_speck_is_no_object_and_a_fifth_object_is_counted():
    (image,) = render([poster(count=4)])
    speck, fifth = image.clone(), image.clone()
    speck[:, 18, 30] = 0.3
    fifth[:, 7:13, 14:18] = torch.tensor([-0.6, -0.4, 0.7])[:, None, None]
    assert [facts.count for facts in read(torch.stack([speck, fifth]))] == [4, 5]


def test_noise_is_no_picture():
    noise = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for facts in read(noise):
        assert (facts.shape, facts.color, facts.word) == (None, None, "????")


def test_nothing_is_read_of_nothing_and_a_wrong_range_is_refused():
    assert read(torch.zeros(0, 3, 32, 32)) == []
    with pytest.raises(ValueError, match="rescale or clamp"):
        read(torch.full((1, 3, 32, 32), 3.0))


def test_pieces_are_numbered_by_what_hangs_together():
    mask = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 1]], dtype=torch.bool)
    labels = connected(mask)
    assert torch.equal(labels > 0, mask)
    assert labels[0, 0] == labels[1, 1] and labels[0, 3] == labels[1, 3] and labels[3, 0] == labels[3, 1]
    assert len(labels.unique()) == 1 + 4


def test_no_piece_holds_any_of_another_however_near():
    foreground = torch.zeros(3, 12, 12)
    foreground[0, 2:8, 1:5], foreground[1, 2:8, 6:10], foreground[:, 2, 5] = 1.0, 1.0, 0.1  # and a faint edge of both
    pieces = cut(foreground, torch.tensor(0.4))
    assert len(pieces) == 2
    for piece, channel, other in zip(pieces, (0, 1), (1, 0), strict=True):
        assert float(piece[channel].sum()) == pytest.approx(24.1) and float(piece[other].sum()) == pytest.approx(0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_read_in_every_count(shape):
    posters = [replace(poster(count=n), facts=Facts(n, shape, "blue", "white")) for n in (2, 3, 4)]
    assert read(render(posters)) == [one.facts for one in posters]
