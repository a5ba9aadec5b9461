"""How two processes call each other's functions: JSON and safetensors over a socket, so nothing that arrives can run.

Numbers, text, lists, dictionaries and tensors travel as values. A function stays where it is: a handle travels, and
calling it calls back. Objects of the lesson (a model, a pipeline) are in both processes and travel by name.
"""

import dataclasses
import importlib
import json
import socket
import struct
from collections.abc import Callable

import numpy as np
import torch
from safetensors.torch import load, save

MAX_BYTES = 256 * 2**20  # of a message
MAX_DEPTH = 20  # of lists in lists
PACKAGE = "minidalle."  # whose records may be rebuilt on the other side
PLAIN = (type(None), bool, int, float, str)  # JSON has these
VALUES = (*PLAIN, list, tuple, dict, set, frozenset, torch.Tensor, np.ndarray, np.generic)  # travel as what they hold


class WireError(Exception):
    """What arrived, or should be sent, is no message."""


class ClosedError(WireError):
    """The other side is gone."""


class RemoteError(Exception):
    """A function on the other side raised.

    Args:
        kind: name of the exception's class.
        message: what it said.
        line: of the answer's cell where it was raised; None where it was not raised there.
    """

    def __init__(self, kind: str, message: str, line: int | None = None):
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind, self.message, self.line = kind, message, line


def send(sock: socket.socket, body: dict, tensors: list[torch.Tensor] | None = None) -> None:
    """Send one message.

    Raises: WireError: when it is too long, or cannot be written as JSON.
    """
    blob = save({str(i): x for i, x in enumerate(tensors)}) if tensors else b""
    try:
        text = json.dumps(body).encode()
    except (TypeError, ValueError) as error:
        raise WireError(f"no JSON: {error}") from None
    if len(text) + len(blob) > MAX_BYTES:
        raise WireError(f"an answer of {(len(text) + len(blob)) >> 20} MB; at most {MAX_BYTES >> 20} are taken")
    try:
        sock.sendall(struct.pack(">II", len(text), len(blob)) + text + blob)
    except (BrokenPipeError, ConnectionResetError):
        raise ClosedError("the other side is gone") from None


def receive(sock: socket.socket) -> tuple[dict, list[torch.Tensor]]:
    """Wait for one message.

    Raises:
        ClosedError: when there is nobody to send it.
        WireError: when it is none, or too long.
    """
    sizes = struct.unpack(">II", _exactly(sock, 8))
    if sum(sizes) > MAX_BYTES:
        raise WireError(f"a message of {sum(sizes) >> 20} MB; at most {MAX_BYTES >> 20} are taken")
    text, blob = _exactly(sock, sizes[0]), _exactly(sock, sizes[1])
    try:
        body = json.loads(text)
        named = load(blob) if blob else {}
        tensors = [named[str(i)] for i in range(len(named))]
    except Exception as error:  # whatever the two parsers raise on bytes that are no message
        raise WireError(f"no message: {error}") from None
    if not isinstance(body, dict):
        raise WireError("no message: a dictionary was expected")
    return body, tensors


def _exactly(sock: socket.socket, count: int) -> bytes:
    """Read so many bytes."""
    parts = bytearray()
    while len(parts) < count:
        try:
            part = sock.recv(min(count - len(parts), 1 << 20))
        except ConnectionResetError:
            part = b""
        if not part:
            raise ClosedError("the other side is gone")
        parts += part
    return bytes(parts)


class Peer:
    """One end of a connection on which both sides may call, also while they wait for an answer.

    Args:
        sock: the connection.
        names: what the other side may call or fetch by its name; looked up when it does.
        shared: objects that both sides have, by their names; they travel as names.
        records: whether dataclasses of the package are rebuilt from what arrives; only where the sender is trusted.
        explain: makes (kind, message, line) of an exception that goes to the other side.
    """

    def __init__(self, sock, names: dict, shared: dict, records: bool = False, explain: Callable | None = None):
        self.sock, self.names, self.records = sock, names, records
        self.objects = {name: x for name, x in shared.items() if not isinstance(x, VALUES)}
        self.shared = {id(x): name for name, x in self.objects.items()}
        self.explain = explain or (lambda error: (type(error).__name__, str(error)[:300], None))
        self.handed: list[object] = []  # functions that the other side may call

    def call(self, name: str, *args, **kwargs):
        """Call a function of the other side by its name.

        Raises: RemoteError: when it raises there. WireError: when something cannot be handed over.
        """
        return self._ask({"name": name}, args, kwargs)

    def get(self, name: str):
        """Fetch a value of the other side by its name."""
        return self._ask({"get": name}, (), {})

    def serve(self) -> None:
        """Answer calls until the other side is gone."""
        while True:
            body, tensors = receive(self.sock)
            self._answer(body, tensors)

    def _ask(self, target: dict, args: tuple, kwargs: dict):
        tensors: list[torch.Tensor] = []
        send(self.sock, target | {"args": self._pack(args, tensors), "kwargs": self._pack(kwargs, tensors)}, tensors)
        while True:
            body, tensors = receive(self.sock)
            if "value" in body:
                return self._unpack(body["value"], tensors)
            if "error" in body:
                kind, message, line = body["error"]
                raise RemoteError(str(kind)[:60], str(message)[:300], line if isinstance(line, int) else None)
            self._answer(body, tensors)

    def _answer(self, body: dict, tensors: list[torch.Tensor]) -> None:
        """Do what was asked, and send the result or what went wrong."""
        sent: list[torch.Tensor] = []
        try:
            if "get" in body:
                value = self._named(body["get"])
            else:
                function = self._named(body["name"]) if "name" in body else self._own(body["handle"])
                args, kwargs = (self._unpack(body[key], tensors) for key in ("args", "kwargs"))
                value = function(*args, **kwargs)
            reply = {"value": self._pack(value, sent)}
        except ClosedError:
            raise
        except (SystemExit, KeyboardInterrupt, Exception) as error:
            reply, sent = {"error": self.explain(error)}, []
        try:
            send(self.sock, reply, sent)
        except ClosedError:
            raise
        except WireError as error:
            send(self.sock, {"error": self.explain(error)})

    def _named(self, name: str):
        if name not in self.names:
            raise NameError(f"{name} is not defined")
        return self.names[name]

    def _own(self, index: int):
        if not (isinstance(index, int) and 0 <= index < len(self.handed)):
            raise WireError("no such function")
        return self.handed[index]

    def _pack(self, value, tensors: list, depth: int = 0):
        """Turn a value into JSON; tensors go into the list."""
        if depth > MAX_DEPTH:
            raise WireError("lists in lists in lists, too deep")
        if value is None or (isinstance(value, bool | int | float | str) and type(value) in PLAIN):
            return value
        if isinstance(value, bool | int | float | str):  # of a class that looks like them
            return next(kind(value) for kind in (bool, int, float, str) if isinstance(value, kind))
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, np.ndarray) and value.dtype.kind not in "biufc":
            value = value.tolist()
        if isinstance(value, np.ndarray):
            value = torch.as_tensor(np.ascontiguousarray(value))
        if isinstance(value, torch.Tensor):
            tensors.append(value.detach().cpu().contiguous().clone())
            return {"tensor": len(tensors) - 1}
        if id(value) in self.shared:
            return {"shared": self.shared[id(value)]}
        if isinstance(value, Remote) and value.peer is self:
            return {"yours": value.index}
        inner = lambda x: self._pack(x, tensors, depth + 1)  # noqa: E731
        if isinstance(value, list):
            return [inner(x) for x in value]
        for kind in (tuple, set, frozenset):
            if isinstance(value, kind):
                return {"many": [inner(x) for x in value], "kind": kind.__name__}
        if isinstance(value, dict):
            return {"pairs": [[inner(k), inner(v)] for k, v in value.items()]}
        if isinstance(value, range | type({}.keys()) | type({}.values()) | map | zip):
            return [inner(x) for x in value]
        if dataclasses.is_dataclass(value) and type(value).__module__.startswith(PACKAGE):
            fields = {f.name: inner(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return {"record": f"{type(value).__module__}:{type(value).__qualname__}", "fields": fields}
        if callable(value):
            self.handed.append(value)
            return {"mine": len(self.handed) - 1}
        raise WireError(f"an answer of the kind {type(value).__name__}, which is no number, text, list or tensor")

    def _unpack(self, value, tensors: list):
        """Turn JSON back into a value."""
        if not isinstance(value, dict):
            return [self._unpack(x, tensors) for x in value] if isinstance(value, list) else value
        try:
            if "tensor" in value:
                return tensors[value["tensor"]]
            if "shared" in value:
                return self.objects[value["shared"]]
            if "yours" in value:
                return self._own(value["yours"])
            if "mine" in value:
                return Remote(self, int(value["mine"]))
            if "many" in value:
                kind = {"tuple": tuple, "set": set, "frozenset": frozenset}[value["kind"]]
                return kind(self._unpack(x, tensors) for x in value["many"])
            if "pairs" in value:
                return {self._unpack(k, tensors): self._unpack(v, tensors) for k, v in value["pairs"]}
            if self.records and "record" in value:
                return self._rebuild(value, tensors)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise WireError(f"no value: {error}") from None
        raise WireError("no value")

    def _rebuild(self, value: dict, tensors: list):
        """Make a dataclass of the package anew."""
        module, name = value["record"].split(":")
        if not module.startswith(PACKAGE):
            raise WireError(f"{module} is not of the package")
        kind = getattr(importlib.import_module(module), name)
        made = object.__new__(kind)  # as it was, without the checks of a constructor that may change it
        for field, x in value["fields"].items():
            object.__setattr__(made, field, self._unpack(x, tensors))
        return made


class Remote:
    """A function that lives on the other side."""

    def __init__(self, peer: Peer, index: int):
        self.peer, self.index = peer, index

    def __call__(self, *args, **kwargs):
        """Call it there."""
        return self.peer._ask({"handle": self.index}, args, kwargs)
