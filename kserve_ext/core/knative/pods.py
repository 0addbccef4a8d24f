"""Which addresses of a revision answer: what must be probed when, and where requests may go.

A pod counts once its queue-proxy says so, even before Kubernetes calls it ready, unless the revision has checks that
only the kubelet makes. Where no pod answers although some are ready, a mesh may be in the way: then the Service's
address is tried. Unlike Knative, each pod has a rhythm of its own (a slow one delays nobody), a pod to which a
connection failed is asked again at once, and the Service's address is left as soon as a pod answers. A standby pod
that an agent has announced is used at once, without a probe (announced.py). Reads no clock.
In Knative: revisionWatcher of pkg/activator/net/revision_backends.go.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, NamedTuple

from kserve_ext.core.knative.announced import Announced
from kserve_ext.core.knative.sampling import MeshMode

#: Answers to a probe.
OK: Final = 0
DENIED: Final = 1  # an answer that no mesh would give
SILENT: Final = 2  # no connection, no answer in time, or one that a mesh might give

#: While requests go through the Service's address, one pod is asked this often.
HEAL_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Rules:
    """How a revision's pods are found out about."""

    mesh: MeshMode = MeshMode.AUTO
    passthrough: bool = False  # enable-mesh-pod-addressability: the Service's address is never used
    early: bool = True  # a pod may serve before Kubernetes calls it ready
    every_s: float = 0.2


class Ask(NamedTuple):
    """What the shell has to do now; each probe's answer comes back in `probed` or `cluster_probed`."""

    pods: tuple[str, ...] = ()
    cluster: bool = False
    changed: bool = False  # `healthy`, `cluster` or the number of ready pods behind it is another


class Pods:
    """One revision's addresses, as host:port."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.ready: frozenset[str] = frozenset()
        self.not_ready: frozenset[str] = frozenset()
        #: Not listed as ready yet, and known to serve.
        self.announced = Announced()
        #: Pods that requests may go to; a subset of ready, not_ready and announced.
        self.healthy: set[str] = set()
        #: Requests go through the Service's address; then healthy is empty, and ready isn't.
        self.cluster = False
        #: Probes under way, and when each address that isn't healthy was last asked.
        self._asking: set[str] = set()
        self._asked: dict[str, float] = {}
        #: The last answers of those that aren't healthy.
        self._answers: dict[str, int] = {}
        #: Those to which a connection failed: not trusted before they have answered.
        self._suspects: set[str] = set()
        self._cluster_asking = False
        self._cluster_asked = float("-inf")

    def observe(self, ready: AbstractSet[str], not_ready: AbstractSet[str], now: float) -> Ask:
        """The Endpoints say so, all of them."""
        before = self._state()
        fell = self.ready & not_ready
        came = ready - self.ready
        self.ready, self.not_ready = frozenset(ready), frozenset(not_ready) - frozenset(ready)
        self.announced.tick(now)
        self.announced.observe(self.ready, self.not_ready)
        known = self._known()
        self.healthy &= self._askable() - fell
        self._answers = {addr: answer for addr, answer in self._answers.items() if addr in known - fell}
        self._suspects &= known - came
        self._asked = {addr: at for addr, at in self._asked.items() if addr in known}
        for addr in came | fell:
            self._asked.pop(addr, None)
        if self.rules.mesh is MeshMode.DISABLED:
            self.healthy |= self.ready - self._suspects
        if not ready:
            self.cluster = False
        return self._next(before, now)

    def announce(self, addr: str, now: float) -> Ask:
        """The agent of its node says that it serves. Behind a mesh it is reached by the Service only."""
        before = self._state()
        if self.rules.mesh is MeshMode.ENABLED:
            return self._next(before, now)
        if addr not in self.ready:
            self.announced.add(addr, now)
            self.announced.observe(self.ready, self.not_ready)
        if not self.cluster:
            self.healthy.add(addr)
            self._forget(addr)
        return self._next(before, now)

    def withdraw(self, addr: str, now: float) -> Ask:
        """The agent says that it no longer serves; where the Endpoints list it, it is asked."""
        before = self._state()
        self.announced.drop(addr)
        self.healthy.discard(addr)
        if addr in self._known():
            self._suspects.add(addr)
        else:
            self._forget(addr)
        return self._next(before, now)

    def probed(self, addr: str, answer: int, now: float) -> Ask:
        before = self._state()
        self._asking.discard(addr)
        if addr in self._known():
            if answer == OK and self._counts(addr):
                self.healthy.add(addr)
                self._forget(addr)
                self.cluster = False
            elif addr not in self.healthy:  # else it was announced while it was being asked
                self.announced.drop(addr)
                if addr in self._known():
                    self._answers[addr] = answer
                else:
                    self._forget(addr)
        return self._next(before, now)

    def cluster_probed(self, ok: bool, now: float) -> Ask:
        before = self._state()
        self._cluster_asking = False
        if ok and self._cluster_wanted():
            self.cluster = True
        return self._next(before, now)

    def failed(self, addr: str, now: float) -> Ask:
        """A connection to the pod could not be made; it may be gone already."""
        before = self._state()
        if addr in self.healthy:
            self.healthy.discard(addr)
            self._suspects.add(addr)
        return self._next(before, now)

    def cluster_failed(self, now: float) -> Ask:
        """A connection to the Service's address could not be made."""
        before = self._state()
        self.cluster = False
        return self._next(before, now)

    def tick(self, now: float) -> Ask:
        before = self._state()
        self.announced.tick(now)
        self.healthy &= self._askable()
        self._suspects &= self._known()
        return self._next(before, now)

    def due(self) -> float | None:
        """When tick has something to do, later than the last call's now; None: not before something else happens."""
        times = []
        if self.cluster:
            if self._unknown() and not self._asking:
                times = [self._last_asked() + HEAL_S]
        else:
            times = [self._asked.get(a, float("-inf")) + self.rules.every_s for a in self._unknown()]
            if self._cluster_wanted() and not self._cluster_asking:
                times.append(self._cluster_asked + self.rules.every_s)
        over = self.announced.due()
        return min(times if over is None else [*times, over], default=None)

    # --- inside

    def _known(self) -> frozenset[str]:
        return self.ready | self.not_ready | self.announced.addrs

    def _forget(self, addr: str) -> None:
        """What was found out about it."""
        self._suspects.discard(addr)
        self._asked.pop(addr, None)
        self._answers.pop(addr, None)

    def _counts(self, addr: str) -> bool:
        return self.rules.early or addr in self.ready or addr in self.announced

    def _unknown(self) -> list[str]:
        """Addresses to ask that aren't being asked."""
        if self.rules.mesh is MeshMode.ENABLED:
            return []
        return sorted(self._askable() - self.healthy - self._asking)

    def _askable(self) -> frozenset[str]:
        return self._known() if self.rules.early else self.ready | self.announced.addrs

    def _cluster_wanted(self) -> bool:
        """Every pod was asked and is silent, so that a mesh may be in the way; or it is known to be."""
        rules = self.rules
        if (
            self.cluster
            or self.healthy
            or not self.ready
            or rules.passthrough
            or rules.mesh is MeshMode.DISABLED
        ):
            return False
        return rules.mesh is MeshMode.ENABLED or all(self._answers.get(a) == SILENT for a in self._askable())

    def _last_asked(self) -> float:
        return max(self._asked.values(), default=float("-inf"))

    def _next(self, before: tuple[object, ...], now: float) -> Ask:
        every = self.rules.every_s
        unknown = self._unknown()
        if self.cluster:
            due = [min(unknown, key=lambda a: self._asked.get(a, float("-inf")))] if unknown else []
            if self._asking or now < self._last_asked() + HEAL_S:
                due = []
        else:
            due = [a for a in unknown if now >= self._asked.get(a, float("-inf")) + every]
        for addr in due:
            self._asking.add(addr)
            self._asked[addr] = now
        cluster = not self._cluster_asking and now >= self._cluster_asked + every and self._cluster_wanted()
        if cluster:
            self._cluster_asking = True
            self._cluster_asked = now
        return Ask(tuple(due), cluster, self._state() != before)

    def _state(self) -> tuple[object, ...]:
        return frozenset(self.healthy), self.cluster, len(self.ready) if self.cluster else 0
