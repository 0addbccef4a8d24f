"""One request that is a stream of an HTTP/2 connection, from its header block to the end of its answer.

The same seam to Dispatch, and the same rules, as exchange.py has for HTTP/1.1. Two streams are tied together here:
the client's, `down`, and the instance's, `up`; what one side sends is queued on the other within its window, and
opens the window again when it has left. A stream that the instance says it never looked at (GOAWAY, REFUSED_STREAM)
is sent again without asking Dispatch. A response that breaks off is reset, never ended.

Hot dialect, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from activator_replacement.exchange import CONNECTING, DONE, HELD, RESPONDING, SENT
from activator_replacement.http2.request import RequestHalf
from activator_replacement.refusals import error_event
from activator_replacement.seam import CLIENT_GONE, OK, TIMEOUT, UPSTREAM_FAILED
from kserve_ext.core.ids import InstanceID, RevisionKey
from kserve_ext.wire.http1 import Malformed
from kserve_ext.wire.http2.forward import forward_request, forward_response
from kserve_ext.wire.http2.frames import (
    CANCEL,
    DEFAULT_WINDOW,
    HTTP_1_1_REQUIRED,
    INTERNAL_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
)
from kserve_ext.wire.http2.headers import RequestBlock, ResponseBlock, check_trailers, scan_response
from kserve_ext.wire.http2.streams import Stream

if TYPE_CHECKING:
    from activator_replacement.http2.client import Http2Client
    from activator_replacement.http2.upstream import Http2Upstream

NEW: Final = -1  # its header block was read, and Dispatch has not heard of it
_UNPROCESSED: Final = 3  # so often it is sent again because nobody looked at it


class Http2Exchange(RequestHalf):
    __slots__ = (
        "_expected",
        "_fresh",
        "_heard",
        "_retries",
        "_tail",
        "_whole",
        "addr",
        "attempts",
        "cold",
        "continued",
        "continues",
        "held_bytes",
        "instance",
        "note",
        "outcome",
        "quiet_s",
        "revision",
        "started",
        "timeout_s",
        "waited",
        "wrote",
    )

    def __init__(
        self, client: Http2Client, down: Stream, facts: RequestBlock, end: bool, started: float
    ) -> None:
        self.client = client
        self.down = down
        self.facts = facts
        self.body_done = end
        self.started = started
        self.state = NEW
        self.up = None
        self.upstream = None
        self._request_id = facts.request_id
        self._body = []
        self._trailers = None
        self._received = self._sent = self._credited = self._wanted = 0
        self.revision = RevisionKey("")
        self.instance = InstanceID("")
        self.addr = ""
        self.held_bytes = 0
        self.timeout_s = client.plane.limits.timeout_s
        self.outcome = OK
        self.attempts = 0
        self.cold = False
        self.continues = False
        self.continued = 0
        self.note: Any = None
        self.quiet_s = 0.0  # since what waits for the client's window last moved
        self.waited = 0  # bytes that waited then
        self.wrote = False  # to the client, since whoever looks at it took it back
        self._fresh = False
        self._retries = 0
        self._expected = -1  # bytes of the response that are still to come, where it said
        self._heard = False  # something of the instance has reached the client
        self._whole = False  # all of the response is here
        self._tail: bytes | None = None  # the last bytes of an event stream

    def submit(self, revision: RevisionKey) -> None:
        self.revision = revision
        length = self.facts.length
        body = self._received if self.body_done else DEFAULT_WINDOW if length < 0 else length
        self.held_bytes = len(self.facts.block) + min(body, DEFAULT_WINDOW)
        self.state = HELD
        self.client.plane.dispatch.submit(self)

    def submit_again(self) -> None:
        if self.state == HELD:
            self.submit(self.revision)

    # --- Dispatch's side of the seam

    def go(self, addr: str, instance: InstanceID) -> None:
        if self.state != HELD:
            raise RuntimeError(f"go() on {self.request_id!r}, which is not held (state {self.state})")
        self.addr = addr
        self.instance = instance
        self.attempts += 1
        self._retries = 0
        self._try()

    def refuse(self, status: int, reason: str, retry_after_s: float = 0.0) -> None:
        if self.state == DONE:
            return
        self.state = DONE
        self.client.answer(self, status, reason, retry_after_s)

    # --- sending

    def _try(self) -> None:
        upstream = self.client.plane.http2_cache.take(self.addr)
        if upstream is not None:
            self._fresh = False
            self._send(upstream)
        else:
            self._open()

    def _open(self) -> None:
        self._fresh = True
        self.state = CONNECTING
        self.client.plane.http2_cache.open(self.addr, self)

    def connected(self, upstream: Http2Upstream) -> bool:
        if self.state != CONNECTING:
            return False
        self._send(upstream)
        return True

    def not_connected(self, reason: str) -> None:
        if self.state == CONNECTING:
            self._failed(reason, True)

    def _send(self, upstream: Http2Upstream) -> None:
        block = self.forwarded()
        connection = upstream.connection
        trailers = self._trailers
        if (len(block) <= connection.sure_bytes or connection.takes(block)) and (
            trailers is None or connection.takes(trailers)
        ):
            self.state = SENT
            self.send_to(upstream, block)
            self.client.plane.dispatch.sent(self)
            return
        self.state = CONNECTING
        if connection.introduced:
            self.client.plane.loop.call_soon(self._too_large)  # Dispatch expects no answer while it calls
        else:
            upstream.await_settings(self)

    def _too_large(self) -> None:
        if self.state == CONNECTING:
            self._end(OK)  # as if the instance had answered so
            self.client.answer(self, 431, "the header fields are more than the instance takes")

    # --- what another dialect exchanges

    def forwarded(self) -> bytes:
        """The request's header block as the instance gets it."""
        facts = self.facts
        return forward_request(facts, self.client.hop, b"" if facts.request_id else self.request_id)

    def marked(self, head: ResponseBlock) -> bytes:
        """The response's header block as the client gets it."""
        return forward_response(head, self.request_id, self.cold)

    def repeatable(self, kept: bool) -> bool:
        """As HttpExchange.repeatable."""
        return True

    # --- response

    def respond(self, block: bytes, end: bool) -> None:
        """A header block of the instance: a head, an informational one, or trailers."""
        try:
            if self.state == SENT:
                self._respond(block, end)
                return
            check_trailers(block, self.client.plane.limits.head_bytes)
            if not end or self._expected > 0:
                raise Malformed("a body that ends too early, or trailers that are not the end")
            connection = self.client.connection
            if len(block) > connection.sure_bytes and not connection.takes(block):
                raise Malformed("trailers of more than its client takes")
        except Malformed as malformed:
            self._broken(malformed.reason)
            return
        connection.send_trailers(self.down, block)
        self._response_read()

    def _respond(self, block: bytes, end: bool) -> None:
        client = self.client
        head = scan_response(block, client.plane.limits.head_bytes)
        if head.status < 200:
            if end:
                raise Malformed("an informational response that is the end")
            self._heard = True
            if client.connection.takes(block):
                client.connection.send_headers(self.down, block, False)
            return
        if self.facts.method == b"HEAD" or head.status in (204, 304):
            self._expected = 0
        else:
            self._expected = head.length
            if end and head.length > 0:
                raise Malformed("a body that ends too early")
        marked = self.marked(head)
        connection = client.connection
        if len(marked) > connection.sure_bytes and not connection.takes(marked):
            raise Malformed("a head of more than its client takes")
        self.state = RESPONDING
        self.settled()
        plane = client.plane
        plane.dispatch.first_byte(self)
        plane.counters.first_byte(head.status, plane.loop.time() - self.started)
        if head.event_stream:
            self._tail = b""
        self.wrote = True
        connection.send_headers(self.down, marked, end)
        if end:
            self._response_read()

    def pass_on(self, payload: bytes, end: bool) -> None:
        """Bytes of the response's body."""
        expected = self._expected
        if self.state != RESPONDING:
            self._broken("a body without a head")
            return
        if expected >= 0:
            expected = self._expected = expected - len(payload)
            if expected < 0 or (end and expected):
                self._broken("a body of another length than it said")
                return
        if self._tail is not None and payload:
            self._tail = payload[-4:] if len(payload) > 3 else (self._tail + payload)[-4:]
        sent = self.client.connection.send_data(self.down, payload, end)
        if sent and self.up is not None and self.upstream is not None:
            self.wrote = True
            self.upstream.connection.passed_on(self.up, sent)
        if end:
            self._response_read()

    def delivered(self, size: int) -> None:
        """So many bytes of the response have left for the client."""
        self.wrote = True
        if self.up is not None and self.upstream is not None:
            self.upstream.connection.passed_on(self.up, size)

    def _response_read(self) -> None:
        """The instance has said all; what it has not yet read of the request, it never will."""
        self._whole = True
        if self.up is not None and self.upstream is not None and self.up.open_out:
            self.upstream.connection.reset(self.up, CANCEL)
        if not self.down.open_out:
            self.completed()

    # --- what becomes of it

    def completed(self) -> None:
        """The whole response has left."""
        self.state = DONE
        self.up = None
        self.upstream = None
        plane = self.client.plane
        plane.counters.outcomes[OK] += 1
        plane.dispatch.finished(self, OK)
        self.client.exchange_done(self)

    def lost(self, reason: str, unprocessed: bool = False) -> None:
        """The instance's connection or stream is gone. `unprocessed`: it never looked at the request."""
        self.up = None
        self.upstream = None
        if self._whole:
            return
        reason = f"instance {self.instance} at {self.addr} {reason}"
        if self.state == SENT:
            again = self._body is not None and not self._heard
            if again and unprocessed and self._retries < _UNPROCESSED:
                self._again()
            elif again and not self._fresh and not self._retries and self.repeatable(True):
                self._again(fresh=True)
            else:
                self._failed(reason, again and (unprocessed or self.repeatable(False)))
        elif self.state == RESPONDING:
            self._end(UPSTREAM_FAILED)
            connection = self.client.connection
            if self._tail is not None and not self.down.queue and self._tail[-2:] in (b"", b"\n\n"):
                connection.send_data(self.down, error_event(f"{reason} in the middle of its response"), True)
                self.client.exchange_done(self)
            else:
                self.client.break_off(self, INTERNAL_ERROR)

    def reset_by_instance(self, code: int) -> None:
        if self.state == RESPONDING and not self._whole:
            self.up = None
            self._end(UPSTREAM_FAILED)
            self.client.break_off(self, code or INTERNAL_ERROR)
            return
        if self.state == SENT and code == CANCEL:  # as gRPC does at a deadline: nothing to try again
            self.up = None
            self._end(UPSTREAM_FAILED)
            self.client.break_off(self, CANCEL)
            return
        what = "asks for HTTP/1.1" if code == HTTP_1_1_REQUIRED else f"reset the request (error {code})"
        if self.state == SENT and code != REFUSED_STREAM:
            self._fresh = True  # it was heard of: no second try without Dispatch
        self.lost(what, code == REFUSED_STREAM)

    def _again(self, fresh: bool = False) -> None:
        self._retries += 1
        self.client.plane.counters.retried += 1
        self.state = CONNECTING
        if fresh:
            self._open()
        else:
            self._try()

    def _broken(self, reason: str) -> None:
        """What the instance sends is not HTTP."""
        if self.up is not None and self.upstream is not None:
            self.upstream.connection.reset(self.up, PROTOCOL_ERROR)
        self._heard = True
        self._tail = None
        self.lost(f"answered what is not HTTP: {reason}")

    def _failed(self, reason: str, retriable: bool) -> None:
        self.state = HELD
        plane = self.client.plane
        plane.counters.outcomes[UPSTREAM_FAILED] += 1
        self.outcome = UPSTREAM_FAILED
        if not plane.dispatch.failed(self, reason, retriable):
            self.state = DONE
            self.client.answer(self, 502, reason)

    def client_gone(self) -> None:
        if self.state != DONE:
            self._end(CLIENT_GONE)

    def timed_out(self) -> None:
        """Its deadline passed before a response began."""
        held = self.state == HELD
        self._end(TIMEOUT)
        where = "no instance was free" if held else f"instance {self.instance} did not answer"
        self.client.answer(self, 504, f"{where} within {self.timeout_s:g} s")

    def malformed(self) -> None:
        """Its client sent a body or trailers that are none. Raises Violation when it does so all the time."""
        self.client_gone()
        self.client.break_off(self, PROTOCOL_ERROR)
        self.client.connection.charge(self.down)

    def stalled(self) -> None:
        """Its client does not read."""
        self.client_gone()
        self.client.break_off(self, CANCEL)

    def _end(self, outcome: int) -> None:
        state = self.state
        self.state = DONE
        self.outcome = outcome
        if self.up is not None and self.upstream is not None:
            self.upstream.connection.reset(self.up, CANCEL)
            self.upstream.connection.dropped(self.up)
        self.up = None
        self.upstream = None
        plane = self.client.plane
        if state == HELD:
            plane.dispatch.cancelled(self)
        elif state != NEW:
            plane.counters.outcomes[outcome] += 1
            plane.dispatch.finished(self, outcome)
