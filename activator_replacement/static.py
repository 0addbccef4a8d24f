"""StaticDispatch: fixed routes from host names to addresses, without holding, slots or scaling.

`python -m activator_replacement.static LISTEN HOST=ADDR...` runs the data plane alone, for measuring it and
as a plain proxy; the functions of a cluster use dispatch.py.
"""

from __future__ import annotations

# ruff: noqa: E402  the form is chosen before anything of it is imported
from activator_replacement import compiled

compiled.use()

import asyncio
import signal
import sys

import uvloop

from activator_replacement.seam import Exchange, Refusal
from activator_replacement.server import Server
from kserve_ext.core.ids import InstanceID, RevisionKey


class StaticDispatch:
    def __init__(self, routes: dict[str, str]) -> None:
        """`routes`: host -> host:port; "*" takes every other host."""
        self._routes = {host.encode(): addr for host, addr in routes.items()}

    def resolve(self, host: bytes, namespace: bytes | None, revision: bytes | None) -> RevisionKey | Refusal:
        addr = self._routes.get(host) or self._routes.get(host.partition(b":")[0]) or self._routes.get(b"*")
        if addr is None:
            known = ", ".join(sorted(name.decode() for name in self._routes))
            return Refusal(404, f"no service has the host {host.decode('latin-1')!r}; known are {known}")
        return RevisionKey(addr)

    def submit(self, exchange: Exchange) -> None:
        exchange.go(exchange.revision, InstanceID(exchange.revision))

    def sent(self, exchange: Exchange) -> None: ...
    def first_byte(self, exchange: Exchange) -> None: ...
    def finished(self, exchange: Exchange, outcome: int) -> None: ...

    def failed(self, exchange: Exchange, reason: str, retriable: bool) -> bool:
        return False

    def full(self, exchange: Exchange) -> bool:
        return False

    def cancelled(self, exchange: Exchange) -> None: ...


async def _serve(routes: dict[str, str], listen: tuple[str, int]) -> None:
    server = Server(StaticDispatch(routes))
    _, (host, port), _ = await server.start([], listen)
    print(f"listening on {host}:{port}", flush=True)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await server.drain(10.0)


def main(routes: list[str], listen: str) -> None:
    """`routes`: HOST=ADDR each; `listen`: host:port. Runs until SIGTERM."""
    host, _, port = listen.rpartition(":")
    table = {name: addr for name, _, addr in (route.partition("=") for route in routes)}
    uvloop.run(_serve(table, (host, int(port))))


if __name__ == "__main__":
    main(sys.argv[2:], sys.argv[1])
