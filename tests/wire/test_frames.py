"""Frames: any split gives the same frames; bytes that are none are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.wire import frames
from kserve_ext.wire.frames import Frame, FrameReader, Malformed, frame

bodies = st.lists(st.binary(max_size=200), min_size=1, max_size=6)


@given(bodies, st.lists(st.integers(1, 300), max_size=30))
def test_any_split_gives_the_same_frames(sent: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(
        frame(frames.REQUEST, 11, k + 1, body, epoch=k, deadline_ms=5, trace=b"t" * 16, span=b"s" * 8)
        for k, body in enumerate(sent)
    )
    reader, got, at = FrameReader(), list[Frame](), 0
    for cut in [*cuts, len(stream)]:
        got += reader.feed(stream[at : at + cut])
        at += cut
        if at >= len(stream):
            break
    assert [f.body for f in got] == sent
    assert [(f.call_id, f.epoch) for f in got] == [(k + 1, k) for k in range(len(sent))]
    assert all(f.trace == b"t" * 16 and f.deadline_ms == 5 for f in got)


def test_every_single_split_of_two_frames() -> None:
    stream = frame(frames.REPLY, 3, 7, b"hello") + frame(frames.ERROR, 4, 8, b"")
    for cut in range(len(stream) + 1):
        reader = FrameReader()
        got = reader.feed(stream[:cut]) + reader.feed(stream[cut:])
        assert [(f.kind, f.call_id, f.body) for f in got] == [(2, 7, b"hello"), (3, 8, b"")]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: somebody who got the port wrong\r\n\r\n",
        bytes(frames.HEADER_BYTES),
        frames.HEADER.pack(frames.MAX_BODY_BYTES * 2, 1, 1, 0, 1, 1, 1, bytes(16), bytes(8)),
        frames.HEADER.pack(44, 9, 1, 0, 1, 1, 1, bytes(16), bytes(8)),
    ],
)
def test_what_is_no_frame_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        FrameReader().feed(data)


@given(st.binary(max_size=600), st.integers(1, 80))
def test_whatever_comes_is_frames_or_malformed(data: bytes, step: int) -> None:
    reader, got = FrameReader(), list[Frame]()
    try:
        for at in range(0, len(data), step):
            got += reader.feed(data[at : at + step])
    except Malformed:
        return
    assert sum(frames.HEADER_BYTES + len(f.body) for f in got) <= len(data)
    assert b"".join(f.body for f in got) in data or len(got) > 1
