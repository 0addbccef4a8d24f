"""The facts of header blocks: what the relay must know of a request, a response and trailers, or why not.

Positions refer to the block, so that forward.py can pass it on as it came. What is refused here is what
RFC 9113 calls malformed: it ends a stream, never a connection.

Hot dialect, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kserve_ext.wire.http1 import HOST_PORT, REQUEST_ID_TEXT, Malformed
from kserve_ext.wire.http2.fields import (
    AUTHORITY,
    COLD,
    CONTENT_CODING,
    CONTENT_TYPE,
    FORWARDED,
    FORWARDED_FOR,
    FORWARDED_PROTO,
    HASH,
    HOP,
    HOST,
    KUBELET,
    LAST_PSEUDO,
    LENGTH,
    LIST_BYTES,
    METHOD,
    MOST_PER_BYTE,
    NAMESPACE,
    NOT_KEPT,
    ORIGINAL_HOST,
    PATH,
    PROBE,
    REQUEST_ID,
    REVISION,
    SCHEME,
    STATUS,
    USER_AGENT,
    walk,
)

if TYPE_CHECKING:
    from kserve_ext.wire.http2.forward import Hop2

_LAST_ONCE: Final = LENGTH
#: Blocks without a header table repeat byte for byte: those that were read lately are not read again. Short ones
#: only, never those with a field that no hop may keep, and not those with a field that is seen for the first time:
#: a deadline or a trace makes each of a client's blocks another.
_CACHED: Final = 1024
_CACHED_BYTES: Final = 512
#: The list of a short block is within this limit, whatever it holds.
_LIST_SURE: Final = _CACHED_BYTES * MOST_PER_BYTE
_SPAN_BYTES: Final = 100
_REQUIRED: Final = 1 << METHOD | 1 << SCHEME | 1 << PATH


class RequestBlock:
    """The facts of one request's header block; of a field that comes twice, the first.

    Nobody may change it while it is `shared` by all requests with the same block.
    """

    __slots__ = (
        "authority",
        "block",
        "forwarded",
        "forwarded_for",
        "forwarded_proto",
        "hash",
        "kept_bytes",
        "kubelet",
        "length",
        "method",
        "namespace",
        "original_host",
        "path",
        "probe",
        "request_id",
        "revision",
        "shared",
        "spans",
        "to_pod",
        "to_pod_by",
        "user_agent",
    )

    def __init__(self, block: bytes) -> None:
        self.block = block
        self.method = b""
        self.path = b""
        self.authority = b""  # or the Host header
        self.namespace: bytes | None = None
        self.revision: bytes | None = None
        self.request_id = b""
        self.length = -1  # -1: not declared
        self.forwarded_for: bytes | None = None  # the last one: together they are one list
        self.forwarded: bytes | None = None
        self.forwarded_proto = False
        self.user_agent = b""
        self.probe = b""  # K-Network-Probe
        self.hash = b""  # K-Network-Hash
        self.kubelet = False  # K-Kubelet-Probe
        self.original_host = False
        #: (start, end, kind) of what a next hop may not get as it came, in order.
        self.spans: list[tuple[int, int, int]] = []
        self.kept_bytes = 0  # about what it takes of memory, for itself
        self.shared = False
        #: What forward.py made of a shared one for the requests of this hop.
        self.to_pod = b""
        self.to_pod_by: Hop2 | None = None

    def forget(self) -> None:
        """The request is not forwarded any more; what may be large goes. Not for a shared one."""
        self.kept_bytes = 0
        self.block = self.path = self.user_agent = self.probe = self.hash = b""
        self.forwarded_for = self.forwarded = None
        self.spans = []


class ResponseBlock:
    """The facts of one response's header block."""

    __slots__ = ("block", "cold", "event_stream", "length", "request_id", "status")

    def __init__(self, block: bytes) -> None:
        self.block = block
        self.status = 0
        self.length = -1
        self.event_stream = False  # text/event-stream without a content coding
        self.request_id = False
        self.cold = False


_requests: dict[bytes, RequestBlock] = {}
_responses: dict[bytes, ResponseBlock] = {}
_trailers: set[bytes] = set()


def scan_request(block: bytes, repeated: bool = False, most: int = LIST_BYTES) -> RequestBlock:
    """Raises Violation, Malformed or TooLarge, as walk. `repeated`: Knative's two headers may come twice."""
    known = _requests.get(block) if most >= _LIST_SURE else None
    return known if known is not None else _scan_request(block, repeated, most)


def _scan_request(block: bytes, repeated: bool, most: int) -> RequestBlock:
    head = RequestBlock(block)
    shared = len(block) <= _CACHED_BYTES and most >= _LIST_SURE
    spans = head.spans
    seen = 0
    host = authority = None
    for kind, start, end, value in walk(block, most):
        if kind <= _LAST_ONCE:
            if seen >> kind & 1:
                raise Malformed("a pseudo-header, host or content-length twice")
            seen |= 1 << kind
            if kind == METHOD:
                head.method = value
            elif kind == PATH:
                head.path = value
            elif kind == AUTHORITY:
                authority = value
                spans.append((start, end, kind))
            elif kind == LENGTH:
                head.length = _length(value)
            elif kind == HOST:
                host = value
                spans.append((start, end, kind))
            continue
        if kind == USER_AGENT:
            head.user_agent = head.user_agent or value
            continue
        if kind >= CONTENT_TYPE:
            continue
        if kind == NAMESPACE:
            if head.namespace is None:
                head.namespace = value
            elif repeated:
                shared = False
            else:
                raise Malformed("knative-serving-namespace twice")
        elif kind == REVISION:
            if head.revision is None:
                head.revision = value
            elif repeated:
                shared = False
            else:
                raise Malformed("knative-serving-revision twice")
        elif kind == REQUEST_ID:
            if not head.request_id and REQUEST_ID_TEXT.fullmatch(value):
                head.request_id = value
                continue
        elif kind == FORWARDED_FOR:
            _only_last(spans, kind, head.forwarded_for)
            head.forwarded_for = value
        elif kind == FORWARDED:
            _only_last(spans, kind, head.forwarded)
            head.forwarded = value
        elif kind == FORWARDED_PROTO:
            head.forwarded_proto = True
            continue
        elif kind == PROBE:
            head.probe = head.probe or value
        elif kind == HASH:
            head.hash = head.hash or value
        elif kind == KUBELET:
            head.kubelet |= value != b""
            continue
        elif kind == ORIGINAL_HOST:
            if value:
                head.original_host = True
                continue
        elif kind == NOT_KEPT:
            shared = False
            continue
        elif kind != HOP:
            continue
        spans.append((start, end, kind))
    if head.method == b"CONNECT":
        raise Malformed("CONNECT is not served")
    if seen & _REQUIRED != _REQUIRED or seen >> STATUS & 1:
        raise Malformed("a request has :method, :scheme, :path, and no :status")
    if host is None:
        host = authority
    elif authority is None:
        if HOST_PORT.fullmatch(host) is None:
            raise Malformed("host: not a host name or address with an optional port")
    elif host != authority:
        raise Malformed(":authority and host differ")
    if not host:
        raise Malformed("neither :authority nor host")
    head.authority = host
    if shared:
        if len(_requests) >= _CACHED:
            _requests.clear()
        _requests[block] = head
        head.shared = True
    else:
        head.kept_bytes = len(block) + len(head.path) + _SPAN_BYTES * len(spans)
    return head


def _only_last(spans: list[tuple[int, int, int]], kind: int, before: bytes | None) -> None:
    """Only the last of several equal fields is exchanged for a longer one."""
    if before is not None:
        spans[:] = [span for span in spans if span[2] != kind]


def scan_response(block: bytes, most: int = LIST_BYTES) -> ResponseBlock:
    """Raises Violation or Malformed, as walk. The same object for the same block: nobody may change it."""
    known = _responses.get(block) if most >= _LIST_SURE else None
    return known if known is not None else _scan_response(block, most)


def _scan_response(block: bytes, most: int) -> ResponseBlock:
    head = ResponseBlock(block)
    events = coded = False
    kept = len(block) <= _CACHED_BYTES and most >= _LIST_SURE
    for kind, _, _, value in walk(block, most):
        if kind == STATUS:
            if head.status or len(value) != 3 or not value.isdigit() or not b"100" <= value < b"600":
                raise Malformed(":status: one number from 100 to 599")
            head.status = int(value)
        elif kind <= LAST_PSEUDO:
            raise Malformed("a request's pseudo-header in a response")
        elif kind == LENGTH:
            if head.length >= 0:
                raise Malformed("content-length twice")
            head.length = _length(value)
        elif kind == REQUEST_ID:
            head.request_id = True
        elif kind == COLD:
            head.cold = True
        elif kind == CONTENT_TYPE:
            events = value[:17].lower() == b"text/event-stream"
        elif kind == CONTENT_CODING:
            coded = True
        elif kind == NOT_KEPT:
            kept = False
    if not head.status or head.status == 101:
        raise Malformed("a response has a :status other than 101")
    head.event_stream = events and not coded
    if kept:
        if len(_responses) >= _CACHED:
            _responses.clear()
        _responses[block] = head
    return head


def check_trailers(block: bytes, most: int = LIST_BYTES) -> None:
    """Raises Violation or Malformed, as walk."""
    if most >= _LIST_SURE and block in _trailers:
        return
    kept = len(block) <= _CACHED_BYTES and most >= _LIST_SURE
    for kind, _, _, _ in walk(block, most):
        if kind == NOT_KEPT:
            kept = False
        if kind <= LAST_PSEUDO or kind in (LENGTH, HOST):
            raise Malformed("trailers hold no pseudo-header, content-length or host")
    if kept:
        if len(_trailers) >= _CACHED:
            _trailers.clear()
        _trailers.add(block)


def _length(value: bytes) -> int:
    if len(value) > 18 or not value.isdigit():
        raise Malformed("content-length: one decimal number of at most 18 digits")
    return int(value)
