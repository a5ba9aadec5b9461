"""In a clean copy of the lesson: judge one exercise by the values that the student's process returns.

The tests stand in the namespace of the lesson, not in the student's. A function of the answer is called in the
student's process; a number or a list is fetched from there once. So whatever the student's code does to asserts, to
torch or to a name, it does elsewhere.
"""

import builtins
import io
import signal
import socket
import sys
import time
from dataclasses import dataclass

import torch

from minidalle.course.classroom.wire import ClosedError, Peer, RemoteError, WireError, receive, send

UNKNOWN = "An error"  # the kind of an exception that only the student's code knows


class UnusableError(Exception):
    """The answer is of no use to the tests; the message says why."""


class TooLong(BaseException):
    """The tests took longer than they may."""


@dataclass
class Answer:
    """What stands for a function of the answer: calls it in the student's process.

    Args:
        peer: the connection to that process.
        name: of the function.
    """

    peer: Peer
    name: str

    def __call__(self, *args, **kwargs):
        """Call it; a result of None is refused, since every answer of the course returns something."""
        value = self.peer.call(self.name, *args, **kwargs)
        if value is None:
            raise UnusableError(f"{self.name} returned None: does every way through it end in a return?")
        return value


def mark(grader: socket.socket, calls: socket.socket, namespace: dict) -> None:
    """Judge the exercise that comes over the grader's socket, and send back a verdict for each of its parts."""
    order, _ = receive(grader)
    signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, order["seconds"])
    sys.stdout = sys.stderr = io.StringIO()
    verdicts = judge(order, Peer(calls, {}, dict(namespace)), namespace)
    signal.setitimer(signal.ITIMER_REAL, 0)
    send(grader, {"verdicts": verdicts, "seconds": time.process_time()})


def too_long(*_) -> None:
    """Interrupt the tests."""
    raise TooLong


def judge(order: dict, peer: Peer, namespace: dict) -> dict[str, dict]:
    """Run the tests of an exercise part by part.

    Args:
        order: functions and values (the names of the answer), blocks (part, hidden, source) and seed.
        peer: the connection to the student's process.
        namespace: of the lesson.

    Returns: for each part that fails, its status and the reason; a part that passes is not there.
    """
    verdicts: dict[str, dict] = {}
    for name in order["functions"]:
        namespace[name] = Answer(peer, name)
    for name in order["values"]:
        namespace.pop(name, None)
        try:
            namespace[name] = peer.get(name)
        except RemoteError as error:
            if error.kind != "NameError":
                return {"": verdict(error, False)}
        except WireError as error:
            return {"": verdict(error, False)}
    for part, hidden, source in order["blocks"]:
        if part in verdicts or "" in verdicts:
            continue
        torch.manual_seed(order["seed"])
        try:
            exec(compile(source, "<tests>", "exec"), namespace)
        except BaseException as error:
            verdicts[part] = verdict(error, hidden)
            if verdicts[part]["status"] in ("crashed", "timed out"):
                verdicts[""] = verdicts[part]
    return verdicts


def verdict(error: BaseException, hidden: bool) -> dict:
    """Turn what the tests raised into a status and a sentence.

    A message of the student's own code is left out where hidden tests ran: it could carry their numbers away.
    """
    if isinstance(error, AssertionError):
        said = str(error).strip() or "A check that has no message failed."
        return {"status": "graded", "reason": said[:400]}
    if isinstance(error, TooLong) or (isinstance(error, RemoteError) and error.kind == "TooLong"):
        return {"status": "timed out", "reason": "The answer takes too long."}
    if isinstance(error, ClosedError):
        return {"status": "crashed", "reason": "The answer ended its own process."}
    if isinstance(error, RemoteError):
        kind = error.kind if isinstance(getattr(builtins, error.kind, None), type) else UNKNOWN
        if kind == "NotImplementedError":
            return {"status": "graded", "reason": "Not attempted: the answer is still to be written."}
        where = f" in line {error.line} of the cell" if error.line else ""
        what = "" if hidden or not error.message else f": {error.message}"
        return {"status": "graded", "reason": f"The answer stops with {kind}{where}{what}"[:400]}
    if isinstance(error, NameError):
        return {"status": "graded", "reason": f"{error.name} is not defined."}
    if isinstance(error, UnusableError | WireError):
        return {"status": "graded", "reason": f"The answer cannot be used: {error}"[:400]}
    what = f"{type(error).__name__}: {error}"
    return {"status": "graded", "reason": f"The checks cannot use what the answer returned ({what})"[:400]}
