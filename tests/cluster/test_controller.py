"""Controller, ClusterMgr and Schedule functions as real processes: kills, graceful ends, starts that can't work."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kserve_ext.core.facts import Member, View
from kserve_ext.core.ids import FunctionID
from kserve_ext.rpc import Rpc
from kserve_ext.rpc.membership import Membership
from kserve_ext.store.remote import RemoteStore
from kserve_ext.wire.messages import Describe, Description
from tests.support.embedded import ROOT, free_port

pytestmark = pytest.mark.cluster

KEY = b"c" * 32


class Parts:
    """Processes started from the module's entry, ended by pid."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.controller = f"127.0.0.1:{free_port()}"
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        (data / "cluster.key").write_bytes(KEY)

    def start(self, part: str, name: str) -> None:
        port = self.controller.rpartition(":")[2] if part == "controller" else "0"
        argv = [sys.executable, "-m", "autoscaler_shim", part, "--id", name, "--data", str(self.data)]
        argv += ["--controller", self.controller, "--port", port]
        with (self.data / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(argv, cwd=ROOT, stderr=log)

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def terminate(self, name: str) -> int:
        process = self.running.pop(name)
        process.terminate()
        return process.wait(10)

    def end(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait(10)


def test_epochs_grow_over_the_controllers_death_and_the_dead_leave_the_view(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    changed = asyncio.Event()

    async def until(views: list[View], check: Callable[[View], bool]) -> None:
        async with asyncio.timeout(20):
            while not (views and check(views[-1])):
                changed.clear()
                await changed.wait()

    def has(*names: str) -> Callable[[View], bool]:
        return lambda view: {m.id for m in view.members} == {"watcher", *names}

    async def story(wait: Callable[[list[View], Callable[[View], bool]], Awaitable[None]]) -> None:
        rpc = Rpc("watcher", KEY)
        addr = await rpc.listen("127.0.0.1")
        me = Membership(rpc, Member(FunctionID("watcher"), "dispatch", addr, 1), parts.controller)
        views: list[View] = []

        def seen(view: View) -> None:
            views.append(view)
            changed.set()

        me.on_view(seen)
        await me.start()
        await wait(views, has("cluster-mgr-0", "schedule-0"))
        before = views[-1].epoch
        store = RemoteStore(rpc, parts.controller)
        await store.put_now([("kept", b"acknowledged")])
        parts.kill("controller-0")
        for name in ("cluster-mgr-0", "schedule-0"):  # nobody else needs it
            assert isinstance(await rpc.call(me.addr_of(name), Describe()), Description)
        store.put([("behind", b"written when it is back")])
        parts.start("controller", "controller-0")
        await wait(views, lambda v: v.epoch > before and has("cluster-mgr-0", "schedule-0")(v))
        assert await store.flush(10)
        assert {k: v for k, (v, _) in (await store.scan("")).items() if k != "view"} == {
            "kept": b"acknowledged",
            "behind": b"written when it is back",
        }
        parts.kill("schedule-0")
        await wait(views, has("cluster-mgr-0"))
        parts.start("schedule", "schedule-0")
        await wait(views, has("cluster-mgr-0", "schedule-0"))
        assert parts.terminate("schedule-0") == 0
        await wait(views, has("cluster-mgr-0"))
        status: Description = await rpc.call(parts.controller, Describe())
        reasons = [r["reason"] for r in json.loads(status.body)["removed"] if r["id"] == "schedule-0"]
        assert "connection was lost" in reasons[0]
        assert reasons[1:] == ["stopped"]
        epochs = [v.epoch for v in views]
        assert epochs == sorted(set(epochs))
        store.close()
        await me.leave()
        await rpc.close()

    try:
        parts.start("controller", "controller-0")
        parts.start("cluster-mgr", "cluster-mgr-0")
        parts.start("schedule", "schedule-0")
        asyncio.run(story(until))
    finally:
        parts.end()
    ran = json.loads((tmp_path / "run" / "schedule-0.json").read_text())
    assert ran["kind"] == "schedule"


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
    ended = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=30)
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
