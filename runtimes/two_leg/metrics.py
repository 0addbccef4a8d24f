"""Prometheus metrics of the router; where prompts went is counted under the names that our own engines use."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from runtimes.vllm_pd.metrics import DECISIONS

__all__ = ["DECISIONS", "IN_FLIGHT", "LEGS", "RELEASES", "REQUESTS", "SECONDS", "WELL", "leg"]

MOST_ENGINES: Final = 256  # whose legs are told: those that home leases come and go

REQUESTS = Counter("galaxy_two_leg_requests", "Requests by how they ended", ["outcome"])
LEGS = Counter("galaxy_two_leg_legs", "Legs by engine and outcome", ["leg", "engine", "outcome"])
SECONDS = Histogram(
    "galaxy_two_leg_leg_seconds",
    "Until the answer of prefill is whole, or that of decode begins",
    ["leg"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
RELEASES = Counter(
    "galaxy_two_leg_releases", "KV that prefill kept and nobody pulled, given back", ["outcome"]
)
IN_FLIGHT = Gauge("galaxy_two_leg_in_flight", "Decode legs under way", ["engine"])
WELL = Gauge("galaxy_two_leg_engine_well", "Whether an engine passes its health check", ["role", "engine"])

_lately: dict[str, None] = {}  # engines, the one that had a leg last behind the others


def leg(name: str, engine: str, outcome: str) -> None:
    """One has ended. Of the engines that had none for longest, where there are too many, the series end."""
    LEGS.labels(name, engine, outcome).inc()
    _lately.pop(engine, None)
    _lately[engine] = None
    while len(_lately) > MOST_ENGINES:
        eldest = next(iter(_lately))
        del _lately[eldest]
        LEGS.remove_by_labels({"engine": eldest})
