"""The emoji world: what names say, what is held out, and what training draws."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from minidalle.data.emoji import (
    BLOCK,
    CELLS,
    GENDERS,
    SPLITS,
    TONES,
    EmojiCollection,
    EmojiSet,
    EmojiSource,
    all_captions,
    cut,
    full_captions,
    open_captions,
    parse_name,
    shipped_emojis,
    split_gender,
)
from minidalle.data.images import to_pil
from minidalle.tokenizer import split_words


@pytest.fixture(scope="module")
def emojis() -> EmojiSet:
    """Load the shipped set."""
    return shipped_emojis()


@pytest.mark.parametrize(
    ("name", "base", "tones", "plain"),
    [
        ("woman astronaut: dark skin tone", "woman astronaut", ("dark",), "woman astronaut, dark skin tone"),
        ("man: light skin tone, beard", "man, beard", ("light",), "man, beard, light skin tone"),
        ("flag: Cocos (Keeling) Islands", "flag, Cocos Keeling Islands", (), "flag, Cocos Keeling Islands"),
        ("Japanese “congratulations” button", "Japanese congratulations button", (), None),
        (
            "kiss: woman, man, medium-light skin tone, dark skin tone",
            "kiss, woman, man",
            ("medium-light", "dark"),
            "kiss, woman, man, medium-light skin tone, dark skin tone",
        ),
    ],
)
def test_a_name_is_read(name, base, tones, plain):
    emoji = parse_name("x", name, [])
    assert (emoji.base, emoji.tones, emoji.name) == (base, tones, plain or base)


@pytest.mark.parametrize(
    ("base", "role", "gender"),
    [
        ("astronaut", "astronaut", "person"),
        ("woman astronaut", "astronaut", "woman"),
        ("men with bunny ears", "with bunny ears", "man"),
        ("person, beard", "beard", "person"),
        ("mermaid", "merperson", "woman"),
        ("kiss, woman, man", "kiss,", "several"),
    ],
)
def test_a_person_is_split_into_role_and_gender(base, role, gender):
    assert split_gender(base) == (role, gender)


def test_every_name_is_of_one_picture(emojis):
    assert len(emojis) == len(emojis.by_name) == 3771
    flat = emojis.pixels.flatten(1).numpy()
    assert len({row.tobytes() for row in flat}) == len(emojis)


def test_roles_are_there_in_all_genders_and_most_in_all_tones(emojis):
    cells = Counter(emoji.role for emoji in emojis.emojis if emoji.role is not None)
    assert all(size >= 3 for size in cells.values())
    assert sum(size == 3 * (1 + len(TONES)) for size in cells.values()) == 83
    assert {e.gender for e in emojis.emojis if e.role is not None} == set(GENDERS.values())


def test_the_splits_share_no_picture_and_hold_out_what_they_say(emojis):
    numbers = {split: set(emojis.of_split(split)) for split in SPLITS}
    assert sum(map(len, numbers.values())) == len(set.union(*numbers.values())) == len(emojis)
    for split, cells in CELLS.items():
        per_role = Counter(emojis.emojis[n].role for n in numbers[split] if emojis.emojis[n].role is not None)
        assert len(per_role) == 83 and min(per_role.values()) >= cells
        per_couple = Counter(emojis.emojis[n].base for n in numbers[split] if len(emojis.emojis[n].tones) == 2)
        assert set(per_couple.values()) == {3}
    whole = {e.role for e in emojis.emojis if e.role is not None and e.tones == (BLOCK[1],)}
    unseen = {
        role
        for role in whole
        if all(e.split != "seen" for e in emojis.emojis if e.role == role and e.tones == (BLOCK[1],))
    }
    assert len(unseen) >= BLOCK[0]


def test_every_word_of_a_held_out_name_occurs_in_training(emojis):
    seen = [emojis.emojis[n] for n in emojis.of_split("seen")]
    known = {word for e in seen for caption in all_captions(e, emojis.neutral(e)) for word in split_words(caption)}
    hidden = [emojis.emojis[n] for split in ("held out", "test") for n in emojis.of_split(split)]
    assert {word for emoji in hidden for word in split_words(emoji.name)} <= known


def test_training_never_draws_what_is_held_out(emojis):
    names = {n: set(map(str.lower, full_captions(emojis.emojis[n]))) for n in range(len(emojis))}
    hidden = {name for split in ("held out", "test") for n in emojis.of_split(split) for name in names[n]}
    for hard_negatives in (False, True):
        source = EmojiSource(emojis, 32, 5, hard_negatives, 0.8)
        drawn = [caption.lower() for step in range(40) for caption in source.batch(step, 128).captions]
        assert not hidden & set(drawn)
    near = {other for group in emojis.siblings for other in group}
    assert near <= set(emojis.of_split("seen"))


def test_a_batch_depends_on_seed_and_step_alone(emojis):
    source = EmojiCollection(emojis).source(32, seed=3, hard_negatives=True, full_captions=0.5)
    source.batch(0, 8)
    one, other = source.batch(7, 8), EmojiSource(emojis, 32, 3, True, 0.5).batch(7, 8)
    assert torch.equal(one.images, other.images) and one.captions == other.captions
    assert source.batch(8, 8).captions != one.captions
    assert one.images.shape == (8, 3, 32, 32) and one.images.min() >= -1 and one.images.max() <= 1
    assert source.tokenizer.decode(one.tokens) == [" ".join(split_words(caption)) for caption in one.captions]


def test_a_picture_is_moved_by_at_most_a_pixel_and_is_the_one_that_is_said(emojis):
    source = EmojiSource(emojis, 32, 1)
    batch = source.batch(0, 40)
    corners = set()
    for image, caption in zip(batch.images, batch.captions, strict=True):
        matching = [n for n in emojis.of_split("seen") if caption in full_captions(emojis.emojis[n])]
        shifts = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
        inner = image[:, 2:-2, 2:-2]
        moved = [
            shift
            for n in matching
            for shift in shifts
            if torch.allclose(torch.roll(emojis.images([n])[0], shift, (1, 2))[:, 2:-2, 2:-2], inner, atol=1e-6)
        ]
        assert moved
        corners.add(moved[0])
    assert len(corners) == 9


def test_siblings_differ_in_gender_or_tone_where_there_are_such(emojis):
    number = emojis.by_name["woman astronaut dark skin tone"]
    found = [emojis.emojis[n] for n in emojis.siblings[number]]
    assert len(found) >= 14 and {e.role for e in found} == {"astronaut"}
    cat = emojis.siblings[emojis.by_name["grinning cat"]]
    assert cat and all({"grinning", "cat"} & set(split_words(emojis.emojis[n].base)) for n in cat)


def test_a_caption_leaves_open_what_it_marks_with_some(emojis):
    emoji = emojis.emojis[emojis.by_name["woman astronaut dark skin tone"]]
    assert open_captions(emoji, emojis.neutral(emoji)) == [
        "woman astronaut, some skin tone",
        "some astronaut, dark skin tone",
        "woman of some role, dark skin tone",
    ]
    pizza = emojis.emojis[emojis.by_name["pizza"]]
    assert open_captions(pizza, emojis.neutral(pizza)) == [] and full_captions(pizza) == ["pizza"]
    source = EmojiSource(emojis, 32, 0, full_captions=0.0)
    drawn = [caption for step in range(20) for caption in source.batch(step, 64).captions]
    assert 0.4 < sum("some" in caption.split() for caption in drawn) / len(drawn) < 0.9


def test_an_atlas_is_cut_row_by_row():
    tiles = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((6, 8, 8, 3), np.uint8)
    atlas = tiles.reshape(2, 3, 8, 8, 3).transpose(0, 2, 1, 3, 4).reshape(16, 24, 3)
    assert (cut(atlas, 8, 5)[:, 0, 0, 0] == np.arange(5)).all()
    with pytest.raises(ValueError, match="holds 6 pictures of 7"):
        cut(atlas, 8, 7)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "atlas.png").unlink(),
        lambda folder: (folder / "emoji.json").unlink(),
        lambda folder: (folder / "emoji.json").write_text("[]"),
        lambda folder: (folder / "emoji.json").write_text('{"size": 0, "emoji": []}'),
        lambda folder: (folder / "emoji.json").write_text('{"size": 8, "emoji": [["a"]]}'),
        lambda folder: (folder / "emoji.json").write_text(json.dumps({"size": 8, "emoji": [["a", "b", []]] * 9})),
        lambda folder: (folder / "atlas.png").write_bytes(b"no picture"),
    ],
)
def test_a_damaged_set_is_refused_by_name(tmp_path, spoil):
    Image.new("RGB", (16, 8), "white").save(tmp_path / "atlas.png")
    (tmp_path / "emoji.json").write_text(json.dumps({"size": 8, "emoji": [["a", "b", []], ["c", "d", []]]}))
    assert len(EmojiSet(tmp_path)) == 2
    spoil(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path.name} holds no set of emoji"):
        EmojiSet(tmp_path)


def test_pictures_show_their_names(emojis):
    """Look at the colours of a few: the atlas and the list of names are in the same order."""

    def middle(name: str) -> np.ndarray:
        return np.array(to_pil(emojis.images([emojis.by_name[name]]))[0])[10:22, 10:22].reshape(-1, 3).mean(0)

    for name, channel in {"red heart": 0, "green heart": 1, "blue heart": 2, "red circle": 0, "blue circle": 2}.items():
        assert middle(name).argmax() == channel, name
    pale, dark = (middle(f"baby {tone} skin tone").sum() for tone in ("light", "dark"))
    assert pale > dark + 100
