"""A node whose pods cost nothing: `python -m bench.peers.light_node STACK`, in the node's namespace of an e2e stack.

A pod bound to it is ready as soon as the API server is told, with an address of its own; all those addresses are this
process's. It answers there as a queue-proxy: probes, its statistics, and 200 to every request. So what is measured of
a start from zero is the control plane and the activator, not the speed of starting processes. Standby pods are light,
too (light_slots.py), and their node's agent is the real one, as a process.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import time
from pathlib import Path
from typing import Any, cast

import aiohttp

from bench.peers.light_slots import Slots
from e2e.stack import network, watch
from e2e.stack.kubelet.__main__ import HEARTBEAT_S
from e2e.stack.kubelet.container import now
from e2e.stack.place import CLONE, NODE_IP, SYSTEM_NAMESPACE, Place
from kserve_ext.api.standby import names
from kserve_ext.wire.stats import Stat, encode_stat

Object = dict[str, Any]
NODE = "light-1"
RANGE = "10.246.0.0/16"
LABEL = {"bench": "light"}
TAINT = {"key": "bench", "value": "light", "effect": "NoSchedule"}
_CAPACITY = {"cpu": "1000", "memory": "4096Gi", "pods": "10000"}
_PATCH = {"Content-Type": "application/merge-patch+json"}
REQUEST_PORT, STATS_PORT = 8012, 9090
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: text/plain\r\n\r\n"


class QueueProxy(asyncio.Protocol):
    """Of whichever pod the connection was made to. Only requests without bodies come here."""

    def __init__(self, pods: dict[str, tuple[str, float]], stats: bool) -> None:
        self._pods = pods
        self._stats_port = stats
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._address = transport.get_extra_info("sockname")[0]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head, self._buffer = self._buffer[:end].lower(), self._buffer[end + 4 :]
            if self._address not in self._pods:
                self._transport.abort()  # the pod is gone
            elif self._stats_port:
                self._transport.write(self._stats())
            else:
                self._transport.write(_OK + (b"queue" if b"k-network-probe: queue" in head else b"hello"))

    def _stats(self) -> bytes:
        name, since = self._pods[self._address]
        body = encode_stat(
            Stat(pod_name=name, process_uptime=time.time() - since, timestamp=int(time.time()))
        )
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/protobuf\r\nContent-Length: %d\r\n\r\n"
        return head % len(body) + body


class Agents:
    """Pods of the agents' DaemonSet: at most one, in this namespace, with the administrator's rights."""

    def __init__(self, place: Place, socket: Path) -> None:
        self._place = place
        self._socket = socket
        self._process: asyncio.subprocess.Process | None = None
        self._uid = ""

    async def start(self, pod: Object, address: str) -> None:
        self._uid = pod["metadata"]["uid"]
        env = {
            "NODE_NAME": NODE,
            "POD_IP": address,
            "POD_NAME": pod["metadata"]["name"],
            "SYSTEM_NAMESPACE": SYSTEM_NAMESPACE,
            "GALAXY_SLOT_SOCKET": str(self._socket),
            "GALAXY_METRICS_PORT": "9191",  # 9090 is the pods'
            "KUBECONFIG": str(self._place.kubeconfig),
        }
        argv = [sys.executable, "-m", "autoscaler_shim.node_agent"]
        with (self._place.logs / "light-agent.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *argv, cwd=CLONE, env={**os.environ, **env}, stdout=log, stderr=log
            )

    async def end(self, uid: str) -> None:
        if uid == self._uid and self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()


class Node:
    def __init__(self, client: aiohttp.ClientSession, slots: Slots, agents: Agents) -> None:
        self._client = client
        self._slots = slots
        self._agents = agents
        self._number = 0
        self._known: dict[str, str] = {}
        self._ending: set[str] = set()
        #: Address -> name and birth of the pod that has it.
        self.pods: dict[str, tuple[str, float]] = {}

    async def run(self) -> None:
        metadata = {"name": NODE, "labels": {**LABEL, "kubernetes.io/hostname": NODE}}
        spec = {"taints": [TAINT]}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec}
        async with self._client.post("/api/v1/nodes", json=node) as response:
            response.raise_for_status()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._heartbeat())

            def changed(change: str, pod: Object) -> None:
                uid = pod["metadata"]["uid"]
                labels = pod["metadata"].get("labels") or {}
                if change == "GONE" or pod["metadata"].get("deletionTimestamp"):
                    self._slots.remove(uid)
                if change == "GONE":
                    self.pods.pop(self._known.pop(uid, ""), None)
                    self._ending.discard(uid)
                elif pod["metadata"].get("deletionTimestamp"):
                    if uid not in self._ending:
                        self._ending.add(uid)
                        self.pods.pop(self._known.get(uid, ""), None)
                        tasks.create_task(self._end(pod))
                elif uid not in self._known:
                    self._number += 1
                    address = f"10.246.{self._number // 250 % 250}.{self._number % 250 + 1}"
                    self._known[uid] = address
                    if labels.get(names.COMPONENT_LABEL) == names.AGENT_COMPONENT:
                        tasks.create_task(self._agents.start(pod, address))
                    elif names.POOL_LABEL in labels:
                        self._slots.add(pod, address)
                    else:
                        self.pods[address] = pod["metadata"]["name"], time.time()
                    tasks.create_task(self._ready(pod, address))

            await watch.follow(self._client, f"/api/v1/pods?fieldSelector=spec.nodeName%3D{NODE}", changed)

    async def _ready(self, pod: Object, address: str) -> None:
        conditions = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
        status = {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "hostIP": NODE_IP,
            "startTime": now(),
            "conditions": [{"type": c, "status": "True", "lastTransitionTime": now()} for c in conditions],
            "containerStatuses": [
                {
                    "name": container["name"],
                    "image": container["image"],
                    "imageID": container["image"],
                    "ready": True,
                    "started": True,
                    "restartCount": 0,
                    "state": {"running": {"startedAt": now()}},
                }
                for container in pod["spec"]["containers"]
            ],
        }
        await self._send("PATCH", f"{_path(pod)}/status", {"status": status}, _PATCH)

    async def _end(self, pod: Object) -> None:
        await self._agents.end(pod["metadata"]["uid"])
        await self._send("DELETE", _path(pod), {"gracePeriodSeconds": 0}, {})

    async def _send(self, method: str, path: str, body: Object, headers: dict[str, str]) -> None:
        try:
            async with self._client.request(method, path, json=body, headers=headers) as response:
                if response.status >= 300 and response.status not in (404, 409):
                    watch.say(f"{method} {path}: {response.status} {await response.text()}")
        except (OSError, aiohttp.ClientError) as error:
            watch.say(f"{method} {path}: {error!r}")

    async def _heartbeat(self) -> None:
        while True:
            ready = {"type": "Ready", "status": "True", "lastHeartbeatTime": now()}
            status = {"conditions": [ready], "capacity": _CAPACITY, "allocatable": _CAPACITY}
            await self._send("PATCH", f"/api/v1/nodes/{NODE}/status", {"status": status}, _PATCH)
            await asyncio.sleep(HEARTBEAT_S)


def _path(pod: Object) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


async def main(place: Place) -> None:
    network.ip("-n", place.node, "route", "replace", "local", RANGE, "dev", "lo")
    loop = asyncio.get_running_loop()
    folder = place.folder / "light"
    socket = folder / "agent.sock"
    async with watch.session(place) as client:
        slots = Slots(client, folder, socket)
        await slots.start()
        node = Node(client, slots, Agents(place, socket))
        for port, stats in ((REQUEST_PORT, False), (STATS_PORT, True)):
            proxy = functools.partial(QueueProxy, node.pods, stats)
            await loop.create_server(proxy, "0.0.0.0", port, backlog=1024, reuse_port=True)
        await node.run()


if __name__ == "__main__":
    asyncio.run(main(Place(sys.argv[1])))
