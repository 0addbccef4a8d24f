"""What is kept of lines: never more than its bounds, no secret, and nothing that changes what a line is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.wire import http1_lines
from kserve_ext.wire.http1_lines import (
    HOST,
    KEPT,
    KEPT_BYTES,
    LENGTH,
    PLAIN,
    REQUEST_NAMES,
    RESPONSE_NAMES,
    TYPE,
    Fields,
    Malformed,
    RequestLines,
    StatusLines,
)


def test_a_kept_line_is_what_it_was() -> None:
    fields = Fields(REQUEST_NAMES, 400)
    for _ in range(2):
        assert fields[b"hOST:\t a.b:80 "] == (HOST, b"a.b:80")
        assert fields[b"Content-Length: 12"] == (LENGTH, b"12")
        assert fields[b"X-Other: 12"] == (PLAIN, b"")
    assert len(fields) == 3


def test_no_more_is_kept_than_the_bound() -> None:
    fields, first_lines, statuses = Fields(REQUEST_NAMES, 400), RequestLines(), StatusLines()
    for number in range(KEPT + 10):
        assert fields[b"X-A: %d" % number] == (PLAIN, b"")
        assert first_lines[b"GET /%d HTTP/1.1" % number] == (b"GET", 1)
        assert statuses[b"HTTP/1.0 200 %d" % number] == (200, 0)
    assert [len(kept) for kept in (fields, first_lines, statuses)] == [10, 10, 10]


@pytest.mark.parametrize(
    "line",
    [
        b"Authorization: Bearer secret",
        b"cookie: secret",
        b"X-Request-Id: 1",
        b"X-A: " + b"x" * KEPT_BYTES,
    ],
)
def test_secrets_and_what_never_comes_twice_is_not_kept(line: bytes) -> None:
    fields = Fields(REQUEST_NAMES, 400)
    assert fields[line] == (PLAIN, b"")
    assert not fields


def test_a_query_is_not_kept() -> None:
    first_lines = RequestLines()
    assert first_lines[b"GET /?token=secret HTTP/1.1"] == (b"GET", 1)
    assert not first_lines


@pytest.mark.parametrize("line", [b"Content-Length: x", b"A : b", b" a: b", b"a: b\rc", b"a: b\nc: d", b""])
def test_what_is_refused_is_refused_again(line: bytes) -> None:
    for fields, status in ((Fields(REQUEST_NAMES, 400), 400), (Fields(RESPONSE_NAMES, 502), 502)):
        for _ in range(2):
            with pytest.raises(Malformed) as refused:
                fields[line]
            assert refused.value.status == status
            assert refused.value.reason
        assert not fields


def test_of_content_types_only_events_count() -> None:
    fields = Fields(RESPONSE_NAMES, 502)
    assert fields[b"Content-Type: Text/Event-Stream; charset=utf-8"][0] == TYPE
    assert fields[b"Content-Type: Text/Event-Stream; charset=utf-8"][1]
    assert fields[b"Content-Type: text/plain"] == (TYPE, b"")


@given(st.lists(st.sampled_from([*REQUEST_NAMES, b"x-a"]), min_size=1, max_size=8), st.binary(max_size=12))
def test_kept_or_new_it_is_the_same(names: list[bytes], value: bytes) -> None:
    kept = Fields(REQUEST_NAMES, 400)
    for line in [name + b": " + value for name in names] * 2:
        told = []
        for fields in (kept, Fields(REQUEST_NAMES, 400)):
            try:
                told.append(str(fields[line]))
            except http1_lines.Malformed as malformed:
                told.append(malformed.reason)
        assert told[0] == told[1]
