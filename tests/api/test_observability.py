"""config-observability and the levels of config-logging, as values or as what is wrong with them."""

from __future__ import annotations

import json
import logging

import pytest

from kserve_ext.api.knative import request_log
from kserve_ext.api.knative.config import log_level
from kserve_ext.api.knative.observability import Metrics, Observability, Tracing, observability
from kserve_ext.api.problems import Findings


def test_nothing_said_means_nothing_done() -> None:
    findings = Findings()
    assert observability({"_example": "x"}, findings) == Observability()
    assert findings


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ({"logging.enable-request-log": "true"}, Observability(request_log.DEFAULT)),
        ({"logging.request-log-template": "{{.Request.URL}}"}, Observability()),
        (
            {"logging.enable-request-log": "True", "logging.request-log-template": " {{.TraceID}} "},
            Observability("{{.TraceID}}"),
        ),
        (
            {
                "tracing-protocol": "grpc",
                "tracing-endpoint": "http://c:4317",
                "tracing-sampling-rate": "0.25",
            },
            Observability(tracing=Tracing("grpc", "http://c:4317", 0.25)),
        ),
        (
            {"tracing-protocol": "http/protobuf", "tracing-endpoint": "c:4318"},
            Observability(tracing=Tracing("http/protobuf", "https://c:4318")),
        ),
        ({"tracing-protocol": "stdout"}, Observability(tracing=Tracing("stdout"))),
        ({"metrics-protocol": "prometheus"}, Observability(metrics=Metrics("prometheus"))),
        (
            {"metrics-protocol": "prometheus", "metrics-endpoint": ":9099"},
            Observability(metrics=Metrics("prometheus", ":9099")),
        ),
        (
            {
                "metrics-protocol": "http/protobuf",
                "metrics-endpoint": "http://c/api/v1/otlp",
                "metrics-export-interval": "15s",
            },
            Observability(metrics=Metrics("http/protobuf", "http://c/api/v1/otlp", 15.0)),
        ),
        (
            {"metrics-protocol": "grpc", "metrics-endpoint": "http://c", "metrics-export-interval": "0"},
            Observability(metrics=Metrics("grpc", "http://c", 60.0)),
        ),
        ({"runtime-profiling": "enabled"}, Observability(profiling=True)),
    ],
)
def test_what_it_says(data: dict[str, str], found: Observability) -> None:
    findings = Findings()
    assert observability(data, findings) == found
    assert findings, findings.problems


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"logging.enable-request-log": "yes"}, "logging.enable-request-log"),
        ({"logging.request-log-template": "{{}}"}, "logging.request-log-template"),
        ({"logging.request-log-template": "{{.Request.Something}}"}, "logging.request-log-template"),
        (
            {"logging.enable-request-log": "true", "logging.request-log-template": ""},
            "logging.request-log-template",
        ),
        ({"tracing-protocol": "zipkin"}, "tracing-protocol"),
        ({"tracing-protocol": "grpc"}, "tracing-endpoint"),
        ({"tracing-protocol": "grpc", "tracing-endpoint": "ftp://c"}, "tracing-endpoint"),
        ({"tracing-protocol": "grpc", "tracing-endpoint": "http://c:x"}, "tracing-endpoint"),
        ({"tracing-endpoint": "http://c"}, "tracing-endpoint"),
        ({"tracing-sampling-rate": "1.1"}, "tracing-sampling-rate"),
        ({"metrics-protocol": "opencensus"}, "metrics-protocol"),
        ({"metrics-protocol": "none", "metrics-endpoint": "http://c"}, "metrics-endpoint"),
        ({"metrics-protocol": "prometheus", "metrics-endpoint": "9090"}, "metrics-endpoint"),
        ({"metrics-protocol": "prometheus", "metrics-endpoint": ":80"}, "metrics-endpoint"),
        ({"metrics-export-interval": "-1s"}, "metrics-export-interval"),
        ({"metrics-export-interval": "60"}, "metrics-export-interval"),
        ({"runtime-profiling": "on"}, "runtime-profiling"),
    ],
)
def test_a_bad_value_is_named_with_its_remedy(data: dict[str, str], key: str) -> None:
    findings = Findings()
    observability(data, findings)
    assert [problem.field for problem in findings.problems] == [f"config-observability data[{key}]"]
    assert findings.problems[0].remedy


@pytest.mark.parametrize(
    ("data", "level"),
    [
        ({}, logging.INFO),
        ({"loglevel.activator": "debug"}, logging.DEBUG),
        ({"loglevel.autoscaler": "debug"}, logging.INFO),
        ({"loglevel.activator": "dpanic"}, logging.ERROR),
        ({"zap-logger-config": json.dumps({"level": "warn", "encoding": "json"})}, logging.WARNING),
        ({"zap-logger-config": "{}"}, logging.INFO),
        ({"loglevel.activator": "", "zap-logger-config": '{"level": "error"}'}, logging.ERROR),
        ({"loglevel.activator": "info", "zap-logger-config": '{"level": "error"}'}, logging.INFO),
    ],
)
def test_a_parts_own_level_comes_before_everybodys(data: dict[str, str], level: int) -> None:
    findings = Findings()
    assert log_level("activator")(data, findings) == level
    assert findings


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"loglevel.activator": "loud"}, "data[loglevel.activator]"),
        ({"zap-logger-config": "level: info"}, "data[zap-logger-config]"),
        ({"zap-logger-config": '["info"]'}, "data[zap-logger-config]"),
        ({"zap-logger-config": "[" * 100_000}, "data[zap-logger-config]"),
        ({"zap-logger-config": '{"level": "loud"}'}, "data[zap-logger-config].level"),
    ],
)
def test_a_bad_level_is_named(data: dict[str, str], named: str) -> None:
    findings = Findings()
    log_level("activator")(data, findings)
    assert [problem.field for problem in findings.problems] == [f"config-logging {named}"]
