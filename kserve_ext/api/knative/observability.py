"""The ConfigMap config-observability: request logs, traces, metrics and profiles of Knative's parts.

Keys, defaults and what goes with what are Knative's; which of it a part acts on is the part's affair. As with every
ConfigMap, one that is wrong leaves its findings, and whoever reads keeps the last good one. In Knative:
pkg/observability/config.go; observability/{metrics,tracing,runtime}/config.go of knative.dev/pkg.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kserve_ext.api import durations
from kserve_ext.api.knative import request_log
from kserve_ext.api.problems import Findings
from kserve_ext.api.readers import Reader, choice, flag, number, take

GRPC: Final = "grpc"
HTTP: Final = "http/protobuf"
PROMETHEUS: Final = "prometheus"
STDOUT: Final = "stdout"
NONE: Final = "none"
#: What OpenTelemetry takes where no interval is given.
EXPORT_S: Final = 60.0
_WHERE: Final = "config-observability"


@dataclass(frozen=True, slots=True)
class Tracing:
    protocol: str = NONE
    endpoint: str = ""  # a URL, where there is one to send to
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Metrics:
    protocol: str = NONE
    endpoint: str = ""  # as tracing's; with prometheus host:port to listen on, "" = the usual
    every_s: float = EXPORT_S

    def listens(self, host: str | None, port: int) -> tuple[str | None, int]:
        """Where they are read: as it says, else as is usual."""
        if self.protocol != PROMETHEUS or not self.endpoint:
            return host, port
        given, _, number = self.endpoint.rpartition(":")
        return given.strip("[]") or host, int(number)


@dataclass(frozen=True, slots=True)
class Observability:
    request_log: str = ""  # its template; "" = none is written
    tracing: Tracing = Tracing()
    metrics: Metrics = Metrics()
    profiling: bool = False


def observability(data: Mapping[str, str], findings: Findings) -> Observability:
    """What of it is wrong counts as not said, and is found."""
    values = _Values(data, findings)
    return Observability(_request_log(values), _tracing(values), _metrics(values), _profiling(values))


class _Values:
    def __init__(self, data: Mapping[str, str], findings: Findings) -> None:
        self._data = data
        self._findings = findings

    def get(self, key: str, reader: Reader, default: Any) -> Any:
        if key not in self._data:
            return default
        value = take(reader, self._data[key], f"{_WHERE} data[{key}]", self._findings)
        return default if value is None else value

    def text(self, key: str, default: str = "") -> str:
        return self._data.get(key, default).strip()

    def wrong(self, key: str, what: str, remedy: str, value: str | None = None) -> None:
        self._findings.problem(f"{_WHERE} data[{key}]", what, remedy, value)


def _request_log(values: _Values) -> str:
    key = "logging.request-log-template"
    template = values.text(key, request_log.DEFAULT)
    enabled = values.get("logging.enable-request-log", flag(), False)
    if not template:
        if enabled:
            values.wrong(key, "empty, and request logs are enabled", "leave it out to get Knative's own")
        return ""
    try:
        request_log.line(template)
    except ValueError as error:
        values.wrong(key, str(error), "correct it, or leave it out to get Knative's own")
        return ""
    return template if enabled else ""


def _tracing(values: _Values) -> Tracing:
    protocol = values.get("tracing-protocol", choice(GRPC, HTTP, NONE, STDOUT), NONE)
    rate = values.get("tracing-sampling-rate", number(0, 1), 0.0)
    return Tracing(protocol, _endpoint(values, "tracing", protocol), rate)


def _metrics(values: _Values) -> Metrics:
    protocol = values.get("metrics-protocol", choice(GRPC, HTTP, PROMETHEUS, NONE), NONE)
    every_s = values.get("metrics-export-interval", _interval(), 0.0) or EXPORT_S
    if protocol != PROMETHEUS:
        return Metrics(protocol, _endpoint(values, "metrics", protocol), every_s)
    endpoint = values.text("metrics-endpoint")
    if endpoint and not _listens(endpoint):
        values.wrong("metrics-endpoint", "not host:port", "write :9090 or 0.0.0.0:9090", endpoint)
        endpoint = ""
    return Metrics(protocol, endpoint, every_s)


def _profiling(values: _Values) -> bool:
    values.get("runtime-export-interval", _interval(), 0.0)
    return bool(values.get("runtime-profiling", choice("enabled", "disabled"), "disabled") == "enabled")


def _endpoint(values: _Values, what: str, protocol: str) -> str:
    """A URL with its scheme; host:port alone means TLS, as it does there."""
    key = f"{what}-endpoint"
    given = values.text(key)
    if protocol in (NONE, STDOUT):
        if given:
            values.wrong(
                key, f"set, and {what}-protocol is {protocol}", "take it out, or set the protocol", given
            )
        return ""
    if not given:
        values.wrong(key, f"not set, and {what}-protocol is {protocol}", "write a URL: http://collector:4317")
        return ""
    url = urllib.parse.urlsplit(given if "://" in given else f"https://{given}")
    try:
        usable = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:
        usable = False
    if not usable:
        values.wrong(key, "not a URL", "write one such as http://collector:4317", given)
        return ""
    return url.geturl()


def _listens(endpoint: str) -> bool:
    _, colon, port = endpoint.rpartition(":")
    return bool(colon) and port.isdecimal() and 1024 <= int(port) <= 65535


def _interval() -> Reader:
    def read(text: str) -> float:
        length = durations.seconds(text)
        if length < 0:
            raise ValueError("below zero")
        return length

    return Reader("a duration such as 60s", read)
