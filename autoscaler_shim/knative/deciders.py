"""The deciders of all revisions that this replica is responsible for: each ticks every two seconds, and in a burst.

As pkg/autoscaler/scaling/multiscaler.go, with the ticks spread over time instead of a goroutine each. What a decider
decides is core/knative/decider.py's, its time the collector's; whoever asked is told when the reconciler has work.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from autoscaler_shim.knative.pods import PodIndex
from autoscaler_shim.knative.stats.collector import Collector
from autoscaler_shim.knative.wheel import Wheel
from kserve_ext.api.knative.pa import Settings
from kserve_ext.core.knative.collection import Metric
from kserve_ext.core.knative.decider import Decider
from kserve_ext.core.scaling.decide import TICK_S
from kserve_ext.wire.stats import Stat

log = logging.getLogger(__name__)


class Entry:
    """One revision's decider, and what it goes by."""

    __slots__ = ("decider", "metric", "pods")

    def __init__(self, decider: Decider, metric: Metric, pods: str) -> None:
        self.decider = decider
        self.metric = metric
        self.pods = pods


class Deciders:
    def __init__(self, collector: Collector, pods: PodIndex, changed: Callable[[str], None]) -> None:
        self._collector = collector
        self._pods = pods
        self._changed = changed
        self._entries: dict[str, Entry] = {}
        self._wheel = Wheel(TICK_S, self._tick)

    @property
    def entries(self) -> dict[str, Entry]:
        return self._entries

    def start(self) -> None:
        self._wheel.start()

    async def stop(self) -> None:
        await self._wheel.stop()

    def configure(self, key: str, settings: Settings, pods: str) -> Decider:
        """The decider of this key, made if need be. `pods`: the revision that its pods are of."""
        entry = self._entries.get(key)
        if entry is None:
            ready = self._pods.counts(pods).ready
            entry = Entry(Decider(settings.spec, ready, self._collector.now()), settings.scale.metric, pods)
            self._entries[key] = entry
            self._wheel.add(key)
        entry.decider.spec = settings.spec
        entry.metric, entry.pods = settings.scale.metric, pods
        return entry.decider

    def remove(self, key: str) -> None:
        self._entries.pop(key, None)
        self._wheel.discard(key)

    def reported(self, key: str, stat: Stat) -> None:
        """What an activator says, after the collector has it."""
        entry = self._entries.get(key)
        if entry is not None and entry.decider.report(
            stat.pod_name, stat.average_concurrent_requests, self._collector.now()
        ):
            self._tick(key)

    def hung_up(self, activators: Iterable[str]) -> None:
        """These activators' connection has ended."""
        now = self._collector.now()
        for activator in activators:
            for entry in self._entries.values():
                entry.decider.hung_up(activator, now)

    def _tick(self, key: str) -> None:
        entry = self._entries[key]
        averages = self._collector.averages(key, entry.metric)
        decider, ready = entry.decider, self._pods.counts(entry.pods).ready
        changed = decider.tick(averages, ready, self._collector.now())
        if log.isEnabledFor(logging.DEBUG):
            stable, panic = averages or (None, None)
            log.debug(
                "%s: %s stable %s, panic %s, target %g, ready %s: %s %d, excess burst capacity %d",
                key,
                entry.metric,
                _rounded(stable),
                _rounded(panic),
                decider.spec.target,
                ready,
                "panics, desired" if decider.panicking else "desired",
                decider.desired,
                decider.excess_burst,
            )
        if changed:
            self._changed(key)


def _rounded(average: float | None) -> str:
    return "unknown" if average is None else f"{average:.3f}"
