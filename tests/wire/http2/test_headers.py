"""Header blocks: facts and forwarded blocks are what hpack reads, plain and Huffman-coded; smuggling is refused."""

from __future__ import annotations

from typing import cast

import hpack
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kserve_ext.core.ids import RevisionKey
from kserve_ext.wire.http1 import Malformed
from kserve_ext.wire.http2 import headers
from kserve_ext.wire.http2.fields import COLD, MOST_PER_BYTE, TooLarge, fields, walk
from kserve_ext.wire.http2.forward import Hop2, forward_request, forward_response, forward_to_pod, hop, naming
from kserve_ext.wire.http2.frames import Violation
from kserve_ext.wire.http2.headers import RequestBlock, check_trailers, scan_request, scan_response
from kserve_ext.wire.http2.hpack import STATIC, literal
from kserve_ext.wire.http2.translate import answer_block, request_block

Pairs = list[tuple[str, str]]

PSEUDO: Pairs = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/inference.GRPCInferenceService/ModelInfer"),
    (":authority", "tiny.default.example.com:80"),
]
HOP = Hop2("10.0.0.9")


def encode(pairs: Pairs, huffman: bool = True) -> bytes:
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    return encoder.encode(pairs, huffman=huffman)[1:]


def decode(block: bytes) -> list[tuple[bytes, bytes]]:
    found = hpack.Decoder(max_header_list_size=1 << 20).decode(block, raw=True)
    return [(bytes(name), bytes(value)) for name, value in found]


def request(*more: tuple[str, str], huffman: bool = True) -> RequestBlock:
    return scan_request(encode([*PSEUDO, *more], huffman))


@pytest.mark.parametrize("huffman", [True, False])
def test_facts_of_a_request(huffman: bool) -> None:
    head = request(
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("content-length", "12"),
        ("knative-serving-namespace", "default"),
        ("knative-serving-revision", "tiny-00001"),
        ("x-request-id", "abc"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-proto", "https"),
        ("user-agent", "kube-probe/1.34"),
        ("k-network-probe", "probe"),
        ("k-network-hash", "abc123"),
        ("k-kubelet-probe", "queue"),
        ("k-original-host", "a.b"),
        huffman=huffman,
    )
    assert (head.method, head.path) == (b"POST", b"/inference.GRPCInferenceService/ModelInfer")
    assert (head.authority, head.length) == (b"tiny.default.example.com:80", 12)
    assert (head.namespace, head.revision, head.request_id) == (b"default", b"tiny-00001", b"abc")
    assert (head.forwarded_for, head.forwarded, head.forwarded_proto) == (b"1.2.3.4", None, True)
    assert (head.user_agent, head.probe, head.hash) == (b"kube-probe/1.34", b"probe", b"abc123")
    assert head.kubelet
    assert head.original_host


def test_host_stands_in_for_authority() -> None:
    assert scan_request(encode([*PSEUDO[:3], ("host", "a.b")])).authority == b"a.b"
    assert request(("host", PSEUDO[3][1])).authority == PSEUDO[3][1].encode()


@pytest.mark.parametrize("huffman", [True, False])
def test_forwarded_in_the_embedded_cluster(huffman: bool) -> None:
    head = request(
        ("knative-serving-namespace", "default"),
        ("x-a", "1"),
        ("k-proxy-request", "forged"),
        ("x-galaxy-continuation", "resume=1"),
        ("knative-serving-revision", "tiny-00001"),
        ("proxy-authorization", "secret"),
        huffman=huffman,
    )
    added = [
        (b"k-proxy-request", b"activator"),
        (b"x-forwarded-for", b"10.0.0.9"),
        (b"forwarded", b"for=10.0.0.9;proto=http"),
        (b"x-forwarded-proto", b"http"),
        (b"x-request-id", b"id"),
    ]
    pseudo = [(name.encode(), value.encode()) for name, value in PSEUDO]
    assert decode(forward_request(head, HOP, b"id")) == [*pseudo, (b"x-a", b"1"), *added]
    assert decode(forward_request(head, HOP, b"")) == [*pseudo, (b"x-a", b"1"), *added[:-1]]


def test_forwarding_headers_are_appended_to_the_last() -> None:
    head = request(
        ("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2"), ("forwarded", "for=3.3.3.3")
    )
    found = decode(forward_request(head, Hop2("::1"), b""))
    assert [value for name, value in found if name == b"x-forwarded-for"] == [b"1.1.1.1", b"2.2.2.2, ::1"]
    assert (b"forwarded", b'for=3.3.3.3, for="[::1]";proto=http') in found
    assert (b"x-forwarded-proto", b"http") in found


def test_forwarded_to_a_pod_of_knative() -> None:
    head = scan_request(
        encode(
            [
                *PSEUDO,
                ("host", PSEUDO[3][1]),
                ("knative-serving-namespace", "default"),
                ("knative-serving-namespace", "default"),
                ("knative-serving-revision", "tiny-00001"),
                ("k-network-hash", "h"),
                ("k-network-probe", "queue"),
                ("x-forwarded-proto", "https"),
                ("x-request-id", "of the ingress"),
                ("te", "trailers"),
                ("x-galaxy-continuation", "resume=1"),
            ]
        ),
        repeated=True,
    )
    assert decode(
        forward_to_pod(head, HOP, b"10.1.2.3:8013", False, naming(RevisionKey("default/tiny-00002")))
    ) == [
        (b":authority", b"10.1.2.3:8013"),
        *((name.encode(), value.encode()) for name, value in PSEUDO[:3]),
        (b"x-forwarded-proto", b"https"),
        (b"x-request-id", b"of the ingress"),
        (b"te", b"trailers"),
        (b"k-proxy-request", b"activator"),
        (b"k-original-host", PSEUDO[3][1].encode()),
        (b"x-forwarded-for", b"10.0.0.9"),
        (b"knative-serving-namespace", b"default"),
        (b"knative-serving-revision", b"tiny-00002"),
    ]


def test_an_earlier_hops_original_host_stays_and_a_mesh_is_asked_to_let_through() -> None:
    head = request(("k-original-host", "first.example.com"), ("k-original-host", ""))
    found = decode(forward_to_pod(head, HOP, b"tiny-00001-private.default", True, b""))
    assert [value for name, value in found if name == b"k-original-host"] == [b"first.example.com"]
    assert (b"k-passthrough-lb", b"true") in found


REFUSED: dict[str, Pairs] = {
    "connection": [*PSEUDO, ("connection", "close")],
    "transfer-encoding": [*PSEUDO, ("transfer-encoding", "chunked")],
    "upgrade": [*PSEUDO, ("upgrade", "websocket")],
    "keep-alive": [*PSEUDO, ("keep-alive", "5")],
    "proxy-connection": [*PSEUDO, ("proxy-connection", "x")],
    "te": [*PSEUDO, ("te", "gzip")],
    "upper case": [*PSEUDO, ("X-A", "1")],
    "space in a name": [*PSEUDO, ("x a", "1")],
    "colon in a name": [*PSEUDO, ("x:a", "1")],
    "no name": [*PSEUDO, ("", "1")],
    "CR LF in a value": [*PSEUDO, ("x-a", "1\r\nx-b: 2")],
    "NUL in a value": [*PSEUDO, ("x-a", "1\x002")],
    "LF in the path": [(":method", "GET"), (":scheme", "http"), (":path", "/\n"), (":authority", "a")],
    "space in the path": [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/ HTTP/1.1"),
        (":authority", "a"),
    ],
    "no path": [*PSEUDO[:2], PSEUDO[3]],
    "empty path": [*PSEUDO[:2], (":path", ""), PSEUDO[3]],
    "path without a slash": [*PSEUDO[:2], (":path", "x"), PSEUDO[3]],
    "no method": PSEUDO[1:],
    "no scheme": [PSEUDO[0], *PSEUDO[2:]],
    "no authority": PSEUDO[:3],
    "two paths": [*PSEUDO, (":path", "/")],
    "two authorities": [*PSEUDO, (":authority", "b")],
    "authority with a user": [*PSEUDO[:3], (":authority", "u@a")],
    "authority and another host": [*PSEUDO, ("host", "evil.example.com")],
    "two hosts": [*PSEUDO[:3], ("host", "a"), ("host", "a")],
    "status": [*PSEUDO, (":status", "200")],
    "unknown pseudo-header": [*PSEUDO, (":protocol", "websocket")],
    "pseudo-header after a header": [*PSEUDO[:3], ("x-a", "1"), PSEUDO[3]],
    "connect": [(":method", "CONNECT"), (":authority", "a:80")],
    "method": [(":method", "G T"), *PSEUDO[1:]],
    "two lengths": [*PSEUDO, ("content-length", "1"), ("content-length", "1")],
    "length list": [*PSEUDO, ("content-length", "1, 1")],
    "negative length": [*PSEUDO, ("content-length", "-1")],
    "two revisions": [*PSEUDO, ("knative-serving-revision", "a"), ("knative-serving-revision", "b")],
}


@pytest.mark.parametrize("pairs", REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("huffman", [True, False])
def test_refused_requests(pairs: Pairs, huffman: bool) -> None:
    for _ in range(2):  # what was refused is not remembered as good
        with pytest.raises(Malformed):
            scan_request(encode(pairs, huffman))


def test_an_indexed_field_is_refused_as_the_same_literal_is() -> None:
    pseudo = encode(PSEUDO[:3]) + literal(b":authority", b"a")
    refused: list[set[bytes]] = [set(), set()]
    for index, (name, value) in enumerate(STATIC[15:], 15):
        for found, field in zip(refused, (bytes((0x80 | index,)), literal(name, value)), strict=True):
            try:
                scan_request(pseudo + field)
            except Malformed:
                found.add(name)
    assert refused == [{b"transfer-encoding", b"content-length", b"host"}] * 2


@pytest.mark.parametrize("huffman", [True, False])
@pytest.mark.parametrize("value", ["a\x01b", "a\x7fb", "\x1f", "a\tb\x0b"])
def test_control_characters_are_refused_however_they_are_coded(value: str, huffman: bool) -> None:
    """Go gives up a connection that continues a header block after one."""
    with pytest.raises(Malformed):
        request(("x-a", value), huffman=huffman)
    assert request(("x-a", "a\tb"), huffman=huffman).block


@given(st.lists(st.tuples(st.sampled_from(["x-a", "cookie", "date"]), st.text("ab9~"))))
def test_a_list_is_as_large_as_its_fields_and_no_larger_than_allowed(pairs: Pairs) -> None:
    size = sum(32 + len(name) + len(value) for name, value in [(":status", "200"), *pairs])
    for huffman in (True, False):
        block = encode([(":status", "200"), *pairs], huffman)
        walk(block, size)
        with pytest.raises(TooLarge):
            walk(block, size - 1)
        assert size <= MOST_PER_BYTE * len(block)


def test_what_is_cut_out_of_a_block_counts_as_kept_until_it_is_forgotten() -> None:
    head = scan_request(encode(PSEUDO) + b"\xb1" * 1000)  # proxy-authorization
    assert head.kept_bytes > 100_000
    head.forget()
    assert head.kept_bytes == 0


def test_one_byte_may_stand_for_much_and_is_not_read_without_end() -> None:
    block = encode(PSEUDO) + b"\x90" * 1000
    for scan in (scan_request, scan_response, check_trailers):
        with pytest.raises(TooLarge):
            scan(block if scan is scan_request else block[-1000:], most=32_768)
    assert scan_request(block).block == block


def test_facts_and_marks_of_a_response() -> None:
    head = scan_response(
        encode([(":status", "200"), ("content-type", "text/event-stream; x=y"), ("x-a", "1")])
    )
    assert (head.status, head.length, head.event_stream) == (200, -1, True)
    assert decode(forward_response(head, b"id", True))[3:] == [
        (b"x-request-id", b"id"),
        (b"x-cold-start", b"true"),
    ]
    own = scan_response(
        encode(
            [(":status", "503"), ("x-request-id", "its"), ("x-cold-start", "false"), ("content-length", "3")]
        )
    )
    assert (own.status, own.length) == (503, 3)
    assert forward_response(own, b"id", True) == own.block
    coded = [(":status", "200"), ("content-type", "text/event-stream"), ("content-encoding", "gzip")]
    assert not scan_response(encode(coded)).event_stream


@pytest.mark.parametrize(
    "pairs",
    [
        [("x-a", "1")],
        [(":status", "101")],
        [(":status", "099")],
        [(":status", "600")],
        [(":status", "20")],
        [(":status", "2o0")],
        [(":status", "200"), (":status", "200")],
        [(":status", "200"), (":path", "/")],
        [(":status", "200"), ("connection", "close")],
        [(":status", "200"), ("content-length", "x")],
        [("x-a", "1"), (":status", "200")],
    ],
)
def test_refused_responses(pairs: Pairs) -> None:
    with pytest.raises(Malformed):
        scan_response(encode(pairs))


def test_trailers() -> None:
    check_trailers(encode([("grpc-status", "0"), ("grpc-message", "")]))
    for pair in ((":status", "200"), (":path", "/"), ("content-length", "1"), ("host", "a"), ("te", "gzip")):
        with pytest.raises(Malformed):
            check_trailers(encode([pair]))


@pytest.mark.parametrize(
    "block",
    [b"\x80", b"\xbe", b"\xff\x00", b"\x7f\x00\x01a", b"\x20", b"\x82\x20", b"\x00\x05ab", b"\x40", b"\x00",
     b"\x0f", b"\x7e\x01a", b"\x00\x01a\xff\xff\xff\xff\xff", b"\x04\x81\xff"],
)  # fmt: skip
def test_what_is_no_block_that_stands_alone_ends_the_connection(block: bytes) -> None:
    with pytest.raises(Violation):
        walk(block)


@given(st.binary(max_size=80))
def test_any_bytes_are_read_as_hpack_reads_them_or_refused(block: bytes) -> None:
    assume(not block.startswith((b" ", b"?")))
    try:
        walk(block)
    except (Malformed, Violation):
        return
    # hpack keeps a table where a literal says so; ours has no entries that could be named.
    assert [(f.name, f.value) for f in fields(block)] == decode(block)


TOKEN = st.text("abcdefghijklmnopqrstuvwxyz-0123456789", min_size=1, max_size=20)
VALUE = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=200)


@given(st.lists(st.tuples(TOKEN.map(lambda t: "x" + t), VALUE), max_size=10), st.booleans())
def test_other_headers_pass_as_they_came(pairs: Pairs, huffman: bool) -> None:
    assume(
        not any(
            name in ("x-request-id", "x-forwarded-for", "x-forwarded-proto", "x-cold-start")
            for name, _ in pairs
        )
    )
    head = request(*pairs, huffman=huffman)
    found = decode(forward_request(head, HOP, b""))
    assert found[4 : 4 + len(pairs)] == [(name.encode(), value.encode()) for name, value in pairs]
    assert [(f.name, f.value) for f in fields(head.block)] == decode(head.block)


@pytest.mark.parametrize("index", range(62))
@pytest.mark.parametrize("first", [0x00, 0x10, 0x40])
def test_a_literal_ends_where_it_ends(first: int, index: int) -> None:
    mask = 0x3F if first == 0x40 else 0x0F
    name = b"\x03x-a" if not index else b""
    number = bytes([first | index]) if index < mask else bytes([first | mask, index - mask])
    for size in (0, 1, 126, 127, 128, 300):
        value = b"trailers" if STATIC[index][0] == b"te" else b"7" * size
        length = bytes([len(value)]) if len(value) < 127 else hpack.hpack.encode_integer(len(value), 7)
        field = number + name + bytes(length) + value
        block = field + literal(b"x-cold-start", b"true")
        try:
            found = walk(block)
        except Malformed:
            assert index
            continue
        assert [(start, end) for kind, start, end, _ in found if kind == COLD] == [(len(field), len(block))]
        assert [f.value for f in fields(block)] == [value for _, value in decode(block)]


def test_the_table_of_known_fields_forgets() -> None:
    from kserve_ext.wire.http2 import fields as module

    for i in range(9000):
        request(("x-unique", str(i)))
    assert len(module._known) <= 8192
    secret = hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple("authorization", "Bearer secret")])
    walk(secret)
    assert secret not in module._known


def never(name: str, value: str) -> tuple[str, str]:
    return cast("tuple[str, str]", hpack.NeverIndexedHeaderTuple(name, value))


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ([("x-a", "1")], True),
        ([("x-a", "1" * 900)], False),
        ([never("x-token", "secret")], False),
        ([never("user-agent", "secret")], False),
        ([("knative-serving-revision", "a"), ("knative-serving-revision", "b")], False),
    ],
)
def test_a_block_is_read_once_unless_it_may_not_be_kept(more: Pairs, kept: bool) -> None:
    block = encode([*PSEUDO, *more])
    scan_request(block, True)  # a field that is seen for the first time makes its block one that is not kept
    head = scan_request(block, True)
    assert (scan_request(bytes(bytearray(block)), True) is head) == head.shared == kept
    assert (head.kept_bytes == 0) == kept
    if kept:
        with pytest.raises(TooLarge):
            scan_request(block, True, 100)


def test_a_block_with_a_field_that_was_never_seen_is_not_kept() -> None:
    blocks = [encode([*PSEUDO, ("grpc-timeout", f"{i}u")]) for i in range(123_456, 123_466)]
    assert not any(scan_request(block).shared for block in blocks)
    assert all(scan_request(block).shared for block in blocks)


def test_answers_with_a_field_that_may_not_be_kept_are_not() -> None:
    pairs: Pairs = [(":status", "200"), never("set-cookie", "secret")]
    scan_response(encode(pairs))
    assert scan_response(encode(pairs)) is not scan_response(encode(pairs))
    scan_response(encode(pairs[:1]))
    assert scan_response(encode(pairs[:1])) is scan_response(encode(pairs[:1]))


def test_knatives_headers_may_not_come_twice_where_they_may_not_though_they_have_elsewhere() -> None:
    block = encode([*PSEUDO, ("knative-serving-namespace", "a"), ("knative-serving-namespace", "b")])
    scan_request(block, True)
    with pytest.raises(Malformed):
        scan_request(block)


@given(
    st.lists(
        st.tuples(st.sampled_from(["x-a", "x-forwarded-for", "k-original-host"]), st.text("a1.", min_size=1))
    )
)
def test_a_block_that_was_forwarded_before_is_forwarded_alike(pairs: Pairs) -> None:
    block = encode([*PSEUDO, *pairs])
    hops = [hop("10.0.0.1"), hop("10.0.0.2"), hop("10.0.0.1")]
    again = [forward_to_pod(scan_request(block), one, b"pod:8012", False, b"") for one in hops]
    fresh = [
        forward_to_pod(headers._scan_request(block, False, 1 << 20), one, b"pod:8012", False, b"")
        for one in hops
    ]
    assert again == fresh
    assert again[0] == again[2] != again[1]
    mesh = forward_to_pod(scan_request(block), hops[0], b"a.b.svc", True, b"")
    assert dict(decode(mesh)) == {
        **dict(decode(again[0])),
        b":authority": b"a.b.svc",
        b"k-passthrough-lb": b"true",
    }


def test_heads_of_http1() -> None:
    head = (
        b"GET /a?b HTTP/1.1\r\nHost: a.b:80\r\nConnection: Upgrade, HTTP2-Settings, TE\r\nUpgrade: h2c\r\n"
        b"X-Mine: 1\r\nconnection: X-Other ,x-mine\r\nX-Other: 2\r\n"
        b"HTTP2-Settings: AAMAAABk\r\nTE: trailers, gzip\r\nX-Mixed: Case \r\n\r\n"
    )
    assert decode(request_block(head)) == [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", b"/a?b"),
        (b":authority", b"a.b:80"),
        (b"te", b"trailers"),
        (b"x-mixed", b"Case"),
    ]
    answer = answer_block(b"HTTP/1.1 429 Too Many\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
    assert (answer.status, answer.body) == (429, b"no")
    assert decode(answer.block) == [(b":status", b"429"), (b"content-length", b"2")]
