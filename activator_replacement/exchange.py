"""One request, from its complete head to the last byte of its answer: the Exchange that Dispatch sees.

It owns the request's bytes until a response begins (so that it can be sent again when an instance breaks off
before that), and knows which of the calls in seam.py comes next. It never looks at a response: upstream.py does.
An instance that broke off may have begun to work on the request; model calls may be repeated, so that is
accepted: at most once without Dispatch (a kept connection that turned out to be closed), then as Dispatch says.
A marked stream (continuing.py) that breaks off is held like a request before its response, and goes on elsewhere.

Hot dialect, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from activator_replacement.continuing import ASKED, MOST_CONTINUATIONS, may_stream, resumes, resumption
from activator_replacement.refusals import event_stream_error
from activator_replacement.seam import CLIENT_GONE, OK, TIMEOUT, UPSTREAM_FAILED
from kserve_ext.core.ids import InstanceID, RevisionKey
from kserve_ext.wire.continuation import END, SEAM, MarkedStream, chunk
from kserve_ext.wire.http1 import CHUNKED, RequestHead, ResponseHead, header
from kserve_ext.wire.http1_body import ChunkWalker
from kserve_ext.wire.http1_forward import forward_request

if TYPE_CHECKING:
    from activator_replacement.http1 import ClientProtocol
    from activator_replacement.upstream import UpstreamProtocol

HELD: Final = 0
CONNECTING: Final = 1
SENT: Final = 2  # to the instance; no final response head yet
RESPONDING: Final = 3
PIPED: Final = 4  # after 101
DONE: Final = 5

COPIED: Final = 4096  # more of a body is written apart from its head: that costs less than a copy of it

_NO_REVISION: Final = RevisionKey("")
_NO_INSTANCE: Final = InstanceID("")


class HttpExchange:
    __slots__ = (
        "_body",
        "_body_bytes",
        "_fits",
        "_fresh",
        "_kept",
        "_left",
        "_limit_s",
        "_request_id",
        "_retried",
        "_walker",
        "_wanted",
        "addr",
        "attempts",
        "body_done",
        "client",
        "cold",
        "continued",
        "continues",
        "facts",
        "head",
        "held_bytes",
        "instance",
        "note",
        "outcome",
        "revision",
        "started",
        "state",
        "stream",
        "timeout_s",
        "upstream",
    )

    def __init__(self, client: ClientProtocol, facts: RequestHead, head: bytes, started: float) -> None:
        plane = client.plane
        self.client = client
        self.facts = facts
        self.head = head
        self.started = started
        self._request_id = facts.request_id
        self.revision = _NO_REVISION
        self.instance = _NO_INSTANCE
        self.timeout_s = plane.limits.timeout_s
        self.outcome = OK
        self.attempts = 0
        self.cold = False
        self.note: Any = None
        self.state = HELD
        self.upstream: UpstreamProtocol | None = None
        self.held_bytes = len(head)
        self.addr = ""
        self._fresh = False
        self._retried = False
        #: Dispatch sets it in submit: its stream may go on at another instance.
        self.continues = False
        self.continued = 0  # so often it did
        self.stream: MarkedStream | None = None  # its response, if that is marked
        self._kept = 0  # bytes of its body that are kept for this
        self._limit_s = 0.0  # how long it may be held, each time
        #: What came of the body, None once some of it can't be sent again.
        self._body: list[bytes] | None = None
        self._body_bytes = 0
        length = facts.length
        self._left = length
        self._wanted = 0  # bytes of the body that Dispatch waits for, 0 = it doesn't
        self.body_done = length == 0
        self._walker = ChunkWalker() if length == CHUNKED else None
        #: The whole body may be read while the request is held.
        self._fits = 0 <= length <= plane.limits.held_body_bytes
        if length:
            self._body = []

    # --- request

    def receive(self, data: bytes) -> bytes:
        """Takes body bytes; returns those that follow the body. Raises Malformed."""
        rest = b""
        if self._walker is not None:
            end = self._walker.feed(data)
            if end >= 0:
                self.body_done = True
                if end < len(data):
                    data, rest = data[:end], data[end:]
        else:
            left = self._left
            if len(data) > left:
                data, rest = data[:left], data[left:]
            self._left = left - len(data)
            self.body_done = self._left == 0
        self._body_bytes += len(data)
        if self._body is not None:
            if (
                self._kept
                or self._body_bytes <= self.client.plane.limits.held_body_bytes
                or self.state < SENT
            ):
                self._body.append(data)
            else:
                self._body = None
        if self.upstream is not None:
            self.upstream.write(data)
        elif self._wanted and (self.body_done or self._body_bytes >= self._wanted):
            self._wanted = 0
            self.client.plane.loop.call_soon(self._submit_again)
        return rest

    def submit(self, revision: RevisionKey) -> None:
        self.revision = revision
        self.held_bytes = len(self.head) + (self.facts.length if self._fits else self._body_bytes)
        self.client.plane.dispatch.submit(self)
        self._pause_if_held()

    def _submit_again(self) -> None:
        if self.state == HELD:
            self.submit(self.revision)

    def _pause_if_held(self) -> None:
        if self.state <= CONNECTING and not self.body_done and not self._fits and not self._wanted:
            self.client.pause_reading()

    # --- Dispatch's side of the seam

    @property
    def request_id(self) -> bytes:
        """The client's, or one that is made when somebody asks."""
        if not self._request_id:
            self._request_id = self.client.plane.next_id()
        return self._request_id

    def header(self, name: bytes) -> bytes | None:
        return header(self.head, name)

    def read(self, wanted: int) -> bytes | None:
        never = (
            self._walker is not None or self.facts.expect or (wanted > self.facts.length and not self._fits)
        )
        if self.body_done or self._body_bytes >= wanted or never:
            return b"".join(self._body or ())
        self._wanted = wanted
        return None

    def go(self, addr: str, instance: InstanceID) -> None:
        if self.state != HELD:
            raise RuntimeError(f"go() on {self.request_id!r}, which is not held (state {self.state})")
        self.addr = addr
        self.instance = instance
        self.attempts += 1
        upstream = self.client.plane.cache.take(addr)
        if upstream is None:
            self._open()
        else:
            self._fresh = False
            self._send(upstream)  # type: ignore[arg-type]

    def refuse(self, status: int, reason: str, retry_after_s: float = 0.0) -> None:
        if self.state == DONE:
            return
        self._close()
        self._answer(status, reason, retry_after_s)

    # --- sending

    def _open(self) -> None:
        self._fresh = True
        self.state = CONNECTING
        self.client.plane.cache.open(self.addr, self)

    def connected(self, upstream: object) -> bool:
        if self.state != CONNECTING:
            return False
        self._send(upstream)  # type: ignore[arg-type]
        return True

    def not_connected(self, reason: str) -> None:
        if self.state == CONNECTING:
            self._failed(reason, True)

    def _send(self, upstream: UpstreamProtocol) -> None:
        self.upstream = upstream
        upstream.exchange = self
        self.state = SENT
        client = self.client
        if self.continues and not self._kept:
            self._keep()
        head = self.forwarded()
        if self.stream is not None:
            upstream.transport.write(resumption(head, self._body or [], self.stream.record))
            if client.write_paused:
                upstream.pause_reading()
        elif not self._body:
            upstream.transport.write(head)
        elif self._body_bytes > COPIED:
            upstream.transport.write(head)
            for piece in self._body:
                upstream.transport.write(piece)
        else:
            upstream.transport.write(b"".join((head, *self._body)))
        if not self.body_done and not client.reading and not upstream.write_paused:
            client.resume_reading()
        client.plane.dispatch.sent(self)

    def forwarded(self) -> bytes:
        """The request's head as the instance gets it."""
        facts = self.facts
        more = b""
        if self._kept:
            more = ASKED if self.stream is None else resumes(facts)
        return forward_request(facts, self.client.hop, b"" if facts.request_id else self.request_id, more)

    def _keep(self) -> None:
        """Its body is kept for as long as its stream can be continued, if there is room."""
        facts = self.facts
        plane = self.client.plane
        length = facts.length
        if (
            may_stream(facts)
            and self._body is not None
            and length <= plane.limits.continued_body_bytes
            and plane.kept_bytes + length <= plane.limits.continued_bytes
        ):
            self._kept = length
            plane.kept_bytes += length
        else:
            self.continues = False

    def _let_go(self) -> None:
        if self._kept:
            self.client.plane.kept_bytes -= self._kept
            self._kept = 0
        self._body = None

    def marks(self, head: ResponseHead) -> bytes:
        """The header lines that are added to the response's."""
        lines = b"x-cold-start: true\r\n" if self.cold else b"x-cold-start: false\r\n"
        if head.cold or head.status == 101:
            lines = b""
        if not head.request_id:
            lines = b"x-request-id: " + self.request_id + b"\r\n" + lines
        return lines

    def repeatable(self, kept: bool) -> bool:
        """An instance may have begun to work on it: whether it may be sent again all the same.

        `kept`: it went on a kept connection, which was more likely closed before it came.
        """
        return True

    # --- what becomes of it

    def responding(self, begins: bytes = b"") -> bool:
        """A final response head was read: the request can't be sent again, unless its stream is marked (True).

        `begins`: how the record of a marked stream does.
        """
        self.state = RESPONDING
        if begins and self._kept:
            self.stream = MarkedStream(begins)
            self._limit_s = self.timeout_s
        else:
            self._let_go()
        self.client.plane.dispatch.first_byte(self)
        return self.stream is not None

    def full(self) -> bool:
        """The instance has as many requests as it takes at once, and has not begun this one.

        False: it can't be sent again, so that the answer is passed on.
        """
        whole = self._body is not None or self.facts.length == 0
        if self.state != SENT or not whole or not self.repeatable(False):
            return False
        upstream, self.upstream, self.state = self.upstream, None, HELD
        if not self.client.plane.dispatch.full(self):
            self.upstream, self.state = upstream, SENT
            return False
        self._pause_if_held()
        return True

    def completed(self) -> None:
        """The whole response was passed on."""
        self._close()
        plane = self.client.plane
        plane.counters.outcomes[OK] += 1
        plane.dispatch.finished(self, OK)
        self.client.exchange_done(self)

    def upstream_lost(self, upstream: UpstreamProtocol, reason: str, heard: bool) -> None:
        """The instance broke off or sent what is not HTTP; `upstream` is closed. `heard`: it had answered some."""
        self.upstream = None
        if self.state == SENT:
            again = not heard and (self._body is not None or self.facts.length == 0)
            if again and not self._fresh and not self._retried and self.repeatable(True):
                self._retried = True
                self.client.plane.counters.retried += 1
                self._open()
                self._pause_if_held()
            else:
                self._failed(reason, again and self.repeatable(False))
        elif self.state == PIPED:
            self.completed()
        elif self.stream is not None:
            self._break_off(self.stream, reason)
        else:
            self._end(UPSTREAM_FAILED)
            self.broken_off(upstream, reason)

    def _break_off(self, stream: MarkedStream, reason: str) -> None:
        """In the middle of a marked stream: another instance goes on with it, held until there is one."""
        plane = self.client.plane
        if stream.done:
            self.client.write(END)
            self.completed()
            return
        again = stream.open and self.body_done and self.continued < MOST_CONTINUATIONS
        if again:
            stream.break_off()
            self.continued += 1
            self.timeout_s = self._limit_s + plane.now() - self.started
        self._failed(reason, again)

    def goes_on(self) -> None:
        """Another instance has taken the stream up."""
        self.state = RESPONDING
        plane = self.client.plane
        plane.counters.continued += 1
        plane.dispatch.first_byte(self)
        self.client.write(chunk(SEAM))

    def broken_off(self, upstream: UpstreamProtocol, reason: str) -> None:
        """In mid-response: a stream of events says so in an event, all others end as abruptly as they did."""
        if upstream.ends_between_events:
            self.client.write(event_stream_error(reason))
            self.client.exchange_done(self)
        else:
            self.client.abort()

    def _failed(self, reason: str, retriable: bool) -> None:
        self.state = HELD
        plane = self.client.plane
        plane.counters.outcomes[UPSTREAM_FAILED] += 1
        self.outcome = UPSTREAM_FAILED
        if plane.dispatch.failed(self, reason, retriable):
            self._pause_if_held()
        else:
            self._close()
            self._answer(502, reason)

    def _answer(self, status: int, reason: str, retry_after_s: float = 0.0) -> None:
        """An error of our own; where a stream has begun, as its last event."""
        if self.stream is None:
            self.client.answer(self, status, reason, retry_after_s)
        else:
            self.client.plane.counters.not_continued += 1
            self.client.write(event_stream_error(reason))
            self.client.exchange_done(self)

    def client_gone(self) -> None:
        if self.state != DONE:
            upstream, stream = self.upstream, self.stream
            whole = stream.done if stream is not None else upstream is not None and upstream.said_done
            self._end(OK if whole else CLIENT_GONE)

    def timed_out(self) -> None:
        """Its deadline passed before a response began."""
        held = self.state == HELD
        self._end(TIMEOUT)
        where = "no instance was free" if held else f"instance {self.instance} did not answer"
        self._answer(504, f"{where} within {self.timeout_s:g} s")

    def stalled(self) -> None:
        """Its client does not send the body."""
        self._end(CLIENT_GONE)
        self.client.answer(self, 408, "the request's body did not arrive")

    def malformed(self, reason: str) -> None:
        """Its client sent a body that is none."""
        answered = self.state >= RESPONDING
        self._end(CLIENT_GONE)
        if answered:
            self.client.abort()
        else:
            self.client.answer(self, 400, reason)

    def _end(self, outcome: int) -> None:
        held = self.state == HELD
        self._close()
        self.outcome = outcome
        upstream = self.upstream
        if upstream is not None:
            self.upstream = None
            upstream.abandon()
        plane = self.client.plane
        if held:
            plane.dispatch.cancelled(self)
        else:
            plane.counters.outcomes[outcome] += 1
            plane.dispatch.finished(self, outcome)

    def _close(self) -> None:
        self.state = DONE
        self._let_go()
