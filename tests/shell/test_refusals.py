"""Answers of our own: every status has words, a code, and a remedy."""

from __future__ import annotations

import json

import pytest

from activator_replacement.refusals import NEVER, REFUSALS, event_stream_error, response
from kserve_ext.wire.http1 import scan_response
from tests.support.dataplane import unchunk


@pytest.mark.parametrize("status", sorted(REFUSALS))
def test_each_status(status: int) -> None:
    data = response(status, "Because of this.", request_id=b"r-1", close=True)
    size = data.index(b"\r\n\r\n") + 4
    head = scan_response(data, size, False)
    assert (head.status, head.length, head.keep_alive, head.request_id) == (
        status,
        len(data) - size,
        False,
        True,
    )
    error = json.loads(data[size:])["error"]
    assert error["message"] == f"Because of this. {REFUSALS[status].remedy}"
    assert error["type"] == REFUSALS[status].type
    assert error["code"] == REFUSALS[status].code
    assert (b"\r\nretry-after: " in data) == (status in (429, 503))
    assert response(status, "x", to_head=True).endswith(b"\r\n\r\n")


def test_codes_are_distinct() -> None:
    assert len({kind.code for kind in REFUSALS.values()}) == len(REFUSALS)


def test_retry_after_is_rounded_up() -> None:
    assert b"\r\nretry-after: 3\r\n" in response(503, "", 2.1)
    assert b"\r\nretry-after: 1\r\n" in response(502, "", 0.2)


def test_what_does_not_pass_names_no_time() -> None:
    data = response(503, "can't serve: --x: no such option", NEVER)
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"retry" not in head.lower()
    message = json.loads(body)["error"]["message"]
    assert message == "can't serve: --x: no such option. Retrying does not help until that is corrected."


def test_event_stream_error_is_an_event_and_the_last_chunk() -> None:
    body = unchunk(event_stream_error("it died"))
    assert body.startswith(b"data: {")
    assert body.endswith(b"}\n\n")
    assert json.loads(body[6:])["error"]["code"] == "instance_failed"
