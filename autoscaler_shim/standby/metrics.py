"""What came of standby pods, counted; read off by the autoscaler's metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from kserve_ext.core.histogram import Histogram
from kserve_ext.core.standby.wakes import Wakes


@dataclass(slots=True)
class Tally:
    taken: int = 0  # slots, as their agents have accepted
    refused: int = 0
    failed: int = 0  # couldn't start the revision
    returned: int = 0
    misses: Counter[str] = field(default_factory=Counter)  # pods that were asked for the plain way, by reason
    adoption: Histogram = field(default_factory=Histogram)
    pods_made: int = 0
    pods_deleted: int = 0
    _begun: dict[str, float] = field(default_factory=dict)

    def missed(self, why: str, count: int) -> None:
        if count:
            self.misses[why or "other"] += count

    def begun(self, uid: str, now: float) -> None:
        self._begun[uid] = now

    def adopted(self, uid: str, now: float) -> str:
        """How long it took since it was taken, in words."""
        begun = self._begun.pop(uid, None)
        if begun is None:
            return "taken by a former holder of its bucket"
        self.adoption.observe(now - begun)
        return f"{now - begun:.2f} s after it was taken"

    def forget(self, uids: set[str]) -> None:
        """All but these are gone."""
        self._begun = {uid: at for uid, at in self._begun.items() if uid in uids}


_WHAT: Final = {
    "agents": "Node agents that there are",
    "agents_heard": "Node agents that tell of their slots",
    "events_told": "Events about standby pods that were written",
    "events_dropped": "Events about standby pods that were too many, or refused",
    "can_hold": "1 where the policy is in force by which no other pod is made while one is adopted",
    "unfit": "Revisions that ask for standby pods which can't serve them",
}


class PoolFigures(NamedTuple):
    namespace: str
    pool: str
    size: int  # that it should have
    ready: int
    coming: int
    busy: int
    failures: int  # in a row
    idle_gpu_s: float


class NodeFigures(NamedTuple):
    node: str
    heard_at: float  # its agent, in unix seconds
    slots: Mapping[str, int]  # by state
    gpus: int
    free_gpus: int  # that no standby pod has
    rdma: int  # devices with an active port


class StandbyMetrics(Collector):
    def __init__(
        self,
        tally: Tally,
        wakes: Wakes,
        pools: Callable[[], list[PoolFigures]],
        nodes: Callable[[], list[NodeFigures]],
        figures: Callable[[], Mapping[str, float]],
    ) -> None:
        """`figures`: gauges by name without the prefix."""
        self._tally = tally
        self._wakes = wakes
        self._nodes = nodes
        self._pools = pools
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        tally = self._tally
        for name, value, what in (
            ("taken", tally.taken, "Standby pods that were given to a revision"),
            ("refused", tally.refused, "Standby pods that could not be had when they were asked for"),
            ("failed", tally.failed, "Standby pods that could not start their revision"),
            ("returned", tally.returned, "Standby pods that were given back to their pool"),
            ("pods_made", tally.pods_made, "Standby pods that were made"),
            ("pods_deleted", tally.pods_deleted, "Standby pods that were deleted from their pool"),
        ):
            yield CounterMetricFamily(f"galaxy_standby_{name}", what, value)
        missed = CounterMetricFamily(
            "galaxy_standby_missed", "Pods that were asked for the plain way, by reason", labels=("reason",)
        )
        for reason, count in sorted(tally.misses.items()):
            missed.add_metric((reason,), count)
        yield missed
        fell_back = CounterMetricFamily(
            "galaxy_standby_fell_back",
            "Standby pods that began their revision at a lower level than their own",
            labels=("level", "used"),
        )
        for levels, count in sorted(self._wakes.fallbacks.items()):
            fell_back.add_metric(levels, count)
        yield fell_back
        made_room = CounterMetricFamily(
            "galaxy_standby_made_room",
            "Standby pods that ended sleeping engines for a revision, since the GPU had no room beside them",
            labels=("used",),
        )
        for level, count in sorted(self._wakes.made_room.items()):
            made_room.add_metric((level,), count)
        yield made_room
        yield from self._of_nodes()
        adoption = HistogramMetricFamily(
            "galaxy_standby_adoption_seconds", "From taking a standby pod to its labels"
        )
        adoption.add_metric((), tally.adoption.buckets, tally.adoption.sum_s)
        yield adoption
        pods = GaugeMetricFamily(
            "galaxy_standby_pods", "Standby pods by state", labels=("k8s_namespace_name", "pool", "state")
        )
        failures = GaugeMetricFamily(
            "galaxy_standby_pool_failures",
            "Pods of a pool that did not come up, in a row",
            labels=("k8s_namespace_name", "pool"),
        )
        idle = CounterMetricFamily(
            "galaxy_standby_idle_gpu_seconds",
            "Seconds of GPUs of pods that stood by",
            labels=("k8s_namespace_name", "pool"),
        )
        for pool in self._pools():
            which = (pool.namespace, pool.pool)
            for state in ("size", "ready", "coming", "busy"):
                pods.add_metric((*which, state), getattr(pool, state))
            failures.add_metric(which, pool.failures)
            idle.add_metric(which, pool.idle_gpu_s)
        yield from (pods, failures, idle)
        for name, figure in self._figures().items():
            yield GaugeMetricFamily(f"galaxy_standby_{name}", _WHAT.get(name, name), figure)

    def _of_nodes(self) -> Iterator[Metric]:
        heard = GaugeMetricFamily(
            "galaxy_standby_node_heard_timestamp_seconds",
            "When the agent of a node was heard last",
            labels=("node",),
        )
        slots = GaugeMetricFamily(
            "galaxy_standby_node_slots", "Standby pods of a node, as its agent says", labels=("node", "state")
        )
        devices = GaugeMetricFamily(
            "galaxy_standby_node_devices",
            "GPUs, those of them that no standby pod has, and RDMA devices with an active port",
            labels=("node", "kind"),
        )
        for node in self._nodes():
            heard.add_metric((node.node,), node.heard_at)
            for state, count in sorted(node.slots.items()):
                slots.add_metric((node.node, state), count)
            for kind, count in (("gpu", node.gpus), ("free-gpu", node.free_gpus), ("rdma", node.rdma)):
                devices.add_metric((node.node, kind), count)
        yield from (heard, slots, devices)
