"""Where activators and other autoscaler replicas bring their statistics: websockets on any path of port 8080.

Behaves as pkg/autoscaler/statserver: the kubelet is answered without an upgrade, whoever comes by way of a bucket's
Service that this replica doesn't hold is sent away, text is ignored, pings are answered, and on shutdown clients
are told to come again elsewhere (close code 1012). A message that is no protobuf costs its sender nothing but a
line in the log.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Collection, Mapping

from aiohttp import WSMsgType, web

from autoscaler_shim.knative.stats.forwarder import Revision
from kserve_ext.core.knative.buckets import bucket_of_host
from kserve_ext.rpc.listener import Listener
from kserve_ext.rpc.mutual_tls import Identity
from kserve_ext.wire.stats import MAX_MESSAGE_BYTES, Malformed, StatMessage, decode

log = logging.getLogger(__name__)

PORT = 8080
SERVICE_RESTART = 1012
SHUTDOWN_S = 5.0
KEEP_ALIVE_S = 180


class StatServer:
    def __init__(
        self,
        received: Callable[[list[StatMessage]], None],
        holds: Callable[[str], bool],
        ready: Callable[[], bool],
        hung_up: Callable[[Mapping[str, Collection[Revision]]], object],
        identity: Identity | None = None,
    ) -> None:
        """`holds`: is this bucket ours; `ready`: may the kubelet send us clients; `hung_up` is told by which pods
        statistics have come on a connection that has ended, and for which revisions they had something to say of
        late; `identity`: for mutual TLS."""
        self._received = received
        self._holds = holds
        self._ready = ready
        self._hung_up = hung_up
        self._identity = identity
        self._listener: Listener | None = None
        self._clients: set[web.WebSocketResponse] = set()
        self._runner: web.AppRunner | None = None
        self._complained: set[str] = set()
        self.taken = 0
        self.malformed = 0
        self.port = 0

    async def start(self, host: str | None = None, port: int = PORT) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
        await self._runner.setup()
        if self._identity is None:
            await web.TCPSite(self._runner, host, port, reuse_address=True).start()
            self.port = self._runner.addresses[0][1]
            return
        assert self._runner.server is not None
        # The kubelet's probes are plain: who gets what is decided by request.
        self._listener = Listener(self._runner.server, self._identity, plain=True)
        self.port = self._listener.start(host, port)[1]

    async def stop(self) -> None:
        """Sends all clients away, then closes. Clients that don't answer are left after SHUTDOWN_S."""
        if self._runner is None:
            return
        for site in list(self._runner.sites):
            await site.stop()
        if self._listener is not None:
            self._listener.close()
        goodbyes = [ws.close(code=SERVICE_RESTART, message=b"Restarting") for ws in tuple(self._clients)]
        if goodbyes:
            await asyncio.wait([asyncio.ensure_future(bye) for bye in goodbyes], timeout=SHUTDOWN_S)
        await self._runner.cleanup()
        self._runner = None

    @property
    def clients(self) -> int:
        return len(self._clients)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("User-Agent", "").startswith("kube-probe/") or request.headers.get(
            "K-Kubelet-Probe"
        ):
            if self._ready():
                return web.Response()
            return web.Response(status=503, text="waiting for the API server: nothing is known yet\n")
        if self._identity is not None and not request.secure:
            peer = request.remote or "somebody"
            if not self._identity.allows_plain(peer, "brings statistics without TLS"):
                return web.Response(status=403, text="statistics are brought with mutual TLS\n")
        bucket = bucket_of_host(request.host)
        if bucket is not None and not self._holds(bucket):
            log.info("%s came for bucket %s, which is not ours", request.remote, bucket)
            return web.Response()
        ws = web.WebSocketResponse(max_msg_size=MAX_MESSAGE_BYTES, compress=False)
        if not ws.can_prepare(request):
            return web.Response(status=400, text="statistics are brought over a websocket\n")
        _keep_alive(request)
        try:
            await ws.prepare(request)
        except ConnectionResetError:
            log.info("%s left before it brought statistics", request.remote)
            return web.Response()
        self._clients.add(ws)
        log.info("%s brings statistics", request.remote)
        brought: dict[str, set[Revision]] = {}
        try:
            async for message in ws:
                if message.type is WSMsgType.BINARY:
                    for told in self._take(message.data, request.remote or ""):
                        _note(brought, told)
                else:
                    self._complain(request.remote or "", "text", "not binary, dropped")
        finally:
            self._clients.discard(ws)
            self._hung_up(brought)
        return ws

    def _take(self, data: bytes, peer: str) -> list[StatMessage]:
        """What it says."""
        try:
            messages = decode(data)
        except Malformed as why:
            self.malformed += 1
            self._complain(peer, "malformed", f"no WireStatMessages ({why}); is it an activator of Knative?")
            return []
        self.taken += 1
        if messages:
            self._received(messages)
        return messages

    def _complain(self, peer: str, kind: str, what: str) -> None:
        """Once for each peer and kind: a peer that is wrong is so every second."""
        if f"{peer} {kind}" not in self._complained and len(self._complained) < 1000:
            self._complained.add(f"{peer} {kind}")
            log.error("statistics from %s: %s", peer, what)


def _note(brought: dict[str, set[Revision]], told: StatMessage) -> None:
    """Connections last longer than revisions: those that nothing is said of any more are forgotten."""
    revisions = brought.setdefault(told.stat.pod_name, set())
    if told.stat.average_concurrent_requests or told.stat.request_count:
        revisions.add((told.namespace, told.name))
    else:
        revisions.discard((told.namespace, told.name))


def _keep_alive(request: web.Request) -> None:
    """A client whose node vanished is noticed after minutes, not hours."""
    transport = request.transport
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_S)
