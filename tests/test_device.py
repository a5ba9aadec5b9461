"""The choice of device and precision, on machines that this one is not."""

import subprocess
import sys

import pytest
import torch

from minidalle.device import autocast, half_precision, pick_device, threads


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch) -> None:
    """Let no variable of this machine's decide."""
    monkeypatch.delenv("MINIDALLE_DTYPE", raising=False)


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


@pytest.mark.parametrize("name", ["gpu", "", "meta", "cpu:x", "cuda:-1", "a circle", True, 1.5])
def test_what_is_no_device_is_refused(name):
    with pytest.raises(ValueError, match=f'"{name}" is no device; choose one of cuda, mps, cpu'):
        pick_device(name)


@pytest.mark.parametrize("native,dtype", [(True, torch.bfloat16), (False, torch.float16)])
def test_cuda_computes_in_the_sixteen_bits_that_it_has(monkeypatch, native, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert half_precision(torch.device("cuda")) == dtype


@pytest.mark.parametrize(("tiles", "dtype"), [(True, torch.bfloat16), (False, None)])
def test_a_processor_uses_sixteen_bits_only_where_it_has_tiles(monkeypatch, tiles, dtype):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    assert half_precision(torch.device("cpu")) == dtype
    with autocast(torch.device("cpu")):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (dtype or torch.float32)


def test_a_torch_that_knows_no_tiles_computes_in_full_precision(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert half_precision(torch.device("cpu")) is None


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize(
    ("asked", "dtype"), [("float32", None), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_the_environment_decides_the_precision(monkeypatch, kind, asked, dtype):
    monkeypatch.setenv("MINIDALLE_DTYPE", asked)
    assert half_precision(torch.device(kind)) == dtype


@pytest.mark.parametrize("asked", ["fp16", "float64", "half"])
def test_an_unknown_precision_is_refused(monkeypatch, asked):
    monkeypatch.setenv("MINIDALLE_DTYPE", asked)
    with pytest.raises(ValueError, match=f'MINIDALLE_DTYPE is "{asked}"; choose float32, bfloat16 or float16'):
        half_precision(torch.device("cpu"))


@pytest.mark.parametrize(("dtype", "found"), [(None, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_a_precision_that_is_named_is_used(dtype, found):
    with autocast(torch.device("cpu"), dtype):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == found


def test_mps_stays_at_full_precision():
    assert half_precision(torch.device("mps")) is None


def test_the_number_of_threads_comes_back():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError
    assert torch.get_num_threads() == before


WATCH = """
import os, random, torch
before = dict(os.environ), torch.get_num_threads(), torch.get_default_dtype(), torch.backends.cudnn.allow_tf32
states = random.getstate(), torch.get_rng_state().tolist()
import minidalle, minidalle.cli, minidalle.course, minidalle.evaluation.report
after = dict(os.environ), torch.get_num_threads(), torch.get_default_dtype(), torch.backends.cudnn.allow_tf32
assert before == after and states == (random.getstate(), torch.get_rng_state().tolist())
"""


def test_importing_the_package_changes_nothing_outside_it():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", WATCH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
