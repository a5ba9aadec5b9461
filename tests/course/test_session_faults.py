"""A learner's folder and trainings: interrupted, read-only, unreadable, with a seed that is none; all in sentences."""

import errno
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import MICRO

from minidalle import course
from minidalle.checkpoint import AccessError, load, load_model, save_model
from minidalle.clip import CLIP
from minidalle.course import pieces, session
from minidalle.prior import DiffusionPrior
from minidalle.training import loop
from minidalle.training.run import locked
from minidalle.training.trainer import Trainer
from minidalle.world.grammar import parse


@pytest.fixture
def lesson(tmp_path, monkeypatch, micro_run):
    """A learner's machine: the course with models that are small, and a folder of their own."""
    monkeypatch.setenv("MINIDALLE_MODELS", str(tmp_path / "mine"))
    monkeypatch.setenv("MINIDALLE_BUDGET", "quick")
    monkeypatch.delenv("MINIDALLE_SEED", raising=False)
    monkeypatch.setattr(session, "TINY", replace(MICRO, name="tiny"))
    monkeypatch.setattr(session.curves, "load", lambda *_: None)
    monkeypatch.setattr(session, "theory_lines", lambda *_: {})
    monkeypatch.setattr(pieces, "find_folder", lambda _: micro_run)
    monkeypatch.setattr(loop, "LOG_EVERY", 4)
    return tmp_path / "mine"


def interrupt(monkeypatch, step: int, number: int = signal.SIGINT) -> None:
    whole = Trainer.step

    def acting(trainer, loss_at, n):
        if n + 1 == step:
            monkeypatch.setattr(Trainer, "step", whole)
            signal.raise_signal(number)
        whole(trainer, loss_at, n)

    monkeypatch.setattr(Trainer, "step", acting)


def same(a: Path, b: Path, stage: str) -> bool:
    one, other = (load(folder / f"{stage}.safetensors", stage)[0] for folder in (a, b))
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("stage", ["clip", "prior"])
@pytest.mark.parametrize("steps", [(1,), (5, 6), (12,)])
def test_a_cell_that_was_interrupted_goes_on_when_it_is_run_again(lesson, monkeypatch, capsys, micro_run, stage, steps):
    for step in steps:
        interrupt(monkeypatch, step)
        with pytest.raises(KeyboardInterrupt):
            course.train(stage)
        said = capsys.readouterr().out
        assert f"{stage}: stopped by SIGINT; step {step} is kept in" in said and "Run this cell again" in said
        assert not (lesson / f"{stage}.safetensors").exists()
    model = course.train(stage)
    assert f"{stage} goes on from step {steps[-1]} of 12 steps" in capsys.readouterr().out
    assert not model.training and same(lesson, micro_run, stage)
    course.train(stage)  # finished: a repeated cell trains from the start
    assert f"{stage} begins: 12 steps" in capsys.readouterr().out


def test_what_another_seed_was_trained_for_is_not_gone_on_with(lesson, monkeypatch, capsys):
    interrupt(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        course.train("clip")
    monkeypatch.setenv("MINIDALLE_SEED", "7")
    course.train("clip")
    said = capsys.readouterr().out
    assert "clip begins" in said and "of a training that was stopped, is deleted" in said
    assert load(lesson / "clip.safetensors", "clip")[1]["seed"] == 7


def test_a_damaged_state_does_not_bar_the_cell(lesson, monkeypatch, capsys, micro_run):
    interrupt(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        course.train("clip")
    state = lesson / "clip.training.safetensors"
    state.write_bytes(state.read_bytes()[:-50])
    course.train("clip")
    assert "clip is trained from the start" in capsys.readouterr().err
    assert same(lesson, micro_run, "clip")


@pytest.mark.parametrize("seed", [str(2**63), "9" * 5000, "-1", "one", "1.5", "0x10", "²", "1 2"])
def test_a_seed_that_is_none_is_refused_before_anything_is_trained(lesson, monkeypatch, seed):
    monkeypatch.setenv("MINIDALLE_SEED", seed)
    with pytest.raises(ValueError, match="MINIDALLE_SEED is") as error:
        course.train("clip")
    assert len(str(error.value)) < 200 and not lesson.exists()


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_every_other_seed_works(lesson, monkeypatch, seed):
    monkeypatch.setenv("MINIDALLE_SEED", str(seed))
    assert course.seed() == seed
    course.train("decoder")
    assert load(lesson / "decoder.safetensors", "decoder")[1]["seed"] == seed


def test_the_folder_is_the_one_that_the_environment_names_now(lesson, monkeypatch, tmp_path):
    course.train("clip")
    for where in ("second", "third"):
        monkeypatch.setenv("MINIDALLE_MODELS", str(tmp_path / where))
        assert session.folder() == tmp_path / where and session.pieces().own("clip") is None
        course.train("clip")
        assert (tmp_path / where / "clip.safetensors").exists()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MINIDALLE_MODELS", "~/second")
    assert session.pieces().own("clip")["seed"] == 0
    monkeypatch.delenv("MINIDALLE_MODELS")
    monkeypatch.chdir(tmp_path)
    assert session.folder() == Path("my_models")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_may_not_be_written_ends_in_a_sentence(lesson, monkeypatch, code):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ValueError, match=r"mine may not be written \(.*\): name another folder"):
        course.train("clip")


def test_a_folder_in_use_and_a_stage_that_is_none_end_in_sentences(lesson):
    with locked(lesson), pytest.raises(ValueError, match="held by another run"):
        course.train("clip")
    with pytest.raises(ValueError, match='"painter" is no stage; choose one of clip'):
        course.train("painter")


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({}, "unknown budget)"),
        ({"recipe": "quick", "seconds": "long"}, "quick budget)"),
        ({"recipe": "a\x1b[2J" * 50, "seconds": 3}, "budget, 3 s of training)"),
        ({"recipe": None, "seconds": float("nan")}, "None budget, nan s of training)"),
    ],
    ids=["nothing", "text", "odd", "none"],
)
def test_what_a_file_says_of_itself_is_not_believed(lesson, capsys, meta, said):
    save_model(lesson, CLIP(MICRO.models["clip"]), meta)
    course.begin("07_prior")
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("clip: "))
    assert line.endswith(said) and f"yours ({lesson}" in line and line.isprintable() and len(line) < 400


def test_a_prior_that_does_not_name_its_clip_is_not_used(lesson, micro_run):
    header = load(micro_run / "prior.safetensors", "prior")[1]
    header.pop("clip")
    save_model(lesson, load_model(DiffusionPrior, micro_run)[0], header)
    assert session.pieces().folder_of("prior") == micro_run


def test_the_folder_of_a_stranger_is_refused_by_its_name(lesson, monkeypatch):
    monkeypatch.setenv("MINIDALLE_MODELS", "~nobody-of-this-name/models")
    with pytest.raises(ValueError, match="MINIDALLE_MODELS is ~nobody-of-this-name/models, in the home of a user"):
        course.begin("07_prior")


def test_one_description_counts_as_one():
    for said in ("a red circle", parse("a red circle")):
        with pytest.raises(ValueError, match="12 pictures and 1 descriptions"):
            course.exact_match(torch.zeros(12, 3, 32, 32), said)
    assert course.exact_match(torch.zeros(1, 3, 32, 32), "a red circle").n == 1


def test_a_piece_says_what_is_wrong_with_it(lesson, monkeypatch):
    course.train("clip")
    path, real = lesson / "clip.safetensors", Path.open
    whole = path.read_bytes()

    def told() -> str:
        assert session.pieces().clip_folder() != lesson
        return session.pieces().whose("clip")

    path.write_bytes(whole[:-9])
    assert "yours is damaged" in told()
    path.write_bytes(whole)
    assert session.pieces().clip_folder() == lesson

    def refuse(path, *arguments, **options):
        if path.parent == lesson:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *arguments, **options)

    with monkeypatch.context() as patch:
        os.utime(path, (1, 1))
        patch.setattr(Path, "open", refuse)
        assert "yours may not be read" in told()
        with pytest.raises(AccessError):
            load(path, "clip")
    header = load(path, "clip")[1]
    save_model(lesson, CLIP(MICRO.models["clip"]), {**header, "recipe": "smoke"})
    assert "yours was only a smoke test" in told()
    path.unlink()
    assert told() == "shipped (notebook 02 trains your own)"
