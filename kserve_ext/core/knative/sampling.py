"""Which pods of a revision are asked for their statistics, and what the answers of a few say of all.

Sizes, the preference for pods older than the stable window (young ones skew low) and the extrapolation are those
of pkg/autoscaler/metrics (sample_size.go, stats_scraper.go). Where pods can't be reached by address (a mesh
refuses), the private service is asked instead; Knative then never tries addresses again, here it is tried again
after a while. Asks nobody itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Final, NamedTuple

#: 95 % confidence, a margin of 5 and a variance of 100: the sample of an unbounded population.
_UNBOUNDED: Final = 1.96**2 * 100 / 5**2

AGAIN_FIRST_S: Final = 30.0
AGAIN_LAST_S: Final = 600.0


def sample_size(population: int) -> int:
    if population <= 3:
        return max(0, population)
    return math.ceil(population * _UNBOUNDED / (population + _UNBOUNDED - 1))


class Pod(NamedTuple):
    """A pod that is ready and stays."""

    address: str
    started_at: float


class Plan(NamedTuple):
    """Ask `size` pods at once, from the front; for each that fails, the next. All of `order` may be used up."""

    order: list[str]
    size: int


def plan(pods: Iterable[Pod], window_s: float, now: float, shuffle: Callable[[list[str]], None]) -> Plan:
    old: list[str] = []
    young: list[str] = []
    for pod in pods:
        (old if now - pod.started_at >= window_s else young).append(pod.address)
    size = sample_size(len(old) + len(young))
    shuffle(young if len(old) < size else old)
    return Plan(old + young, size)


class Load(NamedTuple):
    """What came in by itself: what went by way of an activator is counted there, once."""

    concurrency: float
    requests: float  # in one second


def extrapolate(sample: Sequence[Load], population: int) -> Load:
    """All pods' load, from that of a part of them (at least one)."""
    share = population / len(sample)
    return Load(sum(s.concurrency for s in sample) * share, sum(s.requests for s in sample) * share)


class MeshMode(Enum):
    """config-network's mesh-compatibility-mode."""

    AUTO = "auto"
    ENABLED = "enabled"
    DISABLED = "disabled"


class Route:
    """How one revision is asked: pod by pod, or through its service. Pod by pod is better: no pod is asked twice."""

    __slots__ = ("_again_at", "_mode", "_wait_s")

    def __init__(self, mode: MeshMode) -> None:
        self._mode = mode
        self._again_at = 0.0
        self._wait_s = AGAIN_FIRST_S

    def direct(self, now: float) -> bool:
        if self._mode is MeshMode.AUTO:
            return now >= self._again_at
        return self._mode is MeshMode.DISABLED

    @property
    def may_fall_back(self) -> bool:
        return self._mode is MeshMode.AUTO

    def pods_refused(self, now: float) -> None:
        """All pods answered as a mesh does, and the service worked."""
        self._again_at = now + self._wait_s
        self._wait_s = min(2 * self._wait_s, AGAIN_LAST_S)

    def pods_answered(self) -> None:
        self._again_at, self._wait_s = 0.0, AGAIN_FIRST_S
