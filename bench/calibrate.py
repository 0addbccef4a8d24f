"""What one function of each kind bears on this machine (`python -m bench.calibrate`): the thresholds for scale-out.

The function is a real process, alone on cpu 0; whatever talks to it is on cpu 1, over sockets: nodes that admit every
start, homes that ask for instances one at a time, nodes that report a changed status, wrk with nginx as the instance.
What is looked for is the highest rate at which the p99 of the answers is within P99_MS and nothing is left without an
answer; each rate is tried ROUNDS times, and the median counts. --write puts the figures into calibrated.py.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple

import uvloop

from bench import quiet
from bench.loads import Target, wrk
from bench.peers import nginx
from bench.processes import cpu_ns, on_cpu, wait_listening
from bench.record import ROOT, commit, machine
from kserve_ext.core.control.facts import ScaledKind
from kserve_ext.core.facts import (
    Command,
    Kind,
    Member,
    Model,
    NodeStatus,
    Resources,
    Revision,
    Scale,
)
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from kserve_ext.rpc import Caller, Rpc, RpcError
from kserve_ext.rpc.membership import Membership
from kserve_ext.rpc.ports import free_port
from kserve_ext.wire import messages as m

P99_MS: Final = 20.0
NODES: Final = 26
ROUNDS: Final = 3
SECONDS: Final = 1.5
WRK_S: Final = 2  # it knows whole seconds only
TICK_S: Final = 0.002
HEARTBEAT_S: Final = 0.5
FILE: Final = ROOT / "kserve_ext" / "core" / "control" / "calibrated.py"
CAPACITY: Final = Resources(cpu_milli=64_000, memory_mib=1 << 18)
REVISION: Final = Revision(
    RevisionKey("bench/one"), "", 1, Command(("true",)), Model(), Resources(100, 64), Scale()
)


class Figure(NamedTuple):
    rate: float
    p99_ms: float
    busy: float  # of the function's core
    load_busy: float  # of the core that makes the load


Ask = Callable[[int, Callable[[bool], None]], None]  # (number, told whether it was answered well)


class Setting:
    """One function as a process, the controller, and members of ours in this process."""

    def __init__(self, folder: Path, kind: Kind) -> None:
        self.folder, self.kind = folder, kind
        self.key = secrets.token_bytes(32)
        (folder / "cluster.key").write_bytes(self.key)
        self.controller = f"127.0.0.1:{free_port()}"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.members: list[Membership] = []
        self.addrs: dict[str, str] = {}  # of those, by name
        common = ["--data", str(folder), "--controller", self.controller]
        port = self.controller.rpartition(":")[2]
        self._start(1, "controller", "--id", "controller-0", "--port", port, *common)
        self.function = self._start(0, kind.replace("_", "-"), "--id", "measured", *common)

    def _start(self, cpu: int, *argv: str) -> subprocess.Popen[bytes]:
        env = {**os.environ, "GALAXY_LOG_LEVEL": "ERROR"}
        self.processes.append(on_cpu(cpu, sys.executable, "-m", "autoscaler_shim", *argv, env=env))
        return self.processes[-1]

    async def join(self, name: str, kind: Kind, *handlers: tuple[type[m.Message], object]) -> Rpc:
        rpc = Rpc(name, self.key)
        for message, handler in handlers:
            rpc.handle(message, handler)  # type: ignore[arg-type]
        addr = self.addrs[name] = await rpc.listen("127.0.0.1")
        member = Member(FunctionID(name), kind, addr, time.time_ns())
        membership = Membership(rpc, member, self.controller)
        await membership.start()
        self.members.append(membership)
        return rpc

    async def addr(self) -> str:
        """Of the measured function, once it is there."""
        while True:
            found = self.members[0].addr_of("measured")
            if found:
                return found
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        for membership in self.members:
            await membership.leave()
            await membership.rpc.close()
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            process.wait(30)


async def offered(setting: Setting, rate: float, ask: Ask) -> Figure:
    """So many a second, whether or not they are answered."""
    loop = asyncio.get_running_loop()
    times: list[float] = []
    failed = 0

    def told(began: float, well: bool) -> None:
        nonlocal failed
        times.append(loop.time() - began)
        failed += not well

    began, cpu, own = loop.time(), cpu_ns(setting.function.pid), time.process_time()
    sent = 0
    while (now := loop.time()) < began + SECONDS:
        while sent < (now - began) * rate:
            due = began + sent / rate  # what is asked late has waited since then
            ask(sent, lambda well, due=due: told(due, well))  # type: ignore[misc]
            sent += 1
        await asyncio.sleep(TICK_S)
    span = loop.time() - began
    busy = (cpu_ns(setting.function.pid) - cpu) * 1e-9 / span
    load_busy = (time.process_time() - own) / span
    for _ in range(200):
        if len(times) == sent:
            break
        await asyncio.sleep(0.01)
    times += [10.0] * (sent - len(times) + failed)
    times.sort()
    return Figure(sent / span, times[int(0.99 * (len(times) - 1))] * 1e3, busy, load_busy)


async def most(setting: Setting, ask: Ask, first: float) -> Figure:
    """The highest rate within P99_MS: doubled until it is too much, then halved in between."""

    async def tried(rate: float) -> Figure:
        rounds = []
        for _ in range(ROUNDS):
            rounds.append(await offered(setting, rate, ask))
            await asyncio.sleep(0.2)
        figure = sorted(rounds, key=lambda f: f.p99_ms)[len(rounds) // 2]
        print(
            f"  {figure.rate:8,.0f}/s  p99 {figure.p99_ms:7.2f} ms  busy {figure.busy:4.0%}, "
            f"load's core {figure.load_busy:4.0%}",
            flush=True,
        )
        return figure

    best = await tried(first)
    if best.p99_ms > P99_MS:
        raise SystemExit(f"error: {first:g}/s is too much already; is the machine busy with something else?")
    low, high = first, first * 2
    while (figure := await tried(high)).p99_ms <= P99_MS:
        best, low, high = figure, high, high * 2
    for _ in range(4):
        middle = (low + high) / 2
        figure = await tried(middle)
        if figure.p99_ms <= P99_MS:
            best, low = figure, middle
        else:
            high = middle
    return best


def status(node: NodeID, addr: str, seq: int) -> NodeStatus:
    free = CAPACITY._replace(cpu_milli=CAPACITY.cpu_milli - seq % 7)
    return NodeStatus(node, addr, 1, seq, CAPACITY, free)


async def schedule(setting: Setting) -> Figure:
    """Instances, one a call: filtered, scored, admitted by a node over its connection, answered."""
    numbers = itertools.count(1)
    addrs = setting.addrs

    def admit(name: NodeID) -> Callable[[m.Start, Caller], m.StartReply]:
        return lambda message, caller: m.StartReply(True, "", status(name, addrs[name], next(numbers)))

    def probed(name: NodeID) -> Callable[[m.Probe, Caller], m.Update]:
        return lambda message, caller: m.Update(status(name, addrs[name], next(numbers)))

    nodes = [NodeID(f"node-{number}") for number in range(NODES)]
    for node in nodes:
        await setting.join(node, "node", (m.Start, admit(node)), (m.Probe, probed(node)))
    home = await setting.join("dispatch-0", "dispatch")
    target = await setting.addr()

    async def heartbeats() -> None:
        """What a ClusterMgr function says of each node."""
        while True:
            for node in nodes:
                news = m.ModNode(status(node, addrs[node], next(numbers)))
                home.call_soon(target, news, lambda reply: None, 1.0)
            await asyncio.sleep(HEARTBEAT_S)

    def ask(number: int, told: Callable[[bool], None]) -> None:
        item = m.Item(REVISION, (InstanceID(f"i-{next(numbers)}"),))
        message = m.Schedule((item,), setting.members[0].view.epoch, FunctionID("dispatch-0"), "")

        def done(reply: m.Message | RpcError) -> None:
            told(isinstance(reply, m.Placements) and len(reply.placed) == 1)

        home.call_soon(target, message, done, 5.0)

    beats = asyncio.create_task(heartbeats())
    try:
        await asyncio.sleep(2 * HEARTBEAT_S)
        return await most(setting, ask, 250.0)
    finally:
        beats.cancel()


async def cluster_mgr(setting: Setting) -> Figure:
    """Updates that say something new: each is passed on to the Schedule function that owns the node."""
    passed = 0

    def mod_node(message: m.ModNode, caller: Caller) -> m.Ack:
        nonlocal passed
        passed += 1
        return m.Ack()

    await setting.join("schedule-0", "schedule", (m.ModNode, mod_node))
    nodes = [(f"node-{number}", await setting.join(f"node-{number}", "node")) for number in range(NODES)]
    target = await setting.addr()
    numbers = itertools.count(1)

    def ask(number: int, told: Callable[[bool], None]) -> None:
        name, rpc = nodes[number % NODES]
        update = m.Update(status(NodeID(name), "", next(numbers)))
        rpc.call_soon(target, update, lambda reply: told(isinstance(reply, m.Ack)), 5.0)

    figure = await most(setting, ask, 500.0)
    if not passed:
        raise SystemExit("error: no update was passed on: something else was measured")
    return figure


def dispatch(folder: Path) -> Figure:
    """Requests to an instance that is ready: of 8 to 256 connections, the rate of those within P99_MS."""
    folder.chmod(0o755)
    port, target = free_port(), f"127.0.0.1:{free_port()}"
    stack = [
        on_cpu(1, *nginx.instance(folder, "instance", target)),
        on_cpu(0, sys.executable, "-m", "bench.peers.ours", str(port), target),
    ]
    best = Figure(0.0, 0.0, 0.0, 0.0)
    try:
        wait_listening(port, "the Dispatch function")
        time.sleep(2.0)
        wrk(16, "/")(Target(port), 1)
        for connections in (8, 16, 32, 64, 128, 256):
            rounds = []
            for _ in range(ROUNDS):
                cpu, began = cpu_ns(stack[1].pid), time.monotonic()
                done = wrk(connections, "/")(Target(port), WRK_S)
                busy = (cpu_ns(stack[1].pid) - cpu) * 1e-9 / (time.monotonic() - began)
                rounds.append(Figure(done.total / WRK_S, done.p99_ms, busy, 0.0))
            figure = Figure(*(statistics.median(column) for column in zip(*rounds, strict=True)))
            print(
                f"  {figure.rate:8,.0f}/s  p99 {figure.p99_ms:7.2f} ms  busy {figure.busy:4.0%}, "
                f"{connections} connections",
                flush=True,
            )
            if figure.p99_ms <= P99_MS and figure.rate > best.rate:
                best = figure
    finally:
        for process in reversed(stack):
            process.send_signal(signal.SIGTERM)
        for process in stack:
            process.wait(60)
    return best


MEASURED: Final[dict[ScaledKind, Callable[[Setting], Awaitable[Figure]]]] = {
    "schedule": schedule,
    "cluster_mgr": cluster_mgr,
}


def measure(kind: ScaledKind) -> Figure:
    print(f"{kind}:", flush=True)
    with tempfile.TemporaryDirectory(prefix="calibrate-") as name:
        folder = Path(name)
        if kind == "dispatch":
            return dispatch(folder)

        async def run() -> Figure:
            setting = Setting(folder, kind)
            try:
                return await MEASURED[kind](setting)
            finally:
                await setting.close()

        os.sched_setaffinity(0, {1})
        figure: Figure = uvloop.run(run())
        return figure


def written(figures: dict[ScaledKind, Figure], conditions: str, at: str) -> str:
    """calibrated.py with these figures, two digits of each: more would say more than was measured."""
    text = FILE.read_text()
    head = text[: text.index("MACHINE: Final")]
    lines = [
        f'MACHINE: Final = "{machine()}"',
        f'CONDITIONS: Final = "{conditions}"',
        f'COMMIT: Final = "{at}"',
        f"P99_MS: Final = {P99_MS}",
        "THRESHOLDS: Final[Mapping[ScaledKind, float]] = {",
    ]
    for kind, figure in sorted(figures.items()):
        rate = float(f"{figure.rate:.2g}")
        lines.append(f'    "{kind}": {rate},  # {figure.busy:.0%} of its core, p99 {figure.p99_ms:.1f} ms')
    return head + "\n".join([*lines, "}"]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.calibrate", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"to {FILE.relative_to(ROOT)}")
    args = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("error: two processors are needed, one for the function, one for the load")
    watch = quiet.Watch()
    kinds: tuple[ScaledKind, ...] = ("dispatch", "schedule", "cluster_mgr")
    figures = {kind: measure(kind) for kind in kinds}
    for kind, figure in figures.items():
        print(f"{kind}: {figure.rate:,.0f}/s, p99 {figure.p99_ms:.1f} ms, {figure.busy:.0%} of its core")
    verdict = watch.verdict()
    if not args.write:
        return 0
    if verdict.refused:
        print(f"not written: {verdict.refused}")
        return 1
    FILE.write_text(written(figures, verdict.text, commit()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
