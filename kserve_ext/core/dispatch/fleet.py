"""The instances of one revision as its home knows them, and which of them count.

An instance counts from the moment its start is asked for until its node has said that it is gone, a node that
doesn't know it was asked, or its node has been away for NODE_GRACE_S: also while the answer to its start is
lost. What a node reports and home didn't know is taken in (a former home started it). An instance that is
*doomed* shall stop: it gets nothing new, and is stopped when no shard uses it any more; until then it can be
kept after all. Whether there are too many or too few is decided elsewhere (revision_home.py).

Nodes say again and again what they run, so what is only said again costs O(1) an instance, and says so (`news`);
what is asked all the time is counted as it changes: how many are wanted, ready, asked for, and which may be used,
leave, are in doubt, or are on one node.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from kserve_ext.core.facts import Instance, InstanceState
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID

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
#: What a node says of one in this state that tells nothing new.
_SAID: dict[State, tuple[InstanceState, ...]] = {
    "asked": (),
    "unknown": (),
    "starting": ("reserved", "fetching", "starting"),
    "ready": ("ready",),
    "stopping": ("draining",),
}


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
    #: a former home may have given out, or promised, slots of it
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
    #: nodes that may have it, and are asked whether they do
    asked_nodes: set[NodeID] = field(default_factory=set)
    #: shards that its node tells when it is ready
    told: tuple[FunctionID, ...] = ()
    #: in order of their making
    number: int = 0

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
    news: bool = True  # False: all of it was known


class Fleet:
    def __init__(self) -> None:
        #: all that may exist, in order of their making
        self.known: dict[InstanceID, Known] = {}
        self._ended: dict[InstanceID, None] = {}
        #: nodes out of the view, and since when
        self._away: dict[NodeID, float] = {}
        #: running and starting, less those meant to stop
        self.wanted = 0
        self.ready = 0
        #: asked for, and not answered yet
        self.asking = 0
        self._leaving: dict[InstanceID, Known] = {}
        self._made = 0
        self._on: dict[NodeID, dict[InstanceID, Known]] = {}
        #: some nodes may have it and haven't said so yet
        self._doubted: dict[InstanceID, Known] = {}
        #: nobody could reach these lately
        self._suspects: dict[InstanceID, Known] = {}
        #: as last told; None: it is to be made anew
        self._usable: list[InstanceID] | None = None
        self._coming: dict[InstanceID, None] = {}
        self._come: list[InstanceID] | None = None

    # --- starts

    def asked(self, instance: InstanceID, now: float) -> None:
        self._enter(Known(instance, "asked", now))

    def tells(self, instances: Iterable[InstanceID], shards: tuple[FunctionID, ...]) -> None:
        """The node of each tells these shards when it is ready."""
        for instance in instances:
            self.known[instance].told = shards

    def placed(self, instance: InstanceID, node: NodeID, now: float) -> None:
        known = self.known.get(instance)
        if known is not None and known.state in ("asked", "unknown"):
            self._leave(known)
            known.state, known.node, known.since = "starting", node, now
            self._enter(known)

    def lost(self, instance: InstanceID, nodes: Iterable[NodeID], now: float) -> None:
        """It may have been started on one of these nodes."""
        known = self.known.get(instance)
        if known is not None and known.state == "asked":
            self._leave(known)
            known.state, known.asked_nodes, known.since = "unknown", set(nodes), now
            self._enter(known)
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
            self._enter(
                Known(
                    instance,
                    state,
                    now,
                    node,
                    addr,
                    ready_at=now - LONG_AGO_S,
                    inherited=True,
                    asked_nodes=asked,
                )
            )

    # --- reports

    def observe(
        self, facts: Iterable[Instance], node: NodeID, full: bool, now: float, asked_at: float | None = None
    ) -> Change:
        """What a node says; `asked_at`: as the answer to what it was asked then.

        What it says unasked may be old: that it doesn't name one is a reason to ask it. So is an answer about what
        was started since it was asked.
        """
        self.back((node,))
        change = Change([], [])
        seen: set[InstanceID] = set()
        unwanted: list[InstanceID] = []
        news = asked_at is not None
        for fact in facts:
            seen.add(fact.id)
            known = self.known.get(fact.id)
            if known is not None and self._says_nothing_new(known, fact, node):
                continue
            news = True
            if fact.state in ("failed", "gone"):
                if known is not None:
                    change.ended.append((known, fact))
                    self.forget(known)
                continue
            if known is None:
                if fact.id in self._ended:
                    unwanted.append(fact.id)
                    continue
                known = Known(fact.id, "unknown", now)
            else:
                self._leave(known)
            known.node, known.generation = node, fact.generation
            known.suspect_until, known.doubts = 0.0, 0
            known.listens = fact.addr
            known.asked_nodes.clear()
            self._advance(known, fact, now, change)
            self._enter(known)
        if full:
            for known in [*self._on.get(node, {}).values(), *self._doubted.values()]:
                if known.id in seen or known.id not in self.known:
                    continue
                if asked_at is None or known.since > asked_at:
                    if known.node == node and not known.asked_nodes and now - known.since > SETTLING_S:
                        known.asked_nodes, self._doubted[known.id], news = {node}, known, True
                    continue
                known.asked_nodes.discard(node)
                if not known.asked_nodes:
                    change.ended.append((known, None))
                    self.forget(known)
        return change._replace(unwanted=tuple(unwanted), news=news)

    def _says_nothing_new(self, known: Known, fact: Instance, node: NodeID) -> bool:
        return (
            fact.state in _SAID[known.state]
            and known.node == node
            and known.listens == fact.addr
            and known.generation == fact.generation
            and known.addr == (fact.addr if fact.state == "ready" else known.addr)
            and not known.asked_nodes
            and not known.doubts
        )

    def _advance(self, known: Known, fact: Instance, now: float, change: Change) -> None:
        if fact.state == "draining":
            if known.state != "stopping":
                known.state, known.since, known.stop_at = "stopping", now, float("inf")
        elif known.state == "stopping":
            known.stop_at = min(known.stop_at, now + STOP_AGAIN_S)  # it hasn't heard of it, or forgot
        elif fact.state == "ready":
            known.addr = fact.addr
            if known.state != "ready":
                long_ago = known.state == "unknown"
                known.inherited = known.inherited or long_ago
                known.ready_at = now - LONG_AGO_S if long_ago else now
                known.state, known.since = "ready", now
                change.ready.append(known)
        elif known.state in ("asked", "unknown"):
            known.inherited = known.inherited or known.state == "unknown"  # its slots may be promised
            known.state, known.since = "starting", now

    def nodes(self, present: set[NodeID], now: float) -> list[Known]:
        """The nodes of the view; the instances that are given up with a node that stays away."""
        lost: list[Known] = []
        self._missing(self._on.keys() - present, present, now)
        for known in self._doubted.values():
            self._missing(known.asked_nodes, present, now)
        if self._away:
            away = [self._on[n].values() for n in self._away if n in self._on]
            there = {k.id: k for of in (*away, self._doubted.values()) for k in of}
            for known in there.values():
                homes = known.asked_nodes or {known.node}
                if all(self._given_up(node, present, now) for node in homes):
                    lost.append(known)
                    self.forget(known)
        self.back(present)
        return lost

    def _missing(self, nodes: Iterable[NodeID], present: set[NodeID], now: float) -> None:
        for node in nodes:
            if node not in present and node != ANY_NODE:
                self._away.setdefault(node, now)

    def back(self, nodes: Iterable[NodeID]) -> None:
        """They are in the view, or have been heard of."""
        if self._away:
            for node in nodes:
                self._away.pop(node, None)

    def _given_up(self, node: NodeID, present: set[NodeID], now: float) -> bool:
        return node not in present and now - self._away.get(node, now) > NODE_GRACE_S

    def forget(self, known: Known) -> None:
        if self.known.get(known.id) is known:
            self._leave(known)
            self._comes(known.id, False)
            del self.known[known.id]
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
        self._suspects[instance], self._usable = known, None
        if known.given_up and known.doomed_at is None:
            self.doom(known, "nobody reaches it, and its node does not say that it is well", now)

    def doom(self, known: Known, reason: str, now: float, *, preempted: bool = False) -> None:
        self._leave(known)
        known.doomed_at, known.why_doomed, known.preempted = now, reason, preempted
        self._enter(known)

    def stopping(self, known: Known, now: float) -> None:
        """It is told to stop."""
        self._leave(known)
        known.state, known.since, known.stop_at = "stopping", now, now
        self._enter(known)

    def keep(self, count: int) -> int:
        """Up to `count` doomed instances are kept after all; how many."""
        kept = 0
        for known in self.leaving if count > 0 else ():
            spared = known.doomed_at is not None and not known.preempted and not known.given_up
            if kept < count and spared and known.state in ("starting", "ready", "asked"):
                self._leave(known)
                known.doomed_at = None
                self._enter(known)
                kept += 1
        return kept

    # --- counts

    def usable(self, now: float) -> list[InstanceID]:
        """In order of their making; the same list as long as nothing has changed."""
        if self._suspects:
            for known in [k for k in self._suspects.values() if now >= k.suspect_until]:
                del self._suspects[known.id]
                self._usable = None
        if self._usable is None:
            self._usable = [k.id for k in self.known.values() if k.usable(now)]
        return self._usable

    @property
    def coming(self) -> list[InstanceID]:
        """Asked for, or starting, and not to be stopped; the same list as long as nothing has changed."""
        if self._come is None:
            self._come = list(self._coming)
        return self._come

    @property
    def leaving(self) -> list[Known]:
        """Doomed, or told to stop; in order of their making."""
        return sorted(self._leaving.values(), key=lambda k: k.number) if self._leaving else []

    def listening(self, now: float) -> list[Known]:
        """Those that may be used, and those that will be as soon as they are ready, in order of id."""
        soon = (k for k in self.known.values() if k.state == "starting" and k.wanted and k.listens)
        return sorted((*soon, *(k for k in self.known.values() if k.usable(now))), key=lambda k: k.id)

    @property
    def in_doubt(self) -> bool:
        """There may be nodes to be asked."""
        return bool(self._doubted or self._suspects)

    def doubtful(self, now: float) -> set[NodeID]:
        """Nodes to be asked what they have."""
        nodes = {n for k in self._doubted.values() for n in k.asked_nodes}
        return nodes | {k.node for k in self._suspects.values() if k.suspect_until > now}

    def check(self) -> None:
        """Invariants, for tests: what is counted is what there is."""
        all_known = list(self.known.values())
        assert self.wanted == sum(k.wanted for k in all_known)
        assert self.ready == sum(k.state == "ready" and k.doomed_at is None for k in all_known)
        assert self.asking == sum(k.wanted and k.state == "asked" for k in all_known)
        assert self.leaving == [k for k in all_known if not k.wanted]
        assert set(self.coming) == {k.id for k in all_known if k.wanted and k.state in ("asked", "starting")}
        assert self._doubted.keys() == {k.id for k in all_known if k.asked_nodes}
        on = {(node, instance) for node, there in self._on.items() for instance in there}
        assert on == {(k.node, k.id) for k in all_known if k.node}
        assert self._suspects.keys() <= self.known.keys()

    # --- inside

    def _enter(self, known: Known) -> None:
        if known.id not in self.known:
            self._made += 1
            known.number, self.known[known.id] = self._made, known
        self._count(known, 1)
        if known.node:
            self._on.setdefault(known.node, {})[known.id] = known
        if known.asked_nodes:
            self._doubted[known.id] = known
        if not known.wanted:
            self._leaving[known.id] = known
        elif known.suspect_until:  # also one that is kept after all
            self._suspects[known.id] = known
        self._comes(known.id, known.wanted and known.state in ("asked", "starting"))

    def _comes(self, instance: InstanceID, does: bool) -> None:
        if does != (instance in self._coming):
            self._come = None
            if does:
                self._coming[instance] = None
            else:
                del self._coming[instance]

    def _leave(self, known: Known) -> None:
        """What it was counted as, before that changes."""
        self._count(known, -1)
        there = self._on.get(known.node)
        if there is not None:
            there.pop(known.id, None)
            if not there:
                del self._on[known.node]
        self._doubted.pop(known.id, None)
        self._leaving.pop(known.id, None)
        if self._suspects.pop(known.id, None) is not None:
            self._usable = None

    def _count(self, known: Known, by: int) -> None:
        if known.wanted:
            self.wanted += by
            if known.state == "asked":
                self.asking += by
        if known.state == "ready" and known.doomed_at is None:
            self.ready += by
            self._usable = None
