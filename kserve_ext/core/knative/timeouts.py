"""When a request has taken too long: the three timeouts of a Knative revision.

The total counts from the request's arrival, time in a queue included, and ends a response in its midst.
Response-start ends one that has not begun; idle one that has not been written to for so long, begun or not. 0 = off.
An upgraded connection begins to respond with the first bytes after its 101. In Knative: pkg/http/handler/timeout.go.
"""

from __future__ import annotations

from typing import Final, NamedTuple

IN_TIME: Final = ""
TOTAL: Final = "total"
RESPONSE_START: Final = "response-start"
IDLE: Final = "idle"


class Timeouts(NamedTuple):
    """Seconds; names as in the revision's spec without Seconds."""

    total_s: float = 300.0
    response_start_s: float = 0.0
    idle_s: float = 0.0

    def passed(self, started: float, written: float, now: float) -> str:
        """Which one has passed, or IN_TIME. `written`: time of the last write to the client, 0.0 = none yet."""
        age = now - started
        if age >= self.total_s:
            return TOTAL
        if not written and 0.0 < self.response_start_s <= age:
            return RESPONSE_START
        if self.idle_s and now - (written or started) >= self.idle_s:
            return IDLE
        return IN_TIME
