"""One connection against h2 and against raw frames: splits, violations, floods, settings, the end."""

from __future__ import annotations

import h2.config
import h2.connection
import h2.events
import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.wire.http2 import frames
from kserve_ext.wire.http2.blocks import CONTINUATIONS
from kserve_ext.wire.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    Violation,
    frame,
    goaway,
    rst_stream,
    settings,
    window_update,
)
from kserve_ext.wire.http2.hpack import literal
from tests.wire.http2.support import REQUEST, Recorder, head, parse, server


def h2_client() -> h2.connection.H2Connection:
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    client.initiate_connection()
    return client


def conversation() -> bytes:
    """What h2 sends before it has read our SETTINGS: its blocks use the table."""
    client = h2_client()
    client.send_headers(1, [*REQUEST, ("x-long", "v" * 3000)])
    client.send_data(1, b"a" * 1000, pad_length=7)
    client.send_headers(3, [*REQUEST, ("x-long", "v" * 3000)], end_stream=True)
    client.send_headers(1, [("x-sum", "1")], end_stream=True)
    client.send_headers(5, [*REQUEST, ("x-many", "v" * 20_000)])
    client.reset_stream(5, 8)
    client.ping(b"12345678")
    client.send_headers(7, REQUEST, priority_weight=5)
    client.send_data(7, b"", end_stream=True)
    return client.data_to_send()


def told(recorder: Recorder) -> tuple[object, ...]:
    return recorder.log, recorder.bodies, recorder.ended, recorder.out()


def test_a_conversation() -> None:
    recorder = Recorder()
    recorder.receive(conversation())
    long = (*REQUEST, ("x-long", "v" * 3000))
    assert recorder.log == [
        ("opened", 1, long, False),
        ("opened", 3, long, True),
        ("headers", 1, (("x-sum", "1"),), True),
        ("opened", 5, (*REQUEST, ("x-many", "v" * 20_000)), False),
        ("reset", 5, 8),
        ("opened", 7, tuple(REQUEST), False),
    ]
    assert recorder.bodies == {1: b"a" * 1000, 7: b""}
    assert recorder.ended == {7}
    assert sorted(recorder.connection.streams) == [1, 3, 7]
    assert recorder.connection.buffered == 0
    sent = recorder.frames()
    assert (PING, ACK, 0, b"12345678") in sent
    assert (SETTINGS, ACK, 0, b"") in sent


@given(st.lists(st.integers(1, 30_000), max_size=40), st.booleans())
def test_every_split_of_the_bytes_is_read_alike(cuts: list[int], single: bool) -> None:
    data = conversation()
    whole = Recorder()
    whole.receive(data)
    parts = Recorder()
    at = 0
    for cut in cuts:
        parts.receive(data[at : at + cut])
        at += cut
    for byte in data[at : at + 300] if single else b"":
        parts.receive(bytes((byte,)))
        at += 1
    parts.receive(data[at:])
    assert told(parts) == told(whole)


def test_after_our_settings_h2_sends_blocks_without_a_table() -> None:
    client = h2_client()
    recorder = Recorder()
    client.receive_data(recorder.out())
    client.send_headers(1, REQUEST, end_stream=True)
    client.send_headers(3, [*REQUEST, ("x-a", "1")], end_stream=True)
    recorder.receive(client.data_to_send())
    assert [entry[1] for entry in recorder.log] == [1, 3]
    stream = recorder.streams[1]
    recorder.connection.send_headers(stream, hpack.Encoder().encode([(":status", "200")]), False)
    assert recorder.connection.send_data(stream, b"body", False) == 4
    recorder.connection.send_trailers(stream, hpack.Encoder().encode([("grpc-status", "0")]))
    events = client.receive_data(recorder.out())
    kinds = [type(event).__name__ for event in events]
    assert kinds[-4:] == ["ResponseReceived", "DataReceived", "TrailersReceived", "StreamEnded"]
    assert list(recorder.connection.streams) == [3]


def test_as_a_client_to_h2() -> None:
    recorder = Recorder(client=True)
    peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
    peer.initiate_connection()
    peer.update_settings({3: 1})
    connection = recorder.connection
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    block = encoder.encode(REQUEST)[1:]
    first = connection.begin(None, block, False)
    connection.send_data(first, b"request", True)
    peer.receive_data(recorder.out())
    recorder.receive(peer.data_to_send())
    assert not connection.room()  # one stream at a time, and it is under way
    peer.send_headers(1, [(":status", "100")])
    peer.send_headers(1, [(":status", "200")])
    peer.send_data(1, b"answer")
    peer.send_headers(1, [("grpc-status", "0")], end_stream=True)
    recorder.receive(peer.data_to_send())
    assert [entry[2] for entry in recorder.log] == [
        ((":status", "100"),),
        ((":status", "200"),),
        (("grpc-status", "0"),),
    ]
    assert recorder.bodies == {1: b"answer"}
    assert connection.room()
    peer.receive_data(recorder.out())
    second = connection.begin(None, block, True)
    third = connection.begin(None, block, True)
    recorder.out()
    recorder.receive(goaway(second.id, 0))
    assert recorder.log[-1] == ("went_away", [third.id], 0)
    assert not connection.room()
    assert list(connection.streams) == [second.id]


PRE = head(1)
VIOLATIONS = {
    "longer frame than allowed": (frame(DATA, 0, 1, b"x" * 16_385), frames.FRAME_SIZE_ERROR),
    "DATA on stream 0": (frame(DATA, 0, 0, b"x"), frames.PROTOCOL_ERROR),
    "DATA on an idle stream": (frame(DATA, 0, 3, b"x"), frames.PROTOCOL_ERROR),
    "all padding": (frame(DATA, PADDED, 1, b"\x05abc"), frames.PROTOCOL_ERROR),
    "padding without length": (frame(DATA, PADDED, 1, b""), frames.PROTOCOL_ERROR),
    "HEADERS on stream 0": (head(0), frames.PROTOCOL_ERROR),
    "HEADERS on an even stream": (head(2), frames.PROTOCOL_ERROR),
    "HEADERS on a closed stream": (rst_stream(1, 8) + head(1), frames.STREAM_CLOSED),
    "HEADERS below the last": (head(5) + head(3), frames.STREAM_CLOSED),
    "short priority": (frame(HEADERS, END_HEADERS | WITH_PRIORITY, 3, b"abc"), frames.FRAME_SIZE_ERROR),
    "frame within a block": (
        frame(HEADERS, 0, 3, b"") + frame(PING, 0, 0, b"12345678"),
        frames.PROTOCOL_ERROR,
    ),
    "CONTINUATION of another": (
        frame(HEADERS, 0, 3, b"") + frame(CONTINUATION, END_HEADERS, 1, b""),
        frames.PROTOCOL_ERROR,
    ),
    "CONTINUATION alone": (frame(CONTINUATION, END_HEADERS, 1, b""), frames.PROTOCOL_ERROR),
    "endless CONTINUATION": (
        frame(HEADERS, 0, 3, b"") + frame(CONTINUATION, 0, 3, b"") * (CONTINUATIONS + 1),
        frames.ENHANCE_YOUR_CALM,
    ),
    "long CONTINUATION": (
        frame(HEADERS, 0, 3, b"") + frame(CONTINUATION, 0, 3, b"\x82" * 16_384) * 3,
        frames.ENHANCE_YOUR_CALM,
    ),
    "PUSH_PROMISE": (frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2"), frames.PROTOCOL_ERROR),
    "short PING": (frame(PING, 0, 0, b"1"), frames.FRAME_SIZE_ERROR),
    "PING on a stream": (frame(PING, 0, 1, b"12345678"), frames.PROTOCOL_ERROR),
    "SETTINGS on a stream": (frame(SETTINGS, 0, 1, b""), frames.PROTOCOL_ERROR),
    "SETTINGS of five bytes": (frame(SETTINGS, 0, 0, b"12345"), frames.FRAME_SIZE_ERROR),
    "SETTINGS ACK with payload": (frame(SETTINGS, ACK, 0, b"123456"), frames.FRAME_SIZE_ERROR),
    "ENABLE_PUSH": (settings((2, 2)), frames.PROTOCOL_ERROR),
    "INITIAL_WINDOW_SIZE": (settings((4, 1 << 31)), frames.FLOW_CONTROL_ERROR),
    "INITIAL_WINDOW_SIZE beyond a stream's": (
        window_update(1, 0x7FFF0000) + settings((4, 0x7FFFFFFF)),
        frames.FLOW_CONTROL_ERROR,
    ),
    "MAX_FRAME_SIZE": (settings((5, 100)), frames.PROTOCOL_ERROR),
    "WINDOW_UPDATE of three bytes": (frame(WINDOW_UPDATE, 0, 0, b"123"), frames.FRAME_SIZE_ERROR),
    "WINDOW_UPDATE by nothing": (window_update(0, 0), frames.PROTOCOL_ERROR),
    "WINDOW_UPDATE too far": (window_update(0, 0x7FFFFFFF), frames.FLOW_CONTROL_ERROR),
    "WINDOW_UPDATE on an idle stream": (window_update(3, 1), frames.PROTOCOL_ERROR),
    "RST_STREAM of an idle stream": (rst_stream(3, 8), frames.PROTOCOL_ERROR),
    "RST_STREAM on stream 0": (rst_stream(0, 8), frames.PROTOCOL_ERROR),
    "RST_STREAM of three bytes": (frame(RST_STREAM, 0, 1, b"123"), frames.FRAME_SIZE_ERROR),
    "short GOAWAY": (frame(GOAWAY, 0, 0, b"1234"), frames.FRAME_SIZE_ERROR),
    "GOAWAY on a stream": (frame(GOAWAY, 0, 1, b"12345678"), frames.PROTOCOL_ERROR),
    "PRIORITY of four bytes": (frame(PRIORITY, 0, 1, b"1234"), frames.FRAME_SIZE_ERROR),
    "PRIORITY on stream 0": (frame(PRIORITY, 0, 0, b"12345"), frames.PROTOCOL_ERROR),
}


@pytest.mark.parametrize(("sent", "code"), VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_what_ends_the_connection(sent: bytes, code: int) -> None:
    recorder = server()
    recorder.receive(PRE)
    with pytest.raises(Violation) as raised:
        recorder.receive(sent)
    assert raised.value.code == code


@pytest.mark.parametrize("preface", [b"GET / HTTP/1.1\r\n", PREFACE[:-1] + b"x", b"\0"])
def test_another_preface_ends_it(preface: bytes) -> None:
    with pytest.raises(Violation):
        Recorder().receive(preface)


def test_an_answer_in_http1_is_called_by_its_name() -> None:
    with pytest.raises(Violation, match=r"HTTP/1\.1"):
        Recorder(client=True).receive(b"HTTP/1.1 400 Bad Request\r\n\r\n")


STREAM_ERRORS = {
    "DATA after the end": (head(1, end=True) + frame(DATA, 0, 1, b"x"), frames.STREAM_CLOSED),
    "HEADERS after the end": (head(1, end=True) + head(1, end=True), frames.STREAM_CLOSED),
    "trailers that are not the end": (head(1) + head(1), frames.PROTOCOL_ERROR),
    "WINDOW_UPDATE by nothing": (head(1) + window_update(1, 0), frames.PROTOCOL_ERROR),
    "WINDOW_UPDATE too far": (head(1) + window_update(1, 0x7FFFFFFF), frames.FLOW_CONTROL_ERROR),
    "DATA beyond its window": (head(1) + frame(DATA, 0, 1, b"x" * 16_384) * 4, frames.FLOW_CONTROL_ERROR),
}


@pytest.mark.parametrize(("sent", "code"), STREAM_ERRORS.values(), ids=STREAM_ERRORS.keys())
def test_what_ends_a_stream(sent: bytes, code: int) -> None:
    recorder = server()
    recorder.keep = True
    recorder.receive(sent + head(3))
    assert (RST_STREAM, 0, 1, code.to_bytes(4, "big")) in recorder.frames()
    assert recorder.log[-2:][0] == ("reset", 1, code)
    assert list(recorder.connection.streams) == [3]
    assert recorder.connection.buffered == 0


def test_late_frames_on_a_stream_that_we_reset_are_nothing() -> None:
    recorder = server()
    recorder.receive(head(1))
    recorder.connection.reset(recorder.streams[1], frames.NO_ERROR)
    recorder.receive(frame(DATA, 0, 1, b"late") + window_update(1, 5) + head(1, end=True) + rst_stream(1, 8))
    recorder.receive(head(3, end=True))
    assert [entry[:2] for entry in recorder.log] == [("opened", 1), ("opened", 3)]


def test_data_on_a_stream_that_the_peer_has_ended_is_told_so_once() -> None:
    recorder = server()
    recorder.receive(head(1) + rst_stream(1, 8) + frame(DATA, 0, 1, b"late") * 2)
    assert recorder.frames() == [(RST_STREAM, 0, 1, frames.STREAM_CLOSED.to_bytes(4, "big"))]


def test_streams_over_the_limit_are_refused() -> None:
    recorder = server(max_streams=2)
    recorder.receive(head(1) + head(3) + head(5))
    assert recorder.frames() == [(RST_STREAM, 0, 5, frames.REFUSED_STREAM.to_bytes(4, "big"))]
    recorder.connection.reset(recorder.streams[1], frames.CANCEL)
    recorder.receive(head(7))
    assert sorted(recorder.connection.streams) == [3, 7]


FLOODS = {
    "resets": b"".join(head(n) + rst_stream(n, 8) for n in range(1, 2200, 2)),
    "windows of nothing": b"".join(head(n) + window_update(n, 0) for n in range(1, 2200, 2)),
    "windows that are too large": b"".join(
        head(n) + window_update(n, frames.MOST_WINDOW) for n in range(1, 2200, 2)
    ),
    "heads again": b"".join(head(n) + head(n) for n in range(1, 2200, 2)),
    "DATA after the end": b"".join(head(n, end=True) + frame(DATA, 0, n, b"x") for n in range(1, 2200, 2)),
    "PING": frame(PING, 0, 0, b"12345678") * 1100,
    "SETTINGS": settings((4, 65_535)) * 1100,
    "SETTINGS beside many streams": b"".join(head(n) for n in range(1, 1000, 2)) + settings((4, 9)) * 60,
    "empty DATA": head(1) + frame(DATA, 0, 1, b"") * 1100,
    "padded empty DATA": head(1) + frame(DATA, PADDED, 1, b"\0") * 1100,
    "PRIORITY": frame(PRIORITY, 0, 1, b"12345") * 1100,
    "unknown": frame(0x42, 0, 0, b"") * 1100,
    "closed streams": head(1) + rst_stream(1, 8) + window_update(1, 1) * 1100,
}


@pytest.mark.parametrize("sent", FLOODS.values(), ids=FLOODS.keys())
def test_floods_end_the_connection(sent: bytes) -> None:
    recorder = server(max_streams=1000)
    with pytest.raises(Violation) as raised:
        recorder.receive(sent)
    assert raised.value.code == frames.ENHANCE_YOUR_CALM


def test_of_a_setting_that_comes_twice_the_last_counts() -> None:
    recorder = server()
    recorder.receive(head(1) + settings(*[(4, i) for i in range(2000)], (4, 70_000)))
    assert recorder.streams[1].send_window == recorder.connection.peer_window == 70_000


def test_the_same_over_time_or_beside_work_is_no_flood() -> None:
    recorder = server()
    for i in range(1100):
        recorder.receive(frame(PING, 0, 0, b"12345678"), i / 100)
    recorder.receive(head(1))
    for _ in range(5000):
        recorder.receive(frame(PING, 0, 0, b"12345678") + frame(DATA, 0, 1, b"x"), 11.0)
    for n in range(3, 6000, 4):  # each reset beside one that is answered
        recorder.receive(head(n, end=True) + head(n + 2) + rst_stream(n + 2, 8), 11.0)
        recorder.connection.send_headers(recorder.streams[n], b"\x88", True)
    assert list(recorder.connection.streams) == [1]


def test_deadlines_that_pass_are_no_flood() -> None:
    """400 calls a second, none answered within its second, as while a revision starts."""
    recorder = server(max_streams=1000)
    recorder.receive(head(1))
    now = 0.0
    late: list[int] = []
    for number in range(3, 40_000, 2):
        now += 1 / 400
        late.append(number)
        recorder.receive(head(number, end=True), now)
        if len(late) > 400:
            recorder.receive(rst_stream(late.pop(0), 8), now)
    assert len(recorder.connection.streams) == 401
    assert recorder.frames() == []


def test_streams_that_are_reset_late_are_bounded_by_the_streams_at_once() -> None:
    recorder = server(max_streams=250)
    opened = 0
    for turn in range(100):
        numbers = range(turn * 600 + 1, turn * 600 + 600, 2)
        recorder.receive(b"".join(map(head, numbers)), turn / 5)
        opened += len(recorder.connection.streams)
        recorder.receive(b"".join(rst_stream(n, 8) for n in numbers[:250]), turn / 5 + 0.11)
    assert opened == 25_000  # 250 in 0.2 s
    early = b"".join(head(n) + rst_stream(n, 8) for n in range(100_001, 102_200, 2))
    with pytest.raises(Violation):
        recorder.receive(early, 21.0)


def test_pings_beside_what_is_sent_are_no_flood() -> None:
    """gRPC measures its path so."""
    recorder = server()
    recorder.receive(settings((4, 1 << 20)) + window_update(0, 1 << 20) + head(1, end=True))
    for _ in range(5000):
        recorder.connection.send_data(recorder.streams[1], b"x", False)
        recorder.receive(frame(PING, 0, 0, b"12345678"))
    assert list(recorder.connection.streams) == [1]


def test_what_still_comes_for_cancelled_streams_does_not_end_a_shared_connection() -> None:
    recorder = Recorder(client=True)
    recorder.receive(settings())
    streams = [recorder.connection.begin(None, b"\x83\x86\x84\x01\x01a", True) for _ in range(3000)]
    for stream in streams:
        recorder.connection.reset(stream, frames.CANCEL)
    for stream in streams:
        recorder.receive(frame(DATA, 0, stream.id, b"x" * 100))
    assert not recorder.connection.streams
    assert recorder.connection.buffered == 0


def test_going_away() -> None:
    recorder = server()
    recorder.receive(head(1))
    recorder.connection.goaway(0, soon=True)
    recorder.receive(head(3))
    recorder.connection.goaway(0, "bye")
    recorder.receive(head(5) + frame(DATA, 0, 3, b"x"))
    sent = recorder.frames()
    assert [payload[:4] for kind, _, _, payload in sent if kind == GOAWAY] == [
        b"\x7f\xff\xff\xff",
        b"\0\0\0\3",
    ]
    assert (RST_STREAM, 0, 5, frames.REFUSED_STREAM.to_bytes(4, "big")) in sent
    assert recorder.bodies == {3: b"x"}


def test_a_client_that_goes_away_is_still_served() -> None:
    recorder = server()
    recorder.receive(head(1) + goaway(0, 0))
    assert recorder.log[-1] == ("went_away", [], 0)
    recorder.connection.send_headers(recorder.streams[1], b"\x88", False)
    assert recorder.connection.send_data(recorder.streams[1], b"x", True) == 1


def test_long_blocks_are_continued() -> None:
    recorder = server()
    recorder.receive(head(1))
    block = hpack.Encoder().encode([(":status", "200"), ("x-long", "v" * 60_000)], huffman=False)
    recorder.connection.send_headers(recorder.streams[1], block, True)
    sent = recorder.frames()
    assert [kind for kind, _, _, _ in sent] == [HEADERS, CONTINUATION, CONTINUATION, CONTINUATION]
    assert [flags for _, flags, _, _ in sent] == [END_STREAM, 0, 0, END_HEADERS]
    assert b"".join(payload for _, _, _, payload in sent) == b"\x20" + block
    recorder.receive(settings((5, 1 << 20)) + head(3))
    recorder.out()
    recorder.connection.send_headers(recorder.streams[3], block, True)
    assert [len(payload) for _, _, _, payload in recorder.frames()] == [len(block)]


def test_no_block_is_sent_that_a_peer_gives_up_the_connection_for() -> None:
    connection = (recorder := server()).connection
    indexes = [b"\x90" * size for size in (1092, 1093)]  # 60 bytes of a list each
    assert [connection.takes(block) for block in indexes] == [True, False]  # of one that said nothing
    recorder.receive(settings((6, 6000)))
    assert [connection.takes(b"\x90" * size) for size in (100, 101)] == [True, False]
    recorder.receive(settings((6, 1 << 20), (5, 1 << 20)))
    assert connection.takes(literal(b"x", b"v" * ((1 << 20) - 33)))
    assert not connection.takes(literal(b"x", b"v" * ((1 << 20) - 32)))
    long = literal(b"x", b"v" * ((1 << 20) - 8192 - 33))
    recorder.receive(settings((5, 1 << 14)))
    assert connection.takes(long)
    # Go: a frame may be no more than twice what is left of the list.
    assert not connection.takes(literal(b"x", b"v" * ((1 << 20) - 8192 - 32)))
    coded = hpack.Encoder().encode([("x", "\xff" * 4000)])
    recorder.receive(settings((6, 8000 + 33)))
    assert len(coded) > 8000 + 33
    assert not connection.takes(coded)


def test_the_upgraded_request_is_stream_one() -> None:
    recorder = Recorder()
    recorder.connection.apply([(4, 10)])
    recorder.connection.upgraded(hpack.Encoder().encode(REQUEST))
    recorder.receive(PREFACE + frame(SETTINGS, 0, 0) + head(3))
    assert [entry[:2] for entry in recorder.log] == [("opened", 1), ("opened", 3)]
    recorder.connection.send_headers(recorder.streams[1], b"\x88", False)
    assert recorder.connection.send_data(recorder.streams[1], b"x" * 30, True) == 10
    recorder.receive(window_update(1, 100))
    data = [payload for kind, _, _, payload in parse(recorder.out()) if kind == DATA]
    assert b"".join(data) == b"x" * 30
    assert list(recorder.connection.streams) == [3]
