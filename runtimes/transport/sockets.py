"""Whole reads and writes on blocking sockets, without copies: recv_into the final place, sendmsg from the source.

The system calls release the interpreter's lock, which is why channels use threads. Every failure becomes a
ChannelError.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Sequence

from runtimes.transport.channel import ChannelError

_LENGTH = struct.Struct("<I")
_MAX_MESSAGE = 16 << 20
_MAX_VECTORS = 64
#: A machine that has gone without a word is noticed after some 25 s, also where nothing is sent.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


def read_into(source: socket.socket, view: memoryview) -> None:
    got = 0
    try:
        while got < len(view):
            count = source.recv_into(view[got:])
            if count == 0:
                raise ChannelError("closed", "the peer has closed the connection")
            got += count
    except TimeoutError as error:
        raise ChannelError("timeout", "no bytes in time") from error
    except OSError as error:
        raise ChannelError("closed", str(error)) from error


def read(source: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    read_into(source, memoryview(data))
    return data


def write(target: socket.socket, parts: Sequence[bytes | memoryview]) -> None:
    views = [memoryview(part).cast("B") for part in parts if len(part)]
    try:
        while views:
            sent = target.sendmsg(views[:_MAX_VECTORS])
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if sent:
                views[0] = views[0][sent:]
    except (TimeoutError, BlockingIOError) as error:
        raise ChannelError("timeout", "the peer takes no bytes") from error
    except OSError as error:
        raise ChannelError("closed", str(error)) from error


def read_message(source: socket.socket, most: int = _MAX_MESSAGE) -> bytes:
    (size,) = _LENGTH.unpack(read(source, _LENGTH.size))
    if size > most:
        raise ChannelError("protocol", f"a message of {size} bytes")
    return bytes(read(source, size))


def write_message(target: socket.socket, body: bytes) -> None:
    write(target, [_LENGTH.pack(len(body)), body])


def tune(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def limit_sends(connection: socket.socket, seconds: float) -> None:
    """Of a socket without a timeout, whose reads may take as long as they like."""
    whole, part = divmod(int(seconds * 1_000_000), 1_000_000)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", whole, part))


def wake(connection: socket.socket) -> None:
    """Ends it for a thread that is blocked on it, and leaves closing it to that thread."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def stop_reading(connection: socket.socket) -> None:
    """Wakes whoever waits for it to be readable; the peer isn't told."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)


def close(connection: socket.socket) -> None:
    """Wakes a thread that is blocked on it, then closes."""
    wake(connection)
    connection.close()
