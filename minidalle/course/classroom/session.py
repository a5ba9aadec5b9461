"""A class grader's side of the processes: start a lesson, start a student in it, have an exercise marked."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path

from minidalle.course.classroom.kernel import MARKER, STUDENT
from minidalle.course.classroom.lesson import Exercise, Lesson
from minidalle.course.classroom.sandbox import Limits
from minidalle.course.classroom.slices import needed, slice_of, statements
from minidalle.course.classroom.wire import ClosedError, WireError, receive, send

GRACE = 10.0  # seconds beyond its limit, after which a process that does not listen is ended
START_SECONDS, STARTS = 60.0, 3  # a copy of a process with threads may, once in ten thousand, never begin
LESSON_SECONDS = 1800.0


class KernelError(RuntimeError):
    """A lesson cannot be run, so nothing of it can be graded."""


class Kernel:
    """A process that has run a lesson, and is copied for students and markers.

    Args:
        lesson: which one.
        answers: code whose names the lesson has to provide beside those of its own exercises; None: run all its cells.
        level: of the sandbox, one of its LEVELS; empty: as good as the machine allows.
    """

    def __init__(self, lesson: Lesson, answers: list[str] | None = None, level: str = ""):
        self.lesson, self._lock = lesson, threading.Lock()
        self.folder = tempfile.TemporaryDirectory(prefix="minidalle-lesson-")
        self.socket, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-s", "-W", "ignore", "-m", "minidalle.course.classroom.kernel"]
        self.process = subprocess.Popen(
            [*command, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=self.folder.name,
            env=environment(self.folder.name),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        theirs.close()
        send(self.socket, {"cells": needed_cells(lesson, answers), "level": level})
        self._ready: dict | None = None

    def ready(self) -> dict:
        """Wait until the lesson has run.

        Returns: seconds, and the level of the sandbox.
        Raises: KernelError: when the lesson does not run.
        """
        with self._lock:
            if self._ready is None:
                self.socket.settimeout(LESSON_SECONDS)
                try:
                    self._ready, _ = receive(self.socket)
                except (WireError, TimeoutError):
                    said = self.process.stderr.read().decode(errors="replace").strip().splitlines()
                    self._ready = {"fault": said[-1] if said else "its process ended"}
                self.socket.settimeout(None)
        if self._ready["fault"]:
            raise KernelError(f"{self.lesson.name} does not run: {self._ready['fault']}")
        return self._ready

    def fork(self, what: bytes, sockets: list[socket.socket]) -> None:
        """Have the process copied; the copy gets the sockets, which are closed here."""
        with self._lock:
            try:
                socket.send_fds(self.socket, [what], [each.fileno() for each in sockets])
            except OSError:
                raise KernelError(f"{self.lesson.name}: the process of the lesson has ended.") from None
            finally:
                for each in sockets:
                    each.close()

    def close(self) -> None:
        """End the process, and with it all its copies."""
        self.socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        self.folder.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()


def needed_cells(lesson: Lesson, answers: list[str] | None) -> list[str]:
    """Choose the cells of a lesson that its exercises and these answers need."""
    if answers is None:
        return lesson.own_cells
    tests = [source for exercise in lesson.exercises for source in (exercise.tests, exercise.solution)]
    own = statements(lesson.own_cells)
    begins = [i for i, source in enumerate(own) if source.startswith("course.begin(")]  # says which weights are needed
    names = needed([*tests, *answers]) | ({"course"} if begins else set())
    return [own[i] for i in sorted({*begins, *slice_of(own, names)})]


def environment(folder: str) -> dict[str, str]:
    """Give the environment of a lesson: nothing of the grader's own but where programs and libraries are."""
    kept = {
        key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH") if key in os.environ
    }
    one = {key: "1" for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MINIDALLE_THREADS")}
    models = {"MINIDALLE_BUDGET": "smoke", "MINIDALLE_MODELS": str(Path(folder, "models")), "CUDA_VISIBLE_DEVICES": ""}
    homes = {key: folder for key in ("HOME", "TMPDIR", "MPLCONFIGDIR", "IPYTHONDIR")}
    return kept | one | models | homes | {"MPLBACKEND": "Agg", "TQDM_DISABLE": "1"}


class StudentProcess:
    """A student's process: runs the cells of one notebook, then answers the markers.

    Args:
        kernel: of the lesson.
        cells: names and sources, in order.
        limits: what it may use.
    """

    def __init__(self, kernel: Kernel, cells: list[tuple[str, str]], limits: Limits):
        self.kernel, self.limits = kernel, limits
        self.seconds = 0.0  # of a processor, markers included
        self.faults: dict[str, list] = {}
        self.ended_in: str | None = None
        for attempt in range(STARTS):
            if self._begin():
                break
            if attempt + 1 < STARTS:
                self.close()
        self._run(cells)

    def _begin(self) -> bool:
        """Start the process; False where it does not get inside its fence."""
        self.leash, leash = socket.socketpair()
        self.reports, reports = socket.socketpair()
        self.calls, calls = socket.socketpair()
        self.kernel.fork(STUDENT, [leash, reports, calls])
        self.reports.settimeout(START_SECONDS)
        try:
            send(self.reports, asdict(self.limits))
            return "inside" in receive(self.reports)[0]
        except (WireError, TimeoutError):
            return False

    def _run(self, cells: list[tuple[str, str]]) -> None:
        """Have the cells run, and note what each says, or in which the process ends."""
        began = None
        try:
            self.reports.settimeout(self.limits.patience + GRACE)
            send(self.reports, {"cells": cells})
            while True:
                body, _ = receive(self.reports)
                if "ready" in body:
                    return
                if "began" in body:
                    began = str(body["began"])
                elif body.get("fault"):
                    self.faults[str(body["ended"])] = body["fault"]
        except TimeoutError:
            self.ended_in, self.why = began or "", "timed out"
        except WireError:
            self.ended_in, self.why = began or "", "crashed"

    def mark(self, exercise: Exercise, seed: int) -> dict[str, dict]:
        """Have an exercise marked.

        Returns: for each part that fails, its status and the reason; under "" what concerns all parts.
        """
        ours, theirs = socket.socketpair()
        order = {
            "functions": exercise.functions,
            "values": exercise.values,
            "blocks": [(block.part, block.hidden, block.source) for block in exercise.blocks],
            "seed": seed,
            "seconds": self.limits.patience + GRACE / 2,
        }
        try:
            self.kernel.fork(MARKER, [theirs, self.calls.dup()])
            send(ours, order)
            ours.settimeout(self.limits.patience + GRACE)
            told, _ = receive(ours)
            self.seconds += told["seconds"]
            return told["verdicts"]
        except TimeoutError:
            return {"": {"status": "timed out", "reason": "The answer takes too long."}}
        except ClosedError:
            return {"": {"status": "crashed", "reason": "The marker of this exercise ended without a verdict."}}
        finally:
            ours.close()

    def close(self) -> dict:
        """End the process; gives its exit code, its memory in kilobytes and its seconds."""
        self.reports.close()
        self.calls.close()
        self.leash.shutdown(socket.SHUT_WR)
        self.leash.settimeout(GRACE)
        try:
            told, _ = receive(self.leash)
            self.seconds += told["seconds"]
            return told
        except (WireError, TimeoutError):
            return {"code": None}
        finally:
            self.leash.close()
