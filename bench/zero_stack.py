"""The e2e stack as bench-from-zero needs it: Services at zero, the node their pods run on, and who serves them.

Each Service may go to zero at once and starts there. Also: whose CPU time was used.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from bench.peers import light_node
from bench.processes import of_stack, own_cpu_ns
from e2e.stack import knative, network
from e2e.stack.api import condition, wait_until
from e2e.stack.cluster import Cluster
from e2e.stack.kubelet import programs
from e2e.stack.place import CLONE, SYSTEM_NAMESPACE, Place

SERVING = "serving.knative.dev/v1"
#: Woken once after each swap, so that no measured start is the first one.
SPARE = "zero-spare"
CREATED_AT_ONCE = 10
SETTINGS = {
    "config-autoscaler": {"allow-zero-initial-scale": "true"},
    "config-features": {
        "kubernetes.podspec-nodeselector": "enabled",
        "kubernetes.podspec-tolerations": "enabled",
    },
}


def name_of(number: int) -> str:
    return f"zero-{number:03}"


class Marks(NamedTuple):
    """What a Service has besides: annotations of its revision, arguments of its server."""

    annotations: Mapping[str, str] = MappingProxyType({})
    args: tuple[str, ...] = ()


def service(name: str, light: bool, more: Marks) -> dict[str, Any]:
    marks = {
        "window": "6s",
        "min-scale": "0",
        "initial-scale": "0",
        "scale-to-zero-pod-retention-period": "0s",
    }
    annotations = {f"autoscaling.knative.dev/{key}": value for key, value in marks.items()}
    annotations |= more.annotations
    container: dict[str, Any] = {"image": programs.USER_SERVER, "ports": [{"containerPort": 8080}]}
    if more.args:
        container["args"] = list(more.args)
    spec: dict[str, Any] = {"containers": [container]}
    if light:
        spec |= {"nodeSelector": light_node.LABEL, "tolerations": [light_node.TAINT]}
    return {
        "apiVersion": SERVING,
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"template": {"metadata": {"annotations": annotations}, "spec": spec}},
    }


def prepare(
    stack: Cluster, count: int, light: bool, marks: Callable[[str], Marks] = lambda name: Marks()
) -> None:
    """The settings, the light node, and `count` Services that are ready at zero."""
    api = stack.api
    for name, data in SETTINGS.items():
        api.patch("v1", "ConfigMap", SYSTEM_NAMESPACE, name, {"data": data})
    if light:
        argv = [sys.executable, "-m", "bench.peers.light_node", stack.place.name]
        with (stack.place.logs / "light-node.log").open("wb") as log:
            subprocess.Popen(argv, cwd=CLONE, stdout=log, stderr=log)
        wait_until(
            "the light node", lambda: condition(api.get("v1", "Node", "", light_node.NODE), "Ready"), 60
        )
    names = [SPARE, *map(name_of, range(count))]
    # The webhook may not have seen the settings yet.
    wait_until(
        "the first Service", lambda: bool(api.create(service(names[0], light, marks(names[0])))), 60, 0.5
    )
    for first in range(1, len(names), CREATED_AT_ONCE):
        for name in names[first : first + CREATED_AT_ONCE]:
            api.create(service(name, light, marks(name)))
        for name in names[first : first + CREATED_AT_ONCE]:
            wait_until(
                f"Service {name} ready",
                lambda name=name: (  # type: ignore[misc]
                    condition(api.get(SERVING, "Service", "default", name), "Ready") == "True"
                ),
                120,
            )


def use(stack: Cluster, activator: str, autoscaler: str) -> None:
    """Both rolled out, and every revision's public Service leads to the activator that is ready."""
    api = stack.api
    for name, which in (("activator", activator), ("autoscaler", autoscaler)):
        image = programs.stock_image(name) if which == "stock" else programs.our_image(f"galaxy-{name}")
        knative.set_image(api, name, image)
    for name in ("activator", "autoscaler"):
        knative.wait_rolled_out(api, name)

    def routed() -> bool:
        ready = _addresses(api.get("v1", "Endpoints", SYSTEM_NAMESPACE, "activator-service"))
        public = [
            obj
            for obj in api.list("v1", "Endpoints", "default")
            if obj["metadata"].get("labels", {}).get("networking.internal.knative.dev/serviceType")
            == "Public"
        ]
        return len(ready) == 1 and all(_addresses(obj) == ready for obj in public)

    wait_until("all revisions to be routed to the activator", routed, 120, 0.5)


def _addresses(endpoints: Mapping[str, Any]) -> set[str]:
    return {a["ip"] for subset in endpoints.get("subsets") or [] for a in subset.get("addresses") or []}


def activator_of(stack: Cluster) -> str:
    (address,) = _addresses(stack.api.get("v1", "Endpoints", SYSTEM_NAMESPACE, "activator-service"))
    return f"{address}:8012"


def cpu_by_program(place: Place) -> Counter[str]:
    """CPU microseconds so far of every program of the stack, and of this bench."""
    spent: Counter[str] = Counter()
    for pid in {*network.processes(place.node), *of_stack(place.folder)}:
        spent[_program(pid)] += own_cpu_ns(pid) // 1000
    spent["this bench"] = own_cpu_ns(os.getpid()) // 1000
    return spent


def _program(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return "ended"
    return words[2] if words[1:2] == ["-m"] else words[0].rpartition("/")[2]
