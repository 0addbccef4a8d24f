"""A channel over two devices at once: both carry whole writes, in any order; a transfer is done when both say so."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from runtimes.transport.channel import Frame
from runtimes.transport.verbs.choice import Wanted
from tests.rdma.channels import Pair, ends
from tests.rdma.machine import Nics
from tests.support.channel_ends import BLOCK

#: One rail over the wire, one over a device to itself.
NEAR, FAR = Wanted(("rxe1", "rxe0")), Wanted(("rxe2", "rxe0"))


@pytest.fixture(params=["rdma", "rdma-staged"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(request.param, rdma=NEAR, far=FAR)
    yield made
    made.close()


def test_both_devices_carry_whole_writes_and_every_byte_arrives(pair: Pair) -> None:
    assert [end.place.device for end in ends(pair.prefill)] == ["rxe2", "rxe0"]
    memory = pair.at_prefill.memory
    memory[:] = os.urandom(len(memory))
    before = [Nics.packets_sent(name) for name in ("rxe2", "rxe0")]
    for at in range(0, 128, 8):
        pair.prefill.write(1, 0, at, [memory[n * BLOCK : (n + 1) * BLOCK] for n in range(at, at + 8)])
    pair.prefill.finish(1, 128)
    happened = [pair.at_decode.next() for _ in range(17)]
    assert sorted(happened[:16]) == [("landed", at, 8, []) for at in range(0, 128, 8)]
    assert happened[16] == ("done", 1, 128)
    assert pair.at_decode.memory == memory
    carried = [Nics.packets_sent(name) - was for name, was in zip(("rxe2", "rxe0"), before, strict=True)]
    assert all(packets >= 3 * 8 * BLOCK // 4096 for packets in carried), carried


def test_a_transfer_is_done_only_when_the_slower_rail_says_so(pair: Pair) -> None:
    """The first rail's last write stays on its way until the second one's word has come."""
    rail = pair.prefill._ways[pair.prefill.rung].streams[1]  # type: ignore[index]
    told: list[Frame] = []
    tell = rail.tell
    rail.tell = lambda frame, body=b"": told.append(frame)  # type: ignore[method-assign]
    pair.prefill.write(1, 0, 0, pair.fill(2))
    pair.prefill.finish(1, 2)
    assert pair.at_decode.next() == ("landed", 0, 2, [])
    pair.prefill.send(b"behind it")
    assert pair.at_decode.next() == ("message", b"behind it")
    assert pair.at_decode.happened.empty()
    tell(told[0])
    assert pair.at_decode.next() == ("done", 1, 2)


def test_a_rail_that_fails_loses_the_channel_and_is_named(pair: Pair) -> None:
    ends(pair.prefill)[1].bulk.fail()
    assert pair.at_prefill.next() == ("lost", "closed")
    assert "rxe0:1" in str(pair.prefill.lost)
    assert pair.at_decode.next() == ("lost", "closed")


def test_devices_that_nobody_named_are_paired_within_one_network() -> None:
    pair = Pair("rdma", rdma=Wanted(), far=Wanted(("rxe2",)))
    assert [(end.place.device, pair.prefill.rung) for end in ends(pair.prefill)] == [("rxe2", "rdma")]
    pair.close()
