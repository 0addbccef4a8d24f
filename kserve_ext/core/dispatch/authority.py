"""Whether a Dispatch function may act as home: not after it stood still, nor once others know a view that it doesn't.

A process that did not run for a while (SIGSTOP, swapping, a virtual machine that moves) may have left the view and
have a successor, and what was sent to it meanwhile doesn't say so. Other shards and nodes are fenced by terms; its
own shard was as still as it was, and would be granted what the successor has given to others. So from the first
event after a gap on its homes are closed, until a question that was asked after the gap has been answered: by the
controller that this is a member, of a view known here; or, as long as no controller answers, by every other shard
that can be reached that it knows no newer view. A gap is counted in the process's own monotonic time, from turn to
turn; it is ticked some times a second.

One that is only cut off from the controller is not still, but may have a successor as well: while no controller
answers, the others are asked all the same. A home that nobody answers goes on: a controller that is down replaces
none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kserve_ext.core.ids import FunctionID

#: Less than it takes to be taken for dead (core/membership.py: SILENT_S): in less nobody has become a successor.
STILL_S: Final = 1.0
#: The controller has its chance first; the others are asked so often.
ASK_S: Final = 1.5


class Authority:
    """Of one process; its homes share it."""

    def __init__(self, still_s: float = STILL_S) -> None:
        self.sure = True
        #: a home of an older term takes over anew: there may have been another one in between
        self.term = 0
        self._epoch = self._epoch_before = 0
        #: the newest epoch that others know, of those that were asked in doubt
        self._newer = 0
        self._still_s = still_s
        #: the last turn; before the first one nobody could doubt
        self._turned_at = float("inf")
        self._since = float("-inf")
        #: never, before the controller has answered once
        self._ask_at = float("inf")
        #: of this round: who has yet to answer, and whether anybody has
        self._silent: set[FunctionID] = set()
        self._heard = False

    def turns(self, now: float) -> bool:
        """First of all with every event and tick: whether homes may act."""
        if now - self._turned_at > self._still_s:
            self._doubt(now)
        self._turned_at = now
        return self.sure

    def view(self, epoch: int) -> None:
        """The newest one known here."""
        self._epoch = epoch
        if 0 < self._newer <= epoch:
            self._end()

    def member(self, asked_at: float) -> None:
        """Asked at that time, the controller said that this is a member, of the view known here."""
        if asked_at >= self._since:
            self._ask_at = asked_at + ASK_S
            self._end()

    def asks(self, others: Iterable[FunctionID], now: float) -> list[FunctionID]:
        """The other shards of the view that are to say now which epoch they know; each is followed by answered()."""
        if now < self._ask_at:
            return []
        self._ask_at = now + ASK_S
        self._silent, self._heard = set(others), False
        if not self._silent:
            self._end()
        return sorted(self._silent)

    def answered(self, who: FunctionID, asked_at: float, epoch: int | None) -> None:
        """It knows the view of that epoch; None: it didn't answer."""
        if who not in self._silent or asked_at < self._since:
            return
        if epoch is not None and epoch > self._epoch:
            if self.sure:
                self._doubt(asked_at)
            self._newer = max(epoch, self._newer)
            self._silent.clear()  # that view comes, or has to be joined again
            return
        self._silent.discard(who)
        self._heard = self._heard or epoch is not None
        if self._heard and not self._silent:
            self._end()

    def _doubt(self, now: float) -> None:
        if self.sure:
            self._epoch_before = self._epoch
        self.sure, self._since, self._ask_at, self._newer = False, now, now + ASK_S, 0
        self._silent.clear()

    def _end(self) -> None:
        if not self.sure:
            self.sure, self._newer = True, 0
            self._silent.clear()
            if self._epoch > self._epoch_before + 1:  # views were missed here
                self.term = self._epoch
