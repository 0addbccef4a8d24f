"""Controller, ClusterMgr and Schedule functions as real processes: kills, graceful ends, starts that can't work."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from kserve_ext.core.facts import Member, View
from kserve_ext.core.ids import FunctionID
from kserve_ext.rpc import Rpc
from kserve_ext.rpc.membership import Membership
from kserve_ext.rpc.ports import free_port
from kserve_ext.store.remote import RemoteStore
from kserve_ext.wire.messages import Describe, Description
from tests.support.embedded import ROOT

pytestmark = pytest.mark.cluster

KEY = b"c" * 32


class Parts:
    """Processes started from the module's entry, ended by pid."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.controller = f"127.0.0.1:{free_port()}"
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        (data / "cluster.key").write_bytes(KEY)

    def start(self, part: str, name: str, *more: str) -> None:
        port = self.controller.rpartition(":")[2] if part == "controller" else "0"
        argv = [sys.executable, "-m", "autoscaler_shim", part, "--id", name, "--data", str(self.data)]
        argv += ["--controller", self.controller, "--port", port, *more]
        with (self.data / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(argv, cwd=ROOT, stderr=log)

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def terminate(self, name: str) -> int:
        process = self.running.pop(name)
        process.terminate()
        return process.wait(60)

    def end(self) -> None:
        """Nothing is left, and what had to be killed is told."""
        for process in self.running.values():
            process.terminate()
        stuck = []
        for name, process in self.running.items():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                stuck.append(name)
                process.kill()
                process.wait()
        assert not stuck, f"still there a minute after SIGTERM: {stuck}"


class Watcher:
    """A member in the test's own process."""

    def __init__(self, controller: str) -> None:
        self.rpc = Rpc("watcher", KEY)
        self.controller = controller
        self.views: list[View] = []
        self.changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        member = Member(FunctionID("watcher"), "dispatch", await self.rpc.listen("127.0.0.1"), 1)
        self.membership = Membership(self.rpc, member, *self.controller.split(","))
        self.membership.on_view(self.saw)
        await self.membership.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.membership.leave()
        await self.rpc.close()

    def saw(self, view: View) -> None:
        self.views.append(view)
        self.changed.set()

    async def until(self, *names: str, above: int = 0) -> View:
        """The first view from now on with exactly these members besides us, and an epoch above `above`."""
        async with asyncio.timeout(100):
            while True:
                view = self.views[-1]
                if {m.id for m in view.members} == {"watcher", *names} and view.epoch > above:
                    return view
                self.changed.clear()
                await self.changed.wait()

    async def status(self, name: str) -> dict[str, Any]:
        addr = self.controller if name == "controller-0" else self.membership.addr_of(name)
        answer: Description = await self.rpc.call(addr, Describe(), 30.0)
        status: dict[str, Any] = json.loads(answer.body)
        return status

    async def heard(self, name: str) -> None:
        """Until the controller has had a report of it, and so would notice its connection's end."""
        async with asyncio.timeout(100):
            while True:
                if name in (await self.status("controller-0"))["loads"]:
                    return
                await asyncio.sleep(0.05)

    async def owns(self, function: str, *nodes: str) -> None:
        """Until it has these nodes: it hears of a view by itself, a little before us or after."""
        async with asyncio.timeout(100):
            while True:
                if [n["node"] for n in (await self.status(function))["nodes"]] == [*nodes]:
                    return
                await asyncio.sleep(0.05)

    async def removals(self, name: str) -> list[str]:
        return [r["reason"] for r in (await self.status("controller-0"))["removed"] if r["id"] == name]


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    started = Parts(tmp_path)
    started.start("controller", "controller-0")
    try:
        yield started
    finally:
        started.end()


def test_epochs_grow_over_the_controllers_death_and_the_dead_leave_the_view(parts: Parts) -> None:
    async def story() -> None:
        async with Watcher(parts.controller) as watcher:
            before = await watcher.until("cluster-mgr-0", "schedule-0")
            store = RemoteStore(watcher.rpc, parts.controller)
            await store.put_now([("kept", b"acknowledged")])
            parts.kill("controller-0")
            for name in ("cluster-mgr-0", "schedule-0"):  # nobody else needs it
                assert (await watcher.status(name))["id"] == name
            store.put([("behind", b"written when it is back")])
            parts.start("controller", "controller-0")
            await watcher.until("cluster-mgr-0", "schedule-0", above=before.epoch)
            assert await store.flush(100)
            found = {k: v for k, (v, _) in (await store.scan("")).items() if k not in ("view", "functions")}
            assert found == {"kept": b"acknowledged", "behind": b"written when it is back"}
            await store.close()

            await watcher.heard("schedule-0")
            parts.kill("schedule-0")
            await watcher.until("cluster-mgr-0")
            parts.start("schedule", "schedule-0")
            await watcher.until("cluster-mgr-0", "schedule-0")
            assert parts.terminate("schedule-0") == 0
            await watcher.until("cluster-mgr-0")
            killed, ended = (await watcher.removals("schedule-0"))[-2:]
            assert "connection was lost" in killed
            assert ended == "stopped"
            epochs = [view.epoch for view in watcher.views]
            assert epochs == sorted(set(epochs))

    parts.start("cluster-mgr", "cluster-mgr-0")
    parts.start("schedule", "schedule-0")
    asyncio.run(story())
    ran = json.loads((parts.data / "run" / "schedule-0.json").read_text())
    assert ran["kind"] == "schedule"


def test_a_node_outlives_its_clustermgr_and_a_dead_one_is_reported_by_it(parts: Parts) -> None:
    async def story() -> None:
        async with Watcher(parts.controller) as watcher:
            up = await watcher.until("cluster-mgr-0", "node-0", "schedule-0")
            parts.kill("cluster-mgr-0")
            down = await watcher.until("node-0", "schedule-0", above=up.epoch)
            parts.start("cluster-mgr", "cluster-mgr-0")
            await watcher.until("cluster-mgr-0", "node-0", "schedule-0", above=down.epoch)
            await watcher.owns("cluster-mgr-0", "node-0")
            assert await watcher.removals("node-0") == []
            await watcher.owns("schedule-0", "node-0")
            parts.kill("node-0")
            await watcher.until("cluster-mgr-0", "schedule-0")
            (reason,) = await watcher.removals("node-0")
            assert reason.startswith("cluster-mgr-0: its connection was lost")
            await watcher.owns("schedule-0")

    parts.start("cluster-mgr", "cluster-mgr-0")
    parts.start("schedule", "schedule-0")
    parts.start("node", "node-0", "--cpu", "1", "--memory", "512Mi")
    asyncio.run(story())


def refused_start(data: Path, controller: str) -> str:
    argv = [
        sys.executable,
        "-m",
        "autoscaler_shim",
        "controller",
        "--id",
        "controller-0",
        "--data",
        str(data),
    ]
    argv += ["--controller", controller, "--port", controller.rpartition(":")[2]]
    ended = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    return ended.stderr


def test_a_start_without_the_cluster_key_says_what_to_do(tmp_path: Path) -> None:
    said = refused_start(tmp_path, f"127.0.0.1:{free_port()}")
    assert "no cluster key" in said
    assert "galaxy up" in said


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    (tmp_path / "cluster.key").write_bytes(KEY)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        addr = f"127.0.0.1:{taken.getsockname()[1]}"
        said = refused_start(tmp_path, addr)
    assert addr in said
    assert "in use" in said
