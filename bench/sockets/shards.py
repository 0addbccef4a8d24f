"""Shards that wait: `python -m bench.sockets.shards --data DIR --count N`. Each has an rpc address of its own.

They note how long ago a node has found an instance ready when its ModInstance is in their handler; the first of them
answers as the home, the others as shards that hold a request. Prints their addresses, then one at which Describe
answers with the times of those instances that all of them have heard of; Describe("forget") begins anew.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from functools import partial
from pathlib import Path

import msgspec
import uvloop

from bench.sockets.nodes import READY_MARK
from kserve_ext.core.ids import InstanceID
from kserve_ext.rpc import Caller, Rpc
from kserve_ext.wire import messages as m


class Shards:
    def __init__(self, key: bytes, count: int) -> None:
        self.rpcs = [Rpc(f"shard-{k}", key) for k in range(count)]
        #: of each instance, how long it took to those that have heard
        self.heard: dict[InstanceID, dict[int, float]] = {}
        for k, rpc in enumerate(self.rpcs):
            rpc.handle(m.ModInstance, partial(self._told, k))

    def _told(self, shard: int, message: m.ModInstance, caller: Caller) -> m.ModInstanceReply:
        now = time.time()
        for instance in message.instances:
            found = next((mark.at for mark in instance.marks if mark.name == READY_MARK), None)
            if found is not None and instance.state == "ready" and not message.full:
                self.heard.setdefault(instance.id, {}).setdefault(shard, now - found)
        return m.ModInstanceReply(shard == 0, (), 0)

    def describe(self, message: m.Describe, caller: Caller) -> m.Description:
        if message.what == "forget":
            self.heard.clear()
        all_heard = [max(of.values()) for of in self.heard.values() if len(of) == len(self.rpcs)]
        return m.Description(msgspec.json.encode({"known": len(self.heard), "took": sorted(all_heard)}))


async def run(args: argparse.Namespace) -> None:
    key = (args.data / "cluster.key").read_bytes()
    shards = Shards(key, args.count)
    addrs = [await rpc.listen("127.0.0.1") for rpc in shards.rpcs]
    asked = Rpc("shards", key)
    asked.handle(m.Describe, shards.describe)
    print(" ".join([*addrs, await asked.listen("127.0.0.1")]), flush=True)
    await asyncio.Event().wait()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sockets.shards", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--count", type=int, default=8)
    uvloop.run(run(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
