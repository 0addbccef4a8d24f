"""Puts the parts of one autoscaler replica together, starts them in order and stops them in order.

Statistics go stat server -> forwarder -> collector and decider; a decider that has something new calls the
reconciler. What has to be true before anything is decided is that all informers have listed once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping

from autoscaler_shim.knative import scales
from autoscaler_shim.knative.buckets import FixedBuckets, LeasedBuckets
from autoscaler_shim.knative.config import ConfigStore
from autoscaler_shim.knative.deciders import Deciders
from autoscaler_shim.knative.metric_objects import MetricObjects
from autoscaler_shim.knative.metrics import Owner, ScrapeTimes
from autoscaler_shim.knative.metrics_server import MetricsServer
from autoscaler_shim.knative.pods import PodIndex
from autoscaler_shim.knative.reconciler import Reconciler
from autoscaler_shim.knative.scales import Scales
from autoscaler_shim.knative.settings import Settings
from autoscaler_shim.knative.stats.collector import Collector
from autoscaler_shim.knative.stats.forwarder import Forwarder, Revision
from autoscaler_shim.knative.stats.scraper import Scraper
from autoscaler_shim.knative.stats.server import StatServer
from autoscaler_shim.knative.writer import Writer
from autoscaler_shim.standby import shapes
from autoscaler_shim.standby.standby import Standby
from kserve_ext.api.knative.conditions import text_map
from kserve_ext.api.knative.pa import CONFIGURATION_LABEL, REVISION_LABEL, SERVICE_LABEL
from kserve_ext.core.knative.buckets import Buckets
from kserve_ext.kube.client import Client, KubeObject
from kserve_ext.kube.identity import SecretIdentity
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import DEPLOYMENTS, METRICS, POD_AUTOSCALERS, SERVERLESS_SERVICES, Kind
from kserve_ext.telemetry.api_client import ApiClient
from kserve_ext.telemetry.telemetry import Telemetry, resource
from kserve_ext.wire.stats import StatMessage

log = logging.getLogger(__name__)

LAST_WRITES_S = 2.0


class Autoscaler:
    """Make it where the loop runs."""

    def __init__(self, settings: Settings, client: Client) -> None:
        self._settings = settings
        self._client = client
        self._ready = False
        self.config = ConfigStore(
            client,
            settings.namespace,
            self._configured,
            settings.leader_election,
            settings.logging_config,
            settings.observability_config,
        )
        self.pods = PodIndex(client, self._pods_changed)
        self._copies = {
            POD_AUTOSCALERS: self._informer(POD_AUTOSCALERS),
            SERVERLESS_SERVICES: self._informer(SERVERLESS_SERVICES),
            METRICS: Informer(client, METRICS, on_change=self._metric_changed),
        }
        self._deployments = Informer(
            client,
            DEPLOYMENTS,
            labels=scales.SELECTOR,
            on_change=self._deployment_changed,
            keep=shapes.slim if settings.standby else scales.slim,
        )
        self._scraper = Scraper(settings.scrape_port)
        self._times = ScrapeTimes()
        self.collector = Collector(
            self.pods,
            self._scraper,
            lambda: self.config.current.network,
            self._troubled,
            self._scraped,
            self._asks_little,
        )
        self.deciders = Deciders(self.collector, self.pods, self._revisit)
        self._identity: SecretIdentity | None = None
        if settings.mutual_tls != "off":
            self._identity = SecretIdentity(client, settings.namespace, settings.mutual_tls)
        identity = self._identity.identity if self._identity is not None else None
        self.standby: Standby | None = None
        if settings.standby:
            self.standby = Standby(
                client,
                settings.namespace,
                settings.holder.pod,
                settings.peer_port,
                self._deployments,
                self._copies[POD_AUTOSCALERS],
                self._revisit,
                self._owns,
                self.pods.counts,
                self.pods.unscheduled,
                self.pods.placed,
                self._term,
                identity,
            )
            self._scales: Scales = self.standby.scales
        else:
            self._scales = Scales(client, self._deployments, self._revisit, self._owns)
        self.writer = Writer(client, self._copies, self._owns, self._scales.waking)
        self.reconciler = Reconciler(
            self._copies,
            self.pods,
            self.collector,
            self.deciders,
            self._scales,
            self.writer,
            lambda: self.config.current,
            self._owns,
            self._keeps,
            settings.domain,
        )
        self._metrics = MetricObjects(
            self._copies[METRICS],
            self.collector,
            self.writer,
            self._owns,
            self._keeps,
            self.reconciler.configures,
        )
        self.stat_server = StatServer(
            self._received, self._holds, lambda: self._ready, self._hung_up, identity
        )
        target = resource("autoscaler", settings.holder.pod, settings.namespace)
        self.metrics_server = MetricsServer(
            self.reconciler, self.deciders, self._metrics, self._times, self._counters, target
        )
        self.metrics_server.registry.register(ApiClient(client.session))
        if self.standby is not None:
            self.metrics_server.registry.register(self.standby.metrics)
        self.telemetry = Telemetry(
            self.metrics_server.registry,
            target,
            settings.profiling_port,
            settings.host or ("::" if ":" in settings.holder.ip else "0.0.0.0"),
        )
        self.forwarder: Forwarder | None = None
        self._buckets: LeasedBuckets | FixedBuckets | None = None

    async def start(self) -> None:
        """Returns when this replica takes part: it listens, knows the cluster, and stands for its buckets."""
        settings = self._settings
        await self.stat_server.start(settings.host, settings.stats_port)
        if self._identity is not None:
            await self._identity.start()
        await self.config.start()
        metrics = self.config.current.observability.metrics
        await self.metrics_server.start(*metrics.listens(settings.host, settings.metrics_port))
        informers = [*self._copies.values(), self._deployments, self.pods.informer]
        for informer in informers:
            informer.start()
        await asyncio.gather(*(informer.synced.wait() for informer in informers))
        self._stand()
        assert self._buckets is not None
        if self.standby is not None:
            await self.standby.start()
        await self._buckets.start()
        self.collector.start()
        self.deciders.start()
        self.writer.start()
        self.reconciler.start()
        self._metrics.start()
        self._ready = True
        log.info(
            "ready: %d PodAutoscalers, %d pods", *(len(i.objects) for i in (informers[0], informers[-1]))
        )

    async def stop(self) -> None:
        """Clients go elsewhere, the last writes go out, the Leases go back."""
        self._ready = False
        await self.stat_server.stop()
        await self.deciders.stop()
        await self.reconciler.stop()
        self._scales.close()
        if self.standby is not None:
            await self.standby.stop()
        await self._metrics.stop()
        await self.writer.stop(LAST_WRITES_S)
        if self._buckets is not None:
            await self._buckets.stop()
        if self.forwarder is not None:
            await self.forwarder.stop()
        await self.collector.stop()
        await self._scraper.close()
        for informer in (*self._copies.values(), self._deployments, self.pods.informer):
            await informer.stop()
        await self.config.stop()
        if self._identity is not None:
            await self._identity.stop()
        await self.telemetry.stop()
        await self.metrics_server.stop()

    # --- between the parts

    def _stand(self) -> None:
        settings, election = self._settings, self.config.current.leader_election
        identity = self._identity.identity if self._identity is not None else None
        if settings.stateful_set is not None:
            buckets = settings.stateful_set.buckets(election.buckets, settings.namespace, settings.domain)
            self.forwarder = Forwarder(buckets, self._accept, identity)
            self._buckets = FixedBuckets(buckets, settings.stateful_set.ordinal, self.forwarder)
            return
        buckets = Buckets.of(election.buckets)
        self.forwarder = Forwarder(buckets, self._accept, identity)
        self._buckets = LeasedBuckets(
            self._client,
            settings.namespace,
            settings.holder,
            election,
            buckets,
            self.forwarder,
            settings.domain,
            self._responsibility_changed,
        )

    def _received(self, messages: list[StatMessage]) -> None:
        """From an activator, or from a replica that forwards; the first to get it says when."""
        if self.forwarder is None:
            return
        now = int(time.time())
        self.forwarder.send(
            [m if m.stat.timestamp else m._replace(stat=m.stat._replace(timestamp=now)) for m in messages]
        )

    def _hung_up(self, brought: Mapping[str, Collection[Revision]]) -> None:
        self.deciders.hung_up(brought)
        if self.forwarder is not None:
            self.forwarder.hung_up(brought)

    def _accept(self, message: StatMessage) -> None:
        key = f"{message.namespace}/{message.name}"
        self.collector.record(key, message.stat)
        self.deciders.reported(key, message.stat)

    def _owns(self, key: str) -> bool:
        return self._buckets is not None and self._buckets.owns(key)

    def _keeps(self, key: str) -> bool:
        return self._buckets is not None and self._buckets.keeps(key)

    def _term(self, key: str) -> int:
        return self._buckets.term(key) if self._buckets is not None else 0

    def _holds(self, bucket: str) -> bool:
        return self.forwarder is not None and self.forwarder.holds(bucket)

    def _revisit(self, key: str) -> None:
        self.reconciler.add(key)

    def _troubled(self, key: str) -> None:
        self._metrics.add(key)

    def _configured(self) -> None:
        logging.getLogger().setLevel(self.config.current.log_level)
        self.telemetry.apply(self.config.current.observability)
        self.reconciler.add_all()

    def _responsibility_changed(self) -> None:
        self.reconciler.release_all_lost()
        self.reconciler.add_all()
        self._metrics.add_all()
        if self.standby is not None:
            self.standby.responsibility_changed()

    def _informer(self, kind: Kind) -> Informer:
        return Informer(self._client, kind, on_change=lambda old, new: self._changed(kind, new or old or {}))

    def _changed(self, kind: Kind, obj: KubeObject) -> None:
        self._revisit(_key(obj))
        if self.standby is not None and kind == POD_AUTOSCALERS:
            self.standby.revision_changed(_key(obj))

    def _metric_changed(self, old: KubeObject | None, new: KubeObject | None) -> None:
        key = _key(new or old or {})
        self._metrics.add(key)
        self.reconciler.add(key)

    def _deployment_changed(self, old: KubeObject | None, new: KubeObject | None) -> None:
        """One that has just been made, or that somebody else has scaled."""
        known = new or old
        if known is None:
            return
        if self.standby is not None:
            self.standby.deployment_changed(old, new)
        metadata = known["metadata"]
        key = f"{metadata['namespace']}/{text_map(metadata.get('labels'))[REVISION_LABEL]}"
        if new is not None and (old is None or old["spec"] != new["spec"]):
            self._revisit(key)

    def _pods_changed(self, key: str) -> None:
        pods = self.pods.counts(key)
        if pods.ready + pods.not_ready > pods.terminating:
            self._scales.made(key)
        self._revisit(key)

    def _asks_little(self, key: str) -> bool:
        """Whether its pods are scraped seldom: while a burst needs the processors, or it waits for its end to shrink,
        and its requests come by way of activators, which report each second themselves."""
        waits = self._scales.shrinks_later(key) or self._scales.waking()
        return waits and self.reconciler.diverted(key)

    def _scraped(self, key: str, seconds: float) -> None:
        namespace, _, name = key.partition("/")
        metric = self._copies[METRICS].get(namespace, name) or {"metadata": {}}
        labels = text_map(metric["metadata"].get("labels"))
        owner = Owner(namespace, labels.get(SERVICE_LABEL, ""), labels.get(CONFIGURATION_LABEL, ""))
        self._times.observe(owner, seconds)

    def _counters(self) -> Mapping[str, float]:
        return {
            "stats_taken": self.stat_server.taken,
            "stats_malformed": self.stat_server.malformed,
            "stats_unusable": self.collector.unusable,
            "stats_dropped": self.forwarder.dropped if self.forwarder else 0,
            "scale_patches": self._scales.patches,
            "reconciliations": self.reconciler.queue.counters.runs,
            "reconciliations_failed": self.reconciler.queue.counters.failures,
            "writes_behind": self.writer.counters.runs,
            "writes_behind_failed": self.writer.counters.failures,
            "config_rejected": self.config.rejected,
        }


def _key(obj: KubeObject) -> str:
    metadata = obj["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}"
