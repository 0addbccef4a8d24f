"""One HTTP/2 connection, prior knowledge, as an ingress keeps it: several streams at once, and what the server says.

Blocking: nothing is read or acknowledged but within `wait`. GOAWAY is kept from the h2 package, which would take the
connection for closed, streams that go on included.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Self

import h2.connection
import h2.events

from e2e.behaviours.client import INTERNAL_NAME, TLS_PORT
from e2e.behaviours.ingress import Backend

_READ_S = 0.1
_HEAD_BYTES = 9
_GOAWAY = 7


class Connection:
    """A context."""

    def __init__(self, backend: Backend, tls: ssl.SSLContext | None = None) -> None:
        """`tls`: to an activator's port for that."""
        self._backend = backend
        host, _, port = backend.address.rpartition(":")
        self._socket = socket.create_connection((host, TLS_PORT if tls else int(port)), timeout=10)
        if tls is not None:
            tls.set_alpn_protocols(["h2"])
            self._socket = tls.wrap_socket(self._socket, server_hostname=INTERNAL_NAME)
        self._socket.settimeout(_READ_S)
        self._h2 = h2.connection.H2Connection()
        #: By stream.
        self.data: defaultdict[int, bytes] = defaultdict(bytes)
        self.status: dict[int, int] = {}
        self.ended: set[int] = set()
        self.reset: set[int] = set()
        #: What the server's GOAWAY said: code and last stream; the first one counts.
        self.goaway: tuple[int, int] | None = None
        self.closed = False
        self._received = b""
        self._h2.initiate_connection()
        self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def request(self, method: str, path: str, end: bool = True) -> int:
        """The stream. `end`: there is no body."""
        stream = self._h2.get_next_available_stream_id()
        marks = {name.lower(): value for name, value in self._backend.headers.items()}
        authority = marks.pop("host")
        head = [(":method", method), (":scheme", "http"), (":authority", authority), (":path", path)]
        self._h2.send_headers(stream, [*head, *marks.items()], end_stream=end)
        self._flush()
        return stream

    def send(self, stream: int, data: bytes, end: bool = False) -> None:
        """No more than fits into the windows."""
        self._h2.send_data(stream, data, end_stream=end)
        self._flush()

    def wait(self, what: str, check: Callable[[], bool], seconds: float = 30) -> None:
        """Until `check` is true of what has come."""
        end = time.monotonic() + seconds
        while not check():
            if self.closed or time.monotonic() > end:
                raise TimeoutError(
                    f"{what}: {'the connection has ended' if self.closed else f'not within {seconds:.0f} s'}; "
                    f"status {self.status}, ended {self.ended}, reset {self.reset}, GOAWAY {self.goaway}"
                )
            self._receive()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(65_536)
        except TimeoutError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self.closed = True
            return
        self._received += data
        while (frame := self._frame()) is not None:
            if frame[3] == _GOAWAY:
                last, code = struct.unpack_from("!II", frame, _HEAD_BYTES)
                self.goaway = self.goaway or (code, last)
            else:
                for event in self._h2.receive_data(frame):
                    self._take(event)
        self._flush()

    def _frame(self) -> bytes | None:
        """The next one that is whole."""
        size = _HEAD_BYTES + int.from_bytes(self._received[:3])
        if len(self._received) < max(size, _HEAD_BYTES):
            return None
        frame, self._received = self._received[:size], self._received[size:]
        return frame

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            self.status[event.stream_id] = int(dict(event.headers)[b":status"])
        elif isinstance(event, h2.events.DataReceived):
            self.data[event.stream_id] += event.data
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            self.reset.add(event.stream_id)

    def _flush(self) -> None:
        if data := self._h2.data_to_send():
            self._socket.sendall(data)
