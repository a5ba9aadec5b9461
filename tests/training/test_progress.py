"""A training says where it is: a bar on a terminal, a line every ten seconds elsewhere, with the rate of those."""

import io
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidalle.training import progress
from minidalle.training.progress import Progress


class Clock:
    """A clock that a test sets."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A terminal of a narrow encoding."""

    encoding = "ascii"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """Have the progress read a clock that stands still."""
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def lines(capsys) -> list[tuple[int, int]]:
    """Read (step, pictures a second) of each line; nothing but whole lines may be there."""
    shown = capsys.readouterr().err
    found = re.findall(r"^clip: step (\d+) of 1000, loss \d\.\d{4}, (\d+) pictures/s\n", shown, re.MULTILINE)
    assert shown.count("\n") == len(found) and "\r" not in shown
    return [(int(step), int(rate)) for step, rate in found]


def test_a_file_gets_a_line_every_ten_seconds_and_one_at_the_end(clock, capsys):
    with Progress("clip", 0, 1000, 8) as bar:
        for done in range(10, 1001, 10):
            clock.now += 0.5
            bar.update(done, 0.5)
    assert lines(capsys) == [(200, 160), (400, 160), (600, 160), (800, 160), (1000, 160)]


def test_the_rate_is_that_of_the_last_seconds(clock, capsys):
    with Progress("clip", 0, 1000, 8) as bar:
        for done in range(10, 1001, 10):
            clock.now += 10 if done <= 500 else 1
            bar.update(done, 0.5)
    rates = dict(lines(capsys))
    assert rates[500] == 8 and rates[1000] == 80  # over the whole run it would be 14


def test_after_a_resume_the_steps_before_do_not_count(clock, capsys):
    with Progress("clip", 900, 1000, 8) as bar:
        clock.now += 20
        bar.update(1000, 0.5)
    assert lines(capsys) == [(1000, 40)]


@given(st.lists(st.floats(0.01, 40), min_size=1, max_size=60))
def test_the_rate_is_never_one_that_no_stretch_had(pauses):
    bar, now, rates = Progress("clip", 0, 1000, 1, shown=False), 0.0, []
    bar.recent.clear()
    bar.recent.append((now, 0))
    for done, pause in enumerate(pauses, 1):
        now += pause
        rates.append(1 / pause)
        assert min(rates) * 0.999 <= bar.rate(now, done) <= max(rates) * 1.001
        assert now - bar.recent[0][0] <= max(progress.RATE_SECONDS, pause) * 1.001


def test_a_terminal_gets_a_bar_in_its_own_letters(clock, monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("clip", 0, 20, 8) as bar:
        for done in (10, 20):
            clock.now += 20
            bar.update(done, 0.5)
    shown = terminal.getvalue()
    assert shown.isascii() and "\r" in shown and "20/20" in shown and "pictures_per_s=4" in shown
    assert "step 10 of" not in shown and "step 20 of" not in shown


def test_a_stream_that_only_takes_text_is_no_terminal(clock, monkeypatch):
    class Window:  # as programs with windows put in the place of a console
        shown = ""

        def write(self, text: str) -> None:
            self.shown += text

        def flush(self) -> None: ...

    monkeypatch.setattr(sys, "stderr", window := Window())
    with Progress("clip", 0, 10, 8) as bar:
        clock.now += 10
        bar.update(10, 0.5)
    assert window.shown == "clip: step 10 of 10, loss 0.5000, 8 pictures/s\n"


@pytest.mark.parametrize("hide", [True, False])
def test_nothing_is_said_where_nothing_is_asked_or_nobody_can_read(clock, monkeypatch, capsys, hide):
    if not hide:
        monkeypatch.setattr(sys, "stderr", None)
    with Progress("clip", 0, 10, 8, shown=not hide) as bar:
        clock.now += 100
        bar.update(10, 0.5)
    assert capsys.readouterr() == ("", "")
