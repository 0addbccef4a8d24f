"""Two doors: HTTPS for the API server's reviews, plain HTTP for metrics and probes.

Health is of the process; readiness says that the API server may come: a certificate is shown that it trusts, and the
process is not about to end.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from autoscaler_shim.webhook.metrics import Metrics
from autoscaler_shim.webhook.settings import Settings
from kserve_ext.api import admission
from kserve_ext.rpc.mutual_tls import load_pair

log = logging.getLogger(__name__)

#: An object of etcd's largest, twice, and what is around them.
_LARGEST = 8 * 1024 * 1024
_END_S = 5.0


class Server:
    """`ready` is asked whenever somebody asks this."""

    def __init__(self, settings: Settings, ready: Callable[[], bool]) -> None:
        self._settings = settings
        self._ready = ready
        self.metrics = Metrics()
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_3
        self._runners: list[web.AppRunner] = []
        self.port = self.metrics_port = 0

    async def start(self) -> None:
        """Both doors; without a certificate a handshake fails."""
        reviews = web.Application(client_max_size=_LARGEST)
        reviews.router.add_post("/mutate", self._answering("mutate", admission.mutate))
        reviews.router.add_post("/validate", self._answering("validate", admission.validate))
        beside = web.Application()
        beside.router.add_get("/metrics", self._expose)
        beside.router.add_get("/healthz", self._healthy)
        beside.router.add_get("/readyz", self._readiness)
        self.port = await self._open(reviews, self._settings.port, self._tls)
        self.metrics_port = await self._open(beside, self._settings.metrics_port, None)

    async def stop(self) -> None:
        """What is under way is answered."""
        while self._runners:
            await self._runners.pop(0).cleanup()

    def show(self, certificate: bytes, key: bytes) -> None:
        """From the next handshake on. Raises ssl.SSLError."""
        load_pair(self._tls, certificate, key)
        self.metrics.certificate(certificate)

    # --- inside

    async def _open(self, app: web.Application, port: int, tls: ssl.SSLContext | None) -> int:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_END_S)
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, self._settings.host, port, ssl_context=tls).start()
        return int(runner.addresses[0][1])

    def _answering(
        self, door: str, judge: Callable[[admission.Request], admission.Answer]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            begun = time.perf_counter()
            try:
                asked = admission.read(msgspec.json.decode(await request.read()))
            except (admission.Malformed, msgspec.DecodeError) as error:
                self.metrics.malformed(door)
                return web.Response(status=400, text=f"{error}\n")
            answer = judge(asked)
            body = msgspec.json.encode(admission.response(asked.uid, answer))
            for problem in answer.problems:
                log.info("%s of %s is refused: %s", asked.operation, asked.title, problem)
            self.metrics.answered(door, asked, answer, time.perf_counter() - begun)
            return web.Response(body=body, content_type="application/json")

        return handle

    async def _expose(self, _: web.Request) -> web.Response:
        return web.Response(body=self.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _healthy(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readiness(self, _: web.Request) -> web.Response:
        if self._ready():
            return web.Response(text="ok\n")
        return web.Response(status=503, text="no certificate that the API server trusts, or about to end\n")
