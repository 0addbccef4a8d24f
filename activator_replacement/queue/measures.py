"""Queue-proxy's metrics of the user's requests, in Prometheus' form: port 9091.

How long the server took, by status, and how many requests are pending; names as its OpenTelemetry exporter writes
them. Read when scraped. In Knative: pkg/queue/request_metric.go, pkg/queue/sharedmain/otel.go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from activator_replacement.knative.reports.durations import Durations

_SCOPE: Final = 'otel_scope_name="knative.dev/serving/pkg/queue"'
_DURATION: Final = "kn_serving_invocation_duration_seconds"
_DEPTH: Final = "kn_serving_queue_depth"


def text(durations: Durations, pending: int | None, target: Mapping[str, str]) -> bytes:
    """`pending`: None without a limit; `target`: what these are measures of."""
    lines = [f"# HELP {_DURATION} The duration of task execution", f"# TYPE {_DURATION} histogram"]
    for key in sorted(durations.by):
        buckets, total = durations.buckets(key)
        labels = f'http_response_status_code="{key[1]}",{_SCOPE}'
        lines += [f'{_DURATION}_bucket{{{labels},le="{bound}"}} {count:g}' for bound, count in buckets]
        lines.append(f"{_DURATION}_sum{{{labels}}} {total!r}")
        lines.append(f"{_DURATION}_count{{{labels}}} {buckets[-1][1]:g}")
    if pending is not None:
        lines += [f"# HELP {_DEPTH} Number of current requests in the queue", f"# TYPE {_DEPTH} gauge"]
        lines.append(f"{_DEPTH}{{{_SCOPE}}} {pending}")
    if target:
        lines += ["# HELP target_info Target metadata", "# TYPE target_info gauge"]
        said = ",".join(f'{name}="{_escaped(value)}"' for name, value in sorted(target.items()))
        lines.append(f"target_info{{{said}}} 1")
    return ("\n".join(lines) + "\n").encode()


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
