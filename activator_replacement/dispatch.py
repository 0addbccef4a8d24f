"""The Dispatch function as a shard: carries out core/dispatch/shard.py for the data plane's exchanges.

Implements seam.Dispatch. A request goes to an instance with a granted slot at once, or is held; what home should hear
leaves in the same turn of the loop, all of it together. A throttler holds requests and prefill leases (prefill.py)
alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from activator_replacement.accounts import grant_facts
from activator_replacement.affinity import AffinityChooser, keys_of
from activator_replacement.recording import ShardHistory
from activator_replacement.refusals import NEVER
from activator_replacement.requests import Record, Requests
from activator_replacement.routes import Routes
from activator_replacement.seam import CLIENT_GONE, OK, OUTCOMES, TIMEOUT, Exchange, Refusal
from kserve_ext.core.dispatch.affinity import PrefixTree
from kserve_ext.core.dispatch.choosing import Chooser
from kserve_ext.core.dispatch.shard import AT_ONCE, MOST_ATTEMPTS, Shard, batched
from kserve_ext.core.dispatch.throttler import TOO_MANY, Tracker
from kserve_ext.core.facts import Hold, Instance, Revision, View
from kserve_ext.core.ids import FunctionID, InstanceID, RevisionKey
from kserve_ext.rpc import Rpc, RpcError
from kserve_ext.wire.messages import Broken, Coordinate, CoordinateReply, Demand, Grant, Message

COORDINATE_TIMEOUT_S = 2.0
TICK_S = 0.1


class Waiting(Protocol):
    """What is held and sent: a request of the data plane, or the wait for a prefill slot."""

    revision: RevisionKey
    instance: InstanceID

    @property
    def held_bytes(self) -> int: ...

    def go(self, addr: str, instance: InstanceID) -> None: ...
    def refuse(self, status: int, reason: str, retry_after_s: float = 0.0) -> None: ...


class Dispatcher:
    """One Dispatch function's shard."""

    def __init__(self, me: FunctionID, incarnation: int, rpc: Rpc, routes: Routes) -> None:
        self.me = me
        self.rpc = rpc
        self.routes = routes
        self._affinity = AffinityChooser(PrefixTree())
        self.shard: Shard[Waiting] = Shard(incarnation, self._chooser)
        self.requests = Requests()
        self.recording = ShardHistory(rpc.history)
        self.loop = asyncio.get_running_loop()
        self.submitted = 0
        self.addr_of: Callable[[FunctionID], str] = lambda function: ""
        #: what chooses among the instances of a prefill revision (prefill.py)
        self.prefill_chooser: Callable[[Revision], Chooser[Any] | None] = lambda revision: None
        self._flush_at: asyncio.Handle | None = None

    # --- seam.Dispatch

    def resolve(self, host: bytes, namespace: bytes | None, revision: bytes | None) -> RevisionKey | Refusal:
        found = self.routes.resolve(host, namespace, revision)
        if isinstance(found, Refusal):
            return found
        known = self.routes.revisions.get(found)
        if known is None:
            return Refusal(503, f"revision {found} is not known here yet: try again", 1.0)
        if known.role == "prefill":
            decode = self.routes.decode_host(known.group)
            ask = (
                f"its decode service has the host {decode}"
                if decode
                else "its decode service is not there yet"
            )
            return Refusal(421, f"{found} only computes prompts for group {known.group}; {ask}")
        return found

    def submit(self, exchange: Exchange) -> None:
        key = exchange.revision
        revision = self.routes.revisions.get(key)
        if revision is None or key not in self.shard.parts:
            exchange.refuse(503, f"revision {key} was deleted", 1.0)
            return
        if exchange.note is None:
            self.submitted += 1
            exchange.timeout_s = revision.timeout_s
            exchange.continues = revision.continuation
            exchange.note = self.requests.open(exchange.request_id, key, exchange.held_bytes)
            if self.recording.on:
                self.recording.accepted(exchange.request_id, key)
        if revision.affinity != "none":
            keys = keys_of(exchange, revision.affinity, revision.service)
            if keys is None:
                return
            exchange.note.keys = keys
            exchange.note.held_bytes = exchange.held_bytes
        self.place(exchange, revision.hold)

    def sent(self, exchange: Exchange) -> None:
        exchange.note.mark("sent")

    def first_byte(self, exchange: Exchange) -> None:
        record: Record = exchange.note
        if exchange.continued:
            record.mark("continued", exchange.instance)
        else:
            record.mark("first_byte")

    def finished(self, exchange: Exchange, outcome: int) -> None:
        self._close(exchange.note, outcome)
        self.release(exchange)

    def failed(self, exchange: Exchange, reason: str, retriable: bool) -> bool:
        again = retriable and exchange.attempts < MOST_ATTEMPTS
        here = exchange.revision in self.routes.revisions
        # Another model's tokens don't continue a stream.
        moves = again and not here and not exchange.continued
        successor = self._successor(exchange.revision) if moves else None
        record: Record = exchange.note
        record.mark("failed", reason)
        if again and here:
            record.held = True
        elif successor is None:
            record.outcome = "failed"
            if self.recording.on:
                self.recording.answered(record.request_id, "failed")
        self.give_up(exchange, reason, again=again and here)
        if successor is not None:
            self._move(exchange, successor)
        return again and (here or successor is not None)

    def full(self, exchange: Exchange) -> bool:
        if exchange.revision not in self.routes.revisions:
            return False
        record: Record = exchange.note
        record.mark("full", exchange.instance)
        record.held = True
        exchange.attempts -= 1  # nothing was begun: it is asked again for as long as the request may be held
        self._put_back(exchange, again=True)
        return True

    def cancelled(self, exchange: Exchange) -> None:
        self._close(exchange.note, exchange.outcome)
        self.forget(exchange)

    # --- the same for everything that is held

    def place(self, waiting: Waiting, hold: Hold) -> None:
        """Sends it now, holds it, or refuses it because a bound of holding is reached."""
        outcome = self.shard.submit(waiting.revision, waiting, self.loop.time())
        if isinstance(outcome, Tracker):
            self._go(waiting, outcome)
            return
        self.flush_soon()
        record = getattr(waiting, "note", None)
        if outcome == 0:  # HELD
            if record is not None:
                record.held = True
                record.mark("held")
            return
        what = (
            f"{hold.requests} requests are held already (kserve-galaxy.io/hold-requests)"
            if outcome == TOO_MANY
            else f"{hold.bytes} bytes of requests are held already (kserve-galaxy.io/hold-bytes)"
        )
        self._refuse(waiting, 429, f"{waiting.revision} has no free slot and {what}: try again", 1.0)

    def release(self, waiting: Waiting) -> None:
        """It has ended at its instance; its slot may take the next one."""
        key, instance = waiting.revision, waiting.instance
        following = self.shard.finished(key, instance, self.loop.time())
        if following is not None:
            self._go(following, self.shard.parts[key].throttler.trackers[instance])
        if self.shard.pending:
            self.flush_soon()

    def give_up(self, waiting: Waiting, reason: str, *, again: bool) -> None:
        """Its instance broke off before it answered."""
        key, instance = waiting.revision, waiting.instance
        home = self.shard.parts[key].home
        addr = self.addr_of(home) if home else ""
        if addr:
            message = Coordinate(self.me, "", self.rpc.epoch(), (Broken(key, instance, reason),))
            self.rpc.call_soon(addr, message, lambda reply: None, COORDINATE_TIMEOUT_S)
        self._put_back(waiting, again=again)

    def _put_back(self, waiting: Waiting, *, again: bool) -> None:
        """Its instance gets nothing for a while."""
        key = waiting.revision
        self.shard.failed(key, waiting, waiting.instance, again, self.loop.time())
        # Not from within the exchange's own call: it may be the first to go on.
        self.loop.call_soon(self.drain, key)
        self.flush_soon()

    def forget(self, waiting: Waiting) -> None:
        self.shard.cancelled(waiting.revision, waiting, self.loop.time())
        if self.shard.pending:
            self.flush_soon()

    def drain(self, key: RevisionKey) -> None:
        for waiting, tracker in self.shard.drain(key, self.loop.time()):
            self._go(waiting, tracker)
        if self.shard.pending:
            self.flush_soon()

    # --- what home and nodes say

    def granted(self, grant: Grant) -> None:
        """Obeys a Grant."""
        for waiting in self.shard.grant(grant_facts(grant), self.loop.time()):  # it can't serve for good
            self._refuse(waiting, 503, f"{grant.revision} can't serve: {grant.refusal}", NEVER)
        self.drain(grant.revision)
        if self.recording.on and self.shard.newest(grant.revision) == (grant.term, grant.seq):
            self.recording.obeyed(grant)

    def pushed(self, grant: Grant) -> Demand | None:
        """Obeys a Grant that nobody asked for; the state after it."""
        self.granted(grant)
        demand = self.shard.report(grant.revision, self.loop.time())
        return Demand(*demand) if demand is not None else None

    def recalled(self, term: int, keys: Iterable[RevisionKey]) -> tuple[Demand, ...]:
        return tuple(Demand(*demand) for demand in self.shard.recall(term, keys, self.loop.time()))

    def announced(self, key: RevisionKey, instances: Iterable[Instance]) -> None:
        self.shard.announced(key, instances, self.loop.time())
        self.drain(key)

    # --- revisions, view, time

    def revision(self, key: RevisionKey, revision: Revision | None) -> None:
        if self.recording.on:
            self.recording.knows(key, revision is None)
        if revision is not None:
            self.shard.know(revision, self.loop.time())
            return
        successor = self._successor(key)
        for waiting in self.shard.forget(key, self.loop.time()):
            if successor is not None and not getattr(waiting, "continued", 0):
                self._move(waiting, successor)
            else:
                self._refuse(waiting, 503, f"revision {key} was deleted while the request was held", 1.0)

    def _successor(self, key: RevisionKey) -> Revision | None:
        """What has the traffic of a deleted revision's service now, and takes the same: requests, or prompts."""
        part = self.shard.parts.get(key)
        found = self.routes.successor(part.revision) if part is not None else None
        if part is None or found is None or found.key not in self.shard.parts:
            return None
        return found if (found.role == "prefill") == (part.revision.role == "prefill") else None

    def _move(self, waiting: Waiting, successor: Revision) -> None:
        """A roll-out took the revision it waited for; what has its service's traffic now takes it."""
        record = getattr(waiting, "note", None)
        if record is not None:
            record.revision = successor.key
            record.mark("moved", successor.key)
        waiting.revision = successor.key
        self.place(waiting, successor.hold)

    def view(self, view: View, home_of: Callable[[str], FunctionID | None]) -> None:
        addrs = {FunctionID(m.id): m.addr for m in view.of("dispatch")}
        self.addr_of = lambda function: addrs.get(function, "")
        self.shard.view(view.epoch, home_of)
        self.flush_soon()

    def ticks(self) -> Iterator[None]:
        """What has become due, a few revisions at a time: what has come meanwhile may have its turn in between."""
        for keys in batched(self.shard.active, AT_ONCE):
            self._tick(keys)
            yield

    def _tick(self, keys: tuple[RevisionKey, ...]) -> None:
        for key, late in self.shard.tick(self.loop.time(), keys):
            part = self.shard.parts[key]
            why = part.refusal or "no instance was ready and free in time"
            for waiting in late:
                self._refuse(
                    waiting,
                    503,
                    f"{key}: held for {part.revision.hold.seconds:g} s without a slot: {why}",
                    part.retry_after_s or 1.0,
                )
        for key in keys:
            self.drain(key)
        self.flush_soon()

    @property
    def held(self) -> int:
        return sum(part.throttler.held for part in self.shard.parts.values())

    @property
    def in_flight(self) -> int:
        return sum(part.throttler.in_flight for part in self.shard.parts.values())

    # --- Demands

    def flush_soon(self) -> None:
        if self._flush_at is None:
            self._flush_at = self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Every Demand that is due, one message a home."""
        self._flush_at = None
        by_home: dict[FunctionID, list[Demand]] = {}
        for home, demand in self.shard.due(self.loop.time()):
            by_home.setdefault(home, []).append(Demand(*demand))
        for home, demands in by_home.items():
            message = Coordinate(self.me, "", self.rpc.epoch(), tuple(demands))
            self.rpc.call_soon(self.addr_of(home), message, self._heard(demands), COORDINATE_TIMEOUT_S)

    def _heard(self, demands: list[Demand]) -> Callable[[Message | RpcError], None]:
        def done(reply: Message | RpcError) -> None:
            now = self.loop.time()
            if not isinstance(reply, CoordinateReply):
                for demand in demands:
                    self.shard.unanswered(demand.revision, demand.seq, now)
                return  # the tick sends them again
            for action in reply.actions:
                if isinstance(action, Grant):
                    self.granted(action)
            for demand in demands:
                if demand.revision in reply.elsewhere:
                    self.shard.unanswered(demand.revision, demand.seq, now)
                else:
                    self.shard.answered(demand.revision, demand.seq, now)
                    self.drain(demand.revision)
            if self.shard.pending:
                self.flush_soon()

        return done

    # --- inside

    def _chooser(self, revision: Revision) -> Chooser[Any] | None:
        if revision.role == "prefill":
            return self.prefill_chooser(revision)
        return self._affinity if revision.affinity != "none" else None

    def _go(self, waiting: Waiting, tracker: Tracker) -> None:
        record = getattr(waiting, "note", None)
        if record is not None:
            record.instance = tracker.id
            if record.held:
                record.mark("slot", tracker.id)
                # Cold: it waited for this instance to become ready, not just for a slot.
                record.cold = waiting.started <= tracker.ready_at  # type: ignore[attr-defined]
            waiting.cold = record.cold  # type: ignore[attr-defined]
            if self.recording.on:
                self.recording.sent(record.request_id, record.revision, tracker.id)
        waiting.go(tracker.addr, tracker.id)

    def _refuse(self, waiting: Waiting, status: int, reason: str, retry_after_s: float) -> None:
        record = getattr(waiting, "note", None)
        if record is not None:
            record.outcome = f"refused {status}"
            record.mark("refused", reason)
            if self.recording.on:
                self.recording.answered(record.request_id, record.outcome)
        waiting.refuse(status, reason, retry_after_s)

    def _close(self, record: Any, outcome: int) -> None:
        record.outcome = OUTCOMES[outcome]
        names = {OK: "last_byte", CLIENT_GONE: "client_gone", TIMEOUT: "timeout"}
        record.mark(names.get(outcome, "upstream_failed"))
        if self.recording.on:
            self.recording.answered(record.request_id, record.outcome)
