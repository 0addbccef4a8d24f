"""What an agent ends by itself: what no home acknowledges, what hangs. The agent is in the test's own loop, and its
limits are shortened.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from autoscaler_shim.node import instances
from autoscaler_shim.node.agent import NodeAgent
from autoscaler_shim.node.capacity import Declared
from autoscaler_shim.node.folders import NodeFolder
from kserve_ext.core import pulse
from kserve_ext.core.facts import Member, Resources
from kserve_ext.core.ids import FunctionID
from kserve_ext.core.node.facts import Timing
from kserve_ext.rpc import Rpc
from kserve_ext.rpc.membership import Membership
from tests.support.node_world import KEY, World, get, revision, run


@contextlib.asynccontextmanager
async def agent_of(world: World, timing: Timing) -> AsyncIterator[NodeAgent]:
    rpc = Rpc("node-0", KEY)
    addr = await rpc.listen("127.0.0.1")
    membership = Membership(rpc, Member(FunctionID("node-0"), "node", addr, time.time_ns()), world.addr)
    declared = Declared(Resources(4000, 8192), (), 64, 1 << 30)
    folder = NodeFolder(world.data / "nodes/node-0")
    agent = NodeAgent(rpc, membership, folder, world.key_file, declared, timing)
    await agent.open()
    await membership.start()
    life = asyncio.create_task(agent.run())
    try:
        await world.until(lambda: world.status)
        yield agent
    finally:
        life.cancel()
        for module in list(agent.zygotes.pids.values()):
            agent.zygotes.end(module)
        await world.until(lambda: agent.watcher.watching == 0)
        agent.close()
        await membership.leave()
        await rpc.close()


def test_an_instance_that_no_home_acknowledges_is_stopped(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        async with agent_of(world, Timing(full_s=0.1, orphan_s=2.0, kill_grace_s=0.5)) as agent:
            await world.start("x", revision())
            await world.state("x", "ready")
            world.is_home = False
            await world.until(lambda: agent.machine.lives.running == 0)
            life_of = agent.machine.lives.known[next(iter(agent.machine.lives.known))]
            assert life_of.end is not None
            assert "no home has taken notice of it for 2 s" in life_of.end.reason
            world.is_home = True
            assert (await world.state("x", "gone")).reason == life_of.end.reason

    run(story, tmp_path)


def test_an_instance_whose_process_is_stopped_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "HUNG_S", 3.0)
    monkeypatch.setattr(pulse, "LOOK_S", 0.05)

    async def story(world: World) -> None:
        async with agent_of(world, Timing(kill_grace_s=0.5)) as agent:
            await world.start("x", revision())
            ready = await world.state("x", "ready")
            page = await get(ready.addr)
            await world.until(lambda: agent.instances.running[ready.id].pulse.beats)
            os.kill(page["pid"], signal.SIGSTOP)
            failed = await world.state("x", "failed")
            assert "no sign of life for" in failed.reason
            assert not failed.permanent

    run(story, tmp_path)
