"""Benchmarks: what they count is right; how fast a machine is, no test asks."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import MICRO

from minidalle.decoder import Decoder
from minidalle.evaluation import bench
from minidalle.training.recipes import STAGES, TINY

CPU = torch.device("cpu")
NEEDS_DIFFUSERS = pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed")


def test_a_bench_measures_every_stage_and_counts_network_calls():
    result = bench.bench(MICRO, CPU, repeats=1, batch_size=4)
    assert result["device"] == "cpu" and result["threads"] == torch.get_num_threads()
    assert result["matmul GFLOP/s"] > 0 and result["peak memory MB"] > 0
    for stage in STAGES:
        assert all(value > 0 for value in result[f"{stage} training"].values())
    assert result["one picture"]["network calls"] == {"prior": 64, "decoder": 20}
    assert result["one picture"]["ms"] > 0 and result["rendered pictures/s on one core"] > 0


def test_the_renderer_is_timed_on_one_core_and_the_threads_come_back(monkeypatch):
    threads, used = torch.get_num_threads(), []
    monkeypatch.setattr(bench, "render", lambda scenes, size: used.append((torch.get_num_threads(), len(scenes), size)))
    assert bench.renderer_rate(32, repeats=1, number=10) > 0
    assert set(used) == {(1, 10, 32)} and torch.get_num_threads() == threads


def test_a_timing_is_the_median_without_the_warm_up(monkeypatch):
    clock = iter([0, 50, 100, 150, 200, 201, 300, 303, 400, 480])  # two slow warm-ups, then 1, 3 and 80
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    done = []
    assert bench.median_seconds(lambda: done.append(1), CPU, repeats=3) in (1, 3)
    assert len(done) == 5


def test_the_gpu_that_is_named_is_waited_for_and_measured(monkeypatch):
    asked, second = [], torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: asked.append(device) or 7)
    bench.synchronize(second)
    assert bench.peak_memory(second) == 7 and asked == [second, second]
    monkeypatch.setattr(torch.mps, "synchronize", lambda: asked.append("mps"))
    bench.synchronize(torch.device("mps"))
    assert asked[2:] == ["mps"]


def test_a_training_step_moves_the_weights():
    steps = bench.stage_steps(MICRO, 4, CPU)
    assert list(steps) == list(STAGES)
    model = torch.nn.Linear(3, 3)
    before = model.weight.clone()
    bench.training_step(model, lambda _: model(torch.ones(2, 3)).square().sum(), CPU)()
    assert not torch.equal(model.weight, before)


@NEEDS_DIFFUSERS
@pytest.mark.filterwarnings("ignore")  # of another package
def test_the_peer_is_measured_in_turn():
    result = bench.against_diffusers(MICRO, CPU, repeats=3, batch_size=2)
    assert 0 < result["ratio"]["low"] <= result["ratio"]["median"] <= result["ratio"]["high"]
    assert set(result["pictures/s"]) == set(result["parameters"]) == {"ours", "diffusers"}
    assert min(result["pictures/s"].values()) > 0


@NEEDS_DIFFUSERS
@pytest.mark.filterwarnings("ignore")
def test_the_peer_has_as_many_parameters_as_ours():
    from diffusers import UNet2DConditionModel

    wanted = bench.count_parameters(Decoder(TINY.decoder).unet)
    peer = bench.closest_peer(UNet2DConditionModel, TINY.decoder.unet, wanted)
    assert bench.count_parameters(peer) == pytest.approx(wanted, rel=0.05)


def test_without_diffusers_there_is_no_ratio(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert bench.against_diffusers(MICRO, CPU) is None
