"""The request's half of an exchange over HTTP/2: what came of its body, and how it goes to an instance.

Its header block and first bytes are kept as long as it may have to be sent again; what an instance has no window for
waits in the queue of `up`. The client may send as many bytes again as have left for an instance, each counted once,
however often they are sent.

Hot dialect, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final

from activator_replacement.exchange import SENT
from activator_replacement.seam import OK
from kserve_ext.core.ids import InstanceID, RevisionKey
from kserve_ext.wire.http1 import Malformed
from kserve_ext.wire.http2.fields import fields
from kserve_ext.wire.http2.headers import RequestBlock, check_trailers
from kserve_ext.wire.http2.streams import Stream

if TYPE_CHECKING:
    from activator_replacement.http2.client import Http2Client
    from activator_replacement.http2.upstream import Http2Upstream

NEW: Final = -1  # its header block was read, and Dispatch has not heard of it
_JOINED: Final = 16_384  # pieces of a kept body are joined up to this


class RequestHalf(ABC):
    __slots__ = (
        "_body",
        "_credited",
        "_expected",
        "_fresh",
        "_heard",
        "_received",
        "_retries",
        "_sent",
        "_tail",
        "_trailers",
        "_whole",
        "addr",
        "attempts",
        "body_done",
        "client",
        "cold",
        "down",
        "facts",
        "head",
        "held_bytes",
        "instance",
        "note",
        "outcome",
        "quiet_s",
        "request_id",
        "revision",
        "started",
        "state",
        "timeout_s",
        "up",
        "upstream",
        "waited",
        "wrote",
    )

    def __init__(
        self, client: Http2Client, down: Stream, facts: RequestBlock, end: bool, started: float
    ) -> None:
        plane = client.plane
        self.client = client
        self.down = down
        self.facts = facts
        self.head = facts.block
        self.started = started
        self.request_id = facts.request_id or plane.next_id()
        self.revision = RevisionKey("")
        self.instance = InstanceID("")
        self.timeout_s = plane.limits.timeout_s
        self.outcome = OK
        self.attempts = 0
        self.cold = False
        self.note: Any = None
        self.state = NEW
        self.up: Stream | None = None
        self.upstream: Http2Upstream | None = None
        self.held_bytes = len(facts.block)
        self.body_done = end
        self.addr = ""
        self.quiet_s = 0.0  # since what waits for the client's window last moved
        self.waited = 0  # bytes that waited then
        self.wrote = False  # to the client, since whoever looks at it took it back
        self._fresh = False
        self._retries = 0
        #: What came of the body, None once some of it can't be sent again.
        self._body: list[bytes] | None = []
        self._trailers: bytes | None = None
        self._received = 0
        self._sent = 0  # of it, to the instance that has it now
        self._credited = 0  # of it, to any instance
        self._expected = -1  # bytes of the response that are still to come, where it said
        self._heard = False  # something of the instance has reached the client
        self._whole = False  # all of the response is here
        self._tail: bytes | None = None  # the last bytes of an event stream

    def receive(self, payload: bytes, end: bool) -> None:
        """Bytes of the body."""
        size = len(payload)
        received = self._received = self._received + size
        declared = self.facts.length
        if declared >= 0 and (received > declared or (end and received != declared)):
            self.malformed()
            return
        self.body_done = end
        body = self._body
        if body is not None and size:
            if received > self.client.plane.limits.held_body_bytes and self.state >= SENT:
                self.settled()
            elif body and size + len(body[-1]) <= _JOINED:
                body[-1] += payload
            else:
                body.append(payload)
        if self.up is not None and self.upstream is not None:
            sent = self.upstream.connection.send_data(self.up, payload, end)
            if sent:
                self.went(sent)

    def receive_trailers(self, block: bytes) -> None:
        """The end of the body."""
        try:
            check_trailers(block, self.client.plane.limits.head_bytes)
        except Malformed:
            self.malformed()
            return
        if self.facts.length not in (-1, self._received):
            self.malformed()
            return
        if self.client.crowded(len(block)):
            self.malformed()
            return
        self.body_done = True
        self._trailers = block
        if self.up is not None and self.upstream is not None:
            if self.upstream.connection.takes(block):
                self.upstream.connection.send_trailers(self.up, block)
            else:
                self.malformed()

    @property
    def kept_bytes(self) -> int:
        """Of its header block and trailers."""
        return self.facts.kept_bytes + len(self._trailers or b"")

    def settled(self) -> None:
        """It is not sent again."""
        self._body = None
        self._trailers = None
        self.head = b""
        self.facts.forget()

    def went(self, size: int) -> None:
        """So many bytes of the body have left for the instance: the client may send as many again."""
        self._sent += size
        fresh = self._sent - self._credited
        if fresh > 0:  # and not a repetition
            self._credited = self._sent
            self.client.connection.passed_on(self.down, fresh)

    def header(self, name: bytes) -> bytes | None:
        if name == b"host":
            return self.facts.authority
        for field in fields(self.facts.block):
            if field.name == name:
                return field.value
        return None

    def send_to(self, upstream: Http2Upstream, block: bytes) -> None:
        """All that there is of it, `block` in the place of its header block."""
        self.upstream = upstream
        connection = upstream.connection
        body = self._body or ()
        trailers = self._trailers
        done = self.body_done and trailers is None
        self._sent = 0
        up = self.up = connection.begin(self, block, done and not body)
        last = len(body) - 1
        sent = 0
        for i, payload in enumerate(body):
            sent += connection.send_data(up, payload, done and i == last)
        if trailers is not None:
            connection.send_trailers(up, trailers)
        if sent:
            self.went(sent)

    @abstractmethod
    def malformed(self) -> None:
        """Its client sent a body or trailers that are none."""
