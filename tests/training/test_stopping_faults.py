"""Being stopped: whatever signal comes, whenever, at most one save's distance is lost, and the training goes on."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from minidalle import checkpoint
from minidalle.training import loop
from minidalle.training.loop import STOPPING, SaveTimer, Stopped, delayed_stop, fit
from minidalle.training.recipes import StageRecipe

RECIPE = StageRecipe(steps=20, batch_size=4, matrix_lr=0.02, lr=1e-2, warmup_steps=3)
SIGNALS = [s for s in STOPPING if os.name == "posix"]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of another kind there")


def toy() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1))


def loss_at(model: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(step))
    return (model(x) - x.sum(1, keepdim=True)).float().square().mean()


def with_act(step: int, act):
    def acting(model: nn.Module, n: int) -> torch.Tensor:
        if n == step:
            act()
        return loss_at(model, n)

    return acting


def send(*numbers: int):
    def act() -> None:
        for number in numbers:
            signal.raise_signal(number)

    return act


def train(loss=loss_at, **options) -> list[torch.Tensor]:
    model = toy()
    averaged = fit(model, loss, RECIPE, progress=False, **options)
    return [*model.state_dict().values(), *averaged.state_dict().values()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, a, b))


@pytest.fixture(autouse=True)
def handlers():
    """Begin with the usual handlers of signals, and put back those that were there, whatever a test does."""
    before = {s: signal.getsignal(s) for s in SIGNALS}
    for s in SIGNALS:  # nohup, for one, has SIGHUP ignored
        signal.signal(s, signal.default_int_handler if s == signal.SIGINT else signal.SIG_DFL)
    yield
    for s, handler in before.items():
        signal.signal(s, handler)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("step", [0, 1, 7, 19])
def test_each_signal_is_answered_at_the_end_of_its_step(tmp_path, number, step):
    path = tmp_path / "a.safetensors"
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=f"stopped by {signal.Signals(number).name}; step {step + 1} is kept") as stopped:
        train(with_act(step, send(number)), state_path=path)
    assert stopped.value.signal == number and isinstance(stopped.value, KeyboardInterrupt)
    assert checkpoint.read_header(path, "training")["step"] == step + 1
    assert signal.getsignal(number) is before
    assert equal(train(state_path=path, resume=True), train())


@pytest.mark.parametrize("pair", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)])
def test_a_second_signal_spoils_nothing(tmp_path, pair):
    path = tmp_path / "a.safetensors"
    with pytest.raises(Stopped) as stopped:
        train(with_act(5, send(*pair)), state_path=path)
    assert stopped.value.signal == pair[0]
    assert equal(train(state_path=path, resume=True), train())


def test_a_second_signal_while_the_state_is_saved_leaves_it_whole(tmp_path, monkeypatch):
    path, save = tmp_path / "a.safetensors", checkpoint.write_whole

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        save(*arguments)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(checkpoint, "write_whole", interrupted)
    with pytest.raises(Stopped):
        train(with_act(5, send(signal.SIGINT)), state_path=path)
    assert checkpoint.load(path, "training")[1]["step"] == 6


def test_without_a_place_to_keep_it_a_stop_says_so():
    with pytest.raises(Stopped, match="nothing was to be kept"):
        train(with_act(3, send(signal.SIGTERM)))


@pytest.mark.parametrize("number", SIGNALS)
def test_what_the_process_ignores_stays_ignored(number):
    signal.signal(number, signal.SIG_IGN)
    assert equal(train(with_act(3, send(number))), train())
    assert signal.getsignal(number) is signal.SIG_IGN


@pytest.mark.parametrize(
    ("number", "usual"), [(signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)]
)
def test_a_handler_that_python_did_not_set_is_no_obstacle(tmp_path, monkeypatch, number, usual):
    real, first = signal.signal, {number}

    def foreign(s, handler):  # as Python answers where C code, or an embedding program, has set a handler
        before = real(s, handler)
        return None if s in first and not first.discard(s) else before

    monkeypatch.setattr(signal, "getsignal", lambda s: None)
    monkeypatch.setattr(signal, "signal", foreign)
    with pytest.raises(Stopped):
        train(with_act(4, send(number)), state_path=tmp_path / "a.safetensors")
    monkeypatch.undo()
    assert signal.getsignal(number) is usual
    assert equal(train(state_path=tmp_path / "a.safetensors", resume=True), train())


FOREIGN = """
import ctypes, os, signal, sys
from pathlib import Path
libc = ctypes.CDLL(None)
handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: None)
libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.signal(signal.SIGTERM, ctypes.cast(handler, ctypes.c_void_p))  # behind Python's back
sys.path.insert(0, sys.argv[1])
from test_stopping_faults import Stopped, send, train, with_act
try:
    train(with_act(4, lambda: os.kill(os.getpid(), signal.SIGTERM)), state_path=Path(sys.argv[2]))
except Stopped as stop:
    print(stop)
"""


def test_a_handler_of_c_code_is_no_obstacle(tmp_path):
    command = [sys.executable, "-c", FOREIGN, Path(__file__).parent, tmp_path / "a.safetensors"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert "stopped by SIGTERM; step 5 is kept" in ran.stdout, ran.stderr


def test_a_handler_of_the_caller_comes_back_and_gets_what_came_too_late():
    got = []
    signal.signal(signal.SIGTERM, mine := lambda number, frame: got.append(number))
    with delayed_stop() as stopped_by:
        assert stopped_by() == 0
        signal.raise_signal(signal.SIGTERM)
        assert stopped_by() == signal.SIGTERM and not got
    assert got == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) is mine
    with pytest.raises(KeyboardInterrupt), delayed_stop():
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), delayed_stop():
        signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError  # the body's own trouble comes first


def test_a_signal_between_the_last_step_and_the_end_is_not_swallowed(tmp_path):
    def on_log(line: dict) -> None:
        if line["step"] == RECIPE.steps:
            late.start()

    late = threading.Timer(0.0, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(on_log=on_log, state_path=tmp_path / "a.safetensors")
        late.join()
        time.sleep(1)  # where Python hands the signal on


def test_a_training_beside_the_main_thread_needs_no_signals(tmp_path):
    found = []
    worker = threading.Thread(target=lambda: found.extend(train(state_path=tmp_path / "a.safetensors")))
    worker.start()
    worker.join()
    assert equal(found, train())


@pytest.mark.parametrize(
    ("step_seconds", "longest"), [(0.001, 20.0), (1.0, 20.0), (6.0, 20.0), (15.0, 15.0), (40.0, 40.0)]
)
def test_a_save_is_due_before_another_step_would_make_it_late(monkeypatch, step_seconds, longest):
    now = 0.0
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now)
    timer, saved, worst = SaveTimer(), 0.0, 0.0
    for _ in range(200 if step_seconds > 0.1 else 50_000):
        now += step_seconds
        worst = max(worst, now - saved)  # what a kill at this moment loses
        if timer.due():
            now += 0.5  # a slow disk
            saved = now
            timer.restart()
    assert saved > 0 and worst <= longest + step_seconds / 1000 + 1e-6


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_stopping_faults import loop, train, with_act
loop.SAVE_SECONDS = 0.0
die = with_act(int(sys.argv[3]), lambda: os.kill(os.getpid(), signal.SIGKILL))
train(die, state_path=Path(sys.argv[2]), resume=True)
"""


def test_kills_in_a_row_end_at_the_same_weights(tmp_path):
    path = tmp_path / "a.safetensors"
    for step in (0, 3, 4, 19):  # before the first save; soon after a resume; in the last step
        command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(path), str(step)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert path.exists() == (step > 0)
        assert not path.exists() or checkpoint.load(path, "training")[1]["step"] == step
    assert equal(train(state_path=path, resume=True), train())
