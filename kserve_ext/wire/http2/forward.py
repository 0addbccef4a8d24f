"""Scanned header blocks as the next hop gets them: the same bytes, without some spans and with plain literals after.

Two dialects, as with HTTP/1.1: the embedded cluster's (what http1_forward.py adds, with a request id and marks of our
own), and that of Knative's activator (the pod as authority, the client's in K-Original-Host; the queue-proxy turns
that round). In Knative: pkg/activator/handler/handler.go, networking's pkg/http/header.

Hot dialect, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

from collections.abc import Set
from functools import lru_cache
from typing import Final

from kserve_ext.core.ids import RevisionKey
from kserve_ext.wire.http2.fields import (
    AUTHORITY,
    FORWARDED,
    FORWARDED_FOR,
    HASH,
    HOP,
    HOST,
    NAMESPACE,
    ORIGINAL_HOST,
    PROBE,
    REQUEST_ID,
    REVISION,
)
from kserve_ext.wire.http2.headers import RequestBlock, ResponseBlock
from kserve_ext.wire.http2.hpack import literal

_EMBEDDED: Final = frozenset((NAMESPACE, REVISION, REQUEST_ID, FORWARDED_FOR, FORWARDED, HOP))
_TO_POD: Final = frozenset(
    (AUTHORITY, HOST, NAMESPACE, REVISION, FORWARDED_FOR, HOP, PROBE, HASH, ORIGINAL_HOST)
)
_PROXY_REQUEST: Final = literal(b"k-proxy-request", b"activator")
_PASSTHROUGH: Final = literal(b"k-passthrough-lb", b"true")
_COLD: Final = {True: literal(b"x-cold-start", b"true"), False: literal(b"x-cold-start", b"false")}


@lru_cache(4096)
def hop(client: str) -> Hop2:
    """The same for all connections of a client, so that what was made of a header block serves them all."""
    return Hop2(client)


class Hop2:
    """What is added to each request that one client sends."""

    __slots__ = ("_element", "_ip", "_proto", "all", "line_for")

    def __init__(self, client: str, proto: bytes = b"http") -> None:
        ip = client.encode("ascii", "replace")
        node = b'"[' + ip + b']"' if b":" in ip else ip
        self._ip = ip
        self._element = b"for=" + node + b";proto=" + proto
        self._proto = literal(b"x-forwarded-proto", proto)
        self.line_for = self.forwarded_for(None)
        self.all = self.line_for + self.forwarded(None) + self._proto

    def forwarded_for(self, before: bytes | None) -> bytes:
        return literal(b"x-forwarded-for", self._ip if before is None else before + b", " + self._ip)

    def forwarded(self, before: bytes | None) -> bytes:
        return literal(b"forwarded", self._element if before is None else before + b", " + self._element)

    def added(self, head: RequestBlock) -> bytes:
        """The three headers, where the client sent some of them itself."""
        proto = b"" if head.forwarded_proto else self._proto
        return self.forwarded_for(head.forwarded_for) + self.forwarded(head.forwarded) + proto


def forward_request(head: RequestBlock, hop: Hop2, request_id: bytes) -> bytes:
    """The block as an instance of the embedded cluster gets it. `request_id` b"": the client's own stays."""
    parts = _without(head, _EMBEDDED)
    parts.append(_PROXY_REQUEST)
    if head.forwarded_for is None and head.forwarded is None and not head.forwarded_proto:
        parts.append(hop.all)
    else:
        parts.append(hop.added(head))
    if request_id:
        parts.append(literal(b"x-request-id", request_id))
    return b"".join(parts)


def forward_to_pod(head: RequestBlock, hop: Hop2, authority: bytes, passthrough: bool, named: bytes) -> bytes:
    """The block as a Knative pod gets it. `passthrough`: a mesh is asked to let it through; `named`: see `naming`."""
    block = _authority(authority) + (head.to_pod if head.to_pod_by is hop else _to_pod(head, hop)) + named
    return block + _PASSTHROUGH if passthrough else block


@lru_cache(4096)
def naming(key: RevisionKey) -> bytes:
    """The two headers that name a revision (knative_head.py says what for)."""
    namespace, _, name = key.partition("/")
    return literal(b"knative-serving-namespace", namespace.encode()) + literal(
        b"knative-serving-revision", name.encode()
    )


@lru_cache(4096)
def _authority(authority: bytes) -> bytes:
    return literal(b":authority", authority)


def _to_pod(head: RequestBlock, hop: Hop2) -> bytes:
    parts = [*_without(head, _TO_POD), _PROXY_REQUEST]
    if not head.original_host:
        parts.append(literal(b"k-original-host", head.authority))
    parts.append(hop.line_for if head.forwarded_for is None else hop.forwarded_for(head.forwarded_for))
    made = b"".join(parts)
    if head.shared:
        head.to_pod = made
        head.to_pod_by = hop
    return made


def _without(head: RequestBlock, kinds: Set[int]) -> list[bytes]:
    block = head.block
    parts = []
    at = 0
    for start, end, kind in head.spans:
        if kind in kinds:
            parts.append(block[at:start])
            at = end
    parts.append(block[at:])
    return parts


def forward_response(head: ResponseBlock, request_id: bytes, cold: bool) -> bytes:
    """The block as a client of the embedded cluster gets it; one of Knative's gets it as it came."""
    added = b"" if head.cold else _COLD[cold]
    if not head.request_id:
        added = literal(b"x-request-id", request_id) + added
    return head.block + added
