"""HTTP/1.1 heads: what a proxy must know of one, and which of its lines go no further than this hop.

A head is its lines, and most lines come again and again: what a grammar makes of one is kept (http1_lines.py), so a
head is one split and a look-up a line; http1_forward.py joins the lines that go on. Whatever two readers could frame
differently is refused (two lengths, length and chunked, folding, bare LF, space before a colon, two Hosts ...):
stricter than RFC 9112 where it gives a choice, never laxer than llhttp or h11 (tests compare). Body framing is
http1_body.py.

Hot dialect: slots, int constants, places of lines instead of objects, an exception only for bytes that are refused.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

from kserve_ext.wire.http1_lines import (
    CODING,
    COLD,
    CONNECTION,
    CONTINUATION,
    ENCODED,
    EXPECT,
    FORWARDED,
    FORWARDED_FOR,
    FORWARDED_PROTO,
    FULL,
    HOST,
    HOST_PORT,
    LENGTH,
    NAMESPACE,
    REQUEST_ID,
    REQUEST_ID_TEXT,
    REQUEST_NAMES,
    RESPONSE_NAMES,
    REVISION,
    TYPE,
    UPGRADE,
    Fields,
    Malformed,
    RequestLines,
    StatusLines,
)

__all__ = [
    "CHUNKED",
    "EMBEDDED",
    "HOST_PORT",
    "REQUEST_ID_TEXT",
    "UNTIL_CLOSE",
    "Grammar",
    "Malformed",
    "RequestHead",
    "ResponseHead",
    "header",
    "scan_request",
    "scan_response",
]

CHUNKED: Final = -1  # lengths below zero: the body ends otherwise
UNTIL_CLOSE: Final = -2

_ANY_FIELD = re.compile(rb"\r\n([^:\r]+):[\t ]*([^\r]*)")
#: Fields that say how a message is framed or where it goes can't be declared hop-by-hop by the peer.
_NEVER_HOP: Final = frozenset((b"host", b"content-length", b"transfer-encoding"))
_SAID: Final = frozenset(
    (b"", b"close", b"keep-alive", b"upgrade")
)  # options of Connection that name no field


class RequestHead:
    """The facts of one request head. A place is that of one of its lines, 0 = there is none."""

    __slots__ = (
        "cuts",
        "expect",
        "for_at",
        "forwarded_at",
        "h2c",
        "host",
        "host_at",
        "keep_alive",
        "length",
        "lines",
        "method",
        "minor",
        "namespace",
        "proto_at",
        "request_id",
        "revision",
        "size",
        "upgrade",
    )
    #: Of two revision headers the first counts; else they are refused.
    first_counts: ClassVar[bool] = False

    def __init__(self, method: bytes, minor: int, size: int, lines: list[bytes]) -> None:
        self.method = method
        self.minor = minor
        self.size = size
        self.lines = lines  # the first one included
        self.cuts: list[int] = []  # places of lines that are not passed on, in order
        self.host = b""
        self.host_at = 0
        self.namespace: bytes | None = None
        self.revision: bytes | None = None
        self.request_id = b""
        self.length = 0
        self.keep_alive = minor == 1
        self.expect = False
        self.upgrade = False
        self.h2c = False  # asks to go on in HTTP/2
        self.for_at = 0  # the last X-Forwarded-For: several are one list
        self.forwarded_at = 0  # the last Forwarded
        self.proto_at = 0

    def other(self, kind: int, value: bytes, at: int) -> None:
        """A line that the grammar looks for and scan_request has no use for."""
        self.cuts.append(at)

    def without(self, names: set[bytes]) -> None:
        """Connection names these: they are not passed on."""
        if b"x-forwarded-for" in names:
            self.for_at = 0
        if b"x-forwarded-proto" in names:
            self.proto_at = 0
        if b"forwarded" in names:
            self.forwarded_at = 0
        if b"x-request-id" in names:
            self.request_id = b""

    def takes_upgrade(self, protocol: bytes) -> bool:
        """Whether the client and the instance may switch to it; `protocol` in lower case."""
        self.h2c = protocol == b"h2c"
        return protocol == b"websocket"


class Grammar:
    """Which request lines are taken, which fields are looked at, and what a head is made of."""

    __slots__ = ("fields", "first_lines")

    def __init__(self, first_lines: RequestLines, fields: Fields) -> None:
        self.first_lines = first_lines
        self.fields = fields

    def head(self, method: bytes, minor: int, size: int, lines: list[bytes]) -> RequestHead:
        return RequestHead(method, minor, size, lines)


EMBEDDED: Final = Grammar(
    RequestLines(),
    Fields(
        {
            **REQUEST_NAMES,
            b"forwarded": FORWARDED,
            b"x-forwarded-proto": FORWARDED_PROTO,
            b"x-request-id": REQUEST_ID,
        },
        400,
    ),
)
_STATUS_LINES: Final = StatusLines()
_RESPONSE_FIELDS: Final = Fields(RESPONSE_NAMES, 502)


class ResponseHead:
    """The facts of one response head."""

    __slots__ = (
        "cold",
        "continuation",
        "cuts",
        "event_stream",
        "full",
        "keep_alive",
        "length",
        "lines",
        "minor",
        "request_id",
        "size",
        "status",
    )

    def __init__(self, status: int, minor: int, size: int, lines: list[bytes]) -> None:
        self.status = status
        self.minor = minor
        self.size = size
        self.lines = lines
        self.cuts: list[int] = []
        self.length = UNTIL_CLOSE
        self.keep_alive = minor == 1
        self.event_stream = False  # text/event-stream without a content coding
        self.request_id = False
        self.cold = False
        self.full = False  # its instance has as many requests as it takes at once, and has begun nothing
        self.continuation = b""  # how the record of its stream begins, if that is marked (continuation.py)


def scan_request(data: bytes, size: int, grammar: Grammar = EMBEDDED) -> RequestHead:
    """The head in data[:size], where `size` is just after the first empty line. Raises Malformed."""
    lines = data[: size - 4].split(b"\r\n")
    method, minor = grammar.first_lines[lines[0]]
    head = grammar.head(method, minor, size, lines)
    cuts = head.cuts
    hosts = lengths = upgrade_at = 0
    connection = upgrade = None
    for at, (kind, value) in enumerate(map(grammar.fields.__getitem__, lines[1:]), 1):
        if not kind:
            continue
        if kind == HOST:
            hosts += 1
            head.host = value
            head.host_at = at
        elif kind == NAMESPACE:
            if head.namespace is None:
                head.namespace = value
            elif not head.first_counts:
                raise Malformed("Knative-Serving-Namespace: given twice")
            cuts.append(at)
        elif kind == REVISION:
            if head.revision is None:
                head.revision = value
            elif not head.first_counts:
                raise Malformed("Knative-Serving-Revision: given twice")
            cuts.append(at)
        elif kind == LENGTH:
            lengths += 1
            head.length = int(value)
        elif kind == FORWARDED_FOR:
            head.for_at = at
        elif kind == FORWARDED:
            head.forwarded_at = at
        elif kind == FORWARDED_PROTO:
            head.proto_at = at
        elif kind == REQUEST_ID:
            if value and not head.request_id:
                head.request_id = value
            else:
                cuts.append(at)
        elif kind == CONNECTION:
            connection = value if connection is None else connection + b"," + value
            cuts.append(at)
        elif kind == CODING:
            lengths += 1
            if not minor:
                raise Malformed("Transfer-Encoding: not in HTTP/1.0")
            head.length = CHUNKED
        elif kind == EXPECT:
            head.expect = minor == 1
            if not minor:
                cuts.append(at)
        elif kind == UPGRADE:
            upgrade = value if upgrade is None else upgrade + b"," + value
            upgrade_at = at
            cuts.append(at)
        else:
            head.other(kind, value, at)
    if hosts != 1 and (hosts or minor):
        raise Malformed("a request has exactly one Host header")
    if lengths > 1:
        raise Malformed("Content-Length and Transfer-Encoding: one of them, once")
    if connection is not None and not (connection == b"keep-alive" and head.keep_alive):
        _apply_connection(head, connection, upgrade, upgrade_at)
    if not head.length:
        head.expect = False
    return head


def _apply_connection(head: RequestHead, connection: bytes, upgrade: bytes | None, upgrade_at: int) -> None:
    names = _options(connection)
    if b"close" in names:
        head.keep_alive = False
    elif b"keep-alive" in names:
        head.keep_alive = True
    if (
        b"upgrade" in names
        and upgrade is not None
        and not head.length
        and head.minor
        and head.takes_upgrade(upgrade.strip(b" \t").lower())
    ):
        head.upgrade = True
        head.cuts.remove(upgrade_at)
    names -= _SAID
    if names:
        _cut_named(head.lines, head.cuts, names)
        head.without(names)


def scan_response(data: bytes, size: int, to_head: bool) -> ResponseHead:
    """As scan_request; `to_head`: it answers a HEAD request."""
    lines = data[: size - 4].split(b"\r\n")
    status, minor = _STATUS_LINES[lines[0]]
    head = ResponseHead(status, minor, size, lines)
    cuts = head.cuts
    lengths = length = 0
    connection = None
    coded = events = False
    for at, (kind, value) in enumerate(map(_RESPONSE_FIELDS.__getitem__, lines[1:]), 1):
        if not kind:
            continue
        if kind == LENGTH:
            lengths += 1
            length = int(value)
        elif kind == CONNECTION:
            connection = value if connection is None else connection + b"," + value
            cuts.append(at)
        elif kind == CODING:
            lengths += 1
            length = CHUNKED
            if not minor:
                raise Malformed("Transfer-Encoding: not in HTTP/1.0", 502)
        elif kind == REQUEST_ID:
            head.request_id = True
        elif kind == COLD:
            head.cold = True
        elif kind == CONTINUATION:
            head.continuation = value
            cuts.append(at)
        elif kind == FULL:
            head.full = status == 503
            cuts.append(at)
        elif kind == TYPE:
            events = value != b""
        elif kind == ENCODED:
            coded = True
        elif kind != UPGRADE or status != 101:
            cuts.append(at)
    if lengths > 1:
        raise Malformed("Content-Length and Transfer-Encoding: one of them, once", 502)
    if status < 200 or status == 204:
        if length:
            raise Malformed(f"a {status} response has no body", 502)
        head.length = 0
    elif to_head or status == 304:
        head.length = 0
    elif lengths:
        head.length = length
    head.event_stream = events and not coded
    if connection is not None and not (connection == b"keep-alive" and head.keep_alive):
        names = _options(connection)
        if b"close" in names:
            head.keep_alive = False
        elif b"keep-alive" in names:
            head.keep_alive = True
        names -= _SAID
        if names:
            _cut_named(lines, cuts, names)
            head.request_id &= b"x-request-id" not in names
            head.cold &= b"x-cold-start" not in names
    if head.length == UNTIL_CLOSE:
        head.keep_alive = False
    return head


def header(head: bytes, name: bytes) -> bytes | None:
    """First value of a header in a checked head, `name` in lower case. Walks the whole head: not for hot paths."""
    for field in _ANY_FIELD.finditer(head):
        if field[1].lower() == name:
            return field[2].rstrip(b" \t")
    return None


def _options(connection: bytes) -> set[bytes]:
    return {token.strip(b" \t").lower() for token in connection.split(b",")}


def _cut_named(lines: list[bytes], cuts: list[int], names: set[bytes]) -> None:
    """Leaves out the headers that Connection names, as RFC 9110 7.6.1 wants."""
    if names & _NEVER_HOP:
        raise Malformed("Connection: must not name Host, Content-Length or Transfer-Encoding")
    named = {at for at in range(1, len(lines)) if lines[at].partition(b":")[0].lower() in names}
    cuts[:] = sorted(named.union(cuts))
