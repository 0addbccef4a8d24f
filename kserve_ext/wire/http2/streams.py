"""What one HTTP/2 connection keeps of each stream, and the budgets that bound work for nothing.

A stream's queue holds DATA that its receiver has no window for yet; it is bounded by the window that we gave to the
side it comes from, which is only opened again by as much as has left. A budget is spent by frames that get nothing
done (resets: CVE-2023-44487; PING, SETTINGS, PRIORITY, empty DATA: CVE-2019-9512 to 9518) and earned back by those
that do, and by time: a busy connection may do more of both. A stream that is reset late has taken one of the places
that a connection has for so long, so the peer is not charged for it: calls whose deadline passes while an instance
starts are no flood.

Hot dialect, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from kserve_ext.wire.http2.frames import DEFAULT_WINDOW


class Stream:
    __slots__ = (
        "end_queued",
        "exchange",
        "grown",
        "id",
        "open_in",
        "open_out",
        "owed",
        "queue",
        "queued",
        "receive_window",
        "send_window",
        "since",
        "taken",
        "trailers",
    )

    def __init__(self, number: int, send_window: int, exchange: Any = None) -> None:
        self.id = number
        self.since = 0.0  # when the peer began it
        self.exchange = exchange  # whose it is; the connection never looks at it
        self.open_in = True  # the peer may send more
        self.open_out = True  # we may
        self.send_window = send_window
        self.receive_window = DEFAULT_WINDOW
        self.taken = 0  # received bytes that have gone on, and that the peer may not send anew yet
        self.grown = False
        self.owed = 0  # bytes that came and have not gone on
        self.queue: deque[bytes] | None = None  # made when it is first needed; most never are
        self.queued = 0  # bytes
        self.end_queued = False  # END_STREAM follows the queue,
        self.trailers: bytes | None = None  # on these, when there are some


class Budget:
    """`burst` at once, `per_s` for ever, and one more for each that is earned: whoever earns adds 1 to `left`."""

    __slots__ = ("_burst", "_per_s", "_since", "left")

    def __init__(self, burst: int, per_s: float, now: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self.left = float(burst)  # what is earned beyond the burst is cut off when some is spent
        self._since = now

    def spend(self, now: float, cost: int = 1) -> bool:
        """False: it is used up."""
        self.left = min(float(self._burst), self.left + (now - self._since) * self._per_s) - cost
        self._since = now
        return self.left >= 0
