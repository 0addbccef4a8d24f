"""What an ingress does with a request, on the client's side: which endpoint it goes to, and with which headers.

As Kourier: the split by the Route's percentages, the endpoints of the revision's public Service (which lead to the
activator or to the pods, as the control plane decides), the headers that name the revision, no retries.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from e2e.behaviours.follower import Follower
from e2e.stack.place import Place

Object = dict[str, Any]
_KINGRESS = "/apis/networking.internal.knative.dev/v1alpha1/ingresses"


class NoEndpoint(Exception):
    """An ingress would answer 503: no healthy upstream."""


class Backend(NamedTuple):
    address: str  # host:port
    revision: str
    headers: dict[str, str]


class Ingress(Follower):
    def __init__(self, place: Place) -> None:
        super().__init__(
            place, {_KINGRESS: self._ingress_changed, "/api/v1/endpoints": self._endpoints_changed}
        )
        self._ingresses: dict[str, Object] = {}
        self._endpoints: dict[str, list[str]] = {}
        self._random = random.Random(4)

    def _ingress_changed(self, change: str, obj: Object) -> None:
        key = _key(obj)
        if change == "GONE":
            self._ingresses.pop(key, None)
        else:
            self._ingresses[key] = obj

    def _endpoints_changed(self, change: str, obj: Object) -> None:
        key = _key(obj)
        if change == "GONE":
            self._endpoints.pop(key, None)
            return
        self._endpoints[key] = [
            f"{address['ip']}:{port['port']}"
            for subset in obj.get("subsets") or []
            for address in subset.get("addresses") or []
            for port in subset.get("ports") or []
            if port.get("name") in ("http", "http2")
        ]

    def endpoints(self, namespace: str, service: str) -> list[str]:
        return list(self._endpoints.get(f"{namespace}/{service}", []))

    def pick(self, namespace: str, route: str) -> Backend:
        ingress = self._ingresses.get(f"{namespace}/{route}")
        if ingress is None:
            raise NoEndpoint(f"no ingress of route {route}")
        splits = ingress["spec"]["rules"][0]["http"]["paths"][0]["splits"]
        split = self._random.choices(splits, [entry.get("percent", 100) for entry in splits])[0]
        revision = split["serviceName"]
        endpoints = self._endpoints.get(f"{split['serviceNamespace']}/{revision}")
        if not endpoints:
            raise NoEndpoint(f"no endpoint of {revision}")
        headers = {"Host": ingress["spec"]["rules"][0]["hosts"][0], **split.get("appendHeaders", {})}
        return Backend(self._random.choice(endpoints), revision, headers)


def _key(obj: Object) -> str:
    return f"{obj['metadata']['namespace']}/{obj['metadata']['name']}"
