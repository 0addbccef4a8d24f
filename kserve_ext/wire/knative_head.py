"""HTTP/1.1 request heads as Knative's activator takes them and as it passes them on.

Beside what http1.py knows, a head says whether it is a probe, and which of Knative's own headers it has. Passed on,
it names the pod as its Host and the client's Host in K-Original-Host (the queue-proxy turns that round), is marked
with K-Proxy-Request, and names the revision that was chosen in the ingress's own two headers. Knative's activator
takes these off, and its queue-proxy would; a standby pod that has another revision meanwhile sees by them that the
request isn't for it. X-Forwarded-Proto, Forwarded and X-Request-Id are the ingress's business and stay as they came.
Any method is taken but CONNECT, any Upgrade but h2c (the listener's own), and paths that are not all ASCII, as Go
takes them. In Knative: pkg/activator/handler/handler.go, networking's pkg/http/header.

Hot dialect, see http1.py.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import ClassVar, Final, cast

from kserve_ext.core.ids import RevisionKey
from kserve_ext.wire.http1 import Grammar, RequestHead, scan_request
from kserve_ext.wire.http1_forward import Hop
from kserve_ext.wire.http1_lines import (
    HASH,
    KUBELET,
    ORIGINAL_HOST,
    PROBE,
    REQUEST_NAMES,
    TE,
    TOKEN,
    USER_AGENT,
    Fields,
    RequestLines,
)

LINE: Final = re.compile(
    rb"((?!(?:CONNECT|PRI) )" + TOKEN + rb"{1,32}+) (?:/[!-~\x80-\xff]*+|\*) HTTP/1\.([01])"
)
_PROTOCOL = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+(?:/[!#$%&'*+\-.^_`|~0-9a-z]+)?")


class KnativeHead(RequestHead):
    __slots__ = ("hash", "kubelet", "original_host", "probe", "trailers")

    #: An ingress that appends leaves two, and Go reads the first.
    first_counts: ClassVar[bool] = True

    def __init__(self, method: bytes, minor: int, size: int, lines: list[bytes]) -> None:
        super().__init__(method, minor, size, lines)
        self.probe = b""  # K-Network-Probe
        self.hash = b""  # K-Network-Hash
        self.kubelet = False
        self.original_host = False  # an earlier hop has named the client's Host
        self.trailers = False  # TE: trailers

    def other(self, kind: int, value: bytes, at: int) -> None:
        if kind == ORIGINAL_HOST:
            if value:
                self.original_host = True
                return
        elif kind in (USER_AGENT, KUBELET):
            self.kubelet |= value != b""
            return
        elif kind == PROBE:
            self.probe = self.probe or value
        elif kind == HASH:
            self.hash = self.hash or value
        elif kind == TE:
            self.trailers |= b"trailers" in value.lower()
        self.cuts.append(at)

    def without(self, names: set[bytes]) -> None:
        super().without(names)
        self.original_host &= b"k-original-host" not in names

    def takes_upgrade(self, protocol: bytes) -> bool:
        self.h2c = protocol == b"h2c"
        return not self.h2c and _PROTOCOL.fullmatch(protocol) is not None


class KnativeGrammar(Grammar):
    __slots__ = ()

    def head(self, method: bytes, minor: int, size: int, lines: list[bytes]) -> RequestHead:
        return KnativeHead(method, minor, size, lines)


KNATIVE: Final = KnativeGrammar(
    RequestLines(LINE),
    Fields(
        {
            **REQUEST_NAMES,
            b"k-kubelet-probe": KUBELET,
            b"k-network-hash": HASH,
            b"k-network-probe": PROBE,
            b"k-original-host": ORIGINAL_HOST,
            b"te": TE,
            b"user-agent": USER_AGENT,
        },
        400,
    ),
)


def scan_knative(data: bytes, size: int) -> KnativeHead:
    return cast("KnativeHead", scan_request(data, size, KNATIVE))


@lru_cache(4096)
def naming(key: RevisionKey) -> bytes:
    """The lines that name a revision, each with the line end before it."""
    namespace, _, name = key.partition("/")
    return f"\r\nKnative-Serving-Namespace: {namespace}\r\nKnative-Serving-Revision: {name}".encode()


def forward_to_pod(head: KnativeHead, hop: Hop, host: bytes, passthrough: bool, named: bytes) -> bytes:
    """The head as the pod gets it. `passthrough`: a mesh is asked to let it through; `named`: see `naming`."""
    lines = head.lines.copy()
    if head.for_at:
        lines[head.for_at] += hop.append_for
        end = hop.end
    else:
        end = hop.end_for
    if head.host_at:
        original = b"" if head.original_host else b"\r\nK-Original-Host: " + head.host
        lines[head.host_at] = b"Host: " + host + original + named
    for at in reversed(head.cuts):
        del lines[at]
    if passthrough or head.trailers or head.upgrade:
        end = end[:-2]
        if passthrough:
            end += b"K-Passthrough-Lb: true\r\n"
        if head.trailers:
            end += b"Te: trailers\r\n"
        if head.upgrade:
            end += b"Connection: Upgrade\r\n"
        end += b"\r\n"
    lines.append(end)
    return b"\r\n".join(lines)
