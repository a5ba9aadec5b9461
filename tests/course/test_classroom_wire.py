"""Between the student's process and the marker values come back as they were, and nothing else gets through."""

import contextlib
import socket
import struct
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minidalle.course.classroom.wire import ClosedError, Peer, RemoteError, WireError, receive, send
from minidalle.world.scenes import Object, Scene

SIMPLE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SIMPLE,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers() | st.text(), inner, max_size=4)
        | st.sets(st.integers(), max_size=4)
    ),
    max_leaves=12,
)


@contextlib.contextmanager
def connected(names: dict, shared: dict | None = None, **options):
    """Give the near end of a connection; the far end answers calls to these names."""
    near, far = socket.socketpair()
    shared = shared or {}
    peer = Peer(far, names, shared, **options)

    def serve():
        with contextlib.suppress(ClosedError):
            peer.serve()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Peer(near, {}, shared)
    finally:
        near.close()
        thread.join()
        far.close()


@given(VALUES)
def test_values_come_back_as_they_were(value):
    near, far = socket.socketpair()
    with near, far:
        sender, taker = Peer(near, {}, {}), Peer(far, {}, {})
        tensors = []
        assert taker._unpack(sender._pack(value, tensors), tensors) == value


def test_tensors_arrays_and_numbers_of_numpy_come_back():
    given_ = [torch.randn(2, 3, dtype=torch.float64), torch.tensor(True), torch.zeros(0), np.arange(3), np.float32(0.5)]
    given_ += [torch.ones(2, requires_grad=True), torch.randn(4, 4).T, np.array(["a", "b"])]
    with connected({"same": lambda *x: x}) as peer:
        back = peer.call("same", *given_)
    assert torch.equal(back[0], given_[0]) and back[0].dtype == torch.float64
    assert back[1].item() is True and back[2].shape == (0,) and back[3].tolist() == [0, 1, 2] and back[4] == 0.5
    assert not back[5].requires_grad and torch.equal(back[6], given_[6]) and back[7] == ["a", "b"]


def test_functions_stay_where_they_are_and_call_back():
    seen = []
    with connected({"twice": lambda model: lambda x: model(model(x))}) as peer:
        model = peer.call("twice", lambda x: seen.append(x) or 3 * x + 1)
        assert model(1) == 13 and seen == [1, 4]
        assert peer.call("twice", model)(0) == 40  # a function of the far side goes back to where it came from


def test_objects_of_the_lesson_travel_by_name_and_records_only_where_they_are_trusted():
    shared = {"head": torch.nn.Linear(2, 3), "number": 5}
    scene = Scene((Object("ring", "blue", "small", 0.0, 0.5),), "white")
    names = {"is_head": lambda x: x is shared["head"], "color": lambda s: s.objects[0].color, "make": lambda: scene}
    with connected(names, shared, records=True) as peer:
        assert peer.call("is_head", shared["head"]) is True
        assert peer.call("color", scene) == "blue"
        with pytest.raises(WireError, match="no value"):
            peer.call("make")


def test_what_goes_wrong_on_the_far_side_is_said_here():
    def loop():
        kept = []
        kept.append(kept)
        return kept

    names = {"fail": lambda: 1 / 0, "leave": lambda: exit(3), "object": lambda: object(), "loop": loop}
    with connected(names) as peer:
        for name, kind, said in (
            ("fail", "ZeroDivisionError", "division"), ("leave", "SystemExit", "3"), ("none", "NameError", "none"),
            ("object", "WireError", "of the kind object"), ("loop", "WireError", "too deep"),
        ):  # fmt: skip
            with pytest.raises(RemoteError, match=said) as caught:
                peer.call(name)
            assert caught.value.kind == kind


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">II", 4, 0) + b"nope",
        struct.pack(">II", 2, 0) + b"[]",
        struct.pack(">II", 2, 4) + b"{}" + b"abcd",
        struct.pack(">II", 2**31, 2**31),
        struct.pack(">II", 200_000, 0) + b"[" * 200_000,
    ],
    ids=["no JSON", "no dictionary", "no tensors", "too long", "too deep"],
)
def test_what_is_no_message_is_refused(data):
    near, far = socket.socketpair()
    with near, far:
        thread = threading.Thread(target=near.sendall, args=(data,))
        thread.start()
        with pytest.raises(WireError):
            receive(far)
        thread.join()


@pytest.mark.parametrize(
    "value",
    [{"tensor": 3}, {"yours": 0}, {"shared": "os"}, {"many": [], "kind": "exec"}, {"x": 1}, {"record": "os:system"}],
)
def test_what_is_no_value_is_refused(value):
    near, far = socket.socketpair()
    with near, far, pytest.raises(WireError):
        Peer(near, {}, {}, records=True)._unpack(value, [])


def test_a_closed_connection_is_told():
    near, far = socket.socketpair()
    near.close()
    with far, pytest.raises(ClosedError):
        send(far, {"a": "b" * 10})
        receive(far)
