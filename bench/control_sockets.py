"""The control plane over real sockets (`python -m bench.control_sockets`): what a decision costs, and whom.

Client, Schedule function, ClusterMgr, controller and node agents are processes of their own, with the real cores, on
loopback; node agents (two processes of many, each behind an address of its own) emulate only what they start. A
*decision* is an instance that its node agent has admitted; it counts only if the agents' own counters say the same.
The Schedule function has one core, everything else the other, so that where there are two the others often limit the
rate: processor time for each decision says what a Schedule function could do with whoever asks it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import uvloop

from bench.record import record
from bench.sockets.cluster import LONE, ControlPlane
from bench.sockets.load import EPOCH, Calls, Decisions, decisions, revisions
from bench.sockets.memory import INSTANCES, NODES
from kserve_ext.core.ids import FunctionID, InstanceID
from kserve_ext.rpc import Rpc
from kserve_ext.store.remote import RemoteStore
from kserve_ext.wire.messages import Probe, Start

Row = dict[str, Any]
AIM = 20_000.0  # decisions a second of a Schedule function
AIM_WHOLE = 5_000.0
AIM_FOUND_S = 0.002
IDLE_S = 6.0
SHARDS = 8
LONE_HOLDS = 1000  # instances, as every agent here: none ends before all of them do
APART_S = 0.002  # between two starts of an agent alone: all shards have heard of one before the next
OPENING = 50
TURNS = 10  # of kept connections and new ones
#: instances of a Schedule call, and calls under way
DEPTHS = ((1, 1), (1, 256), (1, 1000), (1, 4000), (16, 16), (16, 256))


def row(
    metric: str, ours: float | None, unit: str, conditions: str, better: str = "lower", **more: Any
) -> Row:
    value = None if ours is None else float(f"{ours:.4g}")
    return {"metric": metric, "ours": value, "unit": unit, "better": better, "conditions": conditions, **more}


def of_decisions(found: Decisions, count: int, under_way: int, said: str) -> list[Row]:
    said = (
        f"{said}; {under_way} calls under way, {found.placed:,} decisions, {found.conflicts} refused by nodes"
    )
    name = f"count {count}, {under_way} under way"
    aim: dict[str, Any] = {"peer": AIM, "peer_name": "aim"}
    return [
        row(f"decisions/s, {name}", found.rate, "1/s", said, "higher", **aim),
        row(f"p50 of a Schedule call, {name}", found.p50 * 1e3, "ms", said),
        row(f"p99 of a Schedule call, {name}", found.p99 * 1e3, "ms", said),
        row(
            f"processor time of the Schedule function, {name}",
            found.schedule_us,
            "us",
            said,
            peer=1e6 / AIM,
            peer_name="aim",
        ),
        row(f"processor time of node agents, {name}", found.nodes_us, "us", said),
        row(f"share of its core that the Schedule function used, {name}", found.busy, "", said, "higher"),
    ]


async def deciding(plane: ControlPlane, seconds: float, said: str) -> list[Row]:
    found = []
    await decisions(plane, 1, 16, min(1.0, seconds), "warm")
    for count, under_way in DEPTHS:
        one = await decisions(plane, count, under_way, seconds, f"c{count}w{under_way}")
        found += of_decisions(one, count, under_way, said)
        await plane.end_instances()
    return found


async def finding(plane: ControlPlane, seconds: float, said: str) -> list[Row]:
    """Service discovery: from a node that finds an instance ready to the handler of the last shard that waits."""
    argv = ["bench.sockets.shards", "--data", str(plane.data), "--count", str(SHARDS)]
    plane.start("shards", plane.other_cpu, *argv, stdout=subprocess.PIPE)
    out = plane.processes["shards"].stdout
    assert out is not None
    *shards, plane.addr["shards"] = (await asyncio.to_thread(out.readline)).decode().split()
    meeting = Calls(plane.rpc, plane.addr["schedule-0"], 16, 4, "met", tuple(shards))
    while meeting.placed < 4 * plane.count:  # an instance that starts in no time leaves none to connect ahead
        await meeting.run(0.2)
    await asyncio.sleep(0.5)
    await plane.describe("shards", "forget")
    calls = Calls(plane.rpc, plane.addr["schedule-0"], 1, 1, "found", tuple(shards))
    await calls.run(seconds)
    of_many = await heard_of(plane, calls.placed)
    await plane.end_instances()
    of_one = await heard_of(plane, await started_alone(plane, seconds, shards))
    await plane.describe(LONE, "end")
    plane.processes["shards"].kill()
    crowd = (
        f"{said}; {SHARDS} shards, {len(of_many):,} instances, one Schedule call under way, connections stand"
    )
    alone = f"{said}; {SHARDS} shards, {len(of_one):,} instances, one every {APART_S * 1e3:g} ms, connections stand"
    return [
        *found_in("service discovery, node to every shard that waits", of_many, crowd),
        *found_in("service discovery, an agent with a process of its own", of_one, alone),
    ]


async def heard_of(plane: ControlPlane, count: int) -> list[float]:
    """Of so many instances, and of all of them."""
    await asyncio.sleep(0.5)
    took: list[float] = (await plane.describe("shards"))["took"]
    await plane.describe("shards", "forget")
    if len(took) != count:
        raise SystemExit(f"{count} instances were placed, all shards have heard of {len(took)}")
    return took


async def started_alone(plane: ControlPlane, seconds: float, shards: list[str]) -> int:
    """How many, by an agent that has its process for itself. The first few open its connections, and don't count."""
    lone, pool, began, number = await plane.lone(), revisions(200, "lone"), time.perf_counter(), 0
    started = 0
    while time.perf_counter() - began < seconds and number < LONE_HOLDS:
        number += 1
        instance = InstanceID(f"lone-{number}")
        start = Start(instance, pool[number % 200], EPOCH, FunctionID("bench"), shards[0], tuple(shards))
        reply = await plane.rpc.call(lone, start)
        if not reply.admitted:
            raise SystemExit(f"the agent refused {instance}: {reply.reason}")
        started += 1
        await asyncio.sleep(APART_S)
        if number == OPENING:
            await asyncio.sleep(0.5)
            await plane.describe("shards", "forget")
            began, started = time.perf_counter(), 0
    return started


def found_in(what: str, took: list[float], said: str) -> list[Row]:
    aim: dict[str, Any] = {"peer": AIM_FOUND_S * 1e3, "peer_name": "aim"}
    return [
        row(f"{what}, p50", took[len(took) // 2] * 1e3, "ms", said),
        row(f"{what}, p99", took[int(len(took) * 0.99)] * 1e3, "ms", said, **aim),
    ]


async def connecting(plane: ControlPlane, calls: int, said: str) -> list[Row]:
    """The same call on a kept connection, and on a new one each, closed again after it; some of each in turns.

    The agent that answers has a process of its own, as agents have: beside others in one process a call waits for
    these, and what they do in the meantime would count as its own.
    """
    addr = await plane.lone()
    taken: dict[bool, list[float]] = {True: [], False: []}
    spent = {True: 0.0, False: 0.0}
    for kept in (True, False) * TURNS:
        rpc = Rpc("bench", plane.key)
        await rpc.call(addr, Probe())
        cpu, own = plane.cpu_s(LONE), time.process_time()
        for _ in range(calls // TURNS):
            began = time.perf_counter()
            await rpc.call(addr, Probe())
            connection = rpc.outgoing.get(addr)
            if not kept and connection is not None:
                connection.retire()
            taken[kept].append(time.perf_counter() - began)
        spent[kept] += time.process_time() - own + plane.cpu_s(LONE) - cpu
        await rpc.close()
    said = (
        f"{said}; Probe of an agent with a process of its own, {calls:,} calls one after the other, "
        f"in {TURNS} turns, hello with every new connection; time of the median call"
    )
    out = []
    for what, of in (
        ("time", {kept: statistics.median(each) for kept, each in taken.items()}),
        ("processor time of both sides", {kept: s / len(taken[kept]) for kept, s in spent.items()}),
    ):
        ours, peer = of[True] * 1e6, of[False] * 1e6
        out.append(
            row(
                f"{what} of a call on a kept connection",
                ours,
                "us",
                said,
                peer=round(peer, 1),
                peer_name="a new connection each",
            )
        )
        out.append(
            row(
                f"share of {what} that the connection cache saves",
                1 - ours / peer,
                "",
                said,
                "higher",
                peer=0.8,
                peer_name="aim",
            )
        )
    return out


async def idling(plane: ControlPlane, said: str) -> list[Row]:
    """At zero load: messages of everybody, processor time of the functions."""
    functions = ("controller", "cluster-mgr-0", "schedule-0")

    async def calls() -> int:
        counters = await plane.counters()
        own = [(await plane.describe(name))["connections"] for name in functions[1:]]
        return counters["calls"] + sum(int(c["hits"]) + int(c["misses"]) for c in own)

    await asyncio.sleep(2.0)
    before, cpu, began = await calls(), {n: plane.cpu_s(n) for n in plane.processes}, time.perf_counter()
    await asyncio.sleep(IDLE_S)
    took = time.perf_counter() - began
    used = {name: (plane.cpu_s(name) - was) / took for name, was in cpu.items()}
    messages = (await calls() - before) / took
    of_functions = sum(used[name] for name in functions)
    of_nodes = sum(used[name] for name in plane.groups)
    return [
        row(
            "idle: messages/s",
            messages,
            "1/s",
            f"{said}; without the controller's own, which calls nobody at rest",
        ),
        row("idle: processor time of the functions", of_functions * 1e3, "ms/s", f"{said}; one of each kind"),
        row("idle: processor time of node agents, each", of_nodes / plane.count * 1e3, "ms/s", said),
    ]


async def whole_path(plane: ControlPlane, under_way: int, seconds: float, said: str) -> list[Row]:
    """Held at a shard, told to its home, placed, admitted, told by the node, granted, handed over."""
    store = RemoteStore(plane.rpc, plane.controller)
    items = []
    for revision in revisions(64, "path"):
        host = revision.service.partition("/")[2]
        items.append((f"revisions/{revision.key}", msgspec.msgpack.encode(revision)))
        items.append((f"routes/{host}", msgspec.msgpack.encode(((revision.key, 100),))))
    await store.put_now(items)
    argv = ["bench.sockets.dispatch", "--data", str(plane.data), "--controller", plane.controller]
    argv += ["--under-way", str(under_way), "--seconds", str(seconds)]
    before = await plane.counters()
    plane.start("dispatch-0", plane.schedule_cpu, *argv, stdout=subprocess.PIPE)
    out = plane.processes["dispatch-0"].stdout
    assert out is not None
    await asyncio.to_thread(out.readline)
    cpu = {name: plane.cpu_s(name) for name in plane.processes}
    line = await asyncio.to_thread(out.readline)
    if not line:
        raise SystemExit(f"dispatch-0 has ended: {(plane.data / 'dispatch-0.log').read_text()[-3000:]}")
    used = {name: plane.cpu_s(name) - was for name, was in cpu.items()}
    found = json.loads(line)
    admitted = (await plane.counters())["admitted"] - before["admitted"]
    if found["refused"] or found["went"] > admitted:
        raise SystemExit(f"{found['went']} went, {admitted} admitted, refused: {found['refused']}")
    await store.close()
    each = 1e6 / found["went"]
    said = (
        f"{said}; {under_way} requests held at once, {found['went']:,} went, {admitted:,} instances admitted; "
        f"Dispatch's request path and homes {found['form']}"
    )
    return [
        row(
            "whole path: requests handed over/s",
            found["went"] / found["took"],
            "1/s",
            said,
            "higher",
            peer=AIM_WHOLE,
            peer_name="aim",
        ),
        row("whole path: p50 from held to handed over", found["p50"] * 1e3, "ms", said),
        row("whole path: p99 from held to handed over", found["p99"] * 1e3, "ms", said),
        row("whole path: processor time of Dispatch", found["cpu_s"] * each, "us", said),
        row("whole path: processor time of Schedule", used["schedule-0"] * each, "us", said),
        row(
            "whole path: processor time of node agents",
            sum(used[n] for n in plane.groups) * each,
            "us",
            said,
        ),
        row(
            "whole path: processor time of ClusterMgr and controller",
            (used["cluster-mgr-0"] + used["controller"]) * each,
            "us",
            said,
        ),
    ]


def remembering() -> list[Row]:
    argv = [sys.executable, "-m", "bench.sockets.memory"]
    found = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
    said = "allocated by Python for what is kept, decoded from messages"
    return [
        row(f"memory of a Schedule function for {NODES:,} nodes", found["nodes"] / 2**20, "MiB", said),
        row(f"memory of a home for {INSTANCES:,} instances", found["instances"] / 2**20, "MiB", said),
    ]


async def measure(args: argparse.Namespace) -> list[Row]:
    cores = sorted(os.sched_getaffinity(0))
    out = []
    async with ControlPlane(args.nodes, schedule_cpu=cores[0], other_cpu=cores[-1]) as plane:
        said = f"real sockets on loopback, {args.nodes} emulated nodes, load average {os.getloadavg()[0]:.1f}"
        steps: dict[str, Callable[[], Awaitable[list[Row]]]] = {
            "idle": lambda: idling(plane, said),
            "decisions": lambda: deciding(plane, args.seconds, said),
            "discovery": lambda: finding(plane, args.seconds, said),
            "connections": lambda: connecting(plane, args.calls, said),
            "path": lambda: whole_path(plane, args.under_way, args.seconds, said),
        }
        for name, step in steps.items():
            if name in args.only:
                print(f"{name} ...", file=sys.stderr, flush=True)
                out += await step()
    return out


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.control_sockets", description=__doc__)
    parser.add_argument("--nodes", type=int, default=210)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement")
    parser.add_argument("--calls", type=int, default=2000, help="on connections, kept and new")
    parser.add_argument("--under-way", type=int, default=128, help="requests held at once on the whole path")
    parser.add_argument(
        "--only", nargs="*", default=["idle", "decisions", "discovery", "connections", "path", "memory"]
    )
    parser.add_argument("--dry", action="store_true", help="print, record nothing")
    args = parser.parse_args()
    rows = uvloop.run(measure(args)) if set(args.only) - {"memory"} else []
    if "memory" in args.only:
        rows += remembering()
    record("control-sockets", rows, refused="--dry" if args.dry else "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
