"""Who holds a Lease: what one candidate does next, from what it has seen of the Lease and from its own clock.

Matches client-go's leader election (tools/leaderelection): another's lease counts as expired when *we* have seen it
unchanged for as long as it lasts, whatever the times in it say, so clocks need not agree; the holder gives up when it
hasn't managed to renew for renew_s, which is well before others may take it. It never sends anything: the shell
carries out what decide() says, and tells what came of it. All times are of one monotonic clock of this process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple


@dataclass(frozen=True, slots=True)
class ElectionSpec:
    identity: str
    lease_s: float = 60.0
    #: For so long after its last renewal the holder acts as such.
    renew_s: float = 40.0
    retry_s: float = 10.0

    def __post_init__(self) -> None:
        if not self.identity:
            raise ValueError("a candidate needs an identity")
        if not self.lease_s > self.renew_s > self.retry_s > 0:
            raise ValueError(
                f"lease {self.lease_s} s > renew {self.renew_s} s > retry {self.retry_s} s > 0 must hold"
            )


class LeaseRecord(NamedTuple):
    """What a Lease says, as seen at one resourceVersion."""

    version: str
    holder: str  # "" = released, or never held
    duration_s: float
    transitions: int
    acquired: str  # RFC 3339 with microseconds; for people, nobody decides by it


class Claim(NamedTuple):
    """What to write: create the Lease if `over` is None, else replace exactly that version."""

    over: LeaseRecord | None
    transitions: int
    keeps_acquired: bool  # a renewal keeps acquireTime


Act = Claim | Literal["wait"]


class Election:
    """One candidate for one Lease."""

    def __init__(self, spec: ElectionSpec) -> None:
        self.spec = spec
        #: What the Lease said when last seen, and since when (ours) it has said so. None: there was none.
        self.seen: LeaseRecord | None = None
        self._seen_at = 0.0
        #: When the renewal that we hold by was sent; None = we don't hold it.
        self._renewed_at: float | None = None

    def observe(self, record: LeaseRecord | None, now: float) -> None:
        """The Lease as it is, None = there is none. The same again is no news; another's name ends our own hold."""
        if record != self.seen:
            self._seen_at = now
        self.seen = record
        if record is not None and record.holder != self.spec.identity:
            self._renewed_at = None

    def decide(self, now: float) -> Act:
        """Whether to claim the Lease. A holder needn't look first: over an old version the write fails."""
        seen = self.seen
        if seen is None:
            return Claim(None, 0, keeps_acquired=False)
        if seen.holder == self.spec.identity:
            return Claim(seen, seen.transitions, keeps_acquired=True)
        if seen.holder and now < self._seen_at + seen.duration_s:
            return "wait"
        return Claim(seen, seen.transitions + 1, keeps_acquired=False)

    def claimed(self, record: LeaseRecord, sent_at: float, now: float) -> None:
        """A claim was written: it counts from when it was sent, since others may have seen it from then on."""
        self.observe(record, now)
        self._renewed_at = sent_at

    def lost(self) -> None:
        """We gave it back, or up."""
        self._renewed_at = None

    @property
    def holds(self) -> bool:
        """Whether we hold it as far as we know; leads() says whether we may act on that."""
        return self._renewed_at is not None

    def leads(self, now: float) -> bool:
        return self._renewed_at is not None and now < self._renewed_at + self.spec.renew_s

    def gives_up_at(self) -> float:
        """When the holder stops leading unless it renews; 0 for others."""
        return 0.0 if self._renewed_at is None else self._renewed_at + self.spec.renew_s

    def next_try_s(self, chance: float) -> float:
        """The wait before the next try: a holder renews regularly, others are spread out so as not to collide."""
        return self.spec.retry_s if self.holds else self.spec.retry_s * (1.0 + 1.2 * chance)
