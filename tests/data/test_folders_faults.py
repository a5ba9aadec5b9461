"""Folders from outside: captions that are texts, files inside the folder, and limits before memory is taken."""

import json
import os
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minidalle.data import folders
from minidalle.data.batches import World
from minidalle.data.folders import load_folder, save_folder


@pytest.fixture
def folder(tmp_path):
    """Make a folder of one picture."""
    save_folder(World(16).batch(0, 1), tmp_path / "folder")
    return tmp_path / "folder"


def refused(folder, line: bytes | dict, reason: str) -> str:
    """Load a folder whose second line is given; gives the sentence that it ends in."""
    good = json.dumps({"file_name": "0000.png", "text": "a red circle"}).encode()
    line = json.dumps(line).encode() if isinstance(line, dict) else line
    (folder / "metadata.jsonl").write_bytes(good + b"\n" + line + b"\n")
    index = re.escape(str(folder / "metadata.jsonl"))
    with pytest.raises(ValueError, match=rf"^{index}, line 2, cannot be read: .*({reason}).*; mend or") as found:
        load_folder(folder, 16)
    assert str(found.value).isprintable() and len(str(found.value)) < len(str(folder)) + 250
    return str(found.value)


@pytest.mark.parametrize("value", [None, 3, 2.5, True, ["a red circle"], {"en": "a red circle"}, []])
@pytest.mark.parametrize("key", ["text", "file_name"])
def test_a_caption_or_a_name_that_is_no_text_is_refused(folder, key, value):
    row = {"file_name": "0000.png", "text": "a red circle"} | {key: value}
    refused(folder, row, f"{key} is of type '{type(value).__name__}'; a text was expected")


def test_half_a_character_is_no_text(folder):
    refused(folder, {"file_name": "0000.png", "text": "a \ud83d circle"}, "text holds half a character")


@pytest.mark.parametrize("depth", [600, 5_000, 32_000])
@pytest.mark.parametrize("brackets", [(b"[", b"]"), (b'{"a":', b"}")])
def test_json_that_is_nested_deeply_is_refused(folder, depth, brackets):
    depth //= len(brackets[0])
    line = b'{"file_name": "0000.png", "text": ' + brackets[0] * depth + b"1" + brackets[1] * depth + b"}"
    refused(folder, line, "nested too deeply|text is of type|more than 65536 bytes")


def test_a_line_that_is_too_long_is_not_read_to_its_end(folder, monkeypatch):
    refused(folder, b'{"text": "' + b"a" * 10**6, "more than 65536 bytes")


def test_metadata_of_gigabytes_is_refused_before_it_is_read(folder):
    os.truncate(folder / "metadata.jsonl", 5 * 2**30)  # a file with a hole: it takes no place on the disk
    with pytest.raises(ValueError, match=f"has {5 * 2**30} bytes and at most {folders.MAX_INDEX} are read"):
        load_folder(folder, 16)


def test_more_pictures_than_fit_the_memory_are_refused(folder, monkeypatch):
    monkeypatch.setattr(folders, "MAX_VALUES", 2 * 3 * 16 * 16)
    line = (folder / "metadata.jsonl").read_bytes()
    (folder / "metadata.jsonl").write_bytes(2 * line)
    assert load_folder(folder, 16)[0].shape == (2, 3, 16, 16)
    (folder / "metadata.jsonl").write_bytes(3 * line)
    with pytest.raises(ValueError, match="more than the 2 pictures of 16 x 16"):
        load_folder(folder, 16)


@given(st.text(max_size=300))
def test_a_name_from_a_file_is_never_echoed_raw_or_at_length(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("folder")
    save_folder(World(16).batch(0, 1), folder)
    refused(folder, {"file_name": f"{name}\x1b[31m{'long' * 400}", "text": "a"}, ".")


def test_links_that_lead_out_of_the_folder_are_refused(folder):
    outside = folder.parent / "outside.png"
    Image.new("RGB", (16, 16)).save(outside)
    (folder / "link.png").symlink_to(outside)
    (folder / "up").symlink_to(folder.parent)
    for name in ("link.png", "up/outside.png", "../outside.png", "up/folder/../outside.png", str(outside)):
        refused(folder, {"file_name": name, "text": "a"}, "outside the folder")
    (folder / "round.png").symlink_to(folder / "round.png")
    refused(folder, {"file_name": "round.png", "text": "a"}, "loop|symbolic links")
    (folder / "inside.png").symlink_to(folder / "0000.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "inside.png", "text": "a"}')
    assert load_folder(folder, 16)[1] == ["a"]


def test_a_pipe_among_the_pictures_is_refused_and_not_waited_for(folder):
    os.mkfifo(folder / "pipe.png")
    refused(folder, {"file_name": "pipe.png", "text": "a"}, "a pipe or a device")
    refused(folder, {"file_name": "", "text": "a"}, "a directory")
    os.remove(folder / "metadata.jsonl")
    os.mkfifo(folder / "metadata.jsonl")
    with pytest.raises(ValueError, match="does not exist"):
        load_folder(folder, 16)


def test_windows_line_ends_and_a_byte_order_mark_are_read(folder):
    line = (folder / "metadata.jsonl").read_bytes().rstrip()
    (folder / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n" + line + b"\r\n")
    assert len(load_folder(folder, 16)[1]) == 2


def test_a_folder_is_written_batch_by_batch(tmp_path):
    batches = [World(16).batch(step, size) for step, size in enumerate((3, 2, 4))]
    save_folder(iter(batches), tmp_path)
    images, captions = load_folder(tmp_path, 16)
    assert captions == [caption for batch in batches for caption in batch.captions]
    assert (images - torch.cat([batch.images for batch in batches])).abs().max() <= 1 / 127.5
