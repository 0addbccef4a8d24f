"""Schedule functions that hand nodes over, in a world of messages, nodes with terms, and a controller's views."""

from __future__ import annotations

import random
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from kserve_ext.core.facts import NodeStatus, Resources
from kserve_ext.core.ids import FunctionID, NodeID
from kserve_ext.core.partitions import divide
from kserve_ext.core.schedule.handover import Claim, Handing, Handover, Instruction
from kserve_ext.core.schedule.partition import Partition
from tests.core.schedule.test_placement import status

NEEDS = Resources(1000, 256)


class ViewOf(NamedTuple):
    epoch: int
    owners: dict[NodeID, FunctionID]
    functions: set[FunctionID]


class Asked(NamedTuple):
    sender: FunctionID
    claim: Claim


class Answered(NamedTuple):
    sender: FunctionID
    epoch: int
    answer: Handing


class RefusedBy(NamedTuple):
    node: NodeID
    term: int


Post = ViewOf | Asked | Answered | NodeStatus | RefusedBy


@dataclass
class Node:
    """Obeys no older term than one that it has obeyed."""

    name: NodeID
    term: int = 0
    seq: int = 0
    started: list[tuple[FunctionID, int]] = field(default_factory=list)

    def start(self, by: FunctionID, term: int) -> bool:
        if term < self.term:
            return False
        self.term = term
        self.started.append((by, term))
        return True

    def status(self) -> NodeStatus:
        self.seq += 1
        return status(self.name, seq=self.seq)


class World:
    """Functions, nodes and views; messages travel for a while, are lost or come twice when `chance` says so."""

    def __init__(self, nodes: int, functions: list[FunctionID], seed: int = 0, harm: float = 0.0) -> None:
        self.nodes = {NodeID(f"n{k}"): Node(NodeID(f"n{k}")) for k in range(nodes)}
        self.functions: dict[FunctionID, Handover] = {}
        self.paused: set[FunctionID] = set()
        self.members: list[FunctionID] = []
        self.views: list[ViewOf] = []
        self.random, self.harm = random.Random(seed), harm
        self.post: list[tuple[float, FunctionID, Post]] = []
        self.now = 0.0
        self.log: list[str] = []
        for function in functions:
            self.join(function)

    # --- the controller

    def join(self, function: FunctionID) -> None:
        self.functions[function] = Handover(function, Partition())
        self.paused.discard(function)
        self.publish([*(f for f in self.members if f != function), function])

    def leave(self, function: FunctionID) -> None:
        """Out of the view: dead, or only taken for dead."""
        self.publish([f for f in self.members if f != function])

    def drain(self, function: FunctionID) -> None:
        """Still a member, without nodes."""
        self.publish([f for f in self.members if f != function], {function})

    def publish(self, members: list[FunctionID], draining: Set[FunctionID] = frozenset()) -> None:
        before = self.views[-1].owners if self.views else None
        self.members = members
        view = ViewOf(len(self.views) + 1, divide(self.nodes, members, before), {*members, *draining})
        self.views.append(view)
        for function in self.functions:
            self.send(function, view, lossy=False)

    # --- messages

    def send(self, to: FunctionID, what: Post, *, lossy: bool = True) -> None:
        delay = self.random.choice((0.001, 0.02, 0.3)) if self.harm else 0.001
        if not lossy or self.random.random() >= self.harm:
            self.post.append((self.now + delay, to, what))
        if lossy and self.random.random() < self.harm:
            self.post.append((self.now + 2 * delay, to, what))

    def run(self, seconds: float) -> None:
        """In steps; everything that is due is delivered in a random order."""
        end = self.now + seconds
        while self.now < end:
            self.now = round(self.now + 0.01, 6)
            due = [m for m in self.post if m[0] <= self.now and m[1] not in self.paused]
            self.post = [m for m in self.post if m not in due]
            self.random.shuffle(due)
            for _, to, what in due:
                if to in self.functions:
                    self.deliver(to, what)
            for name, function in self.functions.items():
                if name not in self.paused:
                    self.carry(name, function.tick(self.now))

    def deliver(self, to: FunctionID, what: Post) -> None:
        function = self.functions[to]
        match what:
            case ViewOf():
                self.carry(to, function.view(what.epoch, what.owners, what.functions, self.now))
            case Asked():
                answer = function.claim(what.sender, what.claim.epoch, what.claim.nodes, self.now)
                self.log += [f"{to} hands {h.node} to {what.sender}" for h in answer.handed]
                self.send(what.sender, Answered(to, what.claim.epoch, answer))
            case Answered():
                self.carry(to, function.handed(what.sender, what.epoch, what.answer, self.now))
            case NodeStatus():
                function.heard(what, self.now)
            case RefusedBy():
                self.carry(to, function.refused(what.node, what.term, self.now))

    def carry(self, name: FunctionID, instructions: Iterable[Instruction]) -> None:
        for i in instructions:
            if isinstance(i, Claim):
                self.log.append(f"{name} claims {' '.join(i.nodes)} of {i.to}, epoch {i.epoch}")
                self.send(i.to, Asked(name, i))
            else:
                self.log.append(f"{name} takes {' '.join(i.nodes)}, and asks the store and the nodes")
                for node in i.nodes:
                    self.send(name, self.nodes[node].status())

    # --- placing

    def place(self, name: FunctionID) -> None:
        """Everything that it thinks it may place on gets a start; a node's refusal goes back."""
        if name in self.paused or name not in self.functions:
            return
        for node, term in list(self.functions[name].terms.items()):
            if not self.nodes[node].start(name, term):
                self.log.append(
                    f"{node} refuses a start of {name} under term {term}: it obeys {self.nodes[node].term}"
                )
                self.send(name, RefusedBy(node, term), lossy=False)

    def placers(self, node: NodeID) -> list[FunctionID]:
        return [name for name, function in self.functions.items() if node in function.terms]
