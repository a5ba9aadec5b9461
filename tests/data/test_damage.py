"""Damage of every kind: skipped, named, counted, and never in the way of what is whole."""

import io
import json
import os
import re
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from made import picture, tar
from PIL import Image

from minidalle.data.images import MAX_BYTES, MAX_PIXELS
from minidalle.data.pictures import Pictures
from minidalle.data.records import MAX_CAPTION, MAX_NAMED, Damage, clean_caption

WHOLE = 5  # pictures in each folder that nothing is wrong with


def png(width: int, height: int) -> bytes:
    """Make a PNG file that announces a size and holds nothing."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT")
    parts = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def animation() -> bytes:
    file, frames = io.BytesIO(), [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def holed(path: Path) -> None:
    """Make a giant file that takes no place on the disk."""
    path.touch()
    os.truncate(path, MAX_BYTES + 1)


# Each makes a file or folder at a path, and gives the reason that it is to be skipped for
PICTURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (Path.touch, "cannot identify"),
    "text": (lambda p: p.write_text("a red circle"), "cannot identify"),
    "a page of an error": (lambda p: p.write_text("<html>404</html>"), "cannot identify"),
    "cut off": (lambda p: p.write_bytes(picture("red", (64, 64))[:90]), "truncated|broken"),
    "a JPEG cut off": (lambda p: p.write_bytes(picture("red", (64, 64), "JPEG")[:-400]), "[Tt]runcated"),
    "altered": (lambda p: p.write_bytes(picture("red").replace(b"IDAT", b"JDAT")), "cannot|broken|truncated|Error"),
    "30,000 pixels wide and high": (lambda p: p.write_bytes(png(30_000, 30_000)), f"exceeds|most {MAX_PIXELS}"),
    "a bomb": (lambda p: p.write_bytes(png(2**31 - 1, 2**31 - 1)), "exceeds|most"),
    "just too large": (lambda p: p.write_bytes(png(8193, 8192)), f"8193 x 8192 .* most {MAX_PIXELS}"),
    "a file of gigabytes": (holed, f"at most {MAX_BYTES}"),
    "an animation": (lambda p: p.write_bytes(animation()), "animation"),
    "of a format that is not read": (lambda p: Image.new("RGB", (8, 8)).save(p, "TIFF"), "cannot identify"),
    "a folder": (Path.mkdir, "it is a folder"),
    "a pipe": (os.mkfifo, "a pipe or a device"),
    "a link": (lambda p: p.symlink_to("0.png"), "it is a link"),
    "a link that leaves": (lambda p: p.symlink_to("/etc/hostname"), "it is a link"),
    "a link to itself": (lambda p: p.symlink_to(p.name), "it is a link"),
    "behind a link": (lambda p: None, "there is no such file"),
}
LINES = {
    "no JSON": (b'{"file_name": ', "it is no JSON"),
    "a list": (b"[1, 2]", "a file_name and a text were expected"),
    "no caption": (b'{"file_name": "0.png"}', "a file_name and a text were expected"),
    "a number for a name": (b'{"file_name": 3, "text": "a"}', "file_name is of type 'int'"),
    "a number for a caption": (b'{"file_name": "0.png", "text": 3}', "caption is of type 'int'"),
    "nothing for a caption": (b'{"file_name": "0.png", "text": null}', "caption is of type 'NoneType'"),
    "an empty caption": (b'{"file_name": "0.png", "text": " \\t "}', "the caption is empty"),
    "an empty list of captions": (b'{"file_name": "0.png", "text": []}', "caption is of type 'list'"),
    "a caption of half a character": (b'{"file_name": "0.png", "text": "\\ud83d"}', "half a character"),
    "a caption of a book": (
        json.dumps({"file_name": "0.png", "text": "a" * (MAX_CAPTION + 1)}).encode(),
        f"has {MAX_CAPTION + 1} characters",
    ),
    "no UTF-8": (b'{"file_name": "0.png", "text": "\xff\xfe"}', "it is no JSON .*utf-8"),
    "a line without an end": (b'{"text": "' + b"a" * 10**6, "more than 65536 bytes"),
    "nested deeply": (b'{"text": ' + b"[" * 30_000 + b"]" * 30_000 + b"}", "nested too deeply|more than"),
    "no such file": (b'{"file_name": "none.png", "text": "a"}', "no such file"),
    "a file outside": (b'{"file_name": "../outside.png", "text": "a"}', "outside the folder"),
    "a file outside, as Windows writes it": (b'{"file_name": "..\\\\outside.png", "text": "a"}', "outside|no such"),
    "an absolute path": (b'{"file_name": "/etc/passwd", "text": "a"}', "outside the folder"),
    "the folder itself": (b'{"file_name": ".", "text": "a"}', "it is a folder"),
    "no name": (b'{"file_name": "", "text": "a"}', "it is a folder"),
    "a NUL": (b'{"file_name": "a\\u0000.png", "text": "a"}', "holds a NUL"),
    "a name of half a character": (b'{"file_name": "\\ud83d.png", "text": "a"}', "surrogate|encode|no such"),
    "a name without an end": (b'{"file_name": "' + b"a" * 5000 + b'", "text": "a"}', "name too long|no such"),
}


def skipped(pictures: Pictures) -> list[tuple[str, str]]:
    """Give the names and reasons of all that was skipped, and see that the rest is whole."""
    seen = set(pictures.source(8, 0).batch(0, 4 * WHOLE).captions)
    assert {f"whole {i}" for i in range(WHOLE)} <= seen
    damage = pictures.damage(8)
    found = [(name, why) for faults in damage.kinds.values() for name, why in faults]
    assert damage.count == len(found) == sum(count for count, _, _ in damage.by_kind())
    return found


def index(folder: Path, *more: bytes) -> Path:
    """Write the whole pictures and an index of them, with more lines in the middle."""
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"file_name": f"{i}.png", "text": f"whole {i}"}).encode() for i in range(WHOLE)]
    for i in range(WHOLE):
        (folder / f"{i}.png").write_bytes(picture("red"))
    (folder / "metadata.jsonl").write_bytes(b"\n".join([*lines[:2], *more, *lines[2:]]) + b"\n")
    return folder


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_cannot_be_used_is_skipped_and_named(name, tmp_path, capsys):
    make, reason = PICTURES[name]
    folder = index(tmp_path / "data", b'{"file_name": "bad.png", "text": "bad"}')
    make(folder / "bad.png")
    ((found, why),) = skipped(Pictures(folder, cache=tmp_path / "cache"))
    assert found == "bad.png" and matches(reason, why)
    said = capsys.readouterr().out
    assert "1 in all: 1 x " in said and "bad.png" in said and f"{WHOLE} pictures" in said


@pytest.mark.parametrize("name", LINES)
def test_a_line_that_cannot_be_used_is_skipped_and_named(name, tmp_path):
    line, reason = LINES[name]
    (tmp_path / "outside.png").write_bytes(picture("red"))
    ((found, why),) = skipped(Pictures(index(tmp_path / "data", line), cache=tmp_path / "cache"))
    assert matches(reason, why), why
    try:
        name = json.loads(line)["file_name"]
    except (ValueError, TypeError, KeyError, RecursionError):
        name = "metadata.jsonl, line 3"
    assert found == (name if isinstance(name, str) else "metadata.jsonl, line 3") or found == "metadata.jsonl, line 3"


def matches(reason: str, why: str) -> bool:
    """Tell whether a reason is the one that was meant, in a printable line."""
    return re.search(reason, why) is not None and why.isprintable() and len(why) < 250


def test_a_folder_behind_a_link_is_not_entered(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.png").write_bytes(picture("red"))
    folder = index(tmp_path / "data", b'{"file_name": "inner/a.png", "text": "a"}')
    (folder / "inner").symlink_to(outside)
    assert skipped(Pictures(folder, cache=tmp_path / "cache")) == [
        ("inner/a.png", "it is a link, or lies behind one: put the file itself there")
    ]


TABLE_ROWS = {
    "too few columns": ("bad.png\n", "it has 1 columns; 2 were expected"),
    "too many columns": ("bad.png,a,b\n", "it has 3 columns"),
    "an empty caption": ("bad.png,\n", "the caption is empty"),
    "no UTF-8": ("bad.png,\udcff\n", "half a character"),
}


@pytest.mark.parametrize("name", TABLE_ROWS)
def test_a_row_that_cannot_be_used_is_skipped_and_named(name, tmp_path):
    row, reason = TABLE_ROWS[name]
    folder = index(tmp_path / "data")
    (folder / "metadata.jsonl").unlink()
    (folder / "bad.png").write_bytes(picture("red"))
    rows = "".join(f"{i}.png,whole {i}\n" for i in range(WHOLE))
    (folder / "metadata.csv").write_bytes(("file_name,text\n" + row + rows).encode("utf-8", "surrogateescape"))
    ((found, why),) = skipped(Pictures(folder, cache=tmp_path / "cache"))
    assert found in ("metadata.csv, line 2", "bad.png") and matches(reason, why)


def test_a_quote_that_is_never_closed_costs_the_rows_that_it_swallows_and_says_so(tmp_path):
    folder = index(tmp_path / "data")
    (folder / "metadata.jsonl").unlink()
    rows = "".join(f"{i}.png,whole {i}\n" for i in range(WHOLE))
    (folder / "metadata.csv").write_text("file_name,text\n" + rows + '0.png,"never closed\n' + "1.png,x\n" * 40_000)
    pictures = Pictures(folder, cache=tmp_path / "cache")
    assert len(pictures.records) == WHOLE and pictures.listing.damage.count > 0


def test_sidecars_that_cannot_be_used_are_named_by_their_pictures(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    texts = {"empty": b"", "blank": b" \n\n", "latin": b"\xe9t\xe9", "long": b"a" * 70_000}
    for name in (*texts, "none", "link", *(f"whole {i}" for i in range(WHOLE))):
        (folder / f"{name}.png").write_bytes(picture("red"))
        if name not in ("none", "link"):
            (folder / f"{name}.txt").write_bytes(texts.get(name, name.encode()))
    (folder / "link.txt").symlink_to("whole 0.txt")
    (folder / "photo.heic").write_bytes(b"junk")
    (folder / "photo.txt").write_text("from a phone")
    found = dict(skipped(Pictures(folder, cache=tmp_path / "cache")))
    reasons = {
        "empty.png": "its text is empty",
        "blank.png": "its text is empty",
        "latin.png": "not in UTF-8",
        "long.png": "more than 65536 bytes",
        "none.png": "no text beside it",
        "link.png": "a link",
        "photo.heic": "cannot identify",
    }
    assert found.keys() == reasons.keys() and all(matches(reasons[name], why) for name, why in found.items())


def test_coco_without_what_it_speaks_of_is_skipped_and_named(tmp_path):
    folder = index(tmp_path / "data")
    (folder / "metadata.jsonl").unlink()
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(WHOLE)]
    said = [{"image_id": i, "caption": f"whole {i}"} for i in range(WHOLE)]
    images += [{"id": 90}, "junk", {"id": 91, "file_name": "none.png"}, {"id": [], "file_name": "0.png"}]
    said += [{"image_id": 77, "caption": "a"}, {"image_id": 91, "caption": "a"}, {"image_id": 0}, 5, {"image_id": []}]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": said}))
    found = skipped(Pictures(folder, cache=tmp_path / "cache"))
    assert sorted(name for name, _ in found) == [
        "0.png",
        "captions.json, annotation 5",
        "captions.json, annotation 8",
        "captions.json, annotation 9",
        "captions.json, image 5",
        "captions.json, image 6",
        "none.png",
    ]


def test_tokens_that_are_none_are_skipped_and_named(tmp_path):
    folder = index(tmp_path / "data")
    (folder / "metadata.jsonl").unlink()
    lines = "".join(f"{i}.png#0\twhole {i}\n" for i in range(WHOLE))
    (folder / "a.token.txt").write_text(f"{lines}no token\n0.png#1\t\nnone.png.1#0\ta\n")
    found = skipped(Pictures(folder, cache=tmp_path / "cache"))
    assert [name for name, _ in found] == ["a.token.txt, line 6", "0.png", "none.png.1"]


def shard_of(path: Path, more: dict[str, bytes] | None = None) -> Path:
    files = {}
    for i in range(WHOLE):
        files |= {f"{i}.png": picture("red"), f"{i}.txt": f"whole {i}".encode()}
    return tar(path, files | (more or {}))


SHARDS = {
    "a picture without a text": ({"bad.png": picture("red")}, "0.tar/bad.png", "no caption beside it"),
    "a text that is empty": ({"bad.png": picture("red"), "bad.txt": b""}, "0.tar/bad.txt", "its text is empty"),
    "JSON that is none": ({"bad.png": picture("red"), "bad.json": b"{"}, "0.tar/bad.json", "it is no JSON"),
    "JSON without a caption": ({"bad.png": picture("red"), "bad.json": b"{}"}, "0.tar/bad.png", "no caption"),
    "a picture that is none": ({"bad.png": b"junk", "bad.txt": b"a"}, "0.tar/bad.png", "cannot identify"),
    "a giant text": ({"bad.png": picture("red"), "bad.txt": b"a" * 2**21}, "0.tar/bad.txt", "at most 1048576"),
}


@pytest.mark.parametrize("name", SHARDS)
def test_a_sample_that_cannot_be_used_is_skipped_and_named(name, tmp_path):
    files, found, reason = SHARDS[name]
    shard_of(tmp_path / "data" / "0.tar", files)
    faults = skipped(Pictures(tmp_path / "data", cache=tmp_path / "cache"))
    assert faults[0][0] == found and matches(reason, faults[0][1])
    assert len(faults) <= 2  # a text that is none leaves a picture without one


def test_links_and_devices_in_a_shard_are_named_and_folders_are_not(tmp_path):
    path = shard_of(tmp_path / "data" / "0.tar")
    with tarfile.open(path, "a") as archive:
        for name, kind in (("a.png", tarfile.SYMTYPE), ("b.png", tarfile.LNKTYPE), ("c.png", tarfile.CHRTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
        entry = tarfile.TarInfo("folder")
        entry.type = tarfile.DIRTYPE
        archive.addfile(entry)
    found = skipped(Pictures(tmp_path / "data", cache=tmp_path / "cache"))
    assert [name for name, _ in found] == ["0.tar/a.png", "0.tar/b.png", "0.tar/c.png"]


def test_names_in_a_shard_lead_nowhere(tmp_path):
    shard_of(tmp_path / "data" / "0.tar", {"../../evil.png": picture("red"), "../../evil.txt": b"whole 9"})
    assert skipped(Pictures(tmp_path / "data", cache=tmp_path / "cache")) == []
    assert not list(tmp_path.parent.glob("evil*"))


def test_of_a_shard_that_was_cut_off_the_rest_is_read(tmp_path):
    path = shard_of(tmp_path / "data" / "0.tar", {"bad.png": picture("red", (400, 400), "BMP"), "bad.txt": b"a"})
    os.truncate(path, path.stat().st_size // 2)
    found = skipped(Pictures(tmp_path / "data", cache=tmp_path / "cache"))
    assert found == [("0.tar/bad.png", "the archive ends within it")]


def test_of_a_shard_with_a_broken_header_the_rest_is_read(tmp_path):
    path = shard_of(tmp_path / "data" / "0.tar", {"bad.png": picture("red"), "bad.txt": b"a"})
    content = path.read_bytes()
    path.write_bytes(content.replace(b"bad.png", b"b\xffd.png"))
    ((name, why),) = skipped(Pictures(tmp_path / "data", cache=tmp_path / "cache"))
    assert name == "0.tar" and matches("header at byte .* is broken", why)


@pytest.mark.parametrize("content", [b"junk" * 1000, b"\x1f\x8b" + b"a" * 2000, b"", b"\0" * 10240])
def test_a_shard_that_is_none_is_named_and_the_others_are_read(content, tmp_path):
    shard_of(tmp_path / "data" / "0.tar")
    (tmp_path / "data" / "1.tar").write_bytes(content)
    found = skipped(Pictures(tmp_path / "data", cache=tmp_path / "cache"))
    assert [name for name, _ in found] == ["1.tar"] * len(found) and len(found) == (content[:1] not in (b"", b"\0"))


def test_sparse_sizes_in_a_shard_take_no_memory(tmp_path):
    path = shard_of(tmp_path / "data" / "0.tar")
    with path.open("r+b") as file:
        file.seek(-10240, 2)
        entry = tarfile.TarInfo("bad.png")
        entry.size = 2**40
        file.write(entry.tobuf(tarfile.GNU_FORMAT))
    assert skipped(Pictures(tmp_path / "data", cache=tmp_path / "cache")) == [
        ("0.tar/bad.png", "the archive ends within it")
    ]


def test_many_faults_are_all_counted_and_some_named():
    damage = Damage()
    for i in range(MAX_NAMED + 500):
        damage.add(f"{i}.png", f"it has {i} bytes")
    damage.add("last", "it is a link")
    ((count, why, names), (links, link, none)) = damage.by_kind()
    assert (count, why, len(names)) == (MAX_NAMED + 500, "it has 0 bytes", MAX_NAMED)
    assert (links, link, none) == (1, "it is a link", [])
    assert damage.summary().startswith(f"{MAX_NAMED + 501} in all: {MAX_NAMED + 500} x it has 0 bytes (0.png, 1.png)")


@pytest.mark.parametrize("bad", [None, 3, "", " \n", "\ud83d", "a" * (MAX_CAPTION + 1)])
def test_what_is_no_caption_is_refused(bad):
    with pytest.raises(ValueError, match="caption"):
        clean_caption(bad)
