"""Shards, homes and nodes together, through random orders, losses, kills and view changes (tests/support/world.py).

After every step: no revision has more instances than max-scale, no instance sees more requests than its limit,
every request has at most one answer. After quiet: every request was answered, no slot is lost, nothing leaks.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kserve_ext.core.facts import Affinity
from kserve_ext.core.ids import FunctionID, NodeID
from tests.support.world import World
from tests.support.world_nodes import revision

SHARDS = [FunctionID(f"dispatch-{k}") for k in range(3)]
NODES = [NodeID("node-0"), NodeID("node-1")]
LIVELY = st.integers(0, 10_000)


class Cluster(RuleBasedStateMachine):
    concurrency = 2
    affinity: Affinity = "none"

    @initialize()
    def begin(self) -> None:
        self.world = World(
            3, dict.fromkeys(NODES, 3), [revision(concurrency=self.concurrency, affinity=self.affinity)]
        )
        self.world.flush()

    @rule(shard=st.sampled_from(SHARDS), count=st.integers(1, 6))
    def request(self, shard: FunctionID, count: int) -> None:
        if not self.world.procs[shard].dead:
            for _ in range(count):
                self.world.request(shard)

    @rule(which=LIVELY, count=st.integers(1, 8))
    def deliver(self, which: int, count: int) -> None:
        for _ in range(min(count, len(self.world.queue))):
            self.world.deliver(which)

    @rule()
    def deliver_all(self) -> None:
        self.world.flush()

    @precondition(lambda self: self.world.queue)
    @rule(which=LIVELY)
    def lose(self, which: int) -> None:
        self.world.lose(which)

    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 4.0]), deliver=st.booleans())
    def time(self, seconds: float, deliver: bool) -> None:
        self.world.pass_time(seconds, deliver=deliver)

    @rule(which=LIVELY)
    def become_ready(self, which: int) -> None:
        starting = [r for r in self.world.all_running() if r.state == "starting"]
        if starting:
            self.world.make_ready(starting[which % len(starting)])

    @rule(which=LIVELY)
    def finish(self, which: int) -> None:
        sent = [q for r in self.world.all_running() for q in sorted(r.requests, key=lambda q: q.id)]
        if sent:
            self.world.finish(sent[which % len(sent)])

    @rule()
    def finish_all(self) -> None:
        self.world.finish_all()

    @rule(which=LIVELY)
    def instance_dies(self, which: int) -> None:
        running = self.world.all_running()
        if running:
            run = running[which % len(running)]
            self.world.nodes[run.node].end(run, "the process was killed by SIGKILL")

    @rule(shard=st.sampled_from(SHARDS))
    def kill(self, shard: FunctionID) -> None:
        if len(self.world.live()) > 1 and not self.world.procs[shard].dead:
            self.world.kill(shard)

    @rule(shard=st.sampled_from(SHARDS))
    def boot(self, shard: FunctionID) -> None:
        if self.world.procs[shard].dead:
            self.world.boot(shard)
            self.world.publish()

    @rule(node=st.sampled_from(NODES), away=st.booleans())
    def agent(self, node: NodeID, away: bool) -> None:
        self.world.nodes[node].agent = not away

    @rule(node=st.sampled_from(NODES), seconds=st.sampled_from([0.5, 3.0]))
    def agent_restarts(self, node: NodeID, seconds: float) -> None:
        """ClusterMgr finds it dead; it comes back before it is given up."""
        world = self.world
        world.nodes[node].agent = False
        world.away.add(node)
        world.publish()
        world.pass_time(seconds)
        world.nodes[node].agent = True
        world.away.discard(node)
        world.publish()

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        for node in world.nodes.values():
            node.agent = True
        for proc in list(world.procs.values()):
            if proc.dead:
                world.boot(proc.id)
        world.publish()
        world.settle(45.0)
        states = {r.state for r in world.requests}
        assert states <= {"ok", "reset", "failed", "refused"}, self.story()
        assert not world.all_running(), "instances leak after scale to zero"
        late = [world.request(shard) for shard in SHARDS for _ in range(4)]
        world.settle(15.0)
        assert {r.state for r in late} == {"ok"}, "slots were lost"
        world.settle(30.0)
        assert not world.all_running()
        for proc in world.live():
            for home in proc.homes.values():
                for rh in home.revisions.values():
                    assert not rh.fleet.known
                    if rh.leases.limit:
                        assert all(not a.bound(i) for a in rh.leases.accounts.values() for i in a.reported)

    def story(self) -> str:
        return "\n".join(str(r) for r in self.world.requests if r.state in ("held", "sent"))


class Unlimited(Cluster):
    concurrency = 0


class Preferring(Cluster):
    """Requests wait for a slot of the instance that they prefer."""

    affinity = "session"


bounds = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLimited = pytest.mark.timeout(240)(Cluster.TestCase)
TestLimited.settings = bounds
TestUnlimited = pytest.mark.timeout(240)(Unlimited.TestCase)
TestUnlimited.settings = bounds
TestPreferring = pytest.mark.timeout(240)(Preferring.TestCase)
TestPreferring.settings = bounds
