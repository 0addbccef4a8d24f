"""Absolute-form targets: what they become, and that nothing ambiguous becomes anything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.wire.http1 import Malformed, scan_request
from kserve_ext.wire.http1_absolute import origin_form
from kserve_ext.wire.knative_head import KNATIVE


def head(line: str, *fields: str) -> bytes:
    return "\r\n".join([line, *fields, "", ""]).encode()


@pytest.mark.parametrize(
    ("line", "fields", "first", "host"),
    [
        ("GET http://a.b/c?d=e HTTP/1.1", ("Host: x",), "GET /c?d=e HTTP/1.1", "a.b"),
        ("GET HTTPS://a.b:8080/ HTTP/1.1", ("HOST:   x  ",), "GET / HTTP/1.1", "a.b:8080"),
        ("POST http://[::1]:80 HTTP/1.1", ("Host: x", "Content-Length: 0"), "POST / HTTP/1.1", "[::1]:80"),
        ("OPTIONS http://a.b HTTP/1.1", ("Host: a.b",), "OPTIONS * HTTP/1.1", "a.b"),
        ("GET http://a.b?x HTTP/1.1", ("A: b", "Host: a.b"), "GET /?x HTTP/1.1", "a.b"),
        ("GET http://a.b/ HTTP/1.0", (), "GET / HTTP/1.0", "a.b"),
    ],
)
def test_it_is_served_as_origin_form_of_the_targets_host(
    line: str, fields: tuple[str, ...], first: str, host: str
) -> None:
    made = origin_form(head(line, *fields))
    assert made is not None
    assert made.split(b"\r\n")[0].decode() == first
    assert made.lower().count(b"\r\nhost:") == 1
    assert scan_request(made, len(made), KNATIVE).host.decode() == host


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("GET /a HTTP/1.1", ("Host: x",)),
        ("GET ftp://a.b/ HTTP/1.1", ("Host: x",)),
        ("GET http:///a HTTP/1.1", ("Host: x",)),
        ("GET http://:80/a HTTP/1.1", ("Host: x",)),
        ("GET http://user@a.b/ HTTP/1.1", ("Host: x",)),
        ("GET http://a.b/ HTTP/1.1", ("Host: x", "Host: y")),
        ("GET http://a.b /x HTTP/1.1", ("Host: x",)),
        ("GET http://a.b/ HTTP/1.1 HTTP/1.1", ("Host: x",)),
    ],
)
def test_what_is_not_to_be_understood_stays_refused(line: str, fields: tuple[str, ...]) -> None:
    assert origin_form(head(line, *fields)) is None


def test_without_a_host_line_http11_stays_refused() -> None:
    made = origin_form(head("GET http://a.b/ HTTP/1.1", "A: b"))
    assert made is not None
    with pytest.raises(Malformed, match="exactly one Host"):
        scan_request(made, len(made), KNATIVE)


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40))
def test_whatever_comes_out_ends_where_it_ended(target: bytes, name: bytes, value: bytes) -> None:
    given = b"GET http://a.b/%b HTTP/1.1\r\nHost: x\r\n%b: %b\r\n\r\n" % (target, name, value)
    made = origin_form(given)
    if made is None:
        return
    try:
        facts = scan_request(made, len(made), KNATIVE)
    except Malformed:
        return
    assert facts.host == b"a.b"
    assert made.find(b"\r\n\r\n") + 4 == len(made)
