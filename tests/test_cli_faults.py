"""The command line on bad terminals, paths and requests: one sentence, the right exit code, no traceback."""

import io
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import MICRO
from PIL import Image

from minidalle import __main__, cli
from minidalle.cli import EXAMPLES, main, parser
from minidalle.commands import info
from minidalle.data.folders import load_folder
from minidalle.training.loop import Stopped
from minidalle.training.recipes import PRESETS

COMMANDS = sorted(next(a.choices for a in parser()._actions if a.dest == "command"))


@pytest.fixture(autouse=True)
def micro_preset(monkeypatch) -> None:
    """Make the micro preset known."""
    monkeypatch.setitem(PRESETS, "micro", MICRO)


def refused(arguments: list[str], capsys) -> str:
    """Run what must be refused; gives the one line that says why."""
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = ended.code
    shown = capsys.readouterr()
    assert code in (1, 2) and not shown.out
    (line,) = shown.err.splitlines()
    assert line.startswith("minidalle") and line.isprintable() and len(line) < 500
    return line


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_an_example_that_can_be_run(name, capsys):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    assert EXAMPLES[name] in capsys.readouterr().out
    program, *arguments = shlex.split(EXAMPLES[name])
    assert program == "minidalle" and parser().parse_args(arguments).command == name


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["paint"], "invalid choice: 'paint' .*generate.*--help"),
        ([], "required: COMMAND"),
        (["generate", "a", "--size", "3"], "unrecognized arguments: --size 3"),
        (["generate"], "required: prompt"),
        (["generate", "a", "-n", "two"], "-n: invalid int value: 'two'"),
        (["generate", "a", "-n", "9" * 5000], "-n: invalid int value"),
        (["train", "unet"], "invalid choice: 'unet'"),
        (["x" * 100_000], "COMMAND"),
        (["\x1b[31mred\r\n"], "COMMAND"),
        (["generate", "a", "--out", "~nobody-of-this-name/x.png"], "home of a user that is not known"),
        (["info", "~nobody-of-this-name"], "home of a user that is not known"),
    ],
)
def test_what_cannot_be_parsed_is_refused_in_one_line(arguments, reason, capsys):
    assert re.search(reason, refused(arguments, capsys))


def test_a_prompt_steers_no_terminal(micro_run, capsys):
    refused(["generate", "a \x1b[31mred\x07 \ud83d\u202e circle", "--checkpoint", str(micro_run)], capsys)


REQUESTS = {
    "a million pictures": ["generate", "a red circle", "-n", "1000000"],
    "more than there are numbers": ["generate", "a red circle", "-n", str(10**30)],
    "no pictures": ["generate", "a red circle", "-n", "-1"],
    "a giant enlargement": ["generate", "a red circle", "--scale", str(10**9)],
    "giant in both": ["generate", "a red circle", "-n", "1024", "--scale", "64"],
    "a seed without an end": ["generate", "a red circle", "--seed", "9" * 3000],
    "giant pictures of data": ["data", "--size", str(10**9)],
    "negative data": ["data", "-n", "-3"],
}


@pytest.mark.parametrize("name", REQUESTS)
def test_giant_requests_are_refused_before_memory_is_taken(name, micro_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = ["--checkpoint", str(micro_run), "--device", "cpu"] if REQUESTS[name][0] == "generate" else []
    monkeypatch.setattr(cli.MiniDalle, "__call__", lambda *_, **__: pytest.fail("it was drawn"))
    refused([*REQUESTS[name], *where], capsys)
    assert not list(tmp_path.iterdir())


def test_data_beyond_a_chunk_is_written_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "CHUNK", 4)
    sizes, batch = [], cli.World.batch
    monkeypatch.setattr(cli.World, "batch", lambda world, step, n: sizes.append(n) or batch(world, step, n))
    assert main(["data", "--out", str(tmp_path / "some"), "-n", "10", "--size", "16"]) == 0
    assert sizes == [4, 4, 2] and len(set(load_folder(tmp_path / "some", 16)[1])) > 5
    assert main(["data", "--out", str(tmp_path / "few"), "-n", "3", "--size", "16"]) == 0
    for number in range(3):
        name = f"{number:04d}.png"
        assert (tmp_path / "some" / name).read_bytes() == (tmp_path / "few" / name).read_bytes()


def test_picture_k_of_a_seed_is_the_same_alone_in_a_row_and_in_chunks(micro_run, tmp_path, monkeypatch, capsys):
    def draw(*options: str) -> np.ndarray:
        path = tmp_path / "not" / "yet" / "there.png"
        arguments = ["generate", "a red circle", "--checkpoint", str(micro_run), "--steps", "2", "--scale", "1"]
        assert main([*arguments, "--device", "cpu", "--out", str(path), *options]) == 0
        with Image.open(path) as picture:
            return np.array(picture.convert("RGB")).astype(int)

    alone = [draw("--seed", str(seed)) for seed in range(5, 9)]
    side = len(alone[0])
    for chunk in (64, 3, 1):
        monkeypatch.setattr(cli, "CHUNK", chunk)
        row = draw("-n", "4", "--seed", "5")
        for k, picture in enumerate(alone):
            found = row[1 : 1 + side, 1 + k * (side + 1) :][:, :side]
            assert np.abs(found - picture).max() <= 1
    assert np.abs(alone[0] - alone[1]).max() > 1


@pytest.mark.parametrize("encoding", ["ascii", "cp932", "latin-1", "cp437", "utf-16"])
def test_no_command_dies_of_a_letter_that_the_terminal_does_not_know(encoding, micro_run, monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    for name in ("", *COMMANDS):
        with pytest.raises(SystemExit) as ended:
            main([*name.split(), "--help"])
        assert ended.value.code == 0
    assert main(["generate", "ein grüner Kreis · 円 \udc80", "--checkpoint", str(micro_run)]) == 1
    with pytest.raises(SystemExit):
        main(["é"])
    monkeypatch.setattr(info, "known_words", lambda: ["é", "円", "·", "\ud83d"])
    assert main(["info", str(micro_run), "--device", "cpu"]) == 0
    shown = [stream.buffer.getvalue() for stream in streams if stream.flush() is None]
    assert "usage: minidalle".encode(encoding)[2:] in shown[0] and b"minidalle"[:1] in shown[1]


def test_a_tilde_is_your_home_in_every_path(micro_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").symlink_to(micro_run)
    assert main(["data", "--out", "~/scenes", "-n", "1", "--size", "16"]) == 0
    assert main(["info", "~/run", "--device", "cpu"]) == 0
    options = ["--steps", "1", "--device", "cpu"]
    assert main(["generate", "a red circle", "--checkpoint", "~/run", "--out", "~/new/p.png", *options]) == 0
    assert (tmp_path / "scenes" / "0000.png").exists() and (tmp_path / "new" / "p.png").exists()
    for arguments in (["train", "--out", "~/a"], ["demo", "--out", "~/a"], ["sheet", "--out", "~/a"]):
        assert parser().parse_args(arguments).out == tmp_path / "a"
    args = parser().parse_args(["reference", "~/a", "~", "--out", "~/b"])
    assert args.runs == [tmp_path / "a", tmp_path] and args.out == tmp_path / "b"
    assert parser().parse_args(["evaluate", "~/a", "./tiny", "tiny"]).checkpoints == [f"{tmp_path}/a", "./tiny", "tiny"]
    assert parser().parse_args(["sheet", "~"]).checkpoint == str(tmp_path)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (Stopped("clip", signal.SIGTERM, 7, Path("x")), 143, "clip: stopped by SIGTERM; step 7 is kept in x.*--resume"),
        (Stopped("clip", signal.SIGINT, 7, Path("x")), 130, "clip: stopped by SIGINT; step 7 is kept in x.*--resume"),
        (KeyboardInterrupt(), 130, "stopped; stages that were finished are kept. .*--resume"),
        (MemoryError(), 1, "the memory does not suffice"),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "the memory does not suffice"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (OSError(28, "No space left on device", "x"), 1, r"x cannot be used \(No space left"),
    ],
)
def test_a_stop_and_a_lack_are_said_in_one_line(error, code, said, tmp_path, monkeypatch, capsys):
    def raise_it(*_, **__):
        raise error

    monkeypatch.setattr(cli, "train", raise_it)
    assert main(["train", "clip", "--preset", "micro", "--out", str(tmp_path), "--device", "cpu"]) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(f"^minidalle train: {said}", line)


def test_a_header_is_not_echoed_raw_or_at_length(micro_run, monkeypatch, capsys):
    model = SimpleNamespace(parameters=list)
    header = {"preset": "\x1b[31m" + "long " * 9999, "recipe": {"a": ["\r"] * 999}, "sha256": "0" * 64}
    monkeypatch.setattr(info, "load_model", lambda *_: (model, header))
    assert main(["info", str(micro_run), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out.split("words:")[1]
    assert all(line.isprintable() for line in shown.splitlines()) and len(shown) < 4000


def process(arguments: list[str], **options) -> subprocess.Popen:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "minidalle", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=buffered, **options)


@pytest.mark.parametrize("arguments", [["--help"], ["data", "-n", "1", "--size", "16"]])
def test_a_reader_that_has_gone_ends_a_command_quietly(tmp_path, arguments):
    reading, writing = os.pipe()
    os.close(reading)
    ended = process(arguments, stdout=writing, cwd=tmp_path)
    os.close(writing)
    assert ended.communicate()[1] == "" and ended.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_behind_the_output_is_said_in_one_line(tmp_path):
    with Path("/dev/full").open("w") as full:
        ended = process(["--help"], stdout=full, cwd=tmp_path)
        (line,) = ended.communicate()[1].splitlines()
    assert ended.returncode == 1 and "cannot be written (No space left on device)" in line


def test_a_stop_anywhere_in_the_command_line_is_one_line(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "minidalle.cli", SimpleNamespace(main=interrupt))
    assert __main__.main() == 130
    assert capsys.readouterr().err == "\nminidalle: stopped.\n"


INTERRUPTED = """
import sys
class Impatient:
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Impatient())
from minidalle.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("name", ["torch", "minidalle.cli", "minidalle.pipeline", "minidalle.world.grammar"])
def test_ctrl_c_while_modules_are_imported_is_one_line(name):
    ended = subprocess.run([sys.executable, "-c", INTERRUPTED, name], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr.strip(), ended.stdout) == (130, "minidalle: stopped.", "")


STATE = """
import importlib, os, pkgutil, random, signal, sys, threading
import matplotlib, numpy, torch

def state():
    return {
        "environment": dict(os.environ),
        "random": random.getstate(), "numpy": repr(numpy.random.get_state()),
        "torch": torch.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(), "device": torch.get_default_device(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), threading.active_count()),
        "grad": torch.is_grad_enabled(), "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "cudnn": [getattr(torch.backends.cudnn, f) for f in ("allow_tf32", "benchmark", "deterministic", "enabled")],
        "cuda": torch.backends.cuda.matmul.allow_tf32,
        "style": dict(matplotlib.rcParams),
        "signals": [signal.getsignal(s) for s in signal.valid_signals()],
        "folder": os.getcwd(), "recursion": sys.getrecursionlimit(), "hook": sys.excepthook,
    }

before = state()
import minidalle
names = [m.name for m in pkgutil.walk_packages(minidalle.__path__, "minidalle.")]
for name in names:
    importlib.import_module(name)
after = state()
print(len(names), [key for key in before if before[key] != after[key]])
"""


def test_imports_change_nothing_but_the_list_of_modules(tmp_path):
    ended = subprocess.run([sys.executable, "-c", STATE], capture_output=True, text=True, cwd=tmp_path)
    number, changed = ended.stdout.split(maxsplit=1) if ended.stdout else (0, ended.stderr)
    assert int(number) > 30 and changed.strip() == "[]"
    assert not list(tmp_path.iterdir())


def test_the_lowest_versions_that_are_tried_are_those_that_are_allowed():
    version = pytest.importorskip("packaging.version").Version
    root = Path(__file__).parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    allowed = dict(re.match(r"([\w-]+)>=([\d.]+)", line).groups() for line in project["dependencies"])
    tried = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (root / "tools" / "lowest.txt").read_text(), re.MULTILINE))
    assert allowed.pop("torch")
    assert {name: version(tried[name]) for name in allowed} == {name: version(v) for name, v in allowed.items()}
