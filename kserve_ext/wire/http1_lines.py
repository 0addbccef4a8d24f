"""Lines of HTTP/1.1 heads: what each is, checked once and then kept, for the same lines come again and again.

A line is a kind and a value, checked by one regular expression; what is wrong with it is said in words. Kept are
short lines only, so many at most, and none that is a secret or never comes twice. What several lines together mean
is http1.py's to say.

Hot dialect, see http1.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

#: Lines kept of a dialect, and the longest of them.
KEPT: Final = 2048
KEPT_BYTES: Final = 256

# Kinds. What nobody looks at is PLAIN and passes.
PLAIN: Final = 0
HOST: Final = 1
NAMESPACE: Final = 2
REVISION: Final = 3
LENGTH: Final = 4
FORWARDED_FOR: Final = 5
FORWARDED: Final = 6
FORWARDED_PROTO: Final = 7
REQUEST_ID: Final = 8  # value b"": not one to be passed on
CONNECTION: Final = 9
CODING: Final = 10
EXPECT: Final = 11
UPGRADE: Final = 12
HOP: Final = 13  # never passed on, and says nothing
TYPE: Final = 14  # value b"": not of events
ENCODED: Final = 15
COLD: Final = 16
KUBELET: Final = 17
PROBE: Final = 18
HASH: Final = 19
ORIGINAL_HOST: Final = 20
TE: Final = 21
USER_AGENT: Final = 22  # value b"": not the kubelet's
CONTINUATION: Final = 23
PROBER: Final = 24  # value b"": not one that a queue-proxy answers
PROXIED: Final = 25
FORWARDED_HOST: Final = 26
FULL: Final = 27

Line = tuple[int, bytes]

TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_FIELD = re.compile(rb"(" + TOKEN + rb"++):[\t ]*+([\t -~\x80-\xff]*+)")
_REQUEST = re.compile(rb"(GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|TRACE) (?:/[!-~]*+|\*) HTTP/1\.([01])")
_RESPONSE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t -~\x80-\xff]*+)?")
HOST_PORT = re.compile(rb"[0-9A-Za-z.\-_]*(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?")
REQUEST_ID_TEXT = re.compile(rb"[!-~]{1,128}")
#: Secrets, and what is another one in each message.
_NEVER_KEPT: Final = frozenset(
    (
        b"authorization",
        b"cookie",
        b"idempotency-key",
        b"proxy-authorization",
        b"set-cookie",
        b"traceparent",
        b"x-galaxy-continuation",
        b"x-api-key",
        b"x-b3-spanid",
        b"x-b3-traceid",
        b"x-request-id",
    )
)
_PLAIN: Final[Line] = (PLAIN, b"")


class Malformed(Exception):
    """The peer's bytes are refused; `reason` says what is wrong with them, `status` what a request gets."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class Fields(dict[bytes, Line]):
    """Fields of a dialect by their bytes; [line] of one that isn't kept reads it. Raises Malformed."""

    def __init__(self, names: Mapping[bytes, int], status: int) -> None:
        """`names`: kinds by name in lower case; `status` of what is refused."""
        super().__init__()
        self._names = names
        self._status = status

    def __missing__(self, line: bytes) -> Line:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise Malformed(_what_is_wrong(line), self._status)
        name = match[1].lower()
        kind = self._names.get(name, PLAIN)
        found = _PLAIN
        if kind:
            value = match[2].rstrip(b" \t")
            check = _CHECKS.get(kind)
            found = (kind, value if check is None else check(value, self._status))
        if len(line) <= KEPT_BYTES and name not in _NEVER_KEPT:
            if len(self) >= KEPT:
                self.clear()
            self[line] = found
        return found


class RequestLines(dict[bytes, tuple[bytes, int]]):
    """Request lines by their bytes: method and minor version. Raises Malformed."""

    def __init__(self, grammar: re.Pattern[bytes] = _REQUEST) -> None:
        """`grammar`: groups are the method and the minor version."""
        super().__init__()
        self._grammar = grammar

    def __missing__(self, line: bytes) -> tuple[bytes, int]:
        match = self._grammar.fullmatch(line)
        if match is None:
            raise Malformed(_what_is_wrong_first(line))
        found = match[1], 1 if match[2] == b"1" else 0
        if len(line) <= KEPT_BYTES and b"?" not in line:
            if len(self) >= KEPT:
                self.clear()
            self[line] = found
        return found


class StatusLines(dict[bytes, tuple[int, int]]):
    """Status lines by their bytes: status and minor version. Raises Malformed."""

    def __missing__(self, line: bytes) -> tuple[int, int]:
        match = _RESPONSE.fullmatch(line)
        if match is None:
            raise Malformed(_what_is_wrong_first(line), 502)
        found = int(match[2]), 1 if match[1] == b"1" else 0
        if len(line) <= KEPT_BYTES:
            if len(self) >= KEPT:
                self.clear()
            self[line] = found
        return found


#: Of requests in every dialect.
REQUEST_NAMES: Final = {
    b"connection": CONNECTION,
    b"content-length": LENGTH,
    b"expect": EXPECT,
    b"host": HOST,
    b"http2-settings": HOP,
    b"k-proxy-request": HOP,
    b"keep-alive": HOP,
    b"knative-serving-namespace": NAMESPACE,
    b"knative-serving-revision": REVISION,
    b"proxy-authorization": HOP,
    b"proxy-connection": HOP,
    b"te": HOP,
    b"transfer-encoding": CODING,
    b"upgrade": UPGRADE,
    b"x-forwarded-for": FORWARDED_FOR,
    b"x-galaxy-continuation": HOP,
}
RESPONSE_NAMES: Final = {
    b"connection": CONNECTION,
    b"content-encoding": ENCODED,
    b"content-length": LENGTH,
    b"content-type": TYPE,
    b"keep-alive": HOP,
    b"proxy-connection": HOP,
    b"transfer-encoding": CODING,
    b"upgrade": UPGRADE,
    b"x-cold-start": COLD,
    b"x-galaxy-continuation": CONTINUATION,
    b"x-galaxy-full": FULL,
    b"x-request-id": REQUEST_ID,
}


def _host(value: bytes, status: int) -> bytes:
    if HOST_PORT.fullmatch(value) is None:
        raise Malformed("Host: not a host name or address with an optional port", status)
    return value


def _length(value: bytes, status: int) -> bytes:
    if len(value) > 18 or not value.isdigit():
        raise Malformed("Content-Length: one decimal number of at most 18 digits", status)
    return value


def _coding(value: bytes, status: int) -> bytes:
    if value.lower() != b"chunked":
        raise Malformed("Transfer-Encoding: only chunked is known", status)
    return value


def _expect(value: bytes, status: int) -> bytes:
    if value.lower() != b"100-continue":
        raise Malformed("Expect: only 100-continue is known", status)
    return value


def _request_id(value: bytes, status: int) -> bytes:
    return value if REQUEST_ID_TEXT.fullmatch(value) else b""


def _type(value: bytes, status: int) -> bytes:
    return value if value[:17].lower() == b"text/event-stream" else b""


def _user_agent(value: bytes, status: int) -> bytes:
    return value if value.startswith(b"kube-probe/") else b""


_PROBERS: Final = (b"kube-probe/", b"Knative-Activator-Probe", b"Knative-Autoscaling-Probe")


def _prober(value: bytes, status: int) -> bytes:
    return value if value.startswith(_PROBERS) else b""


_CHECKS: Final[Mapping[int, Callable[[bytes, int], bytes]]] = {
    HOST: _host,
    LENGTH: _length,
    CODING: _coding,
    EXPECT: _expect,
    REQUEST_ID: _request_id,
    TYPE: _type,
    USER_AGENT: _user_agent,
    PROBER: _prober,
}


def _what_is_wrong(line: bytes) -> str:
    """Words for the person who sent it; only when the head is refused anyway."""
    if wrong := _bytes_wrong(line):
        return wrong
    if line[:1] in (b" ", b"\t"):
        return "folded header lines are obsolete: one line per header"
    name, colon, _ = line.partition(b":")
    if not colon or re.fullmatch(TOKEN + rb"+", name) is None:
        return f"header name {name[:40]!r}: letters, digits and !#$%&'*+-.^_`|~ up to the colon"
    return "control character in a header value"


def _what_is_wrong_first(line: bytes) -> str:
    if wrong := _bytes_wrong(line):
        return wrong
    if not re.fullmatch(rb"[A-Z]+ [!-~]+ HTTP/1\.[01]|HTTP/1\.[01] [0-9]{3}(?: .*)?", line):
        return "the first line is not that of an HTTP/1.1 message (method in capitals, path, version)"
    return "method: one of GET HEAD POST PUT DELETE OPTIONS PATCH TRACE; target: a path that starts with /"


def _bytes_wrong(line: bytes) -> str:
    if b"\x00" in line:
        return "NUL byte in the head"
    if b"\n" in line or b"\r" in line:
        return "line ends are CR LF, neither stands alone"
    return ""
