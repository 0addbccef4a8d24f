"""An instance's own count of the requests it serves: what would be one too many is refused before it has begun.

Slots are leased by a home. A Dispatch function on another machine that stands still has requests here beyond its
lease, and nobody hears from it; whoever has its slots by then comes on top. Only the instance sees both. A refusal
says `x-galaxy-full`: nothing was begun, and Dispatch holds the request again (docs/decisions/0041-*). A request ends
here when its last byte is handed on, which is before anybody can know, or when its client has gone; one of a client
that is noticed late is waited for before the next is refused.

Counted is what Dispatch sends, which always has an x-request-id: no probes.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

VARIABLE: Final = "GALAXY_CONCURRENCY"  # most requests at once, 0 = any number
#: A connection that is reset is noticed in the same turn of the loop or in the next; a machine may be busy.
GRACE_S: Final = 0.1

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Breaker:
    """An ASGI application around another."""

    def __init__(
        self, app: App, environ: Mapping[str, str] = os.environ, *, grace_s: float = GRACE_S
    ) -> None:
        """`environ` is read with each request: an engine may begin before it is known what it serves."""
        self.app = app
        self.in_flight = 0
        self._environ = environ
        self._grace_s = grace_s
        self._waiting: list[asyncio.Future[None]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = int(self._environ.get(VARIABLE) or 0)
        if not limit or not _counts(scope):
            await self.app(scope, receive, send)
        elif self.in_flight >= limit and not await self._place(limit):
            await _refuse(send, limit)
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.in_flight += 1
        open_ = True

        def end() -> None:
            nonlocal open_
            if open_:
                open_ = False
                self.in_flight -= 1
                free = next((f for f in self._waiting if not f.done()), None)
                if free is not None:
                    free.set_result(None)

        async def hears() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                end()
            return message

        async def says(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                end()
            await send(message)

        try:
            await self.app(scope, hears, says)
        finally:
            end()

    async def _place(self, limit: int) -> bool:
        """Whether one comes free in a moment."""
        until = asyncio.get_running_loop().time() + self._grace_s
        while self.in_flight >= limit:
            free = asyncio.get_running_loop().create_future()
            self._waiting.append(free)
            try:
                async with asyncio.timeout_at(until):
                    await free
            except TimeoutError:
                return False
            finally:
                self._waiting.remove(free)
        return True


def _counts(scope: Scope) -> bool:
    return (
        scope["type"] == "http"
        and not scope["path"].startswith("/galaxy/")
        and any(name == b"x-request-id" for name, _ in scope["headers"])
    )


async def _refuse(send: Send, limit: int) -> None:
    reason = (
        f"the instance serves {limit} requests already, which is the concurrency of its revision: try again"
    )
    body = json.dumps({"error": {"message": reason, "type": "overloaded", "code": 503}}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"retry-after", b"1"),
        (b"x-galaxy-full", b"1"),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
