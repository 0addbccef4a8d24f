"""Probes as Knative's controller writes them for queue-proxy, and as users do."""

from __future__ import annotations

import json

import pytest

from kserve_ext.core.queue.probing import Asking, BadProbe, asking


def test_without_a_probe_the_port_is_asked_all_the_time() -> None:
    assert asking("", 8080) == (Asking("127.0.0.1", 8080, None, (), 0.1, True, 1),)


def test_what_knative_writes_by_default() -> None:
    probe = '{"tcpSocket":{"port":8080,"host":"127.0.0.1"},"successThreshold":1}'
    assert asking(probe, 8080) == (Asking("127.0.0.1", 8080, None, (), 0.1, True, 1),)


def test_an_http_probe_with_a_period_is_asked_once_a_question() -> None:
    probe = {
        "httpGet": {"path": "ready", "port": 0, "httpHeaders": [{"name": "A", "value": "b"}]},
        "periodSeconds": 5,
        "timeoutSeconds": 3,
        "successThreshold": 2,
    }
    assert asking(json.dumps(probe), 9000) == (
        Asking("127.0.0.1", 9000, "/ready", (("A", "b"),), 3.0, False, 2),
    )


def test_a_timeout_that_is_not_given_is_a_second_and_a_port_by_name_is_the_servers() -> None:
    [one] = asking('{"httpGet": {"port": "http1"}, "periodSeconds": 1}', 7000)
    assert (one.port, one.path, one.timeout_s) == (7000, "/", 1.0)


@pytest.mark.parametrize(("scheme", "tls"), [("HTTPS", True), ("https", True), ("HTTP", False), ("", False)])
def test_a_probe_by_https_is_asked_over_tls(scheme: str, tls: bool) -> None:
    assert asking(json.dumps({"httpGet": {"scheme": scheme}}), 8080)[0].tls is tls


def test_of_several_containers_each_is_asked() -> None:
    found = asking('[{"tcpSocket": {"port": 1}}, {"httpGet": {"port": "2", "path": "/x"}}]', 8080)
    assert [(one.port, one.path) for one in found] == [(1, None), (2, "/x")]


def test_exec_asks_the_port_and_grpc_its_service() -> None:
    assert asking('{"exec": {"command": ["true"]}}', 8080)[0].path is None
    [one] = asking('{"grpc": {"port": 9001, "service": "s"}}', 8080)
    assert (one.port, one.path, one.grpc) == (9001, None, "s")
    assert asking('{"grpc": {"port": 9001}}', 8080)[0].grpc == ""


@pytest.mark.parametrize("probe", ["{", "3", '["x"]'])
def test_what_is_no_probe_says_so(probe: str) -> None:
    with pytest.raises(BadProbe, match="probe: "):
        asking(probe, 8080)
