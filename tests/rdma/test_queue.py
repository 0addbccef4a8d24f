"""Queue pairs by themselves: every byte where it belongs, by each verb; accounts, errors and their reasons."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from runtimes.transport.channel import ChannelError
from runtimes.transport.verbs import cards, memory
from runtimes.transport.verbs.queue import QueuePair
from tests.rdma.machine import Nics
from tests.support import channel_ends

MIB = 1 << 20


class Two:
    """Two connected queue pairs, each with 4 MiB of registered memory."""

    def __init__(self, nics: Nics, size: int = 4 * MIB, depth: int = 128) -> None:
        self.places = [cards.find(wanted)[0] for wanted in (nics.at_near, nics.at_far)]
        self.cards = [cards.take(place) for place in self.places]
        self.near, self.far = (QueuePair(card, depth=depth) for card in self.cards)
        self.buffers = [channel_ends.memory(size) for _ in self.cards]
        self.here, self.there = (
            memory.register(card, buffer) for card, buffer in zip(self.cards, self.buffers, strict=True)
        )
        for mine, other, place in (
            (self.near, self.far, self.places[1]),
            (self.far, self.near, self.places[0]),
        ):
            mine.connect(other.number, other.first_packet, place.gid, place.lid, 4096, 16)

    def close(self) -> None:
        for each in (self.near, self.far, self.here, self.there):
            each.close()
        for card in self.cards:
            cards.give_back(card)


@pytest.fixture
def two(nics: Nics) -> Iterator[Two]:
    made = Two(nics)
    yield made
    made.close()


def test_write_with_an_immediate_behind_it(two: Two) -> None:
    data = os.urandom(3 * MIB + 17)
    two.buffers[0][: len(data)] = data
    piece = two.here.piece(0, len(data), two.there.address + 5, two.there.key.remote)
    two.near.wait(two.near.write([piece], immediate=0xABCD0001))
    assert two.far.receive() == 0xABCD0001
    assert two.buffers[1][5 : 5 + len(data)] == data
    assert not any(two.buffers[1][:5])


def test_read_brings_what_is_there_where_that_is_allowed(two: Two) -> None:
    there = memory.register(two.far.card, bytearray(data := os.urandom(MIB)), readable=True)
    try:
        two.near.wait(two.near.read([two.here.piece(0, MIB, there.address, there.key.remote)]))
        assert two.buffers[0][:MIB] == data
    finally:
        there.close()


def test_whoever_has_a_key_may_write_and_not_read_unless_that_is_said(two: Two) -> None:
    """What lies in a cache is of everybody's requests."""
    piece = two.here.piece(0, 4096, two.there.address, two.there.key.remote)
    two.near.wait(two.near.write([piece]))
    two.buffers[1][:4096] = os.urandom(4096)
    with pytest.raises(ChannelError, match=r"REM_(ACCESS|INV_REQ)_ERR"):
        two.near.wait(two.near.read([piece]))
    assert not any(two.buffers[0][:4096])


def test_many_more_requests_than_the_device_holds_at_once(nics: Nics) -> None:
    two = Two(nics, depth=32)
    data = os.urandom(500 * 1024)
    two.buffers[0][: len(data)] = data
    # Backwards, so that nothing can be joined.
    pieces = [
        two.here.piece(n * 1024, 1024, two.there.address + n * 1024, two.there.key.remote) for n in range(500)
    ]
    two.near.wait(two.near.write(pieces[::-1]))
    assert two.buffers[1][: len(data)] == data
    two.close()


def test_messages_of_any_length_in_order_both_ways(two: Two) -> None:
    sizes = [0, 1, 4095, 4096, 4097, 200_000, 3]
    bodies = [os.urandom(size) for size in sizes]
    got: list[bytes | int] = []
    reader = threading.Thread(target=lambda: got.extend(two.far.receive() for _ in bodies))
    reader.start()
    for body in bodies:
        two.near.send(body)
    reader.join()
    assert got == bodies
    two.far.send(b"back")
    assert two.near.receive() == b"back"


def test_a_message_behind_a_write_finds_it_whole(two: Two) -> None:
    for turn in range(20):
        two.buffers[0][:MIB] = bytes([turn]) * MIB
        piece = two.here.piece(0, MIB, two.there.address, two.there.key.remote)
        ticket = two.near.send(b"%d" % turn, behind=[piece])
        assert two.far.receive() == b"%d" % turn
        assert two.buffers[1][:MIB] == bytes([turn]) * MIB
        two.near.wait(ticket)


def test_nothing_is_lost_where_packets_are(two: Two, nics: Nics) -> None:
    data = os.urandom(2 * MIB)
    two.buffers[0][: len(data)] = data
    piece = two.here.piece(0, len(data), two.there.address, two.there.key.remote)
    nics.lose_packets(1)
    try:
        two.near.wait(two.near.write([piece]), timeout_s=60.0)
    finally:
        nics.lose_none()
    assert two.buffers[1][: len(data)] == data


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("key", "REM_ACCESS_ERR"),
        ("beyond", "REM_ACCESS_ERR"),
        ("local key", "LOC_(PROT|QP_OP)_ERR"),  # a NIC says the first, soft-RoCE the second
    ],
)
def test_what_is_not_allowed_ends_the_queue_pair_with_the_reason(two: Two, wrong: str, says: str) -> None:
    piece = two.here.piece(0, 4096, two.there.address, two.there.key.remote)
    changed = {
        "key": piece._replace(rkey=piece.rkey ^ 0x5500),
        "beyond": piece._replace(remote=two.there.address + 4 * MIB - 100),
        "local key": piece._replace(lkey=piece.lkey ^ 0x5500),
    }[wrong]
    with pytest.raises(ChannelError, match=says) as caught:
        two.near.wait(two.near.write([changed]))
    assert caught.value.reason in ("memory", "protocol")
    with pytest.raises(ChannelError, match=says):
        two.near.send(b"anything")
    with pytest.raises(ChannelError, match=says):
        two.near.receive()


def test_a_region_that_was_closed_can_not_be_written_any_more(two: Two) -> None:
    piece = two.here.piece(0, 4096, two.there.address, two.there.key.remote)
    two.near.wait(two.near.write([piece]))
    two.there.close()
    with pytest.raises(ChannelError, match="not registered"):
        two.near.wait(two.near.write([piece]))


def test_a_queue_pair_that_fails_wakes_whoever_receives(two: Two) -> None:
    woken: list[ChannelError] = []

    def receive() -> None:
        try:
            two.near.receive()
        except ChannelError as error:
            woken.append(error)

    reader = threading.Thread(target=receive)
    reader.start()
    two.near.fail()
    reader.join()
    assert woken[0].reason == "closed"


def test_what_has_been_carried_out_is_told_while_somebody_waits_for_room(two: Two) -> None:
    ticket = two.near.write([two.here.piece(0, 4096, two.there.address, two.there.key.remote)])
    two.near.wait(ticket)
    said: SimpleQueue[int] = SimpleQueue()
    asks = threading.Thread(target=lambda: said.put(two.near.carried_out()))
    with two.near._sending:  # by whoever waits, for as long as its peer's device takes nothing
        asks.start()
        assert said.get(timeout=60.0) == ticket
    asks.join()


@pytest.mark.parametrize("body", [b"short", bytes(10_000)], ids=["message", "batch"])
def test_a_device_that_takes_no_requests_is_why_nothing_is_sent(two: Two, body: bytes) -> None:
    from pyverbs import enums  # type: ignore[import-not-found, unused-ignore]
    from pyverbs.qp import QPAttr  # type: ignore[import-not-found, unused-ignore]

    two.near._queue._pair.modify(QPAttr(qp_state=enums.IBV_QPS_RESET), enums.IBV_QP_STATE)
    with pytest.raises(ChannelError, match=r"rxe\d takes no requests any more: ") as caught:
        two.near.send(body)
    assert caught.value.reason == "device"


def test_memory_that_can_not_be_registered_says_why(two: Two) -> None:
    with pytest.raises(ChannelError, match="registering 4096 bytes with rxe1") as caught:
        memory.register_at(two.cards[0], 0x10000, 4096, None)
    assert caught.value.reason == "memory"
    with pytest.raises(ValueError, match="read-only"):
        memory.register(two.cards[0], b"constant")
    with pytest.raises(ValueError, match="no bytes"):
        memory.register(two.cards[0], bytearray())


def test_gpu_memory_without_a_driver_that_can_says_so(two: Two) -> None:
    with pytest.raises(ChannelError, match="dma-buf") as caught:
        memory.register_dmabuf(two.cards[0], os.dup(0), 0, 4096, None)
    assert caught.value.reason == "memory"


def test_an_array_and_memory_known_by_its_address(two: Two) -> None:
    """A CPU tensor is registered by its `numpy()`, a pinned one by its `data_ptr()`."""
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(65536, dtype=numpy.int32)
    region = memory.register(two.cards[0], array)
    assert region.address == array.ctypes.data
    pinned = memory.register_at(two.cards[0], array.ctypes.data, 4096, array)
    two.near.wait(two.near.write([region.piece(0, region.length, two.there.address, two.there.key.remote)]))
    assert two.buffers[1][: region.length] == array.tobytes()
    pinned.close()
    region.close()
