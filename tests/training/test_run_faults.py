"""A folder of a run: seeds, locks, rights, damage, kills; each is borne, or named before anything is lost."""

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import filelock
import pytest
import torch
from conftest import MICRO
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minidalle import checkpoint
from minidalle.checkpoint import AccessError, load, load_model
from minidalle.clip import CLIP
from minidalle.training import loop, trainer
from minidalle.training.loop import Stopped, TrainingError
from minidalle.training.run import is_finished, kept_step, locked, metrics_until, origin_of, read_metrics, train
from minidalle.training.stages import STACK, STAGES, derived_seed, stage_source, step_generator
from minidalle.training.trainer import Trainer

CLIP_FILE, STATE = "clip.safetensors", "clip.training.safetensors"


def weights(folder: Path, stage: str = "clip") -> dict[str, torch.Tensor]:
    return load(folder / f"{stage}.safetensors", stage)[0]


def equal(a: Path, b: Path, *stages: str) -> bool:
    return all(torch.equal(x, weights(b, s)[name]) for s in stages or ("clip",) for name, x in weights(a, s).items())


def stop_at(monkeypatch, step: int, stage: str = "clip", act=lambda: signal.raise_signal(signal.SIGINT)):
    """Have something happen in a step of a stage, once."""
    whole = Trainer.step

    def acting(trainer, loss_at, n):
        if n + 1 == step and trainer.model.kind == stage:
            monkeypatch.setattr(Trainer, "step", whole)
            act()
        whole(trainer, loss_at, n)

    monkeypatch.setattr(Trainer, "step", acting)


def stopped(folder: Path, monkeypatch, step: int = 5, **options) -> Path:
    stop_at(monkeypatch, step)
    with pytest.raises(Stopped):
        train(MICRO, "quick", folder, ("clip",), **options)
    return folder / STATE


# Seeds


@pytest.mark.parametrize("seed", [2**53 + 1, 2**63 - 1])
def test_large_seeds_work_in_every_stage(tmp_path, seed):
    train(MICRO, "quick", tmp_path, tuple(STAGES), seed=seed)
    assert all(load_model(STAGES[s].model_class, tmp_path)[1]["seed"] == seed for s in STAGES)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63), st.sampled_from(list(STAGES)))
@example(2**63 - 1, 2**63, "decoder")
@settings(max_examples=50)
def test_every_seed_gives_a_seed_of_63_bits_for_each_use(seed, step, stage):
    world = stage_source(stage, MICRO, MICRO.recipes["quick"], seed)
    assert 0 <= world.seed < 2**63 and world.seed == derived_seed(stage, seed)
    torch.manual_seed(seed)
    assert step_generator(world.seed, step).initial_seed() < 2**63


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 10**400, 0.5, "0", None, True, float("nan"), [1]])
def test_other_seeds_are_refused_before_the_first_stage(tmp_path, seed):
    with pytest.raises(ValueError, match="The seed is"):
        train(MICRO, "quick", tmp_path / "run", seed=seed)
    assert not (tmp_path / "run").exists()


def test_a_stage_that_is_none_is_refused_before_the_first(tmp_path):
    with pytest.raises(ValueError, match='"paint" is no stage'):
        train(MICRO, "quick", tmp_path / "run", ("clip", "paint"))
    assert not (tmp_path / "run").exists()


# Rights


@pytest.mark.skipif(os.name != "posix", reason="rights of another kind there")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_all_files_of_a_run_are_readable_by_whom_the_umask_allows(tmp_path, monkeypatch, umask):
    before = os.umask(umask)
    try:
        stopped(tmp_path / "run", monkeypatch)
        kept = [p for p in (tmp_path / "run").iterdir() if p.name != "run.lock"]
        assert len(kept) == 2 and all(stat.S_IMODE(p.stat().st_mode) == 0o666 & ~umask for p in kept)
        train(MICRO, "quick", tmp_path / "run", ("clip",), resume=True)
    finally:
        os.umask(before)
    done = [p for p in (tmp_path / "run").iterdir() if p.name != "run.lock"]
    assert {p.name for p in done} == {CLIP_FILE, "clip.metrics.jsonl"}
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o666 & ~umask for p in done)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_folder_that_may_not_be_written_is_named(tmp_path, monkeypatch, code):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with pytest.raises(ValueError, match=r"may not be written \(.*\): name another folder") as error:
        train(MICRO, "quick", tmp_path)
    assert str(tmp_path) in str(error.value)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ValueError, match="may not be written"), locked(tmp_path / "new"):
        pass


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="a file is in its place"), locked(folder):
            pass


@pytest.mark.parametrize("name", [CLIP_FILE, STATE])
def test_what_may_not_be_read_is_not_trained_over(tmp_path, monkeypatch, name):
    if name == STATE:
        stopped(tmp_path, monkeypatch)
    else:
        train(MICRO, "quick", tmp_path, ("clip",))
    before, real = (tmp_path / name).read_bytes(), Path.open

    def refuse(path, *arguments, **options):
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(AccessError, match="may not be read"):
            train(MICRO, "quick", tmp_path, ("clip",), resume=True)
    assert (tmp_path / name).read_bytes() == before


# Locks

HOLD = """
import sys
from pathlib import Path
from minidalle.training.run import locked
with locked(Path(sys.argv[1])): pass
"""


def test_a_second_run_of_a_folder_is_refused_and_a_later_one_is_not(tmp_path):
    with locked(tmp_path):
        with pytest.raises(ValueError, match=r"held by another run.*delete .*run\.lock"), locked(tmp_path):
            pass
        ran = subprocess.run([sys.executable, "-c", HOLD, tmp_path], capture_output=True, text=True, timeout=100)
        assert "held by another run" in ran.stderr
    with locked(tmp_path):
        pass


@pytest.mark.skipif(os.name != "posix", reason="no flock there")
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL])
def test_where_there_are_no_locks_a_training_goes_on_with_a_warning(tmp_path, monkeypatch, capsys, code):
    import fcntl

    def no_locks(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(tmp_path):
        pass
    said = capsys.readouterr().err
    assert "cannot be locked" in said and "no second run" in said and str(tmp_path) in said


@pytest.mark.skipif(os.name != "posix", reason="no flock there")
def test_where_flock_is_not_there_a_left_over_file_is_named(tmp_path, monkeypatch, capsys):
    import fcntl

    def missing(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", missing)
    with locked(tmp_path):
        pass
    if "cannot be locked" in capsys.readouterr().err:
        pytest.skip("this filelock makes no lock of a file's being there")
    (tmp_path / "run.lock").write_text("of a process that was killed on another machine")
    with pytest.raises(ValueError, match=r"If no other run is alive, delete .*run\.lock"), locked(tmp_path):
        pass
    (tmp_path / "run.lock").unlink()
    with locked(tmp_path):
        pass


def test_an_old_filelock_that_knows_no_such_place_is_borne(tmp_path, monkeypatch, capsys):
    def old(*_, **__):
        raise NotImplementedError("FileSystem does not appear to support flock; use SoftFileLock instead")

    monkeypatch.setattr(filelock.FileLock, "acquire", old)
    with locked(tmp_path):
        pass
    assert "cannot be locked" in capsys.readouterr().err


# Litter, kills and stops


def test_litter_of_a_killed_save_is_gone_after_the_next_start_and_nothing_else_is(tmp_path):
    litter = ["clip.safetensors.17.partial", "prior.training.safetensors.999.partial", "clip.metrics.jsonl.3.partial"]
    others = ["film.mp4.partial", "clip.partial", "notes.txt", "report.json"]
    for name in litter + others:
        (tmp_path / name).write_text("x")
    with locked(tmp_path):
        assert {p.name for p in tmp_path.iterdir()} - {"run.lock"} == set(others)


def test_litter_stays_where_another_run_may_be_alive(tmp_path, monkeypatch):
    def no_locks(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    (tmp_path / "clip.safetensors.17.partial").write_text("x")
    with locked(tmp_path):
        assert (tmp_path / "clip.safetensors.17.partial").exists()


def test_a_signal_while_a_finished_model_is_saved_waits_for_it(tmp_path, monkeypatch, micro_run):
    whole = checkpoint.write_whole

    def interrupted(path, content):
        if path.name == CLIP_FILE:
            signal.raise_signal(signal.SIGINT)
        whole(path, content)

    monkeypatch.setattr(checkpoint, "write_whole", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(MICRO, "quick", tmp_path)
    assert equal(tmp_path, micro_run) and not (tmp_path / "prior.metrics.jsonl").exists()
    monkeypatch.undo()
    train(MICRO, "quick", tmp_path, resume=True)
    assert equal(tmp_path, micro_run, "clip", "prior", "decoder")


KILLED = """
import os, signal, sys
from pathlib import Path
folder, root, where, count = sys.argv[1:]
sys.path.insert(0, root)
from conftest import MICRO
from minidalle import checkpoint
from minidalle.training import loop, run
from minidalle.training.trainer import Trainer
loop.SAVE_SECONDS, loop.LOG_EVERY, left = 0.0, 1, [int(count)]

def die():
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)

def before(owner, name):
    real = getattr(owner, name)
    setattr(owner, name, lambda *a, **b: (die(), real(*a, **b))[1])

before(*{"step": (Trainer, "step"), "rename": (os, "replace"), "sync": (os, "fsync"),
         "state": (run, "fit"), "tidy": (Path, "unlink")}[where])
run.train(MICRO, "quick", Path(folder), resume=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="no SIGKILL there")
@pytest.mark.parametrize(
    "kills",
    [[("rename", 2), ("step", 0), ("sync", 13)], [("state", 1), ("tidy", 8), ("step", 14)]],
    ids=str,
)
def test_kills_anywhere_end_at_the_same_weights_metrics_and_files(tmp_path, micro_run, kills):
    folder = tmp_path / "run"
    root = str(Path(__file__).parents[1])
    for where, count in kills:
        command = [sys.executable, "-c", KILLED, str(folder), root, where, str(count)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    train(MICRO, "quick", folder, resume=True)
    assert equal(micro_run, folder, *STACK)
    assert {p.name for p in folder.iterdir()} == {p.name for p in micro_run.iterdir()}
    for stage in STACK:  # a line for each step logged, each once, in order
        found = [line["step"] for line in read_metrics(folder / f"{stage}.metrics.jsonl")]
        assert found == sorted(set(found)) and found[-1] == 12


def test_metrics_survive_a_kill_right_after_a_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    stopped(tmp_path, monkeypatch, 7)
    path = tmp_path / "clip.metrics.jsonl"
    before = path.read_text()

    def die():
        raise SystemExit("as if killed")

    for _ in range(3):
        stop_at(monkeypatch, 8, act=die)
        with pytest.raises(SystemExit):
            train(MICRO, "quick", tmp_path, ("clip",), resume=True)
        assert path.read_text() == before
    with path.open("a") as file:
        file.write('{"step": 8, "lo')  # a line that the kill cut off
    train(MICRO, "quick", tmp_path, ("clip",), resume=True)
    assert [line["step"] for line in read_metrics(path)] == list(range(1, 13))


@pytest.mark.parametrize(
    "line",
    ["nonsense", "[]", "{}", "null", '{"step": 1}', '{"step": "a", "loss": 1}', '{"step": 1e999, "loss": 1}',
     '{"step": 3, "loss": []}', "[" * 100_000, '{"step": null, "loss": 1}', "\xff", "9" * 6000],
)  # fmt: skip
def test_a_broken_line_of_metrics_is_named(tmp_path, line):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(ValueError, match=r"m\.jsonl, line 2, holds no step and loss") as error:
        read_metrics(path)
    assert len(str(error.value)) < 300 + len(str(path))


def test_a_huge_file_of_metrics_is_not_read(tmp_path):
    with (tmp_path / "m.jsonl").open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(ValueError, match="metrics have at most"):
        metrics_until(tmp_path / "m.jsonl", 5)


# Damage, and trainings of another kind


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[-3] ^= 4
    path.write_bytes(content[: len(content) // 2] if how == "cut" else b"" if how == "empty" else content)


@pytest.mark.parametrize(("stage", "how"), [("clip", "cut"), ("prior", "empty"), ("decoder", "flipped")])
def test_a_damaged_finished_stage_is_trained_again_with_a_word(tmp_path, micro_run, capsys, stage, how):
    shutil.copytree(micro_run, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / f"{stage}.safetensors", how)
    train(MICRO, "quick", tmp_path, resume=True)
    assert f"{stage} is trained again: " in capsys.readouterr().err
    assert equal(micro_run, tmp_path, "clip", "prior", "decoder")
    clip = load_model(CLIP, tmp_path)[1]["sha256"]
    assert all(load(tmp_path / f"{s}.safetensors", s)[1]["clip"] == clip for s in ("prior", "decoder"))


@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_a_damaged_state_is_told_of_and_begun_anew(tmp_path, monkeypatch, micro_run, capsys, how):
    damage(stopped(tmp_path, monkeypatch), how)
    train(MICRO, "quick", tmp_path, ("clip",), resume=True)
    assert "clip is trained from the start: " in capsys.readouterr().err
    assert equal(micro_run, tmp_path) and not (tmp_path / STATE).exists()


def changed(**numbers):
    quick = MICRO.recipes["quick"]
    recipe = replace(quick, stages={**quick.stages, "clip": replace(quick.stages["clip"], **numbers)})
    return replace(MICRO, recipes={"quick": recipe})


@pytest.mark.parametrize(
    ("preset", "seed", "said"),
    [(changed(lr=3e-3), 0, "stage.lr is 0.002, 0.003"), (changed(steps=13), 0, "stage.steps is 12, 13"),
     (changed(full_captions=0.4), 0, "stage.full_captions is 0.5, 0.4"), (MICRO, 9, "seed is 0, 9"),
     (replace(MICRO, models={**MICRO.models, "clip": replace(MICRO.models["clip"], pool_dim=5)}), 0,
      "config.pool_dim is 4, 5"),
     (changed(steps=1, batch_size=2, matrix_lr=3.0, lr=4.0, warmup_steps=5, clip_norm=6.0), 0,
      "stage.lr is 0.002, 4.0 was asked; and 2 more")],
    ids=["rate", "steps", "captions", "seed", "sizes", "much"],
)  # fmt: skip
def test_a_changed_recipe_is_noticed(tmp_path, monkeypatch, capsys, preset, seed, said):
    train(MICRO, "quick", tmp_path, ("clip",))
    before = weights(tmp_path)
    train(preset, "quick", tmp_path, ("clip",), seed=seed, resume=True)
    told = capsys.readouterr().err
    assert "clip is trained again: its " in told and said in told
    after = weights(tmp_path)
    assert any(x.shape != after[n].shape or not torch.equal(x, after[n]) for n, x in before.items())

    state = stopped(tmp_path / "other", monkeypatch)
    whole = state.read_bytes()
    with pytest.raises(ValueError, match=rf"belongs to another training .*{said}"):  # not thrown away
        train(preset, "quick", tmp_path / "other", ("clip",), seed=seed, resume=True)
    assert state.read_bytes() == whole


def test_a_changed_process_is_noticed(micro_run, capsys):
    steeper = replace(MICRO.diffusion["prior"], schedule="linear")
    preset = replace(MICRO, diffusion={**MICRO.diffusion, "prior": steeper})
    origins = [origin_of(either, "quick", "prior", 0, micro_run) for either in (MICRO, preset)]
    assert [is_finished(micro_run, "prior", origin) for origin in origins] == [True, False]
    assert "its diffusion.schedule is cosine, linear was asked" in capsys.readouterr().err


def test_a_training_that_is_begun_anew_is_the_one_that_is_resumed(tmp_path, monkeypatch, micro_run):
    stopped(tmp_path, monkeypatch, seed=4)
    stop_at(monkeypatch, 2, act=lambda: (_ for _ in ()).throw(SystemExit))  # killed before its first save
    with pytest.raises(SystemExit):
        train(MICRO, "quick", tmp_path, ("clip",))
    train(MICRO, "quick", tmp_path, ("clip",), resume=True)
    assert equal(micro_run, tmp_path)


def test_a_kill_between_a_finished_model_and_its_state_is_tidied_up(tmp_path, monkeypatch, micro_run):
    stop_at(monkeypatch, 12)
    with pytest.raises(Stopped):
        train(MICRO, "quick", tmp_path, ("clip",))
    state = (tmp_path / STATE).read_bytes()
    train(MICRO, "quick", tmp_path, ("clip",), resume=True)
    (tmp_path / STATE).write_bytes(state)
    train(MICRO, "quick", tmp_path, ("clip",), resume=True)
    assert equal(micro_run, tmp_path) and not (tmp_path / STATE).exists()


def test_what_an_older_clip_taught_is_learned_again(tmp_path, monkeypatch, capsys):
    train(MICRO, "quick", tmp_path, ("clip",))
    stop_at(monkeypatch, 5, stage="prior")
    with pytest.raises(Stopped):
        train(MICRO, "quick", tmp_path, ("prior",))
    train(MICRO, "quick", tmp_path, ("clip",), seed=3)
    capsys.readouterr()
    recipe = ("prior",)
    train(MICRO, "quick", tmp_path, recipe, resume=True)
    assert "what is kept learned from another clip" in capsys.readouterr().out
    assert load(tmp_path / "prior.safetensors", "prior")[1]["clip"] == load_model(CLIP, tmp_path)[1]["sha256"]


def test_nothing_bad_becomes_a_finished_model(tmp_path, monkeypatch, micro_run):
    whole = trainer.average_weights

    def spoil(averaged, model, decay):
        whole(averaged, model, decay)
        if spoil.steps == 12:
            next(averaged.parameters()).view(-1)[0] = torch.nan
        spoil.steps += 1

    spoil.steps = 1
    monkeypatch.setattr(trainer, "average_weights", spoil)
    with pytest.raises((TrainingError, checkpoint.CheckpointError), match="not finite"):
        train(MICRO, "quick", tmp_path, ("clip",))
    assert not (tmp_path / CLIP_FILE).exists()


# What is kept and said of the machine


def test_threads_and_precision_are_said_kept_and_used_again(tmp_path, monkeypatch, capsys, micro_run):
    used = [1]  # two real ones would fight over a busy machine
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: used[-1])
    monkeypatch.setenv("MINIDALLE_THREADS", "2")
    monkeypatch.setenv("MINIDALLE_DTYPE", "float32")
    header = checkpoint.read_header(stopped(tmp_path, monkeypatch), "training")
    assert (header["threads"], header["precision"]) == (2, "float32") and used == [1, 2, 1]
    assert "clip begins: 12 steps, float32, 2 threads as MINIDALLE_THREADS says." in capsys.readouterr().out
    monkeypatch.delenv("MINIDALLE_THREADS")
    monkeypatch.setenv("MINIDALLE_DTYPE", "bfloat16")
    stop_at(monkeypatch, 9)
    with pytest.raises(Stopped):
        train(MICRO, "quick", tmp_path, ("clip",), resume=True)
    assert "clip goes on from step 5 of 12 steps, float32, 2 threads as before." in capsys.readouterr().out
    assert used == [1, 2, 1, 2, 1]
    monkeypatch.setenv("MINIDALLE_THREADS", "1")  # the one way to another number: to ask for it
    train(MICRO, "quick", tmp_path, ("clip",), resume=True)
    assert "goes on from step 9 of 12 steps, float32, 1 thread as MINIDALLE_THREADS says." in capsys.readouterr().out
    header = load_model(CLIP, tmp_path)[1]
    assert (header["precision"], header["threads"]) == ("float32", 1)


def test_kept_step_tells_only_of_this_training(tmp_path, monkeypatch):
    stopped(tmp_path, monkeypatch, 6)
    assert kept_step(tmp_path, "clip", origin_of(MICRO, "quick", "clip", 0, tmp_path)) == 6
    assert kept_step(tmp_path, "clip", origin_of(MICRO, "quick", "clip", 1, tmp_path)) == 0
    assert kept_step(tmp_path / "nowhere", "clip", {}) == 0
    origin = origin_of(MICRO, "quick", "clip", 0, tmp_path)
    assert origin == json.loads(json.dumps(origin))  # so that it equals what a file says


def test_another_training_is_refused_before_anything_is_said_or_touched(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    stopped(tmp_path, monkeypatch, 5)
    with (tmp_path / "clip.metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 1.0}\n')
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    with pytest.raises(ValueError, match="belongs to another training"):
        train(MICRO, "quick", tmp_path, ("clip",), seed=9, resume=True)
    assert capsys.readouterr() == ("", "")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"cannot be made \(File name too long\): name another folder"):
        train(MICRO, "quick", tmp_path / ("x" * 300), ("clip",))
    assert capsys.readouterr() == ("", "")


def test_metrics_of_a_training_that_is_begun_anew_need_not_be_whole(tmp_path):
    (tmp_path / "clip.metrics.jsonl").write_text("nonsense\n")
    train(MICRO, "quick", tmp_path, ("clip",))
    assert [line["step"] for line in read_metrics(tmp_path / "clip.metrics.jsonl")] == [10, 12]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", ["clip", "prior", "decoder", "upsampler"])
def test_a_training_is_in_float32_whatever_torch_makes_by_default(tmp_path, monkeypatch, micro_run, stage, precision):
    monkeypatch.setenv("MINIDALLE_DTYPE", precision)
    shutil.copy(micro_run / CLIP_FILE, tmp_path)
    torch.set_default_dtype(torch.float64)
    try:
        train(MICRO, "quick", tmp_path, (stage,))
    finally:
        torch.set_default_dtype(torch.float32)
    tensors = load(tmp_path / f"{stage}.safetensors", stage)[0]
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
