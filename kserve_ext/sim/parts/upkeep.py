"""What goes on in the background of ours whether requests come or not: heartbeats, ticks, gossip, reports.

They are handled in groups, at their real periods, and cost what they cost; a process that is dead or paused takes no
part. A status that has changed goes out at once, in a message of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from kserve_ext.core.cluster_mgr import ClusterMgrMachine, Instruction, TellOwner
from kserve_ext.core.facts import Member
from kserve_ext.core.ids import FunctionID, NodeID
from kserve_ext.sim.parts.controller import Controller
from kserve_ext.sim.parts.dispatch import Dispatch
from kserve_ext.sim.parts.network import Network, Process
from kserve_ext.sim.parts.node import NodeAgent
from kserve_ext.sim.parts.requests import Held
from kserve_ext.sim.parts.schedule import Schedule

DISPATCH_TICK_S: Final = 0.1
NODE_TICK_S: Final = 0.5
HEARTBEAT_S: Final = 0.5
GOSSIP_S: Final = 0.5
HAND_S: Final = 0.1  # what nobody has handed over is claimed again
ROUNDS_BEFORE: Final = 10  # of gossip: the cluster stands for a while already
REPORT_S: Final = 0.5
GROUPS: Final = 10  # nodes beat in so many groups, one after the other


class Upkeep:
    def __init__(
        self,
        network: Network,
        controller: Controller,
        shards: Mapping[FunctionID, Dispatch[Held]],
        schedulers: Mapping[FunctionID, Schedule],
        managers: Mapping[FunctionID, ClusterMgrMachine],
        nodes: Mapping[NodeID, NodeAgent],
        processes: Mapping[FunctionID, Process],
        manager_of: Callable[[NodeAgent], FunctionID],
        members: Callable[[], Sequence[Member]],
    ) -> None:
        self.network, self.clock, self.controller = network, network.clock, controller
        self.shards, self.schedulers, self.managers = shards, schedulers, managers
        self.nodes, self.processes = nodes, processes
        self.manager_of, self.members = manager_of, members

    def begin(self) -> None:
        for number, name in enumerate(self.shards):
            self.tick(name, DISPATCH_TICK_S * (number + 1) / len(self.shards))
        for group in range(GROUPS):
            share = (group + 1) / GROUPS
            self._beat(group)
            self.clock.every(HEARTBEAT_S, partial(self._beat, group), HEARTBEAT_S * share)
            self.clock.every(NODE_TICK_S, partial(self._tick_nodes, group), NODE_TICK_S * share)
        for _ in range(ROUNDS_BEFORE):
            for function in self.schedulers.values():
                function.gossip()
        self.clock.every(GOSSIP_S, self._gossip)
        self.clock.every(HAND_S, self._hand_over)
        self.clock.every(REPORT_S, self._report)

    def tick(self, name: FunctionID, first: float) -> None:
        """A Dispatch function's clock, from now on: what is due waits for what has come before.

        It looks at some revisions at a time, and unless it is late what has come meanwhile goes before the next ones.
        """

        def due() -> None:
            process = self.processes[name]
            process.core.do(0.0, partial(tick, process, self.clock.now))

        def tick(process: Process, at: float) -> None:
            look(process, self.shards[name].ticks(at), at)

        def look(process: Process, ticks: Iterator[int], at: float) -> None:
            looked: int | None = None

            def some() -> int:
                nonlocal looked
                looked = next(ticks, None)
                return looked or 0

            if not process.dead:
                self.network.inline(process, "tick", some)
            if looked is None:
                self.clock.after(DISPATCH_TICK_S, due)
            else:
                late = self.clock.now - at > DISPATCH_TICK_S
                process.core.do(0.0, partial(look, process, ticks, at), own=late)

        self.clock.after(first, due)

    # --- nodes

    def reported(self, agent: NodeAgent) -> None:
        """A changed status, at once."""
        name = self.manager_of(agent)
        machine, status, process = self.managers[name], agent.machine.status(), self.processes[name]

        def ask() -> None:
            self.manage(process, machine.update(status, 1, self.clock.now), aside=False)

        self.network.call(agent.process, process, "update", ask, None)

    def manage(self, source: Process, instructions: Sequence[Instruction], *, aside: bool) -> None:
        """What a ClusterMgr function wants done; `aside`: as part of the background."""
        for i in instructions:
            if not isinstance(i, TellOwner):
                self.network.tell(
                    source,
                    self.controller.process,
                    "report",
                    partial(self.controller.leave, FunctionID(i.status.node), i.status.incarnation, i.reason),
                )
                continue
            function = self.schedulers[i.owner]
            if not aside:
                learn = partial(function.learn, i.status, i.down)
                self.network.call(source, function.process, "mod-node", learn, None)
            elif function.process.runs(self.clock.now) and self.network.reaches(source, function.process):
                self.network.aside(function.process, "mod-node")
                function.learn(i.status, i.down)

    def _beat(self, group: int) -> None:
        now = self.clock.now
        for agent in list(self.nodes.values())[group::GROUPS]:
            name = self.manager_of(agent)
            process = self.processes[name]
            if agent.process.runs(now) and process.runs(now) and self.network.reaches(agent.process, process):
                self.network.aside(process, "update")
                out = self.managers[name].update(agent.machine.status(), 1, now)
                self.manage(process, out, aside=True)

    def _tick_nodes(self, group: int) -> None:
        for agent in list(self.nodes.values())[group::GROUPS]:
            if agent.process.runs(self.clock.now):
                agent.tick()

    # --- functions

    def _hand_over(self) -> None:
        for function in self.schedulers.values():
            if function.process.runs(self.clock.now):
                function.tick()

    def _gossip(self) -> None:
        now = self.clock.now
        for function in self.schedulers.values():
            if function.process.runs(now):
                function.gossip()
        for name, machine in self.managers.items():
            if self.processes[name].runs(now):
                self.manage(self.processes[name], machine.tick(now), aside=True)

    def _report(self) -> None:
        if self.controller.process.runs(self.clock.now):
            now = self.clock.now
            for name in self.controller.report(self.members()):
                if name in self.shards:
                    self.shards[name].authority.member(now)
