"""The choice of device and precision, on machines that this one is not."""

import itertools
import os
import subprocess
import sys

import pytest
import torch

from minidalle.device import autocast, bfloat16_pays, half_precision, pick_device


@pytest.fixture
def machine(monkeypatch):
    """Pretend to be a machine with some accelerators."""

    def pretend(**counts: int) -> None:
        for kind in ("cuda", "mps"):
            count = counts.get(kind, 0)
            monkeypatch.setattr(getattr(torch, kind), "is_available", lambda count=count: count > 0)
            monkeypatch.setattr(getattr(torch, kind), "device_count", lambda count=count: count)

    return pretend


@pytest.mark.parametrize("there,best", [({"cuda": 1, "mps": 1}, "cuda"), ({"mps": 1}, "mps"), ({}, "cpu")])
def test_the_best_device_that_is_there_is_chosen(machine, there, best):
    machine(**there)
    assert pick_device() == torch.device(best)
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device(best) == torch.device(best)


def test_one_of_several_devices_can_be_named(machine):
    machine(cuda=2)
    assert pick_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there_is_refused(machine, name):
    machine()
    with pytest.raises(ValueError, match=f'device "{name}" was asked for and is not there; found here: cpu'):
        pick_device(name)


def test_a_device_whose_driver_does_not_work_is_refused(machine, monkeypatch):
    machine(cuda=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == torch.device("cpu")
    with pytest.raises(ValueError, match='device "cuda" was asked for and is not there; found here: cpu'):
        pick_device("cuda")


def test_a_device_beyond_the_last_is_refused(machine):
    machine(cuda=2)
    with pytest.raises(ValueError, match='device "cuda:2" was asked for and is not there; found here: cuda, cpu'):
        pick_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "", "meta", "cpu:x", "cuda:-1", "a circle"])
def test_what_is_no_device_is_refused(name):
    with pytest.raises(ValueError, match=f'"{name}" is no device; choose one of cuda, mps, cpu'):
        pick_device(name)


@pytest.mark.parametrize("native,dtype", [(True, torch.bfloat16), (False, torch.float16)])
def test_cuda_computes_in_the_sixteen_bits_that_it_has(monkeypatch, native, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert half_precision(torch.device("cuda")) == dtype


@pytest.mark.parametrize("native,pays,dtype", [(True, True, torch.bfloat16), (True, False, None), (False, True, None)])
def test_a_processor_uses_sixteen_bits_only_where_it_is_fast_at_it(monkeypatch, native, pays, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native, raising=False)
    monkeypatch.setattr("minidalle.device.bfloat16_pays", lambda: pays)
    assert half_precision(torch.device("cpu")) == dtype
    with autocast(torch.device("cpu")):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (dtype or torch.float32)


@pytest.fixture
def clock(monkeypatch):
    """Pretend that products in bfloat16 and float32, one after the other, take so long each."""

    def pretend(*seconds: int) -> None:
        spent = itertools.accumulate(itertools.chain(*([0, each] for each in seconds)))
        monkeypatch.setattr("minidalle.device.time.process_time", lambda: next(spent))
        bfloat16_pays.cache_clear()

    yield pretend
    bfloat16_pays.cache_clear()


@pytest.mark.parametrize("half,full,pays", [(1, 2, True), (2, 1, False), (0, 0, False)])
def test_the_faster_precision_is_found_by_the_clock(clock, half, full, pays):
    clock(*[9, 8] * 4, half, full, *[7, 9] * 5)  # whatever else keeps the processor busy, the least counts
    assert bfloat16_pays() is pays


def test_the_clock_is_asked_once(clock):
    clock(*[1, 2] * 10)  # and has nothing more to say
    assert bfloat16_pays() and bfloat16_pays()


def test_what_surrounds_the_first_question_changes_nothing(clock, monkeypatch):
    results, product = [], torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: results.append(product(a, b)))
    clock(*[1, 2] * 10)
    with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
        assert bfloat16_pays()
    assert {result.dtype for result in results} == {torch.bfloat16, torch.float32}
    assert {result.device.type for result in results} == {"cpu"}


def test_mps_stays_at_full_precision():
    assert half_precision(torch.device("mps")) is None


@pytest.mark.parametrize("own", [None, "7"])
def test_waiting_threads_leave_the_processor_to_others_unless_the_user_says_otherwise(own):
    env = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"} | (
        {"GOMP_SPINCOUNT": own} if own else {}
    )
    watch = "import sys, os\nimport minidalle\nprint(os.environ['GOMP_SPINCOUNT'])"
    done = subprocess.run([sys.executable, "-c", watch], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (own or "10000")
