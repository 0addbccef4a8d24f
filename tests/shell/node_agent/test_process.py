"""The node agent as a process: killed in the middle it knows everything again, as its slots dial again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kserve_ext.core.ids import InstanceID
from kserve_ext.rpc import Rpc, RpcError
from kserve_ext.rpc.ports import free_port
from kserve_ext.wire.messages import NodeSlots, SlotReply, TakeSlot, WatchSlots
from tests.shell.knative.test_activator_process import kubeconfig, line
from tests.support.api_server import ApiServer
from tests.support.dataplane import run
from tests.support.dispatch_cluster import until
from tests.support.standby import KEY, REVISION, FakeActivator, FakeSlot, assignment, put_cluster


async def start(folder: Path, url: str, port: str) -> asyncio.subprocess.Process:
    environ = {
        "NODE_NAME": "node-1",
        "POD_IP": "127.0.0.1",
        "GALAXY_SLOT_SOCKET": str(folder / "agent.sock"),
        "GALAXY_AGENT_PORT": port,
        "GALAXY_METRICS_PORT": "0",
        "KUBECONFIG": kubeconfig(folder, url),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "autoscaler_shim.node_agent",
        env={**os.environ, **environ},
        stdout=asyncio.subprocess.PIPE,
    )
    await line(process, "autoscalers call")
    return process


@asynccontextmanager
async def dialling(*slots: FakeSlot) -> AsyncIterator[None]:
    """Slots as they are, who dial again."""
    tasks = [asyncio.create_task(slot.keep_dialling()) for slot in slots]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for slot in slots:
        await slot.close()


class Watcher:
    def __init__(self, port: str) -> None:
        self.rpc = Rpc("autoscaler", KEY)
        self.addr = f"127.0.0.1:{port}"

    async def states(self, **wanted: tuple[str, str]) -> NodeSlots:
        """Waits until the slots, by pod, have these states and revisions; also over the agent's death."""
        tag = ""
        while True:
            try:
                found: NodeSlots = await self.rpc.call(self.addr, WatchSlots(tag), 1.0)
            except RpcError:
                tag = ""
                continue
            slots = {slot.pod.partition("/")[2]: (slot.state, str(slot.revision)) for slot in found.slots}
            if slots == wanted:
                return found
            tag = found.tag

    async def take(self, slot: FakeSlot, activator: FakeActivator) -> SlotReply:
        given = assignment()._replace(instance=InstanceID(slot.hello.pod.partition("/")[2]))
        message = TakeSlot(slot.hello.pod, slot.hello.uid, given, (activator.addr,), 1)
        reply: SlotReply = await self.rpc.call(self.addr, message)
        return reply


def test_a_killed_agent_knows_its_slots_again_and_nobody_hears_that_they_ended(tmp_path: Path) -> None:
    async def test() -> None:
        async with ApiServer() as api:
            put_cluster(api)
            port = str(free_port())
            watcher, activator = Watcher(port), FakeActivator()
            await activator.start()
            path = tmp_path / "agent.sock"
            slots = [FakeSlot(api, path, f"default/{name}", f"u-{name}") for name in "abcd"]
            slots[3].quiet = True
            process = await start(tmp_path, api.url, port)
            async with dialling(*slots):
                await watcher.states(**dict.fromkeys("abcd", ("ready", "")))
                for slot in (slots[0], slots[3]):
                    assert (await watcher.take(slot, activator)).reason == ""
                slots[1].say("failed", REVISION, "no such model")
                slots[3].say("starting", REVISION)
                now = {
                    "a": ("serving", REVISION),
                    "b": ("failed", REVISION),
                    "c": ("ready", ""),
                    "d": ("starting", REVISION),
                }
                before = await watcher.states(**now)
                await until(lambda: len(activator.news) == 1, "the activator hears of a")
                process.kill()
                await process.wait()
                process = await start(tmp_path, api.url, port)
                after = await watcher.states(**now)
                assert {slot.reason for slot in after.slots} == {"", "no such model"}
                assert after.status.incarnation > before.status.incarnation
                assert after.tag != before.tag
                slots[3].say("serving", REVISION)
                await watcher.states(**{**now, "d": ("serving", REVISION)})
                assert (await watcher.take(slots[3], activator)).reason == ""
                await until(lambda: ("d", "ready", "10.0.0.7:8012") in activator.news, "d is told as well")
                assert len(slots[3].orders) == 1, "it has been started once"
                process.send_signal(signal.SIGTERM)
                assert await process.wait() == 0
                assert [state for _, state, _ in activator.news] == ["ready", "ready"]
            await watcher.rpc.close()
            await activator.rpc.close()

    run(test())


def test_it_waits_for_the_key_with_its_socket_open(tmp_path: Path) -> None:
    async def test() -> None:
        async with ApiServer() as api:
            port = str(free_port())
            slot = FakeSlot(api, tmp_path / "agent.sock")
            starting = asyncio.create_task(start(tmp_path, api.url, port))
            async with dialling(slot):
                await api.until(lambda: any("tokenreviews" in request for request in api.requests))
                assert not starting.done()
                put_cluster(api)
                process = await starting
                watcher = Watcher(port)
                await watcher.states(a=("ready", ""))
                await watcher.rpc.close()
                process.terminate()
                assert await process.wait() == 0

    run(test())
