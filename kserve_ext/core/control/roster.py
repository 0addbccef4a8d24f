"""The functions that the controller has started: where each is, and what there is to do for as many as are wanted.

What counts is what nodes report and who is in the view; the list that is kept in the store is written before anything
is started, so that a controller that comes back knows every function it may have started, and starts none twice. One
that dies is replaced, on another node if there is one, ever later while new ones die young. One too many drains: the
view shows it as going, everybody acknowledges that view, then its node is asked to stop it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from kserve_ext.core.backoff import pause_s
from kserve_ext.core.control.facts import (
    NEEDS,
    ROUTED_BY_VIEW,
    SCALED,
    Owned,
    Room,
    ScaledKind,
    kind_of,
)
from kserve_ext.core.facts import Instance, Member, Resources
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID

#: Nodes report all that they run at least every 2 s: by then a new controller knows what there is.
SETTLE_S: Final = 3.0
START_S: Final = 15.0  # from asking a node to being in the view
OUT_S: Final = 2.0  # out of the view for so long: dead, whatever its node says
DRAIN_VIEW_S: Final = 2.0  # for everybody to acknowledge that it is going
STOP_AGAIN_S: Final = 2.0
FORGET_S: Final = 10.0  # out of the view and asked to end, and its node says nothing: it had said so before
WELL_S: Final = 10.0  # one that lived so long was well
AVOID_S: Final = 30.0  # a node where one has just failed
PAUSE_S: Final = (0.1, 30.0)

Phase = Literal["starting", "running", "draining", "stopping"]


class Start(NamedTuple):
    """Ask this node; the answer comes back as started(), or nothing does."""

    function: FunctionID
    kind: ScaledKind
    node: NodeID
    addr: str


class Drain(NamedTuple):
    """Show it in the view as going."""

    function: FunctionID


class Stop(NamedTuple):
    """Ask its node to end it, draining. Comes again until the node says that it has ended."""

    function: FunctionID
    node: NodeID
    reason: str


class Say(NamedTuple):
    text: str
    bad: bool = False


Instruction = Start | Drain | Stop | Say


@dataclass(slots=True)
class _Function:
    id: FunctionID
    kind: ScaledKind
    node: NodeID
    phase: Phase
    since: float  # of the phase
    born_at: float
    seen_at: float = 0.0  # in the view
    well: bool = False  # has been for WELL_S
    stop_at: float = 0.0  # when its node is asked (again)
    why: str = ""

    def to(self, phase: Phase, now: float, why: str = "") -> None:
        self.phase, self.since, self.why = phase, now, why


class Counts(NamedTuple):
    starting: int
    running: int
    draining: int


class Roster:
    """Verbs take `now` (seconds, monotonic)."""

    def __init__(self, owned: Sequence[Owned], number: int, now: float) -> None:
        self._functions = {
            o.id: _Function(o.id, o.kind, o.node, "draining" if o.draining else "running", now, now, now)
            for o in owned
        }
        self.number = number
        self._settled_at = now + SETTLE_S
        self._failures = dict.fromkeys(SCALED, 0)
        self._retry_at = dict.fromkeys(SCALED, now)
        self._avoided: dict[tuple[ScaledKind, NodeID], float] = {}
        #: why there are fewer than wanted, by kind
        self.short: dict[ScaledKind, str] = {}
        self.started_total = dict.fromkeys(SCALED, 0)
        self.failed_total = dict.fromkeys(SCALED, 0)

    def owned(self) -> tuple[Owned, ...]:
        return tuple(
            Owned(f.id, f.kind, f.node, f.phase in ("draining", "stopping"))
            for _, f in sorted(self._functions.items())
        )

    def counts(self, kind: ScaledKind) -> Counts:
        phases = [f.phase for f in self._functions.values() if f.kind == kind]
        return Counts(
            phases.count("starting"),
            phases.count("running"),
            phases.count("draining") + phases.count("stopping"),
        )

    def live(self, kind: ScaledKind) -> int:
        counts = self.counts(kind)
        return counts.starting + counts.running

    # --- what nodes say

    def started(self, function: FunctionID, refusal: str, now: float) -> list[Instruction]:
        """A node's answer to Start; `refusal` "" when it was admitted. No answer is no news."""
        f = self._functions.get(function)
        if f is None or not refusal:
            return []
        del self._functions[function]
        self._avoided[f.kind, f.node] = now + AVOID_S
        if now >= self._retry_at[f.kind]:  # several of one growth are one failure
            self._failures[f.kind] += 1
            self._retry_at[f.kind] = now + pause_s(self._failures[f.kind], *PAUSE_S, chance=1.0)
        return [Say(f"{function} was refused: {refusal}", bad=True)]

    def told(
        self, node: NodeID, instances: Iterable[Instance], now: float
    ) -> tuple[list[InstanceID], list[Instruction]]:
        """What a node runs of our functions, or what of it has changed: those of them that nobody wants."""
        unwanted: list[InstanceID] = []
        out: list[Instruction] = []
        for instance in instances:
            name, kind = FunctionID(instance.id), kind_of(instance.revision)
            f = self._functions.get(name)
            ended = instance.state in ("failed", "gone")
            if f is None:
                if kind is None or ended:
                    continue
                if now < self._settled_at:  # the store has lost it
                    self._functions[name] = _Function(name, kind, node, "running", now, now, now)
                    self.number = max(self.number, _number(name))
                    out.append(Say(f"{name} was found on {node}"))
                else:
                    unwanted.append(instance.id)
            elif f.node != node:
                if not ended:  # a store that lost the numbers gave its name once more: it would join for ever
                    unwanted.append(instance.id)
                    out.append(
                        Say(f"{name} runs on {node}, too: that one is stopped, it is on {f.node}", bad=True)
                    )
            elif ended:
                out.extend(self._ended(f, instance.reason, now))
        return unwanted, out

    # --- what is to be done

    def step(
        self,
        wanted: Mapping[ScaledKind, int],
        rooms: Collection[Room],
        members: Mapping[FunctionID, Member],
        *,
        consistent: bool,
        now: float,
    ) -> list[Instruction]:
        """Looks at who is there (`members`: the view), then starts and drains. `wanted`: of ours to start."""
        out: list[Instruction] = []
        for f in list(self._functions.values()):
            if f.id in members:
                f.seen_at = now
                if f.phase == "starting":
                    f.to("running", now)
                if not f.well and now - f.born_at >= WELL_S and f.phase == "running":
                    f.well = True  # once: an old one that runs on says nothing of new ones that die
                    self._failures[f.kind] = 0
            self._look(f, f.id in members, FunctionID(f.node) in members, now, out)
            if f.phase == "draining":
                shown = f.id in members and members[f.id].draining
                known = f.kind not in ROUTED_BY_VIEW or f.id not in members or (shown and consistent)
                if known or now - f.since >= DRAIN_VIEW_S:
                    f.to("stopping", now, f.why or "one too many")
                elif not shown:
                    out.append(Drain(f.id))
            if f.phase == "stopping" and now >= f.stop_at:
                f.stop_at = now + STOP_AGAIN_S
                out.append(Stop(f.id, f.node, f.why))
        if now < self._settled_at:
            return out
        for kind in SCALED:
            missing = wanted.get(kind, 0) - self.live(kind)
            if missing > 0 and now >= self._retry_at[kind]:
                self._start(kind, missing, rooms, now, out)
            elif missing < 0 and not self._going(kind, members):
                last = max(
                    (f for f in self._functions.values() if f.kind == kind and f.phase == "running"),
                    key=lambda f: _number(f.id),
                    default=None,
                )
                if last is not None:
                    last.to("draining", now, "one fewer is wanted")
                    out.append(Say(f"{last.id} on {last.node} drains: one fewer is wanted"))
                    if kind in ROUTED_BY_VIEW:
                        out.append(Drain(last.id))
            if missing <= 0:
                self.short.pop(kind, None)
        return out

    # --- inside

    def _going(self, kind: ScaledKind, members: Mapping[FunctionID, Member]) -> bool:
        """One is about to go: the next one waits."""
        phases = ("draining", "stopping")
        return any(f.kind == kind and f.phase in phases and f.id in members for f in self._functions.values())

    def _look(
        self, f: _Function, in_view: bool, node_there: bool, now: float, out: list[Instruction]
    ) -> None:
        """Whether it is still there."""
        if in_view:
            return
        if f.phase == "starting" and now - f.since >= START_S:
            out.extend(self._dead(f, f"not in the view {START_S:g} s after its start", now))
        elif f.phase == "running" and now - f.seen_at >= OUT_S:
            out.extend(self._dead(f, f"out of the view for {OUT_S:g} s", now))
        elif f.phase == "stopping" and now - max(f.seen_at, f.since) >= (FORGET_S if node_there else OUT_S):
            del self._functions[f.id]  # a node that still has it says so, and is told that nobody wants it

    def _dead(self, f: _Function, why: str, now: float) -> list[Instruction]:
        """Its node may think otherwise: it is ended there, and counts no more."""
        f.to("stopping", now, why)
        return self._failed(f, why, now)

    def _ended(self, f: _Function, reason: str, now: float) -> list[Instruction]:
        del self._functions[f.id]
        if f.phase in ("draining", "stopping"):
            return [Say(f"{f.id} on {f.node} has ended: {f.why or reason}")]
        return self._failed(f, reason, now)

    def _failed(self, f: _Function, why: str, now: float) -> list[Instruction]:
        self.failed_total[f.kind] += 1
        self._failures[f.kind] = 1 if now - f.born_at >= WELL_S else self._failures[f.kind] + 1
        pause = pause_s(self._failures[f.kind], *PAUSE_S, chance=1.0)
        self._retry_at[f.kind] = now + pause
        self._avoided[f.kind, f.node] = now + AVOID_S
        self.short[f.kind] = text = f"{f.id} on {f.node} is gone ({why}): another one in {pause:g} s"
        return [Say(text, bad=True)]

    def _start(
        self, kind: ScaledKind, count: int, rooms: Collection[Room], now: float, out: list[Instruction]
    ) -> None:
        for _ in range(count):
            room = self._choose(kind, rooms, now)
            if room is None:
                self._retry_at[kind] = now + 1.0
                text = f"no node has room for one more {kind} function ({_say(NEEDS)})"
                if self.short.get(kind) != text:
                    self.short[kind] = text
                    out.append(Say(text, bad=True))
                return
            self.number += 1
            self.started_total[kind] += 1
            name = FunctionID(f"{kind.replace('_', '-')}-e{self.number}")
            self._functions[name] = _Function(name, kind, room.node, "starting", now, now)
            out.append(Start(name, kind, room.node, room.addr))

    def _choose(self, kind: ScaledKind, rooms: Collection[Room], now: float) -> Room | None:
        """Spread: the node with the fewest of this kind, then with the fewest of ours, then with the most room."""
        mine = list(self._functions.values())

        def rank(room: Room) -> tuple[bool, int, int, int, NodeID]:
            here = [f for f in mine if f.node == room.node]
            return (
                self._avoided.get((kind, room.node), 0.0) > now,
                sum(f.kind == kind for f in here),
                len(here),
                -room.free.cpu_milli,
                room.node,
            )

        fitting = [r for r in rooms if NEEDS.fits(self._free(r))]
        return min(fitting, key=rank, default=None)

    def _free(self, room: Room) -> Resources:
        """A node's report may be older than what was asked of it."""
        free = room.free
        for f in self._functions.values():
            if f.node == room.node and f.phase == "starting":
                free = free.minus(NEEDS)
        return free


def _number(function: FunctionID) -> int:
    digits = function.rpartition("-e")[2]
    return int(digits) if digits.isdigit() else 0


def _say(needs: Resources) -> str:
    return f"{needs.cpu_milli}m CPU, {needs.memory_mib} MiB"
