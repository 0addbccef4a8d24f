"""What one measurement of a proxy gives, and the rows in which ours is set beside its peers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bench.loads import Load, Target
from bench.processes import cpu_ns

NAMES = {
    "activator": "Knative's activator",
    "aiohttp": "aiohttp proxy",
    "go": "Go httputil.ReverseProxy",
    "rust": "Rust hyper proxy",
}
#: What of a sample is reported for a unit: those that come at a fixed pace have only some.
FIELDS = {
    "request": ("per_s", "p50_ms", "p99_ms", "cpu_us"),
    "message": ("per_s", "p50_ms", "p99_ms", "cpu_us"),
    "event": ("p99_ms", "cpu_us"),
}


class Sample(NamedTuple):
    per_s: float  # requests, messages or events
    p50_ms: float
    p99_ms: float
    cpu_us: float  # of the proxy, per request, message or event


def measure(pid: int, target: Target, load: Load, seconds: float) -> Sample:
    before = cpu_ns(pid)
    done = load(target, seconds)
    return Sample(done.total / seconds, done.p50_ms, done.p99_ms, (cpu_ns(pid) - before) / done.total / 1000)


def rows_of(
    case: str, unit: str, samples: Mapping[str, Sequence[Sample]], conditions: str
) -> list[dict[str, Any]]:
    """Medians of ours beside those of every peer."""
    labels = {
        "per_s": (f"{unit}s/s", f"{unit}s/s", "higher"),
        "p50_ms": ("p50", "ms", "lower"),
        "p99_ms": ("p99 between events" if unit == "event" else "p99", "ms", "lower"),
        "cpu_us": (f"CPU per {unit}", "us", "lower"),
    }
    rows = []
    for field in FIELDS[unit]:
        label, its_unit, better = labels[field]
        medians = {name: statistics.median(getattr(s, field) for s in each) for name, each in samples.items()}
        rows += [
            {
                "metric": f"{case}: {label}",
                "ours": round(medians["ours"], 3),
                "peer": round(value, 3),
                "peer_name": NAMES.get(name, name),
                "unit": its_unit,
                "better": better,
                "conditions": conditions,
            }
            for name, value in medians.items()
            if name != "ours"
        ]
    return rows
