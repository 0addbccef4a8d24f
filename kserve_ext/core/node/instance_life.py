"""The life of one instance on its node: its state, its marks, and how it ended.

States only go forward, along TRANSITIONS. An instance that has a process ends when the process has ended, not
before: until then it holds its resources, also when the reason of its end is long known.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final, NamedTuple

from kserve_ext.core.facts import Holding, Instance, InstanceState, Mark, Revision
from kserve_ext.core.ids import InstanceID, NodeID

TRANSITIONS: Final[dict[InstanceState, tuple[InstanceState, ...]]] = {
    "reserved": ("fetching", "starting", "failed", "gone"),
    "fetching": ("starting", "failed", "gone"),
    "starting": ("ready", "draining", "failed", "gone"),
    "ready": ("draining", "failed", "gone"),
    "draining": ("failed", "gone"),
    "failed": (),
    "gone": (),
}
MAX_MARKS = 64
PERMANENT_EXIT = 2  # bad argument or broken model: the same start would fail again


class End(NamedTuple):
    """Why an instance ends, known before its process is gone."""

    failed: bool
    reason: str
    permanent: bool = False


_STAYS = End(False, "")
_at = attrgetter("at")


@dataclass(slots=True)
class Life:
    id: InstanceID
    revision: Revision
    epoch: int
    acked_at: float  # when a home last took notice of it
    waiting: tuple[str, ...] = ()  # shards that are told of each change until it is ready or has ended
    state: InstanceState = "reserved"
    addr: str = ""
    generation: int = 0
    #: of the present state: a reservation lapses, a start times out, a drain is cut short
    deadline: float = float("inf")
    #: a process exists (or existed); False also while it is being started
    launched: bool = False
    end: End | None = None
    marks: list[Mark] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return self.state in ("failed", "gone")

    @property
    def stays(self) -> bool:
        """Nothing has asked it to go."""
        return self.state not in ("draining", "failed", "gone")

    def to(self, state: InstanceState, now: float, detail: str = "", deadline: float = float("inf")) -> None:
        assert state in TRANSITIONS[self.state], f"{self.id}: {self.state} -> {state}\n{self.story()}"
        self.state, self.deadline = state, deadline
        self.mark(Mark(state, now, detail))

    def mark(self, *marks: Mark) -> None:
        """Adds marks; one that is there already (same name) stays as it was."""
        there = self.marks
        for mark in marks:
            name = mark.name
            for known in there:
                if known.name == name:
                    break
            else:
                if len(there) < MAX_MARKS:
                    there.append(mark)

    def fact(self, node: NodeID) -> Instance:
        end = self.end or _STAYS
        return Instance(
            id=self.id,
            revision=self.revision.key,
            node=node,
            state=self.state,
            addr=self.addr,
            generation=self.generation,
            epoch=self.epoch,
            reason=end.reason,
            permanent=end.permanent,
            marks=tuple(sorted(self.marks, key=_at)),
        )

    def story(self) -> str:
        return "\n".join(f"  {m.at:.3f} {m.name} {m.detail}".rstrip() for m in self.marks)


def how_it_ended(code: int | None, signum: int | None, detail: str) -> End:
    """The end of a process that nobody asked to end. `detail`: what it said itself, or the end of its log."""
    if signum:
        names = {s.value: s.name for s in signal.Signals}
        what = f"was killed by {names.get(signum, f'signal {signum}')}"
    elif code is None:
        what = "ended, its exit code is not known"
    else:
        what = f"ended with exit code {code}"
    reason = f"the process {what}: {detail}" if detail else f"the process {what}"
    return End(True, reason, permanent=code == PERMANENT_EXIT)


def holding_of(lives: Sequence[Life]) -> Holding | None:
    """What these, all of one revision, hold together; None of nothing."""
    if not lives:
        return None
    revision = lives[0].revision
    newest_at = max(life.marks[0].at if life.marks else 0.0 for life in lives)
    return Holding(revision.key, revision.home_key, revision.priority, revision.needs, len(lives), newest_at)


def facts_of(lives: Iterable[Life], node: NodeID) -> tuple[Instance, ...]:
    return tuple(life.fact(node) for life in lives)
