"""What home does for each of its instances does not grow with their number: operations are counted, not time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from kserve_ext.core.dispatch.facts import Demand, Outcome, Remember
from kserve_ext.core.dispatch.home import Home
from kserve_ext.core.facts import Instance, Scale
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID
from tests.support.world_nodes import REVISION, revision

pytestmark = pytest.mark.skipif(
    not hasattr(Home.tick, "__code__"),
    reason="the compiled form runs no lines",
)

NODES = [NodeID(f"node-{k}") for k in range(20)]
SHARDS = {FunctionID(f"dispatch-{k}"): 1 for k in range(3)}
FEW, MANY = 100, 800


class Running:
    """A home of one revision with so many instances that are ready, and in use by all shards."""

    def __init__(self, count: int, concurrency: int) -> None:
        numbers = iter(range(1_000_000))
        self.home = Home(FunctionID("dispatch-0"), 1, lambda key: InstanceID(f"new-{next(numbers)}"))
        self.home.view(NODES, SHARDS, (), 0.0)
        scale = Scale(initial=0, min=count + 1, target=1.0, utilization=1.0)  # one more has been asked for
        self.home.add(revision(concurrency=concurrency, scale=scale), False, (), 0.0)
        self.of_node: dict[NodeID, list[Instance]] = {node: [] for node in NODES}
        for k in range(count):
            node = NODES[k % len(NODES)]
            name = InstanceID(f"i-{k}")
            self.of_node[node].append(Instance(name, REVISION, node, "ready", f"h:{k}", epoch=1))
        for node, instances in self.of_node.items():
            self.home.node_says(REVISION, node, instances, 0.0, 0.0)
        names = [i.id for of in self.of_node.values() for i in of]
        for k, shard in enumerate(SHARDS):
            used = tuple((i, 1) for i in names[k :: len(SHARDS)])
            report = Demand(REVISION, 1, 0, len(used), 0, 0, 0, 0.0, 0.0, used, used, 1, 1)
            self.home.recalled(shard, (REVISION,), (report,), 0.0)
            grant, _ = self.home.demand(shard, report._replace(seq=2), 0.4)
            assert grant is not None
            assert len(grant.slots) == (len(used) if concurrency else count)
            obeyed = report._replace(seq=3, granted=grant.seq)
            assert self.home.demand(shard, obeyed, 0.4)[0] is None, "there is nothing more to say"
        self.home.tick(0.5)

    def restate(self, now: float) -> None:
        """Every node says everything that it runs, an instance at a time and as a whole."""
        for node, instances in self.of_node.items():
            for instance in instances:
                assert self.home.observed(REVISION, node, (instance,), False, now) == ((), [])
            assert self.home.observed(REVISION, node, instances, True, now) == ((), [])


def operations(of: Callable[[], object]) -> int:
    """Lines of the core that ran, each round of a loop as one."""
    count = 0

    def line(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return line

    def call(frame: FrameType, event: str, arg: Any) -> Any:
        return line if "kserve_ext/core" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        of()
    finally:
        sys.settrace(before)
    return count


def growth(concurrency: int, of: Callable[[Running], object]) -> Iterator[int]:
    for count in (FEW, MANY):
        running = Running(count, concurrency)
        yield operations(lambda running=running: of(running))  # type: ignore[misc]


def test_what_nodes_say_again_costs_the_same_for_each_instance() -> None:
    for concurrency in (0, 1):
        few, many = growth(concurrency, lambda running: running.restate(1.0))
        assert few > FEW, "it is counted"
        assert many / MANY <= few / FEW


def test_a_tick_without_news_costs_the_same_for_any_number_of_instances() -> None:
    for concurrency in (0, 1):
        few, many = growth(concurrency, lambda running: [running.home.tick(0.6 + k / 20) for k in range(8)])
        assert many <= few + 50


def test_a_placement_costs_the_same_for_any_number_of_instances() -> None:
    """As long as nobody can use it yet, it changes nobody's slots."""

    def place(running: Running) -> None:
        (placed,) = running.home.placed({REVISION: [Outcome(InstanceID("new-0"), NODES[0])]}, 1.0)
        assert isinstance(placed, Remember)
        starting = Instance(InstanceID("new-0"), REVISION, NODES[0], "starting", "h:1", epoch=1)
        assert running.home.observed(REVISION, NODES[0], (starting,), False, 1.0) == ((), [])

    for concurrency in (0, 1):
        few, many = growth(concurrency, place)
        assert many <= few + 50
