"""minidalle evaluate --sweep: a table, JSON or a plot; and one sentence for what makes no sense."""

import json
import re
import shutil

import pytest
from PIL import Image

from minidalle.cli import main
from minidalle.commands import evaluate

QUICK = ["-n", "4", "--steps", "1", "--device", "cpu"]


def test_a_sweep_is_printed_for_people_and_for_programs(micro_run, capsys):
    assert main(["evaluate", str(micro_run), "--sweep", "3", "1", *QUICK]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert str(micro_run) in lines and [line.split()[0] for line in lines[-4:-1]] == ["1", "3", "real"]
    assert main(["evaluate", str(micro_run), "--sweep", "1", "3", *QUICK, "--json", "--seed", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seed"] == 3 and [point["guidance_scale"] for point in found["points"]] == [1, 3]


def test_several_systems_have_a_table_and_a_curve_each(micro_run, tmp_path, capsys):
    other, plot = shutil.copytree(micro_run, tmp_path / "other"), tmp_path / "new" / "sweep.PNG"
    arguments = ["evaluate", str(micro_run), str(other), "--sweep", "0", "1.5", *QUICK, "--plot", str(plot)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.count("exact, held out") == 2 and shown.endswith(f"Wrote {plot}.\n")
    with Image.open(plot) as picture:
        assert picture.format == "PNG" and picture.width == 900
    assert main([*arguments, "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert list(found) == [str(micro_run), str(other)] and printed.err == f"Wrote {plot}.\n"
    mine, same = ({**point, "seconds a picture": 0} for sweep in found.values() for point in sweep["points"][:1])
    assert mine == same


def test_a_rival_with_guidance_is_swept_beside_unclip(micro_run, capsys):
    assert main(["evaluate", "dalle1", "--sweep", "1", "2", "-n", "4", "--device", "cpu"]) == 0
    assert "\ndalle1\n" in capsys.readouterr().out


BAD = {
    "no number": (["--sweep", "1", "two"], 2, "--sweep: 'two' is no number"),
    "a checkpoint behind the scales": (["--sweep", "1", "2", "tiny"], 2, "'tiny' is no number; checkpoints go before"),
    "no scale": (["--sweep"], 2, "--sweep: expected at least one argument"),
    "not a number": (["--sweep", "1", "nan"], 1, "guidance scale of the sweep is nan; a finite number was expected"),
    "infinite": (["--sweep", "1", "inf"], 1, "is inf; a finite number was expected"),
    "negative": (["--sweep", "-1", "2"], 1, "is -1; 0 or more was expected"),
    "twice": (["--sweep", "1", "2", "1.0"], 1, "has the guidance scale 1 more than once"),
    "one alone": (["--sweep", "2"], 1, "has 1 of the two or more guidance scales"),
    "a plot of nothing": (["--plot", "a.png"], 1, "--plot draws the curves of a sweep, and there is none"),
    "a plot of another kind": (["--sweep", "1", "2", "--plot", "a.txt"], 1, r"--plot is a\.txt; .* ends in \.png"),
    "a plot without an ending": (["--sweep", "1", "2", "--plot", "png"], 1, r"--plot is png; .* ends in \.png"),
    "a folder for a plot": (["--sweep", "1", "2", "--plot", "folder.png"], 1, r"--plot is folder\.png; a file"),
    "own pictures": (["--sweep", "1", "2", "--data", "x"], 1, "asks for drawn scenes, .*: leave --data out"),
    "the test split": (
        ["--sweep", "1", "2", "--test"],
        1,
        "nothing is ever chosen on .*: leave --test out",
    ),
    "two of a kind": (["--sweep", "1", "2", "--guidance-scale", "0"], 1, "leave --guidance-scale out"),
    "too few prompts": (["--sweep", "1", "2", "-n", "3"], 1, "3 prompts of each kind"),
    "no steps": (["--sweep", "1", "2", "--steps", "0", "-n", "4"], 1, "number of sampling steps is 0"),
    "no such checkpoint": (["nowhere", "--sweep", "1", "2"], 1, '"nowhere" is neither a folder'),
    "emoji": (["emoji", "--sweep", "1", "2"], 1, "emoji was trained on other pictures than drawn scenes"),
    "a rival without guidance": (["vae", "--sweep", "1", "2"], 1, "vae has no guidance_scale"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_makes_no_sense_is_refused_in_one_sentence(name, micro_run, tmp_path, monkeypatch, capsys):
    arguments, expected, message = BAD[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr(evaluate, "report_card", lambda *_, **__: pytest.fail("something was measured"))
    try:
        code = main(["evaluate", str(micro_run), *arguments])
    except SystemExit as ended:
        code = ended.code
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert code == expected and not printed.out and re.search(message, line), line
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_nothing_is_drawn_when_one_of_several_is_refused(micro_run, monkeypatch, capsys):
    monkeypatch.setattr(evaluate.sweep, "sweep", lambda *_, **__: pytest.fail("something was measured"))
    for other in ("vae", "emoji", "nowhere"):
        assert main(["evaluate", str(micro_run), other, "--sweep", "1", "2"]) == 1
        assert other in capsys.readouterr().err
