"""The request's half of an exchange over HTTP/2: what came of its body, and how it goes to an instance.

Its header block and first bytes are kept as long as it may have to be sent again; what an instance has no window for
waits in the queue of `up`. The client may send as many bytes again as have left for an instance, each counted once,
however often they are sent.

Hot dialect, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from activator_replacement.exchange import SENT
from kserve_ext.wire.http1 import Malformed
from kserve_ext.wire.http2.fields import fields
from kserve_ext.wire.http2.frames import DEFAULT_WINDOW
from kserve_ext.wire.http2.headers import RequestBlock, check_trailers
from kserve_ext.wire.http2.streams import Stream

if TYPE_CHECKING:
    from activator_replacement.http2.client import Http2Client
    from activator_replacement.http2.upstream import Http2Upstream

_JOINED: Final = 16_384  # pieces of a kept body are joined up to this


class RequestHalf(ABC):
    """What exchange.py builds on, and makes."""

    __slots__ = (
        "_body",
        "_credited",
        "_received",
        "_request_id",
        "_sent",
        "_trailers",
        "_wanted",
        "body_done",
        "client",
        "down",
        "facts",
        "state",
        "up",
        "upstream",
    )

    client: Http2Client
    down: Stream
    facts: RequestBlock
    state: int
    up: Stream | None  # these two are set and taken back together
    upstream: Http2Upstream | None
    body_done: bool
    _request_id: bytes  # b"": the client sent none, and nobody has asked yet
    #: What came of the body, None once some of it can't be sent again.
    _body: list[bytes] | None
    _trailers: bytes | None
    _received: int
    _sent: int  # of it, to the instance that has it now
    _credited: int  # of it, to any instance
    _wanted: int  # bytes of the body that Dispatch waits for, 0 = it doesn't

    @property
    def request_id(self) -> bytes:
        found = self._request_id
        if not found:
            found = self._request_id = self.client.plane.next_id()
        return found

    @property
    def head(self) -> bytes:
        """Empty once it can't be sent again, or still there because it takes no memory of its own."""
        return self.facts.block

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
        elif self._wanted and (end or received >= self._wanted):
            self._wanted = 0
            self.client.plane.loop.call_soon(self.submit_again)

    def read(self, wanted: int) -> bytes | None:
        """See seam.py."""
        length = self.facts.length
        never = length < 0 or (wanted > DEFAULT_WINDOW and length > DEFAULT_WINDOW)
        if self.body_done or self._received >= wanted or never:
            return b"".join(self._body or ())
        self._wanted = wanted
        return None

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
        if self._wanted:
            self._wanted = 0
            self.client.plane.loop.call_soon(self.submit_again)
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
        facts = self.facts
        if not facts.shared:
            facts.forget()

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
    def submit_again(self) -> None:
        """What Dispatch wanted to read is here."""

    @abstractmethod
    def malformed(self) -> None:
        """Its client sent a body or trailers that are none."""
