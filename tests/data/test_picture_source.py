"""Pictures of your own: batches that a seed and a step decide, a split that leaks nothing, and all stages trained."""

import json
import pickle
import random
import shutil

import numpy as np
import pytest
import torch
from conftest import MICRO
from hypothesis import given
from hypothesis import strategies as st
from made import CAPTIONS, COLORS, MAKERS, metadata_jsonl, picture
from PIL import Image

from minidalle.data.pictures import FEW_CAPTIONS, Pictures, may_flip, split
from minidalle.data.records import Record
from minidalle.pipeline import MiniDalle
from minidalle.tokenizer import BytePairTokenizer
from minidalle.training.run import train


def records(captions: list[tuple[str, ...]]) -> list[Record]:
    """Make records that differ in their names."""
    return [Record(f"{i}.png", said, f"{i}.png", 0, 1, 0) for i, said in enumerate(captions)]


def folder_of(path, captions: list[str]):
    """Make a folder of pictures of random pixels, which all differ."""
    path.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i, said in enumerate(captions):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": said}))
    (path / "metadata.jsonl").write_text("\n".join(rows))
    return path


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Pictures:
    """Make a collection of 90 pictures and captions, all different."""
    root = tmp_path_factory.mktemp("many")
    captions = [f"number {i} of {random.Random(i).choice(COLORS)}" for i in range(90)]
    return Pictures(folder_of(root / "data", captions), cache=root / "cache")


@pytest.fixture(params=MAKERS)
def pictures(request, tmp_path) -> Pictures:
    """Make the small collection in one format."""
    return Pictures(MAKERS[request.param][0](tmp_path / "data"), cache=tmp_path / "cache")


def test_a_batch_of_every_format_shows_what_its_captions_say(pictures):
    batch = pictures.source(8, seed=1).batch(0, 16)
    assert batch.images.shape == (16, 3, 8, 8) and batch.images.dtype == torch.float32
    for image, caption in zip(batch.images, batch.captions, strict=True):
        color = next(color for color in COLORS if color in caption.split())
        expected = torch.tensor(Image.new("RGB", (1, 1), color).getpixel((0, 0))) / 127.5 - 1
        assert torch.allclose(image, expected[:, None, None].expand(3, 8, 8))
    assert pictures.tokenizer.decode(batch.tokens) == batch.captions
    assert torch.equal(batch.tokens, pictures.tokenizer.encode(batch.captions)[0])
    assert torch.equal(batch.mask, pictures.tokenizer.encode(batch.captions)[1])


@given(seed=st.integers(0, 2**63 - 1), size=st.integers(1, 200), step=st.integers(0, 10**6))
def test_nothing_comes_twice_within_an_epoch_and_all_comes_once(many, seed, size, step):
    source, number = many.source(8, seed), len(many.training)
    first = step * size
    seen = [caption for k in range(3) for caption in source.batch(step + k, size).captions]
    start = -first % number  # where a new epoch begins
    for at in range(start, len(seen) - number + 1, number):
        assert len(set(seen[at : at + number])) == number
    assert len(set(seen[:start])) == len(seen[:start])


def test_a_step_is_the_same_batch_whatever_came_before(many):
    source, other = many.source(8, 5), many.source(8, 5)
    later = [source.batch(step, 32) for step in range(6)][5]
    alone = other.batch(5, 32)
    assert later.captions == alone.captions and torch.equal(later.images, alone.images)
    for changed in (many.source(8, 6).batch(5, 32), source.batch(6, 32)):
        assert changed.captions != alone.captions
    assert source.seed == 5 and source.tokenizer is many.tokenizer


def test_a_worker_process_is_sent_no_pixels_and_draws_the_same(many):
    source = many.source(8, 5)
    sent = pickle.dumps(source)
    assert len(sent) < 90 * 3 * 8 * 8  # bytes of the pixels alone
    there = pickle.loads(sent).batch(7, 16)
    assert there.captions == source.batch(7, 16).captions and torch.equal(there.images, source.batch(7, 16).images)


def test_each_caption_of_a_picture_is_drawn_as_often(tmp_path):
    pictures = Pictures(metadata_jsonl(tmp_path / "data"), cache=tmp_path)
    source = pictures.source(8, 0)
    drawn = [caption for step in range(40) for caption in source.batch(step, 64).captions]
    first = sum(caption.startswith("a ") for caption in drawn) / len(drawn)
    assert abs(first - 0.5) < 0.05


def test_which_caption_is_drawn_depends_on_the_seed(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.png").write_bytes(picture("red"))
        (folder / f"{name}.txt").write_text(f"{name} one\n{name} two\n")
    pictures = Pictures(folder, cache=tmp_path / "cache")
    drawn = [[sorted(pictures.source(8, seed).batch(step, 2).captions) for step in range(30)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_picture_is_mirrored_half_of_the_time_unless_its_caption_says_a_side(tmp_path):
    captions = [f"a picture number {i}" + " with a hat on the left" * (i % 2) for i in range(20)]
    pictures = Pictures(folder_of(tmp_path / "data", captions), cache=tmp_path / "cache")
    plain = {caption: image for i in pictures.training for caption, image in [original(pictures, i)]}
    source, mirrored = pictures.source(16, 0), {"left": [], "none": []}
    for step in range(40):
        batch = source.batch(step, 18)
        for caption, image in zip(batch.captions, batch.images, strict=True):
            as_it_was, turned = torch.equal(image, plain[caption]), torch.equal(image, plain[caption].flip(2))
            assert as_it_was != turned
            mirrored["left" if "left" in caption else "none"].append(turned)
    assert not any(mirrored["left"]) and abs(np.mean(mirrored["none"]) - 0.5) < 0.08
    for flip, expected in ((False, 0), (True, 0.5)):
        batch = Pictures(tmp_path / "data", flip, cache=tmp_path / "cache").source(16, 0).batch(0, 180)
        turned = [not torch.equal(i, plain[c]) for i, c in zip(batch.images, batch.captions, strict=True)]
        assert abs(np.mean(turned) - expected) < 0.15


def original(pictures: Pictures, number: int) -> tuple[str, torch.Tensor]:
    record = pictures.records[number]
    return record.captions[0], torch.tensor(pictures.decoded(16).rows[number]) / 127.5 - 1


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a dog on the LEFT", False),
        ("Rechts ein Hund", False),
        ("un chien à gauche", False),
        ("左の犬", False),
        ("a brightly lit copyright", True),
        ("leftovers on a plate", True),
        ("a dog", True),
    ],
)
def test_sides_are_found_as_words(caption, expected):
    assert may_flip(("a picture", caption), None) is expected
    assert may_flip((caption,), True) and not may_flip((caption,), False)


@given(st.lists(st.lists(st.sampled_from("abcdefghijklmnopqrst"), min_size=1, max_size=3), min_size=1, max_size=120))
def test_no_held_out_caption_is_that_of_a_training_picture(captions):
    made = records([tuple(dict.fromkeys(said)) for said in captions])
    by_caption, held_out = split(made)
    assert len(held_out) <= 0.1 * len(made) and all(held_out.values())
    if by_caption:
        known = {caption for i, record in enumerate(made) if i not in held_out for caption in record.captions}
        assert not known & {made[i].captions[k] for i, numbers in held_out.items() for k in numbers}
    else:
        assert len({record.captions for record in made}) < len(made)


def test_a_tenth_is_held_out_and_the_same_tenth_in_any_order():
    made = records([(f"caption {i}",) for i in range(200)])
    by_caption, held_out = split(made)
    assert by_caption and len(held_out) == 20
    shuffled = random.Random(0).sample(made, len(made))
    assert {made[i].name for i in held_out} == {shuffled[i].name for i in split(shuffled)[1]}


def test_of_few_captions_pictures_are_held_out():
    names = [f"class {i % 10}" for i in range(400)]
    assert FEW_CAPTIONS * 400 > 10
    by_caption, held_out = split(records([(name,) for name in names]))
    assert not by_caption and len(held_out) == 40 and len({names[i] for i in held_out}) > 5


def test_what_is_held_out_never_comes_in_a_batch_and_is_there_for_checks(many):
    held_out = many.examples("held out", 8, 1000)
    assert len(held_out.captions) == 9 == len(many.held_out)
    source = many.source(8, 0)
    seen = {caption for step in range(10) for caption in source.batch(step, 64).captions}
    assert not seen & set(held_out.captions) and len(seen) == 81
    training = many.examples("training", 8, 20)
    assert set(training.captions) < seen and len(set(training.captions)) == 20
    with pytest.raises(ValueError, match='"test" is no part of a collection'):
        many.examples("test", 8, 3)


def test_byte_pairs_are_found_in_training_captions_alone(tmp_path):
    captions = [f"picture {'abcdefghijklmnopqrstuvwxyz'[i % 26] * (2 + i // 26)}" for i in range(100)]
    pictures = Pictures(folder_of(tmp_path / "data", captions), cache=tmp_path / "cache")
    kept = [record.captions[0] for i, record in enumerate(pictures.records) if i not in pictures.held_out]
    assert pictures.tokenizer.merges == BytePairTokenizer.trained(kept).merges
    assert pictures.tokenizer.merges != BytePairTokenizer.trained(captions).merges


def test_long_captions_are_cut_and_still_end(tmp_path):
    captions = [" ".join(f"{i}x{k}" for k in range(60)) for i in range(10)]
    pictures = Pictures(folder_of(tmp_path / "data", captions), cache=tmp_path / "cache")
    batch = pictures.source(8, 0).batch(0, 9)
    assert batch.tokens.shape == (9, 64) == (9, pictures.tokenizer.context_length) and batch.mask.all()
    assert (batch.tokens[:, -1] == 1).all() and (batch.tokens[:, :-1] > 1).all()


def test_a_collection_describes_itself_and_changes_with_its_captions(tmp_path):
    folder = metadata_jsonl(tmp_path / "data")
    first = Pictures(folder, cache=tmp_path).to_dict()
    assert first == json.loads(json.dumps(first)) and next(iter(first)) == "name" and first["name"] == "pictures"
    assert (first["pictures"], first["captions"], first["held_out"]) == (24, 48, 2)
    shutil.copytree(folder, tmp_path / "copy")
    assert Pictures(tmp_path / "copy", cache=tmp_path).to_dict() == first
    index = folder / "metadata.jsonl"
    index.write_text(index.read_text().replace("lime", "green"))
    assert Pictures(folder, cache=tmp_path).to_dict()["fingerprint"] != first["fingerprint"]


def test_fewer_than_two_pictures_are_refused(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("a", "b"):
        (tmp_path / "data" / f"{name}.txt").write_text(name)
    (tmp_path / "data" / "a.png").write_bytes(picture("red"))
    (tmp_path / "data" / "b.png").write_bytes(b"junk")
    with pytest.raises(
        ValueError, match=r"has 1 pictures to train on; 2 or more .*skipped: 1 in all: 1 x cannot.*b\.png"
    ):
        Pictures(tmp_path / "data", cache=tmp_path / "cache").source(8, 0)


@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_of_nothing_is_refused(many, size):
    with pytest.raises(ValueError, match=f"size of a batch is {size}"):
        many.source(8, 0).batch(0, size)


def test_all_stages_learn_from_a_folder_and_draw_a_prompt(tmp_path, capsys):
    pictures = Pictures(metadata_jsonl(tmp_path / "data"), cache=tmp_path / "cache")
    stages = ("clip", "prior", "decoder", "upsampler")
    train(MICRO, "quick", tmp_path / "run", stages, collection=pictures)
    said = capsys.readouterr().out
    assert said.count("24 pictures, 2 of them held out by caption") == 2  # 16 pixels, and 32 for the upsampler
    pipe = MiniDalle.from_pretrained(tmp_path / "run", "cpu")
    assert pipe.world == pictures.to_dict()
    assert isinstance(pipe.tokenizer, BytePairTokenizer) and pipe.tokenizer.merges == pictures.tokenizer.merges
    output = pipe("A zebra, never seen", num_inference_steps=2, upsample=True)
    assert output.tensor.shape == (1, 3, 32, 32) and output.captions == ["A zebra, never seen"]
    train(MICRO, "quick", tmp_path / "run", stages, resume=True, collection=Pictures(tmp_path / "data", cache=tmp_path))
    assert "begins" not in capsys.readouterr().out


def test_the_smallest_collection_is_trained_on(tmp_path):
    folder = folder_of(tmp_path / "data", ["one", "two"])
    batch = Pictures(folder, cache=tmp_path / "cache").source(8, 0).batch(0, 5)
    assert len(batch.captions) == 5 and set(batch.captions) == {"one", "two"}


def test_captions_know_their_numbers(pictures):
    for i, record in enumerate(pictures.records):
        for k, caption in enumerate(record.captions):
            assert list(pictures.said.pieces(i, k)) == pictures.tokenizer.pieces(caption)
    assert len(pictures.said.lengths()) == 2 * len(CAPTIONS)
