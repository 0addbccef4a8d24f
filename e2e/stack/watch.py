"""List and watch over asyncio, for the stack's own small parts (DNS, ingress stub, kubelet stand-in)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import sys
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp

from e2e.stack.place import ADMIN_TOKEN, API_SERVER, Place

Object = dict[str, Any]
#: Called with ("SET" | "GONE", object), again for objects that are there already after a lost watch.
Listener = Callable[[str, Object], None]
RETRY_S = 0.5
LEAVE_S = 30.0
TURN_S = 0.01


@contextlib.asynccontextmanager
async def session(place: Place) -> AsyncIterator[aiohttp.ClientSession]:
    """On exit nothing of it is open any more."""
    tls = ssl.create_default_context(cafile=str(place.certificates / "ca.crt"))
    sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def make(info: tuple[Any, ...]) -> socket.socket:
        made = socket.socket(*info[:3])
        sockets.add(made)
        return made

    try:
        async with aiohttp.ClientSession(
            API_SERVER,
            headers={"Authorization": f"Bearer {ADMIN_TOKEN}"},
            connector=aiohttp.TCPConnector(limit=0, ssl=tls, socket_factory=make),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            read_bufsize=1 << 24,
        ) as opened:
            yield opened
    finally:
        # A TLS connection takes leave of its peer first, after the session has ended.
        for _ in range(int(LEAVE_S / TURN_S)):
            if all(made.fileno() < 0 for made in sockets):
                break
            await asyncio.sleep(TURN_S)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def follow(client: aiohttp.ClientSession, path: str, listener: Listener) -> None:
    """For ever. `path` may carry a query. What goes while the watch is away is said to be gone at the next list."""
    known: dict[str, Object] = {}
    joint = "&" if "?" in path else "?"
    while True:
        try:
            async with client.get(path) as response:
                response.raise_for_status()
                listing = await response.json()
            listed = {obj["metadata"]["uid"]: obj for obj in listing["items"]}
            for uid in known.keys() - listed.keys():
                listener("GONE", known.pop(uid))
            for uid, obj in listed.items():
                known[uid] = obj
                listener("SET", obj)
            version = listing["metadata"]["resourceVersion"]
            async with client.get(f"{path}{joint}watch=1&resourceVersion={version}") as response:
                response.raise_for_status()
                async for line in response.content:
                    event = json.loads(line)
                    obj = event["object"]
                    if event["type"] == "ERROR":
                        say(f"watch of {path}: {obj.get('message')}")
                        break
                    if event["type"] == "DELETED":
                        known.pop(obj["metadata"]["uid"], None)
                        listener("GONE", obj)
                    else:
                        known[obj["metadata"]["uid"]] = obj
                        listener("SET", obj)
        except (OSError, aiohttp.ClientError, ValueError) as error:
            say(f"watch of {path}: {error!r}")
        await asyncio.sleep(RETRY_S)
