"""Hostile answers gain no point, change nobody else's mark, read no hidden test and leave nothing behind."""

import os
import textwrap
import time
from pathlib import Path

import classroom_lesson as tiny
import pytest

from minidalle.course.classroom import sandbox, session
from minidalle.course.classroom.grade import grade_notebook
from minidalle.course.classroom.intake import Submission
from minidalle.course.classroom.lesson import Lesson, exercises_of
from minidalle.course.classroom.release import student_copy
from minidalle.course.classroom.repair import repair

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="grading needs fork")
LIMITS = sandbox.Limits(seconds=0.8, memory=400 << 20, disk=8 << 20, processes=24)
NOTEBOOK = tiny.notebook()
LESSON = Lesson(tiny.NAME, NOTEBOOK, list(exercises_of(NOTEBOOK["cells"], tiny.NAME)))
GAVE = "def area(w, h):\n    return {}\n"  # the reason of a wrong answer says what was given

ATTACKS = {
    "asserts are dropped by a transformer": """
        import ast, builtins
        class Drop(ast.NodeTransformer):
            def visit_Assert(self, node):
                return ast.Pass()
        old = builtins.compile
        builtins.compile = lambda s, *a, **k: old(Drop().visit(ast.parse(s)) if isinstance(s, str) else s, *a, **k)
        def area(w, h): return 0""",
    "torch and float are patched": """
        import builtins
        torch.allclose = lambda *a, **k: True
        builtins.float = lambda x: 6
        builtins.abs = lambda x: 0
        def area(w, h): return 0""",
    "an answer that is equal to everything": """
        class Any:
            def __eq__(self, other): return True
            def __float__(self): return 0.0
        def area(w, h): return Any()""",
    "an int that is equal to everything": """
        class Any(int):
            def __eq__(self, other): return True
            def __hash__(self): return 0
        def area(w, h): return Any(0)""",
    "not a number": "def area(w, h): return float('nan')",
    "an object that runs code where it is unpickled": """
        class Bomb:
            def __reduce__(self): return (open, ("/var/tmp/minidalle-pickled", "w"))
        def area(w, h): return Bomb()""",
    "an endless list": """
        loop = []
        loop.append(loop)
        def area(w, h): return loop""",
    "an answer of a gigabyte": "def area(w, h): return 'x' * (300 << 20)",
    "a number of a million digits": "def area(w, h): return 10 ** 1_000_000",
    "tests are searched in memory": """
        import gc
        found = 0
        for each in gc.get_objects():
            if isinstance(each, dict):
                texts = [v for v in list(each.values()) if isinstance(v, str) and len(v) < 10**5]
                found += sum("".join(["486", "11"]) in text for text in texts)
        def area(w, h): return 777 if found else 0""",
    "tests are searched in other processes": """
        import os
        found = 0
        for pid in [p for p in os.listdir("/proc") if p.isdigit()] if os.path.isdir("/proc") else []:
            for name in ("cmdline", "environ", "maps"):
                try:
                    found += int(pid) != os.getpid() and len(open(f"/proc/{pid}/{name}", "rb").read()) > 0
                except OSError:
                    pass
        def area(w, h): return 777 if found else 0""",
    "source notebooks are searched": """
        import os
        found = [f for top, _, files in os.walk("/") for f in files if f.endswith(".ipynb") and f[:2].isdigit()]
        def area(w, h): return 777 if found else 0""",
    "a file of the grader's is read": """
        try:
            found = len(open(CANARY).read())
        except OSError:
            found = 0
        def area(w, h): return 777 if found else 0""",
    "a file of the grader's is written": """
        try:
            open(CANARY, "w").write("0 points for all")
        except OSError:
            pass
        def area(w, h): return 0""",
    "files are written all over": """
        import os, sys, site
        done = 0
        places = ["/", "/usr", "/etc", "/var/tmp", "/dev", "/dev/shm", sys.prefix, *site.getsitepackages(), *sys.path]
        for folder in places:
            try:
                open(os.path.join(folder, "minidalle-was-here"), "w").write("x")
                done += 1
            except OSError:
                pass
        def area(w, h): return 777 if done else 0""",
    "the package is changed": """
        import minidalle.course.classroom.wire as wire
        wire.Peer._named = lambda self, name: (lambda *a: 6)
        try:
            open(wire.__file__, "a").write("# changed")
            done = 1
        except OSError:
            done = 0
        def area(w, h): return 777 if done else 0""",
    "a start-up file for the next student": """
        import os
        os.makedirs(os.path.expanduser("~/.ipython/profile_default/startup"), exist_ok=True)
        open(os.path.expanduser("~/.ipython/profile_default/startup/x.py"), "w").write("print(1)")
        left = os.path.exists("mine"); open("mine", "w").write("x")
        def area(w, h): return 777 if left else 0""",
    "the network is used": """
        import socket
        try:
            socket.create_server(("127.0.0.1", 0)); socket.create_connection(("192.0.2.1", 80), timeout=0.3)
            found = 1
        except OSError as error:
            found = 0
        def area(w, h): return 777 if found else 0""",
    "a process that stays": """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(300)
            os._exit(0)
        def area(w, h): return 0""",
    "processes without end": """
        import os, time
        try:
            while True:
                if os.fork() == 0:
                    time.sleep(60)
        except OSError:
            pass
        def area(w, h): return 0""",
    "memory without end": """
        def area(w, h):
            return len(bytearray(4 << 30)) * 0""",
    "tensors without end": """
        kept = []
        def area(w, h):
            while True:
                kept.append(torch.ones(10_000_000))""",
    "a disk is filled": """
        done = 0
        try:
            with open("big", "wb") as file:
                for _ in range(200):
                    file.write(b"x" * (1 << 20)); file.flush()
                    done += 1
        except OSError:
            pass
        def area(w, h): return 777 if done > 20 else 0""",
    "output without end": "for _ in range(20_000): print('x' * 1000)\ndef area(w, h): return 0",
    "a loop without end": "def area(w, h):\n    while True: pass",
    "a loop that listens to nothing": """
        import signal
        def area(w, h):
            signal.setitimer(signal.ITIMER_REAL, 0)
            while True: pass""",
    "a loop that takes every exception": """
        def area(w, h):
            while True:
                try:
                    while True: pass
                except BaseException: pass""",
    "a sleep without end in a cell": "import time\ntime.sleep(1000)\ndef area(w, h): return 0",
    "it ends itself": "import os\ndef area(w, h): os._exit(0)",
    "it ends with an exception of its own kind": "def area(w, h): raise type('Mine', (BaseException,), {})",
    "a crash in C": "import ctypes\ndef area(w, h): ctypes.string_at(0)",
    "it kills whom it can": """
        import os, signal
        for pid in (os.getppid(), -1):
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        def area(w, h): return 0""",
    "a verdict is forged": """
        import json, os, struct
        text = json.dumps({"verdicts": {}, "value": 6, "ready": True}).encode()
        for number in range(3, 60):
            try:
                os.write(number, struct.pack(">II", len(text), 0) + text)
            except OSError:
                pass
        def area(w, h): return 0""",
    "the answer is to be called by name": """
        import json, struct, os
        def area(w, h):
            text = json.dumps({"name": "exec", "args": ["1/0"], "kwargs": {}}).encode()
            os.write(51, struct.pack(">II", len(text), 0) + text)
            return 0""",
    "rights are asked for": """
        import ctypes, os, resource
        got = 0
        attempts = (lambda: os.setuid(0), lambda: os.chroot("/"),
                    lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)),
                    lambda: os.mknod("/student/dev", 0o20666, os.makedev(1, 1)))
        for attempt in attempts:
            try:
                attempt(); got += 1
            except (OSError, ValueError):
                pass
        got += ctypes.CDLL(None).mount(b"none", b"/student", b"tmpfs", 0, None) == 0
        def area(w, h): return 777 if got else 0""",
    "hidden numbers leave in a message": """
        def area(w, h):
            if w > 9: raise ValueError(f"w is {w}")
            return w * h""",
    "hidden numbers leave in the name of an exception": """
        def area(w, h):
            if w > 9: raise type(f"Was{w}", (Exception,), {})()
            return w * h""",
}


@pytest.fixture(scope="module")
def kernel():
    with session.Kernel(LESSON, []) as started:
        yield started


def graded(kernel, sources: dict[str, str]) -> dict:
    """Grade a notebook with these answers."""
    notebook = tiny.filled(student_copy(LESSON), tiny.RIGHT | sources)
    submission = Submission("somebody", "", tiny.NAME, notebook)
    result = grade_notebook(kernel, submission, repair(notebook, LESSON), 1, LIMITS)
    return {mark.exercise.name: mark for mark in result.marks}


def left_behind(kernel) -> list[str]:
    """List processes that come from this lesson's, or that lost the process they came from."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[1]
            ours = "minidalle.course.classroom.kernel" in Path("/proc", pid, "cmdline").read_text()
        except OSError:
            continue
        if ours and parent in ("1", str(kernel.process.pid)):
            found.append(pid)
    return found


def needs_namespaces(kernel) -> None:
    if kernel.ready()["level"] != sandbox.LEVELS[0]:
        pytest.skip("this system gives no namespaces; docs/teaching.md says what that leaves open")


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_gains_nothing_and_harms_nobody(kernel, attack, tmp_path, monkeypatch):
    needs_namespaces(kernel)
    monkeypatch.setattr(session, "GRACE", 1.0)
    canary = tmp_path / "gradebook.db"
    canary.write_text("marks of the class")
    source = textwrap.dedent(ATTACKS[attack]).strip()
    source = source.replace("CANARY", repr(str(canary)))
    mark = graded(kernel, {"42-area": source})["42-area"]
    assert mark.points == 0 and mark.reason, mark
    assert str(tiny.SECRET) not in mark.reason and "777" not in mark.reason, mark
    assert canary.read_text() == "marks of the class"
    assert not Path("/var/tmp/minidalle-pickled").exists()


def test_after_all_attacks_an_honest_answer_counts_in_full_and_no_process_is_left(kernel):
    marks = graded(kernel, {})
    assert all(mark.points == mark.exercise.points for mark in marks.values())
    deadline = time.monotonic() + 10
    while left_behind(kernel) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left_behind(kernel) == []


def test_an_attack_costs_its_own_exercise_alone(kernel):
    marks = graded(kernel, {"42-area": "import os\ndef area(w, h): os._exit(0)"})
    assert marks["42-area"].status == "crashed" and marks["42-area"].points == 0
    assert marks["42-pair"].points == 3 and marks["42-twice"].points == 4


@pytest.mark.parametrize("level", sandbox.LEVELS)
def test_answers_are_graded_at_every_level_of_isolation(level):
    if level == sandbox.LEVELS[1] and os.getuid():
        pytest.skip("another user needs a grader that is root")
    with session.Kernel(LESSON, [], level) as started:
        assert started.ready()["level"] == level
        marks = graded(started, {"42-pair": "ONE, TWO = 1, 3"})
    assert [mark.points for mark in marks.values()] == [2, 1, 4]
    assert marks["42-pair"].reason == "two: TWO is not 3"
