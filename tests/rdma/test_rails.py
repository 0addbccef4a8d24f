"""A transfer over two devices at once: every byte arrives, both carry their share, a failing one is named."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from runtimes.transport.channel import ChannelError
from runtimes.transport.verbs import cards, memory
from runtimes.transport.verbs.choice import Wanted
from runtimes.transport.verbs.memory import Region
from runtimes.transport.verbs.queue import QueuePair
from runtimes.transport.verbs.rails import Rail, Rails
from runtimes.transport.verbs.work import Piece
from tests.rdma import machine
from tests.rdma.machine import Nics

MIB = 1 << 20
SIZE = 4 * MIB


class Two:
    """One rail over the wire, one over a device to itself; the same memory at both ends of each."""

    def __init__(self) -> None:
        self.source, self.target = machine.memory(SIZE), machine.memory(SIZE)
        self._undo: list[QueuePair | Region] = []
        self._cards = []
        self.rails = []
        for near, far in (("rxe1", "rxe2"), ("rxe0", "rxe0")):
            places = [cards.find(Wanted((name,)))[0] for name in (near, far)]
            opened = [cards.take(place) for place in places]
            here, there = memory.register(opened[0], self.source), memory.register(opened[1], self.target)
            one, other = (QueuePair(card) for card in opened)
            one.connect(other.number, other.first_packet, places[1].gid, 0, 4096, 16)
            other.connect(one.number, one.first_packet, places[0].gid, 0, 4096, 16)
            self.rails.append(Rail(one, here.key.local, there.key.remote))
            self._undo += [one, other, here, there]
            self._cards += opened
            self.from_address, self.to_address = here.address, there.address

    def piece(self, offset: int, size: int) -> Piece:
        return Piece(self.from_address + offset, 0, self.to_address + offset, 0, size)

    def close(self) -> None:
        for each in self._undo:
            each.close()
        for card in self._cards:
            cards.give_back(card)


@pytest.fixture
def two() -> Iterator[Two]:
    made = Two()
    yield made
    made.close()


def test_both_rails_carry_their_share_and_every_byte_arrives(two: Two) -> None:
    two.source[:] = data = os.urandom(SIZE)
    before = [Nics.packets_sent(name) for name in ("rxe1", "rxe0")]
    rails = Rails(two.rails)
    rails.wait(rails.write([two.piece(at, 64 << 10) for at in range(0, SIZE, 64 << 10)]))
    assert two.target[:] == data
    carried = [Nics.packets_sent(name) - was for name, was in zip(("rxe1", "rxe0"), before, strict=True)]
    assert all(packets >= SIZE // 2 // 4096 for packets in carried)


def test_a_short_transfer_stays_on_one_rail(two: Two) -> None:
    two.source[: 64 << 10] = data = os.urandom(64 << 10)
    before = Nics.packets_sent("rxe0")
    rails = Rails(two.rails)
    rails.wait(rails.write([two.piece(0, 64 << 10)]))
    assert two.target[: 64 << 10] == data
    assert Nics.packets_sent("rxe0") == before


def test_a_rail_that_fails_is_named(two: Two) -> None:
    broken = Rails([two.rails[0], Rail(two.rails[1].queue, two.rails[1].lkey, two.rails[1].rkey ^ 0x5500)])
    with pytest.raises(ChannelError, match="on rxe0:1: the peer's memory is not registered"):
        broken.wait(broken.write([two.piece(0, SIZE)]))
