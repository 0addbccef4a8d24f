"""Request heads in Knative's dialect: probes recognised, hosts exchanged, headers of the hop removed."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kserve_ext.core.ids import RevisionKey
from kserve_ext.wire.http1 import Malformed, scan_request
from kserve_ext.wire.http1_forward import Hop, forward_request
from kserve_ext.wire.knative_head import KnativeHead, forward_to_pod, naming, scan_knative
from tests.wire.test_http1 import BODY, REFUSED, agree, by_h11, by_us, messages

HOP = Hop("10.1.1.1")


def head(*lines: str, first: str = "GET /x HTTP/1.1") -> bytes:
    return "\r\n".join([first, *lines, "", ""]).encode()


def scan(data: bytes) -> KnativeHead:
    return scan_knative(data, data.index(b"\r\n\r\n") + 4)


def forwarded(
    *lines: str, host: bytes = b"10.0.0.7:8012", passthrough: bool = False, named: bytes = b""
) -> list[bytes]:
    data = head(*lines)
    passed = forward_to_pod(scan(data), HOP, host, passthrough, named)
    assert passed.endswith(b"\r\n\r\n")
    scan(passed)
    return passed.split(b"\r\n")[1:-2]


def test_the_revision_that_was_chosen_is_named_and_not_what_the_client_said() -> None:
    passed = forwarded(
        "Host: hello.default.example.com",
        "Knative-Serving-Namespace: default",
        "Knative-Serving-Revision: mine-00009",
        named=naming(RevisionKey("default/hello-00001")),
    )
    said = [line for line in passed if line.lower().startswith(b"knative-serving")]
    assert said == [b"Knative-Serving-Namespace: default", b"Knative-Serving-Revision: hello-00001"]


def test_a_plain_request() -> None:
    assert forwarded(
        "Host: hello.default.example.com",
        "Knative-Serving-Namespace: default",
        "knative-serving-revision: hello-00001",
        "X-Forwarded-Proto: https",
        "Forwarded: for=1.2.3.4",
        "X-Request-Id: not, one, token",
        "K-Network-Hash: abc",
        "K-Proxy-Request: mine",
        "X-Galaxy-Continuation: resume=1",
        "Knative-Serving-Tag: blue",
    ) == [
        b"Host: 10.0.0.7:8012",
        b"K-Original-Host: hello.default.example.com",
        b"X-Forwarded-Proto: https",
        b"Forwarded: for=1.2.3.4",
        b"X-Request-Id: not, one, token",
        b"Knative-Serving-Tag: blue",
        b"K-Proxy-Request: activator",
        b"X-Forwarded-For: 10.1.1.1",
    ]


def test_an_original_host_of_an_earlier_hop_stays() -> None:
    assert forwarded(
        "A: b", "K-Original-Host: first.example", "host: second.example", "X-Forwarded-For: 1.1.1.1"
    ) == [
        b"A: b",
        b"K-Original-Host: first.example",
        b"Host: 10.0.0.7:8012",
        b"X-Forwarded-For: 1.1.1.1, 10.1.1.1",
        b"K-Proxy-Request: activator",
    ]
    assert forwarded("K-Original-Host:", "Host: h") == [
        b"Host: 10.0.0.7:8012",
        b"K-Original-Host: h",
        b"K-Proxy-Request: activator",
        b"X-Forwarded-For: 10.1.1.1",
    ]


def test_pod_addressability_of_a_mesh() -> None:
    passed = forwarded("Host: h", host=b"hello-00001-private.default", passthrough=True)
    assert passed[0] == b"Host: hello-00001-private.default"
    assert b"K-Passthrough-Lb: true" in passed


def test_upgrades_and_trailers() -> None:
    assert forwarded(
        "Host: h", "Connection: keep-alive, Upgrade", "Upgrade: websocket", "TE: gzip, trailers"
    ) == [
        b"Host: 10.0.0.7:8012",
        b"K-Original-Host: h",
        b"Upgrade: websocket",
        b"K-Proxy-Request: activator",
        b"X-Forwarded-For: 10.1.1.1",
        b"Te: trailers",
        b"Connection: Upgrade",
    ]
    assert scan(head("Host: h", "Connection: Upgrade", "Upgrade: SPDY/3.1")).upgrade
    h2c = scan(
        head("Host: h", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    )
    assert (h2c.h2c, h2c.upgrade) == (True, False)


@pytest.mark.parametrize(
    ("lines", "kubelet", "probe", "hash_"),
    [
        (["User-Agent: kube-probe/1.36"], True, b"", b""),
        (["user-agent: kube-probe/"], True, b"", b""),
        (["User-Agent: curl/8 kube-probe/"], False, b"", b""),
        (["K-Kubelet-Probe: true"], True, b"", b""),
        (["K-Kubelet-Probe:"], False, b"", b""),
        (["k-network-probe: activator", "K-Network-Probe: queue"], False, b"activator", b""),
        (["K-Network-Probe: probe", "K-Network-Hash: override"], False, b"probe", b"override"),
    ],
)
def test_probes(lines: list[str], kubelet: bool, probe: bytes, hash_: bytes) -> None:
    found = scan(head("Host: h", *lines))
    assert (found.kubelet, found.probe, found.hash) == (kubelet, probe, hash_)


def test_the_first_of_two_revision_headers_counts() -> None:
    found = scan(head("Host: h", "Knative-Serving-Revision: a", "Knative-Serving-Revision: b"))
    assert found.revision == b"a"


@pytest.mark.parametrize("method", ["PROPFIND", "PURGE", "M-SEARCH", "get"])
def test_any_method_is_taken(method: str) -> None:
    assert scan(head("Host: h", first=f"{method} / HTTP/1.1")).method == method.encode()


def test_a_path_may_hold_bytes_beyond_ascii() -> None:
    data = "GET /schöne/日本 HTTP/1.1\r\nHost: h\r\n\r\n".encode()
    passed = forward_to_pod(scan(data), HOP, b"p:1", False, b"")
    assert passed.startswith("GET /schöne/日本 HTTP/1.1\r\n".encode())


@pytest.mark.parametrize(
    "first",
    [
        "CONNECT / HTTP/1.1",
        "PRI * HTTP/1.1",
        "GET http://h/ HTTP/1.1",
        "GE T / HTTP/1.1",
        " / HTTP/1.1",
        "GET / HTTP/2.0",
    ],
)
def test_first_lines_that_are_refused(first: str) -> None:
    with pytest.raises(Malformed):
        scan(head("Host: h", first=first))


@pytest.mark.parametrize(
    "lines",
    [
        ["Host: a", "Host: b"],
        ["Host: h", "Content-Length: 1", "Transfer-Encoding: chunked"],
        ["Host: h", "Content-Length: 1", "Content-Length: 1"],
        ["Host: h", "K-Network-Probe : probe"],
        ["Host: h", "Connection: host"],
    ],
)
def test_ambiguous_heads_are_refused_as_in_the_other_dialect(lines: list[str]) -> None:
    with pytest.raises(Malformed):
        scan(head(*lines))


# --- against h11; llhttp knows only some methods

byte_values = st.sampled_from([bytes([b]) for b in range(256)])


@given(st.lists(messages, min_size=1, max_size=3).map(b"".join))
@settings(max_examples=700, deadline=None)
def test_generated_messages_are_framed_alike(data: bytes) -> None:
    agree(data, scan, ["h11"])


@given(messages, st.integers(0, 200), byte_values, st.booleans())
@settings(max_examples=700, deadline=None)
def test_mutated_messages_are_framed_alike(data: bytes, at: int, byte: bytes, insert: bool) -> None:
    at %= len(data)
    data = data[:at] + byte + data[at + (0 if insert else 1) :]
    assume(all(line.isascii() for line in data.split(b"\r\n") if line.endswith((b"HTTP/1.1", b"HTTP/1.0"))))
    agree(data, scan, ["h11"])


@pytest.mark.parametrize("name", REFUSED)
def test_adversarial_heads_are_framed_alike(name: str) -> None:
    agree(REFUSED[name] + BODY, scan, ["h11"])


@given(messages, st.integers(0, 200), byte_values)
@settings(max_examples=700, deadline=None)
def test_what_is_passed_on_is_framed_as_what_came(data: bytes, at: int, byte: bytes) -> None:
    at %= len(data)
    data = data[:at] + byte + data[at:]
    came = by_us(data, scan)
    if came is None or not came[1]:
        return
    head = scan(data)
    body = data[head.size : came[0]]
    passed = (forward_to_pod(head, HOP, b"10.0.0.7:8012", False, naming(RevisionKey("n/r")))) + body
    assert by_us(passed, scan) == (len(passed), 1, came[2][:1])
    if head.minor and passed.partition(b"\r\n")[0].isascii():
        assert by_h11(passed) == (1, came[2][:1])


FIELDS = (
    "X-A: 1",
    "X-Forwarded-For: 6.6.6.6",
    "Host: h",
    "Proxy-Authorization: secret",
    "K-Original-Host: o",
    "X-B: 2",
    "Knative-Serving-Revision: r",
    "Forwarded: for=b",
    "X-Forwarded-Proto: https",
    "X-Request-Id: id",
    "TE: gzip",
    "Upgrade: websocket",
)


@given(st.permutations(FIELDS), st.sets(st.sampled_from(FIELDS), min_size=1, max_size=3))
@settings(max_examples=400, deadline=None)
def test_what_connection_names_is_as_if_it_had_not_been_sent(fields: list[str], named: set[str]) -> None:
    """In both dialects, and nothing beside it changes: neither what is added to a neighbour nor what is cut of it."""
    named -= {"Host: h", "Upgrade: websocket"}
    assume(named)
    names = ", ".join(field.partition(":")[0] for field in sorted(named))
    whole = head(*fields, f"Connection: {names}")
    without = head(*(field for field in fields if field not in named))
    assert (forward_to_pod(scan(whole), HOP, b"p:1", False, b"")) == (
        forward_to_pod(scan(without), HOP, b"p:1", False, b"")
    )
    passed = [(forward_request(scan_request(data, len(data)), HOP, b"new")) for data in (whole, without)]
    assert passed[0] == passed[1]
