"""Folders of captioned pictures: read as they were written, and broken input named by file and line."""

import json
import struct
import zlib

import pytest

from minidalle.data.batches import World
from minidalle.data.folders import load_folder, save_folder
from minidalle.data.images import MAX_PIXELS


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
    "a picture above the limit": (b'{"file_name": "large.png", "text": "a"}', rf"8193 x 8192 .* {MAX_PIXELS}"),
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
        "large.png": png(8193, 8192),
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
