"""Both sides prove that they know the key before either says or does anything with a device."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from kserve_ext.cli.rdma.meeting import answer, call
from runtimes.transport.channel import ChannelError
from runtimes.transport.sockets import read_message, write_message
from runtimes.transport.verbs.side import Side

KEY = b"k" * 32


def side(device: str) -> Side:
    return Side(1, device, "ethernet", "ipv4", "::ffff:a08:3", 0, 4096, 16, (17, 1), (18, 2))


class Answering:
    """The listener's side, in a thread of its own."""

    def __init__(self, connection: socket.socket, key: bytes, failure: ChannelError | None = None) -> None:
        self.asked: list[Side] = []
        self.name = ""
        self.error: ChannelError | None = None
        self._failure = failure
        self._thread = threading.Thread(target=self._run, args=(connection, key))
        self._thread.start()

    def _run(self, connection: socket.socket, key: bytes) -> None:
        try:
            self.name = answer(connection, key, self._ready)
        except ChannelError as error:
            self.error = error

    def _ready(self, theirs: Side) -> Side:
        self.asked.append(theirs)
        if self._failure is not None:
            raise self._failure
        return side("far")

    def join(self) -> None:
        self._thread.join()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        yield near, far


def test_each_learns_of_the_other(ends: tuple[socket.socket, socket.socket]) -> None:
    far = Answering(ends[1], KEY)
    assert call(ends[0], KEY, "node-a", side("near")) == side("far")
    far.join()
    assert (far.name, far.asked) == ("node-a", [side("near")])


def test_another_key_is_refused_on_both_sides_before_a_device_is_touched(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    far = Answering(ends[1], KEY)
    with pytest.raises(ChannelError, match="another cluster key"):
        call(ends[0], b"x" * 32, "node-a", side("near"))
    far.join()
    assert far.error is not None
    assert far.error.reason == "unauthenticated"
    assert far.asked == []


def test_the_caller_hears_why_there_is_no_side(ends: tuple[socket.socket, socket.socket]) -> None:
    far = Answering(ends[1], KEY, ChannelError("device", "rxe0:1 has no link"))
    with pytest.raises(ChannelError, match="the peer: device: rxe0:1 has no link"):
        call(ends[0], KEY, "node-a", side("near"))
    far.join()
    assert far.error is not None


def test_what_was_changed_on_the_way_is_refused(ends: tuple[socket.socket, socket.socket]) -> None:
    inner, outer = socket.socketpair()
    with inner, outer:
        far = Answering(outer, KEY)
        refused: list[str] = []

        def near() -> None:
            try:
                call(ends[0], KEY, "node-a", side("near"))
            except ChannelError as error:
                refused.append(error.reason)

        caller = threading.Thread(target=near)
        caller.start()
        write_message(ends[1], read_message(inner))
        write_message(inner, read_message(ends[1]))
        write_message(ends[1], read_message(inner).replace(b"ethernet", b"infinite"))
        caller.join()
        far.join()
    assert refused == ["unauthenticated"]
    assert far.error is None


def test_somebody_else_at_the_port(ends: tuple[socket.socket, socket.socket]) -> None:
    write_message(ends[1], b"nonce")
    write_message(ends[1], b"HTTP/1.1 400 Bad Request")
    with pytest.raises(ChannelError, match="no `galaxy doctor rdma`"):
        call(ends[0], KEY, "node-a", side("near"))
