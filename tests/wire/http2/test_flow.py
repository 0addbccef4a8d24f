"""Windows: whatever is sent and read in whatever order, no window is overrun, nothing is lost and all is returned."""

from __future__ import annotations

import random

import h2.config
import h2.connection
import h2.events
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_ext.wire.http2.connection import SERVER_WINDOW, STREAM_WINDOW
from kserve_ext.wire.http2.frames import (
    DATA,
    DEFAULT_WINDOW,
    END_STREAM,
    WINDOW_UPDATE,
    frame,
    window_update,
)
from kserve_ext.wire.http2.frames import settings as settings_frame
from kserve_ext.wire.http2.sending import UNFLUSHED_BYTES
from tests.wire.http2.support import Recorder, head, parse, server


class Pair:
    """Two connections with pipes between them, in which bytes wait until they are delivered."""

    def __init__(self, seed: int, buffered: int) -> None:
        self.random = random.Random(seed)
        self.ends = (Recorder(client=True, keep=True), Recorder(keep=True, buffered_bytes=buffered))
        self.pipes = [bytearray(), bytearray()]
        self.wanted: list[dict[int, bytearray]] = [{}, {}]
        self.unread: list[dict[int, int]] = [{}, {}]
        self.closing: list[set[int]] = [set(), set()]

    def flush(self, end: int) -> None:
        self.pipes[end] += self.ends[end].out()

    def begin(self) -> None:
        client = self.ends[0]
        stream = client.connection.begin(None, b"\x83\x86\x84\x01\x01a", False)
        client.streams[stream.id] = stream

    def send(self, end: int, size: int, last: bool) -> None:
        recorder = self.ends[end]
        able = [s for s in recorder.streams.values() if s.open_out and s.id not in self.closing[end]]
        if able:
            stream = self.random.choice(able)
            payload = self.random.randbytes(size)
            if last:
                self.closing[end].add(stream.id)
            self.wanted[end].setdefault(stream.id, bytearray()).extend(payload)
            recorder.connection.send_data(stream, payload, last)

    def deliver(self, end: int, size: int) -> None:
        self.flush(end)
        data = bytes(self.pipes[end][:size])
        del self.pipes[end][:size]
        self.ends[1 - end].receive(data)

    def read(self, end: int, size: int) -> bool:
        recorder = self.ends[end]
        for number, body in recorder.bodies.items():
            unread = len(body) - self.unread[end].get(number, 0)
            if unread:
                size = min(size, unread)
                self.unread[end][number] = self.unread[end].get(number, 0) + size
                recorder.connection.passed_on(recorder.streams[number], size)
                return True
        return False

    def check(self) -> None:
        for recorder in self.ends:
            assert recorder.connection.send_window >= 0
            for stream in recorder.connection.streams.values():
                assert stream.owed <= STREAM_WINDOW
                assert stream.queued == sum(map(len, stream.queue or ()))
            owed = sum(stream.owed for stream in recorder.streams.values())
            assert recorder.connection.buffered == owed


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "send", "send", "deliver", "deliver", "read", "stick", "unstick"]),
        st.integers(0, 1),
        st.sampled_from([0, 1, 700, 16_384, 70_000, 300_000]),
        st.booleans(),
    ),
    max_size=60,
)


@given(STEPS, st.integers(0, 1000), st.sampled_from([100_000, 4 << 20]))
@settings(max_examples=200)
def test_two_connections(steps: list[tuple[str, int, int, bool]], seed: int, buffered: int) -> None:
    pair = Pair(seed, buffered)
    pair.begin()
    for verb, end, size, last in steps:
        if verb == "begin":
            pair.begin()
        elif verb == "send":
            pair.send(end, size, last)
        elif verb == "deliver":
            pair.deliver(end, size)
        elif verb == "read":
            pair.read(end, size)
        elif verb == "stick":
            pair.ends[end].connection.stuck = True
        else:
            pair.ends[end].connection.unstick()
        pair.check()
    for end in (0, 1):
        pair.ends[end].connection.unstick()
    moved = True
    while moved:
        moved = False
        for end in (0, 1):
            pair.flush(end)
            moved |= bool(pair.pipes[end])
            pair.deliver(end, len(pair.pipes[end]))
            while pair.read(1 - end, 300_000):
                moved = True
    for end in (0, 1):
        got = pair.ends[1 - end].bodies
        assert {n: bytes(b) for n, b in pair.wanted[end].items() if b} == {
            n: bytes(b) for n, b in got.items() if b
        }
        assert pair.closing[end] == pair.ends[1 - end].ended
    pair.check()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 100_000), st.integers(1, 80_000)), max_size=40))
@settings(max_examples=100)
def test_h2_as_a_reader_is_never_sent_more_than_it_allows(steps: list[tuple[int, int, int]]) -> None:
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    recorder = Recorder()
    pairs = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")]
    for number in (1, 3, 5):
        client.send_headers(number, pairs, end_stream=True)
    recorder.receive(client.data_to_send())
    wanted = {1: 0, 3: 0, 5: 0}
    got = {1: 0, 3: 0, 5: 0}
    for stream in recorder.streams.values():
        recorder.connection.send_headers(stream, b"\x88", False)

    def exchange() -> None:
        for event in client.receive_data(recorder.out()):
            if isinstance(event, h2.events.DataReceived):
                got[event.stream_id] += len(event.data)
        recorder.receive(client.data_to_send())

    for which, size, window in steps:
        number = 1 + 2 * which
        wanted[number] += size
        recorder.connection.send_data(recorder.streams[number], b"x" * size, False)
        exchange()
        client.increment_flow_control_window(window, number)
        client.increment_flow_control_window(window)
        client.update_settings({4: window})
        recorder.receive(client.data_to_send())
        exchange()
    client.increment_flow_control_window(2**30)
    for number in (1, 3, 5):
        client.increment_flow_control_window(2**30, number)
    exchange()
    exchange()
    assert got == wanted


def test_streams_take_turns_when_the_connections_window_opens() -> None:
    recorder = server()
    recorder.receive(settings_frame((4, 1 << 20)) + head(1, end=True) + head(3, end=True) + head(5, end=True))
    for stream in recorder.streams.values():
        recorder.connection.send_headers(stream, b"\x88", False)
    recorder.connection.send_data(recorder.streams[1], b"x" * DEFAULT_WINDOW, False)
    for number in (1, 3, 5):
        for _ in range(4):
            recorder.connection.send_data(recorder.streams[number], b"x" * 16_384, False)
    recorder.out()
    for _ in range(4):
        recorder.receive(window_update(0, 3 * 16_384))
        assert [(n, len(p)) for k, _, n, p in recorder.frames() if k == DATA] == [
            (1, 16_384),
            (3, 16_384),
            (5, 16_384),
        ]


def test_a_smaller_initial_window_may_make_one_negative() -> None:
    recorder = server()
    recorder.receive(head(1))
    stream = recorder.streams[1]
    assert recorder.connection.send_data(stream, b"x" * 16_000, False) == 16_000
    recorder.receive(settings_frame((4, 1000)))
    assert stream.send_window == 1000 - 16_000
    assert recorder.connection.send_data(stream, b"y", False) == 0
    recorder.receive(window_update(1, 15_000))
    assert stream.queued == 1
    recorder.receive(window_update(1, 1))
    assert stream.queued == 0
    recorder.out()
    assert recorder.connection.send_data(stream, b"", True) == 0
    assert recorder.frames() == [(DATA, END_STREAM, 1, b"")]


def test_the_end_waits_for_the_queue() -> None:
    recorder = server()
    recorder.receive(settings_frame((4, 10)) + head(1, end=True) + head(3, end=True))
    one, two = recorder.streams[1], recorder.streams[3]
    recorder.connection.send_data(one, b"x" * 11, False)
    recorder.connection.send_trailers(one, b"\x00\x01a\x01b")
    recorder.connection.send_data(two, b"x" * 11, False)
    recorder.connection.send_data(two, b"", True)
    recorder.out()
    recorder.receive(window_update(1, 1) + window_update(3, 1))
    assert [(k, f, n) for k, f, n, _ in recorder.frames()] == [(DATA, 0, 1), (1, 5, 1), (DATA, END_STREAM, 3)]
    assert not recorder.connection.streams
    assert not one.open_out


def test_an_empty_end_behind_a_long_queue() -> None:
    recorder = server()
    recorder.receive(head(1, end=True))
    stream = recorder.streams[1]
    recorder.connection.send_data(stream, b"x" * 100_000, False)
    recorder.connection.send_data(stream, b"", True)
    recorder.receive(window_update(0, 100_000) + window_update(1, 100_000))
    sent = [(flags, len(payload)) for kind, flags, _, payload in recorder.frames() if kind == DATA]
    assert sum(size for _, size in sent) == 100_000
    assert [flags for flags, _ in sent] == [0] * (len(sent) - 1) + [END_STREAM]


def test_a_stream_whose_bytes_do_not_go_on_gets_no_larger_window() -> None:
    recorder = server()
    recorder.keep = True
    recorder.receive(head(1))
    recorder.receive(frame(DATA, 0, 1, b"x" * 16_000) * 4)
    assert not [f for f in recorder.frames() if f[0] == WINDOW_UPDATE and f[2] == 1]
    recorder.connection.passed_on(recorder.streams[1], 64_000)
    grown = [int.from_bytes(p, "big") for k, _, n, p in recorder.frames() if k == WINDOW_UPDATE and n == 1]
    assert grown == [64_000 + STREAM_WINDOW - DEFAULT_WINDOW]


def test_the_connections_window_stays_shut_while_too_much_is_kept() -> None:
    recorder = server(buffered_bytes=200_000)
    recorder.keep = True
    recorder.receive(b"".join(head(n) for n in range(1, 41, 2)))
    recorder.out()
    for number in range(1, 41, 2):
        recorder.receive(frame(DATA, 0, number, b"x" * 16_000) * 4)
        if recorder.connection._unreturned > SERVER_WINDOW - 64_000:
            break
    else:
        raise AssertionError("its window was opened")
    assert recorder.connection.buffered < SERVER_WINDOW
    assert recorder.frames() == []
    for stream in list(recorder.streams.values()):
        recorder.connection.dropped(stream)
    assert [f[2] for f in recorder.frames() if f[0] == WINDOW_UPDATE] == [0]
    assert recorder.connection.buffered == 0


def test_only_streams_that_wait_for_the_connection_are_looked_at_when_it_opens() -> None:
    """Or small increments would cost as much as there are streams."""
    recorder = server(max_streams=1000)
    recorder.receive(settings_frame((4, 10)) + b"".join(head(n, end=True) for n in range(1, 2000, 2)))
    for stream in recorder.streams.values():
        recorder.connection.send_data(stream, b"x" * 100, False)
    assert not recorder.connection._waiting
    assert sum(stream.queued for stream in recorder.streams.values()) == 90 * 1000
    recorder.receive(window_update(1999, 90))
    assert recorder.streams[1999].queued == 0
    recorder.receive(settings_frame((4, 100)))
    left = 1000 * 100 - DEFAULT_WINDOW
    assert sum(stream.queued for stream in recorder.streams.values()) == left
    assert len(recorder.connection._waiting) == -(-left // 90)
    recorder.receive(window_update(0, 1))
    assert sum(stream.queued for stream in recorder.streams.values()) == left - 1


def test_no_more_is_laid_out_at_once_than_a_transport_should_take() -> None:
    recorder = server()
    recorder.receive(settings_frame((4, 8 << 20)) + window_update(0, 8 << 20))
    recorder.receive(b"".join(head(n, end=True) for n in range(1, 9, 2)))
    for stream in recorder.streams.values():
        for _ in range(60):
            recorder.connection.send_data(stream, b"x" * 16_384, False)
    most = 0
    total = 0
    while recorder.connection.out:
        size = sum(len(p) for k, _, _, p in parse(b"".join(recorder.connection.out)) if k == DATA)
        recorder.connection.out.clear()
        recorder.connection.flushed()
        most = max(most, size)
        total += size
    assert most <= UNFLUSHED_BYTES + 16_384
    assert total == 4 * 60 * 16_384


def test_many_small_frames_cost_no_more_than_their_bytes() -> None:
    recorder = server()
    recorder.receive(settings_frame((4, 0)) + head(1, end=True))
    stream = recorder.streams[1]
    for _ in range(60_000):
        recorder.connection.send_data(stream, b"x", False)
    assert (stream.queued, len(stream.queue or ())) == (60_000, 4)
