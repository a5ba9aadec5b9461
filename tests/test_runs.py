"""Runs: a folder of stages that survives being stopped, killed, taken up and asked for twice."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import MICRO

from minidalle import checkpoint
from minidalle.checkpoint import load_model, save_model
from minidalle.clip import CLIP
from minidalle.data.batches import World
from minidalle.training import run
from minidalle.training.recipes import STAGES
from minidalle.training.run import train
from minidalle.training.stages import KINDS


def tensors(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / f"{kind}.safetensors", kind)[0]


def same_weights(a: Path, b: Path) -> bool:
    pairs = [(tensors(a, kind), tensors(b, kind)) for kind in STAGES]
    return all(x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x) for x, y in pairs)


def metrics(folder: Path, stage: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{stage}.metrics.jsonl").read_text().splitlines()]


def snapshot(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


def test_a_run_leaves_three_models_their_origin_and_their_metrics(micro_run):
    files = {f"{stage}.{end}" for stage in STAGES for end in ("safetensors", "metrics.jsonl")}
    assert {path.name for path in micro_run.iterdir()} - {"run.lock"} == files
    for stage in STAGES:
        model, header = load_model(KINDS[stage], micro_run)
        assert model.config == getattr(MICRO, stage)
        assert (header["preset"], header["recipe"], header["seed"]) == ("micro", "quick", 0)
        assert header["pictures"] == 12 * 8 and header["seconds"] >= 0
        assert [line["step"] for line in metrics(micro_run, stage)] == [10, 12]
    clip = checkpoint.load(micro_run / "clip.safetensors", "clip")[1]["sha256"]
    assert all(checkpoint.load(micro_run / f"{kind}.safetensors", kind)[1]["clip"] == clip for kind in STAGES[1:])


def test_a_seed_gives_the_same_weights_and_another_one_others(micro_run, tmp_path):
    torch.manual_seed(123)  # what was drawn before must not matter
    train(MICRO, "quick", tmp_path / "again")
    assert same_weights(micro_run, tmp_path / "again")
    train(MICRO, "quick", tmp_path / "other", ("clip",), seed=1)
    assert not torch.equal(
        tensors(tmp_path / "other", "clip")["logit_scale"], tensors(micro_run, "clip")["logit_scale"]
    )


def test_stages_see_scenes_of_their_own(monkeypatch, tmp_path):
    seen = {}
    draw = World.batch

    def batch(world, step, batch_size):
        found = draw(world, step, batch_size)
        seen.setdefault(world.seed, set()).update(found.scenes)
        return found

    monkeypatch.setattr(World, "batch", batch)
    for seed in (0, 1):
        train(MICRO, "quick", tmp_path, seed=seed)
    assert len(seen) == 6
    assert sum(map(len, seen.values())) == len(set.union(*seen.values()))


def test_resuming_skips_what_is_finished(tmp_path):
    train(MICRO, "quick", tmp_path)
    before = snapshot(tmp_path)
    train(MICRO, "quick", tmp_path, resume=True)
    assert snapshot(tmp_path) == before
    train(MICRO, "quick", tmp_path, ("decoder",))  # not resumed: trained again
    assert {name for name, time in snapshot(tmp_path).items() if before[name] != time} == {"decoder.safetensors"}


def test_resuming_trains_again_what_belongs_to_another_seed_or_clip(tmp_path):
    train(MICRO, "quick", tmp_path)
    before = snapshot(tmp_path)
    train(MICRO, "quick", tmp_path, ("clip",), seed=1, resume=True)
    after = snapshot(tmp_path)
    assert {name for name in after if before[name] != after[name]} == {"clip.safetensors"}
    clip = save_model(tmp_path, CLIP(MICRO.clip), {"preset": "micro", "recipe": "quick", "seed": 0})
    train(MICRO, "quick", tmp_path, resume=True)  # the seed fits, but prior and decoder know the first clip
    assert load_model(CLIP, tmp_path)[1]["sha256"] == clip
    assert all(load_model(KINDS[kind], tmp_path)[1]["clip"] == clip for kind in STAGES[1:])


KILLED = """
import os, signal, sys
from pathlib import Path
folder, tests, seed = sys.argv[1:]
sys.path.insert(0, tests)
from conftest import MICRO
from minidalle.training import run
from minidalle.training import loop
from minidalle.data.batches import World

loop.SAVE_EVERY, loop.LOG_EVERY = 3, 2
draw = World.batch

def batch(world, step, batch_size):
    if world.seed == int(seed) and step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(world, step, batch_size)

World.batch = batch
run.train(MICRO, "quick", Path(folder))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
@pytest.mark.parametrize("stage", ["clip", "decoder"])
def test_a_killed_run_is_resumed_to_the_same_weights(micro_run, tmp_path, stage):
    arguments = [str(tmp_path), str(Path(__file__).parent), str(STAGES.index(stage))]
    ended = subprocess.run([sys.executable, "-c", KILLED, *arguments], stderr=subprocess.PIPE, text=True, timeout=100)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not (tmp_path / f"{stage}.safetensors").exists()
    assert checkpoint.load(tmp_path / f"{stage}.training.safetensors", "training")[1]["step"] == 6
    assert [line["step"] for line in metrics(tmp_path, stage)] == [2, 4, 6, 8]

    train(MICRO, "quick", tmp_path, resume=True)
    assert same_weights(micro_run, tmp_path)
    assert [line["step"] for line in metrics(tmp_path, stage)] == [2, 4, 6, 10, 12]  # 8 was taken again
    assert not list(tmp_path.glob("*.training.*")) and not list(tmp_path.glob("*.partial"))


def stopped(folder: Path, monkeypatch, stage: str = "clip", **options) -> None:
    """Train until Ctrl-C is pressed in the fifth step of a stage."""
    draw = World.batch

    def batch(world, step, batch_size):
        if (world.seed % 3, step) == (STAGES.index(stage), 4):
            signal.raise_signal(signal.SIGINT)
        return draw(world, step, batch_size)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(World, "batch", batch)
        train(MICRO, "quick", folder, **options)


def test_a_stopped_run_is_not_resumed_as_another(micro_run, tmp_path, monkeypatch):
    stopped(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r"clip\.training\.safetensors belongs to the training .*'seed': 0.*'seed': 1"):
        train(MICRO, "quick", tmp_path, seed=1, resume=True)
    wider = replace(MICRO, name="wider", clip=replace(MICRO.clip, image_depth=2))
    with pytest.raises(ValueError, match=r"belongs to the training .*micro.*wider"):
        train(wider, "quick", tmp_path, resume=True)
    train(MICRO, "quick", tmp_path, resume=True)
    assert same_weights(micro_run, tmp_path)


def test_seconds_add_up_over_a_stop(tmp_path, monkeypatch):
    stopped(tmp_path, monkeypatch)
    path = tmp_path / "clip.training.safetensors"
    state, header = checkpoint.load(path, "training")
    meta = {key: header[key] for key in ("step", "scaler", "origin")}
    checkpoint.save(path, "training", state, {**meta, "seconds": 1000.0})
    train(MICRO, "quick", tmp_path, ("clip",), resume=True)
    assert 1000 <= load_model(CLIP, tmp_path)[1]["seconds"] < 1100
    assert metrics(tmp_path, "clip")[-1]["seconds"] >= 1000


HOLDER = """
import sys
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_that_another_run_holds_is_refused_until_that_ends(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=r"is held by another run: wait for that to end, or name another folder"):
            train(MICRO, "quick", tmp_path, ("clip",))
        assert not list(tmp_path.glob("*.safetensors"))
        holder.kill()
    train(MICRO, "quick", tmp_path, ("clip",))
    assert (tmp_path / "clip.safetensors").exists()


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_stage_without_its_clip_is_refused(tmp_path, stage):
    with pytest.raises(ValueError, match=r"clip\.safetensors does not exist: train it first"):
        train(MICRO, "quick", tmp_path, (stage,))
    assert not list(tmp_path.glob(f"{stage}.*"))


def test_an_unknown_recipe_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'The preset micro has no recipe "fast"; choose one of quick\.'):
        train(MICRO, "fast", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_half_written_line_of_metrics_is_dropped(tmp_path):
    path = tmp_path / "clip.metrics.jsonl"
    first, second = '{"step": 10, "loss": 2.0}\n', '{"step": 20, "loss": 1.0}\n'
    path.write_text(first + second + '{"step": 3')
    assert run.metrics_until(path, 30) == [first, second]
    assert run.metrics_until(path, 10) == [first]
    assert run.metrics_until(tmp_path / "none", 10) == []


@pytest.mark.parametrize("line", ["[]", '{"step": 3}', '{"step": "x", "loss": 1}', "nonsense"])
def test_a_broken_line_of_metrics_is_named(tmp_path, line):
    path = tmp_path / "clip.metrics.jsonl"
    path.write_text(f'{{"step": 1, "loss": 2.0}}\n{line}\n{{"step": 5, "loss": 2.0}}\n')
    with pytest.raises(ValueError, match=r"clip\.metrics\.jsonl, line 2, holds no step and loss: remove that line"):
        run.read_metrics(path)
