"""Threads, quotas and precision: what the machine, a container or a variable says is followed, and said."""

import os
from pathlib import Path

import pytest
import torch

from minidalle import device
from minidalle.device import allowed_cores, choose_threads, cpu_quota, half_precision, idle_cores, threads

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch):
    """Pretend to be on a machine: cores for torch, cores that affinity allows, a quota, idle cores."""

    def pretend(possible=8, allowed=8, quota=float("inf"), idle=8.0):
        for name in ("MINIDALLE_THREADS", "OMP_NUM_THREADS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(torch, "get_num_threads", lambda: possible)
        monkeypatch.setattr(device, "affinity", lambda: set(range(allowed)))
        monkeypatch.setattr(device, "cpu_quota", lambda: quota)
        monkeypatch.setattr(device, "idle_cores", lambda: idle)

    return pretend


@pytest.mark.parametrize(
    ("pretended", "number", "said"),
    [
        ({}, 8, ""),
        ({"idle": 1.0, "possible": 2, "allowed": 2}, 1, ", since the other core is busy"),
        ({"idle": 0.0, "possible": 2, "allowed": 2}, 1, ", since the other core is busy"),
        ({"idle": 1.7, "possible": 2, "allowed": 2}, 2, ""),
        ({"idle": 3.2}, 3, ", since the other cores are busy"),
        ({"quota": 1.0}, 1, ", since this process may use no more"),
        ({"quota": 0.4}, 1, ", since this process may use no more"),
        ({"quota": 2.9, "idle": 60.0}, 2, ", since this process may use no more"),
        ({"allowed": 3, "idle": 50.0}, 3, ", since this process may use no more"),
        ({"idle": None}, 8, ""),
        ({"possible": 1, "idle": 0.0}, 1, ""),
    ],
)
def test_threads_follow_what_is_free(machine, pretended, number, said):
    machine(**pretended)
    assert choose_threads() == (number, said)


def test_a_variable_decides_then_what_was_kept(machine, monkeypatch):
    machine(idle=0.0)
    assert choose_threads(kept=5) == (5, " as before")
    monkeypatch.setenv("MINIDALLE_THREADS", "3")
    assert choose_threads(kept=5) == (3, " as MINIDALLE_THREADS says")
    monkeypatch.delenv("MINIDALLE_THREADS")
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert choose_threads() == (8, "")
    assert choose_threads(kept=5) == (5, " as before")


@pytest.mark.parametrize(
    "asked", ["0", "-1", "two", "1.5", " 2", "1025", "9" * 5000, "0000000015000000", "٢٠٠٠", "True"]
)
def test_a_variable_that_is_no_number_of_threads_is_refused(monkeypatch, asked):
    monkeypatch.setenv("MINIDALLE_THREADS", asked)
    with pytest.raises(ValueError, match="MINIDALLE_THREADS") as error:
        choose_threads()
    assert len(str(error.value)) < 200


def test_the_number_of_threads_holds_for_a_while():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError
    assert torch.get_num_threads() == before


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("", {}, float("inf")),
        ("0::/\n", {"cpu.max": "max 100000\n"}, float("inf")),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "50000 100000\n", "a/b/cpu.max": "max 100000\n"}, 0.5),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "200000 100000\n"}, 2.0),
        ("0::/../other\n", {"cpu.max": "100000 100000\n"}, 1.0),
        ("0::/not/there\n", {"cpu.max": "400000 100000\n"}, 4.0),
        ("3:cpuset:/x\n2:cpu,cpuacct:/job\n", {"cpu,cpuacct/job/cpu.cfs_quota_us": "70000",
                                              "cpu,cpuacct/job/cpu.cfs_period_us": "100000"}, 0.7),
        ("1:cpu:/a/b\n0::/\n", {"cpu/a/cpu.cfs_quota_us": "250000", "cpu/a/cpu.cfs_period_us": "100000",
                                "cpu/a/b/cpu.cfs_quota_us": "-1", "cpu/a/b/cpu.cfs_period_us": "100000"}, 2.5),
        ("9:memory:/m\n0::/\n", {"unified/cpu.max": "300000 100000"}, 3.0),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, float("inf")),
        ("0::/\n", {"cpu.max": "garbage"}, float("inf")),
        ("0::/\n", {"cpu.max": "100000 0"}, float("inf")),
        ("0::/\n", {"cpu.max": ""}, float("inf")),
        ("\nnonsense\n1:cpu\n0::/job\n", {"job/cpu.max": "100000 100000"}, 1.0),
        ("0::/with space:and colon\n", {"with space:and colon/cpu.max": "100000 100000"}, 1.0),
    ],
)  # fmt: skip
def test_quotas_of_both_versions_of_control_groups_count(tmp_path, own, files, quota):
    root = write(tmp_path / "cgroup", files)
    (tmp_path / "own").write_text(own)
    assert cpu_quota(root, tmp_path / "own") == quota
    assert cpu_quota(root, tmp_path / "missing") <= (quota if own == "0::/\n" and "cpu.max" in files else float("inf"))


@pytest.mark.skipif(os.name != "posix", reason="names of files are text there")
def test_the_name_of_a_control_group_may_be_of_any_bytes(tmp_path):
    group = os.fsencode(tmp_path) + b"/caf\xe9"
    try:
        os.mkdir(group)
    except OSError:
        pytest.skip("no such names here")
    (Path(os.fsdecode(group)) / "cpu.max").write_text("200000 100000")
    (tmp_path / "own").write_bytes(b"0::/caf\xe9\n")
    assert cpu_quota(tmp_path, tmp_path / "own") == 2.0


def stat_file(path: Path, *moments: dict[str, tuple[int, int]]) -> Path:
    """Make a /proc/stat that says the next moment whenever it is read: (busy, idle) ticks for each core."""

    class Moving(type(path)):
        def read_text(self, *_):
            cores = rest.pop(0)
            lines = [f"{name} {busy} 0 0 {idle} 0 0 0 0 0 0" for name, (busy, idle) in cores.items()]
            return "\n".join([*lines, "intr 5 6", "ctxt 7"])

    rest = list(moments)
    return Moving(path)


def test_only_cores_that_this_process_may_use_count_as_idle(tmp_path, monkeypatch):
    def measured(allowed, *moments):
        monkeypatch.setattr(device, "affinity", lambda: set(allowed))
        return idle_cores(0.0, stat_file(tmp_path / "stat", *moments))

    start = {"cpu": (0, 0), "cpu0": (0, 0), "cpu1": (0, 0), "cpu2": (0, 0), "cpu3": (0, 0)}
    later = {"cpu": (120, 280), "cpu0": (100, 0), "cpu1": (20, 80), "cpu2": (0, 100), "cpu3": (0, 100)}
    assert measured({0, 1, 2, 3}, start, later) == pytest.approx(2.8)
    assert measured({0, 1}, start, later) == pytest.approx(0.8)  # the rest of the host is idle and not ours
    assert measured({40, 41}, start, later) == pytest.approx(2.8)  # a container that numbers its cores anew
    assert measured({0, 1}, start, start) is None  # a sandbox whose clock stands still
    assert measured({0}, {"cpu": (1, 1)}, {"cpu": (2, 2)}) is None
    short = iter(["cpu0 5 0 0 10", "cpu0 5 0 0 20"])  # an old kernel, which counts four ways
    monkeypatch.setattr(Path, "read_text", lambda *_: next(short))
    assert idle_cores(0.0, tmp_path / "stat") == 1.0
    monkeypatch.undo()
    assert idle_cores(0.0, tmp_path / "missing") is None
    (tmp_path / "broken").write_text("cpu0 x y z\n")
    assert idle_cores(0.0, tmp_path / "broken") is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity there")
def test_affinity_is_that_of_the_process():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert allowed_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("asked", "dtype"), [("float32", None), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_a_variable_decides_the_precision(monkeypatch, asked, dtype):
    monkeypatch.setenv("MINIDALLE_DTYPE", asked)
    assert half_precision(CPU) is dtype
    x = torch.ones(2, 2)
    with device.autocast(CPU):
        assert (x @ x).dtype == (dtype or torch.float32)


@pytest.mark.parametrize("asked", ["fp16", "half", "float64", "Float16", "torch.float16", "load"])
def test_a_precision_that_is_none_is_refused(monkeypatch, asked):
    monkeypatch.setenv("MINIDALLE_DTYPE", asked)
    with pytest.raises(ValueError, match="choose float32, bfloat16 or float16"):
        half_precision(CPU)


@pytest.mark.parametrize("has_tiles", [False, True])
def test_the_precision_follows_a_rule_and_no_stopwatch(monkeypatch, has_tiles):
    monkeypatch.delenv("MINIDALLE_DTYPE", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_tiles, raising=False)
    monkeypatch.setattr("time.perf_counter", lambda: pytest.fail("it looked at the clock"))
    assert half_precision(CPU) is (torch.bfloat16 if has_tiles else None)


@pytest.mark.parametrize(("emulated_only", "dtype"), [(True, torch.float16), (False, torch.bfloat16)])
def test_a_gpu_that_only_emulates_bfloat16_takes_float16(monkeypatch, emulated_only, dtype):
    monkeypatch.delenv("MINIDALLE_DTYPE", raising=False)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or not emulated_only
    )
    assert half_precision(torch.device("cuda")) is dtype
