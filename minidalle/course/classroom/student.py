"""In the student's process: run the cells of a submission, then answer calls to what they define.

Nothing here is believed by the grader: it counts only what comes back from a call, and judges that elsewhere.
"""

import builtins
import contextlib
import linecache
import signal
import socket
import traceback

from minidalle.course.classroom.sandbox import Limits
from minidalle.course.classroom.wire import ClosedError, Peer, receive, send

NAME = "<answer {}>"  # of a cell, in a traceback


class TooLong(BaseException):
    """A cell or a call took longer than it may; not an Exception, so that an answer's own `except` does not take it."""


class NoIPython:
    """Stands where a cell asks for IPython: magics do nothing."""

    def __getattr__(self, name: str):
        return lambda *args, **options: None


def serve(reports: socket.socket, calls: socket.socket, namespace: dict, seconds: float) -> None:
    """Run the cells that come over reports, say how each went, and answer calls.

    Args:
        reports: from and to the grader.
        calls: from and to the markers, one after the other.
        namespace: what the lesson has defined.
        seconds: that a cell or a call may take.
    """
    from IPython.core.inputtransformer2 import TransformerManager

    lesson = dict(namespace)
    order, _ = receive(reports)
    builtins.get_ipython = NoIPython
    for each in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(each, too_long)
    for name, source in order["cells"]:
        send(reports, {"began": name})
        fault = None
        try:
            source = TransformerManager().transform_cell(source)
            linecache.cache[NAME.format(name)] = (len(source), None, source.splitlines(True), NAME.format(name))
            with limited(seconds):
                exec(compile(source, NAME.format(name), "exec"), namespace)
        except BaseException as error:
            fault = explain(error)
        send(reports, {"ended": name, "fault": fault})
    send(reports, {"ready": True})
    Answering(calls, namespace, lesson, records=True, explain=explain, seconds=seconds).serve()


class Answering(Peer):
    """The student's end: every call has its time."""

    def __init__(self, *args, seconds: float, **options):
        super().__init__(*args, **options)
        self.seconds, self.depth = seconds, 0

    def _answer(self, body: dict, tensors: list) -> None:
        self.depth += 1
        try:
            with limited(self.seconds) if self.depth == 1 else contextlib.nullcontext():
                super()._answer(body, tensors)
        except TooLong as error:
            if self.depth > 1:
                raise
            send(self.sock, {"error": explain(error)})
        finally:
            self.depth -= 1


@contextlib.contextmanager
def limited(seconds: float):
    """Raise TooLong in what runs longer; where it does not listen, the grader ends the process."""
    signal.setitimer(signal.ITIMER_PROF, seconds, 1.0)
    signal.setitimer(signal.ITIMER_REAL, Limits(seconds).patience, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def too_long(*_) -> None:
    """Interrupt what runs."""
    raise TooLong("took too long")


def explain(error: BaseException) -> tuple[str, str, int | None]:
    """Give the kind, the message and the line of the answer's cell in which an exception was raised."""
    if isinstance(error, ClosedError):
        raise error
    if isinstance(error, SyntaxError):
        return type(error).__name__, str(error.msg)[:300], error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename.startswith("<answer ")]
    try:
        message = str(error)[:300]
    except BaseException:
        message = ""
    return type(error).__name__, message, lines[-1] if lines else None
