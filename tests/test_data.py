"""Batches and folders: the same every time, nothing held out, and broken input named by file and line."""

import json
import struct
import zlib
from dataclasses import astuple

import pytest
import torch
from PIL import Image

from minidalle import tokenizer
from minidalle.data.batches import World
from minidalle.data.folders import load_folder, save_folder
from minidalle.data.images import MAX_PIXELS, from_pil, to_pil
from minidalle.world.captions import matches, parse
from minidalle.world.scenes import Scene


def test_pictures_survive_the_way_there_and_back():
    images = torch.rand(5, 3, 24, 24) * 2 - 1
    again = from_pil(to_pil(images), 24)
    assert again.dtype == torch.float32
    assert (again - images).abs().max() <= 1 / 127.5  # a grey level
    assert torch.equal(from_pil(to_pil(again), 24), again)


def test_the_ends_of_the_range_are_black_and_white_and_more_is_clipped():
    values = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).repeat(3, 5, 1)[None]
    row = [to_pil(values)[0].getpixel((x, 0))[0] for x in range(5)]
    assert row == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "RGB"])
def test_any_kind_of_picture_is_cut_to_its_middle_square(mode):
    picture = Image.new("RGB", (30, 10), "red")
    picture.paste((0, 0, 255), (10, 0, 20, 10))
    (image,) = from_pil([picture.convert(mode)], 8)
    assert image.shape == (3, 8, 8)
    assert image.flatten(1).std(1).max() < 1e-6  # one colour: none of the red to the left and right


def test_a_step_is_the_same_batch_every_time():
    world = World(16, seed=3, twins=True)
    first, again = world.batch(7, 6), World(16, seed=3, twins=True).batch(7, 6)
    assert first.scenes == again.scenes and first.captions == again.captions
    assert torch.equal(first.images, again.images) and torch.equal(first.tokens, again.tokens)


@pytest.mark.parametrize("other", [World(16, seed=0).batch(6, 8), World(16, seed=1).batch(5, 8)])
def test_other_steps_and_seeds_give_other_batches(other):
    assert not set(World(16).batch(5, 8).scenes) & set(other.scenes)


def test_a_larger_batch_starts_with_the_smaller_ones_scenes():
    assert World(16).batch(0, 12).scenes[:5] == World(16).batch(0, 5).scenes


def test_a_batch_has_the_promised_form():
    batch = World(20, twins=True).batch(0, 7)  # odd: the last scene has no twin
    assert batch.images.shape == (7, 3, 20, 20) and batch.images.dtype == torch.float32
    assert len(batch.scenes) == len(batch.captions) == len(batch.tokens) == 7
    assert batch.tokens.shape[1] == max(len(tokenizer.words_of(caption)) for caption in batch.captions) + 1
    assert tokenizer.decode(batch.tokens) == batch.captions


def test_captions_are_true_of_their_scenes():
    batch = World(16).batch(0, 300)
    for caption, scene in zip(batch.captions, batch.scenes, strict=True):
        assert all(matches(parse(caption), scene).values()), (caption, scene)


@pytest.mark.parametrize("number", [0, -1])
def test_a_batch_of_nothing_is_refused(number):
    with pytest.raises(ValueError, match=f"batch of {number} .* 1 or more"):
        World(16).batch(0, number)


def facts(scene: Scene) -> dict:
    """List what a twin may change."""
    found = {name: tuple(getattr(thing, name) for thing in scene.things) for name in ("shape", "color", "size")}
    return found | {"where": (scene.place, scene.relation), "background": scene.background}


def test_twins_differ_in_one_fact_or_in_a_swap():
    changed, swapped_both = {1: set(), 2: set()}, 0
    scenes = World(16, twins=True).batch(0, 2_000).scenes
    for scene, other in zip(scenes[::2], scenes[1::2], strict=True):
        before, after = facts(scene), facts(other)
        names = [name for name in before if before[name] != after[name]]
        if names == ["shape", "color"]:  # of two things, both swapped
            assert len(scene.things) == 2 and all(after[name] == before[name][::-1] for name in names)
            swapped_both += 1
            continue
        (name,) = names
        changed[len(scene.things)].add(name)
        if name in ("shape", "color") and len(scene.things) == 2:
            places = sum(a != b for a, b in zip(before[name], after[name], strict=True))
            assert places == 1 or after[name] == before[name][::-1]
        if name != "where":
            assert [astuple(t)[3:] for t in scene.things] == [astuple(t)[3:] for t in other.things]
    assert changed == {
        1: {"shape", "color", "size", "where", "background"},
        2: {"shape", "color", "where", "background"},
    }
    assert swapped_both > 30  # of about 500 twins of two things, a seventh


@pytest.mark.parametrize("twins", [False, True])
def test_nothing_that_is_held_out_is_ever_drawn(twins):
    world = World(16, seed=9, twins=twins)
    for step in range(10):
        assert not any(scene.is_held_out for scene in world.batch(step, 1_000).scenes)


def test_a_folder_is_read_as_it_was_written(tmp_path):
    batch = World(24).batch(0, 6)
    save_folder(batch, tmp_path / "new" / "folder")
    images, captions = load_folder(tmp_path / "new" / "folder", 24)
    assert captions == batch.captions
    assert images.shape == batch.images.shape and (images - batch.images).abs().max() <= 1 / 127.5
    assert load_folder(tmp_path / "new" / "folder", 16)[0].shape == (6, 3, 16, 16)


def test_a_caption_may_hold_any_character(tmp_path):
    save_folder(World(16).batch(0, 1), tmp_path)
    row = {
        "file_name": "0000.png",
        "text": "ein roter Kreis \u2028 \U0001f534",
    }  # U+2028 ends a line for str.splitlines
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert load_folder(tmp_path, 16)[1] == [row["text"]]


def png(width: int, height: int) -> bytes:
    """Make a PNG file that announces a size and holds nothing."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT")
    parts = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


GOOD = json.dumps({"file_name": "0000.png", "text": "a red circle"}).encode()
BROKEN = {
    "no JSON": (b"a red circle", "Expecting value"),
    "an empty line": (b"", "Expecting value"),
    "a list": (b"[1, 2]", "a file_name and a text were expected"),
    "no text": (b'{"file_name": "0000.png"}', "a file_name and a text were expected"),
    "no file name": (b'{"text": "a red circle"}', "a file_name and a text were expected"),
    "a number for a name": (b'{"file_name": 3, "text": "a"}', "'int'"),
    "no such file": (b'{"file_name": "none.png", "text": "a"}', "No such file"),
    "a folder": (b'{"file_name": ".", "text": "a"}', "directory|Permission"),
    "a file outside": (b'{"file_name": "../outside.png", "text": "a"}', "outside the folder"),
    "an absolute path": (b'{"file_name": "/etc/passwd", "text": "a"}', "outside the folder"),
    "a NUL": (b'{"file_name": "a\\u0000.png", "text": "a"}', "null"),
    "no UTF-8": (b'{"file_name": "0000.png", "text": "\xff"}', "utf-8"),
    "no picture": (b'{"file_name": "text.png", "text": "a"}', "cannot identify"),
    "a truncated picture": (b'{"file_name": "cut.png", "text": "a"}', "truncated"),
    "a picture with a broken part": (b'{"file_name": "part.png", "text": "a"}', "broken PNG"),
    "a picture above the limit": (b'{"file_name": "large.png", "text": "a"}', rf"4097 x 4096 .* {MAX_PIXELS}"),
    "a picture far above the limit": (b'{"file_name": "bomb.png", "text": "a"}', "exceeds limit"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_is_named_by_file_and_number(tmp_path, name):
    folder = tmp_path / "folder"
    save_folder(World(16).batch(0, 1), folder)
    whole = (folder / "0000.png").read_bytes()
    at = whole.index(b"IDAT") - 4  # the length of the pixels' part, which comes to hold too little
    files = {
        "../outside.png": whole,
        "text.png": b"no picture",
        "cut.png": whole[:60],
        "part.png": whole[:at] + struct.pack(">I", 10) + whole[at + 4 : at + 22] + b"\0\0\0\1\xff\xfe\xfd\xfc",
        "large.png": png(4097, 4096),
        "bomb.png": png(60_000, 60_000),
    }
    for file, content in files.items():
        (folder / file).write_bytes(content)
    line, reason = BROKEN[name]
    (folder / "metadata.jsonl").write_bytes(b"\n".join([GOOD, line, GOOD]))
    with pytest.raises(ValueError, match=rf"metadata\.jsonl, line 2, cannot be read: .*({reason}).*; mend or remove"):
        load_folder(folder, 16)


def test_a_folder_without_lines_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"metadata\.jsonl does not exist"):
        load_folder(tmp_path, 16)
    (tmp_path / "metadata.jsonl").touch()
    with pytest.raises(ValueError, match=r"metadata\.jsonl is empty"):
        load_folder(tmp_path, 16)
