"""A lesson that was run once, and is forked for every student: `python -m minidalle.course.classroom.kernel`.

The process runs the lesson's own cells, without solutions and without tests. Then it waits: for every order that
comes with its sockets it forks a copy of itself. A copy becomes the process of a student, fenced in, or the marker
of one exercise, which alone is told the tests. What a copy does to its memory, no other copy sees.
"""

import gc
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
import types

from minidalle.course.classroom import sandbox
from minidalle.course.classroom.wire import ClosedError, receive, send

STUDENT, MARKER = b"S", b"M"


def main(number: int) -> None:
    """Run the lesson that comes over the socket of this number, and take orders until the grader is gone."""
    grader = socket.socket(fileno=number)
    order, _ = receive(grader)
    level = order["level"] or sandbox.find_level()
    started = time.perf_counter()
    namespace, fault = run_lesson(order["cells"])
    gc.collect()
    gc.freeze()  # so that a copy's collector leaves the shared memory alone
    send(grader, {"seconds": time.perf_counter() - started, "level": level, "fault": fault})
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no copy is waited for
    while not fault:
        what, sockets, _, _ = socket.recv_fds(grader, 1, 3)
        if not what:
            break
        if os.fork() == 0:
            grader.close()
            copy(what, [socket.socket(fileno=each) for each in sockets], namespace, level)
        for each in sockets:
            os.close(each)


def copy(what: bytes, sockets: list[socket.socket], namespace: dict, level: str) -> None:
    """Be a copy, and end with it."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if what == STUDENT:
            guard(*sockets, namespace, level)
        else:
            from minidalle.course.classroom.marker import mark

            mark(*sockets, namespace)
        code = 0
    except ClosedError:
        pass
    finally:
        os._exit(code)


def run_lesson(cells: list[str]) -> tuple[dict, str]:
    """Run the cells of a lesson, without drawing.

    Returns: the names that they leave, and what went wrong, empty if nothing.
    """
    from IPython.core.inputtransformer2 import TransformerManager

    draw_nothing()
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    quiet = open(os.devnull, "w")  # noqa: SIM115, for as long as the process lives
    os.dup2(quiet.fileno(), 1)
    os.dup2(quiet.fileno(), 2)
    for i, source in enumerate(cells):
        try:
            exec(compile(TransformerManager().transform_cell(source), f"<lesson {i}>", "exec"), module.__dict__)
        except Exception as error:
            return module.__dict__, f"{type(error).__name__}: {error}, in the cell that begins {source[:60]!r}"
    return module.__dict__, ""


def draw_nothing() -> None:
    """Leave out what only the eye needs, and take the shipped weights where the lesson trains a stage."""
    from minidalle import course
    from minidalle.course import figures, live, session

    figures.show = figures.system_map = figures.display_bundle = lambda *args, **options: None
    live.LiveLoss.draw = lambda self: None
    course.train = session.train = session.load


def guard(leash: socket.socket, reports: socket.socket, calls: socket.socket, namespace: dict, level: str) -> None:
    """Start the student's process and wait for its end, or for that of the leash; then say how it ended."""
    home = tempfile.mkdtemp(prefix="minidalle-home-") if level != sandbox.LEVELS[0] else "/"
    if level != sandbox.LEVELS[0]:
        os.chmod(home, 0o777)
    sandbox.separate(level)
    number = os.getpid()
    child = os.fork()
    if child == 0:
        leash.close()
        student(reports, calls, namespace, level, home, number)
    reports.close()
    calls.close()
    ended = os.pidfd_open(child) if hasattr(os, "pidfd_open") else None
    try:
        while not select.select([leash] + ([] if ended is None else [ended]), [], [], None if ended else 0.2)[0]:
            if os.waitpid(child, os.WNOHANG)[0]:
                break
        os.kill(child, signal.SIGKILL)
        if level == sandbox.LEVELS[2] or level == sandbox.LEVELS[1]:
            os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    _, status, used = os.wait4(child, 0)
    if home != "/":
        shutil.rmtree(home, ignore_errors=True)
    seconds = used.ru_utime + used.ru_stime + time.process_time()
    send(leash, {"code": os.waitstatus_to_exitcode(status), "memory": used.ru_maxrss, "seconds": seconds})


def student(reports, calls, namespace: dict, level: str, home: str, number: int) -> None:
    """Be the student's process; nothing but the two sockets is open in it."""
    from minidalle.course.classroom.student import serve

    code = 1
    try:
        os.setsid()
        limits, _ = receive(reports)
        kept = [os.dup(each.fileno()) for each in (reports, calls)]
        for place, each in enumerate(kept, 50):
            os.dup2(each, place)
        null = os.open(os.devnull, os.O_RDWR)
        for place in (0, 1, 2):
            os.dup2(null, place)
        os.closerange(3, 50)
        os.closerange(52, 4096)
        sandbox.enter(level, sandbox.Limits(**limits), home, number)
        reports = socket.socket(fileno=50)
        send(reports, {"inside": True})
        serve(reports, socket.socket(fileno=51), namespace, limits["seconds"])
        code = 0
    except ClosedError:
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    main(int(sys.argv[1]))
