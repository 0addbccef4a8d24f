"""An activator in one process: Dispatch, its data plane, backends, reports and the watches that feed them.

Starts listening only when it knows every revision and its addresses, so that nothing is refused for want of a list.
It ends as Knative's does: probes fail at SIGTERM, everything is served for the drain time, then what is under way,
upgraded connections included, is waited for within the grace. In Knative: cmd/activator/main.go.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import prometheus_client

from activator_replacement.knative.client import KnativeClient
from activator_replacement.knative.discovery.backends import Backends
from activator_replacement.knative.discovery.endpoints import EndpointWatch, may_read_slices
from activator_replacement.knative.discovery.prober import Prober
from activator_replacement.knative.dispatcher import Dispatcher
from activator_replacement.knative.reports.metrics import ActivatorCollector
from activator_replacement.knative.reports.observing import Observing
from activator_replacement.knative.reports.reporter import PERIOD_S, Reporter
from activator_replacement.knative.reports.stat_sink import StatSink
from activator_replacement.knative.settings import Settings
from activator_replacement.knative.sharing.neighbourhood import Neighbourhood
from activator_replacement.knative.tls import InternalTls, enabled
from activator_replacement.plane import Limits
from activator_replacement.server import Address, Server
from kserve_ext.api.knative.config import log_level, network
from kserve_ext.api.knative.revision import kept, read
from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.knative.activation import Room
from kserve_ext.core.knative.pods import Rules
from kserve_ext.kube.client import Client, NotFound, Unavailable
from kserve_ext.kube.config_map import at_start, in_force
from kserve_ext.kube.identity import SecretIdentity
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import CONFIG_MAPS, REVISIONS
from kserve_ext.rpc.background import kept_up
from kserve_ext.telemetry.api_client import ApiClient
from kserve_ext.telemetry.target import Target
from kserve_ext.telemetry.telemetry import resource

log = logging.getLogger(__name__)

UNHEALTHY: Final = "received SIGTERM from kubelet"
START_S: Final = 60.0
STALL_S: Final = 600.0
_NEVER: Final = float("inf")


def limits(settings: Settings) -> Limits:
    """Clients are ingresses, whose connections are kept; how long a request may take is the revision's to say.

    What is left of a response that has ended is kept for a client that doesn't read as long as a request may take by
    default at most (max-revision-timeout-seconds).

    Heads may be as large as Go's default has them.
    """
    return Limits(
        head_bytes=1 << 20,
        head_timeout_s=60.0,
        idle_timeout_s=_NEVER,
        stall_timeout_s=STALL_S,
        connect_timeout_s=2.0,
        upstream_idle_s=90.0,
        upstream_idle=settings.idle_connections,
        upstream_idle_per_instance=settings.idle_connections_per_pod,
    )


class Activator:
    """`start` once, then `end` once."""

    def __init__(self, settings: Settings, client: Client) -> None:
        loop = asyncio.get_running_loop()
        self.settings = settings
        self.client = client
        #: For mutual TLS with other parts of ours; None: it is off.
        self.identity: SecretIdentity | None = None
        if settings.mutual_tls != "off":
            self.identity = SecretIdentity(client, settings.namespace, settings.mutual_tls)
        identity = self.identity.identity if self.identity is not None else None
        self.sink = StatSink(settings.autoscaler, self._report, identity)
        self.reporter = Reporter(settings.pod_name, self.sink.send)
        self.dispatcher = Dispatcher(
            loop,
            self.reporter,
            settings.domain,
            settings.held_requests,
            Room(settings.held_bytes),
            random.random,
        )
        registry = prometheus_client.CollectorRegistry()
        target = resource("activator", settings.pod_name, settings.namespace)
        registry.register(Target(target))
        registry.register(ApiClient(client.session))
        registry.register(ActivatorCollector(self.dispatcher, self.sink))
        self.server = Server(
            self.dispatcher,
            limits(settings),
            registry=registry,
            status=self.status,
            client_type=KnativeClient,
            status_here_only=True,
        )
        self.observing = Observing(
            self.dispatcher,
            registry,
            target,
            settings.everywhere,
            settings.profiling_port,
        )
        self.neighbourhood = Neighbourhood(settings, client, self.dispatcher, identity)
        self._log_level = logging.INFO
        self.backends: Backends
        self.prober: Prober
        #: Where it listens, once it does.
        self.http1: Address
        self.http2: Address
        self.metrics: Address | None
        self.https: Address | None = None
        self._tls: InternalTls | None = None
        self._informers: list[Informer] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Returns when every port is open."""
        settings, client = self.settings, self.client
        config = await self._config("config-network")
        if self.identity is not None:
            await self.identity.start()
        self._observability_changed(await self._config(settings.observability_config))
        plane = self.server.prepare()
        mesh = at_start(f"{settings.namespace}/config-network", config, network)
        tls = self._tls = InternalTls(client, settings.namespace) if enabled(config) else None
        if tls is not None:
            await tls.start()
            plane.cache.tls = tls.http1
            plane.http2_cache.encrypt(tls.http2)
            self.dispatcher.secure = tls.address
        slices = settings.endpoints == "endpointslices" or (
            settings.endpoints == "auto" and await may_read_slices(client)
        )
        endpoints = EndpointWatch(client, settings.family, self._endpoints_changed, slices=slices)
        self.prober = Prober(plane, settings.probe_timeout_s)
        self.backends = Backends(
            client,
            endpoints,
            self.prober,
            self.dispatcher,
            Rules(mesh.mesh, mesh.passthrough, every_s=settings.probe_every_s),
            settings.pod_ip,
            keep_connections=tls is None,  # they are asked without TLS
        )
        self.dispatcher.unreachable = self.backends.unreachable
        if tls is None:  # else they are not reached at the address that is announced
            self.neighbourhood.announced = self.backends.announced
        await self.neighbourhood.join()
        revisions = Informer(client, REVISIONS, on_change=self._revision_changed, keep=kept)
        logs = self._watch(settings.logging_config, self._logging_changed)
        observed = self._watch(settings.observability_config, self._observability_changed)
        self._informers = [revisions, endpoints.informer, logs, observed]
        for informer in self._informers:
            informer.start()
        await revisions.synced.wait()
        await endpoints.informer.synced.wait()
        await self.neighbourhood.meet()
        self._keep("the websocket to the autoscaler", self.sink.run)
        self._keep("reporting", self._reports)
        everywhere = settings.everywhere
        (self.http1,), self.http2, self.metrics = await self.server.start(
            [(everywhere, settings.http1_port)],
            (everywhere, settings.http2_port),
            self.observing.metrics_address(everywhere, settings.metrics_port),
        )
        if tls is not None:
            self.https = await self.server.listen((everywhere, settings.https_port), tls.listener)
        log.info(
            "serving %d revisions on ports %d and %d, addresses from %s",
            len(self.dispatcher.parts),
            self.http1[1],
            self.http2[1],
            endpoints.informer.kind,
        )

    async def end(self) -> None:
        """Within drain and grace; then everything is closed."""
        settings = self.settings
        self.server.plane.unhealthy = UNHEALTHY
        log.info("probes fail from here on; everything is served for another %g s", settings.drain_s)
        await asyncio.sleep(settings.drain_s)
        cut = await self.server.drain(settings.grace_s)
        if cut:
            log.warning("cut off %d connections that were not done within %g s", cut, settings.grace_s)
        await self.close()

    async def close(self) -> None:
        """At once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, self.observing.stop(), return_exceptions=True)
        await self.neighbourhood.close()
        self.backends.close()
        self.prober.close()
        for informer in self._informers:
            await informer.stop()
        if self._tls is not None:
            await self._tls.stop()
        if self.identity is not None:
            await self.identity.stop()
        await self.server.close()

    def status(self) -> dict[str, Any]:
        sharing = self.dispatcher.sharing
        return {
            "pod": self.settings.pod_name,
            "autoscaler_reachable": self.sink.reachable,
            "shares_with": sharing.others if sharing is not None else [],
            "revisions": {
                key: {
                    "held": part.activation.held,
                    "in_flight": part.activation.in_flight,
                    "capacity": part.activation.capacity,
                    "share": list(part.activation.share),
                    "to": [tracker.addr for tracker in part.activation.assigned],
                    **(sharing.figures(key)._asdict() if sharing is not None else {}),
                }
                for key, part in sorted(self.dispatcher.parts.items())
            },
        }

    # --- inside

    async def _config(self, name: str) -> dict[str, str]:
        """A ConfigMap, read once, as Knative's activator does; the API server may still be coming up."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                config_map = await self.client.get(CONFIG_MAPS, self.settings.namespace, name)
            except NotFound:
                return {}
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(1.0)
            else:
                return config_map.get("data") or {}

    def _watch(self, name: str, changed: Callable[[dict[str, str]], None]) -> Informer:
        def on_change(old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
            changed((new or {}).get("data") or {})

        fields = f"metadata.name={name}"
        return Informer(self.client, CONFIG_MAPS, self.settings.namespace, fields=fields, on_change=on_change)

    def _logging_changed(self, data: dict[str, str]) -> None:
        read = log_level("activator")
        self._log_level, _ = in_force(self.settings.logging_config, data, read, self._log_level)
        logging.getLogger().setLevel(self._log_level)

    def _observability_changed(self, data: dict[str, str]) -> None:
        self.observing.changed(self.settings.observability_config, data)

    def _revision_changed(self, old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
        if new is not None:
            facts = read(new)
            self.dispatcher.revision(facts)
            self.backends.revision(facts)
        elif old is not None:
            key = read(old).key
            self.backends.forget(key)
            self.dispatcher.forget(key)

    def _endpoints_changed(self, key: RevisionKey, public: bool) -> None:
        self.backends.changed(key, public)

    def _report(self) -> None:
        self.reporter.report(time.monotonic())

    def _keep(self, what: str, run: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(asyncio.create_task(kept_up(what, run)))

    async def _reports(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + PERIOD_S, loop.time())
            await asyncio.sleep(due - loop.time())
            self._report()
