"""One pod: a network namespace with its containers in it, its status told to the API server, and its end.

Deletion goes as the kubelet's: preStop hooks, SIGTERM to all, SIGKILL when the grace is over, then the object goes.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from e2e.stack import network
from e2e.stack.api import condition
from e2e.stack.kubelet import environment, probes, programs
from e2e.stack.kubelet.container import Container, now
from e2e.stack.kubelet.mounts import BadVolume
from e2e.stack.kubelet.volumes import RequestToken, Volumes
from e2e.stack.place import NODE_IP, Place, pod_address
from e2e.stack.watch import say

Object = dict[str, Any]
#: (namespace, service account) -> a kubeconfig with that account's token.
Kubeconfig = Callable[[str, str], Awaitable[Path]]


class Pod:
    def __init__(
        self,
        place: Place,
        number: int,
        obj: Object,
        client: aiohttp.ClientSession,
        prober: aiohttp.ClientSession,
        fetch: environment.Fetch,
        kubeconfig: Kubeconfig,
        request: RequestToken,
        host: Path,
    ) -> None:
        """`host`: what is / to its hostPath volumes."""
        self.name: str = obj["metadata"]["name"]
        self.namespace: str = obj["metadata"]["namespace"]
        self._obj = obj
        self._place = place
        self._number = number
        self._client = client
        self._prober = prober
        self._fetch = fetch
        self._kubeconfig = kubeconfig
        self._address = pod_address(number)
        self._network = place.pod(number)
        self._folder = place.folder / "pods" / f"{self.namespace}_{self.name}"
        self._volumes = Volumes(obj, self._folder / "volumes", fetch, request, host, self._address)
        self._containers: list[Container] = []
        self._births = asyncio.Lock()
        self._changed = asyncio.Event()
        self._deleted = asyncio.Event()
        self._started_at = now()
        self._transitions: dict[str, tuple[str, str]] = {}
        self._failure = ""

    @property
    def _path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"

    def observe(self, obj: Object) -> None:
        """What the API server has: told again if others changed it, as a node that was not heard of has its pods'."""
        self._volumes.pod = obj
        if self._containers and condition(obj, "Ready") != ("True" if self._ready else "False"):
            self._changed.set()

    def delete(self, grace_s: float) -> None:
        """May be called again with a shorter grace."""
        asyncio.get_running_loop().call_later(grace_s, self._kill, "the grace is over")
        self._deleted.set()

    def _kill(self, why: str) -> None:
        for container in self._containers:
            container.kill(why)

    async def run(self) -> None:
        """From birth to the end of the object."""
        publishing = asyncio.create_task(self._publish())
        running: list[asyncio.Task[None]] = []
        try:
            await self._start(running)
            await self._deleted.wait()
            await asyncio.gather(*(container.stop() for container in self._containers))
        finally:
            for task in running:
                task.cancel()
            publishing.cancel()
            self._kill("the pod is gone")
            await asyncio.gather(*running, publishing, return_exceptions=True)
            await asyncio.to_thread(self._clear)
            shutil.rmtree(self._folder, ignore_errors=True)
        await self._forget()

    def _clear(self) -> None:
        """Nothing of it runs on: what has its namespace would keep the pod's address answering."""
        network.end(self._network)
        network.remove(self._network)

    async def _start(self, running: list[asyncio.Task[None]]) -> None:
        """A pod that cannot start stays, failed, until it is deleted."""
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            if self._obj["spec"].get("initContainers"):
                raise programs.UnknownImage("init containers are not supported by the kubelet stand-in")
            await self._volumes.fill()
            running.append(asyncio.create_task(self._volumes.follow()))
            await asyncio.to_thread(network.make_pod, self._place, self._number, self._address, self.name)
            for spec in self._obj["spec"]["containers"]:
                running.append(asyncio.create_task((await self._container(spec)).run()))
        except (
            programs.UnknownImage,
            environment.BadEnvironment,
            BadVolume,
            network.NetworkError,
            aiohttp.ClientError,
        ) as error:
            self._failure = str(error)
            say(f"pod {self.namespace}/{self.name}: {error}")
            self._changed.set()

    async def _container(self, spec: Object) -> Container:
        images = programs.given(self._place)
        programs.argv(spec, images)  # says at once what it does not know
        target = probes.Target(self._prober, self._network, self._address, spec)
        log = self._place.logs / f"pod-{self.namespace}-{self.name}-{spec['name']}.log"
        restart = self._obj["spec"].get("restartPolicy") or "Always"
        container = Container(
            spec,
            self._network,
            target,
            log,
            self._changed.set,
            lambda: [other.pid for other in self._containers if other is not container and other.pid],
            self._births,
            restart,
        )
        container.env = await environment.of_container(spec, self._obj, self._address, self._fetch)
        account = self._obj["spec"].get("serviceAccountName") or "default"
        container.images = images
        container.mounts = self._volumes.mounts(spec)
        container.env.setdefault("KUBECONFIG", str(await self._kubeconfig(self.namespace, account)))
        self._containers.append(container)
        return container

    async def _publish(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                async with self._client.patch(
                    f"{self._path}/status",
                    json={"metadata": {"uid": self._obj["metadata"]["uid"]}, "status": self._status()},
                    headers={"Content-Type": "application/merge-patch+json"},
                ) as response:
                    if response.status not in (200, 404, 409):
                        say(f"status of {self.name}: {response.status} {await response.text()}")
            except (OSError, aiohttp.ClientError) as error:
                say(f"status of {self.name}: {error!r}")
                self._changed.set()
                await asyncio.sleep(0.5)

    @property
    def _whole(self) -> bool:
        return not self._failure and len(self._containers) == len(self._obj["spec"]["containers"])

    @property
    def _ready(self) -> bool:
        return self._whole and all(container.ready for container in self._containers)

    def _status(self) -> Object:
        statuses = [container.status() for container in self._containers]
        ready = self._ready
        waiting = [status["name"] for status in statuses if not status["ready"]]
        reason = "ContainersNotReady" if waiting else ""
        conditions = [
            self._condition("PodScheduled", True),
            self._condition("Initialized", True),
            self._condition("ContainersReady", ready, reason, f"containers with unready status: {waiting}"),
            self._condition("Ready", ready, reason, f"containers with unready status: {waiting}"),
        ]
        phase = "Running" if self._whole else "Pending"
        codes = [container.exit_code for container in self._containers]
        if self._failure:
            phase = "Failed"
        elif self._whole and None not in codes:
            phase = "Failed" if any(codes) else "Succeeded"
        return {
            "phase": phase,
            "message": self._failure or None,
            "podIP": self._address,
            "podIPs": [{"ip": self._address}],
            "hostIP": NODE_IP,
            "startTime": self._started_at,
            "conditions": conditions,
            "containerStatuses": statuses,
        }

    def _condition(self, name: str, true: bool, reason: str = "", message: str = "") -> Object:
        value = "True" if true else "False"
        if self._transitions.get(name, ("", ""))[0] != value:
            self._transitions[name] = value, now()
        entry = {"type": name, "status": value, "lastTransitionTime": self._transitions[name][1]}
        return entry if true else {**entry, "reason": reason, "message": message}

    async def _forget(self) -> None:
        """The object goes once nothing of it runs; another object of the same name is left alone."""
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": self._obj["metadata"]["uid"]}}
        while True:
            try:
                async with self._client.delete(self._path, json=body) as response:
                    if response.status in (200, 202, 404, 409):
                        return
                    say(f"end of {self.name}: {response.status} {await response.text()}")
            except (OSError, aiohttp.ClientError) as error:
                say(f"end of {self.name}: {error!r}")
            await asyncio.sleep(0.5)
