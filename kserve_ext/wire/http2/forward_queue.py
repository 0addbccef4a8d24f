"""A scanned header block as the user's server gets it from its queue-proxy: queue_head.py's changes, for HTTP/2.

Blocks that were seen lately are not made anew: one without deadlines, traces or secrets comes again and again.

Hot dialect, see kserve_ext/wire/http1.py.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from kserve_ext.wire.http2.fields import fields
from kserve_ext.wire.http2.hpack import literal
from kserve_ext.wire.queue_head import forwarded

_CUT: Final = frozenset(
    (
        b":authority",
        b"host",
        b"k-original-host",
        b"knative-serving-namespace",
        b"knative-serving-revision",
        b"x-forwarded-for",
        b"proxy-authorization",
        b"x-galaxy-continuation",
    )
)


class ToServer(NamedTuple):
    proxied: bool  # it came through an activator
    block: bytes


def forward_to_server(block: bytes, authority: bytes, client: bytes, shared: bool) -> ToServer:
    """`client`: address of who sent it; `shared`: the block is one that may be kept (headers.py)."""
    return _kept(block, authority, client) if shared else _made(block, authority, client)


def _made(block: bytes, authority: bytes, client: bytes) -> ToServer:
    pseudo: list[bytes] = []
    regular: list[bytes] = []
    proxied = forwarded_so = False
    original = proto = host = b""
    hops: list[bytes] = []
    for name, value, sensitive in fields(block):
        if name == b"k-proxy-request":
            proxied |= value == b"activator"
        elif name == b"k-original-host":
            original = original or value
        elif name == b"x-forwarded-for":
            hops.append(value)
        elif name == b"x-forwarded-proto":
            proto = proto or value
        elif name == b"x-forwarded-host":
            host = host or value
        elif name == b"forwarded":
            forwarded_so |= value != b""
        if name not in _CUT:
            made = literal(name, value, 0x10 if sensitive else 0)
            (pseudo if name.startswith(b":") else regular).append(made)
    pseudo.append(literal(b":authority", original or authority))
    if not forwarded_so and (hops or proto or host):
        regular.append(literal(b"forwarded", forwarded(hops[0] if hops else b"", proto, host)))
    regular.append(literal(b"x-forwarded-for", b", ".join([*hops, client])))
    return ToServer(proxied, b"".join(pseudo + regular))


_kept = lru_cache(1024)(_made)
