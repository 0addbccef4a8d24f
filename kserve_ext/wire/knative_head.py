"""HTTP/1.1 request heads as Knative's activator takes them and as it passes them on.

Beside what http1.py knows, a head says whether it is a probe, and which of Knative's own headers it has. Passed on,
it names the pod as its Host and the client's Host in K-Original-Host (the queue-proxy turns that round), is marked
with K-Proxy-Request, and has lost the headers that chose the revision; X-Forwarded-Proto, Forwarded and X-Request-Id
are the ingress's business and stay as they came. Any method is taken but CONNECT, any Upgrade but h2c (the listener's
own), and paths that are not all ASCII, as Go takes them. In Knative: pkg/activator/handler/handler.go, networking's
pkg/http/header.

Hot dialect, see http1.py.
"""

from __future__ import annotations

import re
from typing import Final, cast

from kserve_ext.wire.http1 import (
    APPEND_FOR,
    CUT,
    FIELDS,
    REHOST,
    TOKEN,
    Grammar,
    RequestHead,
    scan_request,
)
from kserve_ext.wire.http1_forward import Hop

_LINE = re.compile(
    rb"((?!(?:CONNECT|PRI) )" + TOKEN + rb"{1,32}+) (/[!-~\x80-\xff]*+|\*) HTTP/1\.([01])\r\n" + FIELDS
)
#: As http1's own. User-Agent is only seen where it is the kubelet's.
_FIELD = re.compile(
    rb"\r\n([Cc](?i:onnection|ontent-length)|[Hh](?i:ost|ttp2-settings)|[Tt](?i:ransfer-encoding|e)"
    rb"|[Xx](?i:-forwarded-for)|[Ee](?i:xpect)|[Uu](?i:pgrade|ser-agent(?=:[\t ]*kube-probe/))"
    rb"|[Kk](?i:eep-alive|-proxy-request|-network-probe|-network-hash|-kubelet-probe|-original-host"
    rb"|native-serving-namespace|native-serving-revision)"
    rb"|[Pp](?i:roxy-connection|roxy-authorization)):[\t ]*([^\r]*)"
)
_PROTOCOL = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+(?:/[!#$%&'*+\-.^_`|~0-9a-z]+)?")


class KnativeHead(RequestHead):
    __slots__ = ("hash", "kubelet", "original_host", "probe", "trailers")

    def __init__(self, method: bytes, minor: int, size: int) -> None:
        super().__init__(method, minor, size)
        self.probe = b""  # K-Network-Probe
        self.hash = b""  # K-Network-Hash
        self.kubelet = False
        self.original_host = False  # an earlier hop has named the client's Host
        self.trailers = False  # TE: trailers

    def once(self, name: bytes, before: bytes | None, value: bytes) -> bytes:
        """An ingress that appends leaves two: the first counts, as with Go."""
        return value.rstrip(b" \t") if before is None else before

    def other(self, name: bytes, value: bytes, start: int, end: int) -> None:
        if name == b"k-original-host":
            if value.strip():
                self.original_host = True
                return
        elif name == b"user-agent":
            self.kubelet = True
            return
        elif name == b"k-network-probe":
            self.probe = self.probe or value.rstrip(b" \t")
        elif name == b"k-network-hash":
            self.hash = self.hash or value.rstrip(b" \t")
        elif name == b"k-kubelet-probe":
            self.kubelet |= value != b""
            return
        elif name == b"te":
            self.trailers |= b"trailers" in value.lower()
        self.edits.append((start, end, CUT))

    def without(self, names: set[bytes]) -> None:
        super().without(names)
        self.original_host &= b"k-original-host" not in names

    def takes_upgrade(self, protocol: bytes) -> bool:
        self.h2c = protocol == b"h2c"
        return not self.h2c and _PROTOCOL.fullmatch(protocol) is not None


KNATIVE: Final = Grammar(_LINE, _FIELD, KnativeHead, rehost=True)


def scan_knative(data: bytes, size: int) -> KnativeHead:
    return cast("KnativeHead", scan_request(data, size, KNATIVE))


def forward_to_pod(data: bytes, head: KnativeHead, hop: Hop, host: bytes, passthrough: bool) -> list[bytes]:
    """The head as the pod gets it, in pieces for one join. `passthrough`: a mesh is asked to let it through."""
    parts = []
    at = 0
    for start, stop, kind in head.edits:
        parts.append(data[at:start])
        if kind == APPEND_FOR:
            parts.append(hop.append_for)
        elif kind == REHOST:
            parts.append(b"\r\nHost: ")
            parts.append(host)
            if not head.original_host:
                parts.append(b"\r\nK-Original-Host: ")
                parts.append(head.host)
        elif head.upgrade and data[start + 2 : start + 9].lower() == b"upgrade":
            parts.append(data[start:stop])
        at = stop
    parts.append(data[at : head.size - 4])
    parts.append(b"\r\nK-Proxy-Request: activator\r\n")
    if not head.forwarded_for:
        parts.append(hop.line_for)
    if passthrough:
        parts.append(b"K-Passthrough-Lb: true\r\n")
    if head.trailers:
        parts.append(b"Te: trailers\r\n")
    if head.upgrade:
        parts.append(b"Connection: Upgrade\r\n")
    parts.append(b"\r\n")
    return parts
