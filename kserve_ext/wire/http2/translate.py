"""HTTP/1.1 heads as header blocks, for the two that never came as one: the request of an Upgrade to h2c, and answers
that the data plane writes itself (they are made once, as HTTP/1.1 bytes).

Not for what passes between a client and an instance: that stays in the protocol it came in.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from kserve_ext.wire.http2.hpack import literal

_FIELD = re.compile(rb"\r\n([^:\r]+):[\t ]*([^\r]*)")
_HOP: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
        b"host",
    )
)


class Answer(NamedTuple):
    status: int
    block: bytes
    body: bytes


def request_block(head: bytes) -> bytes:
    """Of a request head that http1.scan_request took, without a body."""
    first, _, _ = head.partition(b"\r\n")
    method, path, _ = first.split(b" ")
    host = b""
    regular = []
    fields = _fields(head)
    dropped = _HOP.union(
        option.strip(b" \t").lower()
        for name, value in fields
        if name == b"connection"
        for option in value.split(b",")
    )
    for name, value in fields:
        if name == b"host":
            host = value
        elif name == b"te":
            if b"trailers" in value.lower():
                regular.append(literal(b"te", b"trailers"))
        elif name not in dropped:
            regular.append(literal(name, value))
    pseudo = (
        literal(b":method", method),
        literal(b":scheme", b"http"),
        literal(b":path", path),
        literal(b":authority", host),
    )
    return b"".join((*pseudo, *regular))


def answer_block(response: bytes) -> Answer:
    """Of a whole response of our own, its length declared."""
    head, _, body = response.partition(b"\r\n\r\n")
    status = head[9:12]
    regular = [literal(name, value) for name, value in _fields(head) if name not in _HOP]
    return Answer(int(status), b"".join((literal(b":status", status), *regular)), body)


def _fields(head: bytes) -> list[tuple[bytes, bytes]]:
    return [(field[1].lower(), field[2].rstrip(b" \t")) for field in _FIELD.finditer(head)]
