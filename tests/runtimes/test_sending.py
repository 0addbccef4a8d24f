"""The writing side of a channel, with a channel whose writes are let through one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import Any, cast

import pytest

from runtimes.transport.channel import ChannelError, Row
from runtimes.transport.pair import Channel
from runtimes.vllm_pd import jobs
from runtimes.vllm_pd.kv_memory import KvMemory
from runtimes.vllm_pd.sending import Over, Sender

ROW, BLOCKS = 256 << 10, 64
WAIT_S = 60.0


class Peer:
    name = "d"


class Gate:
    """A channel with the rungs `a` and `b`. On each, a write waits until it is let through."""

    peer = Peer()

    def __init__(self, direct: bool) -> None:
        self._direct = direct
        self.doing: SimpleQueue[tuple[str, int]] = SimpleQueue()  # what has come to the gate
        self.gates: dict[str, SimpleQueue[str]] = {"a": SimpleQueue(), "b": SimpleQueue()}
        self.said: SimpleQueue[Any] = SimpleQueue()
        self.finished: list[int] = []
        self.rows: list[list[tuple[int, int]]] = []
        self.over = ""

    def largest_write(self, rung: str) -> int:
        return 1 << 20

    def free(self, rung: str) -> int:
        return 1 << 20

    def batch(self, rung: str) -> int:
        return 0

    def lingers(self, rung: str) -> bool:
        return self._direct

    def push(self, rung: str) -> None:
        return

    def scatters(self, rung: str) -> bool:
        return True

    def write_rows(self, transfer: int, rows: Sequence[Row], rung: str) -> int:
        self.rows.append([(row.layer, row.target) for row in rows])
        self._pass("rows", transfer, rung)
        return sum(len(row.block) for row in rows)

    def write(self, transfer: int, layer: int, target: int, blocks: Sequence[memoryview], rung: str) -> int:
        self._pass("write", transfer, rung)
        return sum(map(len, blocks))

    def flush(self, transfer: int, rung: str) -> None:
        self._pass("flush", transfer, rung)

    def finish(self, transfer: int, blocks: int, rung: str) -> None:
        self.finished.append(transfer)

    def send(self, body: bytes) -> None:
        self.said.put(jobs.decode(body))

    def _pass(self, what: str, transfer: int, rung: str) -> None:
        self.doing.put((what, transfer))
        word = self.over or self.gates[rung].get(timeout=WAIT_S)
        if word:
            raise ChannelError("timeout", word)

    def let(self, rung: str = "a", word: str = "") -> tuple[str, int]:
        """What has come, let through; or, with a word, failed."""
        came = self.doing.get(timeout=WAIT_S)
        self.gates[rung].put(word)
        return came


class Setup:
    def __init__(self, direct: bool = False) -> None:
        self.memory = KvMemory()
        self.memory.register_views([memoryview(bytearray(BLOCKS * ROW))], BLOCKS)
        self.gate = Gate(direct)
        self.over: SimpleQueue[Over] = SimpleQueue()
        self.sender = Sender(cast(Channel, self.gate), self.over.put, lambda: 1.0)

    def open(self, number: int, blocks: int, rung: Any = "a") -> None:
        self.sender.open(number, rung, self.memory)
        self.sender.reserved(number, 0, range(blocks))
        self.sender.computed(number, range(blocks), blocks, True)

    def ended(self) -> Over:
        return self.over.get(timeout=WAIT_S)


@pytest.fixture(params=[False, True], ids=["copied", "direct"])
def setup(request: pytest.FixtureRequest) -> Iterator[Setup]:
    made = Setup(request.param)
    yield made
    made.gate.over = "the test is over"
    for gate in made.gate.gates.values():
        gate.put(made.gate.over)
    made.sender.close("closed")


def test_a_short_transfer_overtakes_a_long_one() -> None:
    setup = Setup()
    setup.open(1, 64)
    assert setup.gate.doing.get(timeout=WAIT_S) == ("write", 1)
    setup.open(2, 4)
    setup.gate.gates["a"].put("")
    assert setup.gate.let() == ("write", 2)
    assert setup.ended()[:3] == (2, "", 4 * ROW)
    for _ in range(15):
        assert setup.gate.let() == ("write", 1)
    assert setup.ended()[:3] == (1, "", 64 * ROW)
    assert setup.gate.finished == [2, 1]
    assert [setup.gate.said.get().transfer for _ in range(2)] == [2, 1]


def test_a_rung_that_stands_still_stops_no_other_one(setup: Setup) -> None:
    setup.open(1, 4)
    assert setup.gate.doing.get(timeout=WAIT_S) == ("write", 1)
    setup.open(2, 4, "b")
    assert setup.gate.let("b") == ("write", 2)
    if setup.gate.lingers("b"):
        assert setup.gate.let("b") == ("flush", 2)
    assert setup.ended().transfer == 2


@pytest.mark.parametrize("where", ["write", "flush", "finish"])
def test_whatever_is_raised_ends_one_transfer_and_not_the_thread_of_its_rung(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = Setup(direct=True)
    real = getattr(setup.gate, where)

    def broken(*args: Any) -> Any:
        if args[0] == 1:
            raise OSError("no such device")
        return real(*args)

    monkeypatch.setattr(setup.gate, where, broken)
    monkeypatch.setattr(setup.gate, "_pass", lambda *args: None)
    setup.open(1, 4)
    assert setup.ended()[:2] == (1, "OSError: no such device")
    setup.open(2, 4)
    assert setup.ended()[:2] == (2, "")
    setup.sender.close("closed")


def test_a_cancelled_transfer_is_over_when_nobody_reads_its_blocks(setup: Setup) -> None:
    setup.open(1, 8)
    setup.gate.doing.get(timeout=WAIT_S)
    setup.sender.cancel(1, "cancelled: gone")
    assert setup.over.empty()
    setup.gate.gates["a"].put("")
    if setup.gate.lingers("a"):
        assert setup.gate.doing.get(timeout=WAIT_S) == ("flush", 1)
        assert setup.over.empty()
        setup.gate.gates["a"].put("")
    assert setup.ended() == Over(1, "cancelled: gone", 4 * ROW, 0.0)
    assert setup.gate.finished == []


def test_what_waits_to_be_computed_is_over_when_its_device_has_read_it() -> None:
    """Direct: between two chunks nobody sends, but the first one may still be under way."""
    setup = Setup(direct=True)
    setup.sender.open(1, cast(Any, "a"), setup.memory)
    setup.sender.reserved(1, 0, range(8))
    setup.sender.computed(1, range(8), 2, False)
    assert setup.gate.let() == ("write", 1)
    setup.sender.cancel(1, "preempted")
    assert setup.gate.let() == ("flush", 1)
    assert setup.ended().reason == "preempted"


def test_one_that_is_not_being_sent_is_over_at_once(setup: Setup) -> None:
    setup.sender.open(1, cast(Any, "a"), setup.memory)
    setup.sender.cancel(1, "cancelled")
    setup.sender.cancel(1, "cancelled again")
    assert setup.ended() == Over(1, "cancelled", 0, 0.0)
    assert setup.over.empty()


def test_a_lost_channel_ends_all_of_it(setup: Setup) -> None:
    setup.open(1, 8)
    setup.open(2, 8)
    setup.gate.doing.get(timeout=WAIT_S)
    setup.sender.close("channel-closed")
    for _ in range(2):
        setup.gate.gates["a"].put("lost")
    assert {(over.transfer, over.reason) for over in (setup.ended(), setup.ended())} == {
        (1, "channel-closed"),
        (2, "channel-closed"),
    }


def test_a_write_that_fails_is_why(setup: Setup) -> None:
    setup.open(1, 4)
    assert setup.gate.let(word="no credit") == ("write", 1)
    if setup.gate.lingers("a"):
        assert setup.gate.let(word="no credit") == ("flush", 1)
    assert setup.ended().reason == "channel-timeout"


def test_scattered_blocks_travel_in_one_frame() -> None:
    setup = Setup()
    setup.sender.open(1, cast(Any, "a"), setup.memory)
    setup.sender.reserved(1, 0, [9, 4, 5, 2, 40])
    setup.sender.computed(1, range(5), 5, True)
    assert setup.gate.let() == ("rows", 1)
    assert setup.gate.let() == ("write", 1)  # the last one is alone
    assert setup.ended()[:3] == (1, "", 5 * ROW)
    assert setup.gate.rows == [[(0, 9), (0, 4), (0, 5), (0, 2)]]


def test_a_number_is_used_once() -> None:
    setup = Setup()
    setup.open(1, 4)
    setup.gate.doing.get(timeout=WAIT_S)
    with pytest.raises(ValueError, match="open already"):
        setup.open(1, 4)
    setup.gate.gates["a"].put("")
    assert setup.ended().transfer == 1
    setup.open(1, 4)
    assert setup.gate.let() == ("write", 1)
    assert setup.ended().transfer == 1


@pytest.mark.parametrize(
    ("error", "word"),
    [(ValueError("no block 77"), "unsendable: "), (OverflowError("2**70"), "OverflowError: ")],
)
def test_a_write_that_fails_for_no_known_reason_stops_no_other_transfer(
    monkeypatch: pytest.MonkeyPatch, error: Exception, word: str
) -> None:
    """Before the colon stands one of few words: metrics are kept by it."""
    setup = Setup()

    def broken(*_: object) -> int:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(setup.gate, "write", broken)
        setup.open(1, 1)
        assert setup.ended()[:2] == (1, f"{word}{error}")
    setup.open(2, 1)
    assert setup.gate.let() == ("write", 2)
    assert setup.ended()[:2] == (2, "")
