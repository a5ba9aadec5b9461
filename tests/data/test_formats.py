"""Every format: found by its markers, and all of it read; what is of no format is said to be none."""

import json
import os
import shutil
import tarfile

import pytest
from made import CAPTIONS, COLORS, MAKERS, flickr8k, metadata_jsonl, picture, put, shards, sidecars, tar

from minidalle.data.cache import content
from minidalle.data.formats import read_collection


def number_of(name: str) -> int:
    """Read the number of a picture off its name, in a folder or a shard."""
    return int(name.rsplit("/", 1)[-1].partition(".")[0][-4:])


@pytest.mark.parametrize("name", MAKERS)
def test_every_format_is_found_and_read_whole(name, tmp_path):
    maker, form = MAKERS[name]
    found = read_collection(maker(tmp_path / "data"))
    assert found.format == form and found.damage.count == 0
    assert {number_of(record.name): record.captions for record in found.records} == {
        number_of(name): said for name, said in CAPTIONS.items()
    }
    for record in found.records:
        assert content(found.root, record) == picture(COLORS[number_of(record.name) % len(COLORS)])


@pytest.mark.parametrize("name", MAKERS)
def test_a_collection_is_the_same_wherever_its_folder_lies(name, tmp_path):
    folder = MAKERS[name][0](tmp_path / "data")
    shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
    here, there = read_collection(folder), read_collection(tmp_path / "elsewhere" / "copy")
    assert here.fingerprint() == there.fingerprint() and here.records != []


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("metadata_jsonl", "metadata.jsonl"),
        ("metadata_csv", "metadata.csv"),
        ("coco", "annotations/captions_train2017.json"),
        ("karpathy", "dataset_coco.json"),
        ("flickr8k_csv", "captions.txt"),
        ("flickr30k_csv", "results.csv"),
    ],
)
def test_the_index_may_be_named_in_place_of_its_folder(name, index, tmp_path):
    folder = MAKERS[name][0](tmp_path / "data")
    assert read_collection(folder / index).records == read_collection(folder).records


JSONS = {
    "names and captions": {"0.png": "a red one", "1.png": "a lime one"},
    "names and rows": {"0.png": {"caption": "a red one"}, "1.png": {"caption": "a lime one", "tags": "x"}},
    "names and lists": {"0.png": ["a red one"], "1.png": ["a lime one"]},
    "a list of rows": [{"image": "0.png", "caption": "a red one"}, {"file": "1.png", "text": "a lime one"}],
}


@pytest.mark.parametrize("file", ["captions.json", "anything.json"])
@pytest.mark.parametrize("name", JSONS)
def test_json_that_people_write_by_hand_is_read(name, file, tmp_path):
    (put(tmp_path, ["0.png", "1.png"]) / file).write_text(json.dumps(JSONS[name]))
    found = read_collection(tmp_path)
    assert [(r.name, *r.captions) for r in found.records] == [("0.png", "a red one"), ("1.png", "a lime one")]
    assert read_collection(tmp_path / file).records == found.records


def test_one_shard_may_be_named(tmp_path):
    found = read_collection(shards(tmp_path / "data") / "00001.tar")
    assert sorted(number_of(record.name) for record in found.records) == list(range(8, 16))


def test_metadata_comes_before_other_markers(tmp_path):
    folder = metadata_jsonl(sidecars(tmp_path / "data"))
    tar(folder / "0.tar", {"a.png": picture("red"), "a.txt": b"red"})
    assert read_collection(folder).format == "image folder with metadata.jsonl"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["a.png", "a/b/c.PNG", "é" * 90 + ".png", "long/" * 40 + "name.png"])
def test_shards_of_every_form_of_tar_are_read(form, name, tmp_path):
    text = name.rpartition(".")[0] + ".txt"
    files = {"first.png": picture("blue"), "first.txt": b"blue", text: b"a red square", name: picture("red")}
    try:
        tar(tmp_path / "0.tar", files, form)
    except ValueError:
        pytest.skip("this form has no place for so long a name")
    found = read_collection(tmp_path)
    assert found.damage.count == 0
    assert [(record.name, record.captions) for record in found.records] == [
        ("0.tar/first.png", ("blue",)),
        (f"0.tar/{name}", ("a red square",)),
    ]
    assert content(found.root, found.records[1]) == picture("red")


def test_a_shard_without_texts_takes_the_captions_of_its_json(tmp_path):
    files = {"a.jpg": picture("red", kind="JPEG"), "a.json": json.dumps({"caption": "a red one"}).encode()}
    tar(tmp_path / "0.tar", files)
    assert read_collection(tmp_path).records[0].captions == ("a red one",)


def test_a_caption_keeps_its_letters_and_loses_its_line_breaks(tmp_path):
    said = "  Größe\u2028 東京\t🔴 \u202e "
    row = json.dumps({"file_name": "0.png", "text": said}, ensure_ascii=False)
    (put(tmp_path) / "metadata.jsonl").write_text(row, encoding="utf-8")
    assert read_collection(tmp_path).records[0].captions == ("Größe 東京 🔴",)


def test_quotes_commas_and_bars_may_stand_in_captions(tmp_path):
    put(tmp_path)
    (tmp_path / "metadata.csv").write_text('file_name,text\n0.png,"red, ""very"" red | a"\n1.png,plain\n')
    assert [record.captions for record in read_collection(tmp_path).records] == [('red, "very" red | a',), ("plain",)]


def test_names_as_windows_writes_them_are_found(tmp_path):
    put(tmp_path / "inner")
    (tmp_path / "metadata.csv").write_text("file_name,text\r\ninner\\0.png,a red one\r\n")
    assert read_collection(tmp_path).records[0].name == "inner/0.png"


def test_pictures_that_nobody_meant_are_left_alone(tmp_path):
    folder = sidecars(tmp_path / "data")
    (folder / "README.txt").write_text("about")
    for name in (".hidden/0.png", "__MACOSX/._0.png", "inner/._0.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"junk")
    found = read_collection(folder)
    assert len(found.records) == len(CAPTIONS) and found.damage.count == 0


def test_flickr_looks_for_pictures_in_folders_within_folders(tmp_path):
    folder = flickr8k(tmp_path / "data")
    (folder / "Dataset").mkdir()
    (folder / "Flicker8k_Dataset").rename(folder / "Dataset" / "Flicker8k_Dataset")
    assert len(read_collection(folder).records) == len(CAPTIONS)


NOTHING = {
    "an empty folder": ({}, "0 pictures without captions; expected was an image folder"),
    "pictures alone": ({"a.png": picture("red")}, "1 pictures without captions"),
    "a packed shard": ({"a.tar.gz": b"junk"}, r"a\.tar\.gz: write its pictures"),
    "a table of something else": ({"a.csv": b"name,price\nx,3\n"}, "0 pictures without captions"),
    "metadata without names": ({"metadata.csv": b"a,b\n1,2\n"}, "begins with 'a,b'; a line that names the columns"),
    "an index without pictures": ({"metadata.jsonl": b'{"file_name": "a.png", "text": "a"}'}, "1 x there is no such"),
    "JSON of something else": ({"captions.json": b'{"a": 1}'}, "holds no captions; COCO's form was expected"),
    "JSON beside pictures": ({"a.json": b'{"a": 1}', "b.png": picture("red")}, "1 pictures without captions"),
    "a table of another kind of file": ({"a.parquet": b"junk"}, r"a\.parquet: write its pictures and captions as a"),
    "JSON that is none": ({"captions.json": b"{"}, "is no JSON"),
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_is_no_collection_is_refused_in_a_sentence(name, tmp_path):
    files, reason = NOTHING[name]
    for file, held in files.items():
        (tmp_path / file).write_bytes(held)
    with pytest.raises(ValueError, match=reason) as refused:
        read_collection(tmp_path)
    assert str(tmp_path) in str(refused.value) and str(refused.value).endswith(".")


@pytest.mark.parametrize("name", ["none", "file.xyz"])
def test_a_path_that_is_no_collection_is_refused(name, tmp_path):
    (tmp_path / "file.xyz").touch()
    with pytest.raises(ValueError, match=r"does not exist|is of no known format"):
        read_collection(tmp_path / name)


def test_more_pictures_than_are_read_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("minidalle.data.formats.MAX_PICTURES", 10)
    with pytest.raises(ValueError, match="holds more than the 10 pictures that are read: split it"):
        read_collection(metadata_jsonl(tmp_path))


def test_more_captions_than_are_read_are_refused_before_they_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("minidalle.data.formats.MAX_CAPTIONS", 30)
    with pytest.raises(ValueError, match=r"metadata\.jsonl has more than 30 captions, which is too many: split it"):
        read_collection(metadata_jsonl(tmp_path))


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "captions.json", "a.token", "a.csv", "a.jsonl"])
def test_an_index_that_is_a_pipe_is_refused_and_not_waited_for(name, tmp_path):
    put(tmp_path, ["0.png"])
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=r"is a link or no regular file|1 pictures without captions"):
        read_collection(tmp_path)


def test_an_index_that_is_a_link_is_refused(tmp_path):
    metadata_jsonl(tmp_path / "data")
    (tmp_path / "data" / "metadata.jsonl").rename(tmp_path / "outside.jsonl")
    (tmp_path / "data" / "metadata.jsonl").symlink_to(tmp_path / "outside.jsonl")
    with pytest.raises(ValueError, match=r"metadata\.jsonl is a link or no regular file"):
        read_collection(tmp_path / "data")


def test_one_index_of_several_may_be_broken(tmp_path):
    for part, header in (("train", "file_name,text"), ("test", "price,weight")):
        (put(tmp_path / part, ["0.png"]) / "metadata.csv").write_text(f"{header}\n0.png,a red one\n")
    found = read_collection(tmp_path)
    assert [record.name for record in found.records] == ["train/0.png"]
    assert "metadata.csv begins with 'price,weight'" in found.damage.summary()
