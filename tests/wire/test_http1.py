"""Heads and bodies: every split, and against llhttp and h11: what they frame otherwise is never accepted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import h11
import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_ext.wire.http1 import (
    CHUNKED,
    UNTIL_CLOSE,
    Malformed,
    RequestHead,
    header,
    scan_request,
    scan_response,
)
from kserve_ext.wire.http1_body import ChunkWalker
from kserve_ext.wire.http1_forward import Hop, forward_request, forward_response


def scan(head: bytes) -> RequestHead:
    return scan_request(head, head.index(b"\r\n\r\n") + 4)


def get(*lines: bytes, first: bytes = b"GET / HTTP/1.1", host: bytes | None = b"Host: a.b") -> bytes:
    return b"\r\n".join([first, *([host] if host is not None else []), *lines, b"", b""])


def walk(pieces: list[bytes]) -> tuple[bool, int]:
    """(ended, bytes of the body)."""
    walker = ChunkWalker()
    total = 0
    for piece in pieces:
        end = walker.feed(piece)
        if end >= 0:
            return True, total + end
        total += len(piece)
    return False, total


# --- facts


def test_facts_of_a_request() -> None:
    head = scan(
        get(
            b"Knative-Serving-Namespace: default",
            b"knative-serving-revision:  tiny-00001 ",
            b"Content-Length: 12",
            b"X-Request-ID: abc",
            b"Connection: Keep-Alive",
            first=b"POST /v1/x?y=%20 HTTP/1.1",
        )
    )
    assert (head.method, head.minor, head.host, head.length) == (b"POST", 1, b"a.b", 12)
    assert (head.namespace, head.revision, head.request_id) == (b"default", b"tiny-00001", b"abc")
    assert head.keep_alive
    assert not head.upgrade


@pytest.mark.parametrize(
    ("first", "connection", "keep"),
    [
        (b"GET / HTTP/1.1", b"", True),
        (b"GET / HTTP/1.1", b"Connection: close", False),
        (b"GET / HTTP/1.1", b"Connection: foo, Close", False),
        (b"GET / HTTP/1.0", b"", False),
        (b"GET / HTTP/1.0", b"Connection: keep-alive", True),
    ],
)
def test_keep_alive(first: bytes, connection: bytes, keep: bool) -> None:
    assert scan(get(*([connection] if connection else []), first=first)).keep_alive is keep


def test_http10_needs_no_host() -> None:
    assert scan(get(first=b"GET / HTTP/1.0", host=None)).host == b""


def test_only_websocket_upgrades() -> None:
    assert scan(get(b"Connection: Upgrade", b"Upgrade: websocket")).upgrade
    assert not scan(
        get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AA")
    ).upgrade
    assert not scan(get(b"Connection: Upgrade", b"Upgrade: websocket", b"Content-Length: 3")).upgrade
    assert not scan(get(b"Upgrade: websocket")).upgrade


def test_expect() -> None:
    assert scan(get(b"Expect: 100-Continue", b"Content-Length: 3")).expect
    assert not scan(get(b"Expect: 100-continue")).expect
    assert not scan(get(b"Expect: 100-continue", b"Content-Length: 1", first=b"POST / HTTP/1.0")).expect


REFUSED = {
    "two lengths": get(b"Content-Length: 5", b"Content-Length: 5"),
    "two different lengths": get(b"Content-Length: 5", b"Content-Length: 6"),
    "list of lengths": get(b"Content-Length: 5, 5"),
    "signed length": get(b"Content-Length: +5"),
    "negative length": get(b"Content-Length: -5"),
    "hexadecimal length": get(b"Content-Length: 0x5"),
    "empty length": get(b"Content-Length:"),
    "underscored length": get(b"Content-Length: 1_0"),
    "huge length": get(b"Content-Length: " + b"9" * 30),
    "length and chunked": get(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "chunked and length": get(b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    "chunked twice": get(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "chunked, chunked": get(b"Transfer-Encoding: chunked, chunked"),
    "gzip, chunked": get(b"Transfer-Encoding: gzip, chunked"),
    "chunked not last": get(b"Transfer-Encoding: chunked, identity"),
    "identity": get(b"Transfer-Encoding: identity"),
    "xchunked": get(b"Transfer-Encoding: xchunked"),
    "vertical tab chunked": get(b"Transfer-Encoding: \x0bchunked"),
    "chunked in 1.0": get(b"Transfer-Encoding: chunked", first=b"POST / HTTP/1.0"),
    "space before colon": get(b"Content-Length : 5"),
    "tab before colon": get(b"Transfer-Encoding\t: chunked"),
    "folded": get(b"X-A: b", b" c"),
    "folded with tab": get(b"Transfer-Encoding:", b"\tchunked"),
    "folded first": get(host=b" Host: a.b"),
    "bare LF": b"GET / HTTP/1.1\r\nHost: a.b\nX: y\r\n\r\n",
    "bare LF in first line": b"GET / HTTP/1.1\nHost: a.b\r\n\r\n",
    "bare CR": get(b"X-A: b\rContent-Length: 5"),
    "CR CR LF": b"GET / HTTP/1.1\r\nHost: a.b\r\r\nX: y\r\n\r\n",
    "NUL in value": get(b"X-A: b\x00c"),
    "NUL in name": get(b"X\x00A: b"),
    "control character": get(b"X-A: b\x01"),
    "DEL": get(b"X-A: b\x7f"),
    "no colon": get(b"X-A"),
    "empty name": get(b": b"),
    "name with space": get(b"X A: b"),
    "non-ascii name": get(b"X-\xe9: b"),
    "no host": get(host=None),
    "two hosts": get(b"Host: c.d"),
    "two equal hosts": get(b"host: a.b"),
    "host with path": get(host=b"Host: a.b/c"),
    "host with user": get(host=b"Host: u@a.b"),
    "host with space": get(host=b"Host: a.b c.d"),
    "host list": get(host=b"Host: a.b,c.d"),
    "two namespaces": get(b"Knative-Serving-Namespace: a", b"Knative-Serving-Namespace: b"),
    "lower-case method": get(first=b"get / HTTP/1.1"),
    "unknown method": get(first=b"BREW / HTTP/1.1"),
    "connect": get(first=b"CONNECT a.b:443 HTTP/1.1"),
    "absolute form": get(first=b"GET http://c.d/ HTTP/1.1"),
    "two spaces": get(first=b"GET  / HTTP/1.1"),
    "tab in first line": get(first=b"GET\t/ HTTP/1.1"),
    "space in target": get(first=b"GET /a b HTTP/1.1"),
    "non-ascii target": get(first=b"GET /\xe9 HTTP/1.1"),
    "trailing space": get(first=b"GET / HTTP/1.1 "),
    "leading space": get(first=b" GET / HTTP/1.1"),
    "leading empty line": b"\r\n" + get(),
    "HTTP/2": get(first=b"GET / HTTP/2.0"),
    "HTTP/1.2": get(first=b"GET / HTTP/1.2"),
    "HTTP/0.9": get(first=b"GET /"),
    "h2 preface": b"PRI * HTTP/2.0\r\n\r\n",
    "expect other": get(b"Expect: 200-ok"),
    "connection names length": get(b"Connection: content-length", b"Content-Length: 5"),
    "connection names host": get(b"Connection: Host"),
    "connection names coding": get(b"Connection: transfer-encoding", b"Transfer-Encoding: chunked"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    data = REFUSED[name]
    end = data.find(b"\r\n\r\n") + 4
    with pytest.raises(Malformed) as refused:
        scan_request(data, end)
    assert refused.value.reason


RESPONSES_REFUSED = {
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
    "length and chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunked in 1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "204 with a body": b"HTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\n",
    "101 chunked": b"HTTP/1.1 101 S\r\nTransfer-Encoding: chunked\r\n\r\n",
    "status 99": b"HTTP/1.1 099 OK\r\n\r\n",
    "status 2000": b"HTTP/1.1 2000 OK\r\n\r\n",
    "folded": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
    "space before colon": b"HTTP/1.1 200 OK\r\nContent-Length : 1\r\n\r\n",
    "HTTP/2": b"HTTP/2 200\r\n\r\n",
    "request": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("name", RESPONSES_REFUSED)
def test_response_refused(name: str) -> None:
    data = RESPONSES_REFUSED[name]
    with pytest.raises(Malformed):
        scan_response(data, len(data), False)


@pytest.mark.parametrize(
    ("head", "to_head", "length", "keep"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", False, 7, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", True, 0, True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", False, CHUNKED, True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", True, 0, True),
        (b"HTTP/1.1 200 OK\r\n\r\n", False, UNTIL_CLOSE, False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\n", False, 7, False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\nConnection: keep-alive\r\n\r\n", False, 7, True),
        (b"HTTP/1.1 304 Not\r\nContent-Length: 7\r\n\r\n", False, 0, True),
        (b"HTTP/1.1 204 No\r\nContent-Length: 0\r\n\r\n", False, 0, True),
        (b"HTTP/1.1 100\r\n\r\n", False, 0, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\n", False, 7, False),
    ],
)
def test_response_framing(head: bytes, to_head: bool, length: int, keep: bool) -> None:
    scanned = scan_response(head, len(head), to_head)
    assert (scanned.length, scanned.keep_alive) == (length, keep)


# --- forwarding


def forwarded(data: bytes, client: str = "10.0.0.7", request_id: bytes = b"") -> bytes:
    return forward_request(scan(data), Hop(client), request_id)


def test_forwards_untouched_but_for_additions() -> None:
    data = get(b"x-CUSTOM:  Odd  Spacing ", b"Content-Length: 3", first=b"POST /p?q HTTP/1.1")
    assert forwarded(data, request_id=b"r-1") == data[:-2] + (
        b"K-Proxy-Request: activator\r\nX-Forwarded-For: 10.0.0.7\r\nX-Forwarded-Proto: http\r\n"
        b"Forwarded: for=10.0.0.7;proto=http\r\nX-Request-Id: r-1\r\n\r\n"
    )


def test_hop_by_hop_and_knative_headers_stay_here() -> None:
    data = get(
        b"Connection: keep-alive, X-Mine",
        b"Keep-Alive: timeout=5",
        b"X-Mine: 1",
        b"x-mine: 2",
        b"X-Mine-Not: 3",
        b"TE: trailers",
        b"Proxy-Connection: close",
        b"Proxy-Authorization: b",
        b"Upgrade: h2c",
        b"K-Proxy-Request: spoofed",
        b"Knative-Serving-Namespace: n",
        b"Knative-Serving-Revision: r",
        b"X-Request-Id: mine",
        b"Accept: */*",
    )
    out = forwarded(data)
    assert out.startswith(
        b"GET / HTTP/1.1\r\nHost: a.b\r\nX-Mine-Not: 3\r\nX-Request-Id: mine\r\nAccept: */*\r\nK-Proxy-"
    )
    assert out.count(b"K-Proxy-Request") == 1


def test_appends_to_forwarding_headers() -> None:
    out = forwarded(
        get(
            b"X-Forwarded-For: 1.1.1.1",
            b"X-Forwarded-Proto: https",
            b"X-Forwarded-For: 2.2.2.2",
            b"Forwarded: for=x",
        ),
        client="::1",
    )
    assert b"X-Forwarded-For: 1.1.1.1\r\n" in out
    assert b"X-Forwarded-For: 2.2.2.2, ::1\r\n" in out
    assert b'Forwarded: for=x, for="[::1]";proto=http\r\n' in out
    assert out.count(b"X-Forwarded-Proto") == 1


def test_a_header_declared_hop_by_hop_is_replaced_by_ours() -> None:
    data = get(
        b"Connection: X-Forwarded-For, forwarded, X-Request-Id, x-forwarded-proto",
        b"X-Forwarded-For: 1.1.1.1",
        b"Forwarded: for=1.1.1.1",
        b"X-Forwarded-Proto: https",
        b"X-Request-Id: spoofed",
    )
    assert scan(data).request_id == b""
    assert forwarded(data, request_id=b"r-1") == get()[:-2] + (
        b"K-Proxy-Request: activator\r\nX-Forwarded-For: 10.0.0.7\r\nX-Forwarded-Proto: http\r\n"
        b"Forwarded: for=10.0.0.7;proto=http\r\nX-Request-Id: r-1\r\n\r\n"
    )


def test_bad_request_ids_are_replaced() -> None:
    for line in (b"X-Request-Id: a b", b"X-Request-Id:", b"X-Request-Id: " + b"x" * 129):
        data = get(line)
        assert scan(data).request_id == b""
        out = forwarded(data, request_id=b"r-1")
        assert out.lower().count(b"x-request-id") == 1
        assert b"X-Request-Id: r-1\r\n" in out


def test_upgrade_is_forwarded() -> None:
    out = forwarded(get(b"Connection: keep-alive, Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: k"))
    assert b"\r\nUpgrade: websocket\r\n" in out
    assert b"\r\nConnection: Upgrade\r\n" in out
    assert out.lower().count(b"connection:") == 1


def test_forwards_response() -> None:
    data = b"HTTP/1.0 200 OK\r\nKeep-Alive: a\r\nA: b\r\nConnection: close, C\r\nC: d\r\nContent-Length: 0\r\n\r\n"
    out = forward_response(scan_response(data, len(data), False), b"x-request-id: r\r\n")
    assert out == b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 0\r\nx-request-id: r\r\n\r\n"


def test_switching_protocols_keeps_upgrade() -> None:
    data = b"HTTP/1.1 101 Sw\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
    out = forward_response(scan_response(data, len(data), False), b"")
    assert out == b"HTTP/1.1 101 Sw\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


def test_header_lookup() -> None:
    data = get(b"X-Tenant:  blue ", b"x-tenant: red")
    assert header(data, b"x-tenant") == b"blue"
    assert header(data, b"x-nothing") is None


# --- chunked bodies

BODY = b"5\r\nhello\r\n0a;x=y\r\n0123456789\r\n1\r\n\r\r\n2\r\n\r\n\r\n0\r\nX-Sum: 1\r\n\r\n"


def test_every_split_of_a_body() -> None:
    following = BODY + b"GET / HTTP/1.1"
    for i in range(len(following) + 1):
        for j in range(i, len(following) + 1, 3):
            assert walk([following[:i], following[i:j], following[j:]]) == (True, len(BODY))
    assert walk([bytes([b]) for b in following]) == (True, len(BODY))


def test_unfinished_bodies_do_not_end() -> None:
    for i in range(len(BODY)):
        assert walk([BODY[:i]]) == (False, i)


CHUNKS_REFUSED = [
    b"\r\n",
    b"g\r\n",
    b"-1\r\n",
    b"+1\r\n",
    b"0x5\r\n",
    b" 5\r\n",
    b"5 \r\n",
    b"5 ;a\r\n",
    b"5\t\r\n",
    b"5\nhello\n\r\n",
    b"5\r\nhelloX\r\n",
    b"5\r\nhello\n\r\n",
    b"5\r\nhello\rX",
    b"5\r\nhell\r\n\r\n",
    b"5;\x00\r\n",
    b"5;a\nb\r\n",
    b"5;a\rb\r\n",
    b"1_0\r\n",
    b"f" * 16 + b"\r\n",
    b"5;" + b"x" * 1024 + b"\r\n",
    b"0\r\nno colon\r\n\r\n",
    b"0\r\n folded: x\r\n\r\n",
    b"0\r\nX : y\r\n\r\n",
    b"0\r\nContent-Length: 5\r\n\r\n",
    b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"0\r\nHost: x\r\n\r\n",
    b"0\r\n" + (b"X: " + b"y" * 1000 + b"\r\n") * 9 + b"\r\n",
    b"1;" + b"e" * 1000 + b"\r\nx\r\n",
]


@pytest.mark.parametrize("body", CHUNKS_REFUSED)
def test_chunks_refused_whole_and_byte_by_byte(body: bytes) -> None:
    if body.startswith(b"1;"):
        body *= 70
    with pytest.raises(Malformed):
        walk([body])
    with pytest.raises(Malformed):
        walk([bytes([b]) for b in body])


def test_a_line_that_never_ends_is_refused() -> None:
    walker = ChunkWalker()
    for _ in range(10):
        assert walker.feed(b"5;" + b"x" * 100) == -1
    with pytest.raises(Malformed):
        walker.feed(b"x" * 100)


@given(
    st.lists(
        st.tuples(st.binary(min_size=1, max_size=40), st.sampled_from([b"", b";a", b';a="b"'])), max_size=8
    ),
    st.lists(st.integers(0, 400), max_size=8),
)
@settings(max_examples=300, deadline=None)
def test_any_chunks_any_split(chunks: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    body = b"".join(b"%x%s\r\n%s\r\n" % (len(c), e, c) for c, e in chunks) + b"0\r\n\r\n"
    data = body + b"rest"
    points = sorted({min(c, len(data)) for c in cuts} | {0, len(data)})
    pieces = [data[a:b] for a, b in itertools.pairwise(points)]
    assert walk(pieces) == (True, len(body))


# --- against other parsers


class _Told:
    """What llhttp makes of a connection's bytes."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.done = 0
        self.hosts: list[bytes] = []

    def on_message_begin(self) -> None:
        self.bodies.append(b"")

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"host":
            self.hosts.append(value)

    def on_body(self, body: bytes) -> None:
        self.bodies[-1] += body

    def on_message_complete(self) -> None:
        self.done += 1


def by_llhttp(data: bytes) -> tuple[int, list[bytes]] | None:
    """Complete messages and their bodies, None if it refuses."""
    told = _Told()
    parser = httptools.HttpRequestParser(told)
    try:
        parser.feed_data(data)
    except httptools.HttpParserError:
        return None
    return told.done, told.bodies[: told.done]


def by_h11(data: bytes) -> tuple[int, list[bytes]] | None:
    bodies: list[bytes] = []
    done = 0
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                bodies.append(b"")
            elif isinstance(event, h11.Data):
                bodies[-1] += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                done += 1
                connection.send(h11.Response(status_code=200, headers=[(b"content-length", b"0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is h11.MUST_CLOSE:
                    break
                connection.start_next_cycle()
            else:
                break
    except (h11.RemoteProtocolError, h11.LocalProtocolError):
        return None
    return done, bodies[:done]


def by_us(data: bytes, scan: Callable[[bytes], RequestHead]) -> tuple[int, int, list[bytes]] | None:
    """Bytes used by complete messages, their number, their bodies; None if anything is refused."""
    done = at = 0
    bodies: list[bytes] = []
    try:
        while b"\r\n\r\n" in data[at:]:
            rest = data[at:]
            head = scan(rest)
            if head.length == CHUNKED:
                end = ChunkWalker().feed(rest, head.size)
                if end < 0:
                    break
                bodies.append(_unchunk(rest[head.size : end]))
            else:
                end = head.size + head.length
                if len(rest) < end:
                    break
                bodies.append(rest[head.size : end])
            at += end
            done += 1
            if not head.keep_alive or not head.minor or head.upgrade:  # as http1.py closes
                break
    except Malformed:
        return None
    return at, done, bodies


def _unchunk(raw: bytes) -> bytes:
    out = b""
    while True:
        line, _, raw = raw.partition(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        if size == 0:
            return out
        out += raw[:size]
        raw = raw[size + 2 :]


OTHERS = {"llhttp": by_llhttp, "h11": by_h11}


def agree(
    data: bytes, scan: Callable[[bytes], RequestHead] = scan, others: Iterable[str] = ("llhttp", "h11")
) -> None:
    """Messages that we accept, others accept with the same ends, whatever follows."""
    ours = by_us(data, scan)
    if ours is None:
        return
    used, done, bodies = ours
    for name in others:
        parse = OTHERS[name]
        assert parse(data[:used]) == (done, bodies), f"{name} frames otherwise: {data!r}"
        whole = parse(data)
        assert whole is None or whole[1][:done] == bodies, f"{name} frames otherwise: {data!r}"


NAMES = [
    b"Content-Length",
    b"Transfer-Encoding",
    b"Host",
    b"X-A",
    b"Connection",
    b"content-length ",
    b"Te",
    b"Accept",
]
VALUES = [
    b"5",
    b"0",
    b"chunked",
    b"a.b",
    b"close",
    b"keep-alive",
    b" 5 ",
    b"5,5",
    b"+5",
    b"\tchunked",
    b"x\xe9",
    b"CHUNKED",
]
ENDS = [b"\r\n"] * 8 + [b"\n", b"\r", b"\r\n ", b"\r\r\n"]
BODIES = [
    b"",
    b"hello",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5;x\r\nhello\r\n0\r\nA: b\r\n\r\n",
    b"0\r\n\r\n",
    b"5\nhello\r\n0\r\n\r\n",
]

lines = st.tuples(
    st.sampled_from(NAMES),
    st.sampled_from([b": ", b":", b" : ", b":\t"]),
    st.sampled_from(VALUES),
    st.sampled_from(ENDS),
).map(b"".join)
messages = st.builds(
    lambda first, host, fields, body: first + host + b"".join(fields) + b"\r\n" + body,
    st.sampled_from(
        [b"GET / HTTP/1.1\r\n", b"POST /p HTTP/1.1\r\n", b"POST /p HTTP/1.0\r\n", b"PUT /a?b HTTP/1.1\r\n"]
    ),
    st.sampled_from([b"Host: a.b\r\n", b"Host: a.b\r\n", b"host:a.b:80 \r\n", b""]),
    st.lists(lines, max_size=3),
    st.sampled_from(BODIES),
)


@given(st.lists(messages, min_size=1, max_size=3).map(b"".join))
@settings(max_examples=1500, deadline=None)
def test_generated_messages_are_framed_alike(data: bytes) -> None:
    agree(data)


@given(messages, st.integers(0, 200), st.sampled_from([bytes([b]) for b in range(256)]), st.booleans())
@settings(max_examples=1500, deadline=None)
def test_mutated_messages_are_framed_alike(data: bytes, at: int, byte: bytes, insert: bool) -> None:
    at %= len(data)
    agree(data[:at] + byte + data[at + (0 if insert else 1) :])


@given(st.text(alphabet=' ;="\\\tab\x01é', max_size=8).map(lambda text: text.encode("latin-1")))
@settings(max_examples=1500, deadline=None)
def test_chunk_extensions_are_framed_alike(extension: bytes) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding: chunked\r\n\r\n"
    agree(head + b"5" + extension + b"\r\nhello\r\n0" + extension + b"\r\n\r\n")


@pytest.mark.parametrize("name", REFUSED)
def test_adversarial_heads_are_framed_alike(name: str) -> None:
    agree(REFUSED[name] + BODY)
