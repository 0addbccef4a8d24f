"""A scanned head as the next hop gets it: the same bytes, with only the hop-by-hop part exchanged.

Added to requests: X-Forwarded-For, X-Forwarded-Proto and Forwarded (appended to the peer's own), K-Proxy-Request
as Knative's activator does, X-Request-Id when absent. Never re-serialised: what is not named here stays as sent.

Hot dialect, see http1.py.
"""

from __future__ import annotations

from kserve_ext.wire.http1 import APPEND_FOR, APPEND_FORWARDED, RequestHead, ResponseHead


class Hop:
    """What one client connection adds to each request that it forwards; made once per connection."""

    __slots__ = ("all", "append_for", "append_forwarded", "line_for", "line_forwarded", "line_proto")

    def __init__(self, client: str, proto: bytes = b"http") -> None:
        ip = client.encode("ascii", "replace")
        node = b'"[' + ip + b']"' if b":" in ip else ip
        element = b"for=" + node + b";proto=" + proto
        self.append_for = b", " + ip
        self.append_forwarded = b", " + element
        self.line_for = b"X-Forwarded-For: " + ip + b"\r\n"
        self.line_proto = b"X-Forwarded-Proto: " + proto + b"\r\n"
        self.line_forwarded = b"Forwarded: " + element + b"\r\n"
        self.all = self.line_for + self.line_proto + self.line_forwarded


def forward_request(data: bytes, head: RequestHead, hop: Hop, request_id: bytes) -> list[bytes]:
    """The head as the instance gets it, in pieces for one join. `request_id` b"": the client's own stays."""
    end = head.size - 4
    if head.edits:
        parts = []
        at = 0
        for start, stop, kind in head.edits:
            parts.append(data[at:start])
            if kind == APPEND_FOR:
                parts.append(hop.append_for)
            elif kind == APPEND_FORWARDED:
                parts.append(hop.append_forwarded)
            elif head.upgrade and data[start + 2 : start + 9].lower() == b"upgrade":
                parts.append(data[start:stop])
            at = stop
        parts.append(data[at:end])
    else:
        parts = [data[:end]]
    parts.append(b"\r\nK-Proxy-Request: activator\r\n")
    if not (head.forwarded_for or head.forwarded or head.forwarded_proto):
        parts.append(hop.all)
    else:
        if not head.forwarded_for:
            parts.append(hop.line_for)
        if not head.forwarded_proto:
            parts.append(hop.line_proto)
        if not head.forwarded:
            parts.append(hop.line_forwarded)
    if head.upgrade:
        parts.append(b"Connection: Upgrade\r\n")
    if request_id:
        parts.append(b"X-Request-Id: ")
        parts.append(request_id)
        parts.append(b"\r\n\r\n")
    else:
        parts.append(b"\r\n")
    return parts


def forward_response(data: bytes, head: ResponseHead, lines: bytes) -> list[bytes]:
    """The head as the client gets it; `lines` are whole header lines to add, each with its CRLF."""
    end = head.size - 4
    at = 0
    parts = []
    if head.minor == 0:
        parts.append(b"HTTP/1.1")
        at = 8
    for start, stop, _ in head.edits:
        parts.append(data[at:start])
        at = stop
    parts.append(data[at:end])
    parts.append(b"\r\n")
    if head.status == 101:
        parts.append(b"Connection: Upgrade\r\n")
    parts.append(lines)
    parts.append(b"\r\n")
    return parts
