"""The calls under way on one connection, and their deadlines.

Hot file (STYLE 4). One timer serves all calls: it is armed for the earliest deadline, looks at all calls when it
fires, and is armed again at GRAIN_S later at the soonest; a call that is answered in time never touches it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import Final

from kserve_ext.rpc.errors import RpcError
from kserve_ext.wire.frames import ErrorCode
from kserve_ext.wire.messages import Message

log = logging.getLogger(__name__)

Done = Callable[[Message | RpcError], None]

MAX_PENDING: Final = 65_536
#: deadlines are looked at this often at most, plus a microsecond for every call pending
GRAIN_S: Final = 0.004
_NEVER: Final = float("inf")


class Pending:
    """`add` before sending, `take` when the reply is there; `fail` ends all."""

    __slots__ = ("_calls", "_due", "_loop", "_next_id", "_timer", "addr", "sent")

    def __init__(self, loop: asyncio.AbstractEventLoop, addr: str) -> None:
        self._loop = loop
        self.addr = addr
        self.sent = False  # whether requests have left: said in errors
        self._calls: dict[int, tuple[Done, int, float]] = {}
        self._next_id = 1
        self._timer: asyncio.TimerHandle | None = None
        self._due = _NEVER

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, done: Done, method: int, timeout_s: float) -> int:
        """The id of the call. From now on `done` is called once, with what take()'s caller has or an RpcError."""
        call_id = self._next_id
        self._next_id = call_id + 1 if call_id < 0xFFFFFFFF else 1
        due = monotonic() + timeout_s
        self._calls[call_id] = (done, method, due)
        if due < self._due:
            self._arm(due, timeout_s)
        return call_id

    def take(self, call_id: int) -> tuple[Done, int, float] | None:
        """The call, which is under way no longer; None when its deadline has passed."""
        return self._calls.pop(call_id, None)

    def fail(self, why: RpcError) -> None:
        if self._timer is not None:
            self._timer.cancel()
        calls, self._calls = self._calls, {}
        for done, _, _ in calls.values():
            finish(done, RpcError(why.code, why.detail, self.addr, sent=self.sent, nobody=why.nobody))

    def _arm(self, due: float, in_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = self._loop.call_later(in_s, self._expire)

    def _expire(self) -> None:
        self._timer, self._due = None, _NEVER
        now = monotonic()
        for call_id in [c for c, (_, _, due) in self._calls.items() if due <= now]:
            found = self._calls.pop(call_id, None)
            if found is not None:
                error = RpcError(ErrorCode.DEADLINE, "no answer in time", self.addr, sent=self.sent)
                finish(found[0], error)
        if self._calls:
            due = min(due for _, _, due in self._calls.values())
            if due < self._due:
                self._arm(due, max(due - now, GRAIN_S + 1e-6 * len(self._calls)))


def finish(done: Done, result: Message | RpcError) -> None:
    """Hands over the end of a call; what its callback raises is logged and harms no other call."""
    try:
        done(result)
    except Exception:
        log.exception("what follows the end of a call failed here")
