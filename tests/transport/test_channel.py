"""Channels over real sockets and real shared memory, both rungs: bytes, checksums, credit, loss, authentication."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

import msgspec
import pytest

from runtimes.transport import handshake, sockets
from runtimes.transport.carriers import SharedMemory
from runtimes.transport.channel import PLACE, ROWS, RUNG_NAMES, ChannelError, Frame, Reason, Row, Rung
from runtimes.transport.handshake import Identity, Offer
from runtimes.transport.kinds import Kind, Setting, ShmKind
from runtimes.transport.layout import Layout
from runtimes.transport.link import Sockets
from runtimes.transport.listener import Listener, dial
from runtimes.transport.pair import Channel
from runtimes.transport.shm import Ring, unlink

KEY = b"k" * 32
BLOCK = 4096
WAIT_S = 60.0
SETTING = Setting(("shm",), 1 << 16)


class Ear:
    """Both Receiver and Landing, over one layer-by-block memory; everything that happens goes into a queue."""

    def __init__(self, blocks: int = 64) -> None:
        self.memory = memoryview(bytearray(blocks * BLOCK))
        self.happened: SimpleQueue[tuple[object, ...]] = SimpleQueue()
        self.open = True

    def message(self, channel: object, body: bytes) -> None:
        self.happened.put(("message", body))

    def lost(self, channel: object, error: ChannelError) -> None:
        self.happened.put(("lost", error.reason))

    def window(self, frame: Frame) -> memoryview | None:
        if not self.open:
            return None
        return self.memory[frame.target * BLOCK : (frame.target + frame.blocks) * BLOCK]

    def landed(self, frame: Frame, broken: list[int]) -> None:
        self.happened.put(("landed", frame.target, frame.blocks, broken))

    def done(self, transfer: int, blocks: int) -> None:
        self.happened.put(("done", transfer, blocks))

    def next(self) -> tuple[object, ...]:
        return self.happened.get(timeout=WAIT_S)


class Pair:
    def __init__(self, rungs: tuple[Rung, ...], window: int = 1 << 20) -> None:
        arrived: SimpleQueue[Channel] = SimpleQueue()
        self.listener = Listener(KEY, lambda: Identity("p", 7, Layout()), arrived.put, ("shm", "tcp"))
        self.decode = dial(
            self.listener.addr, KEY, Identity("d", 3, Layout()), peer_generation=7, rungs=rungs, window=window
        )
        self.prefill = arrived.get(timeout=WAIT_S)
        self.at_decode, self.at_prefill = Ear(), Ear()
        self.decode.start(self.at_decode, self.at_decode)
        self.prefill.start(self.at_prefill, None)

    def close(self) -> None:
        self.decode.close()
        self.prefill.close()
        self.listener.close()


@pytest.fixture(params=["shm", "tcp"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair((request.param,))
    assert made.decode.rung == made.prefill.rung == request.param
    yield made
    made.close()


def blocks(first: int, count: int) -> list[memoryview]:
    return [memoryview(bytes([first + number]) * BLOCK) for number in range(count)]


def test_identities_and_generations_are_known(pair: Pair) -> None:
    assert pair.decode.peer == Identity("p", 7, Layout())
    assert pair.prefill.peer == Identity("d", 3, Layout())


def test_messages_go_both_ways_in_order(pair: Pair) -> None:
    for number in range(50):
        pair.decode.send(b"to prefill %d" % number)
        pair.prefill.send(b"to decode %d" % number)
    assert [pair.at_prefill.next() for _ in range(50)] == [
        ("message", b"to prefill %d" % n) for n in range(50)
    ]
    assert [pair.at_decode.next() for _ in range(50)] == [("message", b"to decode %d" % n) for n in range(50)]


def test_blocks_land_where_they_belong_also_when_the_window_wraps_many_times(pair: Pair) -> None:
    for turn in range(40):
        pair.prefill.write(1, 0, (turn * 7) % 50, blocks(turn, 14))
        assert pair.at_decode.next() == ("landed", (turn * 7) % 50, 14, [])
        start = (turn * 7) % 50 * BLOCK
        landed = pair.at_decode.memory[start : start + 14 * BLOCK]
        assert bytes(landed) == b"".join(bytes(block) for block in blocks(turn, 14))
    pair.prefill.finish(1, 14)
    assert pair.at_decode.next() == ("done", 1, 14)


def test_a_flipped_byte_is_caught_and_its_block_named(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    source = [memoryview(bytearray(block)) for block in blocks(1, 3)]
    right = zlib.crc32
    flipped: list[int] = []

    class Crc:
        @staticmethod
        def crc32(data: memoryview) -> int:
            value = right(data)
            if not flipped:
                flipped.append(value)
                source[0][100] ^= 1  # after its checksum was made, before its bytes are sent
            return value

    monkeypatch.setattr("runtimes.transport.pair.zlib", Crc)
    pair.prefill.write(1, 0, 10, source)
    assert pair.at_decode.next() == ("landed", 10, 3, [10])


def test_unexpected_writes_are_thrown_away_and_the_channel_lives_on(pair: Pair) -> None:
    pair.at_decode.open = False
    pair.prefill.write(1, 0, 0, blocks(5, 2))
    pair.prefill.finish(1, 2)
    assert pair.at_decode.next() == ("done", 1, 2)
    assert not any(pair.at_decode.memory[: 2 * BLOCK])
    pair.at_decode.open = True
    pair.prefill.write(2, 0, 0, blocks(9, 1))
    assert pair.at_decode.next() == ("landed", 0, 1, [])


def test_blocks_for_places_of_their_own_travel_in_one_write(pair: Pair) -> None:
    """As often as the ring wraps; what isn't expected any more is thrown away, and the rest of the write lands."""
    for turn in range(40):
        targets = [(turn + 7 * number) % 50 for number in range(14)]
        rows = [Row(0, target, block) for target, block in zip(targets, blocks(turn, 14), strict=True)]
        assert pair.prefill.write_rows(1, rows) == 14 * BLOCK
        assert [pair.at_decode.next() for _ in targets] == [("landed", target, 1, []) for target in targets]
        for target, block in zip(targets, blocks(turn, 14), strict=True):
            assert pair.at_decode.memory[target * BLOCK : (target + 1) * BLOCK] == block
    window = pair.at_decode.window
    pair.at_decode.window = lambda frame: None if frame.target == 5 else window(frame)  # type: ignore[method-assign]
    pair.prefill.write_rows(
        1, [Row(0, 50 + n, block) if n else Row(0, 5, block) for n, block in enumerate(blocks(90, 3))]
    )
    assert [pair.at_decode.next() for _ in range(2)] == [("landed", 51, 1, []), ("landed", 52, 1, [])]
    assert bytes(pair.at_decode.memory[51 * BLOCK : 53 * BLOCK]) == bytes(blocks(91, 1)[0]) + bytes(
        blocks(92, 1)[0]
    )


def test_a_flipped_byte_among_blocks_for_places_of_their_own_is_caught(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = [memoryview(bytearray(block)) for block in blocks(1, 3)]
    right = zlib.crc32
    made: list[int] = []

    class Crc:
        @staticmethod
        def crc32(data: memoryview) -> int:
            value = right(data)
            made.append(value)
            if len(made) == 2:
                source[1][100] ^= 1
            return value

    monkeypatch.setattr("runtimes.transport.pair.zlib", Crc)
    pair.prefill.write_rows(1, [Row(0, 30 - n, block) for n, block in enumerate(source)])
    assert [pair.at_decode.next() for _ in source] == [
        ("landed", 30, 1, []),
        ("landed", 29, 1, [29]),
        ("landed", 28, 1, []),
    ]


@pytest.mark.parametrize("count", [0, 3])
def test_blocks_that_make_no_sense_lose_the_channel(pair: Pair, count: int) -> None:
    """None at all, or of a size that can't be shared out."""
    way = pair.prefill._way("")
    frame = Frame(ROWS, RUNG_NAMES.index(way.rung), 0, 1, count, 0, BLOCK)
    way.write(frame, bytes(count * PLACE.size), [memoryview(bytes(BLOCK))])
    assert pair.at_decode.next() == ("lost", "protocol")


def test_an_owner_that_fails_on_what_was_read_loses_the_channel(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(frame: Frame) -> memoryview | None:
        raise KeyError(frame.target)

    monkeypatch.setattr(pair.at_decode, "window", fails)
    pair.prefill.write(1, 0, 3, blocks(1, 1))
    assert pair.at_decode.next() == ("lost", "device")
    assert pair.at_prefill.next() == ("lost", "closed")
    assert "KeyError" in str(pair.decode.lost)


def test_bytes_in_flight_are_bounded_by_credit() -> None:
    pair = Pair(("shm",), window=8 * BLOCK)
    gate = threading.Event()

    class Slow(Ear):
        def window(self, frame: Frame) -> memoryview | None:
            gate.wait(WAIT_S)
            return super().window(frame)

    slow = Slow()
    pair.decode._landing = slow
    sent: SimpleQueue[int] = SimpleQueue()

    def push() -> None:
        for number in range(6):
            pair.prefill.write(1, 0, number * 4, blocks(number, 4))
            sent.put(number)

    thread = threading.Thread(target=push, daemon=True)
    thread.start()
    assert [sent.get(timeout=WAIT_S) for _ in range(2)] == [0, 1]
    assert pair.prefill.free() == 0
    assert sent.empty()
    gate.set()
    assert [sent.get(timeout=WAIT_S) for _ in range(4)] == [2, 3, 4, 5]
    assert [slow.next()[1] for _ in range(6)] == [0, 4, 8, 12, 16, 20]
    thread.join(WAIT_S)
    with pytest.raises(ValueError, match="at most"):
        pair.prefill.write(1, 0, 0, blocks(0, 5))
    pair.close()


def test_losing_a_side_is_told_once_and_ends_writes(pair: Pair) -> None:
    pair.decode.close()
    assert pair.at_prefill.next() == ("lost", "closed")
    with pytest.raises(ChannelError) as caught:
        pair.prefill.write(1, 0, 0, blocks(0, 1))
    assert caught.value.reason == "closed"
    with pytest.raises(ChannelError):
        pair.prefill.send(b"anybody?")
    assert pair.at_prefill.happened.empty()


def test_a_peer_that_takes_no_messages_does_not_stop_the_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtimes.transport.carriers.SEND_TIMEOUT_S", 0.05)
    arrived: SimpleQueue[Channel] = SimpleQueue()
    listener = Listener(KEY, lambda: Identity("p", 7, Layout()), arrived.put)
    channel = dial(listener.addr, KEY, Identity("d", 3, Layout()))
    ear = Ear()
    channel.start(ear, ear)
    with pytest.raises(ChannelError) as caught:
        channel.send(bytes(1 << 26))  # nobody reads at the other end
    assert caught.value.reason == "timeout"
    assert ear.next() == ("lost", "timeout")
    channel.close()
    arrived.get(timeout=WAIT_S).close()
    listener.close()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"key": b"another"}, "unauthenticated"),
        ({"peer_generation": 6}, "generation"),
        ({"who": Identity("d", 3, Layout(dtype="float32"))}, "incompatible"),
    ],
)
def test_whoever_does_not_belong_is_refused(change: dict[str, object], reason: Reason) -> None:
    listener = Listener(KEY, lambda: Identity("p", 7, Layout()), lambda channel: None)
    given = {"key": KEY, "who": Identity("d", 3, Layout()), "peer_generation": 7, **change}
    before = _open_files()
    with pytest.raises(ChannelError) as caught:
        dial(listener.addr, given.pop("key"), given.pop("who"), **given)  # type: ignore[arg-type]
    assert caught.value.reason == reason
    listener.close()
    assert _open_files() <= before


def test_a_listener_that_does_not_know_the_key_is_noticed() -> None:
    listener = Listener(b"", lambda: Identity("p", 7, Layout()), lambda channel: None)
    with pytest.raises(ChannelError) as caught:
        dial(listener.addr, KEY, Identity("d", 3, Layout()))
    assert caught.value.reason == "unauthenticated"
    listener.close()


def test_an_open_address_needs_a_key() -> None:
    with pytest.raises(ValueError, match="cluster key"):
        Listener(b"", lambda: Identity("p", 7, Layout()), lambda channel: None, host="0.0.0.0")


def test_nobody_there() -> None:
    with pytest.raises(ChannelError) as caught:
        dial("127.0.0.1:1", KEY, Identity("d", 3, Layout()))
    assert caught.value.reason == "unreachable"


def test_nothing_is_left_behind() -> None:
    own = f"galaxy-kv-{os.getpid()}-*"
    rings: Callable[[], set[str]] = lambda: {path.name for path in Path("/dev/shm").glob(own)}  # noqa: E731
    before, files, threads = rings(), _open_files(), set(threading.enumerate())
    for rung in ("shm", "tcp", "shm"):
        pair = Pair((rung,))
        assert rings() == before  # the name is gone as soon as both have it
        pair.prefill.write(1, 0, 0, blocks(1, 4))
        pair.at_decode.next()
        pair.close()
    assert rings() == before
    assert _open_files() <= files
    assert set(threading.enumerate()) <= threads


def test_closing_a_listener_ends_handshakes() -> None:
    files, threads = _open_files(), set(threading.enumerate())
    listener = Listener(KEY, lambda: Identity("p", 7, Layout()), lambda channel: None)
    host, _, port = listener.addr.rpartition(":")
    silent = socket.create_connection((host, int(port)))
    while not set(threading.enumerate()) - threads - {listener._thread}:
        pass  # until its thread waits for the offer that never comes
    listener.close()
    assert silent.recv(1) == b""
    silent.close()
    assert _open_files() <= files
    assert set(threading.enumerate()) <= threads


class Dialler:
    """One connection to a listener, handshake by handshake."""

    def __init__(self, listener: Listener) -> None:
        host, _, port = listener.addr.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), WAIT_S)

    def offer(
        self, kind: Literal["control", "bulk"], pair: str, ring: Kind | None = None, name: str = "d"
    ) -> Offer:
        facts = (("shm",), {"shm": ring.word()}) if ring is not None else ()
        return Offer(pair, kind, Identity(name, 3, Layout()), 7, b"n" * 16, *facts)

    def ended(self) -> bool:
        """Waits until the listener has closed it."""
        return self.socket.recv(1) == b""


def test_half_a_pair_is_forgotten_although_nobody_else_dials() -> None:
    files, mapped = _open_files(), _mapped_rings()
    listener = Listener(KEY, lambda: Identity("p", 7, Layout()), lambda channel: None, handshake_s=1.0)
    ring = ShmKind.offered(SETTING)
    dialler = Dialler(listener)
    assert handshake.dial(dialler.socket, KEY, dialler.offer("control", "a", ring))[1].rungs == ("shm",)
    ring.forget()
    ring.close()
    assert dialler.ended()
    dialler.socket.close()
    listener.close()
    assert _mapped_rings() <= mapped
    assert _open_files() <= files


def test_whoever_sends_byte_by_byte_has_no_more_time_than_others() -> None:
    listener = Listener(KEY, lambda: Identity("p", 7, Layout()), lambda channel: None, handshake_s=0.2)
    slow = Dialler(listener).socket
    slow.sendall((1 << 15).to_bytes(4, "little"))  # and so many, one at a time
    slow.settimeout(0.02)
    for _ in range(1000):
        slow.send(b"x")
        try:
            assert slow.recv(1) == b""
            break
        except TimeoutError:
            continue
    else:
        pytest.fail("it still listens")
    slow.close()
    listener.close()


def test_so_many_handshakes_at_once_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtimes.transport.listener._MOST", 2)
    arrived: SimpleQueue[Channel] = SimpleQueue()
    listener = Listener(KEY, lambda: Identity("p", 7, Layout()), arrived.put)
    silent = [Dialler(listener) for _ in range(2)]
    late = Dialler(listener)
    assert late.ended()
    for dialler in (*silent, late):
        dialler.socket.close()
    for _ in range(1000):  # until the listener has noticed
        with contextlib.suppress(ChannelError):
            dial(listener.addr, KEY, Identity("d", 3, Layout()), rungs=("tcp",)).close()
            break
    arrived.get(timeout=WAIT_S).close()
    listener.close()


def test_a_bulk_connection_of_somebody_else_ends_the_pair() -> None:
    files, mapped = _open_files(), _mapped_rings()
    accepted: list[Channel] = []
    listener = Listener(KEY, lambda: Identity("p", 7, Layout()), accepted.append, handshake_s=1000.0)
    ring = ShmKind.offered(SETTING)
    control, bulk = Dialler(listener), Dialler(listener)
    handshake.dial(control.socket, KEY, control.offer("control", "a", ring))
    ring.forget()
    ring.close()
    with pytest.raises(ChannelError):
        handshake.dial(bulk.socket, KEY, bulk.offer("bulk", "a", name="somebody else"))
    assert control.ended()
    for each in (control, bulk):
        each.socket.close()
    listener.close()
    assert _mapped_rings() <= mapped
    assert _open_files() <= files
    assert not accepted


def test_offered_memory_is_touched_only_after_the_proof() -> None:
    listener = Listener(KEY, lambda: Identity("p", 7, Layout()), lambda channel: None)
    ring = ShmKind.offered(SETTING)
    dialler = Dialler(listener)
    sockets.write_message(dialler.socket, msgspec.msgpack.encode(dialler.offer("control", "a", ring)))
    sockets.read_message(dialler.socket)
    with pytest.raises(ChannelError, match="did not write to"):
        ring.agreed(b"")
    sockets.write_message(dialler.socket, msgspec.msgpack.encode(handshake.Proof(b"a guess")))
    assert dialler.ended()
    with pytest.raises(ChannelError, match="did not write to"):
        ring.agreed(b"")
    dialler.socket.close()
    listener.close()
    ring.forget()
    ring.close()


@pytest.mark.parametrize(
    ("prefill", "decode", "says"),
    [
        (("shm",), ("tcp",), "use; shm at prefill, tcp at decode; set kv-transfer equal"),
        (("tcp",), ("rdma",), "use; rdma: .*; tcp at prefill, none at decode; set kv-transfer equal"),
    ],
)
def test_sides_that_may_use_different_rungs_say_both(
    prefill: tuple[Rung, ...], decode: tuple[Rung, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GALAXY_RDMA_DEVICES", "gone0")
    listener = Listener(KEY, lambda: Identity("p", 7, Layout()), lambda channel: None, prefill)
    with pytest.raises(ChannelError, match=f"no rung that both sides may {says}$"):
        dial(listener.addr, KEY, Identity("d", 3, Layout()), rungs=decode)
    listener.close()


def test_memory_that_the_listener_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(("shm", "tcp"))
    assert pair.decode.rung == "shm"
    pair.close()
    monkeypatch.setattr(Ring, "attach", lambda name, size, token: None)
    pair = Pair(("shm", "tcp"))
    assert pair.decode.rung == pair.prefill.rung == "tcp"
    pair.close()
    listener = Listener(KEY, lambda: Identity("p", 7, Layout()), lambda channel: None)
    with pytest.raises(ChannelError, match="no rung") as caught:
        dial(listener.addr, KEY, Identity("d", 3, Layout()), rungs=("shm",))
    assert caught.value.reason == "incompatible"
    listener.close()


def test_a_better_rung_that_was_not_taken_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(choice: object) -> list[object]:
        raise ChannelError("device", "mlx5_0:1 has no link")

    monkeypatch.setattr("runtimes.transport.verbs.kind.cards.find", none)
    arrived: SimpleQueue[Channel] = SimpleQueue()
    listener = Listener(KEY, lambda: Identity("p", 7, Layout()), arrived.put, ("shm", "rdma", "tcp"))
    for rungs, rung, passed in (
        (("tcp", "rdma", "shm"), "shm", ("rdma: mlx5_0:1 has no link",)),
        (("rdma", "tcp"), "tcp", ("rdma: mlx5_0:1 has no link",)),
    ):
        near = dial(listener.addr, KEY, Identity("d", 3, Layout()), rungs=rungs)  # type: ignore[arg-type]
        far = arrived.get(timeout=WAIT_S)
        assert (near.rung, far.rung) == (rung, rung)
        assert near.passed == far.passed == passed
        near.close()
        far.close()
    with pytest.raises(ChannelError, match="no rung that both sides may use; rdma: mlx5_0:1 has no link"):
        dial(listener.addr, KEY, Identity("d", 3, Layout()), rungs=("rdma",))
    listener.close()


def test_without_room_for_a_ring_the_next_rung_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody learns of it in the middle of a write, which would be the process's end."""

    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    named = set(Path("/dev/shm").glob(f"galaxy-kv-{os.getpid()}-*"))
    pair = Pair(("shm", "tcp"))
    assert pair.decode.rung == pair.prefill.rung == "tcp"
    (why,) = pair.decode.passed
    assert why.startswith("shm: no ")
    assert why.endswith("in /dev/shm: No space left on device")
    assert set(Path("/dev/shm").glob(f"galaxy-kv-{os.getpid()}-*")) == named
    pair.close()


def test_a_ring_has_all_of_its_memory_from_the_beginning() -> None:
    ring, name, _ = Ring.create(1 << 20)
    assert os.stat(Path("/dev/shm") / name).st_blocks * 512 >= ring.size
    unlink(name)
    ring.close()


def test_a_ring_of_somebody_who_was_killed_is_removed_by_the_next_ones_maker() -> None:
    old, young, other = (
        Path("/dev/shm") / f"galaxy-kv-{name}"
        for name in ("1-0123456789abcdef", "1-0123456789abcdee", "of-others-0123456789abcdef")
    )
    for path in (old, young, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    ring, name, _ = Ring.create(1 << 20)
    unlink(name)
    ring.close()
    assert [path.exists() for path in (old, young, other)] == [False, True, True]
    young.unlink()
    other.unlink()


def test_no_peer_makes_a_listener_set_aside_what_it_likes() -> None:
    listener = Listener(KEY, lambda: Identity("p", 7, Layout()), lambda channel: None)
    with pytest.raises(ChannelError, match="window") as caught:
        dial(listener.addr, KEY, Identity("d", 3, Layout()), rungs=("tcp",), window=1 << 40)
    assert caught.value.reason == "protocol"
    listener.close()


def test_a_peer_that_takes_no_blocks_holds_nobody_up_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtimes.transport.carriers.STALL_S", 0.05)
    pair = Pair(("tcp",), window=128 << 20)
    gate, left = threading.Event(), SimpleQueue[str]()

    def window(frame: Frame) -> memoryview | None:
        gate.wait(WAIT_S)
        return None

    monkeypatch.setattr(pair.at_decode, "window", window)

    def write() -> None:
        try:
            pair.prefill.write(1, 0, 0, [memoryview(bytearray(64 << 20))])  # more than sockets hold
        except ChannelError as error:
            left.put(error.reason)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert left.get(timeout=WAIT_S) == "timeout"
    finally:
        gate.set()
        pair.close()
        writer.join()


def _mapped_rings() -> int:
    return Path("/proc/self/maps").read_text().count("/galaxy-kv-")  # also those without a name any more


def _open_files() -> set[str]:
    """What this process has open, each with a number that is never used again (an inode), unlike a descriptor's."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return found


def test_a_listener_outlives_a_time_without_free_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(("tcp",))
    pair.close()
    accept = socket.socket.accept
    refused: list[int] = []

    def once(self: socket.socket) -> object:
        if not refused:
            refused.append(errno.EMFILE)
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", once)
    pair = Pair(("tcp",))
    pair.prefill.write(1, 0, 0, blocks(1, 1))
    assert pair.at_decode.next() == ("landed", 0, 1, [])
    assert refused
    pair.close()


# --- several rungs at once


def test_each_transfer_takes_the_rung_that_it_names() -> None:
    pair = Pair(("tcp", "shm"))
    assert pair.decode.rungs == pair.prefill.rungs == ("shm", "tcp")  # the listener's order
    way = pair.prefill._ways["shm"]
    assert isinstance(way, SharedMemory)
    ring = way.view(0)
    before = bytes(ring)
    pair.prefill.write(1, 0, 0, blocks(1, 14), "tcp")
    pair.prefill.finish(1, 14, "tcp")
    assert [pair.at_decode.next() for _ in range(2)] == [("landed", 0, 14, []), ("done", 1, 14)]
    assert ring == before
    pair.prefill.write(2, 0, 20, blocks(21, 14), "shm")
    pair.prefill.finish(2, 14, "shm")
    assert [pair.at_decode.next() for _ in range(2)] == [("landed", 20, 14, []), ("done", 2, 14)]
    assert ring[: 14 * BLOCK] == b"".join(blocks(21, 14))
    assert pair.at_decode.memory[: 14 * BLOCK] == b"".join(blocks(1, 14))
    assert pair.at_decode.memory[20 * BLOCK : 34 * BLOCK] == b"".join(blocks(21, 14))
    pair.close()


def test_a_rung_that_has_no_credit_left_does_not_hold_up_another() -> None:
    pair = Pair(("shm", "tcp"), window=8 * BLOCK)
    gate = threading.Event()

    class Slow(Ear):
        def window(self, frame: Frame) -> memoryview | None:
            gate.wait(WAIT_S)
            return super().window(frame)

    pair.decode._landing = slow = Slow()
    for number in range(2):
        pair.prefill.write(1, 0, number * 4, blocks(number, 4), "shm")
    assert (pair.prefill.free("shm"), pair.prefill.free("tcp")) == (0, 8 * BLOCK)
    pair.prefill.write(2, 0, 8, blocks(9, 4), "tcp")
    assert pair.prefill.free("tcp") == 4 * BLOCK
    gate.set()
    assert [slow.next()[1] for _ in range(3)] == [0, 4, 8]
    pair.close()


def test_a_rung_that_is_not_there_is_refused_and_the_channel_lives_on() -> None:
    pair = Pair(("tcp",))
    with pytest.raises(ChannelError, match="rung shm") as caught:
        pair.prefill.write(1, 0, 0, blocks(0, 1), "shm")
    assert caught.value.reason == "incompatible"
    pair.prefill.write(1, 0, 0, blocks(3, 1), "tcp")
    assert pair.at_decode.next() == ("landed", 0, 1, [])
    pair.close()


def test_losing_one_connection_loses_all_rungs() -> None:
    pair = Pair(("shm", "tcp"))
    assert isinstance(pair.prefill._link, Sockets)
    sockets.wake(pair.prefill._link._sockets[1])
    assert pair.at_decode.next() == ("lost", "closed")
    assert pair.at_prefill.next() == ("lost", "closed")
    for rung in ("shm", "tcp"):
        with pytest.raises(ChannelError):
            pair.prefill.write(1, 0, 0, blocks(0, 1), rung)
    pair.close()
