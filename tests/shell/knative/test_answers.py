"""Probes and errors in Knative's words."""

from __future__ import annotations

import pytest

from activator_replacement.knative.answers import Answer, error, http1, probe


@pytest.mark.parametrize(
    ("kubelet", "value", "hash_", "unhealthy", "status", "body"),
    [
        (True, b"", b"", "", 200, b""),
        (True, b"", b"", "received SIGTERM from kubelet", 500, b"received SIGTERM from kubelet\n"),
        (False, b"probe", b"h", "draining", 200, b""),
        (
            False,
            b"probe",
            b"",
            "",
            400,
            b'a probe request must contain a non-empty "K-Network-Hash" header\n',
        ),
        (False, b"activator", b"", "draining", 200, b"activator"),
        (False, b"queue", b"", "", 400, b'unexpected probe header value: "queue"\n'),
        (False, b"<a&b>", b"", "", 400, b'unexpected probe header value: "&lt;a&amp;b&gt;"\n'),
    ],
)
def test_probe(kubelet: bool, value: bytes, hash_: bytes, unhealthy: str, status: int, body: bytes) -> None:
    answer = probe(kubelet, value, hash_, unhealthy)
    assert answer is not None
    assert (answer.status, answer.body) == (status, body)


def test_what_is_no_probe() -> None:
    assert probe(False, b"", b"hash", "") is None


def test_the_hash_is_echoed() -> None:
    assert http1(Answer(200, b"", ((b"K-Network-Hash", b"abc"),))) == (
        b"HTTP/1.1 200 OK\r\nK-Network-Hash: abc\r\nContent-Length: 0\r\n\r\n"
    )


def test_errors() -> None:
    assert http1(error(503, "pending request queue full", 0.5), close=True) == (
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"X-Content-Type-Options: nosniff\r\nRetry-After: 1\r\nContent-Length: 27\r\nConnection: close\r\n\r\n"
        b"pending request queue full\n"
    )
    assert error(500, "") == Answer(500)
    assert http1(error(504, "activator request timeout"), to_head=True) == (
        b"HTTP/1.1 504 Gateway Timeout\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 25\r\n\r\n"
    )
