"""What came of it when a revision was to be woken by standby slots: which, at what level, how long each step took.

And where none served it: why, and what happened instead. Remembered are the last few slots of each revision and the
last thing to be said about it; autoscaler_shim/standby/saying.py tells people. Times are seconds of one clock; steps
are milliseconds after the slot was taken.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.standby.facts import SLEEPERS_ENDED, Level, Started
from kserve_ext.core.standby.known import Seen

#: Slots that are remembered of a revision, and revisions that are remembered.
KEEP_SLOTS: Final = 4
KEEP: Final = 10_000
#: Characters of somebody else's words that are repeated.
MOST_WHY: Final = 400

#: Taken: at its own level. FellBack: at a lower one. The others: not by this slot, or by none.
Reason = Literal[
    "Taken",
    "FellBack",
    "SlotRefused",
    "AgentSilent",
    "SlotFailed",
    "PoolEmpty",
    "RestingAfterFailure",
    "RevisionUnfit",
]
_MISSED: Final[dict[str, tuple[Reason, str]]] = {
    "empty": ("PoolEmpty", "its pool had no slot that could be taken"),
    "set-back": ("RestingAfterFailure", "slots of its pool have failed it a moment ago"),
    "unfit": ("RevisionUnfit", "no standby pod fits it"),
}


class Told(NamedTuple):
    """One thing to be said of a revision."""

    reason: Reason
    message: str

    @property
    def good(self) -> bool:
        return self.reason == "Taken"

    @property
    def served(self) -> bool:
        """By a standby slot."""
        return self.reason in ("Taken", "FellBack")


@dataclass(slots=True)
class Wake:
    """One slot that was taken."""

    pod: str
    node: str
    level: Level  # the slot's
    begun: float
    at: float = 0.0  # the same in unix seconds, for people
    accepted_ms: int | None = None
    serving_ms: int | None = None
    own_ms: int | None = None  # has the revision's labels
    started: Started | None = None

    @property
    def used(self) -> Level:
        return self.started.level if self.started is not None else self.level

    @property
    def message(self) -> str:
        found = [f"pod {self.pod} on node {self.node}, level {self.used}"]
        if self.accepted_ms is not None:
            found.append(f"accepted after {self.accepted_ms} ms")
        if self.started is not None:
            found += [
                f"{name.replace('_', ' ')} {ms} ms" for name, ms in self.started.steps if name != "ready"
            ]
        if self.serving_ms is not None:
            found.append(f"served after {self.serving_ms} ms")
        if self.own_ms is not None:
            found.append(f"was its own after {self.own_ms} ms")
        return ", ".join(found)


@dataclass(slots=True)
class Wakes:
    #: Slots that began at another level than their own, by both.
    fallbacks: Counter[tuple[Level, Level]] = field(default_factory=Counter)
    #: Slots that ended sleeping engines for a revision, by the level that it began at.
    made_room: Counter[Level] = field(default_factory=Counter)
    _of: dict[RevisionKey, dict[str, Wake]] = field(default_factory=dict)  # by uid, the oldest first
    _told: dict[RevisionKey, Told] = field(default_factory=dict)

    def told(self, revision: RevisionKey) -> Told | None:
        """The last; None: nothing yet."""
        return self._told.get(revision)

    def slots(self, revision: RevisionKey) -> list[Wake]:
        """That have come to serve it, the latest last."""
        return [wake for wake in self._of.get(revision, {}).values() if wake.serving_ms is not None]

    def revisions(self) -> set[RevisionKey]:
        return {*self._of, *self._told}

    # --- what happens

    def took(self, revision: RevisionKey, seen: Seen, now: float, at: float = 0.0) -> None:
        slots = self._of.setdefault(revision, {})
        slots.pop(seen.slot.uid, None)
        slots[seen.slot.uid] = Wake(seen.slot.pod, seen.node, seen.slot.level, now, at)
        while len(slots) > KEEP_SLOTS:
            del slots[next(iter(slots))]
        while len(self._of) > KEEP:
            self.forget(next(iter(self._of)))

    def accepted(self, revision: RevisionKey, uid: str, now: float) -> None:
        wake = self._of.get(revision, {}).get(uid)
        if wake is not None and wake.accepted_ms is None:
            wake.accepted_ms = _ms(now - wake.begun)

    def serves(self, revision: RevisionKey, uid: str, started: Started | None, now: float) -> Told | None:
        """Said once, when it is known how it has started."""
        wake = self._of.get(revision, {}).get(uid)
        if wake is None or wake.serving_ms is not None:
            return None
        wake.serving_ms, wake.started = _ms(now - wake.begun), started
        if wake.used != wake.level:
            self.fallbacks[wake.level, wake.used] += 1
        if started is not None and any(name == SLEEPERS_ENDED for name, _ in started.steps):
            self.made_room[wake.used] += 1
        return self._say(revision, wake)

    def own(self, revision: RevisionKey, uid: str, now: float) -> bool:
        """It has its labels; whether that is news."""
        wake = self._of.get(revision, {}).get(uid)
        if wake is None or wake.own_ms is not None or wake.serving_ms is None:
            return False
        wake.own_ms = _ms(now - wake.begun)
        told = self._told.get(revision)
        if told is not None and told.served:
            self._say(revision, wake)
        return True

    def refused(self, revision: RevisionKey, uid: str, why: str) -> Told:
        return self._not(revision, uid, "SlotRefused", "could not be had", why)

    def unanswered(self, revision: RevisionKey, uid: str, why: str) -> Told:
        """Its agent has left the order unanswered. Should the slot have the revision after all, serves() says so."""
        wake = self._of.get(revision, {}).get(uid)
        node = f"of node {wake.node} " if wake is not None else ""
        words = f"the agent {node}has left the order unanswered ({why[:MOST_WHY]})"
        told = self._not(revision, uid, "AgentSilent", "could not be had", words)
        if wake is not None:
            self._of[revision][uid] = wake
        return told

    def failed(self, revision: RevisionKey, uid: str, pod: str, why: str) -> Told:
        return self._not(revision, uid, "SlotFailed", "could not start it", why, pod)

    def missed(self, revision: RevisionKey, why: str, count: int) -> Told:
        reason, words = _MISSED.get(why, ("PoolEmpty", why))
        pods = "a pod was" if count == 1 else f"{count} pods were"
        told = self._told[revision] = Told(reason, f"{words}: {pods} asked for the plain way")
        return told

    def forget(self, revision: RevisionKey) -> None:
        self._of.pop(revision, None)
        self._told.pop(revision, None)

    # --- inside

    def _say(self, revision: RevisionKey, wake: Wake) -> Told:
        told = Told("Taken", wake.message)
        if wake.used != wake.level:
            why = wake.started.why if wake.started is not None else ""
            told = Told("FellBack", f"{wake.message}; not from its level {wake.level}: {why[:MOST_WHY]}")
        self._told[revision] = told
        return told

    def _not(
        self, revision: RevisionKey, uid: str, reason: Reason, what: str, why: str, pod: str = ""
    ) -> Told:
        wake = self._of.get(revision, {}).pop(uid, None)
        name = wake.pod if wake is not None else pod or uid
        told = Told(
            reason,
            f"standby pod {name} {what}: {why[:MOST_WHY]}; another slot or a plain pod takes its place",
        )
        self._told[revision] = told
        return told


def _ms(seconds: float) -> int:
    return round(1000 * max(0.0, seconds))
