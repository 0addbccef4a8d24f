"""A user of a Connection that writes down what it is told, and frames as a peer sends them."""

from __future__ import annotations

import hpack

from kserve_ext.wire.http2.connection import Connection
from kserve_ext.wire.http2.frames import (
    END_HEADERS,
    END_STREAM,
    FRAME_HEAD,
    HEADERS,
    PREFACE,
    SETTINGS,
    frame,
)
from kserve_ext.wire.http2.streams import Stream

REQUEST = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a")]


class Recorder:
    """Says at once that what came has gone on, unless `keep`."""

    def __init__(self, client: bool = False, keep: bool = False, **arguments: int) -> None:
        self.log: list[tuple[object, ...]] = []
        self.keep = keep
        self.bodies: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.streams: dict[int, Stream] = {}
        self.sent: dict[int, int] = {}
        self.connection = Connection(self, 0.0, client=client, **arguments)

    def opened(self, stream: Stream, block: bytes, end: bool) -> None:
        self.streams[stream.id] = stream
        self.log.append(("opened", stream.id, tuple(hpack.Decoder().decode(block)), end))

    def headers(self, stream: Stream, block: bytes, end: bool) -> None:
        self.log.append(("headers", stream.id, tuple(hpack.Decoder().decode(block)), end))

    def data(self, stream: Stream, payload: bytes, end: bool) -> None:
        self.bodies.setdefault(stream.id, bytearray()).extend(payload)
        if end:
            self.ended.add(stream.id)
        if not self.keep:
            self.connection.passed_on(stream, len(payload))

    def reset(self, stream: Stream, code: int) -> None:
        self.log.append(("reset", stream.id, code))

    def drained(self, stream: Stream, size: int) -> None:
        self.sent[stream.id] = self.sent.get(stream.id, 0) + size

    def went_away(self, unprocessed: list[Stream], code: int) -> None:
        self.log.append(("went_away", [stream.id for stream in unprocessed], code))

    def wake(self) -> None: ...

    def receive(self, data: bytes, now: float = 0.0) -> None:
        self.connection.receive(data, now)

    def out(self) -> bytes:
        """As a transport that takes everything."""
        data = b""
        while self.connection.out:
            data += b"".join(self.connection.out)
            self.connection.out.clear()
            self.connection.flushed()
        return data

    def frames(self) -> list[tuple[int, int, int, bytes]]:
        return parse(self.out())


def parse(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """(kind, flags, stream, payload)"""
    found = []
    if data.startswith(PREFACE):
        data = data[len(PREFACE) :]
    while data:
        upper, length, kind, flags, number = FRAME_HEAD.unpack_from(data)
        end = 9 + (upper << 16 | length)
        found.append((kind, flags, number, data[9:end]))
        data = data[end:]
    return found


def server(**arguments: int) -> Recorder:
    """A server that has read the preface and a client's SETTINGS."""
    recorder = Recorder(False, False, **arguments)
    recorder.receive(PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, 1, 0))
    recorder.out()
    return recorder


def head(number: int, *, end: bool = False, pairs: list[tuple[str, str]] = REQUEST) -> bytes:
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    flags = END_HEADERS | (END_STREAM if end else 0)
    return frame(HEADERS, flags, number, encoder.encode(pairs))
