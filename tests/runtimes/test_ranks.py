"""Fronts and ranks of both sides against each other, of equal and of different degrees, without an engine."""

from __future__ import annotations

import gc
import random
import time
import weakref
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import cast

import pytest

from kserve_ext.core.kv_ranks import held
from runtimes.transport.channel import ChannelError
from runtimes.transport.handshake import Identity
from runtimes.transport.layout import Layout
from runtimes.transport.listener import Listener, dial
from runtimes.transport.pair import Channel
from runtimes.vllm_pd.both import BothWays
from runtimes.vllm_pd.kv_memory import KvMemory
from runtimes.vllm_pd.landing import Landings, Outcome, Prompt
from runtimes.vllm_pd.pushing import Pushes
from runtimes.vllm_pd.ranks.decode_front import FrontLandings
from runtimes.vllm_pd.ranks.decode_rank import DecodeRank, Dialled
from runtimes.vllm_pd.ranks.mixed import MixedDecode, MixedPrefill
from runtimes.vllm_pd.ranks.prefill_front import FrontPushes
from runtimes.vllm_pd.ranks.prefill_rank import PrefillRank
from runtimes.vllm_pd.ranks.words import PeerRanks, Settings
from runtimes.vllm_pd.scheduler_side import Plan, Progress, Reservation
from runtimes.vllm_pd.worker_side import Worker

HEADS, LAYERS, BLOCKS, HEAD_BYTES = 4, 3, 20, 256
KEY = b"key"
WAIT_S = 60.0
NOTHING = Plan()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def memory(seed: int, degree: int) -> tuple[KvMemory, list[bytearray]]:
    heads = len(held(HEADS, degree, 0))
    rng = random.Random(seed)
    layers = [bytearray(rng.randbytes(BLOCKS * heads * HEAD_BYTES)) for _ in range(LAYERS)]
    made = KvMemory()
    made.register_views([memoryview(layer) for layer in layers], BLOCKS)
    return made, layers


def settings(role: str, degree: int) -> Settings:
    layout = Layout(kv_heads=HEADS, heads_apart=True, tensor_parallel=degree)
    made = Settings(role, role, 7, layout, ("shm", "tcp"), "127.0.0.1", 30.0, 30.0)
    assert Settings.read(made.plain()) == made
    return made


class Side:
    """The layers of each rank; whose heads are whose."""

    def __init__(self, degree: int) -> None:
        self.degree = degree
        self.layers: list[list[bytearray]] = []

    def head(self, rank: int, layer: int, block: int, head: int) -> bytes:
        own = held(HEADS, self.degree, rank)
        at = (block * len(own) + head - own.start) * HEAD_BYTES
        return bytes(self.layers[rank][layer][at : at + HEAD_BYTES])


class Two:
    """One prefill and one decode instance; a step of an engine is a Plan for each of its ranks."""

    def __init__(self, prefill: int, decode: int) -> None:
        self.clock = Clock()
        self.prefill, self.decode = Side(prefill), Side(decode)
        self.pushes, self.landings = FrontPushes(prefill), FrontLandings(decode)
        self.senders: list[PrefillRank] = []
        self.takers: list[DecodeRank] = []
        for rank in range(prefill):
            made, layers = memory(100 + rank, prefill)
            self.prefill.layers.append(layers)
            self.senders.append(PrefillRank(settings("prefill", prefill), rank, KEY, made, self.clock))
        for rank in range(decode):
            made, layers = memory(200 + rank, decode)
            self.decode.layers.append(layers)
            self.takers.append(DecodeRank(settings("decode", decode), rank, KEY, made))
        self._agree_on_heads()
        self.heard: list[set[str]] = [set() for _ in self.takers]
        self.failed: set[str] = set()
        self.jobs: SimpleQueue[int] = SimpleQueue()
        self.cancelled: SimpleQueue[int] = SimpleQueue()
        self.outcomes: SimpleQueue[Outcome] = SimpleQueue()
        self.ended: SimpleQueue[tuple[str, int]] = SimpleQueue()
        self.pushes.accept_jobs(lambda key, job: self.jobs.put(key), self.cancelled.put)
        self.pushes.on_end = lambda channel, rung, reason, size, seconds: self.ended.put((reason, size))
        self.accepted: SimpleQueue[Channel] = SimpleQueue()
        sides = [settings(role, degree).layout for role, degree in (("p", prefill), ("d", decode))]
        self.listener = Listener(KEY, lambda: Identity("prefill", 7, sides[0]), self.accepted.put)
        self.near = dial(self.listener.addr, KEY, Identity("decode", 7, sides[1]))
        self.far = self.accepted.get(timeout=WAIT_S)
        self.pushes.attach(self.far)
        self.landings.attach(self.near)

    def _agree_on_heads(self) -> None:
        """Ranks that hold the same head have computed the same."""
        for head in range(HEADS):
            owners = [r for r in range(self.prefill.degree) if head in held(HEADS, self.prefill.degree, r)]
            for other in owners[1:]:
                for here, there in zip(
                    self.prefill.layers[owners[0]], self.prefill.layers[other], strict=True
                ):
                    there[:] = here

    def open(self) -> tuple[int, int]:
        """decode's number, prefill's key; prefill's ranks have heard of it"""
        number = self.landings.open(self.near, Prompt("r", [1] * 100, self.outcomes.put, lambda job: None))
        key = self.jobs.get(timeout=WAIT_S)
        self.prefill_step()
        return number, key

    def listen(self) -> None:
        self.pushes.listening([rank.addr for rank in self.senders])
        eventually(lambda: bool(self.landings.peers))

    def prefill_step(self, plan: Plan = NOTHING, finished: set[str] | None = None) -> set[str]:
        """What all ranks say may be freed."""
        plan = self.pushes.outgoing(plan)
        sent: list[set[str]] = []
        for rank in self.senders:
            rank.before_forward(plan)
            rank.after_forward(plan)
            sent.append(rank.results(finished or set())[0])
            if (news := rank.news()) is not None:
                self.pushes.incoming(news)
        return set.intersection(*sent)

    def decode_step(self, plan: Plan = NOTHING) -> tuple[set[str], set[str]]:
        """Requests that have ended at all ranks until now, and failed at some."""
        plan = self.landings.outgoing(plan)
        for rank, heard in zip(self.takers, self.heard, strict=True):
            rank.after_forward(plan)
            _, received, bad = rank.results(set())
            heard |= received
            self.failed |= bad
            if (news := rank.news()) is not None:
                self.landings.incoming(news)
        return set.intersection(*self.heard), self.failed

    def reserve(self, number: int, targets: list[int], skip: int = 0) -> None:
        self.decode_step(Plan(reserve=(Reservation(number, "d", list(range(skip)), targets, 50),)))

    def outcome(self) -> Outcome:
        def come() -> bool:
            self.decode_step()
            return not self.outcomes.empty()

        eventually(come)
        return self.outcomes.get()

    def end(self) -> tuple[str, int]:
        def come() -> bool:
            self.prefill_step()
            return not self.ended.empty()

        eventually(come)
        return self.ended.get()

    def same(self, sources: list[int], targets: list[int]) -> bool:
        return all(
            self.decode.head(taker, layer, target, head)
            == self.prefill.head(
                next(r for r in range(self.prefill.degree) if head in held(HEADS, self.prefill.degree, r)),
                layer,
                source,
                head,
            )
            for taker in range(self.decode.degree)
            for head in held(HEADS, self.decode.degree, taker)
            for layer in range(LAYERS)
            for source, target in zip(sources, targets, strict=True)
        )

    def close(self) -> None:
        for sender in self.senders:
            sender.close()
        for taker in self.takers:
            taker.close()
        self.near.close()
        self.far.close()
        self.listener.close()


def eventually(condition: Callable[[], bool]) -> None:
    """Other threads get on with it."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(params=[(2, 2), (1, 2), (2, 1), (4, 1), (1, 4), (2, 4), (4, 2), (8, 2), (2, 8)], ids=str)
def two(request: pytest.FixtureRequest) -> Iterator[Two]:
    made = Two(*request.param)
    made.listen()
    yield made
    made.close()


@pytest.fixture
def equal() -> Iterator[Two]:
    made = Two(2, 2)
    made.listen()
    yield made
    made.close()


def test_every_rank_gets_the_heads_that_it_wants_and_nothing_else(two: Two) -> None:
    sources, targets = [3, 4, 9, 1], [7, 8, 5]
    untouched = [n for n in range(BLOCKS) if n not in targets]

    def others() -> list[bytes]:
        ranks = range(two.decode.degree)
        return [
            two.decode.head(r, layer, block, head)
            for r in ranks
            for head in held(HEADS, two.decode.degree, r)
            for layer in range(LAYERS)
            for block in untouched
        ]

    before = others()
    number, key = two.open()
    two.prefill_step(Plan(progress=(Progress(key, "p", sources, 2, False),)))
    two.reserve(number, targets, skip=1)
    two.prefill_step(Plan(progress=(Progress(key, "p", sources, 4, True),)))
    two.pushes.job_ended(key, 1.0, 2.0, "")
    outcome = two.outcome()
    heads = sum(len(held(HEADS, two.decode.degree, r)) for r in range(two.decode.degree))
    assert (outcome.reason, outcome.tokens, outcome.blocks) == ("", 50, 3)
    assert outcome.bytes == 3 * LAYERS * heads * HEAD_BYTES
    assert two.same(sources[1:], targets)
    assert others() == before
    assert two.decode_step() == ({"d"}, set())
    freed: set[str] = set()

    def free() -> bool:
        freed.update(two.prefill_step(finished={"p"}))
        return not two.ended.empty()

    eventually(free)
    assert two.ended.get() == ("", outcome.bytes)
    assert (two.pushes.open_transfers, two.landings.open_transfers) == (0, 0)


def test_ranks_that_dont_listen_yet_are_not_asked() -> None:
    made = Two(2, 2)
    with pytest.raises(ChannelError, match="don't listen yet"):
        made.landings.open(made.near, Prompt("r", [1], made.outcomes.put, lambda job: None))
    made.close()


def test_a_channel_that_comes_later_hears_of_the_ranks_too(equal: Two) -> None:
    near = dial(equal.listener.addr, KEY, Identity("another", 8, settings("d", 2).layout))
    far = equal.accepted.get(timeout=WAIT_S)
    equal.landings.attach(near)
    equal.pushes.attach(far)
    eventually(lambda: len(equal.landings.peers) == 2)
    near.close()
    far.close()


def test_a_cancelled_transfer_ends_everywhere(equal: Two) -> None:
    number, key = equal.open()
    equal.prefill_step(Plan(progress=(Progress(key, "p", [1, 2], 1, False),)))
    equal.reserve(number, [5, 6])
    equal.landings.cancel(number, "the client has gone")
    assert equal.outcome().reason == "the client has gone"
    assert equal.cancelled.get(timeout=WAIT_S) == key
    equal.pushes.job_ended(key, 1.0, 2.0, "cancelled")

    def free() -> bool:
        return "p" in equal.prefill_step(finished={"p"}) or not equal.ended.empty()

    eventually(free)
    assert equal.pushes.open_transfers == equal.landings.open_transfers == 0


def test_a_transfer_that_nobody_has_reserved_ends_at_once(equal: Two) -> None:
    number, key = equal.open()
    equal.landings.cancel(number, "not needed")
    assert equal.outcomes.get(timeout=WAIT_S).reason == "not needed"
    assert equal.cancelled.get(timeout=WAIT_S) == key
    assert equal.decode_step(Plan(reserve=(Reservation(number, "d", [], [5], 10),))) == ({"d"}, {"d"})


def test_a_job_that_fails_ends_the_transfer(equal: Two) -> None:
    number, key = equal.open()
    equal.reserve(number, [5, 6])
    equal.pushes.job_ended(key, 1.0, 2.0, "out of cheese")
    assert equal.outcome().reason == "out of cheese"
    assert equal.decode_step() == ({"d"}, {"d"})


def test_a_rank_that_dies_fails_the_transfer_at_every_rank(equal: Two) -> None:
    number, key = equal.open()
    equal.reserve(number, [5, 6])
    equal.prefill_step(Plan(progress=(Progress(key, "p", [1, 2], 1, False),)))
    eventually(lambda: all(rank._pushes.open_transfers for rank in equal.senders))
    equal.senders[1].close()
    assert equal.outcome().reason == "channel-closed"
    assert equal.decode_step() == ({"d"}, {"d"})


def test_prefill_frees_what_nobody_claims_when_its_lease_ends(equal: Two) -> None:
    _, key = equal.open()
    equal.prefill_step(Plan(progress=(Progress(key, "p", [1, 2], 2, True),)))
    equal.pushes.job_ended(key, 1.0, 2.0, "")
    assert equal.prefill_step(finished={"p"}) == set()
    equal.clock.now = 31.0
    assert equal.prefill_step() == {"p"}
    assert equal.ended.get(timeout=WAIT_S) == ("lease-expired", 0)


def test_blocks_that_are_computed_after_everybody_has_gone_are_freed(equal: Two) -> None:
    number, key = equal.open()
    equal.reserve(number, [5, 6])
    eventually(lambda: all(rank._pushes.open_transfers for rank in equal.senders))
    equal.landings.cancel(number, "gone")
    assert equal.outcome().reason == "gone"
    equal.prefill_step()
    eventually(lambda: bool(equal.prefill_step() == set() and not any(r._jobs for r in equal.senders)))
    equal.prefill_step(Plan(progress=(Progress(key, "p", [1, 2], 2, True),)))
    assert equal.prefill_step(finished={"p"}) == {"p"}


def test_preempted_blocks_are_not_sent(equal: Two) -> None:
    number, key = equal.open()
    equal.prefill_step(Plan(progress=(Progress(key, "p", [1, 2], 1, False),)))
    equal.reserve(number, [5, 6])
    equal.prefill_step(Plan(withdrawn=(key,)))
    assert equal.outcome().reason == "preempted"


def test_a_stranger_can_claim_nothing(equal: Two) -> None:
    """Another instance's ranks, with the number of a transfer that isn't theirs."""
    number, key = equal.open()
    equal.prefill_step(Plan(progress=(Progress(key, "p", [1, 2], 2, True),)))
    layout = settings("d", 2).layout
    other = DecodeRank(
        Settings("decode", "other", 7, layout, ("tcp",), "127.0.0.1", 0.2, 30.0), 0, KEY, memory(5, 2)[0]
    )
    peer = equal.landings.peers[0]
    other.after_forward(Plan(reserve=(Reservation(number, "d", [], [1], 10, peer),)))
    told: set[str] = set()

    def failed() -> bool:
        told.update(other.results(set())[2])
        return bool(told)

    eventually(failed)
    assert told == {"d"}
    other.close()


class OneAndTwo:
    """An engine of one rank in this process, whose peers are one of two ranks and one like itself."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.memory, self.layers = memory(300, 1)
        self.pushes = Pushes(self.memory, 30.0)
        self.landings = Landings(self.memory, 30.0)
        self.ways = BothWays(self.landings, self.pushes)
        self.worker = Worker(self.memory, self.landings, self.pushes)


def test_a_prefill_of_one_rank_serves_decodes_of_one_and_of_two() -> None:
    here = OneAndTwo()
    mixed = MixedPrefill(here.ways, here.worker, here.memory, settings("prefill", 1), KEY)
    keys: SimpleQueue[int] = SimpleQueue()
    mixed.accept_jobs(lambda key, job: keys.put(key), lambda key: None)
    accepted: SimpleQueue[Channel] = SimpleQueue()
    listener = Listener(KEY, lambda: Identity("prefill", 7, settings("p", 1).layout), accepted.put)
    outcomes: SimpleQueue[Outcome] = SimpleQueue()

    # of two ranks
    front = FrontLandings(2)
    near = dial(listener.addr, KEY, Identity("decode", 7, settings("d", 2).layout))
    mixed.attach(accepted.get(timeout=WAIT_S))
    front.attach(near)
    eventually(lambda: bool(front.peers))
    takers, halves = [], []
    for rank in range(2):
        made, layers = memory(200 + rank, 2)
        halves.append(layers)
        takers.append(DecodeRank(settings("decode", 2), rank, KEY, made))
    number = front.open(near, Prompt("r", [1] * 100, outcomes.put, lambda job: None))
    key = keys.get(timeout=WAIT_S)
    mixed.after_forward(mixed.outgoing(Plan(progress=(Progress(key, "p-two", [3, 4], 2, True),))))
    plan = front.outgoing(Plan(reserve=(Reservation(number, "d", [], [7, 8], 50),)))
    for taker in takers:
        taker.after_forward(plan)
    mixed.job_ended(key, 1.0, 2.0, "")

    def landed() -> bool:
        for taker in takers:
            taker.results(set())
            if (news := taker.news()) is not None:
                front.incoming(news)
        return not outcomes.empty()

    eventually(landed)
    assert outcomes.get().reason == ""
    half = HEADS // 2 * HEAD_BYTES
    for rank, layers in enumerate(halves):
        for layer in range(LAYERS):
            whole = here.layers[layer][3 * 2 * half : 4 * 2 * half]
            assert layers[layer][7 * half : 8 * half] == whole[rank * half : (rank + 1) * half]

    # of one
    own, target = memory(400, 1)
    landings = Landings(own, 30.0)
    single = dial(listener.addr, KEY, Identity("single", 7, settings("d", 1).layout))
    mixed.attach(accepted.get(timeout=WAIT_S))
    landings.attach(single)
    number = landings.open(single, Prompt("r", [1] * 100, outcomes.put, lambda job: None))
    key = keys.get(timeout=WAIT_S)
    landings.reserve(number, "d", 0, [9], 40)
    mixed.after_forward(mixed.outgoing(Plan(progress=(Progress(key, "p-one", [5], 1, True),))))
    assert outcomes.get(timeout=WAIT_S).reason == ""
    size = HEADS * HEAD_BYTES
    assert all(target[n][9 * size : 10 * size] == here.layers[n][5 * size : 6 * size] for n in range(LAYERS))
    freed: set[str] = set()

    def free() -> bool:
        freed.update(mixed.results({"p-one", "p-two"})[0])
        return freed == {"p-one", "p-two"}

    eventually(free)
    for taker in takers:
        taker.close()
    near.close()
    single.close()
    assert mixed._rank is not None
    mixed._rank.close()
    listener.close()


def test_a_decode_of_one_rank_has_blocks_of_prefills_of_one_and_of_two() -> None:
    here = OneAndTwo()
    mixed = MixedDecode(here.ways, here.worker, here.memory, settings("decode", 1), KEY)
    outcomes: SimpleQueue[Outcome] = SimpleQueue()
    keys: SimpleQueue[int] = SimpleQueue()

    # of two ranks
    two = Two(2, 1)
    mixed.attach(near := dial(two.listener.addr, KEY, Identity("decode", 7, settings("d", 1).layout)))
    two.pushes.attach(far := two.accepted.get(timeout=WAIT_S))
    two.listen()
    eventually(lambda: bool(mixed._front.peers))
    number = mixed.open(near, Prompt("r", [1] * 100, outcomes.put, lambda job: None))
    key = two.jobs.get(timeout=WAIT_S)
    two.prefill_step(Plan(progress=(Progress(key, "p", [3], 1, True),)))
    mixed.after_forward(mixed.outgoing(Plan(reserve=(Reservation(number, "d-two", [], [7], 50),))))
    received: set[str] = set()

    def come() -> bool:
        _, more, failed = mixed.results(set())
        assert not failed
        received.update(more)
        return bool(received)

    eventually(come)
    assert (received, outcomes.get(timeout=WAIT_S).reason) == ({"d-two"}, "")
    size = HEADS * HEAD_BYTES
    for layer in range(LAYERS):
        heads = [two.prefill.head(head // 2, layer, 3, head) for head in range(HEADS)]
        assert here.layers[layer][7 * size : 8 * size] == b"".join(heads)

    # of one
    own, source = memory(400, 1)
    pushes = Pushes(own, 30.0)
    pushes.accept_jobs(lambda key, job: keys.put(key), lambda key: None)
    accepted: SimpleQueue[Channel] = SimpleQueue()
    listener = Listener(KEY, lambda: Identity("one", 7, settings("p", 1).layout), accepted.put)
    mixed.attach(single := dial(listener.addr, KEY, Identity("decode", 7, settings("d", 1).layout)))
    pushes.attach(there := accepted.get(timeout=WAIT_S))
    number = mixed.open(single, Prompt("r", [1] * 100, outcomes.put, lambda job: None))
    key = keys.get(timeout=WAIT_S)
    received.clear()
    mixed.after_forward(mixed.outgoing(Plan(reserve=(Reservation(number, "d-one", [], [9], 50),))))
    pushes.computed(key, "p", [5], 1, True)
    eventually(come)
    assert received == {"d-one"}
    assert all(here.layers[n][9 * size : 10 * size] == source[n][5 * size : 6 * size] for n in range(LAYERS))
    assert mixed._rank is not None
    mixed._rank.close()
    for channel in (near, far, single, there):
        channel.close()
    listener.close()
    two.close()


class _Rank:
    """A channel, as far as whoever dials looks at it."""

    def __init__(self, name: str, generation: int) -> None:
        self.peer = Identity(name, generation, Layout())
        self.lost: ChannelError | None = None

    def lose(self, error: ChannelError) -> None:
        self.lost = error

    def close(self) -> None:
        self.lose(ChannelError("closed"))


def test_channels_to_instances_that_have_gone_are_not_kept() -> None:
    """Instances come and go for as long as a rank lives; a channel has a ring, and queue pairs' buffers."""
    made: list[weakref.ref[_Rank]] = []

    def dials(addr: str, generation: int) -> Channel:
        rank = _Rank(addr, generation)
        made.append(weakref.ref(rank))
        return cast(Channel, rank)

    dialled = Dialled(dials, lambda channel: None)
    for number in range(3):
        peer = PeerRanks(f"p{number}", 7, (f"p{number}#0",))
        assert dialled.get(peer, 0) is dialled.get(peer, 0)
        dialled.get(peer, 0).lose(ChannelError("unreachable"))
    assert len(made) == 3
    gc.collect()
    assert [ref() is None for ref in made] == [True, True, False]
    again = dialled.get(PeerRanks("p2", 8, ("p2#0",)), 0)  # in its next generation
    assert again.peer.generation == 8
    dialled.close()
    assert again.lost is not None
