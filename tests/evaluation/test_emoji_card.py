"""The emoji report card: real pictures are read as themselves, and nothing else is."""

import pytest
import torch

from minidalle.data.emoji import shipped_emojis
from minidalle.evaluation.emoji_card import (
    SAME,
    UNREADABLE,
    EmojiReader,
    additive,
    ask,
    check,
    emoji_card,
    score,
    to_text,
)
from minidalle.pipeline import MiniDalle


@pytest.fixture(scope="module")
def reader() -> EmojiReader:
    """Read by the shipped set."""
    return EmojiReader(shipped_emojis())


def some(n: int, seed: int = 0) -> list[int]:
    """Draw numbers of emoji."""
    return torch.randperm(len(shipped_emojis()), generator=torch.Generator().manual_seed(seed))[:n].tolist()


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (-1, 1)])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_real_picture_is_read_as_itself_moved_and_noisy(reader, shift, noise):
    numbers, generator = some(100), torch.Generator().manual_seed(1)
    images = torch.nn.functional.pad(reader.emojis.images(numbers), [1] * 4, value=1.0)
    images = images[:, :, 1 + shift[0] : 33 + shift[0], 1 + shift[1] : 33 + shift[1]]
    images = (images + noise * torch.randn(images.shape, generator=generator)).clamp(-1, 1)
    readings = reader.read(images)
    assert sum(reading.number == number for reading, number in zip(readings, numbers, strict=True)) >= 98
    assert all(reading.distance <= UNREADABLE for reading in readings)


def test_distances_are_the_least_root_mean_square_over_shifts(reader):
    image = reader.emojis.images(some(1))[0]
    other = reader.emojis.images(some(1, seed=5))[0]
    mixed = (0.6 * image + 0.4 * other)[None]
    (reading,) = reader.read(mixed)
    padded = torch.nn.functional.pad(mixed, [1] * 4, value=1.0)
    shifts = torch.cat([padded[:, :, y : y + 32, x : x + 32] for y in range(3) for x in range(3)])
    every = (shifts[:, None] - reader.emojis.images()[None]).square().flatten(2).mean(-1).sqrt().amin(0)
    assert reading.number == int(every.argmin()) and reading.distance == pytest.approx(float(every.min()), abs=1e-3)
    trained = every[reader.shown].min()
    assert reading.from_training == pytest.approx(float(trained), abs=1e-3)


def test_noise_and_plain_colours_are_no_emoji(reader):
    noise = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    assert all(reading.distance > UNREADABLE for reading in reader.read(noise))


def test_a_larger_picture_is_read_at_the_size_of_the_set(reader):
    numbers = some(20)
    large = torch.nn.functional.interpolate(reader.emojis.images(numbers), scale_factor=2.0, mode="nearest")
    assert [reading.number for reading in reader.read(large)] == numbers


def test_parts_of_a_name_are_told_apart():
    emojis = shipped_emojis()
    names = ("woman astronaut dark skin tone", "man astronaut dark skin tone", "woman pilot light skin tone", "pizza")
    woman, man, pilot, pizza = (emojis.emojis[emojis.by_name[name]] for name in names)
    assert check(woman, woman) == {"exact": True, "role": True, "gender": True, "tone": True}
    assert check(woman, man) == {"exact": False, "role": True, "gender": False, "tone": True}
    assert check(woman, pilot) == {"exact": False, "role": False, "gender": True, "tone": False}
    assert check(woman, pizza) == {"exact": False, "role": False, "gender": False, "tone": False}
    assert check(pizza, pizza) == {"exact": True}


def test_what_is_a_training_picture_is_counted_as_such(reader):
    emojis = reader.emojis
    seen, hidden = ask(emojis, "seen", 60, 0), ask(emojis, "held out", 60, 0)
    assert score(emojis, seen, reader.read(emojis.images(seen)))["memorised"].share == 1
    real = score(emojis, hidden, reader.read(emojis.images(hidden)))
    assert real["exact"].share == 1 and real["memorised"].share < 0.5 and SAME < 0.1


def test_pixel_arithmetic_takes_three_pictures_of_training(reader):
    emojis = reader.emojis
    hidden = emojis.of_split("held out")
    numbers, pictures = additive(emojis, hidden)
    assert set(numbers) <= set(hidden) and len(numbers) == len(pictures) == 164 and pictures.abs().max() <= 1
    assert score(emojis, numbers, reader.read(pictures))["exact"].share > 0.9


def test_each_split_is_asked_whole_or_in_part():
    emojis = shipped_emojis()
    assert ask(emojis, "held out", 500, 0) == emojis.of_split("held out")
    assert len(ask(emojis, "seen", 50, 0)) == 50 and ask(emojis, "seen", 50, 0) != ask(emojis, "seen", 50, 1)


def test_the_shipped_weights_draw_what_they_were_never_shown():
    pipe = MiniDalle.from_pretrained("emoji")
    card = emoji_card(pipe, n=12, num_inference_steps=2, prior_num_inference_steps=12)
    assert list(card["following"]) == [
        "seen", "seen, true z_image", "held out", "held out, true z_image", "held out, additive",
    ]  # fmt: skip
    assert card["following"]["held out"]["exact"].share > 0.7 and card["following"]["seen"]["exact"].share > 0.7
    assert card["retrieval"]["held out"].share > 0.85
    text = to_text(card)
    assert max(map(len, text.splitlines())) <= 130 and "memorised" in text
