"""The addresses behind a Service: from a core/v1 Endpoints, or from the discovery.k8s.io/v1 EndpointSlices of it.

Both say which pods are ready and which are not (yet); one that is being terminated is in neither set. As
endpointsToDests in Knative's pkg/activator/net/helpers.go, which reads Endpoints only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

SERVICE_TYPE: Final = "networking.internal.knative.dev/serviceType"
PRIVATE: Final = "Private"
PUBLIC: Final = "Public"
SLICE_OF: Final = "kubernetes.io/service-name"

Document = Mapping[str, Any]


class Addresses(NamedTuple):
    """Each as host:port, the host in brackets when it is IPv6."""

    ready: frozenset[str]
    not_ready: frozenset[str]


NOWHERE: Final = Addresses(frozenset(), frozenset())


def of_endpoints(endpoints: Document, port_name: str) -> Addresses:
    """The addresses that have a port of this name."""
    ready: set[str] = set()
    not_ready: set[str] = set()
    for subset in endpoints.get("subsets") or ():
        port = _port(subset, port_name)
        if port:
            ready |= {address(a["ip"], port) for a in subset.get("addresses") or ()}
            not_ready |= {address(a["ip"], port) for a in subset.get("notReadyAddresses") or ()}
    return Addresses(frozenset(ready), frozenset(not_ready - ready))


def of_slices(slices: Iterable[Document], port_name: str, family: str) -> Addresses:
    """All slices of one Service; `family`: IPv4 or IPv6, since each pod of a dual-stack cluster has both."""
    ready: set[str] = set()
    not_ready: set[str] = set()
    for slice_ in slices:
        port = _port(slice_, port_name)
        if not port or slice_.get("addressType", family) != family:
            continue
        for endpoint in slice_.get("endpoints") or ():
            conditions = endpoint.get("conditions") or {}
            if conditions.get("terminating"):
                continue
            found = ready if conditions.get("ready") is not False else not_ready
            found.add(address(endpoint["addresses"][0], port))
    return Addresses(frozenset(ready), frozenset(not_ready - ready))


def hosts(addresses: Iterable[str]) -> set[str]:
    """Without ports and brackets."""
    return {addr.rpartition(":")[0].strip("[]") for addr in addresses}


def address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def cluster_address(service: Document, port_name: str) -> str:
    """The Service's own address for this port; "" when it has none."""
    spec = service.get("spec") or {}
    port = _port(spec, port_name)
    ip = spec.get("clusterIP")
    return address(ip, port) if port and ip and ip != "None" else ""


def _port(owner: Document, name: str) -> int:
    return next((int(port["port"]) for port in owner.get("ports") or () if port.get("name") == name), 0)
