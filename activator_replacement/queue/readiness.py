"""Asks the user's server whether it is ready, as its probe says; who asks meanwhile shares the answer.

In Knative: pkg/queue/readiness/probe.go, pkg/queue/health/probe.go.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import Callable

from activator_replacement.queue import health
from kserve_ext.core.queue.probing import POLL_S, RETRY_S, Asking

_READ_BYTES = 65_536


class Readiness:
    def __init__(self, askings: tuple[Asking, ...]) -> None:
        self._askings = askings
        self._run: asyncio.Task[bool] | None = None
        self._waiting: list[Callable[[bool], None]] = []

    def ask(self, answer: Callable[[bool], None]) -> None:
        """`answer` is called later, once, unless `close` is."""
        self._waiting.append(answer)
        if self._run is None:
            self._run = asyncio.get_running_loop().create_task(self._all())
            self._run.add_done_callback(self._done)

    def close(self) -> None:
        """Nobody is ready any more."""
        if self._run is not None:
            self._run.cancel()
        self._answer(False)

    def _done(self, run: asyncio.Task[bool]) -> None:
        self._run = None
        self._answer(not run.cancelled() and run.exception() is None and run.result())

    def _answer(self, ready: bool) -> None:
        waiting = self._waiting
        self._waiting = []
        for answer in waiting:
            answer(ready)

    async def _all(self) -> bool:
        found = await asyncio.gather(*(_asked(asking) for asking in self._askings))
        return all(found)


async def _asked(asking: Asking) -> bool:
    if not asking.aggressive:
        return await _attempt(asking)
    loop = asyncio.get_running_loop()
    until = loop.time() + POLL_S
    row = 0
    while True:
        row = row + 1 if await _attempt(asking) else 0
        if row >= asking.successes:
            return True
        if loop.time() >= until:
            return False
        await asyncio.sleep(RETRY_S)


async def _attempt(asking: Asking) -> bool:
    try:
        async with asyncio.timeout(asking.timeout_s):
            tls = _unverified() if asking.tls else None
            reader, writer = await asyncio.open_connection(asking.host, asking.port, ssl=tls)
            try:
                if asking.grpc is not None:
                    return await health.serving(reader, writer, f"{asking.host}:{asking.port}", asking.grpc)
                return asking.path is None or await _get(asking, reader, writer)
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False


@functools.cache
def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _get(asking: Asking, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    fields = {"Host": f"{asking.host}:{asking.port}", "User-Agent": "kube-probe/1.0"}
    for name, value in asking.headers:
        fields["Host" if name.lower() == "host" else name] = value
    fields["Connection"] = "close"
    head = [f"GET {asking.path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    writer.write("\r\n".join(head).encode())
    words = (await reader.read(_READ_BYTES)).split(None, 2)
    return len(words) > 1 and words[0].startswith(b"HTTP/") and b"200" <= words[1] < b"400"
