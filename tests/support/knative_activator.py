"""An activator on loopback: a fake API server, pods with a queue-proxy of a kind, an autoscaler that listens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiohttp import WSMsgType, web

from activator_replacement.knative.activator import Activator
from activator_replacement.knative.settings import Settings, read
from kserve_ext.api.knative.endpoints import PRIVATE, PUBLIC, SERVICE_TYPE, SLICE_OF
from kserve_ext.api.knative.revision import REVISION_LABEL
from kserve_ext.kube.kinds import CONFIG_MAPS, ENDPOINT_SLICES, ENDPOINTS, REVISIONS
from kserve_ext.wire.stats import StatMessage, decode
from tests.support.api_server import ApiServer
from tests.support.dataplane import Serve, instance, read_request

NAMESPACE = "default"
ME = "127.0.0.1"


def settings(**environ: str) -> Settings:
    ports = dict.fromkeys(("GALAXY_HTTP1_PORT", "GALAXY_HTTP2_PORT", "GALAXY_METRICS_PORT"), "0")
    return read(
        {
            "POD_NAME": "act-0",
            "POD_IP": ME,
            "CLUSTER_DOMAIN": "cluster.local",
            "PROBE_FREQUENCY": "20ms",
            "PROBE_TIMEOUT": "2s",
            "GALAXY_DRAIN": "0s",
            "GALAXY_GRACE": "20s",
            "GALAXY_ENDPOINTS": "endpoints",
            **ports,
            **environ,
        }
    )


def put_config(api: ApiServer, **network: str) -> None:
    data = {name.replace("_", "-"): value for name, value in network.items()}
    api.put(
        CONFIG_MAPS, {"metadata": {"namespace": "knative-serving", "name": "config-network"}, "data": data}
    )


def put_revision(
    api: ApiServer, name: str, *, annotations: dict[str, str] | None = None, **spec: Any
) -> None:
    spec.setdefault("containers", [{"image": "x"}])
    labels = {"serving.knative.dev/service": "hello", "serving.knative.dev/configuration": "hello"}
    metadata = {"namespace": NAMESPACE, "name": name, "labels": labels, "annotations": annotations or {}}
    api.put(REVISIONS, {"metadata": metadata, "spec": {"timeoutSeconds": 300, **spec}})


def put_endpoints(
    api: ApiServer, name: str, ready: list[str], not_ready: list[str] | None = None, *, public: bool = False
) -> None:
    """`ready`, `not_ready`: host:port, one subset each, since the ports differ on loopback."""
    subsets = []
    for field, addresses in (("addresses", ready), ("notReadyAddresses", not_ready or [])):
        for addr in addresses:
            host, _, port = addr.rpartition(":")
            subsets.append({field: [{"ip": host}], "ports": [{"name": "http", "port": int(port)}]})
    api.put(ENDPOINTS, {"metadata": _metadata(name, public), "subsets": subsets})


def put_slice(
    api: ApiServer, name: str, ready: list[str], not_ready: list[str], *, public: bool = False
) -> None:
    """One slice an address, for the same reason; those that there were and aren't named keep nothing."""
    metadata = _metadata(name, public)
    for at, addr in enumerate([*ready, *not_ready]):
        host, _, port = addr.rpartition(":")
        api.put(
            ENDPOINT_SLICES,
            {
                "metadata": {
                    **metadata,
                    "name": f"{metadata['name']}-{at}",
                    "labels": {**metadata["labels"], SLICE_OF: metadata["name"]},
                },
                "addressType": "IPv4",
                "ports": [{"name": "http", "port": int(port)}],
                "endpoints": [{"addresses": [host], "conditions": {"ready": addr in ready}}],
            },
        )


def _metadata(name: str, public: bool) -> dict[str, Any]:
    return {
        "namespace": NAMESPACE,
        "name": name if public else f"{name}-private",
        "labels": {REVISION_LABEL: name, SERVICE_TYPE: PUBLIC if public else PRIVATE},
    }


class Pod:
    """A queue-proxy: answers probes as told, and serves what is no probe."""

    def __init__(self, serve: Serve | None = None, *, ready: bool = True) -> None:
        self.ready = ready
        self.addr = ""
        self.probes = 0
        self.connections = 0
        self.heads: list[bytes] = []
        self.in_flight = self.most_in_flight = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.changed = asyncio.Event()
        self._serve = serve

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            head, body = await read_request(reader)
            if b"Knative-Activator-Probe" in head:
                assert b"\r\nK-Network-Probe: queue\r\n" in head
                self.probes += 1
                self.changed.set()
                writer.write(_response(200, b"queue") if self.ready else _response(503, b""))
                continue
            self.heads.append(head)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            self.changed.set()
            try:
                await self.gate.wait()
                if self._serve is not None:
                    await self._serve(reader, writer)
                    return
                writer.write(_response(200, body or b"hello"))
            finally:
                self.in_flight -= 1

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()


def _response(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


@contextlib.asynccontextmanager
async def running(pod: Pod) -> AsyncIterator[Pod]:
    async with instance(pod) as addr:
        pod.addr = addr
        yield pod


class Autoscaler:
    """The stat server: keeps what it is sent."""

    def __init__(self) -> None:
        self.batches: list[list[StatMessage]] = []
        self.sockets: list[web.WebSocketResponse] = []
        self.connections = 0
        self.changed = asyncio.Event()
        self.url = ""
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def __aenter__(self) -> Autoscaler:
        await self.up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.down()

    async def up(self) -> None:
        app = web.Application()
        app.router.add_get("/", self._accept)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, ME, self._port).start()
        self._port = self._runner.addresses[0][1]
        self.url = f"ws://{ME}:{self._port}"

    async def down(self) -> None:
        if self._runner is not None:
            for socket in self.sockets:
                await socket.close(code=1012)
            self.sockets.clear()
            await self._runner.cleanup()
            self._runner = None

    async def _accept(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(timeout=0.5)
        await socket.prepare(request)
        self.sockets.append(socket)
        self.connections += 1
        self.changed.set()
        async for message in socket:
            if message.type is WSMsgType.BINARY:
                self.batches.append(decode(message.data))
                self.changed.set()
        return socket

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    def told(self, name: str) -> list[tuple[float, float]]:
        """(concurrency, count) of a revision, message by message."""
        return [
            (m.stat.average_concurrent_requests, m.stat.request_count)
            for batch in self.batches
            for m in batch
            if m.name == name
        ]


@contextlib.asynccontextmanager
async def activator(
    api: ApiServer, autoscaler: Autoscaler | None = None, **environ: str
) -> AsyncIterator[Activator]:
    environ.setdefault("GALAXY_AUTOSCALER", autoscaler.url if autoscaler else f"ws://{ME}:1")
    client = api.client()
    made = Activator(settings(**environ), client)
    try:
        await made.start()
        yield made
    finally:
        await made.close()
        await client.close()
