"""A scanned head as the next hop gets it: the same lines, with only the hop-by-hop part exchanged.

Added to requests: X-Forwarded-For, X-Forwarded-Proto and Forwarded (appended to the peer's own), K-Proxy-Request
as Knative's activator does, X-Request-Id when absent. Never re-serialised: what is not named here stays as sent.

Hot dialect, see http1.py.
"""

from __future__ import annotations

from kserve_ext.wire.http1 import RequestHead, ResponseHead


class Hop:
    """What one client connection adds to each request that it forwards; made once per connection."""

    __slots__ = (
        "append_for",
        "append_forwarded",
        "end",
        "end_for",
        "line_for",
        "line_forwarded",
        "line_proto",
    )

    def __init__(self, client: str, proto: bytes = b"http") -> None:
        ip = client.encode("ascii", "replace")
        node = b'"[' + ip + b']"' if b":" in ip else ip
        element = b"for=" + node + b";proto=" + proto
        self.append_for = b", " + ip
        self.append_forwarded = b", " + element
        self.line_for = b"X-Forwarded-For: " + ip + b"\r\n"
        self.line_proto = b"X-Forwarded-Proto: " + proto + b"\r\n"
        self.line_forwarded = b"Forwarded: " + element + b"\r\n"
        #: Ends of a head, with the final empty line: what is added to each, and to those without X-Forwarded-For.
        self.end = b"K-Proxy-Request: activator\r\n\r\n"
        self.end_for = b"K-Proxy-Request: activator\r\n" + self.line_for + b"\r\n"


def forward_request(head: RequestHead, hop: Hop, request_id: bytes, more: bytes = b"") -> bytes:
    """The head as the instance gets it. `request_id` b"": the client's own stays; `more`: whole lines of ours."""
    lines = head.lines.copy()
    end = b"K-Proxy-Request: activator\r\n"
    if head.for_at:
        lines[head.for_at] += hop.append_for
    else:
        end += hop.line_for
    if not head.proto_at:
        end += hop.line_proto
    if head.forwarded_at:
        lines[head.forwarded_at] += hop.append_forwarded
    else:
        end += hop.line_forwarded
    if head.upgrade:
        end += b"Connection: Upgrade\r\n"
    if request_id:
        end += b"X-Request-Id: " + request_id + b"\r\n"
    for at in reversed(head.cuts):
        del lines[at]
    lines.append(end + more + b"\r\n")
    return b"\r\n".join(lines)


def forward_response(head: ResponseHead, added: bytes) -> bytes:
    """The head as the client gets it; `added` are whole header lines, each with its CRLF."""
    lines = head.lines  # an answer is passed on once
    for at in reversed(head.cuts):
        del lines[at]
    if not head.minor:
        lines[0] = b"HTTP/1.1" + lines[0][8:]
    if head.status == 101:
        added = b"Connection: Upgrade\r\n" + added
    lines.append(added + b"\r\n")
    return b"\r\n".join(lines)
