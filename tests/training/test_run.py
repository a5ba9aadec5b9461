"""Runs: a folder of stages that survives being stopped, killed, taken up and asked for twice."""

import itertools
import json
import shutil
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
from minidalle.training.run import origin_of, train
from minidalle.training.stages import STACK, STAGES, derived_seed, step_generator


def tensors(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / f"{kind}.safetensors", kind)[0]


def same_weights(a: Path, b: Path) -> bool:
    pairs = [(tensors(a, kind), tensors(b, kind)) for kind in STACK]
    return all(x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x) for x, y in pairs)


def metrics(folder: Path, stage: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{stage}.metrics.jsonl").read_text().splitlines()]


def snapshot(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


def test_a_run_leaves_three_models_their_origin_and_their_metrics(micro_run):
    files = {f"{stage}.{end}" for stage in STACK for end in ("safetensors", "metrics.jsonl")}
    assert {path.name for path in micro_run.iterdir()} - {"run.lock"} == files
    for stage in STACK:
        model, header = load_model(STAGES[stage].model_class, micro_run)
        assert model.config == MICRO.models[stage]
        assert (header["preset"], header["recipe"], header["seed"]) == ("micro", "quick", 0)
        assert header["pictures"] == 12 * 8 and header["seconds"] >= 0
        assert [line["step"] for line in metrics(micro_run, stage)] == [10, 12]
    clip = checkpoint.load(micro_run / "clip.safetensors", "clip")[1]["sha256"]
    assert all(checkpoint.load(micro_run / f"{kind}.safetensors", kind)[1]["clip"] == clip for kind in STACK[1:])


def test_a_seed_gives_the_same_weights_and_another_one_others(micro_run, tmp_path):
    torch.manual_seed(123)  # what was drawn before must not matter
    train(MICRO, "quick", tmp_path / "again")
    assert same_weights(micro_run, tmp_path / "again")
    train(MICRO, "quick", tmp_path / "other", ("clip",), seed=1)
    assert not torch.equal(
        tensors(tmp_path / "other", "clip")["logit_scale"], tensors(micro_run, "clip")["logit_scale"]
    )


def test_the_seed_decides_the_first_weights_and_the_data_each(monkeypatch, tmp_path):
    """Seen apart: the weights before the first step, and the batches."""
    first, batches = {}, {}
    draw, fit = World.batch, run.fit

    def batch(world, step, batch_size):
        found = draw(world, step, batch_size)
        batches.setdefault(seed, []).append(found.captions)
        return found

    def watched(model, *args, **options):
        first[seed] = model.image_tower.positions.detach().clone()
        return fit(model, *args, **options)

    monkeypatch.setattr(World, "batch", batch)
    monkeypatch.setattr(run, "fit", watched)
    for seed in (0, 1):
        train(MICRO, "quick", tmp_path / str(seed), ("clip",), seed=seed)
    assert not torch.equal(first[0], first[1])
    assert all(one != other for one, other in zip(batches[0], batches[1], strict=True))


def test_stages_see_scenes_of_their_own_as_their_recipe_says(monkeypatch, tmp_path):
    seen, worlds = {}, {}
    draw = World.batch

    def batch(world, step, batch_size):
        found = draw(world, step, batch_size)
        seen.setdefault(world.seed, set()).update(found.scenes)
        worlds[world.seed] = world
        return found

    monkeypatch.setattr(World, "batch", batch)
    for seed in (0, 1):
        train(MICRO, "quick", tmp_path / str(seed), tuple(STAGES), seed=seed)
    assert len(seen) == 2 * len(STAGES)
    assert sum(map(len, seen.values())) == len(set.union(*seen.values()))
    for stage in STAGES:
        world, how = worlds[derived_seed(stage, 1)], MICRO.recipes["quick"].stages[stage]
        assert world.two_objects == 0.6 and world.image_size == {"upsampler": 32, "upsampler_2": 64}.get(stage, 16)
        assert (world.hard_negatives, world.full_captions) == (how.hard_negatives, how.full_captions)
    assert (
        MICRO.recipes["quick"].stages["clip"].hard_negatives
        and not MICRO.recipes["quick"].stages["prior"].hard_negatives
    )


@pytest.mark.parametrize("stage", STAGES)
def test_a_recipe_of_lone_objects_shows_no_two(monkeypatch, tmp_path, micro_run, stage):
    scenes, draw = [], World.batch

    def batch(world, step, batch_size):
        found = draw(world, step, batch_size)
        scenes.extend(found.scenes)
        return found

    monkeypatch.setattr(World, "batch", batch)
    lone = replace(MICRO, recipes={"quick": replace(MICRO.recipes["quick"], two_objects=0.0)})
    if STAGES[stage].needs:
        shutil.copy(micro_run / "clip.safetensors", tmp_path)
    train(lone, "quick", tmp_path, (stage,))
    assert scenes and {len(scene.objects) for scene in scenes} == {1}
    assert load_model(STAGES[stage].model_class, tmp_path)[1]["world"] == {"name": "scenes", "two_objects": 0.0}


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_a_stage_learns_from_the_clip_of_its_folder(monkeypatch, tmp_path, micro_run, stage):
    given, parts = [], run.frozen_parts
    monkeypatch.setattr(run, "frozen_parts", lambda *args: given.append(args[2]["clip"]) or parts(*args))
    shutil.copy(micro_run / "clip.safetensors", tmp_path)
    train(MICRO, "quick", tmp_path, (stage,))
    (clip,) = given
    assert all(torch.equal(tensor, clip.state_dict()[name]) for name, tensor in tensors(micro_run, "clip").items())
    assert not clip.training and not any(p.requires_grad for p in clip.parameters())


def test_seeds_that_are_derived_differ_in_every_part_and_fit_into_torch():
    seeds = {derived_seed(*parts) for parts in itertools.product(("clip", "noise"), (0, 1, 2**62), (0, 1, 11))}
    assert len(seeds) == 18 and all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed("noise", 1, 11) != derived_seed("noise", 11, 1)
    noise = [torch.randn(4, generator=step_generator(seed, step)) for seed in (0, 1) for step in (0, 1)]
    assert len({tuple(values.tolist()) for values in noise}) == 4
    assert torch.equal(noise[0], torch.randn(4, generator=step_generator(0, 0)))


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
    clip = save_model(tmp_path, CLIP(MICRO.models["clip"]), origin_of(MICRO, "quick", "clip", 0, tmp_path))
    train(MICRO, "quick", tmp_path, resume=True)  # the seed fits, but prior and decoder know the first clip
    assert load_model(CLIP, tmp_path)[1]["sha256"] == clip
    assert all(load_model(STAGES[kind].model_class, tmp_path)[1]["clip"] == clip for kind in STACK[1:])


KILLED = """
import os, signal, sys
from pathlib import Path
folder, tests, stage = sys.argv[1:]
sys.path.insert(0, tests)
from conftest import MICRO
from minidalle.data.batches import World
from minidalle.training import loop, run
from minidalle.training.stages import derived_seed

class EveryThird(loop.SaveTimer):
    steps = 0
    def due(self):
        self.steps += 1
        return self.steps % 3 == 0

loop.SaveTimer, loop.LOG_EVERY = EveryThird, 2
draw = World.batch

def batch(world, step, batch_size):
    if world.seed == derived_seed(stage, 0) and step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(world, step, batch_size)

World.batch = batch
run.train(MICRO, "quick", Path(folder))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
@pytest.mark.parametrize("stage", ["clip", "decoder"])
def test_a_killed_run_is_resumed_to_the_same_weights(micro_run, tmp_path, stage):
    arguments = [str(tmp_path), str(Path(__file__).parents[1]), stage]
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
        if (world.seed, step) == (derived_seed(stage, 0), 4):
            signal.raise_signal(signal.SIGINT)
        return draw(world, step, batch_size)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(World, "batch", batch)
        train(MICRO, "quick", folder, **options)


def test_a_stopped_run_is_not_resumed_as_another(micro_run, tmp_path, monkeypatch):
    stopped(tmp_path, monkeypatch)
    with pytest.raises(
        ValueError, match=r"clip\.training\.safetensors belongs to another .*its seed is 0, 1 was asked"
    ):
        train(MICRO, "quick", tmp_path, seed=1, resume=True)
    wider = replace(MICRO, models=MICRO.models | {"clip": replace(MICRO.models["clip"], image_depth=2)})
    with pytest.raises(ValueError, match=r"belongs to another training \(its config.image_depth is 1, 2 was asked"):
        train(wider, "quick", tmp_path, resume=True)
    train(MICRO, "quick", tmp_path, resume=True)
    assert same_weights(micro_run, tmp_path)


def test_seconds_add_up_over_a_stop(tmp_path, monkeypatch):
    stopped(tmp_path, monkeypatch)
    path = tmp_path / "clip.training.safetensors"
    state, header = checkpoint.load(path, "training")
    meta = {key: value for key, value in header.items() if key not in ("format_version", "kind", "sha256")}
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


@pytest.mark.parametrize("stage", STACK[1:])
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
