"""What marks cost the data plane: CPU of a token stream's events with them and without, sockets left out.

`python -m bench.continuation`: one thread's CPU time per event in the request path's own code, the best of several
rounds, in the form that runs (compiled where it was built, GALAXY_COMPILED=off for the sources). A write and a read
of a socket, which are the same in both, cost about 25 us more.
"""

from __future__ import annotations

# ruff: noqa: E402  the form is chosen before anything of it is imported
from activator_replacement import compiled

compiled.use()

import asyncio
import time
from collections.abc import Callable
from typing import Any

from activator_replacement.http1 import ClientProtocol
from activator_replacement.plane import Limits, Plane
from activator_replacement.static import StaticDispatch
from activator_replacement.upstream import UpstreamProtocol
from kserve_ext.core.ids import InstanceID

EVENTS = 20_000
ROUNDS = 7
EVENT = (
    b'data: {"id":"chatcmpl-4b5c6d7e-1f","object":"chat.completion.chunk","created":1790000000,"model":"llama",'
    b'"choices":[{"index":0,"delta":{"content":" river"},"logprobs":null,"finish_reason":null}]}\n\n'
)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n%btransfer-encoding: chunked\r\n\r\n"
REQUEST = b"POST /v1/%b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Nowhere(asyncio.Transport):
    """A transport that takes everything."""

    def write(self, data: Any) -> None:
        return

    def abort(self) -> None:
        return

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        return


class Continuing(StaticDispatch):
    """Every request goes to one connection that is at rest."""

    def __init__(self, continues: bool) -> None:
        super().__init__({"*": "i"})
        self.continues = continues

    def submit(self, exchange: Any) -> None:
        exchange.continues = self.continues
        exchange.go("i", InstanceID("i"))


def sides(continues: bool) -> tuple[ClientProtocol, UpstreamProtocol]:
    plane = Plane(asyncio.get_running_loop(), Continuing(continues), Limits(), b"b", ClientProtocol)
    client, upstream = ClientProtocol(plane), UpstreamProtocol(plane, "i")
    client.connection_made(Nowhere())
    upstream.connection_made(Nowhere())
    plane.cache.give(upstream)
    return client, upstream


def event(marked: bool, number: int) -> bytes:
    body = EVENT + (b": galaxy %d %d\n\n" % (number, number % 32_000) if marked else b"")
    return b"%x\r\n%b\r\n" % (len(body), body)


def stream(marked: bool, together: int) -> float:
    """Seconds of CPU per event."""
    client, upstream = sides(marked)
    client.data_received(REQUEST % b"chat/completions")
    upstream.data_received(HEAD % (b"x-galaxy-continuation: 1\r\n" if marked else b""))
    reads = [
        b"".join(event(marked, n) for n in range(at, at + together)) for at in range(0, EVENTS, together)
    ]
    began = time.thread_time()
    for data in reads:
        upstream.data_received(data)
    took = time.thread_time() - began
    upstream.data_received(b"0\r\n\r\n")
    return took / EVENTS


def request(path: bytes, continues: bool) -> float:
    """Seconds of CPU per request with an answer of two bytes."""
    client, upstream = sides(continues)
    sent, answer = REQUEST % path, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
    count = EVENTS // 4
    began = time.thread_time()
    for _ in range(count):
        client.data_received(sent)
        upstream.data_received(answer)
    return (time.thread_time() - began) / count


async def main() -> None:
    cases: dict[str, Callable[[], float]] = {}
    for together in (1, 8):
        for marked in (False, True):
            name = f"event, {together} a read, {'with' if marked else 'without'} marks"
            cases[name] = lambda marked=marked, together=together: stream(marked, together)  # type: ignore[misc]
    for path in (b"embeddings", b"completions"):
        for continues in (False, True):
            name = f"request for {path.decode()}, continuation {'on' if continues else 'off'}"
            cases[name] = lambda path=path, continues=continues: request(path, continues)  # type: ignore[misc]
    best = {name: min(case() for _ in range(ROUNDS)) for name, case in cases.items()}
    print(f"CPU in the request path's own code, {compiled.form()}, best of {ROUNDS}")
    for name, took in best.items():
        print(f"  {name:45} {took * 1e6:6.2f} us")


if __name__ == "__main__":
    asyncio.run(main())
