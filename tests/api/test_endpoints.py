"""Addresses from Endpoints and EndpointSlices: ready or not, by port name, one family."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_ext.api.knative.endpoints import (
    NOWHERE,
    Addresses,
    cluster_address,
    hosts,
    of_endpoints,
    of_slices,
)


def endpoints(*subsets: tuple[list[str], list[str], dict[str, int]]) -> dict[str, Any]:
    return {
        "subsets": [
            {
                "addresses": [{"ip": ip} for ip in ready],
                "notReadyAddresses": [{"ip": ip} for ip in not_ready],
                "ports": [{"name": name, "port": port} for name, port in ports.items()],
            }
            for ready, not_ready, ports in subsets
        ]
    }


@pytest.mark.parametrize(
    ("subsets", "port_name", "ready", "not_ready"),
    [
        ([], "http", set(), set()),
        ([(["1.1.1.1"], ["2.2.2.2"], {"http": 8012})], "http", {"1.1.1.1:8012"}, {"2.2.2.2:8012"}),
        ([(["1.1.1.1"], [], {"http": 8012})], "http2", set(), set()),
        ([(["fe80::1"], [], {"http2": 8013, "http": 1})], "http2", {"[fe80::1]:8013"}, set()),
        (
            [(["1.1.1.1"], [], {"http": 8012}), (["2.2.2.2"], ["1.1.1.1"], {"http": 8012})],
            "http",
            {"1.1.1.1:8012", "2.2.2.2:8012"},
            set(),
        ),
    ],
)
def test_of_endpoints(
    subsets: list[tuple[list[str], list[str], dict[str, int]]],
    port_name: str,
    ready: set[str],
    not_ready: set[str],
) -> None:
    assert of_endpoints(endpoints(*subsets), port_name) == Addresses(frozenset(ready), frozenset(not_ready))


def test_endpoints_without_anything() -> None:
    assert of_endpoints({"metadata": {}}, "http") == NOWHERE


def slice_(family: str, *addresses: tuple[str, dict[str, bool] | None], port: str = "http") -> dict[str, Any]:
    return {
        "addressType": family,
        "ports": [{"name": port, "port": 8012}],
        "endpoints": [{"addresses": [ip], "conditions": conditions} for ip, conditions in addresses],
    }


def test_of_slices() -> None:
    """Unknown readiness counts as ready; what is being terminated is nowhere; only one family counts."""
    slices = [
        slice_("IPv4", ("1.1.1.1", {"ready": True}), ("2.2.2.2", {"ready": False}), ("3.3.3.3", None)),
        slice_("IPv4", ("4.4.4.4", {"ready": False, "serving": True, "terminating": True})),
        slice_("IPv4", ("2.2.2.2", {"ready": True}), port="other"),
        slice_("IPv6", ("fe80::1", {"ready": True})),
        {"addressType": "IPv4", "ports": None, "endpoints": None},
    ]
    assert of_slices(slices, "http", "IPv4") == Addresses(
        frozenset({"1.1.1.1:8012", "3.3.3.3:8012"}), frozenset({"2.2.2.2:8012"})
    )
    assert of_slices(slices, "http", "IPv6").ready == {"[fe80::1]:8012"}
    assert of_slices([], "http", "IPv4") == NOWHERE


def test_hosts() -> None:
    assert hosts(["1.1.1.1:8012", "[fe80::1]:8012"]) == {"1.1.1.1", "fe80::1"}


def test_cluster_address() -> None:
    service = {"spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]}}
    assert cluster_address(service, "http") == "10.96.0.1:80"
    assert cluster_address(service, "http2") == ""
    assert cluster_address({"spec": {"clusterIP": "None", "ports": service["spec"]["ports"]}}, "http") == ""
