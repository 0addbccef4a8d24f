"""HTTP/1.1 request heads as Knative's queue-proxy takes them and as it passes them on to the user's server.

The opposite of knative_head.py: the Host that an activator has put away comes back, Forwarded is made of the
X-Forwarded headers where there is none (before this hop is appended to them), and the headers that chose the revision
go no further. In Knative: pkg/queue/handler.go, forwarded_shim.go, pkg/queue/sharedmain/main.go.

Hot dialect, see http1.py.
"""

from __future__ import annotations

from typing import ClassVar, Final

from kserve_ext.wire.http1 import Grammar, RequestHead
from kserve_ext.wire.http1_lines import (
    FORWARDED,
    FORWARDED_HOST,
    FORWARDED_PROTO,
    HASH,
    ORIGINAL_HOST,
    PROBE,
    PROBER,
    PROXIED,
    REQUEST_NAMES,
    TE,
    Fields,
    RequestLines,
)
from kserve_ext.wire.knative_head import LINE, KnativeHead

_FORWARDED_FOR: Final = b"x-forwarded-for:"


class QueueHead(KnativeHead):
    __slots__ = ("forwarded_host_at", "original", "prober", "proxied")

    first_counts: ClassVar[bool] = True

    def __init__(self, method: bytes, minor: int, size: int, lines: list[bytes]) -> None:
        super().__init__(method, minor, size, lines)
        self.prober = False  # by its User-Agent: its question is about this pod
        self.proxied = False  # it came through an activator
        self.original = b""  # the Host that an activator has put away
        self.forwarded_host_at = 0

    def other(self, kind: int, value: bytes, at: int) -> None:
        if kind == ORIGINAL_HOST:
            if value:
                self.original = self.original or value
            self.cuts.append(at)
        elif kind == PROXIED:
            self.proxied |= value == b"activator"
        elif kind == PROBER:
            self.prober |= value != b""
        elif kind == PROBE:
            self.probe = self.probe or value
        elif kind == HASH:
            self.hash = self.hash or value
        elif kind == FORWARDED_HOST:
            self.forwarded_host_at = self.forwarded_host_at or at
        elif kind == TE:
            self.trailers |= b"trailers" in value.lower()
            self.cuts.append(at)
        else:
            self.cuts.append(at)

    def without(self, names: set[bytes]) -> None:
        super().without(names)
        if b"k-original-host" in names:
            self.original = b""
        if b"x-forwarded-host" in names:
            self.forwarded_host_at = 0


class QueueGrammar(Grammar):
    __slots__ = ()

    def head(self, method: bytes, minor: int, size: int, lines: list[bytes]) -> RequestHead:
        return QueueHead(method, minor, size, lines)


QUEUE: Final = QueueGrammar(
    RequestLines(LINE),
    Fields(
        {
            **REQUEST_NAMES,
            b"forwarded": FORWARDED,
            b"k-network-hash": HASH,
            b"k-network-probe": PROBE,
            b"k-original-host": ORIGINAL_HOST,
            b"k-proxy-request": PROXIED,
            b"te": TE,
            b"user-agent": PROBER,
            b"x-forwarded-host": FORWARDED_HOST,
            b"x-forwarded-proto": FORWARDED_PROTO,
        },
        400,
    ),
)


def forward_to_server(head: QueueHead, client: bytes) -> bytes:
    """The head as the user's server gets it; `client`: address of who sent it."""
    lines = head.lines.copy()
    end = b""
    for_at = head.for_at
    if not head.forwarded_at and (for_at or head.proto_at or head.forwarded_host_at):
        first = _first_for(lines, for_at) if for_at else b""
        proto = _value(lines, head.proto_at)
        end = b"Forwarded: " + forwarded(first, proto, _value(lines, head.forwarded_host_at)) + b"\r\n"
    if for_at:
        lines[for_at] += b", " + client
    else:
        end += b"X-Forwarded-For: " + client + b"\r\n"
    if head.original and head.host_at:
        lines[head.host_at] = b"Host: " + head.original
    if head.trailers:
        end += b"Te: trailers\r\n"
    if head.upgrade:
        end += b"Connection: Upgrade\r\n"
    for at in reversed(head.cuts):
        del lines[at]
    lines.append(end + b"\r\n")
    return b"\r\n".join(lines)


def forwarded(for_: bytes, proto: bytes, host: bytes) -> bytes:
    """A Forwarded of what X-Forwarded headers said."""
    nodes = [_node(node.strip(b" \t")) for node in for_.split(b",")] if for_ else []
    said = nodes[:1]
    if host:
        said.append(b"host=" + host)
    if proto:
        said.append(b"proto=" + proto)
    return b", ".join([b";".join(said), *nodes[1:]])


def _node(node: bytes) -> bytes:
    return b'for="[' + node + b']"' if b":" in node else b"for=" + node


def _first_for(lines: list[bytes], last: int) -> bytes:
    for line in lines[1:last]:
        if line[:16].lower() == _FORWARDED_FOR:
            return line[16:].strip(b" \t")
    return lines[last][16:].strip(b" \t")


def _value(lines: list[bytes], at: int) -> bytes:
    return lines[at].partition(b":")[2].strip(b" \t") if at else b""
