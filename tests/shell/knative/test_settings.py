"""The environment of Knative's activator Deployment, and ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from activator_replacement.knative.settings import BadEnvironment, read
from kserve_ext.kube.pod import cluster_domain

POD = {"POD_NAME": "act-0", "POD_IP": "10.0.0.1"}


def test_defaults_are_knatives() -> None:
    found = read({**POD, "SYSTEM_NAMESPACE": "kn", "CLUSTER_DOMAIN": "example.org"})
    assert (found.pod_name, found.pod_ip, found.namespace) == ("act-0", "10.0.0.1", "kn")
    assert found.autoscaler == "ws://autoscaler.kn.svc.example.org:8080"
    assert (found.http1_port, found.http2_port, found.https_port, found.metrics_port) == (
        8012,
        8013,
        8112,
        9090,
    )
    assert (found.idle_connections, found.idle_connections_per_pod) == (1000, 100)
    assert (found.probe_timeout_s, found.probe_every_s) == (0.3, 0.2)
    assert (found.drain_s, found.endpoints, found.family) == (45.0, "auto", "IPv4")


def test_tunables() -> None:
    found = read({**POD, "POD_IP": "fe80::1", "PROBE_TIMEOUT": "1.5s", "MAX_IDLE_PROXY_CONNS_PER_HOST": "7"})
    assert (found.probe_timeout_s, found.idle_connections_per_pod, found.family) == (1.5, 7, "IPv6")


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("PROBE_TIMEOUT", "300", "300ms"),
        ("PROBE_FREQUENCY", "-1s", "300ms"),
        ("MAX_IDLE_PROXY_CONNS", "many", "whole number"),
        ("GALAXY_HELD_BYTES", "-1", "whole number"),
        ("GALAXY_HTTP1_PORT", "99999", "'99999'. Write a port"),
        ("PROFILING_PORT", "http", "a port"),
        ("GALAXY_AUTOSCALER", "autoscaler:8080", "ws://"),
        ("GALAXY_ENDPOINTS", "slices", "endpointslices"),
        ("POD_IP", "", "downward API"),
    ],
)
def test_what_cannot_be_read_is_named_with_the_remedy(name: str, value: str, hint: str) -> None:
    with pytest.raises(BadEnvironment, match=rf"{name}.*{hint}"):
        read({**POD, name: value})


@pytest.mark.parametrize(
    ("content", "domain"),
    [
        ("nameserver 1.1.1.1\nsearch ns.svc.my.domain svc.my.domain my.domain\n", "my.domain"),
        ("search svc.dotted.\n", "dotted"),
        ("search example.org\n", "cluster.local"),
        ("", "cluster.local"),
    ],
)
def test_the_clusters_domain(tmp_path: Path, content: str, domain: str) -> None:
    (tmp_path / "resolv.conf").write_text(content)
    assert cluster_domain(tmp_path / "resolv.conf") == domain


def test_no_resolv_conf(tmp_path: Path) -> None:
    assert cluster_domain(tmp_path / "none") == "cluster.local"
