"""Leases of this prefill engine that are requests: where Knative counts requests, and nobody counts slots.

A decode engine asks for one through an activator, as for any request of this service, so that it is demand on the
service: it wakes it, scales it and takes one of its slots for as long as the answer is open. The first line says
which instance it is; the answer ends when the lease is given back, or with the connection.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PATH: Final = "/galaxy/lease"
_BACK: Final = PATH + "/"


def lease_of(path: str) -> str:
    """Which lease is given back by a request to this path; "" = none."""
    return path.removeprefix(_BACK) if path.startswith(_BACK) else ""


class GivenLeases:
    """`facts`: this instance, for whoever is to use it."""

    def __init__(self, facts: Callable[[], dict[str, Any]]) -> None:
        self._facts = facts
        self._open: dict[str, asyncio.Event] = {}

    @property
    def open(self) -> int:
        return len(self._open)

    async def hold(self, receive: Receive, send: Send) -> None:
        """Answers one request for a lease, to its end."""
        lease = secrets.token_hex(8)
        back = self._open[lease] = asyncio.Event()
        try:
            line = json.dumps({"lease": lease, **self._facts()}).encode() + b"\n"
            head = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store")]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            await send({"type": "http.response.body", "body": line, "more_body": True})
            if await _first(back.wait(), _gone(receive)) == 0:
                await send({"type": "http.response.body", "body": b""})
        finally:
            del self._open[lease]

    def end(self, lease: str) -> bool:
        """Given back; False: there is none such, or no longer."""
        back = self._open.get(lease)
        if back is not None:
            back.set()
        return back is not None


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first(*waits: Awaitable[Any]) -> int:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    return next(number for number, task in enumerate(tasks) if task in done)
