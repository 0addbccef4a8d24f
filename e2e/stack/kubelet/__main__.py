"""`python -m e2e.stack.kubelet STACK [NODE]`: a node whose pods are real processes, in a network namespace each.

Serves whatever pods the scheduler binds to its node, stock and ours alike. Not done: images, resource limits, users,
init containers, sizes of volumes. Each pod gets a kubeconfig with a token of its ServiceAccount in
KUBECONFIG, so that roles are what they would be in a cluster.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import aiohttp

from e2e.stack import certificates, watch
from e2e.stack.kubelet.container import now
from e2e.stack.kubelet.pod import Pod
from e2e.stack.place import NODE_IP, NODE_NAME, Place

Object = dict[str, Any]
HEARTBEAT_S = 10.0
#: Pods of a second node are numbered from here on, so that no two have one address.
OTHERS = 30_000
_CAPACITY = {"cpu": "64", "memory": "256Gi", "pods": "1000"}


class Kubelet:
    def __init__(
        self, place: Place, node: str, client: aiohttp.ClientSession, prober: aiohttp.ClientSession
    ) -> None:
        self._place = place
        self._node = node
        self._client = client
        self._prober = prober
        self._pods: dict[str, Pod] = {}
        self._number = 0 if node == NODE_NAME else OTHERS
        self._accounts: dict[tuple[str, str, str], asyncio.Task[Path]] = {}

    async def run(self) -> None:
        await self._register()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._heartbeat())

            def changed(change: str, obj: Object) -> None:
                uid = obj["metadata"]["uid"]
                if change == "GONE":
                    if pod := self._pods.get(uid):
                        pod.delete(0)
                elif obj["metadata"].get("deletionTimestamp"):
                    if pod := self._pods.get(uid):
                        pod.delete(float(obj["metadata"].get("deletionGracePeriodSeconds", 30)))
                    else:
                        tasks.create_task(self._live(uid, obj, doomed=True))
                elif pod := self._pods.get(uid):
                    pod.observe(obj)
                elif obj.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
                    tasks.create_task(self._live(uid, obj))

            await watch.follow(
                self._client, f"/api/v1/pods?fieldSelector=spec.nodeName%3D{self._node}", changed
            )

    async def _live(self, uid: str, obj: Object, doomed: bool = False) -> None:
        if uid in self._pods:
            return
        self._number += 1
        pod = Pod(
            self._place,
            self._number,
            obj,
            self._client,
            self._prober,
            self._fetch,
            self._kubeconfig,
            self._token,
            self._place.host_of(self._node),
        )
        self._pods[uid] = pod
        if doomed:
            pod.delete(0)
        try:
            await pod.run()
        except Exception as error:
            # One pod's trouble is not another's.
            watch.say(f"pod {pod.namespace}/{pod.name}: {error!r}")
        finally:
            del self._pods[uid]

    async def _fetch(self, plural: str, namespace: str, name: str) -> Object | None:
        place = f"namespaces/{namespace}/" if namespace else ""
        async with self._client.get(f"/api/v1/{place}{plural}/{name}") as response:
            if response.status == 404:
                return None
            response.raise_for_status()
            found: Object = await response.json()
            return found

    async def _kubeconfig(self, namespace: str, account: str) -> Path:
        """Anew for an account that has been made anew: the token of its namesake is good for nothing."""
        found = await self._fetch("serviceaccounts", namespace, account)
        key = namespace, account, found["metadata"]["uid"] if found else ""
        if key not in self._accounts:
            self._accounts[key] = asyncio.create_task(self._make_kubeconfig(*key))
        return await asyncio.shield(self._accounts[key])

    async def _token(self, namespace: str, account: str, spec: Object) -> Object:
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        async with self._client.post(path, json={"spec": spec}) as response:
            response.raise_for_status()
            status: Object = (await response.json())["status"]
            return status

    async def _make_kubeconfig(self, namespace: str, account: str, uid: str) -> Path:
        token = (await self._token(namespace, account, {"expirationSeconds": 86_400}))["token"]
        file = self._place.folder / f"kubeconfig-{namespace}-{account}-{uid[:8]}"
        certificates.write_kubeconfig(self._place, file, token, namespace)
        return file

    async def _register(self) -> None:
        labels = {"kubernetes.io/hostname": self._node, "kubernetes.io/os": "linux"}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self._node, "labels": labels}}
        async with self._client.post("/api/v1/nodes", json=node) as response:
            if response.status != 409:
                response.raise_for_status()

    async def _heartbeat(self) -> None:
        while True:
            condition = {
                "type": "Ready",
                "status": "True",
                "reason": "KubeletReady",
                "message": "",
                "lastHeartbeatTime": now(),
                "lastTransitionTime": now(),
            }
            status = {
                "conditions": [condition],
                "capacity": _CAPACITY,
                "allocatable": _CAPACITY,
                "addresses": [{"type": "InternalIP", "address": NODE_IP}],
            }
            try:
                async with self._client.patch(
                    f"/api/v1/nodes/{self._node}/status",
                    json={"status": status},
                    headers={"Content-Type": "application/merge-patch+json"},
                ) as response:
                    await response.read()
            except (OSError, aiohttp.ClientError) as error:
                watch.say(f"heartbeat: {error!r}")
                await asyncio.sleep(watch.RETRY_S)
                continue
            await asyncio.sleep(HEARTBEAT_S)


async def main(place: Place, node: str) -> None:
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with (
        watch.session(place) as client,
        aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as prober,
    ):
        await Kubelet(place, node, client, prober).run()


if __name__ == "__main__":
    asyncio.run(main(Place(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else NODE_NAME))
