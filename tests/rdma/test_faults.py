"""What breaks: links, peers, queue pairs and memory. A channel is lost with a reason, and the next one works."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from runtimes.transport.channel import ChannelError, Rung
from tests.rdma.channels import Pair, Sender, decode, ends, prefill
from tests.rdma.machine import Nics
from tests.support.channel_ends import BLOCK, WAIT_S, Ear, extent

RUNGS = pytest.mark.parametrize("rung", ["rdma", "rdma-staged"])


def works(pair: Pair) -> bool:
    (sent,) = pair.fill(1)
    pair.prefill.write(9, 0, 3, [sent])
    landed = pair.at_decode.next()
    return landed == ("landed", 3, 1, []) and pair.at_decode.memory[3 * BLOCK : 4 * BLOCK] == sent


@RUNGS
def test_a_link_that_comes_back_at_once_loses_nothing(nics: Nics, rung: Rung) -> None:
    pair = Pair(rung)
    nics.link_down()
    pair.prefill.write(1, 0, 0, pair.fill(1))
    nics.link_up()
    assert pair.at_decode.next() == ("landed", 0, 1, [])
    assert works(pair)
    pair.close()


@pytest.mark.parametrize(
    ("cut", "mend", "stall_s", "says"),
    [
        (lambda: Nics.lose_packets(100), Nics.lose_none, 20.0, "RETRY_EXC_ERR"),
        (Nics.link_down, Nics.link_up, 0.5, "takes nothing: link down"),  # soft-RoCE tries for ever then
    ],
    ids=("no packet arrives", "link down"),
)
def test_a_peer_out_of_reach_loses_the_channel_with_the_reason(
    nics: Nics,
    cut: Callable[[], None],
    mend: Callable[[], None],
    stall_s: float,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runtimes.transport.verbs.queue.STALL_S", stall_s)
    pair = Pair()
    cut()
    pair.prefill.write(1, 0, 0, pair.fill(1))
    assert pair.at_prefill.next() == ("lost", "unreachable")
    assert says in str(pair.prefill.lost)
    assert pair.at_decode.next() == ("lost", "closed")
    pair.close()
    mend()
    again = Pair()
    assert works(again)
    again.close()


@RUNGS
def test_a_queue_pair_in_error_loses_the_channel_on_both_sides(rung: Rung) -> None:
    pair = Pair(rung)
    ends(pair.prefill)[0].bulk.fail()
    assert pair.at_prefill.next() == ("lost", "closed")
    assert pair.at_decode.next() == ("lost", "closed")
    pair.close()


def test_a_ring_that_is_withdrawn_is_never_written_to_again() -> None:
    pair = Pair()
    ends(pair.decode)[0].ring._memory.close()  # type: ignore[union-attr]
    pair.prefill.write(1, 0, 0, pair.fill(1))
    assert pair.at_prefill.next() == ("lost", "memory")
    assert "not registered" in str(pair.prefill.lost)
    pair.close()


@RUNGS
def test_a_peer_that_is_killed_while_it_writes_is_noticed_and_replaced(rung: Rung) -> None:
    for _ in range(3):
        sender = Sender(rung)
        channel = decode(sender.addr, (rung,))
        ear = Ear()
        channel.start(ear, ear)
        channel.expose([extent(ear.memory)])
        for _ in range(5):
            happened = ear.next()
            assert (happened[0], happened[2:]) == ("landed", (8, []))
        sender.kill()
        while happened[0] == "landed":
            happened = ear.next()
            assert happened == ("lost", "closed") or (happened[0], happened[2:]) == ("landed", (8, []))
        channel.close()
        sender.close()


def test_locked_memory_that_is_used_up_says_so_and_leaves_nothing() -> None:
    """As a user without rights: root may lock what it likes."""
    program = (
        "import os, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))\n"
        "from runtimes.transport.verbs import cards\n"
        "from runtimes.transport.verbs.ends import Ends\n"
        "place = cards.find()[0]\n"
        "os.chmod('/dev/infiniband/uverbs0', 0o666)\n"
        "os.setuid(65534)\n"
        "try:\n    Ends(place, 64 << 20, receives=True)\n"
        "except Exception as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "ulimit -l" in done.stdout, done.stderr
    assert done.stdout.startswith("memory: registering")


def test_a_thousand_channels_set_up_and_torn_down_leave_nothing() -> None:
    listener, accepted = prefill()
    for _ in range(1000):
        near = decode(listener.addr, window=64 << 10)
        far = accepted.get(timeout=WAIT_S)
        assert near.rung == far.rung == "rdma-staged"
        near.close()
        far.close()
    listener.close()


def test_reason_of_a_lost_channel_reaches_whoever_writes_next() -> None:
    pair = Pair()
    pair.decode.close()
    assert pair.at_prefill.next() == ("lost", "closed")
    with pytest.raises(ChannelError) as caught:
        pair.prefill.write(1, 0, 0, pair.fill(1))
    assert caught.value.reason == "closed"
    pair.close()
