"""Around a node agent in tests: a slot that is a socket and a script, and an activator that notes news."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from autoscaler_shim.node_agent.settings import Settings
from kserve_ext.core.ids import InstanceID, RevisionKey
from kserve_ext.core.standby.facts import Assignment, SlotState, Started, Timeouts
from kserve_ext.kube.kinds import NODES, SECRETS
from kserve_ext.rpc import Caller, Rpc
from kserve_ext.wire.messages import ModInstance, ModInstanceReply
from kserve_ext.wire.slot_socket import Free, FromAgent, Hello, Refused, Start, State
from tests.support.api_server import ApiServer

NODE = "node-1"
SYSTEM = "knative-serving"
KEY = b"k" * 32
REVISION = RevisionKey("default/first")


def put_cluster(api: ApiServer) -> None:
    """The peers' key and the Node object, with two GPUs."""
    api.put(
        SECRETS,
        {
            "metadata": {"namespace": SYSTEM, "name": "galaxy-peers"},
            "data": {"key": "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="},
        },
    )
    labels = {"nvidia.com/gpu.memory": "81559", "topology.kubernetes.io/zone": "a"}
    allocatable = {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "2"}
    api.put(NODES, {"metadata": {"name": NODE, "labels": labels}, "status": {"allocatable": allocatable}})


def review(pod: str = "default/a", uid: str = "u1", node: str = NODE) -> dict[str, Any]:
    """What the API server says of a good token."""
    namespace, _, name = pod.partition("/")
    extra = {"pod-name": [name], "pod-uid": [uid], "node-name": [node]}
    return {
        "authenticated": True,
        "audiences": ["kserve-galaxy.io"],
        "user": {
            "username": f"system:serviceaccount:{namespace}:default",
            "extra": {f"authentication.kubernetes.io/{key}": value for key, value in extra.items()},
        },
    }


def settings(folder: Path) -> Settings:
    return Settings(NODE, "127.0.0.1", socket=folder / "agent.sock", port=0, metrics_port=0)


def assignment(revision: RevisionKey = REVISION, instance: str = "a", *, http2: bool = False) -> Assignment:
    return Assignment(
        revision,
        InstanceID(instance),
        ("server", "--port", "8080"),
        (("A", "1"),),
        8080,
        http2,
        1,
        Timeouts(),
        "",
        (("serving.knative.dev/revision", "first"),),
    )


class FakeSlot:
    """A slot's process, as far as the agent can see it. It does what it is told at once, unless `quiet`."""

    def __init__(self, api: ApiServer, path: Path, pod: str = "default/a", uid: str = "u1") -> None:
        self.hello = Hello(f"token-{uid}", pod, uid, "pool-1", "10.0.0.7", "S0", 7, gpus=1)
        self.state = State("ready")
        self.orders: list[Start | Free] = []
        self.refused = ""
        self.quiet = False
        self.path = path
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._reading: asyncio.Task[None] | None = None
        api.reviewed.setdefault(self.hello.token, review(pod, uid))

    async def dial(self) -> None:
        self._reader, self._writer = await asyncio.open_unix_connection(self.path)
        self.raw(msgspec.json.encode(self.hello))
        self.say(self.state.state, self.state.revision, self.state.reason)
        self._reading = asyncio.create_task(self._read())

    async def keep_dialling(self) -> None:
        """As the slot's own does when an agent ends."""
        while True:
            try:
                await self.dial()
            except OSError:
                await asyncio.sleep(0.01)
                continue
            assert self._reading is not None
            await self._reading

    def say(
        self, state: SlotState, revision: str = "", reason: str = "", started: Started | None = None
    ) -> None:
        self.state = State(state, revision, reason, started)
        self.raw(msgspec.json.encode(self.state))

    def raw(self, line: bytes) -> None:
        self._writer.write(line + b"\n")

    async def ended(self) -> None:
        """The agent has closed the connection."""
        assert self._reading is not None
        await self._reading

    async def close(self) -> None:
        self._writer.close()
        if self._reading is not None:
            await self._reading

    async def _read(self) -> None:
        try:
            while line := await self._reader.readline():
                self._hear(msgspec.json.decode(line, type=FromAgent))
        except OSError:
            pass
        self._writer.close()

    def _hear(self, message: FromAgent) -> None:
        match message:
            case Refused(reason):
                self.refused = reason
            case Start(assignment):
                self.orders.append(message)
                if not self.quiet:
                    self.say("starting", assignment.revision)
                    self.say("serving", assignment.revision)
            case Free(revision):
                self.orders.append(message)
                if not self.quiet:
                    self.say("draining", revision)
                    self.say("ready")


class FakeActivator:
    def __init__(self) -> None:
        self.rpc = Rpc("10.0.0.1", KEY)
        self.news: list[tuple[str, str, str]] = []  # instance, state, addr
        self.addr = ""

    async def start(self) -> None:
        self.rpc.handle(ModInstance, self._heard)
        self.addr = await self.rpc.listen("127.0.0.1")

    def _heard(self, message: ModInstance, _: Caller) -> ModInstanceReply:
        self.news += [(i.id, i.state, i.addr) for i in message.instances]
        return ModInstanceReply(False)
