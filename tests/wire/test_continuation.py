"""A marked stream, cut anywhere and broken off anywhere: the client has each byte once, and never a mark."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.wire.continuation import END, MarkedStream, chunk
from kserve_ext.wire.http1 import Malformed

Event = tuple[bytes, bytes]  # what the client gets, and the mark's text

texts = st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=20)
bodies = texts.map(lambda text: f"data: {text}\n\n".encode())


@st.composite
def streams(draw: st.DrawFn) -> list[Event]:
    events = draw(st.lists(bodies, min_size=1, max_size=12))
    return [(body, b"%d %d,%d" % (n, n, n + 7)) for n, body in enumerate(events, 1)]


def marked(event: Event) -> bytes:
    return event[0] + b": galaxy " + event[1] + b"\n\n"


def framed(payload: bytes, sizes: list[int]) -> bytes:
    """As chunks of these sizes, the last of which repeats."""
    out = b""
    turn = 0
    while payload:
        size = sizes[min(turn, len(sizes) - 1)]
        out += chunk(payload[:size])
        payload, turn = payload[size:], turn + 1
    return out


def unframed(body: bytes) -> tuple[bytes, bool]:
    """Payload of a chunked body, and whether it has ended."""
    out = b""
    while body:
        line, _, body = body.partition(b"\r\n")
        size = int(line, 16)
        if not size:
            assert body == b"\r\n"
            return out, True
        out += body[:size]
        assert body[size : size + 2] == b"\r\n"
        body = body[size + 2 :]
    return out, False


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[a:b] for a, b in zip([0, *ends], ends, strict=False) if a < b]


@given(streams(), st.lists(st.integers(1, 60), min_size=1, max_size=5), st.lists(st.integers(0), max_size=20))
def test_any_split_lets_the_same_bytes_through(
    events: list[Event], sizes: list[int], places: list[int]
) -> None:
    payload = b"".join(map(marked, events)) + b"data: [DONE]\n\n: galaxy done\n\n"
    stream = MarkedStream(b"0")
    got = b"".join(map(stream.feed, cut(framed(payload, sizes) + END, places)))
    assert unframed(got) == (b"".join(body for body, _ in events) + b"data: [DONE]\n\n", True)
    assert stream.record == b"\n".join([b"0", *(text for _, text in events)])
    assert (stream.done, stream.ended, stream.surplus, stream.open) == (True, True, False, True)


@given(
    streams(),
    st.lists(st.integers(1, 60), min_size=1, max_size=5),
    st.lists(st.integers(0), max_size=10),
    st.lists(st.integers(0), min_size=1, max_size=4),
)
def test_dead_at_any_bytes_and_continued_it_is_the_uninterrupted_stream(
    events: list[Event], sizes: list[int], places: list[int], deaths: list[int]
) -> None:
    stream = MarkedStream(b"0")
    got = b""
    for death in deaths:  # each instance goes on behind what the record tells of
        told = stream.record.count(b"\n")
        body = framed(b"".join(map(marked, events[told:])), sizes)
        for piece in cut(body[: death % (len(body) + 1)], places):
            got += stream.feed(piece)
        assert unframed(got)[0] == b"".join(body for body, _ in events[: stream.record.count(b"\n")])
        stream.break_off()
    told = stream.record.count(b"\n")
    for piece in cut(framed(b"".join(map(marked, events[told:])), sizes) + END, places):
        got += stream.feed(piece)
    assert unframed(got) == (b"".join(body for body, _ in events), True)


def test_what_has_no_mark_is_held_back_and_comes_with_the_end() -> None:
    stream = MarkedStream(b"0")
    assert stream.feed(chunk(b"data: a\n\n")) == b""
    assert stream.feed(END + b"more") == chunk(b"data: a\n\n") + END
    assert stream.surplus


def test_after_an_error_nobody_goes_on() -> None:
    stream = MarkedStream(b"0")
    error = b'data: {"error": {}}\n\n'
    assert stream.feed(chunk(error + b": galaxy error\n\n")) == chunk(error)
    assert not stream.open


def test_a_record_that_grows_too_large_is_given_up() -> None:
    stream = MarkedStream(b"0")
    one = b"data: a\n\n: galaxy " + b"1," * 300_000 + b"\n\n"
    for _ in range(2):
        assert stream.feed(chunk(one)) == chunk(b"data: a\n\n")
    assert not stream.open


@pytest.mark.parametrize(
    "body", [b"+5\r\nhello\r\n", b"0x5\r\nhello\r\n", b"5\r\nhello!\r\n", b"f" * 2000, b"7fffffff\r\nhello"]
)
def test_what_is_no_chunked_body_is_refused(body: bytes) -> None:
    with pytest.raises(Malformed):
        MarkedStream(b"0").feed(body)
