"""The smallest setting in which Knative's own activator serves: an API server with Knative's definitions.

Kubernetes' control plane and DNS of the e2e stack, without node and without Knative's controllers; revisions, private
Services and Endpoints are written by hand, a sink takes the statistics. Every proxy runs in a network namespace as a
pod would, with its instances on an address of its own loopback: only the proxy and the load differ between peers.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.processes import on_cpu, wait_listening
from e2e import build
from e2e.stack import certificates, control_plane, knative, network, processes
from e2e.stack.api import Api, Object
from e2e.stack.place import CLONE, NODE_IP, SYSTEM_NAMESPACE, Place, pod_address

INSTANCE_IP = "10.99.0.1"
HTTP_PORT, EVENTS_PORT, CALLS_PORT = 9001, 9002, 9003
SINK_PORT = 8080
#: Revision -> (protocol, port of its instance, 0: it has none, requests to it are held).
REVISIONS = {
    "bench-00001": ("http1", HTTP_PORT),
    "events-00001": ("http1", EVENTS_PORT),
    "calls-00001": ("h2c", CALLS_PORT),
    "cold-00001": ("http1", 0),
}
PROXY_CPU, LOAD_CPU = 0, 1


class Site:
    """One namespace with instances."""

    def __init__(self, place: Place, number: int, name: str) -> None:
        self.name = name
        self.address = pod_address(number)
        self.namespace = network.make_pod(place, number, self.address, name)
        network.ip("-n", self.namespace, "addr", "add", f"{INSTANCE_IP}/32", "dev", "lo")

    def start(self, cpu: int, *argv: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        return on_cpu(cpu, *network.command(self.namespace, list(argv)), env={**os.environ, **(env or {})})

    @property
    def prefix(self) -> tuple[str, ...]:
        return tuple(network.command(self.namespace, []))


class Setting:
    def __init__(self, place: Place, api: Api) -> None:
        self.place = place
        self.api = api
        self.sites = {name: Site(place, number, name) for number, name in enumerate(("stock", "ours"), 1)}

    def activator(self, name: str, log: Path) -> subprocess.Popen[bytes]:
        """`stock` or `ours`, as their Deployment would start them; Go and uvloop both see one processor."""
        site = self.sites[name]
        argv = (
            [str(build.program("activator"))]
            if name == "stock"
            else [sys.executable, "-m", "activator_replacement.knative"]
        )
        env = {
            "GOGC": "500",
            "POD_NAME": f"activator-{name}",
            "POD_IP": site.address,
            "SYSTEM_NAMESPACE": SYSTEM_NAMESPACE,
            "CONFIG_LOGGING_NAME": "config-logging",
            "CONFIG_OBSERVABILITY_NAME": "config-observability",
            "KUBERNETES_MIN_VERSION": "v1.30.0",
            "KUBECONFIG": str(self.place.kubeconfig),
        }
        with log.open("ab") as out:
            command = network.command(site.namespace, argv)
            process = on_cpu(PROXY_CPU, *command, env={**os.environ, **env}, stdout=out, stderr=out)
        return process


@contextmanager
def setting() -> Iterator[Setting]:
    """Everything but the proxies on the load's core."""
    network.require()
    if absent := build.missing():
        raise SystemExit(f"not built yet: {', '.join(absent)} (python -m e2e.build)")
    os.sched_setaffinity(0, {LOAD_CPU})
    place = Place(f"b{secrets.token_hex(3)}")
    record = processes.Record(processes.of_pid(os.getpid()))
    place.logs.mkdir(parents=True)
    record.write(place)
    try:
        network.make_node(place)
        network.enter(place.node)
        certificates.make(place)
        api = control_plane.start(place, record)
        addons = [sys.executable, "-m", "e2e.stack.addons", place.name]
        processes.start(place, record, "addons", addons, env={"PYTHONPATH": str(CLONE)})
        made = Setting(place, api)
        kinds = ("CustomResourceDefinition", "Namespace", "ConfigMap")
        api.apply_all([obj for obj in knative.objects() if obj["kind"] in kinds])
        api.apply_all(_objects([site.address for site in made.sites.values()]))
        on_cpu(LOAD_CPU, sys.executable, "-m", "bench.peers.stat_sink", f"{NODE_IP}:{SINK_PORT}")
        wait_listening(SINK_PORT, "the sink of statistics", NODE_IP)
        yield made
    finally:
        processes.remove(place)


def _objects(activators: list[str]) -> Iterator[Object]:
    yield from _service("autoscaler", SYSTEM_NAMESPACE, {"http": SINK_PORT}, [NODE_IP], {})
    ports = {"http": 8012, "http2": 8013}
    yield from _service("activator-service", SYSTEM_NAMESPACE, ports, activators, {})
    for name, (protocol, port) in REVISIONS.items():
        labels = {
            "serving.knative.dev/revision": name,
            "serving.knative.dev/revisionUID": name,
            "serving.knative.dev/configuration": name.partition("-")[0],
            "serving.knative.dev/service": name.partition("-")[0],
            "serving.knative.dev/routingState": "active",
        }
        private = {
            **labels,
            "networking.internal.knative.dev/serverlessservice": name,
            "networking.internal.knative.dev/serviceType": "Private",
        }
        container = {
            "name": "user-container",
            "image": "e2e.local/server:1",
            "ports": [{"containerPort": 8080, "name": protocol}],
        }
        yield {
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Revision",
            "metadata": {"name": name, "namespace": "default", "labels": labels},
            "spec": {"containerConcurrency": 0, "timeoutSeconds": 300, "containers": [container]},
        }
        port_name = "http2" if protocol == "h2c" else "http"
        addresses = [INSTANCE_IP] if port else []
        yield from _service(f"{name}-private", "default", {port_name: port or HTTP_PORT}, addresses, private)


def _service(
    name: str, namespace: str, ports: dict[str, int], addresses: list[str], labels: dict[str, str]
) -> Iterator[Object]:
    """Without a selector, so that nobody else writes its Endpoints."""
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "ports": [
                {"name": key, "port": port if name == "autoscaler" else 80 + index, "targetPort": port}
                for index, (key, port) in enumerate(ports.items())
            ]
        },
    }
    subset = {
        "addresses": [{"ip": address} for address in addresses],
        "ports": [{"name": key, "port": port} for key, port in ports.items()],
    }
    subsets = [subset] if addresses else []
    yield {"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": subsets}
