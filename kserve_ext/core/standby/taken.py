"""A slot that a revision has taken and that isn't its ReplicaSet's yet: whether it still is the revision's.

The order, the answer or the slot's own word may be late or lost, and an agent may be away or begin anew; each is
waited for in its time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.standby.known import Seen, StandbyPod

#: Between an order to a slot and the slot's own word that it obeys.
ORDER_S: Final = 5.0
#: A slot that serves is believed to for so long without a word, while its agent is away or begins anew.
SILENT_S: Final = 15.0


@dataclass(slots=True)
class Taken:
    since: float
    sure_at: float  # when it, or its acceptance, was last heard
    confirmed: bool = False  # by the slot's own word
    serving_since: float | None = None

    def heard(self, serves: bool, now: float) -> bool:
        """It says itself that it is the revision's. Whether it is news that it serves."""
        self.confirmed, self.sure_at = True, now
        if not serves:
            self.serving_since = None
            return False
        new = self.serving_since is None
        if new:
            self.serving_since = now
        return new

    def verdict(
        self, revision: RevisionKey, seen: Seen | None, pod: StandbyPod | None, start_s: float, now: float
    ) -> Literal["ours", "lost", "given back", "failed"]:
        """`start_s`: so long it may need to serve."""
        silent_s = now - self.sure_at
        if pod is None:  # the API server has deleted it, or will tell of it
            return "lost" if silent_s >= ORDER_S else "ours"
        if pod.leaving or pod.ended:
            return "given back" if pod.ended and self.serving_since is None else "lost"
        if seen is None or seen.away:
            return "lost" if silent_s >= (SILENT_S if self.confirmed else ORDER_S) else "ours"
        state = seen.slot.state
        if seen.slot.revision == revision:
            late = state == "starting" and now - self.since >= start_s
            if state == "failed" or late:
                return "failed"
            return "lost" if state == "draining" else "ours"
        if not self.confirmed:
            # The order or the answer may have got lost. If the slot says yet that it has us, it counts again.
            return "lost" if silent_s >= ORDER_S else "ours"
        if state == "warming":  # its agent begins anew, and hears in a moment what it does
            return "lost" if silent_s >= SILENT_S else "ours"
        return "lost" if self.serving_since is not None else "given back"

    def unheard(self, now: float) -> bool:
        """Nobody has answered the order, and nobody will."""
        return not self.confirmed and now - self.sure_at >= ORDER_S

    def look_at(self, start_s: float) -> float:
        """When there may be another verdict without any news."""
        times = [self.sure_at + SILENT_S]
        if not self.confirmed:
            times.append(self.sure_at + ORDER_S)
        elif self.serving_since is None:
            times.append(self.since + start_s)
        return min(times)
