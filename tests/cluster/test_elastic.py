"""Functions that the controller starts, as real processes: growth under load, drain, kills, a controller's death."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from autoscaler_shim.node.cleanup import stop_all
from kserve_ext.core.facts import Command, Model, Resources, Revision, Scale
from kserve_ext.core.ids import FunctionID, InstanceID, RevisionKey
from kserve_ext.rpc import RpcError
from kserve_ext.wire.messages import Item, Message, Schedule
from tests.cluster.test_controller import Parts, Watcher
from tests.support.embedded import Embedded, echo_runtime, echo_service
from tests.support.load import Tally, steady, volley

pytestmark = pytest.mark.cluster

BOUNDS = ("--bounds", "schedule=1:3", "--threshold", "schedule=40", "--stable", "2")
NODES = ("node-0", "node-1")
TOO_LARGE = Revision(
    RevisionKey("default/too-large"), "", 1, Command(()), Model(), Resources(cpu_milli=10**6), Scale()
)


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    started = Parts(tmp_path)
    try:
        yield started
    finally:
        started.end()
        for node in NODES:
            stop_all(tmp_path / "nodes" / node)


def start(parts: Parts) -> None:
    parts.start("controller", "controller-0", *BOUNDS)
    parts.start("cluster-mgr", "cluster-mgr-0")
    parts.start("schedule", "schedule-0")
    for node in NODES:
        size = ("--cpu", "2", "--memory", "1Gi", "--zygote-memory", "64Mi")
        parts.start("node", node, *size, "--functions", "autoscaler_shim")


class Load:
    """Asks every Schedule function that work is divided among, so many times a second in all."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.rate = 0.0
        self.asked = 0

    async def run(self) -> None:
        """Where this loop is late, it catches up, but not with more than is asked in a quarter of a second."""
        clock, due = asyncio.get_running_loop().time, 0.0
        last = clock()
        while True:
            await asyncio.sleep(0.05)
            last, before = clock(), last
            due = min(due + self.rate * (last - before), self.rate * 0.25)
            functions = self.watcher.views[-1].of("schedule")
            count = int(due)
            due -= count
            for _ in range(count):
                self.asked += 1
                if functions:
                    self._ask(functions[self.asked % len(functions)].addr)

    def _ask(self, addr: str) -> None:
        item = Item(TOO_LARGE, (InstanceID(f"too-large-{self.asked}"),))
        epoch = self.watcher.views[-1].epoch
        message = Schedule((item,), epoch, FunctionID("watcher"), self.watcher.membership.addr)
        self.watcher.rpc.call_soon(addr, message, self._answered, 2.0)

    def _answered(self, reply: Message | RpcError) -> None:
        """A placement nobody has room for is work all the same."""


@asynccontextmanager
async def loaded(parts: Parts) -> AsyncIterator[tuple[Watcher, Load]]:
    async with Watcher(parts.controller) as watcher:
        load = Load(watcher)
        task = asyncio.create_task(load.run())
        try:
            yield watcher, load
        finally:
            task.cancel()


async def until(watcher: Watcher, what: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """What the controller says of its Schedule functions, as soon as it is so."""
    said: dict[str, Any] = {}
    try:
        async with asyncio.timeout(100):
            while True:
                try:
                    said = (await watcher.status("controller-0"))["scaled"]["schedule"]
                except RpcError:
                    said = {}
                if said and what(said):
                    return said
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within 100 s: {said}, {watcher.views[-1]}") from None


def pid_of(parts: Parts, function: str) -> tuple[str, int]:
    (file,) = parts.data.glob(f"nodes/*/instances/{function}/pid.json")
    return file.parts[-4], json.loads(file.read_text())["pid"]


def own(watcher: Watcher) -> list[str]:
    return [m.id for m in watcher.views[-1].of("schedule") if m.id != "schedule-0"]


def test_load_makes_functions_come_from_zygotes_and_its_end_makes_them_go(parts: Parts) -> None:
    async def story() -> None:
        async with loaded(parts) as (watcher, load):
            await watcher.until("cluster-mgr-0", "schedule-0", *NODES)
            load.rate = 100.0
            grown = await until(
                watcher, lambda s: s["running"] == 3 and s["grown"] is not None and len(own(watcher)) == 2
            )
            assert grown["wanted"] == 3
            assert "applied" in grown["decision"]["reason"]
            print("growth:", grown["grown"])
            assert {pid_of(parts, name)[0] for name in own(watcher)} == set(NODES)
            nodes = [await watcher.status(node) for node in NODES]
            hows = [m[2] for n in nodes for i in n["instances"] for m in i["marks"] if m[0] == "forked"]
            assert len(hows) == 2
            assert all("zygote" in how for how in hows)
            assert [n["free"]["cpu_milli"] for n in nodes] == [1500, 1500]
            series = await scraped((await watcher.status("controller-0"))["metrics"])
            assert 'galaxy_functions_wanted{kind="schedule"} 3.0' in series
            assert 'galaxy_functions_started_total{kind="schedule"} 2.0' in series
            load.rate = 0.0
            await until(watcher, lambda s: s["running"] == 1 and s["draining"] == 0)
            assert {r["reason"] for name in ("schedule-e1", "schedule-e2") for r in await gone(watcher, name)}
            assert [(await watcher.status(n))["free"]["cpu_milli"] for n in NODES] == [2000, 2000]
            assert any(m.draining for v in watcher.views for m in v.members)

    async def scraped(addr: str) -> list[str]:
        async with aiohttp.ClientSession() as session, session.get(f"http://{addr}/metrics") as answer:
            return (await answer.text()).splitlines()

    async def gone(watcher: Watcher, name: str) -> list[dict[str, Any]]:
        removed = [r for r in (await watcher.status("controller-0"))["removed"] if r["id"] == name]
        assert [r["reason"] for r in removed] == ["stopped"], removed
        return removed

    start(parts)
    asyncio.run(story())


def test_a_killed_function_is_replaced_on_another_node_and_a_killed_controller_forgets_nothing(
    parts: Parts,
) -> None:
    async def story() -> None:
        async with loaded(parts) as (watcher, load):
            await watcher.until("cluster-mgr-0", "schedule-0", *NODES)
            load.rate = 60.0
            await until(watcher, lambda s: s["running"] == 2 and len(own(watcher)) == 1)
            (first,) = own(watcher)
            node, pid = pid_of(parts, first)
            os.kill(pid, signal.SIGKILL)
            await until(watcher, lambda s: s["running"] == 2 and own(watcher) not in ([first], []))
            (second,) = own(watcher)
            assert pid_of(parts, second)[0] != node

            load.rate = 120.0  # the controller dies in the middle of what follows
            await until(watcher, lambda s: s["wanted"] == 3)
            parts.kill("controller-0")
            parts.start("controller", "controller-0", *BOUNDS)
            again = await until(watcher, lambda s: s["running"] == 3 and len(own(watcher)) == 2)
            assert again["wanted"] == 3
            assert second in own(watcher)
            ran = [p.parent.name for p in parts.data.glob("nodes/*/instances/*/pid.json")]
            assert sorted(ran) == ["schedule-e1", "schedule-e2", "schedule-e3"]

    start(parts)
    asyncio.run(story())


def scaled(up: Embedded, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = up.status()["controller"]["scaled"][kind]
    return found


def test_dispatch_functions_come_and_go_on_the_shared_port(tmp_path: Path) -> None:
    (tmp_path / "claim" / "any").mkdir(parents=True)
    (tmp_path / "claim" / "any" / "config.json").write_text("{}")
    options = ("--dispatch", "1:2", "--threshold", "dispatch=40", "--stable", "2", "--node-cpu", "4")
    with Embedded(tmp_path / "data", *options, "--pvc", f"models={tmp_path / 'claim'}") as up:
        up.apply(echo_runtime())
        up.apply(echo_service("busy", "pvc://models/any", spec="    maxReplicas: 1\n"))
        url, host = f"http://127.0.0.1:{up.port}/", "busy.default.galaxy.local"
        assert asyncio.run(volley([url], host, 4)).ok == 4

        def busy_until(check: Callable[[], bool]) -> Tally:
            done = threading.Event()

            def wait() -> None:
                try:
                    up.wait("the number of functions", check)
                finally:
                    done.set()

            waiter = threading.Thread(target=wait)
            waiter.start()
            tally = asyncio.run(steady([url], host, 4, done.is_set))[url]
            waiter.join()
            return tally

        tally = busy_until(
            lambda: scaled(up, "dispatch")["running"] == 2 and "dispatch-e1" in up.galaxy("status")
        )
        assert tally.sent == tally.ok, tally
        ends = asyncio.run(volley([url], host, 64))  # new connections: both have some
        assert ends.sent == ends.ok, ends
        up.wait("one of two goes", lambda: scaled(up, "dispatch")["running"] == 1)
        tally = asyncio.run(volley([url], host, 16))
        assert tally.sent == tally.ok, tally
        up.wait("its end", lambda: scaled(up, "dispatch")["draining"] == 0)
        up.wait(
            "its node has forgotten it",
            lambda: "dispatch-e1" not in {i["id"] for i in up.status()["instances"]},
        )
