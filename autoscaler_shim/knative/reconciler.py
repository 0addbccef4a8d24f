"""Reconciles PodAutoscalers of Knative's class and of ours: informers in, scales at once, the rest written behind.

The shell around core/knative/pod_autoscaler.py, in the place of pkg/reconciler/autoscaling/kpa. A key is worked on
once at a time; what it waits for is only the write of a scale. With the API server away, decisions go on with what is
known, and the scale is tried again every second until it is there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from autoscaler_shim.knative.deciders import Deciders
from autoscaler_shim.knative.pods import PodIndex
from autoscaler_shim.knative.probe import Prober, target
from autoscaler_shim.knative.scales import Scales
from autoscaler_shim.knative.stats.collector import Collector
from autoscaler_shim.knative.writer import Writer
from kserve_ext.api.knative import children as knative_children
from kserve_ext.api.knative import pa as knative_pa
from kserve_ext.api.knative.children import Windows
from kserve_ext.api.knative.conditions import Document, text_map
from kserve_ext.api.knative.config import ClusterConfig
from kserve_ext.api.knative.pa import REVISION_LABEL, Services, Settings
from kserve_ext.core.knative import pod_autoscaler
from kserve_ext.core.knative.pod_autoscaler import Mode, Outcome, Pods, Wanted
from kserve_ext.kube.client import NotFound, Unavailable
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import METRICS, POD_AUTOSCALERS, SERVERLESS_SERVICES, Kind
from kserve_ext.kube.queue import WorkQueue

log = logging.getLogger(__name__)

WORKERS = 64
AWAY_RECHECK_S = 1.0
NOT_OWNED_RECHECK_S = 10.0
NO_TARGET_RECHECK_S = 1.0
#: Of what waits for its turn to be woken: it is told; this is for what the world may do meanwhile.
IN_LINE_RECHECK_S = 10.0
#: Likewise of what waits to shrink.
KEPT_RECHECK_S = 30.0


class Reconciler:
    def __init__(
        self,
        copies: dict[Kind, Informer],
        pods: PodIndex,
        collector: Collector,
        deciders: Deciders,
        scales: Scales,
        writer: Writer,
        config: Callable[[], ClusterConfig],
        owns: Callable[[str], bool],
        keeps: Callable[[str], bool],
        domain: str,
    ) -> None:
        """`owns`: whether this key is ours to decide on right now; `keeps`: whether it may be again, so that what is
        known of it stays."""
        self._copies = copies
        self._pods = pods
        self._collector = collector
        self._deciders = deciders
        self._scales = scales
        self._writer = writer
        self._config = config
        self._owns = owns
        self._keeps = keeps
        self._domain = domain
        self.queue: WorkQueue[str] = WorkQueue(self.reconcile, WORKERS, name="podautoscaler")
        self._prober = Prober(self.queue.add)
        #: by key, what was last complained of
        self._complained: dict[str, tuple[str, ...]] = {}
        self.outcomes: dict[str, Outcome] = {}
        #: by key: what its settings were read from, and what they are
        self._read: dict[str, tuple[tuple[object, ...], Settings]] = {}
        #: whatever has been worked on and not released, successfully or not
        self._begun: set[str] = set()

    def start(self) -> None:
        self.queue.start()

    async def stop(self) -> None:
        await self.queue.stop()
        await self._prober.close()

    def add(self, key: str) -> None:
        self.queue.add(key)

    def add_all(self) -> None:
        """The configuration is another, or other buckets are ours."""
        for namespace, name in self._copies[POD_AUTOSCALERS].objects:
            self.queue.add(f"{namespace}/{name}")

    def release(self, key: str) -> None:
        """Somebody else's from now on, or gone. Whatever is known of it is forgotten, however far it has come."""
        if self.configures(key):  # else what is collected is a Metric's of another class
            self._collector.remove(key)
        self._deciders.remove(key)
        self._scales.release(key)
        self._writer.forget(key)
        self._prober.forget(key)
        self.queue.forget(key)
        self._complained.pop(key, None)
        self.outcomes.pop(key, None)
        self._read.pop(key, None)
        self._begun.discard(key)

    def release_all_lost(self) -> None:
        for key in [key for key in self._begun if not self._keeps(key)]:
            self.release(key)

    def configures(self, key: str) -> bool:
        """Whether what is collected of this key is what its PodAutoscaler asks for."""
        return key in self._deciders.entries

    def diverted(self, key: str) -> bool:
        """Whether its public service leads to activators, and is to."""
        outcome, sks = self.outcomes.get(key), self._get(SERVERLESS_SERVICES, key)
        if outcome is None or sks is None or outcome.mode is not Mode.PROXY:
            return False
        return knative_children.service(sks).proxying_since is not None

    def observed(self) -> Iterator[tuple[Document, Outcome, Pods]]:
        """Of every revision: its PodAutoscaler, the latest outcome and its pods; for metrics."""
        for key, outcome in self.outcomes.items():
            pa = self._get(POD_AUTOSCALERS, key)
            if pa is not None:
                yield pa, outcome, self._pods.counts(_pods_of(pa, key))

    async def reconcile(self, key: str) -> float | None:
        pa = self._get(POD_AUTOSCALERS, key)
        if pa is None or not self._keeps(key) or not knative_pa.is_ours(pa):
            if key in self._begun:
                self.release(key)
            return None
        if not self._owns(key):
            self._scales.withdraw(key)
            return None
        self._begun.add(key)
        try:
            return await self._reconcile(key, pa)
        finally:
            if key not in self._begun:  # given away while it was worked on
                self.release(key)

    async def _reconcile(self, key: str, pa: Document) -> float | None:
        config = self._config()
        found = self._settings(key, pa, config)
        conditions, notes = self._scales.conditions(key, pa), self._scales.notes(key, pa)
        if conditions or notes:
            found = replace(found, conditions=conditions, notes=notes)
        self._complain(key, found)
        sks = self._get(SERVERLESS_SERVICES, key)
        if sks is not None and not knative_children.owned(sks, pa):
            return self._not_owned(key, pa, "ServerlessService")
        metric = self._get(METRICS, key)
        if metric is not None and not knative_children.owned(metric, pa):
            return self._not_owned(key, pa, "Metric")
        private = "" if sks is None else knative_children.services(sks).private
        if sks is None or not private:
            return self._without_service(key, pa, found)
        return await self._decide(key, pa, sks, private, found, config)

    async def _decide(
        self, key: str, pa: Document, sks: Document, private: str, found: Settings, config: ClusterConfig
    ) -> float | None:
        of = _pods_of(pa, key)
        spec = found.spec
        scrape = private if found.scraped else ""
        windows = Windows(spec.stable_window_s, found.panic_window_s, scrape, found.scale.algorithm)
        self._collector.configure(key, windows, of)
        decider = self._deciders.configure(key, found, of)
        before = self._writer.status(POD_AUTOSCALERS, pa)
        now = time.time()
        known = knative_pa.known(pa, before, now)
        wanted = Wanted(decider.desired, decider.excess_burst)
        pods = self._pods.counts(of)
        service = knative_children.service(sks)
        asked = pod_autoscaler.needs_probe(spec, known, wanted)

        def decided(probed: bool) -> Outcome:
            capacity = config.autoscaler.activator_capacity
            return pod_autoscaler.reconcile(spec, known, service, wanted, pods, probed, capacity, now)

        # Where activators are always in the path nothing is probed, but the service has to know of it.
        outcome = decided(asked or service.mode is Mode.PROXY)
        recheck_s = outcome.recheck_s
        if asked and outcome.scale is not None and not self._scales.at(key, pa, outcome.scale):
            # An answer is worth something only at the moment at which the last pods may go.
            kept = self._scales.keeps(key)
            if kept or self._probe(key, pa, sks) is not True:
                outcome = decided(probed=False)
                recheck_s = KEPT_RECHECK_S if kept else outcome.recheck_s
        if outcome.scale is not None:
            again_s = await self._scale(key, pa, outcome.scale)
            if again_s is not None:
                if not self._scales.shrinks_later(key):
                    return again_s
                recheck_s = again_s if recheck_s is None else min(recheck_s, again_s)
        else:
            await self._leave(key, pa)
        self._write(key, pa, found, private, outcome, knative_children.services(sks), pods, before)
        return recheck_s

    async def _scale(self, key: str, pa: Document, scale: int) -> float | None:
        """Seconds until another try, None if it is done."""
        try:
            if not await self._scales.apply(key, pa, scale):
                return KEPT_RECHECK_S if self._scales.shrinks_later(key) else IN_LINE_RECHECK_S
        except Unavailable as error:
            log.warning("%s: scale %d: %s; tried again", key, scale, error)
            return AWAY_RECHECK_S
        except NotFound as error:
            log.info("%s: scale %d: %s; looked for again", key, scale, error)
            return NO_TARGET_RECHECK_S
        return None

    async def _leave(self, key: str, pa: Document) -> None:
        try:
            await self._scales.leave(key, pa)
        except (Unavailable, NotFound) as error:
            log.info("%s: %s; looked at again with its next change", key, error)

    def _without_service(self, key: str, pa: Document, found: Settings) -> float | None:
        self._scales.withdraw(key)
        before = self._writer.status(POD_AUTOSCALERS, pa)
        outcome = pod_autoscaler.without_service(found.spec, knative_pa.known(pa, before, time.time()))
        self._write(key, pa, found, "", outcome, Services(), Pods(), before)
        return None

    def _write(
        self,
        key: str,
        pa: Document,
        found: Settings,
        private: str,
        outcome: Outcome,
        services: Services,
        pods: Pods,
        before: Document,
    ) -> None:
        former = self.outcomes.get(key)
        if former is None or (former.want, former.mode, former.phase) != (
            outcome.want,
            outcome.mode,
            outcome.phase,
        ):
            log.info(
                "%s: %s, want %d (%s), ready %d, %s by way of %d activators",
                key,
                outcome.phase,
                outcome.want,
                outcome.why,
                pods.ready,
                outcome.mode.value,
                outcome.activators,
            )
        self.outcomes[key] = outcome
        sks = self._get(SERVERLESS_SERVICES, key)
        made = knative_children.make_sks(pa, outcome.mode, outcome.activators)
        turns = sks is None or knative_children.service(sks).mode is not outcome.mode
        self._writer.put_child(SERVERLESS_SERVICES, pa, made, urgent=turns)
        if private:
            self._writer.put_child(METRICS, pa, knative_children.make_metric(pa, found, private))
        status = knative_pa.status(pa, before, outcome, services, pods, found, time.time())
        # Only of its first start somebody waits to hear: whoever rolls the revision out.
        awaited = not knative_pa.known(pa, before, 0.0).initialized
        says_more = status["conditions"] != before.get("conditions")
        self._writer.put_status(POD_AUTOSCALERS, pa, status, urgent=awaited and says_more)

    def _settings(self, key: str, pa: Document, config: ClusterConfig) -> Settings:
        """Read anew only where what they are read from has changed: a start is some twenty looks at the same."""
        source = (
            pa["metadata"].get("annotations"),
            pa.get("spec"),
            config.autoscaler,
            config.progress_deadline_s,
        )
        read = self._read.get(key)
        if read is None or read[0] != source:
            found = knative_pa.settings(pa, config.autoscaler, config.progress_deadline_s)
            read = self._read[key] = source, found
        return read[1]

    def _not_owned(self, key: str, pa: Document, kind: str) -> float:
        self._scales.withdraw(key)
        before = self._writer.status(POD_AUTOSCALERS, pa)
        name = pa["metadata"]["name"]
        log.warning("%s/%s: a %s of this name is somebody else's", pa["metadata"]["namespace"], name, kind)
        self._writer.put_status(
            POD_AUTOSCALERS, pa, knative_pa.not_owned(pa, before, kind, name, time.time())
        )
        return NOT_OWNED_RECHECK_S

    def _probe(self, key: str, pa: Document, sks: Document) -> bool | None:
        service = knative_children.services(sks).public
        if not service:
            return False
        protocol = str((pa.get("spec") or {}).get("protocolType") or "")
        return self._prober.ask(key, target(service, pa["metadata"]["namespace"], protocol, self._domain))

    def _complain(self, key: str, found: Settings) -> None:
        warned = (*found.problems, *(c.message for c in found.conditions if c.severity == "Warning"))
        if self._complained.get(key, ()) != warned:
            self._complained[key] = warned
            for problem in warned:
                log.warning("PodAutoscaler %s: %s", key, problem)

    def _get(self, kind: Kind, key: str) -> Document | None:
        namespace, _, name = key.partition("/")
        return self._copies[kind].get(namespace, name)


def _pods_of(pa: Document, key: str) -> str:
    """The revision that its pods say they are of."""
    revision = text_map(pa["metadata"].get("labels")).get(REVISION_LABEL)
    return f"{pa['metadata']['namespace']}/{revision}" if revision else key
