"""A control plane of real processes on loopback, with emulated nodes: started, asked for its counters, ended."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from bench.processes import on_cpu, own_cpu_ns
from kserve_ext.rpc import Rpc
from kserve_ext.rpc.ports import free_port
from kserve_ext.wire.messages import Describe

START_S = 60.0
PROCESSES_OF_NODES = 2
LONE = "lone-node"  # in no group, and in no view


class ControlPlane:
    """`async with`: everything runs, every node is in the view, and the Schedule function knows all of them."""

    def __init__(self, nodes: int, *, schedule_cpu: int, other_cpu: int) -> None:
        self.count = nodes
        self.schedule_cpu, self.other_cpu = schedule_cpu, other_cpu
        self._folder = tempfile.TemporaryDirectory()
        self.data = Path(self._folder.name)
        self.key = secrets.token_bytes(32)
        (self.data / "cluster.key").write_bytes(self.key)
        self.controller = f"127.0.0.1:{free_port()}"
        self.rpc = Rpc("bench", self.key)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        #: rpc addresses by name; the groups of nodes answer for their agents
        self.addr: dict[str, str] = {}
        self.groups: list[str] = []
        self._lone = ""

    async def __aenter__(self) -> ControlPlane:
        try:
            await self._start()
        except BaseException:
            await self.end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.end()

    async def _start(self) -> None:
        port = self.controller.rpartition(":")[2]
        self._part("controller", "controller", self.other_cpu, "--port", port)
        await self._running("controller")
        self._part("cluster-mgr-0", "cluster-mgr", self.other_cpu)
        self._part("schedule-0", "schedule", self.schedule_cpu)
        await self._running("cluster-mgr-0")
        await self._running("schedule-0")
        each = -(-self.count // PROCESSES_OF_NODES)
        for first in range(0, self.count, each):
            self._nodes(first, min(each, self.count - first))
        for name in self.groups:
            out: IO[bytes] | None = self.processes[name].stdout
            assert out is not None
            line = await asyncio.wait_for(asyncio.to_thread(out.readline), START_S)
            self.addr[name] = line.decode().strip()
        async with asyncio.timeout(START_S):
            while len((await self.describe("schedule-0"))["nodes"]) < self.count:  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def end(self) -> None:
        await self.rpc.close()
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._folder.cleanup()

    async def describe(self, name: str, what: str = "status") -> dict[str, Any]:
        reply = await self.rpc.call(self.addr[name], Describe(what), 30.0)
        found: dict[str, Any] = json.loads(reply.body)
        return found

    async def counters(self) -> dict[str, int]:
        """The sums of all agents' own."""
        groups = [await self.describe(name) for name in self.groups]
        return {key: sum(group[key] for group in groups) for key in groups[0] if key != "pid"}

    async def end_instances(self) -> None:
        for name in self.groups:
            await self.describe(name, "end")

    def cpu_s(self, name: str) -> float:
        return own_cpu_ns(self.processes[name].pid) / 1e9

    def start(self, name: str, cpu: int, *argv: str, **kwargs: Any) -> None:
        env = {**os.environ, "GALAXY_LOG_LEVEL": "WARNING"}
        with (self.data / f"{name}.log").open("wb") as errors:
            self.processes[name] = on_cpu(cpu, sys.executable, "-m", *argv, env=env, stderr=errors, **kwargs)

    async def lone(self) -> str:
        """The address of an agent in a process of its own, as agents are, on the core of the Schedule function."""
        if LONE not in self.processes:
            argv = ["bench.sockets.nodes", "--data", str(self.data), "--controller", self.controller]
            argv += ["--first", str(self.count), "--count", "1", "--alone"]
            self.start(LONE, self.schedule_cpu, *argv, stdout=subprocess.PIPE)
            out = self.processes[LONE].stdout
            assert out is not None
            line = await asyncio.wait_for(asyncio.to_thread(out.readline), START_S)
            self.addr[LONE], self._lone = line.decode().split()
        return self._lone

    async def running(self, name: str) -> str:
        """Its rpc address, from its run file, once it is there."""
        file = self.data / "run" / f"{name}.json"
        async with asyncio.timeout(START_S):
            while not file.exists():
                if self.processes[name].poll() is not None:
                    raise SystemExit(f"{name} has ended: {(self.data / f'{name}.log').read_text()[-2000:]}")
                await asyncio.sleep(0.02)
        return str(json.loads(file.read_text())["rpc"])

    async def _running(self, name: str) -> None:
        self.addr[name] = await self.running(name)

    def _part(self, name: str, kind: str, cpu: int, *more: str) -> None:
        common = ("--id", name, "--data", str(self.data), "--controller", self.controller)
        self.start(name, cpu, "autoscaler_shim", kind, *common, *more)

    def _nodes(self, first: int, count: int) -> None:
        name = f"nodes-{first}"
        self.groups.append(name)
        argv = ["bench.sockets.nodes", "--data", str(self.data), "--controller", self.controller]
        argv += ["--first", str(first), "--count", str(count)]
        self.start(name, self.other_cpu, *argv, stdout=subprocess.PIPE)
