"""Both ends of token streams: an instance that sends an event every 20 ms, and a reader that counts events.

python -m bench.peers.events serve HOST:PORT
python -m bench.peers.events read HOST:PORT REVISION STREAMS SECONDS   prints events, p50 and p99 of ms apart

The instance answers a queue-proxy's probe as well, so that activators send to it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import cast

import uvloop

PERIOD_S = 0.02
EVENT = (
    b'data: {"id":"cmpl-1","object":"text_completion","choices":[{"index":0,"text":" token"}]}'.ljust(
        171, b" "
    )
    + b"\n\n"
)
CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
PROBED = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nqueue"


class Instance(asyncio.Protocol):
    """Answers the first POST of a connection, however many pieces it comes in, with an endless stream."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.request = b""
        self.timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        self.request += data
        if self.request.startswith(b"GET "):
            if self.request.endswith(b"\r\n\r\n"):
                self.request = b""
                self.transport.write(PROBED)
        elif self.timer is None and b"{}" in self.request:
            self.transport.write(HEAD)
            self.send()

    def send(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(CHUNK)
            self.timer = asyncio.get_running_loop().call_later(PERIOD_S, self.send)

    def connection_lost(self, error: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()


class Reader(asyncio.Protocol):
    def __init__(self, revision: str, gaps: list[float]) -> None:
        self.revision = revision.encode()
        self.events = 0
        self.last = 0.0
        self.gaps = gaps

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(
            b"POST /v1/completions HTTP/1.1\r\nHost: bench\r\nKnative-Serving-Namespace: default\r\n"
            b"Knative-Serving-Revision: %s\r\nContent-Length: 2\r\n\r\n{}" % self.revision
        )

    def data_received(self, data: bytes) -> None:
        self.events += data.count(b"data: ")
        now = time.perf_counter()
        if self.last:
            self.gaps.append(now - self.last)
        self.last = now


async def serve(host: str, port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Instance, host, port, backlog=1024)
    await server.serve_forever()


async def read(host: str, port: int, revision: str, streams: int, seconds: float) -> None:
    gaps: list[float] = []
    readers = []
    for _ in range(streams):
        _, reader = await asyncio.get_running_loop().create_connection(
            lambda: Reader(revision, gaps), host, port
        )
        readers.append(reader)
        await asyncio.sleep(PERIOD_S / streams)
    await asyncio.sleep(seconds)
    if not gaps:
        sys.exit(f"no events came through port {port}")
    gaps.sort()
    events = sum(reader.events for reader in readers)
    print(events, gaps[len(gaps) // 2] * 1e3, gaps[len(gaps) * 99 // 100] * 1e3)


if __name__ == "__main__":
    at_host, _, at_port = sys.argv[2].rpartition(":")
    if sys.argv[1] == "serve":
        uvloop.run(serve(at_host, int(at_port)))
    else:
        uvloop.run(read(at_host, int(at_port), sys.argv[3], int(sys.argv[4]), float(sys.argv[5])))
