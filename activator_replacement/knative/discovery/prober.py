"""Asks a pod's queue-proxy, or the queue-proxy behind a Service, whether it is ready.

GET /healthz with K-Network-Probe: queue over HTTP/1.1; ready is a 200 with the body "queue". The connection of a pod
that is ready is kept for its first request. What an answer means for the mesh is decided here, what follows from it
in core/knative/pods.py. In Knative: revisionWatcher.probe, networking's prober and IsPotentialMeshErrorResponse.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

from activator_replacement.plane import Plane
from activator_replacement.upstream import UpstreamProtocol, keep_alive
from kserve_ext.core.knative.pods import DENIED, OK, SILENT
from kserve_ext.wire.http1 import CHUNKED, Malformed, ResponseHead, scan_response
from kserve_ext.wire.http1_body import ChunkWalker

_READY: Final = b"queue"
#: No queue-proxy says more.
_MOST_BYTES: Final = 16_384


class Prober:
    def __init__(self, plane: Plane, timeout_s: float) -> None:
        self._plane = plane
        self._timeout_s = timeout_s
        #: Connections of those that weren't ready, for the next time they are asked.
        self._open: dict[str, _Probe] = {}

    async def probe(self, addr: str, mesh_host: str = "", *, keep: bool = False) -> int:
        """OK, DENIED or SILENT. `mesh_host`: ask a mesh to let it through, by this name; `keep`: the connection."""
        request = _request(mesh_host or addr, bool(mesh_host))
        probe = self._open.pop(addr, None)
        try:
            async with asyncio.timeout(self._timeout_s):
                if probe is None or probe.transport.is_closing():
                    probe = await self._connect(addr)
                answer = await probe.ask(request)
        except (TimeoutError, OSError):
            answer = SILENT
        if probe is not None:
            if not probe.reusable:
                probe.transport.abort()
            elif answer != OK:
                self._open[addr] = probe
                probe.lost = lambda: self._open.pop(addr, None)
            elif keep:
                self._give(addr, probe.transport)
            else:
                probe.transport.abort()
        return answer

    def close(self) -> None:
        for probe in self._open.values():
            probe.transport.abort()
        self._open.clear()

    async def _connect(self, addr: str) -> _Probe:
        host, _, port = addr.rpartition(":")
        loop = self._plane.loop
        _, probe = await loop.create_connection(lambda: _Probe(loop), host.strip("[]"), int(port))
        return probe

    def _give(self, addr: str, transport: asyncio.Transport) -> None:
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
    """A connection that asks, one question at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.transport = cast("asyncio.Transport", None)  # set before anything else is called
        self.reusable = False  # after the answer that came last
        self.lost: Callable[[], object] = bool  # called when the connection is gone
        self._loop = loop
        self._answer: asyncio.Future[int] | None = None
        self._data = b""

    def ask(self, request: bytes) -> asyncio.Future[int]:
        self.lost = bool
        self._answer = self._loop.create_future()
        self._data = b""
        self.reusable = False
        self.transport.write(request)
        return self._answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        keep_alive(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        self._data += data
        try:
            self._read()
        except Malformed:
            self._set(DENIED)
        if len(self._data) > _MOST_BYTES:
            self._set(DENIED)

    def eof_received(self) -> None:
        self.reusable = False
        self._set(SILENT)

    def connection_lost(self, error: Exception | None) -> None:
        self.reusable = False
        self._set(SILENT)
        self.lost()

    def _read(self) -> None:
        size = self._data.find(b"\r\n\r\n") + 4
        if size == 3:
            return
        head = scan_response(self._data, size, False)
        body = _body(head, self._data)
        if head.status == 200 and body is None:
            return
        self.reusable = head.keep_alive and body is not None and size + head.length == len(self._data)
        if head.status in (502, 503):  # a mesh's own, or a queue-proxy that isn't ready
            self._set(SILENT)
        else:
            self._set(OK if head.status == 200 and body == _READY else DENIED)

    def _set(self, answer: int) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)


def _body(head: ResponseHead, data: bytes) -> bytes | None:
    """None: not whole yet."""
    body = data[head.size :]
    if head.length == CHUNKED:
        if ChunkWalker().feed(body) < 0:
            return None
        return body.partition(b"\r\n")[2].partition(b"\r\n")[0]
    return body if len(body) >= max(head.length, 0) else None
