"""Blocks that are claimed rather than computed for a job; and how long blocks are kept for whoever says nothing."""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from runtimes.transport.channel import ChannelError, Rung
from runtimes.transport.handshake import Identity
from runtimes.transport.layout import Layout
from runtimes.transport.listener import Listener, dial
from runtimes.transport.pair import Channel
from runtimes.vllm_pd.both import BothWays
from runtimes.vllm_pd.kv_memory import KvMemory, KvPart
from runtimes.vllm_pd.landing import HEARTBEAT_S, Landings, Outcome, Prompt
from runtimes.vllm_pd.pushing import PATIENCE_S, Pushes
from tests.runtimes.test_transfers import BLOCKS, LAYERS, SIZE, WAIT_S, Clock, memory

LEASE_S = 30.0


class Side:
    """An engine's two halves, and its memory."""

    def __init__(self, seed: int, clock: Clock) -> None:
        self.memory, self.layers = memory(seed)
        self.pushes = Pushes(self.memory, LEASE_S, clock)
        self.landings = Landings(self.memory, 300.0, clock)
        self.ways = BothWays(self.landings, self.pushes)
        self.outcomes: SimpleQueue[Outcome] = SimpleQueue()

    def outcome(self) -> Outcome:
        return self.outcomes.get(timeout=WAIT_S)

    def block(self, layer: int, block: int) -> bytes:
        return bytes(self.layers[layer][block * SIZE : (block + 1) * SIZE])


class Two:
    """Decode has dialled prefill; every job that comes is taken down."""

    def __init__(self, rung: Rung = "tcp") -> None:
        self.clock = Clock()
        self.prefill, self.decode = Side(1, self.clock), Side(9, self.clock)
        accepted: SimpleQueue[Channel] = SimpleQueue()
        self.jobs: SimpleQueue[int] = SimpleQueue()
        self.cancelled: SimpleQueue[int] = SimpleQueue()
        self.prefill.pushes.accept_jobs(lambda key, job: self.jobs.put(key), self.cancelled.put)
        self.listener = Listener(b"key", lambda: Identity("p", 1, Layout()), accepted.put)
        window = LAYERS * SIZE * 8
        self.near = dial(self.listener.addr, b"key", Identity("d", 1, Layout()), rungs=(rung,), window=window)
        self.far = accepted.get(timeout=WAIT_S)
        self.prefill.ways.attach_accepted(self.far)
        self.decode.ways.attach_dialled(self.near)

    def open(self, held: int = 0, tokens: int = 100) -> tuple[int, int]:
        """decode's number, prefill's key"""
        outcomes = self.decode.outcomes
        number = self.decode.landings.open(
            self.near, Prompt("r", [1] * tokens, outcomes.put, lambda job: None, held=held)
        )
        return number, self.jobs.get(timeout=WAIT_S)

    def fetch(self, number: int, skip: int, targets: list[int]) -> int:
        return self.prefill.landings.claim(
            self.far, number, "engine-p", skip, targets, 40, self.prefill.outcomes.put, back=True
        )

    def close(self) -> None:
        self.near.close()
        self.far.close()
        self.listener.close()


@pytest.fixture(params=["shm", "tcp"])
def two(request: pytest.FixtureRequest) -> Iterator[Two]:
    made = Two(request.param)
    yield made
    made.close()


def moved(two: Two, sources: list[int], targets: list[int]) -> bool:
    """From decode to prefill."""
    pairs = list(zip(sources, targets, strict=True))
    return all(two.decode.block(n, s) == two.prefill.block(n, t) for n in range(LAYERS) for s, t in pairs)


@pytest.mark.parametrize("early", [False, True])
def test_what_decode_holds_goes_to_prefill_and_what_that_one_computes_comes_back(
    two: Two, early: bool
) -> None:
    number, key = two.open(held=3)
    if early:
        two.fetch(number, 1, [5, 6])
    two.decode.pushes.offer((two.near, number), [20, 21, 22], 3, True)
    if not early:
        two.fetch(number, 1, [5, 6])
    assert two.prefill.outcome().reason == ""
    assert moved(two, [21, 22], [5, 6])
    assert two.prefill.landings.results() == ({"engine-p"}, set())
    two.decode.landings.reserve(number, "engine-d", 3, [30, 31], 60)
    two.prefill.pushes.computed(key, "engine-p", [4, 5, 6, 7, 8], 5, True)
    assert two.decode.outcome().reason == ""
    assert all(two.prefill.block(n, 7) == two.decode.block(n, 30) for n in range(LAYERS))
    assert two.decode.pushes.withdraw((two.near, number), "done")


def test_blocks_that_were_withdrawn_are_not_read_and_not_given_out(two: Two) -> None:
    number, _ = two.open(held=2)
    two.fetch(number, 0, [5, 6])
    assert two.decode.pushes.withdraw((two.near, number), "gone")
    assert two.prefill.outcome().reason == "gone"
    assert two.prefill.landings.results() == ({"engine-p"}, {"engine-p"})
    two.fetch(number, 0, [5, 6])
    assert two.prefill.outcome().reason == "gone"
    two.decode.pushes.offer((two.near, number + 1), [20, 21], 2, True)  # another's goes on
    two.fetch(number + 1, 0, [5, 6])
    assert two.prefill.outcome().reason == ""


def test_prefill_hears_how_much_decode_keeps_or_stops_waiting_for_it(two: Two) -> None:
    number, key = two.open(held=3)
    assert two.prefill.pushes.held(key) is None
    two.decode.landings.reserve(number, "engine-d", 2, [30], 60)
    while two.prefill.pushes.held(key) is None:
        pass
    assert two.prefill.pushes.held(key) == 2
    _, nothing = two.open()
    assert two.prefill.pushes.held(nothing) == 0
    _, silent = two.open(held=3)
    assert two.prefill.pushes.held(silent) is None
    two.clock.now += PATIENCE_S + 0.1
    assert two.prefill.pushes.held(silent) == 0


def test_a_part_of_every_block(two: Two) -> None:
    """Half of the sender's block is the second quarter of the receiver's."""
    two.prefill.pushes.offer((two.far, 77), [3, 4, 9], 3, True)
    before = [two.decode.block(0, n) for n in range(BLOCKS)]
    part = two.decode.memory.part(SIZE // 4, SIZE // 4)
    assert isinstance(part, KvPart)
    two.decode.landings.claim(
        two.near, 77, "engine-d", 1, [11, 12], 40, two.decode.outcomes.put, part, offset=SIZE // 2
    )
    outcome = two.decode.outcome()
    assert (outcome.reason, outcome.bytes) == ("", 2 * LAYERS * SIZE // 4)
    for source, target in ((4, 11), (9, 12)):
        for layer in range(LAYERS):
            got = two.decode.block(layer, target)
            assert got[SIZE // 4 : SIZE // 2] == two.prefill.block(layer, source)[SIZE // 2 : 3 * SIZE // 4]
    untouched = [n for n in range(BLOCKS) if n not in (11, 12)]
    assert [two.decode.block(0, n) for n in untouched] == [before[n] for n in untouched]
    assert two.decode.block(0, 11)[: SIZE // 4] == before[11][: SIZE // 4]
    assert two.decode.block(0, 12)[SIZE // 2 :] == before[12][SIZE // 2 :]


def test_a_part_beyond_the_senders_block_is_refused(two: Two) -> None:
    small, _ = memory(3)
    with pytest.raises(ValueError, match="no 10 bytes"):
        small.part(SIZE - 5, 10)
    part = two.decode.memory.part(0, SIZE // 2)
    two.decode.landings.claim(
        two.near, 77, "engine-d", 0, [11], 40, two.decode.outcomes.put, part, offset=SIZE // 2 + 1
    )
    assert two.decode.outcome().reason == "incompatible"


def test_where_no_rung_goes_that_way_nothing_is_asked(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtimes.transport.pair.EITHER_WAY", frozenset())
    with pytest.raises(ChannelError, match="no rung for these blocks"):
        two.fetch(1, 0, [1])
    assert two.prefill.landings.open_transfers == 0


def test_a_lease_lasts_as_long_as_decodes_engine_steps(two: Two) -> None:
    _, key = two.open(tokens=20_000)
    two.prefill.pushes.computed(key, "engine-p", [8, 9], 2, True)
    two.prefill.pushes.results({"engine-p"})
    while two.clock.now < 3 * LEASE_S:
        two.clock.now += HEARTBEAT_S
        two.decode.landings.results()
        until = two.clock.now + LEASE_S
        while min(push.deadline for push in two.prefill.pushes._by_key.values()) < until:
            pass  # its reader takes it
        assert two.prefill.pushes.results(set()) == set()
    two.clock.now += LEASE_S + 1  # decode hangs
    two.prefill.pushes.results(set())
    assert two.decode.outcome().reason == "lease-expired"
    assert two.cancelled.get(timeout=WAIT_S) == key


def test_only_what_is_still_wanted_is_renewed(two: Two) -> None:
    first, key = two.open()
    _, other = two.open()
    two.decode.landings.cancel(first, "gone")
    assert two.cancelled.get(timeout=WAIT_S) == key
    two.clock.now = HEARTBEAT_S
    two.decode.landings.results()
    push = two.prefill.pushes._by_key[other]
    while push.deadline < HEARTBEAT_S + LEASE_S:
        pass
    assert list(two.prefill.pushes._by_key) == [other]


def test_memory_for_parts() -> None:
    made = KvMemory()
    made.register_views([memoryview(bytearray(64))], 4)
    part = made.part(4, 8)
    assert (part.layers, part.block_bytes) == (1, 8)
    part.view(0, 2, 1)[:] = b"x" * 8
    block = made.view(0, 2, 1)
    assert isinstance(block, memoryview)
    assert bytes(block) == bytes(4) + b"x" * 8 + bytes(4)
    with pytest.raises(ValueError, match="parts of several blocks"):
        part.view(0, 0, 2)
