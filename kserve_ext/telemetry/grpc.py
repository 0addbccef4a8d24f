"""One gRPC call with one message each way, on a connection of its own: as much of gRPC as an exporter needs.

For calls that are made every few seconds, and whose answer is looked at for its status only. In the specification:
github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
import urllib.parse
from typing import Final, cast

from yarl import URL

from kserve_ext.wire.http1 import Malformed
from kserve_ext.wire.http2.connection import Connection
from kserve_ext.wire.http2.fields import fields, walk
from kserve_ext.wire.http2.frames import Violation
from kserve_ext.wire.http2.hpack import literal
from kserve_ext.wire.http2.streams import Stream

_PORTS: Final = {"http": 80, "https": 443}


async def call(target: URL, method: str, message: bytes, tls: ssl.SSLContext | None = None) -> str:
    """`method`: /package.Service/Name. What went wrong, "" when nothing did; raises OSError. `tls`: for https."""
    loop = asyncio.get_running_loop()
    if target.scheme == "https":
        tls = tls or ssl.create_default_context()
        tls.set_alpn_protocols(["h2"])
    else:
        tls = None
    port = target.port or _PORTS[target.scheme]
    one = _Call(loop, target, method, message)
    transport, _ = await loop.create_connection(lambda: one, target.host or "", port, ssl=tls)
    try:
        return await one.done
    finally:
        transport.close()


class _Call(asyncio.Protocol):
    """The connection's protocol, and what its Connection calls."""

    def __init__(self, loop: asyncio.AbstractEventLoop, target: URL, method: str, message: bytes) -> None:
        self.done: asyncio.Future[str] = loop.create_future()
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._connection = Connection(self, loop.time(), client=True)
        block = b"".join(
            literal(name.encode(), value.encode())
            for name, value in (
                (":method", "POST"),
                (":scheme", target.scheme),
                (":path", method),
                (":authority", target.host_port_subcomponent or ""),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
                ("user-agent", "kserve-galaxy"),
            )
        )
        stream = self._connection.begin(self, block, False)
        self._connection.send_data(stream, struct.pack(">BI", 0, len(message)) + message, True)

    # --- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.wake()

    def data_received(self, data: bytes) -> None:
        try:
            self._connection.receive(data, self._loop.time())
        except (Violation, Malformed) as error:
            self._end(f"does not speak gRPC: {error}")
        self.wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._end(f"broke the connection: {error}" if error else "closed the connection")

    # --- what the connection read

    def opened(self, stream: Stream, block: bytes, end: bool) -> None:
        """Servers begin none."""

    def headers(self, stream: Stream, block: bytes, end: bool) -> None:
        walk(block)
        found = {field.name: field.value for field in fields(block)}
        http = found.get(b":status", b"200")
        status = found.get(b"grpc-status")
        if status is not None:
            said = urllib.parse.unquote(found.get(b"grpc-message", b"").decode("latin-1"))
            self._end("" if status == b"0" else f"answered gRPC status {status.decode('latin-1')}: {said}")
        elif http != b"200" or end:
            self._end(f"answered HTTP status {http.decode('latin-1')} without one of gRPC")

    def data(self, stream: Stream, payload: bytes, end: bool) -> None:
        self._connection.passed_on(stream, len(payload))
        if end:
            self._end("ended its answer without a status")

    def reset(self, stream: Stream, code: int) -> None:
        self._end(f"reset the call (error {code})")

    def drained(self, stream: Stream, size: int) -> None:
        """Windows are the connection's business."""

    def went_away(self, unprocessed: list[Stream], code: int) -> None:
        if unprocessed:
            self._end(f"goes away (error {code})")

    def wake(self) -> None:
        transport, connection = self._transport, self._connection
        if transport is not None and connection.out and not transport.is_closing():
            transport.write(b"".join(connection.out))
            connection.out.clear()
            connection.flushed()

    def _end(self, problem: str) -> None:
        if not self.done.done():
            self.done.set_result(problem)
