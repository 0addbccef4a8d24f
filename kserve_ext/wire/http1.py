"""HTTP/1.1 heads: what a proxy must know of one, and which of its bytes go no further than this hop.

A head is scanned in one pass and never becomes a dict: two regular expressions check the whole grammar and find
the few headers that matter; http1_forward.py splices. Whatever two readers could frame differently is refused
(two lengths, length and chunked, folding, bare LF, space before a colon, two Hosts ...): stricter than RFC 9112
where it gives a choice, never laxer than llhttp or h11 (tests compare). Body framing is http1_body.py.

Hot dialect: slots, int constants, positions instead of objects, an exception only for bytes that are refused.
"""

from __future__ import annotations

import re
from typing import Final

CHUNKED: Final = -1  # lengths below zero: the body ends otherwise
UNTIL_CLOSE: Final = -2

CUT: Final = 0  # edit kinds: leave these bytes out
APPEND_FOR: Final = 1  # add the client to X-Forwarded-For here
APPEND_FORWARDED: Final = 2  # add the client to Forwarded here
REHOST: Final = 3  # the Host line, where a grammar wants it exchanged

TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
FIELDS: Final = rb"(?:" + TOKEN + rb"++:[\t -~\x80-\xff]*+\r\n)*+"
_REQUEST = re.compile(
    rb"(GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|TRACE) (/[!-~]*+|\*) HTTP/1\.([01])\r\n" + FIELDS
)
_RESPONSE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t -~\x80-\xff]*+)?\r\n" + FIELDS)
#: Alternatives start with a class of both cases: the engine then skips most of them by one look.
_REQUEST_FIELD = re.compile(
    rb"\r\n([Cc](?i:onnection|ontent-length)|[Hh](?i:ost|ttp2-settings)|[Tt](?i:ransfer-encoding|e)"
    rb"|[Xx](?i:-request-id|-forwarded-for|-forwarded-proto)|[Ff](?i:orwarded)|[Ee](?i:xpect)|[Uu](?i:pgrade)"
    rb"|[Kk](?i:eep-alive|-proxy-request|native-serving-namespace|native-serving-revision)"
    rb"|[Pp](?i:roxy-connection|roxy-authorization)):[\t ]*([^\r]*)"
)
_RESPONSE_FIELD = re.compile(
    rb"\r\n([Cc](?i:onnection|ontent-length|ontent-type|ontent-encoding)|[Tt](?i:ransfer-encoding)|[Uu](?i:pgrade)"
    rb"|[Xx](?i:-request-id|-cold-start)|[Kk](?i:eep-alive)|[Pp](?i:roxy-connection)):[\t ]*([^\r]*)"
)
_ANY_FIELD = re.compile(rb"\r\n([^:\r]+):[\t ]*([^\r]*)")
HOST_PORT = re.compile(rb"[0-9A-Za-z.\-_]*(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?")
REQUEST_ID_TEXT = re.compile(rb"[!-~]{1,128}")
#: Fields that say how a message is framed or where it goes can't be declared hop-by-hop by the peer.
_NEVER_HOP = frozenset((b"host", b"content-length", b"transfer-encoding"))


class Malformed(Exception):
    """The peer's bytes are refused; `reason` says what is wrong with them, `status` what a request gets."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class RequestHead:
    """The facts of one request head; positions refer to the bytes it was scanned from."""

    __slots__ = (
        "edits",
        "expect",
        "forwarded",
        "forwarded_for",
        "forwarded_proto",
        "h2c",
        "host",
        "keep_alive",
        "length",
        "method",
        "minor",
        "namespace",
        "request_id",
        "revision",
        "size",
        "upgrade",
    )

    def __init__(self, method: bytes, minor: int, size: int) -> None:
        self.method = method
        self.minor = minor
        self.size = size
        self.host = b""
        self.namespace: bytes | None = None
        self.revision: bytes | None = None
        self.request_id = b""
        self.length = 0
        self.keep_alive = minor == 1
        self.expect = False
        self.upgrade = False
        self.h2c = False  # asks to go on in HTTP/2
        self.forwarded = False
        self.forwarded_for = False
        self.forwarded_proto = False
        self.edits: list[tuple[int, int, int]] = []  # (start, end, kind), in order of start

    def once(self, name: bytes, before: bytes | None, value: bytes) -> bytes:
        """The value of a field of ours that came when it had `before`, None = not yet."""
        if before is not None:
            raise Malformed(f"{name.decode()}: given twice")
        return value.rstrip(b" \t")

    def other(self, name: bytes, value: bytes, start: int, end: int) -> None:
        """A field that the grammar looks for and scan_request has no use for."""
        self.edits.append((start, end, CUT))

    def without(self, names: set[bytes]) -> None:
        """Connection names these: they are not passed on."""
        self.forwarded_for &= b"x-forwarded-for" not in names
        self.forwarded_proto &= b"x-forwarded-proto" not in names
        self.forwarded &= b"forwarded" not in names
        if b"x-request-id" in names:
            self.request_id = b""

    def takes_upgrade(self, protocol: bytes) -> bool:
        """Whether the client and the instance may switch to it; `protocol` in lower case."""
        self.h2c = protocol == b"h2c"
        return protocol == b"websocket"


class Grammar:
    """Which request lines are taken, which fields are looked at, and what a head is made of."""

    __slots__ = ("fields", "line", "make", "rehost")

    def __init__(
        self,
        line: re.Pattern[bytes],
        fields: re.Pattern[bytes],
        make: type[RequestHead],
        rehost: bool = False,
    ) -> None:
        self.line = line  # groups: method, target, minor version; the fields after it
        self.fields = fields
        self.make = make
        self.rehost = rehost  # the Host line is an edit


EMBEDDED: Final = Grammar(_REQUEST, _REQUEST_FIELD, RequestHead)


class ResponseHead:
    """The facts of one response head."""

    __slots__ = (
        "cold",
        "edits",
        "event_stream",
        "keep_alive",
        "length",
        "minor",
        "request_id",
        "size",
        "status",
    )

    def __init__(self, status: int, minor: int, size: int) -> None:
        self.status = status
        self.minor = minor
        self.size = size
        self.length = UNTIL_CLOSE
        self.keep_alive = minor == 1
        self.event_stream = False  # text/event-stream without a content coding
        self.request_id = False
        self.cold = False
        self.edits: list[tuple[int, int, int]] = []


def scan_request(data: bytes, size: int, grammar: Grammar = EMBEDDED) -> RequestHead:
    """The head in data[:size], where `size` is just after the first empty line. Raises Malformed."""
    match = grammar.line.fullmatch(data, 0, size - 2)
    if match is None:
        raise Malformed(_what_is_wrong(data, size))
    head = grammar.make(match[1], 1 if match[3] == b"1" else 0, size)
    hosts = lengths = codings = 0
    connection = upgrade = None
    edits = head.edits
    for field in grammar.fields.finditer(data, 0, size - 2):
        name, value = field.groups()
        name = name.lower()
        if name == b"host":
            hosts += 1
            head.host = value.rstrip(b" \t")
            if grammar.rehost:
                edits.append((field.start(), field.end(), REHOST))
        elif name == b"content-length":
            lengths += 1
            head.length = _length(value)
        elif name == b"knative-serving-namespace":
            head.namespace = head.once(name, head.namespace, value)
            edits.append((field.start(), field.end(), CUT))
        elif name == b"knative-serving-revision":
            head.revision = head.once(name, head.revision, value)
            edits.append((field.start(), field.end(), CUT))
        elif name == b"connection":
            connection = value if connection is None else connection + b"," + value
            edits.append((field.start(), field.end(), CUT))
        elif name == b"transfer-encoding":
            codings += 1
            _check_coding(value)
        elif name == b"x-request-id":
            value = value.rstrip(b" \t")
            if not head.request_id and REQUEST_ID_TEXT.fullmatch(value):
                head.request_id = value
            else:
                edits.append((field.start(), field.end(), CUT))
        elif name == b"x-forwarded-for":
            head.forwarded_for = True
            _append_last(edits, field.end(), APPEND_FOR)
        elif name == b"forwarded":
            head.forwarded = True
            _append_last(edits, field.end(), APPEND_FORWARDED)
        elif name == b"x-forwarded-proto":
            head.forwarded_proto = True
        elif name == b"expect":
            if value.rstrip(b" \t").lower() != b"100-continue":
                raise Malformed("Expect: only 100-continue is known")
            head.expect = head.minor == 1
            if head.minor == 0:
                edits.append((field.start(), field.end(), CUT))
        elif name == b"upgrade":
            upgrade = value if upgrade is None else upgrade + b"," + value
            edits.append((field.start(), field.end(), CUT))
        else:
            head.other(name, value, field.start(), field.end())
    if hosts != 1 and (hosts > 1 or head.minor == 1):
        raise Malformed("a request has exactly one Host header")
    if HOST_PORT.fullmatch(head.host) is None:
        raise Malformed("Host: not a host name or address with an optional port")
    if lengths or codings:
        if lengths + codings > 1:
            raise Malformed("Content-Length and Transfer-Encoding: one of them, once")
        if codings:
            if head.minor == 0:
                raise Malformed("Transfer-Encoding: not in HTTP/1.0")
            head.length = CHUNKED
    if connection is not None and not (connection == b"keep-alive" and head.keep_alive):
        _apply_connection(data, head, connection, upgrade)
    if head.length == 0:
        head.expect = False
    return head


def _apply_connection(data: bytes, head: RequestHead, connection: bytes, upgrade: bytes | None) -> None:
    names = {token.strip(b" \t").lower() for token in connection.split(b",")}
    names.discard(b"")
    if b"close" in names:
        head.keep_alive = False
    elif b"keep-alive" in names:
        head.keep_alive = True
    if (
        b"upgrade" in names
        and upgrade is not None
        and head.length == 0
        and head.minor == 1
        and head.takes_upgrade(upgrade.strip(b" \t").lower())
    ):
        head.upgrade = True
    names -= {b"close", b"keep-alive", b"upgrade"}
    if names:
        _cut_named(data, head.size, names, head.edits)
        head.without(names)


def scan_response(data: bytes, size: int, to_head: bool) -> ResponseHead:
    """As scan_request; `to_head`: it answers a HEAD request."""
    match = _RESPONSE.fullmatch(data, 0, size - 2)
    if match is None:
        raise Malformed(_what_is_wrong(data, size), 502)
    status = int(match[2])
    head = ResponseHead(status, 1 if match[1] == b"1" else 0, size)
    lengths = codings = length = 0
    connection = None
    coded = events = False
    edits = head.edits
    for field in _RESPONSE_FIELD.finditer(data, 0, size - 2):
        name, value = field.groups()
        name = name.lower()
        if name == b"content-length":
            lengths += 1
            length = _length(value)
        elif name == b"content-type":
            events = value[:17].lower() == b"text/event-stream"
        elif name == b"connection":
            connection = value if connection is None else connection + b"," + value
            edits.append((field.start(), field.end(), CUT))
        elif name == b"transfer-encoding":
            codings += 1
            _check_coding(value)
        elif name == b"x-request-id":
            head.request_id = True
        elif name == b"x-cold-start":
            head.cold = True
        elif name == b"content-encoding":
            coded = True
        elif name == b"upgrade":
            if status != 101:
                edits.append((field.start(), field.end(), CUT))
        else:
            edits.append((field.start(), field.end(), CUT))
    if lengths + codings > 1:
        raise Malformed("Content-Length and Transfer-Encoding: one of them, once", 502)
    if codings and head.minor == 0:
        raise Malformed("Transfer-Encoding: not in HTTP/1.0", 502)
    if status < 200 or status == 204:
        if codings or length:
            raise Malformed(f"a {status} response has no body", 502)
        head.length = 0
    elif to_head or status == 304:
        head.length = 0
    elif codings:
        head.length = CHUNKED
    elif lengths:
        head.length = length
    head.event_stream = events and not coded
    if connection is not None and not (connection == b"keep-alive" and head.keep_alive):
        names = {token.strip(b" \t").lower() for token in connection.split(b",")}
        names.discard(b"")
        if b"close" in names:
            head.keep_alive = False
        elif b"keep-alive" in names:
            head.keep_alive = True
        names -= {b"close", b"keep-alive", b"upgrade"}
        if names:
            _cut_named(data, size, names, edits)
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


def _append_last(edits: list[tuple[int, int, int]], at: int, kind: int) -> None:
    """Only the last of several equal fields is appended to: together they are one list."""
    edits[:] = [edit for edit in edits if edit[2] != kind]
    edits.append((at, at, kind))


def _length(value: bytes) -> int:
    value = value.rstrip(b" \t")
    if len(value) > 18 or not value.isdigit():
        raise Malformed("Content-Length: one decimal number of at most 18 digits")
    return int(value)


def _check_coding(value: bytes) -> None:
    if value.rstrip(b" \t").lower() != b"chunked":
        raise Malformed("Transfer-Encoding: only chunked is known")


def _cut_named(data: bytes, size: int, names: set[bytes], edits: list[tuple[int, int, int]]) -> None:
    """Leaves out the headers that Connection names, as RFC 9110 7.6.1 wants."""
    if names & _NEVER_HOP:
        raise Malformed("Connection: must not name Host, Content-Length or Transfer-Encoding")
    for field in _ANY_FIELD.finditer(data, 0, size - 2):
        if field[1].lower() in names:
            start, end = field.span()
            # A field begins where the one before it ends: a cut there is its own, an addition the other one's.
            edits[:] = [
                edit
                for edit in edits
                if not (start < edit[0] <= end if edit[0] == edit[1] else start <= edit[0] < end)
            ]
            edits.append((start, end, CUT))
    edits.sort()


def _what_is_wrong(data: bytes, size: int) -> str:
    """Words for the person who sent it; only when the head is refused anyway."""
    head = data[: size - 4]
    first, _, rest = head.partition(b"\r\n")
    if b"\x00" in head:
        return "NUL byte in the head"
    if b"\n" in head.replace(b"\r\n", b"") or b"\r" in head.replace(b"\r\n", b""):
        return "line ends are CR LF, neither stands alone"
    if not re.fullmatch(rb"[A-Z]+ [!-~]+ HTTP/1\.[01]|HTTP/1\.[01] [0-9]{3}(?: .*)?", first):
        return "the first line is not that of an HTTP/1.1 message (method in capitals, path, version)"
    for line in rest.split(b"\r\n") if rest else ():
        if line[:1] in (b" ", b"\t"):
            return "folded header lines are obsolete: one line per header"
        name, colon, _ = line.partition(b":")
        if not colon or re.fullmatch(TOKEN + rb"+", name) is None:
            return f"header name {name[:40]!r}: letters, digits and !#$%&'*+-.^_`|~ up to the colon"
    if not first.startswith(b"HTTP/"):
        return (
            "method: one of GET HEAD POST PUT DELETE OPTIONS PATCH TRACE; target: a path that starts with /"
        )
    return "control character in a header value"
