"""Benchmarks: what they count is right; how fast a machine is, no test asks."""

from types import SimpleNamespace

import torch
from conftest import MICRO

from minidalle.evaluation import bench
from minidalle.training.stages import STACK

CPU = torch.device("cpu")


def test_a_bench_measures_every_stage_and_counts_network_calls():
    result = bench.bench(MICRO, CPU, repeats=1, batch_size=4)
    assert result["device"] == "cpu" and result["threads"] == torch.get_num_threads()
    assert result["matmul GFLOP/s"] > 0 and result["peak memory MB"] > 0
    for stage in STACK:
        assert result[f"{stage} training"]["pictures/s"] > 0
        assert 0 <= result[f"{stage} training"]["share of matmul rate"] < 2  # of a model this small, next to nothing
    assert result["one picture"]["network calls"] == {"prior": 32, "decoder": 8}
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


def test_a_training_step_is_made_of_every_stage():
    steps = bench.stage_steps(MICRO, 4, CPU)
    assert list(steps) == list(STACK)
    for step in steps.values():
        model = step.func.__self__.model
        before = [p.clone() for p in model.parameters()]
        step()
        assert any(not torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True))


def test_a_product_of_matrices_counts_a_multiplication_and_an_addition_for_each_pair(monkeypatch):
    monkeypatch.setattr(bench, "median_seconds", lambda work, *_, **__: len(work()) / 8)
    assert bench.matmul_rate(CPU, size=8) == 2 * 8**3
