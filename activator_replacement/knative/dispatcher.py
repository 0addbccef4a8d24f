"""Dispatch with Knative's semantics: requests to the pods of the revisions that the API server knows.

Implements seam.Dispatch; core/knative/activation.py decides for each revision, backends.py says which addresses
answer, and the reporter hears of every request before it is placed. A request that could not be sent because its pod
refused the connection goes to another one; one that was sent is never sent again from here.

Hot dialect in the seam's calls, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from time import monotonic, time_ns
from typing import Final, NamedTuple, Protocol, cast

from activator_replacement.knative.answers import QUEUE_FULL
from activator_replacement.knative.reports.durations import Durations
from activator_replacement.knative.reports.reporter import Reporter
from activator_replacement.knative.reports.request_log import Record, RequestLog
from activator_replacement.knative.reports.tracer import Trace, Tracer
from activator_replacement.seam import TIMEOUT, Exchange, Refusal
from kserve_ext.api.knative.revision import Activated
from kserve_ext.core.ids import InstanceID, RevisionKey
from kserve_ext.core.knative.activation import HELD, NEVER, Activation, Room, Tracker
from kserve_ext.core.knative.assignment import Share
from kserve_ext.core.knative.groups import PREFILL_OF, Groups
from kserve_ext.core.knative.request_stats import RequestStats
from kserve_ext.core.knative.timeouts import Timeouts
from kserve_ext.core.sharing.shard import SharingShard

#: Connections that may be refused to one request.
MOST_ATTEMPTS: Final = 4
RETRY_AFTER_S: Final = 1.0


class ActivatorExchange(Exchange, Protocol):
    """What exchanges of an activator have beside the seam's."""

    timeouts: Timeouts  # these two are set in submit
    host: bytes
    trace: Trace | None  # this one, too, where traces are taken,
    record: Record | None  # and this one, where requests are logged
    status: int  # of the pod's response, 0 = none

    @property
    def method(self) -> bytes: ...

    @property
    def version(self) -> str:
        """Of HTTP: 1.0, 1.1 or 2.0."""


class Part:
    """One revision."""

    __slots__ = ("activation", "concurrency", "durations", "facts", "mesh_host", "shard", "stats")

    def __init__(self, facts: Activated, activation: Activation[ActivatorExchange]) -> None:
        self.facts = facts
        self.activation = activation
        self.shard: SharingShard | None = None  # where slots are shared with other activators
        self.stats: RequestStats | None = None
        self.concurrency = 0.0
        self.durations = Durations()
        self.mesh_host = b""

    @property
    def namespace(self) -> str:
        return self.facts.namespace

    @property
    def name(self) -> str:
        return self.facts.name


class Figures(NamedTuple):
    """What is shared of one revision, to be shown."""

    home: str  # who lends its slots; "" while nobody needs to
    leased: int  # slots it may use here because the home says so
    lent: int  # of these, by this home: slots that activators may use beyond their own


class Sharer(Protocol):
    """Who shares slots with other activators."""

    @property
    def others(self) -> list[str]: ...
    def figures(self, key: RevisionKey) -> Figures: ...
    def revision(self, part: Part) -> None: ...
    def forget(self, key: RevisionKey) -> None: ...
    def listed(self, key: RevisionKey, hosts: Iterable[str]) -> None: ...
    def changed(self, part: Part) -> None: ...
    def wants(self, part: Part) -> None: ...
    def freed(self, part: Part) -> None: ...
    def lapsed(self, part: Part, now: float) -> None: ...


class Dispatcher:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        reporter: Reporter,
        domain: str,
        most_held: int,
        room: Room,
        chance: Callable[[], float],
    ) -> None:
        self.parts: dict[RevisionKey, Part] = {}
        #: Told when a connection to an address of a revision could not be made.
        self.unreachable: Callable[[RevisionKey, str], None] = lambda key, addr: None
        #: Where the address of a namespace's pod is reached with TLS; None: without.
        self.secure: Callable[[str, str], str] | None = None
        #: None: slots are divided by position only.
        self.sharing: Sharer | None = None
        self.tracer: Tracer | None = None
        self.request_log: RequestLog | None = None
        self._loop = loop
        self._reporter = reporter
        self._suffix = f"svc.{domain}".encode()
        self._most_held = most_held
        self._room = room
        self._chance = chance
        self._keys: dict[tuple[bytes, bytes], RevisionKey] = {}
        self._groups = Groups()

    # --- seam.Dispatch

    def resolve(self, host: bytes, namespace: bytes | None, revision: bytes | None) -> RevisionKey | Refusal:
        if not namespace or not revision:
            namespace, revision = self._of_host(host) or (namespace or b"", revision or b"")
        key = self._keys.get((namespace, revision))
        if key is None:
            name = revision.decode("latin-1")
            if name.startswith(PREFILL_OF):
                key = self._groups.prefill_of(namespace.decode("latin-1"), name.removeprefix(PREFILL_OF))
            if key is None:
                return _unknown(name)
        return key

    def submit(self, exchange: Exchange) -> None:
        waiting: ActivatorExchange = exchange  # type: ignore[assignment]
        part = self.parts[exchange.revision]
        exchange.note = part
        timeouts = part.facts.timeouts
        exchange.timeout_s = timeouts.total_s
        waiting.timeouts = timeouts
        waiting.host = part.mesh_host
        if self.tracer is not None:
            waiting.trace = self.tracer.begin(waiting)
        if self.request_log is not None:
            waiting.record = self.request_log.begin(waiting, part.facts)
        now = monotonic()
        stats = part.stats
        if stats is None:
            stats = self._reporter.first(part, now)
        stats.enter(now)
        activation = part.activation
        if now >= activation.valid_until and self.sharing is not None:
            self.sharing.lapsed(part, now)
        outcome = activation.submit(waiting)
        if isinstance(outcome, Tracker):
            self._go(waiting, part, outcome.addr)
        elif outcome == HELD:
            if part.shard is not None and self.sharing is not None:
                self.sharing.wants(part)
        else:
            self._left(part, waiting, 503)
            exchange.refuse(503, QUEUE_FULL, RETRY_AFTER_S)

    def sent(self, exchange: Exchange) -> None:
        trace: Trace | None = exchange.trace  # type: ignore[attr-defined]
        if trace is not None:
            trace.sent_ns = time_ns()

    def first_byte(self, exchange: Exchange) -> None: ...

    def finished(self, exchange: Exchange, outcome: int) -> None:
        part: Part = exchange.note
        ended: ActivatorExchange = exchange  # type: ignore[assignment]
        self._left(part, ended, ended.status or (504 if outcome == TIMEOUT else 0))
        self._release(part, exchange.instance)

    def failed(self, exchange: Exchange, reason: str, retriable: bool) -> bool:
        part: Part = exchange.note
        addr = exchange.instance
        again = retriable and exchange.attempts < MOST_ATTEMPTS and self.parts.get(part.facts.key) is part
        if retriable:
            self.unreachable(part.facts.key, addr)
        self._release(part, addr)
        if not again:
            self._left(part, cast("ActivatorExchange", exchange), 502)
            return False
        part.activation.put_back(cast("ActivatorExchange", exchange))
        # Not from within the exchange's own call: it may be the first to go on.
        self._loop.call_soon(self.drain, part)
        return True

    def full(self, exchange: Exchange) -> bool:
        return False  # a queue-proxy holds what is too many

    def cancelled(self, exchange: Exchange) -> None:
        part: Part = exchange.note
        ended = cast("ActivatorExchange", exchange)
        part.activation.cancel(ended)
        self._left(part, ended, 504 if exchange.outcome == TIMEOUT else 0)

    # --- revisions and their backends

    def revision(self, facts: Activated) -> None:
        """New, or changed in what may change."""
        part = self.parts.get(facts.key)
        if part is not None and part.facts.uid == facts.uid:
            part.facts = facts
            self._groups.observe(facts.key, facts.namespace, facts.joined)
            return
        if part is not None:
            self.forget(facts.key)
        self.parts[facts.key] = Part(
            facts, Activation(facts.concurrency, self._most_held, self._room, self._chance)
        )
        self._keys[facts.namespace.encode(), facts.name.encode()] = facts.key
        self._groups.observe(facts.key, facts.namespace, facts.joined)
        if self.sharing is not None and facts.concurrency:
            self.sharing.revision(self.parts[facts.key])

    def forget(self, key: RevisionKey) -> None:
        """Deleted: what is held is refused, what is under way goes on."""
        part = self.parts.pop(key, None)
        if part is None:
            return
        self._keys.pop((part.namespace.encode(), part.name.encode()), None)
        self._groups.forget(key)
        if self.sharing is not None:
            self.sharing.forget(key)
        refusal = _unknown(part.name)
        for exchange in part.activation.dismiss():
            self._left(part, exchange, refusal.status)
            exchange.refuse(refusal.status, refusal.reason)

    def use(self, key: RevisionKey, pods: set[str], cluster: str, ready: int, mesh_host: bytes) -> None:
        """Where this revision's requests go from now on."""
        part = self.parts.get(key)
        if part is not None:
            part.mesh_host = mesh_host
            part.activation.use(pods, cluster, ready)
            if part.shard is not None and self.sharing is not None:
                self.sharing.changed(part)
            self.drain(part)

    def share(self, key: RevisionKey, share: Share | None, hosts: Iterable[str]) -> None:
        """Whom its traffic goes to; `share` None: not to this activator."""
        part = self.parts.get(key)
        if part is not None:
            if share is not None:
                part.activation.take_share(share)
            if self.sharing is not None:
                self.sharing.listed(key, hosts)
            self.drain(part)

    def drain(self, part: Part) -> None:
        """Held requests go where there are slots."""
        for exchange, tracker in part.activation.drain():
            self._go(exchange, part, tracker.addr)

    @property
    def held_bytes(self) -> int:
        return self._room.held_bytes

    # --- inside

    def _go(self, exchange: ActivatorExchange, part: Part, addr: str) -> None:
        secure = self.secure
        exchange.go(addr if secure is None else secure(part.facts.namespace, addr), InstanceID(addr))

    def _release(self, part: Part, addr: str) -> None:
        activation, shard = part.activation, part.shard
        if shard is None or self.sharing is None:
            following = activation.release(activation.trackers[addr])
            if following is not None:
                self._go(following, part, addr)
            return
        if activation.valid_until < NEVER:
            now = monotonic()
            if now >= activation.valid_until:
                self.sharing.lapsed(part, now)
        following = activation.release(activation.trackers[addr])
        if following is not None:
            self._go(following, part, addr)
        elif activation.returned or shard.scarce:
            self.sharing.freed(part)

    def _left(self, part: Part, exchange: ActivatorExchange, status: int) -> None:
        """`status`: what it was answered with, 0 = nothing."""
        if part.stats is not None:
            part.stats.leave(monotonic())
        if status:
            took = self._loop.time() - exchange.started
            part.durations.add(exchange.method, status, exchange.version, took)
        if self.tracer is not None and exchange.trace is not None:
            self.tracer.ended(exchange, exchange.trace, part.facts, status)
        if exchange.record is not None:
            exchange.record.ended(exchange, status, self._loop.time() - exchange.started)

    def _of_host(self, host: bytes) -> tuple[bytes, bytes] | None:
        """REVISION.NAMESPACE.svc.DOMAIN, perhaps with a port."""
        revision, _, rest = host.partition(b".")
        namespace, _, suffix = rest.partition(b".")
        return (namespace, revision) if suffix.partition(b":")[0] == self._suffix else None


def _unknown(name: str) -> Refusal:
    error = f'revision.serving.knative.dev "{name}" not found'
    return Refusal(404, f"Error getting active endpoint: {error}")
