"""Dispatch for one pod: every request goes to its own server, within its concurrency; none without a revision.

Implements seam.Dispatch. What was sent is never sent again. A request that names another revision than this pod has
is refused: the pod was another's a moment ago, and whoever sent it has not heard yet.

Hot dialect in the seam's calls, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol

from activator_replacement.knative.answers import Answer
from activator_replacement.knative.reports.durations import Durations
from activator_replacement.queue.answers import (
    NO_REVISION,
    NOT_READY,
    QUEUE_FULL,
    READY,
    health,
    network_probe,
)
from activator_replacement.queue.readiness import Readiness
from activator_replacement.seam import TIMEOUT, Exchange, Refusal
from kserve_ext.core.ids import InstanceID, RevisionKey
from kserve_ext.core.knative.timeouts import Timeouts
from kserve_ext.core.queue import probing
from kserve_ext.core.queue.breaker import FULL, GO, Breaker
from kserve_ext.core.queue.draining import Draining
from kserve_ext.core.queue.request_stats import Report, RequestStats
from kserve_ext.core.standby.facts import Assignment

_METHOD: Final = b"_"  # durations are not counted by method
RETRY_AFTER_S: Final = 1.0


class QueueExchange(Exchange, Protocol):
    """What exchanges of a queue-proxy have beside the seam's."""

    timeouts: Timeouts  # set in submit
    status: int  # of the server's response, 0 = none

    @property
    def proxied(self) -> bool:
        """It came through an activator."""


class Part:
    """The revision that this pod has, from Assign to the end of its last request."""

    def __init__(self, assignment: Assignment, now: float) -> None:
        timeouts = assignment.timeouts
        self.assignment = assignment
        self.key = assignment.revision
        self.namespace, _, self.name = (part.encode() for part in self.key.partition("/"))
        self.timeouts = Timeouts(timeouts.total_s or float("inf"), timeouts.start_s, timeouts.idle_s)
        self.addr = f"127.0.0.1:{assignment.port}"
        self.instance = InstanceID(assignment.instance)
        self.breaker: Breaker[QueueExchange] = Breaker(assignment.concurrency)
        self.stats = RequestStats(now)
        self.durations = Durations()
        self.readiness = Readiness(probing.asking(assignment.probe, assignment.port))
        self.serving = False  # its server has begun to answer
        self.refusing = ""  # why nothing new is taken
        self.began = now


class Trip:
    """One request: whose it is, and since when its server has it."""

    __slots__ = ("part", "proxied", "since")

    def __init__(self, part: Part, proxied: bool) -> None:
        self.part = part
        self.proxied = proxied
        self.since = 0.0


class QueueDispatcher:
    def __init__(self) -> None:
        self.part: Part | None = None
        self.draining: Draining | None = None
        #: Called when a request has ended, and nothing is under way in its part.
        self.idle: Callable[[], None] = lambda: None
        #: Whether a pod without a revision is ready.
        self.standby_ready = False

    # --- revisions

    def assign(self, assignment: Assignment) -> None:
        """Raises BadProbe. What an earlier one has under way goes on with it."""
        part = Part(assignment, monotonic())
        self.blank()
        self.part = part

    def blank(self) -> None:
        part = self.part
        self.part = None
        if part is not None:
            part.readiness.close()
            for exchange in part.breaker.dismiss():
                self._left(exchange, 503)
                exchange.refuse(503, NO_REVISION, RETRY_AFTER_S)

    @property
    def under_way(self) -> int:
        return self.part.stats.under_way if self.part is not None else 0

    def report(self) -> Report:
        return self.part.stats.report(monotonic()) if self.part is not None else Report()

    def ask_ready(self, answer: Callable[[bool], None]) -> bool | None:
        """Whether this pod is ready; None: `answer` is called later."""
        part = self.part
        if part is None:
            return self.standby_ready
        if not part.serving or part.refusing:
            return False
        part.readiness.ask(answer)
        return None

    def probed(self, prober: bool, probe: bytes, hash_: bytes, say: Callable[[Answer], None]) -> None:
        """A probe's answer goes to `say`, now or later. `prober`: of this pod's readiness, else of the network.

        `probe` and `hash_` are the values of K-Network-Probe and K-Network-Hash.
        """
        draining = self.draining is not None
        if not prober:
            say(network_probe(hash_, draining, self.part is not None))
            return
        answer = health(probe, draining)
        if answer is not None:
            say(answer)
            return
        ready = self.ask_ready(lambda ready: say(READY if ready else NOT_READY))
        if ready is not None:
            say(READY if ready else NOT_READY)

    # --- seam.Dispatch

    def resolve(self, host: bytes, namespace: bytes | None, revision: bytes | None) -> RevisionKey | Refusal:
        part = self.part
        if part is None:
            return Refusal(503, NO_REVISION, RETRY_AFTER_S)
        if part.refusing:
            return Refusal(503, part.refusing, RETRY_AFTER_S)
        if namespace and revision and (namespace != part.namespace or revision != part.name):
            return Refusal(503, f"this pod serves {part.key}, and not the revision that was asked for")
        return part.key

    def submit(self, exchange: Exchange) -> None:
        part = self.part
        if part is None or part.key != exchange.revision:  # it changed while the body came
            exchange.refuse(503, NO_REVISION, RETRY_AFTER_S)
            return
        waiting: QueueExchange = exchange  # type: ignore[assignment]
        proxied = waiting.proxied
        trip = exchange.note = Trip(part, proxied)
        exchange.timeout_s = part.timeouts.total_s
        waiting.timeouts = part.timeouts
        now = monotonic()
        part.stats.enter(now, proxied)
        if self.draining is not None:
            self.draining.came(now)
        outcome = part.breaker.submit(waiting)
        if outcome == GO:
            trip.since = now
            exchange.go(part.addr, part.instance)
        elif outcome == FULL:
            self._left(waiting, 503)
            exchange.refuse(503, QUEUE_FULL)

    def sent(self, exchange: Exchange) -> None: ...
    def first_byte(self, exchange: Exchange) -> None: ...

    def finished(self, exchange: Exchange, outcome: int) -> None:
        ended: QueueExchange = exchange  # type: ignore[assignment]
        status = ended.status or (504 if outcome == TIMEOUT else 0)
        self._done(ended, status)

    def failed(self, exchange: Exchange, reason: str, retriable: bool) -> bool:
        self._done(exchange, 502)  # type: ignore[arg-type]
        return False

    def full(self, exchange: Exchange) -> bool:
        return False

    def cancelled(self, exchange: Exchange) -> None:
        trip: Trip | None = exchange.note
        if trip is not None:  # else it is a probe that waited for its answer
            trip.part.breaker.cancel(exchange)  # type: ignore[arg-type]
            self._left(exchange, 504 if exchange.outcome == TIMEOUT else 0)  # type: ignore[arg-type]

    # --- inside

    def _done(self, exchange: QueueExchange, status: int) -> None:
        trip: Trip = exchange.note
        part = trip.part
        now = monotonic()
        if status:
            part.durations.add(_METHOD, status, "", now - trip.since)
        following = part.breaker.release()
        self._left(exchange, status)
        if following is not None:
            following.note.since = now
            following.go(part.addr, part.instance)

    def _left(self, exchange: QueueExchange, status: int) -> None:
        """`status`: what it was answered with, 0 = nothing."""
        trip: Trip = exchange.note
        part = trip.part
        part.stats.leave(monotonic(), trip.proxied)
        if not part.stats.under_way and part is self.part:
            asyncio.get_running_loop().call_soon(self.idle)
