"""The instances of one revision as its home knows them, and which of them count.

An instance counts from the moment its start is asked for until its node has said that it is gone, a node that
doesn't know it was asked, or its node has been away for NODE_GRACE_S: also while the answer to its start is
lost. What a node reports and home didn't know is taken in (a former home started it). An instance that is
*doomed* shall stop: it gets nothing new, and is stopped when no shard uses it any more; until then it can be
kept after all. Whether there are too many or too few is decided elsewhere (revision_home.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from kserve_ext.core.facts import Instance
from kserve_ext.core.ids import InstanceID, NodeID

NODE_GRACE_S = 10.0  # a node agent that restarts is back before; its instances serve meanwhile
SETTLING_S = 1.0  # a full report may have left its node before the start arrived there
STOP_AGAIN_S = 1.0
SUSPECT_S = 1.0
MOST_DOUBTS = 3  # after 1 s and 2 more: before a request that is sent there in vain gives up
LONG_AGO_S = 3600.0  # one that a former home started has been ready for an unknown time
REMEMBER_ENDED = 1000
ANY_NODE = NodeID("?")
NOWHERE = NodeID("")

State = Literal["asked", "unknown", "starting", "ready", "stopping"]


@dataclass(slots=True)
class Known:
    """One instance. States go forward, except that an unknown one turns out to be anything."""

    id: InstanceID
    state: State
    since: float
    node: NodeID = NOWHERE
    addr: str = ""  # of its HTTP server, once it is ready
    generation: int = 0
    #: it can be reached there, although it may not be ready
    listens: str = ""
    ready_at: float = 0.0
    #: it was ready before this home heard of it
    inherited: bool = False
    doomed_at: float | None = None
    why_doomed: str = ""
    #: it goes so that others have room: it isn't kept after all, and drains at once
    preempted: bool = False
    stop_at: float = 0.0  # when Stop is sent (again)
    #: a shard couldn't reach it: not used until its node has confirmed it, or this time
    suspect_until: float = 0.0
    #: so often in a row, without a word of its node in between
    doubts: int = 0
    #: nodes that may have it and haven't said so yet (state unknown)
    asked_nodes: set[NodeID] = field(default_factory=set)

    def usable(self, now: float) -> bool:
        return self.state == "ready" and self.doomed_at is None and now >= self.suspect_until

    @property
    def given_up(self) -> bool:
        """Nobody reaches it, and its node doesn't say that it is well."""
        return self.doubts >= MOST_DOUBTS

    @property
    def wanted(self) -> bool:
        """It counts towards what should exist."""
        return self.doomed_at is None and self.state != "stopping"


class Change(NamedTuple):
    """What a report changed."""

    ready: list[Known]
    ended: list[tuple[Known, Instance | None]]  # with what its node said, None: it doesn't know it
    unwanted: tuple[InstanceID, ...] = ()


class Fleet:
    def __init__(self) -> None:
        #: all that may exist, in order of their making
        self.known: dict[InstanceID, Known] = {}
        self._ended: dict[InstanceID, None] = {}
        #: nodes out of the view, and since when
        self._away: dict[NodeID, float] = {}

    # --- starts

    def asked(self, instance: InstanceID, now: float) -> None:
        self.known[instance] = Known(instance, "asked", now)

    def placed(self, instance: InstanceID, node: NodeID, now: float) -> None:
        known = self.known.get(instance)
        if known is not None and known.state in ("asked", "unknown"):
            known.state, known.node, known.since = "starting", node, now

    def lost(self, instance: InstanceID, nodes: Iterable[NodeID], now: float) -> None:
        """It may have been started on one of these nodes."""
        known = self.known.get(instance)
        if known is not None and known.state == "asked":
            known.state, known.asked_nodes, known.since = "unknown", set(nodes), now
            if not known.asked_nodes:
                self.forget(known)

    def refused(self, instance: InstanceID) -> None:
        known = self.known.get(instance)
        if known is not None and known.state == "asked":
            self.forget(known)

    def adopt(self, instance: InstanceID, node: NodeID, addr: str, asked: set[NodeID], now: float) -> None:
        """From the store's copy, while nodes haven't answered. One with an address was ready, and is used."""
        if instance not in self.known and instance not in self._ended and asked:
            state: State = "ready" if addr else "unknown"
            self.known[instance] = Known(
                instance,
                state,
                now,
                node,
                addr,
                ready_at=now - LONG_AGO_S,
                inherited=True,
                asked_nodes=asked,
            )

    # --- reports

    def observe(
        self, facts: Iterable[Instance], node: NodeID, full: bool, now: float, definite: bool = False
    ) -> Change:
        """What a node says. `definite`: it was asked after all that is known here was sent to it."""
        self.back((node,))
        change = Change([], [])
        seen: set[InstanceID] = set()
        unwanted: list[InstanceID] = []
        for fact in facts:
            seen.add(fact.id)
            known = self.known.get(fact.id)
            if fact.state in ("failed", "gone"):
                if known is not None:
                    change.ended.append((known, fact))
                    self.forget(known)
                continue
            if known is None:
                if fact.id in self._ended:
                    unwanted.append(fact.id)
                    continue
                known = self.known[fact.id] = Known(fact.id, "unknown", now)
            known.node, known.generation = node, fact.generation
            known.suspect_until, known.doubts = 0.0, 0
            known.listens = fact.addr
            known.asked_nodes.clear()
            self._advance(known, fact, now, change)
        if full:
            for known in list(self.known.values()):
                if known.id in seen:
                    continue
                if known.asked_nodes:
                    if definite:
                        known.asked_nodes.discard(node)
                    absent = not known.asked_nodes
                else:
                    absent = known.node == node and (definite or now - known.since > SETTLING_S)
                if absent:
                    change.ended.append((known, None))
                    self.forget(known)
        return change._replace(unwanted=tuple(unwanted))

    def _advance(self, known: Known, fact: Instance, now: float, change: Change) -> None:
        if fact.state == "draining":
            if known.state != "stopping":
                known.state, known.since, known.stop_at = "stopping", now, float("inf")
        elif known.state == "stopping":
            known.stop_at = min(known.stop_at, now + STOP_AGAIN_S)  # it hasn't heard of it, or forgot
        elif fact.state == "ready":
            known.addr = fact.addr
            if known.state != "ready":
                known.inherited = known.state == "unknown"
                known.ready_at = now - LONG_AGO_S if known.inherited else now
                known.state, known.since = "ready", now
                change.ready.append(known)
        elif known.state in ("asked", "unknown"):
            known.state, known.since = "starting", now

    def nodes(self, present: set[NodeID], now: float) -> list[Known]:
        """The nodes of the view; the instances that are given up with a node that stays away."""
        lost: list[Known] = []
        for known in list(self.known.values()):
            homes = known.asked_nodes or ({known.node} if known.node else set())
            for node in homes:
                if node not in present and node != ANY_NODE:
                    self._away.setdefault(node, now)
            if homes and all(self._given_up(node, present, now) for node in homes):
                lost.append(known)
                self.forget(known)
        self.back(present)
        return lost

    def back(self, nodes: Iterable[NodeID]) -> None:
        """They are in the view, or have been heard of."""
        if self._away:
            for node in nodes:
                self._away.pop(node, None)

    def _given_up(self, node: NodeID, present: set[NodeID], now: float) -> bool:
        return node not in present and now - self._away.get(node, now) > NODE_GRACE_S

    def forget(self, known: Known) -> None:
        self.known.pop(known.id, None)
        self._ended[known.id] = None
        if len(self._ended) > REMEMBER_ENDED:
            del self._ended[next(iter(self._ended))]

    # --- stopping

    def broken(self, instance: InstanceID, now: float) -> None:
        """A shard couldn't reach it. Nobody uses it for a while, or ever where its node keeps silent about it."""
        known = self.known.get(instance)
        if known is None or known.state != "ready" or now < known.suspect_until:
            return
        known.suspect_until = now + SUSPECT_S * 2**known.doubts
        known.doubts += 1
        if known.given_up and known.doomed_at is None:
            self.doom(known, "nobody reaches it, and its node does not say that it is well", now)

    def doom(self, known: Known, reason: str, now: float, *, preempted: bool = False) -> None:
        known.doomed_at, known.why_doomed, known.preempted = now, reason, preempted

    def keep(self, count: int) -> int:
        """Up to `count` doomed instances are kept after all; how many."""
        kept = 0
        for known in self.known.values():
            spared = known.doomed_at is not None and not known.preempted and not known.given_up
            if kept < count and spared and known.state in ("starting", "ready", "asked"):
                known.doomed_at = None
                kept += 1
        return kept

    # --- counts

    def usable(self, now: float) -> list[InstanceID]:
        return [k.id for k in self.known.values() if k.usable(now)]

    def listening(self, now: float) -> list[Known]:
        """Those that may be used, and those that will be as soon as they are ready, in order of id."""
        soon = (k for k in self.known.values() if k.state == "starting" and k.wanted and k.listens)
        return sorted((*soon, *(k for k in self.known.values() if k.usable(now))), key=lambda k: k.id)

    @property
    def ready(self) -> int:
        return sum(k.state == "ready" and k.doomed_at is None for k in self.known.values())

    @property
    def starting(self) -> int:
        return sum(k.wanted and k.state != "ready" for k in self.known.values())

    @property
    def asking(self) -> int:
        """Asked for, and not answered yet."""
        return sum(k.wanted and k.state == "asked" for k in self.known.values())

    @property
    def wanted(self) -> int:
        """Running and starting, less those meant to stop."""
        return sum(k.wanted for k in self.known.values())

    def doubtful(self, now: float) -> set[NodeID]:
        """Nodes to be asked what they have."""
        nodes = {n for k in self.known.values() for n in k.asked_nodes}
        return nodes | {k.node for k in self.known.values() if k.suspect_until > now}
