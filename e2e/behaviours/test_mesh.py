"""A mesh in the way: the activator reaches a pod by its Service's address only."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from e2e.behaviours.client import Client, Load
from e2e.behaviours.parts import system_pods
from e2e.behaviours.services import ASLEEP, deployed, template
from e2e.stack import network
from e2e.stack.api import Api, wait_until
from e2e.stack.cluster import Cluster
from e2e.stack.implementations import whose
from e2e.stack.place import POD_RANGE, SERVICE_RANGE, SYSTEM_NAMESPACE, pod_number

ALWAYS = {"target-burst-capacity": "-1"}


class Mesh:
    """Before one pod: counts packets to Services, and lets none through to other pods' queue-proxies while closed."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace

    def _nft(self, *words: str, text: str = "") -> str:
        command = network.command(self._namespace, ["nft", *words])
        return subprocess.run(command, input=text, check=True, capture_output=True, text=True).stdout

    def set(self, closed: bool) -> None:
        pods = f"ip daddr {POD_RANGE} tcp dport {{ 8012, 8013 }} counter {'drop' if closed else 'accept'}"
        self._nft(
            "-f",
            "-",
            text=f"""table ip mesh {{
                chain out {{
                    type filter hook output priority 0;
                }}
            }}
            flush chain ip mesh out
            add rule ip mesh out ip daddr {SERVICE_RANGE} tcp dport 80 counter comment "service"
            add rule ip mesh out {pods} comment "pod"
            """,
        )

    def remove(self) -> None:
        self._nft("delete", "table", "ip", "mesh")

    def packets(self, comment: str) -> int:
        listed = json.loads(self._nft("-j", "list", "table", "ip", "mesh"))["nftables"]
        (rule,) = [entry["rule"] for entry in listed if entry.get("rule", {}).get("comment") == comment]
        return next(int(part["counter"]["packets"]) for part in rule["expr"] if "counter" in part)


@contextmanager
def mesh_before_the_activator(stack: Cluster, api: Api) -> Iterator[Mesh]:
    (name,) = system_pods(api, "activator")
    address = api.get("v1", "Pod", SYSTEM_NAMESPACE, name)["status"]["podIP"]
    mesh = Mesh(stack.place.pod(pod_number(address)))
    mesh.set(closed=True)
    try:
        yield mesh
    finally:
        mesh.remove()


def test_pods_behind_a_mesh_are_reached_by_their_service(
    stack: Cluster, implementation: str, api: Api, client: Client
) -> None:
    """From zero: Kubernetes calls a pod ready, and no probe of the activator comes through to it."""
    with (
        deployed(api, "mesh", template({**ALWAYS, **ASLEEP})) as service,
        mesh_before_the_activator(stack, api) as mesh,
    ):
        with client.load(service, 4, "/?sleep=20") as load:
            load.wait_good(50)
            assert mesh.packets("pod") > 0
            assert mesh.packets("service") > 0
            mesh.set(closed=False)
            if whose(implementation, "activator") == "ours":
                wait_until("requests to go to the pod itself", lambda: direct(mesh, load), 60)
            else:  # Knative's stays with the Service's address for as long as it knows the revision
                load.wait_good(100)
                assert not direct(mesh, load)
        assert not load.failures


def direct(mesh: Mesh, load: Load) -> bool:
    before = mesh.packets("service")
    load.wait_good(40)
    return mesh.packets("service") == before
