"""The world of signs from the command line: trained, drawn and measured by the same commands as the others."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import MICRO

from minidalle.cli import main
from minidalle.training.recipes import PRESETS
from minidalle.training.stages import STACK


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Train a system of pictures of 32 pixels for a few steps."""
    folder, models = tmp_path_factory.mktemp("signs") / "run", {name: MICRO.models[name] for name in STACK}
    models["clip"] = replace(models["clip"], image_size=32)
    models["decoder"] = replace(models["decoder"], unet=replace(models["decoder"].unet, image_size=32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "micro_signs", replace(MICRO, name="micro_signs", models=models, world="signs"))
        assert main(["train", "all", "--preset", "micro_signs", "--out", str(folder), "--device", "cpu"]) == 0
    return folder


def test_evaluate_prints_the_card_of_this_world(run, capsys):
    arguments = ["evaluate", str(run), "-n", "3", "--steps", "1", "--device", "cpu"]
    assert main([*arguments, "--test"]) == 0
    shown = capsys.readouterr().out
    assert "Typographic attack" in shown and "objects and a word, test" in shown
    assert main([*arguments, "--json", "--seed", "2"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert (card["world"], card["n"], card["seed"], card["split"]) == ("signs", 3, 2, "held out")
    assert card["spelling"]["seen"]["true picture"]["word"]["share"] == 1


def test_generate_takes_words_as_people_write_them(run, tmp_path, capsys):
    out = tmp_path / "picture.png"
    arguments = ["--checkpoint", str(run), "--out", str(out), "--steps", "1", "--device", "cpu"]
    assert main(["generate", 'three small red discs and a sign saying "dog"', *arguments]) == 0
    shown = capsys.readouterr().out
    assert 'Read as "three red circles and a sign that says d o g".' in shown and out.exists()
    assert main(["generate", "a red circle above a blue square", *arguments]) == 1
    assert '"above" is not understood' in capsys.readouterr().err


def test_what_has_no_place_for_signs_says_so_before_it_computes(run, capsys):
    assert main(["evaluate", str(run), "-n", "0", "--device", "cpu"]) == 1
    assert "The number of prompts of each kind is 0" in capsys.readouterr().err
    for arguments in (["sheet", str(run), "--device", "cpu"], ["evaluate", str(run), "tiny", "--device", "cpu"]):
        assert main(arguments) == 1
        said = capsys.readouterr().err
        assert f'was trained on signs, which have a card of their own: "minidalle evaluate {run}"' in said
    assert main(["demo", "--preset", "signs"]) == 1
    assert "the preset signs trains on signs: use minidalle train" in capsys.readouterr().err


def test_info_names_the_words_of_this_world(run, capsys):
    assert main(["info", str(run), "--device", "cpu"]) == 0
    words = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("words:")).split()
    assert {"three", "circles", "sign", "says", "x"} <= set(words) and "above" not in words
