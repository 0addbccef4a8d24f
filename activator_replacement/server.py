"""The data plane's listeners and its end: one public port shared by all Dispatch functions, one port of its own.

Draining stops accepting, closes idle connections, lets exchanges finish (their answers say Connection: close)
and cuts off what is left at the end of its time. The admin port (metrics, checks, status) has nothing to do with
the request path; it goes on answering while the server drains, with /readyz saying so.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import secrets
import ssl
from collections.abc import Callable, Sequence
from typing import Any

import prometheus_client
from aiohttp import web

from activator_replacement import compiled
from activator_replacement.http1 import ClientProtocol
from activator_replacement.metrics import PlaneCollector
from activator_replacement.plane import Limits, Plane
from activator_replacement.seam import Dispatch
from activator_replacement.upstream import keep_alive

log = logging.getLogger(__name__)

Address = tuple[str, int]


class Server:
    """One process's data plane. `start` once, `drain` once."""

    def __init__(
        self,
        dispatch: Dispatch,
        limits: Limits | None = None,
        *,
        registry: prometheus_client.CollectorRegistry | None = None,
        status: Callable[[], dict[str, Any]] = dict,
        ready: Callable[[], str] = str,  # why it isn't, "" when it is
        client_type: type[ClientProtocol] = ClientProtocol,
        status_here_only: bool = False,
    ) -> None:
        """`status_here_only`: it is told to this machine alone (a pod: to kubectl port-forward)."""
        self._client_type = client_type
        self._dispatch = dispatch
        self._limits = limits or Limits()
        self._registry = registry or prometheus_client.CollectorRegistry()
        self._status = status
        self._status_here_only = status_here_only
        self._ready = ready
        self._listeners: list[asyncio.Server] = []
        self._admin: web.AppRunner | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event = asyncio.Event()
        self.plane: Plane

    def prepare(self) -> Plane:
        """Makes the plane, for those who need it before anybody can connect; start() does it otherwise."""
        loop = asyncio.get_running_loop()
        self.plane = Plane(
            loop, self._dispatch, self._limits, secrets.token_hex(4).encode(), self._client_type
        )
        self._registry.register(PlaneCollector(self.plane))
        return self.plane

    async def start(
        self, public: Sequence[Address], own: Address, admin: Address | None = None
    ) -> tuple[list[Address], Address, Address | None]:
        """Listens; the addresses in the same places, with the ports that were chosen for port 0."""
        if not hasattr(self, "plane"):
            self.prepare()
        publics = [await self.listen(address) for address in public]
        its_own = await self._listen(own, reuse_port=False)
        admins = await self._start_admin(admin) if admin is not None else None
        log.info("the request path is %s", compiled.form())
        self._tick()
        return publics, its_own, admins

    async def listen(self, public: Address, tls: ssl.SSLContext | None = None) -> Address:
        """One more public address, which other processes may listen on, too."""
        return await self._listen(public, reuse_port=True, tls=tls)

    async def _listen(
        self, address: Address, *, reuse_port: bool, tls: ssl.SSLContext | None = None
    ) -> Address:
        loop = asyncio.get_running_loop()
        plane = self.plane
        try:
            server = await loop.create_server(
                lambda: plane.client_type(plane), *address, reuse_port=reuse_port, backlog=4096, ssl=tls
            )
        except OSError as error:
            raise OSError(
                error.errno,
                f"can't listen on {address[0]}:{address[1]} ({error.strerror}): choose another port",
            ) from error
        self._listeners.append(server)
        for sock in server.sockets:
            keep_alive(sock)
        host, port = server.sockets[0].getsockname()[:2]
        return host, port

    def _tick(self) -> None:
        self.plane.sweep()
        if self.plane.draining and not self.plane.clients:
            self._empty.set()
        self._sweep = asyncio.get_running_loop().call_later(self._limits.tick_s, self._tick)

    async def drain(self, seconds: float) -> int:
        """Ends the server within about `seconds`; the number of clients that had to be cut off."""
        plane = self.plane
        plane.draining = True
        for listener in self._listeners:
            listener.close()
        for client in list(plane.clients):
            client.drain()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), seconds)
        cut = list(plane.clients)
        for client in cut:
            client.abort()
        await self.close()
        return len(cut)

    async def close(self) -> None:
        """At once; `drain` calls it."""
        for listener in self._listeners:
            listener.close()
        for client in list(self.plane.clients):
            client.abort()
        self.plane.cache.close()
        self.plane.http2_cache.close()
        if self._sweep is not None:
            self._sweep.cancel()
        if self._admin is not None:
            await self._admin.cleanup()

    # --- admin port

    async def _start_admin(self, address: Address) -> Address:
        app = web.Application()
        app.add_routes(
            [
                web.get("/metrics", self._get_metrics),
                web.get("/healthz", self._get_health),
                web.get("/readyz", self._get_ready),
                web.get("/status", self._get_status),
            ]
        )
        self._admin = web.AppRunner(app, access_log=None)
        await self._admin.setup()
        site = web.TCPSite(self._admin, *address)
        try:
            await site.start()
        except OSError as error:
            raise OSError(
                error.errno,
                f"can't listen on {address[0]}:{address[1]} ({error.strerror}): choose another admin port",
            ) from error
        host, port = self._admin.addresses[0][:2]
        return host, port

    async def _get_metrics(self, _: web.Request) -> web.Response:
        body = prometheus_client.generate_latest(self._registry)
        return web.Response(body=body, headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST})

    async def _get_health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _get_ready(self, _: web.Request) -> web.Response:
        reason = "draining" if self.plane.draining else self._ready()
        return web.Response(status=503 if reason else 200, text=f"{reason or 'ok'}\n")

    async def _get_status(self, request: web.Request) -> web.Response:
        if self._status_here_only and not _is_here(request.remote or ""):
            text = (
                "status names revisions and addresses, and is for this pod alone: use kubectl port-forward\n"
            )
            return web.Response(status=403, text=text)
        plane = self.plane
        counters = plane.counters
        return web.json_response(
            {
                "clients": len(plane.clients),
                "exchanges": sum(client.active for client in plane.clients),
                "requests": counters.requests,
                "responses": {str(status): count for status, count in sorted(counters.responses.items())},
                "upstream_idle": plane.cache.idle_count,
                "upstream_http2": plane.http2_cache.open_count,
                "draining": plane.draining,
                "form": compiled.form(),
                **self._status(),
            }
        )


def _is_here(remote: str) -> bool:
    try:
        address = ipaddress.ip_address(remote)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return bool((mapped or address).is_loopback)
