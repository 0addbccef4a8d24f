"""Asks a pod's queue-proxy, or the queue-proxy behind a Service, whether it is ready.

GET /healthz with K-Network-Probe: queue over HTTP/1.1; ready is a 200 with the body "queue". The connection of a pod
that is ready is kept for its first request. What an answer means for the mesh is decided here, what follows from it
in core/pods.py. In Knative: revisionWatcher.probe, networking's prober and IsPotentialMeshErrorResponse.
"""

from __future__ import annotations

import asyncio
from typing import Final

from activator_replacement.plane import Plane
from activator_replacement.upstream import UpstreamProtocol
from kserve_ext.core.pods import DENIED, OK, SILENT
from kserve_ext.wire.http1 import CHUNKED, Malformed, ResponseHead, scan_response
from kserve_ext.wire.http1_body import ChunkWalker

_READY: Final = b"queue"
#: No queue-proxy says more.
_MOST_BYTES: Final = 16_384


class Prober:
    def __init__(self, plane: Plane, timeout_s: float) -> None:
        self._plane = plane
        self._timeout_s = timeout_s
        self.sent = 0

    async def probe(self, addr: str, mesh_host: str = "", *, keep: bool = False) -> int:
        """OK, DENIED or SILENT. `mesh_host`: ask a mesh to let it through, by this name; `keep`: the connection."""
        self.sent += 1
        loop = self._plane.loop
        host, _, port = addr.rpartition(":")
        transport = None
        try:
            async with asyncio.timeout(self._timeout_s):
                transport, protocol = await loop.create_connection(
                    lambda: _Probe(loop, _request(mesh_host or addr, bool(mesh_host))),
                    host.strip("[]"),
                    int(port),
                )
                answer, reusable = await protocol.answer
        except (TimeoutError, OSError):
            answer, reusable = SILENT, False
        if transport is not None:
            if answer == OK and keep and reusable and not transport.is_closing():
                self._keep(addr, transport)
            else:
                transport.abort()
        return answer

    def _keep(self, addr: str, transport: asyncio.Transport) -> None:
        upstream = UpstreamProtocol(self._plane, addr)
        transport.set_protocol(upstream)
        upstream.connection_made(transport)
        self._plane.cache.give(upstream)


def _request(host: str, passthrough: bool) -> bytes:
    lines = [
        "GET /healthz HTTP/1.1",
        f"Host: {host}",
        "User-Agent: Knative-Activator-Probe",
        "K-Network-Probe: queue",
    ]
    if passthrough:
        lines.append("K-Passthrough-Lb: true")
    return "\r\n".join([*lines, "", ""]).encode()


class _Probe(asyncio.Protocol):
    """`answer` becomes (answer, whether the connection can be used again)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, request: bytes) -> None:
        self.answer: asyncio.Future[tuple[int, bool]] = loop.create_future()
        self._request = request
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        try:
            self._read()
        except Malformed:
            self._set(DENIED, False)
        if len(self._data) > _MOST_BYTES:
            self._set(DENIED, False)

    def eof_received(self) -> None:
        self._set(SILENT, False)

    def connection_lost(self, error: Exception | None) -> None:
        self._set(SILENT, False)

    def _read(self) -> None:
        size = self._data.find(b"\r\n\r\n") + 4
        if size == 3:
            return
        head = scan_response(self._data, size, False)
        if head.status in (502, 503):  # a mesh's own, or a queue-proxy that isn't ready
            self._set(SILENT, False)
        elif head.status != 200:
            self._set(DENIED, False)
        else:
            body = _body(head, self._data)
            if body is not None:
                ready = body == _READY
                self._set(OK if ready else DENIED, ready and head.keep_alive)

    def _set(self, answer: int, reusable: bool) -> None:
        if not self.answer.done():
            self.answer.set_result((answer, reusable))


def _body(head: ResponseHead, data: bytes) -> bytes | None:
    """None: not whole yet."""
    body = data[head.size :]
    if head.length == CHUNKED:
        if ChunkWalker().feed(body) < 0:
            return None
        return body.partition(b"\r\n")[2].partition(b"\r\n")[0]
    return body if len(body) >= max(head.length, 0) else None
