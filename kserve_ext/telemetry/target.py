"""target_info: who exposes these series, as OpenTelemetry's exporter to Prometheus has it of its resource.

What is pushed carries the resource itself, so a Pusher leaves this out (it knows no form for an info). In Knative:
observability/resource/default.go of knative.dev/pkg.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import InfoMetricFamily
from prometheus_client.registry import Collector


class Target(Collector):
    def __init__(self, resource: Mapping[str, str]) -> None:
        self._labels = {name.replace(".", "_"): value for name, value in resource.items()}

    def collect(self) -> Iterator[InfoMetricFamily]:
        yield InfoMetricFamily("target", "Target metadata", value=self._labels)
