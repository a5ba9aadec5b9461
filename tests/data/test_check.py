"""The check before a training: what it counts is there, and what it warns of is so."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import MICRO
from made import CAPTIONS, MAKERS, metadata_jsonl, picture, put
from test_picture_source import folder_of

from minidalle.cli import main
from minidalle.data.check import hints, inspect, to_text
from minidalle.data.pictures import Pictures
from minidalle.evaluation import own_pictures
from minidalle.evaluation.own_pictures import minutes_to_train
from minidalle.training.recipes import PRESETS


@pytest.fixture(autouse=True)
def micro(monkeypatch, tmp_path) -> None:
    """Offer the micro preset, and keep decoded pictures in a folder of the test's own."""
    monkeypatch.setitem(PRESETS, "micro", MICRO)
    monkeypatch.setenv("MINIDALLE_CACHE", str(tmp_path / "cache"))


def report_of(folder, **options) -> dict:
    return inspect(Pictures(folder, **options), 8)


@pytest.mark.parametrize("name", MAKERS)
def test_a_report_counts_what_is_there(name, tmp_path):
    maker, form = MAKERS[name]
    report = report_of(maker(tmp_path / "data"))
    assert report == json.loads(json.dumps(report))
    expected = {"format": form, "pictures": 24, "captions": 48, "different captions": 48, "held out": 2}
    expected |= {"held out by": "caption", "skipped": 0, "faults": [], "pictures without a caption": []}
    expected |= {"mirrored at random": 24, "captions that are cut": 0}
    assert {key: report[key] for key in expected} == expected
    words = {word for said in CAPTIONS.values() for caption in said for word in caption.replace(",", "").split()}
    assert report["words"] == len(words)


def test_copies_are_named_and_a_held_out_one_is_a_leak(tmp_path):
    folder = folder_of(tmp_path / "data", [f"caption {i}" for i in range(30)])
    out = sorted(Pictures(folder).held_out)
    inside = next(i for i in range(30) if i not in out)
    (folder / f"{out[0]}.png").write_bytes((folder / f"{inside}.png").read_bytes())
    report = report_of(folder)
    assert [sorted(names) for names in report["copies"]] == [sorted([f"{out[0]}.png", f"{inside}.png"])]
    assert report["held out with a copy in training"] == 1
    assert any("1 held-out pictures have a copy in training" in hint for hint in hints(report))


def test_copies_that_are_all_held_out_are_no_leak(tmp_path):
    folder = folder_of(tmp_path / "data", [f"caption {i}" for i in range(30)])
    first, second, *_ = sorted(Pictures(folder).held_out)
    (folder / f"{first}.png").write_bytes((folder / f"{second}.png").read_bytes())
    assert sorted(Pictures(folder).held_out)[:2] == [first, second]  # captions decide, not pixels
    report = report_of(folder)
    assert len(report["copies"]) == 1 and report["held out with a copy in training"] == 0


def test_what_is_wrong_is_named_and_what_has_no_caption_too(tmp_path):
    folder = metadata_jsonl(tmp_path / "data")
    (folder / "3.png").write_bytes(b"junk")
    (folder / "alone.PNG").write_bytes(picture("red"))
    with (folder / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "none.png", "text": "none"}\n')
    report = report_of(folder)
    assert report["pictures"] == 23 and report["skipped"] == 2 and report["pictures without a caption"] == ["alone.PNG"]
    assert {name for fault in report["faults"] for name in fault["names"]} == {"3.png", "none.png"}
    text = to_text(report)
    assert "1 x there is no such file: none.png" in text and "3.png" in text and "1: alone.PNG" in text


def test_each_hint_comes_where_it_holds(tmp_path):
    few = [f"{'dog' if i % 2 else 'cat'}" for i in range(40)]
    said = " ".join(hints(report_of(folder_of(tmp_path / "few", few))))
    assert "40 pictures are few" in said and "There are 2 different captions" in said and "occur once" not in said
    long = [" ".join(f"word{i}x{k}" for k in range(60)) for i in range(20)]
    said = " ".join(hints(report_of(folder_of(tmp_path / "long", long))))
    assert "1200 of 1200 words occur once" in said and "20 captions are longer" in said
    said = " ".join(hints(report_of(folder_of(tmp_path / "one", ["a cat"] * 9))))
    assert "none is held out" in said and "All captions are the same" in said and "different captions" not in said
    enough = {
        "pictures": 5000,
        "held out": 500,
        "different captions": 5000,
        "held out by": "caption",
        "words that occur once": 10,
        "words": 100,
    }
    assert hints(enough | {"captions that are cut": 0, "held out with a copy in training": 0}) == []


def test_the_minutes_are_those_of_the_steps(tmp_path, monkeypatch):
    pictures, clock = Pictures(metadata_jsonl(tmp_path / "data")), iter(range(1000))
    monkeypatch.setattr(own_pictures.time, "perf_counter", lambda: 30.0 * next(clock))
    minutes = minutes_to_train(MICRO, "quick", pictures, torch.device("cpu"))
    assert minutes == {stage: pytest.approx(12 * 30 / 3 / 60) for stage in ("clip", "prior", "decoder")}
    with pytest.raises(ValueError, match='no recipe "slow"'):
        minutes_to_train(MICRO, "slow", pictures, torch.device("cpu"))


def test_the_command_checks_a_folder_for_people_and_programs(tmp_path, capsys):
    folder = metadata_jsonl(tmp_path / "\x1b[31mdata")
    (folder / "\x1b[31m.png").write_bytes(picture("red"))
    assert main(["data", "check", str(folder), "--preset", "micro", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "held out    2, by caption" in shown and "minutes     clip 0." in shown and "\x1b" not in shown
    assert main(["data", "check", str(folder), "--preset", "micro", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 24


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["data", "check", "none"], "none does not exist"),
        (["data", "check", "."], "0 pictures without captions; expected was an image folder with metadata"),
        (["data", "check", ".", "--preset", "huge"], '"huge" is no preset'),
        (["train", "--data", "none", "--preset", "micro"], "none does not exist"),
    ],
)
def test_what_cannot_be_checked_is_said_in_one_line(arguments, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"minidalle {arguments[0]}: ") and reason in line


def test_the_command_trains_on_a_folder_and_draws_what_it_was_never_taught(tmp_path, capsys, monkeypatch):
    folder = metadata_jsonl(tmp_path / "data")
    options = ["--data", str(folder), "--preset", "micro", "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main(["train", *options, "--no-flip"]) == 0
    assert "24 pictures, 2 of them held out by caption" in capsys.readouterr().out
    arguments = ["generate", "ein grünes Nilpferd", "--checkpoint", str(tmp_path / "run"), "--device", "cpu"]
    assert main([*arguments, "--steps", "1", "--out", str(tmp_path / "p.png")]) == 0
    assert "so hardly followed: ein, grünes, nilpferd." in capsys.readouterr().out
    assert (tmp_path / "p.png").exists()
    assert main(["info", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert "words: any" in capsys.readouterr().out
    for command in (["evaluate", str(tmp_path / "run"), "-n", "4"], ["sheet", str(tmp_path / "run")]):
        assert main([*command, "--device", "cpu"]) == 1
        assert "was trained on pictures of another kind than drawn scenes" in capsys.readouterr().err


def test_scenes_are_written_by_either_name(tmp_path, capsys):
    for arguments in (["data"], ["data", "scenes"]):
        out = tmp_path / "_".join(arguments)
        assert main([*arguments, "--out", str(out), "-n", "3", "--size", "16"]) == 0
        assert len(list(out.glob("*.png"))) == 3
    assert main(["data", "--out", str(tmp_path / "mixed"), "-n", "2", "scenes", "--size", "16"]) == 0
    assert len(list((tmp_path / "mixed").glob("*.png"))) == 2


def test_emoji_are_drawn_by_their_own_module(tmp_path, monkeypatch):
    asked = []
    module = SimpleNamespace(write_emoji=lambda font, names, out: asked.append((font, names, out)) or 7)
    monkeypatch.setitem(sys.modules, "minidalle.data.emoji_font", module)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["data", "emoji", "--font", "a.ttf", "--names", "~/names.json", "--out", "out"]) == 0
    ((font, names, out),) = asked
    assert (font.name, names, out.name) == ("a.ttf", tmp_path / "names.json", "out")


def test_a_folder_that_is_put_in_order_can_be_used(tmp_path):
    folder = put(tmp_path / "data")
    with pytest.raises(ValueError, match="24 pictures without captions"):
        Pictures(folder)
    for name in CAPTIONS:
        (folder / name).with_suffix(".txt").write_text(f"picture {name}")
    assert report_of(folder)["pictures"] == 24
