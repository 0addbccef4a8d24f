"""The self-scaling half of the top-level controller: applications in, starts and drains out.

Scaling decides how many functions of a kind there are to be, the roster brings it about; here the two are joined for
all kinds, and what is told to people is put together. The first `min` of each kind belong to whoever started the
cluster, and are neither counted as missing nor replaced here. It knows nothing of revisions that users have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from kserve_ext.core.control.calibrated import THRESHOLDS
from kserve_ext.core.control.facts import SCALED, Answer, Bounds, Kept, Reading, Room, ScaledKind, scaled
from kserve_ext.core.control.roster import Drain, Roster, Say, Start, Stop
from kserve_ext.core.control.scaling import Pace, Scaling
from kserve_ext.core.facts import Instance, Kind, Member, Resources, View
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID


class Remember(NamedTuple):
    """To the store, before anything else of the same answer is carried out."""

    kept: Kept


Instruction = Remember | Start | Drain | Stop | Say


class Grown(NamedTuple):
    """How long the last growth of a kind took, in seconds."""

    joined_s: float  # from the application until the last new function was in the view: the processes' start
    view_s: float  # from then until everybody had acknowledged the view


class _Seen(NamedTuple):
    """A view, sorted once."""

    view: View
    members: Mapping[FunctionID, Member]
    functions: Mapping[ScaledKind, frozenset[FunctionID]]
    nodes: frozenset[NodeID]

    @classmethod
    def of(cls, view: View) -> _Seen:
        return cls(
            view,
            {m.id: m for m in view.members},
            {kind: frozenset(m.id for m in view.of(kind)) for kind in SCALED},
            frozenset(NodeID(m.id) for m in view.of("node")),
        )


class ElasticMachine:
    def __init__(
        self,
        bounds: Mapping[ScaledKind, Bounds],
        kept: Kept,
        now: float,
        thresholds: Mapping[ScaledKind, float] = THRESHOLDS,
        pace: Pace = Pace(),  # noqa: B008
    ) -> None:
        self.scalings = {
            kind: Scaling(kind, bounds.get(kind, Bounds()), thresholds[kind], now, pace) for kind in SCALED
        }
        for kind, wanted in kept.wanted:
            self.scalings[kind].restore(wanted, now)
        self.roster = Roster(kept.owned, kept.number, now)
        self.grown: dict[ScaledKind, Grown] = {}
        self._kept = kept
        self._seen = _Seen.of(View())
        self._rooms: dict[NodeID, Room] = {}
        self._applied_at: dict[ScaledKind, float] = {}
        self._joined_at: dict[ScaledKind, float] = {}

    def threshold(self, kind: Kind) -> float:
        """That functions of this kind are told; 0: they never apply."""
        known = scaled(kind)
        return self.scalings[known].threshold if known and self.scalings[known].elastic else 0.0

    # --- events

    def report(self, function: FunctionID, kind: Kind, reading: Reading) -> None:
        if known := scaled(kind):
            self.scalings[known].report(function, reading)

    def room(self, node: NodeID, addr: str, free: Resources) -> None:
        self._rooms[node] = Room(node, addr, free)

    def apply(self, function: FunctionID, kind: ScaledKind, reading: Reading, now: float) -> Answer:
        scaling = self.scalings[kind]
        before = scaling.wanted
        answer = scaling.apply(function, reading, now)
        if scaling.wanted > before:
            self._applied_at[kind] = now
            self._joined_at.pop(kind, None)
        return answer

    def told(
        self, node: NodeID, instances: Iterable[Instance], now: float
    ) -> tuple[list[InstanceID], list[Instruction]]:
        """ModInstance of our functions; those that their node is to stop."""
        before = {kind: self.roster.live(kind) for kind in SCALED}
        unwanted, out = self.roster.told(node, instances, now)
        for kind, scaling in self.scalings.items():
            live = self.roster.live(kind)
            if live > before[kind]:  # the store has lost what was wanted, too
                scaling.restore(max(scaling.wanted, scaling.bounds.min + live), now)
        return unwanted, [*out]

    def started(self, function: FunctionID, refusal: str, now: float) -> list[Instruction]:
        return [*self.roster.started(function, refusal, now)]

    def step(self, view: View, now: float, *, consistent: bool) -> list[Instruction]:
        """After every event, and once a period."""
        if view is not self._seen.view:
            self._seen = _Seen.of(view)
            self._rooms = {node: room for node, room in self._rooms.items() if node in self._seen.nodes}
        out: list[Instruction] = []
        wanted: dict[ScaledKind, int] = {}
        for kind, scaling in self.scalings.items():
            functions = self._seen.functions[kind]
            scaling.keep_only(functions)
            if scaling.tick(now, len(functions)):
                out.append(Say(f"{kind}: {scaling.decision.reason}"))
            self._settle(kind, scaling, len(functions), consistent, now, out)
            wanted[kind] = scaling.wanted - scaling.bounds.min
        members = self._seen.members
        out += self.roster.step(wanted, self._rooms.values(), members, consistent=consistent, now=now)
        kept = Kept(
            tuple((kind, s.wanted) for kind, s in self.scalings.items()),
            self.roster.owned(),
            self.roster.number,
        )
        if kept != self._kept:
            self._kept = kept
            out.insert(0, Remember(kept))
        return out

    # --- inside

    def _settle(
        self,
        kind: ScaledKind,
        scaling: Scaling,
        running: int,
        consistent: bool,
        now: float,
        out: list[Instruction],
    ) -> None:
        """Whether what was last applied for has come about."""
        applied_at = self._applied_at.get(kind)
        if applied_at is None or running < scaling.wanted:
            return
        joined_at = self._joined_at.setdefault(kind, now)
        if consistent:
            scaling.settled(now)
            self.grown[kind] = grown = Grown(joined_at - applied_at, now - joined_at)
            del self._applied_at[kind]
            out.append(
                Say(
                    f"{kind}: {running} functions; the new ones were in the view {grown.joined_s * 1e3:.0f} ms "
                    f"after the application, and known to all {grown.view_s * 1e3:.1f} ms later"
                )
            )
