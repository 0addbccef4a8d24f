"""Heads that a queue-proxy passes on, over HTTP/1.1 and HTTP/2."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.wire.http1 import scan_request
from kserve_ext.wire.http2.fields import fields
from kserve_ext.wire.http2.forward_queue import forward_to_server as forward2
from kserve_ext.wire.http2.headers import scan_request as scan2
from kserve_ext.wire.http2.hpack import literal
from kserve_ext.wire.queue_head import QUEUE, QueueHead, forward_to_server, forwarded

CLIENT = b"10.0.0.9"


def scanned(*lines: str) -> QueueHead:
    data = "\r\n".join(["GET /a?b HTTP/1.1", *lines, "", ""]).encode()
    head = scan_request(data, len(data), QUEUE)
    assert isinstance(head, QueueHead)
    return head


def passed_on(*lines: str) -> list[str]:
    return forward_to_server(scanned(*lines), CLIENT).decode().split("\r\n")[:-2]


def test_the_host_that_an_activator_has_put_away_comes_back() -> None:
    assert passed_on(
        "Host: 10.1.2.3:8012",
        "K-Original-Host: svc.example.com",
        "K-Proxy-Request: activator",
        "X-Forwarded-For: 1.2.3.4, 5.6.7.8",
        "Knative-Serving-Revision: rev",
        "Knative-Serving-Namespace: ns",
    ) == [
        "GET /a?b HTTP/1.1",
        "Host: svc.example.com",
        "K-Proxy-Request: activator",
        "X-Forwarded-For: 1.2.3.4, 5.6.7.8, 10.0.0.9",
        "Forwarded: for=1.2.3.4, for=5.6.7.8",
    ]


def test_without_forwarded_headers_none_is_made() -> None:
    assert passed_on("Host: a") == ["GET /a?b HTTP/1.1", "Host: a", "X-Forwarded-For: 10.0.0.9"]


def test_a_forwarded_that_is_there_stays() -> None:
    lines = passed_on("Host: a", "Forwarded: for=x", "X-Forwarded-Proto: https")
    assert [line for line in lines if line.startswith("Forwarded")] == ["Forwarded: for=x"]


def test_forwarded_of_several_lines_begins_with_the_first() -> None:
    lines = passed_on("Host: a", "X-Forwarded-For: 1.1.1.1", "x-forwarded-for: 2.2.2.2")
    assert lines[-3:] == [
        "X-Forwarded-For: 1.1.1.1",
        "x-forwarded-for: 2.2.2.2, 10.0.0.9",
        "Forwarded: for=1.1.1.1",
    ]


def test_forwarded_has_what_the_three_say() -> None:
    assert forwarded(b"::1, 2.2.2.2", b"https", b"h") == b'for="[::1]";host=h;proto=https, for=2.2.2.2'
    assert forwarded(b"", b"http", b"") == b"proto=http"


def test_who_asks_about_the_pod_is_known_by_its_user_agent() -> None:
    for agent in ("kube-probe/1.30", "Knative-Activator-Probe", "Knative-Autoscaling-Probe"):
        assert scanned("Host: a", f"User-Agent: {agent}").prober
    assert not scanned("Host: a", "K-Kubelet-Probe: x").prober  # as the one that reads user agents alone
    assert not scanned("Host: a", "User-Agent: Knative-Ingress-Probe", "K-Network-Probe: probe").prober
    assert scanned("Host: a", "K-Proxy-Request: activator").proxied
    assert not scanned("Host: a", "K-Proxy-Request: other").proxied


NAMES = st.sampled_from(
    [
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "Forwarded",
        "K-Original-Host",
        "K-Proxy-Request",
        "Knative-Serving-Revision",
        "User-Agent",
        "X-Other",
    ]
)
VALUES = st.sampled_from(["a", "activator", "1.2.3.4", "::1", "a, b", "svc.example.com"])
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=6, unique_by=lambda pair: pair[0])


@given(HEADERS)
def test_http2_says_the_same(headers: list[tuple[str, str]]) -> None:
    headers = [(name, value) for name, value in headers if name != "K-Original-Host" or value[0] not in ":,"]
    headers = [(n, "h" if n == "K-Original-Host" else v) for n, v in headers]
    lines = passed_on("Host: pod:8012", *(f"{name}: {value}" for name, value in headers))[1:]
    one = sorted((name.lower(), value) for name, _, value in (line.partition(": ") for line in lines))
    block = b"".join(
        literal(name.lower().encode(), value.encode())
        for name, value in [
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/a?b"),
            (":authority", "pod:8012"),
            *headers,
        ]
    )
    facts = scan2(block, True, 1 << 20)
    made = forward2(facts.block, facts.authority, CLIENT, facts.shared)
    two = [(field.name.decode(), field.value.decode()) for field in fields(made.block)]
    assert [name for name, _ in two if name.startswith(":")] == [name for name, _ in two[:4]]
    renamed = {":authority": "host"}
    two = sorted(
        (renamed.get(name, name), value) for name, value in two if name not in (":method", ":scheme", ":path")
    )
    assert two == one
    assert made.proxied == (("K-Proxy-Request", "activator") in headers)
