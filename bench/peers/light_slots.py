"""Standby pods of the light node: what costs in a standby pod is what happens when it gets a revision.

Each is a connection to the node's real agent; all of them share one zygote. A Start forks a process of its own, which
loads the revision's model and listens at the pod's address (light_server.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from bench.peers import light_server
from e2e.stack import watch
from e2e.stack.place import CLONE
from kserve_ext.api.standby import names
from kserve_ext.core.standby.facts import Assignment
from kserve_ext.rpc.unix_socket import dial
from kserve_ext.wire import slot_socket
from kserve_ext.wire.slot_socket import Free, FromAgent, Hello, Refused, Start, State

Object = dict[str, Any]
AGAIN_S = 0.5


class Slots:
    def __init__(self, client: aiohttp.ClientSession, folder: Path, agent: Path) -> None:
        """`folder`: for sockets; `agent`: the agent's socket."""
        self._client = client
        self._agent = agent
        self._zygote = folder / "zygote.sock"
        self._told = folder / "told.sock"
        self._log = folder / "servers.log"
        self._slots: dict[str, Slot] = {}
        self._folder = folder

    async def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", light_server.PACKAGE, "--socket", str(self._zygote), "--name", "light"]
        await asyncio.create_subprocess_exec(*argv, cwd=CLONE)
        told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        told.bind(str(self._told))
        told.setblocking(False)
        asyncio.get_running_loop().add_reader(told, self._serves, told)

    def add(self, pod: Object, address: str) -> None:
        slot = Slot(self, pod, address)
        self._slots[slot.uid] = slot
        slot.task = asyncio.create_task(slot.run())

    def remove(self, uid: str) -> None:
        slot = self._slots.pop(uid, None)
        if slot is not None:
            slot.end()

    async def token(self, pod: Object) -> str:
        """As the kubelet would project it: of the pod's ServiceAccount, bound to the pod."""
        metadata = pod["metadata"]
        account = pod["spec"].get("serviceAccountName", "default")
        path = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}/token"
        bound = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
        spec = {"audiences": [names.AUDIENCE], "expirationSeconds": 7200, "boundObjectRef": bound}
        async with self._client.post(path, json={"spec": spec}) as response:
            response.raise_for_status()
            return str((await response.json())["status"]["token"])

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await dial(self._agent, limit=1 << 20)

    async def fork(self, slot: Slot, assignment: Assignment) -> int:
        argv = ["--address", slot.address, "--model", _model(assignment), "--tell", str(self._told)]
        argv += ["--uid", slot.uid, "--pod", slot.name]
        request = {"argv": argv, "stdout": str(self._log), "stderr": str(self._log)}
        reader, writer = await dial(self._zygote)
        writer.write(json.dumps(request).encode() + b"\n")
        answer = json.loads(await reader.readline())
        writer.close()
        if "pid" not in answer:
            raise OSError(str(answer.get("error")))
        return int(answer["pid"])

    def _serves(self, told: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                slot = self._slots.get(told.recv(256).decode())
                if slot is not None:
                    slot.serves()


class Slot:
    def __init__(self, slots: Slots, pod: Object, address: str) -> None:
        metadata = pod["metadata"]
        self.name: str = metadata["name"]
        self.uid: str = metadata["uid"]
        self.address = address
        self._slots = slots
        self._pod = pod
        self._hello = Hello(
            "",
            f"{metadata['namespace']}/{self.name}",
            self.uid,
            metadata["labels"][names.POOL_LABEL],
            address,
            "S0",
            time.time_ns(),
        )
        self._state = State("ready")
        self._writer: asyncio.StreamWriter | None = None
        self._pid = 0
        self._ended = False
        self.task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Dials until it has ended."""
        token = ""
        while not self._ended:
            try:
                token = token or await self._slots.token(self._pod)
                await self._speak(token)
            except (OSError, aiohttp.ClientError) as error:
                if not isinstance(error, FileNotFoundError | ConnectionError):
                    watch.say(f"slot {self.name}: {error!r}")
            self._writer = None
            await asyncio.sleep(AGAIN_S)

    async def _speak(self, token: str) -> None:
        reader, self._writer = await self._slots.dial()
        self._say(msgspec.structs.replace(self._hello, token=token))
        self._say(self._state)
        while line := await reader.readline():
            order = msgspec.json.decode(line, type=FromAgent)
            if isinstance(order, Start):
                await self._start(order.assignment)
            elif isinstance(order, Free):
                self._kill()
                self._become(State("ready"))
            elif isinstance(order, Refused):
                watch.say(f"slot {self.name}: refused: {order.reason}")
                return

    async def _start(self, assignment: Assignment) -> None:
        if self._state.revision not in ("", assignment.revision):
            self._become(msgspec.structs.replace(self._state, reason=f"has {self._state.revision} already"))
        elif self._state.revision:
            self._say(self._state)
        else:
            self._become(State("starting", assignment.revision))
            try:
                self._pid = await self._slots.fork(self, assignment)
            except (OSError, ValueError) as error:
                self._become(State("failed", assignment.revision, str(error)))

    def serves(self) -> None:
        if self._state.state == "starting":
            self._become(State("serving", self._state.revision))

    def end(self) -> None:
        self._ended = True
        self._kill()
        if self._writer is not None:
            self._writer.close()

    def _kill(self) -> None:
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        self._pid = 0

    def _become(self, state: State) -> None:
        self._state = state
        self._say(state)

    def _say(self, word: slot_socket.FromSlot) -> None:
        if self._writer is not None:
            self._writer.write(msgspec.json.encode(word) + b"\n")


def _model(assignment: Assignment) -> str:
    argv = assignment.argv
    return argv[argv.index("--model") + 1]
