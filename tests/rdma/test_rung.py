"""The rungs over verbs, each by itself: bytes, order, credit, loss and choice, over the wire between two devices."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from runtimes.transport.channel import ChannelError, Frame
from runtimes.transport.handshake import Identity
from runtimes.transport.layout import Layout
from runtimes.transport.link import Sockets
from runtimes.transport.listener import dial
from runtimes.transport.pair import Channel
from runtimes.transport.verbs.choice import Wanted
from tests.rdma.channels import Pair, decode, ends, prefill
from tests.rdma.machine import Nics, tcp_bytes_sent
from tests.support.channel_ends import BLOCK, KEY, WAIT_S, Ear


@pytest.fixture(params=["rdma", "rdma-staged"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(request.param)
    yield made
    made.close()


@pytest.fixture
def staged() -> Iterator[Pair]:
    made = Pair("rdma-staged")
    yield made
    made.close()


def sockets(channel: Channel) -> tuple[socket.socket, ...]:
    assert isinstance(channel._link, Sockets)
    return channel._link._sockets


def test_blocks_land_where_they_belong_while_the_ring_wraps_many_times(pair: Pair) -> None:
    for turn in range(30):
        pair.prefill.flush(1)
        sent = pair.fill(11)
        target = turn * 7 % 100
        pair.prefill.write(1, 0, target, sent)
        assert pair.at_decode.next() == ("landed", target, 11, [])
        assert pair.at_decode.memory[target * BLOCK : (target + 11) * BLOCK] == b"".join(sent)
    pair.prefill.finish(1, 330)
    assert pair.at_decode.next() == ("done", 1, 330)


def test_the_device_carries_the_bytes_and_tcp_does_not(pair: Pair, nics: Nics) -> None:
    lifelines = [each for channel in (pair.prefill, pair.decode) for each in sockets(channel)]
    before, packets = nics.bytes_sent(nics.far), nics.packets_sent(nics.far)
    tcp = sum(map(tcp_bytes_sent, lifelines))
    sent = pair.fill(16)
    for turn in range(10):
        pair.prefill.write(1, 0, turn % 4 * 16, sent)
        pair.at_decode.next()
    carried = 160 * BLOCK
    assert nics.bytes_sent(nics.far) - before >= carried
    assert nics.packets_sent(nics.far) - packets >= carried // 4096
    assert len(lifelines) == 4
    assert sum(map(tcp_bytes_sent, lifelines)) - tcp < carried / 100


def test_messages_go_both_ways_in_order(pair: Pair) -> None:
    bodies = [os.urandom(size) for size in (1, 100_000, 10, 5000)]
    for body in bodies:
        pair.decode.send(body)
        pair.prefill.send(body)
    assert [pair.at_prefill.next() for _ in bodies] == [("message", body) for body in bodies]
    assert [pair.at_decode.next() for _ in bodies] == [("message", body) for body in bodies]


def test_a_byte_that_changes_in_the_ring_is_caught(staged: Pair) -> None:
    way = staged.decode._ways["rdma-staged"]
    fetch = way.fetch

    def spoiled(lane: int, frame: Frame, window: memoryview | None) -> None:
        ring = ends(staged.decode)[lane].ring.view
        assert ring is not None
        ring[frame.offset + BLOCK + 5] ^= 1
        fetch(lane, frame, window)

    way.fetch = spoiled  # type: ignore[method-assign]
    staged.prefill.write(1, 0, 4, staged.fill(3))
    assert staged.at_decode.next() == ("landed", 4, 3, [5])


def test_bytes_under_way_are_bounded_by_credit() -> None:
    pair = Pair("rdma-staged", window=8 * BLOCK)
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
            pair.prefill.write(1, 0, number * 4, pair.fill(4))
            sent.put(number)

    thread = threading.Thread(target=push)
    thread.start()
    assert [sent.get(timeout=WAIT_S) for _ in range(2)] == [0, 1]
    assert pair.prefill.free() == 0
    assert sent.empty()
    gate.set()
    assert [slow.next()[1] for _ in range(6)] == [0, 4, 8, 12, 16, 20]
    thread.join(WAIT_S)
    pair.close()


def test_what_was_sent_before_the_end_arrives_before_it(pair: Pair) -> None:
    pair.decode.send(b"last words")
    pair.prefill.write(1, 0, 0, pair.fill(2))
    pair.prefill.finish(1, 2)
    pair.prefill.close()
    assert [pair.at_decode.next() for _ in range(3)] == [
        ("landed", 0, 2, []),
        ("done", 1, 2),
        ("lost", "closed"),
    ]
    with pytest.raises(ChannelError):
        pair.decode.send(b"anybody?")


def test_a_peer_that_takes_no_messages_does_not_stop_the_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtimes.transport.verbs.rail._SEND_TIMEOUT_S", 0.05)
    listener, accepted = prefill()
    channel = decode(listener.addr)
    ear = Ear(1)
    channel.start(ear, ear)
    with pytest.raises(ChannelError) as caught:
        channel.send(bytes(8 << 20))  # nobody reads at the other end
    assert caught.value.reason == "timeout"
    assert ear.next() == ("lost", "timeout")
    channel.close()
    accepted.get(timeout=WAIT_S).close()
    listener.close()


def test_the_wrong_generation_is_refused_and_leaves_nothing() -> None:
    listener, _ = prefill()
    with pytest.raises(ChannelError, match="generation 6 was meant, this is 7"):
        decode(listener.addr, peer_generation=6)
    with pytest.raises(ChannelError) as caught:
        dial(
            listener.addr,
            KEY,
            Identity("d", 3, Layout(dtype="float32")),
            rungs=("rdma-staged",),
            rdma=Nics().at_near,
        )
    assert caught.value.reason == "incompatible"
    listener.close()


@pytest.mark.parametrize(
    ("near", "far", "says"),
    [
        (Wanted(("mlx5_0",)), None, "rdma: rxe0:1 was not asked for; .*mlx5_0 is not here"),
        (None, Wanted(("mlx5_1",)), "rdma: .*mlx5_1 is not here"),
        (Wanted(network="10.0.0.0/8"), None, "rxe0:1 has no address in 10.0.0.0/8"),
    ],
)
def test_a_side_without_a_usable_device_takes_another_rung_and_says_why(
    near: Wanted | None, far: Wanted | None, says: str
) -> None:
    listener, accepted = prefill(rdma=far)
    channel = decode(listener.addr, rungs=("rdma-staged", "tcp"), rdma=near)
    other = accepted.get(timeout=WAIT_S)
    assert channel.rung == other.rung == "tcp"
    for side in (channel, other):
        assert re.search(says, " ".join(side.passed))
    channel.close()
    other.close()
    with pytest.raises(ChannelError, match=says):
        decode(listener.addr, rungs=("rdma-staged",), rdma=near)
    listener.close()
