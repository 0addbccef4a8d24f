"""What a Schedule function and a home keep in memory: `python -m bench.sockets.memory` prints bytes as JSON.

Everything is decoded from bytes of its own, as it comes from the network, so that nothing is shared that would not be
shared in a process of the cluster.
"""

from __future__ import annotations

import gc
import json
import sys
import tracemalloc
from collections.abc import Callable
from itertools import count

import msgspec

from bench.sockets.load import revisions
from kserve_ext.core.dispatch.home import Home
from kserve_ext.core.facts import Instance, NodeStatus, Resources
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID
from kserve_ext.core.schedule.machine import ScheduleMachine

NODES, INSTANCES = 1000, 10_000


def nodes(number: int) -> object:
    machine = ScheduleMachine(FunctionID("schedule-0"))
    (revision,) = revisions(1)
    for k in range(number):
        full = Resources(64_000, 262_144, 8, 655_360, 8)
        status = NodeStatus(NodeID(f"node-{k:04d}"), f"10.0.{k // 250}.{k % 250}:4000", 1, k, full, full)
        known = msgspec.msgpack.decode(msgspec.msgpack.encode(status), type=NodeStatus)
        machine.partition.learn(known)
    machine.partition.ranking.best(revision)
    return machine


def instances(number: int) -> object:
    numbers = count()
    home = Home(FunctionID("dispatch-0"), 1, lambda key: InstanceID(f"{key}-{next(numbers)}"))
    (revision,) = revisions(1)
    revision = revision._replace(scale=revision.scale._replace(min=number))
    names = {NodeID(f"node-{k:04d}") for k in range(210)}
    home.view(names, {FunctionID("dispatch-0"): 1}, (), 0.0)
    home.add(revision, True, (), 0.0)
    for k in range(number):
        node = NodeID(f"node-{k % 210:04d}")
        fact = Instance(
            InstanceID(f"r0-00001-{k:08x}"), revision.key, node, "ready", f"10.0.0.{k % 210}:{k}", k, 1
        )
        known = msgspec.msgpack.decode(msgspec.msgpack.encode(fact), type=Instance)
        home.observed(revision.key, node, (known,), False, 1.0)
    known_now = len(home.revisions[revision.key].fleet.known)
    if known_now < number:
        raise SystemExit(f"home knows {known_now} of {number} instances")
    return home


def taken(make: Callable[[int], object], number: int) -> int:
    """Bytes that are kept of what is made of so many."""
    make(1)  # what is loaded and cached once
    gc.collect()
    tracemalloc.start()
    kept = make(number)
    gc.collect()
    found = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept is not None
    return found


def main() -> int:
    print(json.dumps({"nodes": taken(nodes, NODES), "instances": taken(instances, INSTANCES)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
