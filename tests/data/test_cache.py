"""The cache: decoded once, whole at any moment, and never what the files no longer are."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from made import COLORS, metadata_jsonl, picture, shards
from PIL import Image

from minidalle.data import cache
from minidalle.data.cache import decoded
from minidalle.data.formats import read_collection
from minidalle.data.images import from_pil, read_picture


@pytest.fixture
def listing(tmp_path):
    return read_collection(metadata_jsonl(tmp_path / "data"))


@pytest.fixture
def decodings(monkeypatch) -> list[str]:
    """Note each picture that is decoded."""
    names, decode = [], cache.decode
    monkeypatch.setattr(
        cache, "decode", lambda root, record, size: names.append(record.name) or decode(root, record, size)
    )
    return names


def test_rows_are_the_pictures_cut_and_resized(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for name, shape in (("a", (40, 90, 3)), ("b", (33, 20, 3)), ("c", (16, 16, 3))):
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(tmp_path / "data" / f"{name}.png")
        (tmp_path / "data" / f"{name}.txt").write_text(name)
    listing = read_collection(tmp_path / "data")
    rows = decoded(listing, 16, tmp_path / "cache").rows
    expected = from_pil([read_picture(listing.root / record.file) for record in listing.records], 16)
    assert torch.equal(torch.tensor(rows) / 127.5 - 1, expected)


def test_a_large_jpeg_that_is_decoded_small_is_nearly_the_same(tmp_path):
    y, x = np.mgrid[:512, :512] / 512
    pixels = np.stack([x, y, 0.5 + 0.5 * np.sin(9 * x * y)], -1)
    (tmp_path / "data").mkdir()
    Image.fromarray((255 * pixels).astype(np.uint8)).save(tmp_path / "data" / "a.jpg", quality=95)
    (tmp_path / "data" / "a.txt").write_text("a")
    rows = decoded(read_collection(tmp_path / "data"), 32, tmp_path / "cache").rows
    full = from_pil([read_picture(tmp_path / "data" / "a.jpg")], 32)
    assert (torch.tensor(rows) / 127.5 - 1 - full).abs().max() < 0.04


def test_a_second_time_nothing_is_decoded(listing, tmp_path, decodings):
    first = decoded(listing, 8, tmp_path / "cache")
    assert sorted(decodings) == sorted(record.name for record in listing.records) and first.fresh == 24
    decodings.clear()
    again = decoded(read_collection(tmp_path / "data"), 8, tmp_path / "cache")
    assert decodings == [] and again.fresh == 0 and np.array_equal(again.rows, first.rows)
    assert isinstance(again.rows, np.memmap) and not again.rows.flags.writeable


@pytest.mark.parametrize("change", ["pixels", "caption", "new picture", "size"])
def test_what_has_changed_is_decoded_anew(change, tmp_path, decodings):
    (metadata_jsonl(tmp_path / "data") / "0.png").write_bytes(picture("red").ljust(300, b"."))
    before = decoded(read_collection(tmp_path / "data"), 8, tmp_path / "cache")
    decodings.clear()
    folder, size = tmp_path / "data", 8
    if change == "pixels":
        (folder / "0.png").write_bytes(picture("white").ljust(300, b"."))  # of the same size
        os.utime(folder / "0.png", ns=(1, 1))  # a file system may have coarse times
    elif change == "caption":
        (folder / "metadata.jsonl").write_text((folder / "metadata.jsonl").read_text().replace("lime", "green"))
    elif change == "new picture":
        (folder / "new.png").write_bytes(picture("white"))
        with (folder / "metadata.jsonl").open("a") as file:
            file.write('\n{"file_name": "new.png", "text": "new"}')
    else:
        size = 12
    after = decoded(read_collection(folder), size, tmp_path / "cache")
    assert len(decodings) == len(after.rows) == 24 + (change == "new picture")
    assert before.path.exists() == (change == "size") and after.path.exists()  # other sizes stay, other states go
    if change == "pixels":
        assert (after.rows[0] == 255).all() and (before.rows[0] != 255).any()  # what is mapped stays as it was


@pytest.mark.parametrize("fail_at", [0, 3, 10, 23])
def test_a_decoding_that_was_stopped_goes_on(fail_at, listing, tmp_path, monkeypatch):
    whole = decoded(listing, 8, tmp_path / "other").rows
    monkeypatch.setattr(cache, "CHUNK", 4)
    names, stops, decode = [], [f"{fail_at}.png"], cache.decode

    def stopped(root, record, size):
        names.append(record.name)
        if record.name in stops:
            raise KeyboardInterrupt
        return decode(root, record, size)

    monkeypatch.setattr(cache, "decode", stopped)
    with pytest.raises(KeyboardInterrupt):
        decoded(listing, 8, tmp_path / "cache")
    names.clear()
    stops.clear()
    found = decoded(listing, 8, tmp_path / "cache")
    assert np.array_equal(found.rows, whole)
    assert found.fresh == len(names) == 24 - fail_at // 4 * 4


@pytest.mark.parametrize("torn", ["half a row", "half a line", "rows without lines"])
def test_what_a_crash_left_behind_is_mended(torn, listing, tmp_path):
    whole = np.array(decoded(listing, 8, tmp_path / "cache").rows)
    (rows,), (notes,) = (list((tmp_path / "cache").glob(f"*/*.{kind}")) for kind in ("rows", "notes"))
    lines = notes.read_text().split("\n")
    if torn == "half a row":
        notes.write_text("\n".join(lines[:5]) + "\n")
        os.truncate(rows, 5 * 192 + 7)
    elif torn == "half a line":
        notes.write_text("\n" * 5 + "cannot ide")
    else:
        notes.write_text("\n" * 5)
    found = decoded(listing, 8, tmp_path / "cache")
    assert np.array_equal(found.rows, whole) and found.faults == {} and found.fresh == 19


def test_faults_are_kept_with_the_rows(tmp_path, decodings):
    folder = metadata_jsonl(tmp_path / "data")
    (folder / "3.png").write_bytes(b"junk")
    for _ in range(2):
        found = decoded(read_collection(folder), 8, tmp_path / "cache")
        assert found.faults.keys() == {3} and found.faults[3].startswith("cannot identify")
    assert len(decodings) == 24 and not found.rows[3].any()


def test_a_link_that_takes_the_place_of_a_file_is_not_followed(listing, tmp_path):
    (tmp_path / "outside.png").write_bytes((tmp_path / "data" / "0.png").read_bytes())
    (tmp_path / "data" / "0.png").unlink()
    (tmp_path / "data" / "0.png").symlink_to(tmp_path / "outside.png")
    assert decoded(listing, 8, tmp_path / "cache").faults.keys() == {0}


def test_a_file_that_has_gone_or_shrunk_is_a_fault(tmp_path):
    listing = read_collection(shards(tmp_path / "data"))
    os.truncate(tmp_path / "data" / "00001.tar", 600)
    (tmp_path / "data" / "00002.tar").unlink()
    faults = decoded(listing, 8, tmp_path / "cache").faults
    assert len(faults) == 16 and set(faults.values()) == {"the file has become shorter", "No such file or directory"}


def test_shards_are_read_without_holding_them(tmp_path, monkeypatch):
    listing, held = read_collection(shards(tmp_path / "data")), []
    content = cache.content
    monkeypatch.setattr(cache, "content", lambda *args: held.append(len(content(*args))) or content(*args))
    rows = decoded(listing, 8, tmp_path / "cache").rows
    assert max(held) == max(record.size for record in listing.records) < 1000
    colors = [Image.new("RGB", (1, 1), color).getpixel((0, 0)) for color in COLORS * 3]
    assert rows[:, :, 4, 4].tolist() == [list(color) for color in colors]


def test_several_at_once_decode_each_picture_once(listing, tmp_path, decodings):
    barrier = threading.Barrier(4)

    def at_once(_) -> np.ndarray:
        barrier.wait()
        return np.array(decoded(listing, 8, tmp_path / "cache").rows)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(at_once, range(4)))
    assert len(decodings) == 24 and all(np.array_equal(rows, found[0]) for rows in found)


def test_two_collections_of_one_name_do_not_meet(tmp_path):
    for parent in ("a", "b"):
        metadata_jsonl(tmp_path / parent / "data")
    (tmp_path / "b" / "data" / "0.png").write_bytes(picture("white"))
    found = [decoded(read_collection(tmp_path / parent / "data"), 8, tmp_path / "cache") for parent in "ab"]
    assert found[0].path.parent != found[1].path.parent and found[0].path.exists()
    assert not np.array_equal(found[0].rows, found[1].rows)


def test_a_cache_that_cannot_be_written_is_named(listing, tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(ValueError, match=r"cache/\w+ cannot keep decoded pictures \(.*\): name another folder in MINI"):
        decoded(listing, 8, tmp_path / "cache")


def test_a_disk_that_is_too_small_is_said_before_anything_is_decoded(listing, tmp_path, decodings, monkeypatch):
    monkeypatch.setattr(cache, "KEPT_FREE", 2**60)
    with pytest.raises(ValueError, match=r"need 0 MB, and .* has room for 0: make room"):
        decoded(listing, 8, tmp_path / "cache")
    assert decodings == []


def test_the_folder_of_all_caches_may_be_named(listing, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDALLE_CACHE", str(tmp_path / "named"))
    assert decoded(listing, 8).path.is_relative_to(tmp_path / "named")
    monkeypatch.delenv("MINIDALLE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert decoded(listing, 8).path.is_relative_to(tmp_path / ".cache" / "minidalle")


def test_a_long_decoding_says_how_far_it_is(listing, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cache, "LINE_SECONDS", -1.0)
    monkeypatch.setattr(cache, "CHUNK", 10)
    decoded(listing, 8, tmp_path / "cache")
    assert capsys.readouterr().err.splitlines() == [f"decoded {n} of 24 pictures" for n in (10, 20, 24)]
