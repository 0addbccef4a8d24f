"""One node agent in virtual time: the real machine of the node, on a node of the fleet.

Admission is the machine's; the fleet only knows how long a start takes and whether an instance serves a request. A
node with standby slots starts from one as long as it has any, and fills each up again as long as a start takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from kserve_ext.core.facts import Instance as Fact
from kserve_ext.core.facts import NodeStatus, Resources
from kserve_ext.core.ids import InstanceID, NodeID, RevisionKey
from kserve_ext.core.node.admission import Ledger
from kserve_ext.core.node.facts import Instruction, Launch, Order, Report, Signal, Tell, Verdict
from kserve_ext.core.node.machine import NodeMachine
from kserve_ext.core.node.slots import Slots
from kserve_ext.sim.fleet import Fleet, Instance, Node
from kserve_ext.sim.parts.network import Network

NEEDS = Resources(cpu_milli=1000)  # of an instance: one of the node's places
SOON_S = 0.005  # a changed status is told so late, with what else changes


class NodeAgent:
    """`told` carries a Tell to whom it names; `reported` a status to its ClusterMgr function."""

    def __init__(
        self,
        network: Network,
        node: Node,
        told: Callable[[NodeAgent, Tell], None],
        reported: Callable[[NodeAgent], None],
        standby: int = 0,
        standby_s: float = 0.0,
    ) -> None:
        self.network, self.node, self.told, self.reported = network, node, told, reported
        self.fleet: Fleet = network.fleet
        self.id = NodeID(f"node-{node.number:04d}")
        self.process = network.process(self.id)
        ledger = Ledger(Resources(cpu_milli=1000 * node.room))
        self.machine = NodeMachine(self.id, self.id, 1, ledger, Slots(ledger, 0))
        self.instances: dict[InstanceID, Instance] = {}
        self.names: dict[Instance, InstanceID] = {}
        self.draining: set[InstanceID] = set()
        self.standby, self.standby_s = standby, standby_s
        self._soon = False

    # --- asked

    def start(self, order: Order) -> tuple[Verdict, NodeStatus]:
        verdict, out = self.machine.start(order, self.network.clock.now)
        if verdict.reason:
            self.fleet.count("starts asked")
            self.fleet.count("starts refused")
        self.carry(out)
        return verdict, self.machine.status()

    def commit(
        self, instances: tuple[InstanceID, ...], epoch: int, cancel: bool
    ) -> tuple[Verdict, NodeStatus]:
        verdict, out = self.machine.commit(instances, epoch, self.network.clock.now, cancel=cancel)
        self.carry(out)
        return verdict, self.machine.status()

    def stop(self, instance: InstanceID, epoch: int, drain_s: float, reason: str) -> None:
        _, out = self.machine.stop(instance, epoch, drain_s, reason, self.network.clock.now)
        self.carry(out)

    def recall(self, epoch: int, home: str, key: RevisionKey) -> tuple[Fact, ...]:
        facts, _ = self.machine.recall(epoch, home, (key,), self.network.clock.now)
        return facts

    def acknowledged(self, tell: Tell, home: bool, unwanted: tuple[InstanceID, ...], epoch: int) -> None:
        now = self.network.clock.now
        if home:
            self.carry(self.machine.lives.acknowledged(tell, True, unwanted, epoch, now))
        else:
            self.machine.lives.tell_failed(tell, now)

    def tick(self) -> None:
        self.carry(self.machine.tick(self.network.clock.now))

    # --- its instances

    def ready(self, name: InstanceID, instance: Instance) -> None:
        out = self.machine.lives.observed(name, "ready", f"{name}:80", (), self.network.clock.now)
        self.carry(out)

    def takes(self, name: InstanceID) -> Instance | None:
        """The instance, if a request may begin there."""
        instance = self.instances.get(name)
        if instance is None or name in self.draining or instance.state != "idle":
            return None
        return instance

    def busy(self, name: InstanceID) -> bool:
        """It serves a request."""
        instance = self.instances.get(name)
        return instance is not None and instance.state == "busy"

    def served(self, name: InstanceID) -> None:
        """A request there has ended."""
        if name in self.draining:
            self._exit(name)

    # --- carrying out

    def carry(self, instructions: Iterable[Instruction]) -> None:
        for i in instructions:
            match i:
                case Tell():
                    self.told(self, i)
                case Report():
                    self._report()
                case Launch():
                    self._launch(i.instance)
                case Signal():
                    self.draining.add(i.instance)
                    if self.instances[i.instance].state != "busy":
                        self._exit(i.instance)

    def _report(self) -> None:
        if not self._soon:
            self._soon = True
            self.network.clock.after(SOON_S, self._send)

    def _send(self) -> None:
        self._soon = False
        self.reported(self)

    def _launch(self, name: InstanceID) -> None:
        function = self.machine.lives.known[name].revision.service
        seconds = None
        if self.standby:
            self.standby -= 1
            self.network.clock.after(self.fleet.world.start_s, self._fill_up)
            seconds = self.standby_s
        instance = self.fleet.start(self.node, function, partial(self.ready, name), seconds)
        assert instance is not None, f"{self.id} has admitted more than it has room for"
        self.instances[name], self.names[instance] = instance, name

    def _fill_up(self) -> None:
        self.standby += 1

    def _exit(self, name: InstanceID) -> None:
        instance = self.instances.pop(name)
        self.draining.discard(name)
        del self.names[instance]
        self.fleet.end(instance)
        self.carry(self.machine.lives.exited(name, 0, None, "", self.network.clock.now))
