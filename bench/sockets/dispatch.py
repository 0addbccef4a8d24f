"""One Dispatch function that holds requests of its own making: `python -m bench.sockets.dispatch --data DIR ...`.

Shard, homes and their shells are the real ones, the state store is the controller's; only HTTP is left out: what is
held is held by the shard, and counts as answered when the shard hands it the address of a ready instance. So many are
held at once, each of a revision in turn, and none ever ends, so that each needs an instance of its own. Prints a line
when it begins, and one of JSON at the end: how many in how long, and how long each waited.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from time import perf_counter, process_time

from activator_replacement import compiled
from activator_replacement.__main__ import DispatchFunction
from kserve_ext.core.facts import Hold
from kserve_ext.core.ids import InstanceID, RevisionKey
from kserve_ext.rpc import Rpc
from kserve_ext.rpc.membership import Membership
from kserve_ext.rpc.process import Process
from kserve_ext.store.opening import open_store

HOLD = Hold(seconds=60.0, requests=100_000, bytes=1 << 40)
PATIENCE_S = 20.0


class Held:
    """What the shard holds."""

    __slots__ = ("cold", "held_bytes", "instance", "load", "note", "revision", "since", "started")

    def __init__(self, load: Load, revision: RevisionKey) -> None:
        self.load, self.revision = load, revision
        self.instance = InstanceID("")
        self.held_bytes, self.cold, self.note = 200, False, None
        self.since = self.started = perf_counter()

    def go(self, addr: str, instance: InstanceID) -> None:
        self.instance = instance
        self.load.went(self)

    def refuse(self, status: int, reason: str, retry_after_s: float = 0.0) -> None:
        self.load.refused.append(f"{status} {reason}")
        self.load.went(self)


class Load:
    def __init__(self, function: DispatchFunction, under_way: int, seconds: float) -> None:
        self.dispatcher = function.dispatcher
        self.keys = sorted(function.routes.revisions)
        self.under_way, self.seconds = under_way, seconds
        self.waited: list[float] = []
        self.refused: list[str] = []
        self.loop = asyncio.get_running_loop()
        self.ended = self.loop.create_future()
        self.open = 0
        self._number = 0

    async def run(self) -> float:
        began = perf_counter()
        self.until = began + self.seconds
        for _ in range(self.under_way):
            self._next()
        await asyncio.wait_for(self.ended, self.seconds + PATIENCE_S)
        return perf_counter() - began

    def went(self, held: Held) -> None:
        now = perf_counter()
        self.waited.append(now - held.since)
        self.open -= 1
        if now < self.until and not self.refused:
            self.loop.call_soon(self._next)  # not from within the shard's own call
        elif not self.open and not self.ended.done():
            self.ended.set_result(None)

    def _next(self) -> None:
        self.open += 1
        self._number += 1
        self.dispatcher.place(Held(self, self.keys[self._number % len(self.keys)]), HOLD)


async def serve(process: Process, rpc: Rpc, membership: Membership, args: argparse.Namespace) -> None:
    store = open_store(process, rpc)
    function = DispatchFunction(rpc, membership, store)
    await function.routes.complete.wait()
    await function.homes.copies.complete.wait()
    await membership.start()
    ticks = asyncio.create_task(function.run())
    async with asyncio.timeout(30):  # homes have asked all nodes what they run before they start anything
        while not all(h.revisions[k].open for h in function.homes.homes.values() for k in h.revisions):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    process.ready()
    await asyncio.sleep(1.0)
    load = Load(function, args.under_way, args.seconds)
    print("begins", flush=True)
    cpu = process_time()
    took = await load.run()
    waited = sorted(load.waited)
    print(
        json.dumps(
            {
                "went": len(waited) - len(load.refused),
                "took": took,
                "cpu_s": process_time() - cpu,
                "p50": waited[len(waited) // 2],
                "p99": waited[int(len(waited) * 0.99)],
                "refused": load.refused[:3],
                "calls": rpc.connections(),
                "form": compiled.form(),
            }
        ),
        flush=True,
    )
    ticks.cancel()
    await asyncio.Event().wait()  # until it is ended: its homes keep what they started


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sockets.dispatch", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--controller", required=True)
    parser.add_argument("--under-way", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0)
    args = parser.parse_args()
    process = Process("dispatch-0", "dispatch", args.data, args.controller, "127.0.0.1", 0)

    async def run(rpc: Rpc, membership: Membership) -> None:
        await serve(process, rpc, membership, args)

    return process.run(run)


if __name__ == "__main__":
    sys.exit(main())
