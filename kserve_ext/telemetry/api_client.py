"""The series of a client of the API server, under the names and labels that Knative's parts have for client-go's.

Answers have their status always; Knative's leave it out unless it is 200. In Knative:
observability/metrics/k8s/tools.go of knative.dev/pkg.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from yarl import URL

from kserve_ext.kube.session import Session
from kserve_ext.telemetry.metrics import K8S_SCOPE, SCOPE_LABEL


class ApiClient(Collector):
    def __init__(self, session: Session) -> None:
        self._traffic = session.traffic
        self._server = URL(session.access.endpoint.url)

    def collect(self) -> Iterator[Metric]:
        server, traffic = self._server, self._traffic
        times = HistogramMetricFamily(
            "http_client_request_duration_seconds",
            "Duration of HTTP client requests.",
            labels=[
                "http_request_method", "server_address", "server_port", "url_scheme", "url_template", SCOPE_LABEL
            ],
        )  # fmt: skip
        place = [server.host or "", str(server.port), server.scheme]
        for (method, template), took in traffic.times.items():
            times.add_metric([method, *place, template, K8S_SCOPE], took.buckets, took.sum_s)
        answers = CounterMetricFamily(
            "kn_k8s_client_http_response_status_code",
            "Count of response codes partitioned by method and host",
            labels=["server_address", "http_request_method", "http_response_status_code", SCOPE_LABEL],
        )
        for (method, status), count in traffic.answers.items():
            answers.add_metric([server.authority, method, str(status), K8S_SCOPE], count)
        yield from (times, answers)
