"""The command line: it does what it says, and bad input ends in one sentence and not in a traceback."""

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError

import pytest
from conftest import MICRO
from PIL import Image

from minidalle import checkpoint, cli
from minidalle.cli import main
from minidalle.data.batches import World
from minidalle.data.folders import load_folder
from minidalle.evaluation import bench
from minidalle.training.recipes import PRESETS
from minidalle.training.stages import STACK

COMMANDS = ("demo", "train", "generate", "evaluate", "sheet", "bench", "info", "data", "reference")


@pytest.fixture(autouse=True)
def micro_preset(monkeypatch) -> None:
    """Make the micro preset known."""
    monkeypatch.setitem(PRESETS, "micro", MICRO)


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "usage: minidalle" in shown and (command or all(name in shown for name in COMMANDS))


def test_the_version_is_the_installed_one(capsys, monkeypatch):
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    for version, shown in ((lambda name: f"{name} 1.2.3", "minidalle 1.2.3"), (missing, "not installed")):
        monkeypatch.setattr(checkpoint, "version", version)
        with pytest.raises(SystemExit) as ended:
            main(["--version"])
        assert ended.value.code == 0 and capsys.readouterr().out.strip() == shown


def test_generate_writes_the_pictures_in_rows(micro_run, tmp_path, capsys):
    def draw(name: str, *options: str) -> Image.Image:
        path = tmp_path / "new" / name
        arguments = ["generate", "a red circle", "--checkpoint", str(micro_run), "--steps", "2", "--device", "cpu"]
        assert main([*arguments, "--out", str(path), *options]) == 0
        assert capsys.readouterr().out == f"Wrote {path}.\n"
        with Image.open(path) as picture:
            return picture.convert("RGB")

    one, three, nine = draw("one.png"), draw("three.png", "-n", "3", "--scale", "2"), draw("nine.png", "-n", "9")
    assert one.size == (64, 64) and three.size == (3 * 32 + 4 * 2, 32 + 2 * 2)
    assert nine.size == (8 * 64 + 9 * 4, 2 * 64 + 3 * 4)  # a row of eight, and the ninth below the first
    assert nine.crop((4, 72, 68, 136)).getcolors() != [(64 * 64, (255, 255, 255))]
    assert nine.crop((68, 72, 548, 136)).getcolors() == [(480 * 64, (255, 255, 255))]
    assert draw("again.png").tobytes() == one.tobytes() != draw("other.png", "--seed", "1").tobytes()
    assert draw("unguided.png", "--guidance-scale", "1").tobytes() != one.tobytes()


def test_evaluate_prints_the_card_for_people_and_programs(micro_run, capsys):
    arguments = ["evaluate", str(micro_run), "-n", "4", "--steps", "1", "--device", "cpu"]
    assert main(arguments) == 0
    assert "Prompt following" in capsys.readouterr().out
    assert main([*arguments, "--json", "--seed", "3"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["n"] == 4 and card["seed"] == 3


def test_info_tells_what_is_there_and_what_is_missing(micro_run, tmp_path, capsys):
    assert main(["info", str(micro_run), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"minidalle {cli.own_version()}, torch") and "device cpu" in shown and "circle" in shown
    for kind in STACK:
        assert f"{kind}: 0." in shown
    assert "preset micro, recipe quick, seed 0, seconds" in shown and "pictures 96, sha256" in shown
    (tmp_path / "clip.safetensors").write_bytes((micro_run / "clip.safetensors").read_bytes())
    assert main(["info", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "clip: 0." in shown and "prior.safetensors does not exist" in shown


def test_data_writes_a_folder_that_can_be_read(tmp_path, capsys):
    assert main(["data", "--out", str(tmp_path / "scenes"), "-n", "5", "--size", "24"]) == 0
    assert "5 pictures" in capsys.readouterr().out
    images, captions = load_folder(tmp_path / "scenes", 24)
    assert images.shape == (5, 3, 24, 24) and captions == World(24).batch(0, 5).captions


def test_train_and_demo_leave_a_run_a_card_and_a_sheet(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "report_card", partial(cli.report_card, n=4, num_inference_steps=1))
    options = ["--preset", "micro", "--out", str(tmp_path), "--device", "cpu"]
    assert main(["train", "clip", *options]) == 0
    assert "Trained clip in" in capsys.readouterr().out
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["clip.safetensors"]
    before = (tmp_path / "clip.safetensors").stat().st_mtime_ns
    assert main(["demo", *options, "--resume"]) == 0
    assert (tmp_path / "clip.safetensors").stat().st_mtime_ns == before
    shown = capsys.readouterr().out
    assert "Trained clip, prior, decoder in" in shown and "Prompt following" in shown and "contact_sheet.png" in shown
    assert json.loads((tmp_path / "report.json").read_text())["n"] == 4
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.width > 300
    draw = ["generate", "a red circle", "--steps", "1", "--checkpoint", str(tmp_path), "--out", str(tmp_path / "p.png")]
    assert main(draw) == 0


def test_bench_prints_json(capsys, monkeypatch):
    monkeypatch.setattr(bench, "bench", lambda preset, device: {"preset": preset.name, "device": str(device)})
    assert main(["bench", "--preset", "micro", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out) == {"preset": "micro", "device": "cpu"}


BAD = {
    "an unknown word": (["generate", "a red dog"], '"dog" is not understood in "a red dog"'),
    "an empty prompt": (["generate", ""], "The prompt is empty"),
    "no steps": (["generate", "a red circle", "--steps", "0"], "number of sampling steps is 0"),
    "too many steps": (["generate", "a red circle", "--steps", "1001"], "number of sampling steps is 1001"),
    "no pictures": (["generate", "a red circle", "-n", "0"], "-n is 0"),
    "no enlargement": (["generate", "a red circle", "--scale", "0"], "--scale is 0"),
    "too much of it": (["generate", "a red circle", "--scale", "1000000"], "--scale is 1000000; .* 1 to 64"),
    "a sheet of an unknown kind": (["sheet", "--out", "sheet.xyz"], r"--out is sheet\.xyz; a file that ends in"),
    "words that are no prompt": (["generate", "of of of"], "names no object"),
    "a colour of backgrounds": (["generate", "a black circle"], '"black" is no color of an object'),
    "guidance nan": (["generate", "a red circle", "--guidance-scale", "nan"], "guidance_scale is nan"),
    "a seed too large": (["generate", "a red circle", "--seed", str(2**70)], "--seed is 1180"),
    "a bad device": (["generate", "a red circle", "--device", "tpu"], '"tpu" is no device'),
    "an unknown kind of file": (
        ["generate", "a red circle", "--steps", "1", "--out", "a.xyz"],
        r"--out is a\.xyz; a file that ends in \.png, \.jpg, \.gif was expected",
    ),
    "a folder for a file": (
        ["generate", "a red circle", "--steps", "1", "--out", "."],
        r"--out is \.; a file that ends in",
    ),
    "too few prompts": (["evaluate", "-n", "2"], "2 prompts of each kind"),
    "no data": (["data", "-n", "0"], "A batch of 0 pictures"),
    "data of a bad size": (["data", "--size", "8"], "8 pixels wide"),
    "an unknown preset": (["train", "--preset", "huge"], '"huge" is no preset; choose one of tiny, .*micro'),
    "an unknown preset to bench": (["bench", "--preset", "huge"], '"huge" is no preset'),
    "an unknown recipe": (["train", "--preset", "micro", "--recipe", "slow"], 'no recipe "slow"'),
    "a stage without a clip": (["train", "prior", "--preset", "micro"], r"clip\.safetensors does not exist"),
    "a bad device to train on": (["train", "--preset", "micro", "--device", "tpu"], '"tpu" is no device'),
    "a run that is a file": (
        ["train", "--preset", "micro", "--out", "file"],
        "file cannot be made, since a file is in its place: name another folder",
    ),
    "no such checkpoint": (["generate", "a red circle", "--checkpoint", "none"], '"none" is neither a folder nor'),
    "no such checkpoint to evaluate": (["evaluate", "none"], '"none" is neither'),
    "no such checkpoint to describe": (["info", "none"], '"none" is neither'),
    "an empty checkpoint": (["evaluate", "."], r"clip\.safetensors does not exist"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_in_one_sentence(name, micro_run, tmp_path, monkeypatch, capsys):
    arguments, message = BAD[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    if arguments[0] == "generate" and "--checkpoint" not in arguments:
        arguments = [*arguments, "--checkpoint", str(micro_run)]
    if arguments == ["evaluate", "-n", "2"]:
        arguments = [*arguments, str(micro_run)]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith(f"minidalle {arguments[0]}: ")
    assert re.search(message, line), line
    assert not list(tmp_path.glob("*.png"))


def test_a_word_that_is_no_option_is_refused_in_a_line_that_names_the_help(capsys):
    for arguments in ([], ["paint"], ["train", "painter"], ["generate"], ["generate", "a", "-n", "two"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("minidalle") and '--help" tells what is possible' in line


def test_a_damaged_checkpoint_is_named(micro_run, tmp_path, capsys):
    for kind in STACK:
        (tmp_path / f"{kind}.safetensors").write_bytes((micro_run / f"{kind}.safetensors").read_bytes()[:-5])
    assert main(["generate", "a red circle", "--checkpoint", str(tmp_path), "--out", str(tmp_path / "p.png")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "clip.safetensors is truncated" in line


def test_ctrl_c_ends_with_130_and_the_run_can_be_taken_up(tmp_path, monkeypatch, capsys):
    draw = World.batch

    def batch(world, step, batch_size):
        if step == 4:
            signal.raise_signal(signal.SIGINT)
        return draw(world, step, batch_size)

    options = ["--preset", "micro", "--out", str(tmp_path), "--device", "cpu"]
    with monkeypatch.context() as patch:
        patch.setattr(World, "batch", batch)
        assert main(["train", "clip", *options]) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert "step 5 is kept" in said and said.endswith("The same command with --resume goes on.")
    assert (tmp_path / "clip.training.safetensors").exists()
    assert main(["train", "clip", *options, "--resume"]) == 0
    assert (tmp_path / "clip.safetensors").exists() and not (tmp_path / "clip.training.safetensors").exists()


def test_ctrl_c_elsewhere_promises_nothing(micro_run, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("minidalle.commands.evaluate.report_card", interrupt)
    assert main(["evaluate", str(micro_run)]) == 130
    assert capsys.readouterr().err.splitlines() == ["", "minidalle evaluate: stopped."]


def test_a_training_that_fails_is_told_in_a_sentence(tmp_path, monkeypatch, capsys):
    draw = World.batch

    def batch(world, step, batch_size):
        found = draw(world, step, batch_size)
        return replace(found, images=found.images * (float("nan") if step == 4 else 1))

    monkeypatch.setattr(World, "batch", batch)
    assert main(["train", "clip", "--preset", "micro", "--out", str(tmp_path), "--device", "cpu"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("minidalle train: clip: ") and "not finite at step 5; nothing was saved" in said


def test_the_module_can_be_run():
    ended = subprocess.run([sys.executable, "-m", "minidalle.cli", "info", "none"], capture_output=True, text=True)
    assert ended.returncode == 1 and len(ended.stderr.splitlines()) == 1, ended.stderr
