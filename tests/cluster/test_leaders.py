"""Two controllers on a real store: the leader is killed, paused and resumed; the store goes, or loses everything."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kserve_ext.core.facts import View
from kserve_ext.rpc.ports import free_ports
from tests.cluster.test_controller import Parts, Watcher
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.cluster

MEMBERS = ("cluster-mgr-0", "schedule-0")


class Leaders(Parts):
    """Two controllers, a ClusterMgr and a Schedule function, and a store."""

    def __init__(self, data: Path, store: RedisServer) -> None:
        super().__init__(data)
        self.store = store
        self.ports = free_ports(2)
        self.controller = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        (data / "cluster.json").write_text(json.dumps({"store": store.url}))

    def start_controller(self, number: int) -> None:
        self.start("controller", f"controller-{number}", "--port", str(self.ports[number]))

    def signal(self, name: str, number: signal.Signals) -> None:
        os.kill(self.running[name].pid, number)

    def terms_ended(self, name: str) -> int:
        """How often it has led no more: on a machine that stood still for longer than a lease it gives up."""
        return (self.data / f"{name}.log").read_text().count("leads no more")


class Member(Watcher):
    """That looks for the leader as every member does."""

    def __init__(self, parts: Leaders) -> None:
        super().__init__(parts.controller)
        self.parts = parts

    def saw(self, view: View) -> None:
        assert not self.views or view.epoch > self.views[-1].epoch
        super().saw(view)

    @property
    def leader(self) -> str:
        port = int(self.membership.controller.rpartition(":")[2])
        return f"controller-{self.parts.ports.index(port)}"

    async def led_by(self, name: str, above: int) -> View:
        """The first whole view that this controller publishes above this epoch."""
        async with asyncio.timeout(100):
            while True:
                view = await self.until(*MEMBERS, above=above)
                if self.leader == name:
                    return view
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Leaders]:
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "redis") as store:
        started = Leaders(tmp_path, store)
        for number in (0, 1):
            started.start_controller(number)
        started.start("cluster-mgr", "cluster-mgr-0")
        started.start("schedule", "schedule-0")
        try:
            yield started
        finally:
            for name in started.running:
                started.signal(name, signal.SIGCONT)
            started.end()


def test_the_other_takes_over_from_a_leader_that_is_killed(parts: Leaders) -> None:
    async def story() -> None:
        async with Member(parts) as member:
            before = await member.until(*MEMBERS)
            first = member.leader
            other = f"controller-{1 - int(first[-1])}"
            parts.kill(first)
            view = await member.led_by(other, before.epoch)
            assert view.epoch > before.epoch
            parts.kill("schedule-0")  # the new one does what a leader does
            await member.until("cluster-mgr-0", above=view.epoch)
            parts.start("schedule", "schedule-0")
            view = await member.until(*MEMBERS, above=view.epoch)
            parts.start_controller(int(first[-1]))
            parts.kill(other)
            await member.led_by(first, view.epoch)

    asyncio.run(story())


def test_a_leader_that_was_paused_publishes_nothing_any_more_and_the_epochs_go_on(parts: Leaders) -> None:
    async def story() -> None:
        async with Member(parts) as member:
            before = await member.until(*MEMBERS)
            for _ in range(2):
                paused = member.leader
                leads = f"controller-{1 - int(paused[-1])}"
                parts.signal(paused, signal.SIGSTOP)
                view = await member.led_by(leads, before.epoch)
                given_up = parts.terms_ended(leads)
                parts.kill("schedule-0")  # it will notice, too, as soon as it goes on
                parts.signal(paused, signal.SIGCONT)
                view = await member.until("cluster-mgr-0", above=view.epoch)
                parts.start("schedule", "schedule-0")
                before = await member.until(*MEMBERS, above=view.epoch)
                assert member.leader == leads or parts.terms_ended(leads) > given_up
            epochs = [view.epoch for view in member.views]
            assert epochs == sorted(set(epochs))

    asyncio.run(story())


@pytest.mark.parametrize("how", ["emptied", "restarted empty", "paused"])
def test_the_store_goes_and_comes_and_the_view_holds(parts: Leaders, how: str) -> None:
    async def story() -> None:
        async with Member(parts) as member:
            before = await member.until(*MEMBERS)
            if how == "emptied":
                parts.store.command("FLUSHALL")
            elif how == "paused":
                parts.store.pause()
                await asyncio.sleep(4.0)  # longer than a lease: nobody leads
                for name in MEMBERS:  # and nobody needs a leader
                    assert (await member.status(name))["id"] == name
                assert member.views[-1] == before
                parts.store.resume()
            else:
                parts.store.kill()
                parts.store.start()
            parts.kill("schedule-0")
            view = await member.until("cluster-mgr-0", above=before.epoch)
            parts.start("schedule", "schedule-0")
            await member.until(*MEMBERS, above=view.epoch)

    asyncio.run(story())
