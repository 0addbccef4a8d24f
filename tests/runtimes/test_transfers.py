"""Decode's and prefill's halves against each other, over real channels and without an engine."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import msgspec
import pytest

from kserve_ext.core import kv_plan
from runtimes.transport.channel import ChannelError, Pages, Rung
from runtimes.transport.handshake import Identity
from runtimes.transport.layout import Layout
from runtimes.transport.listener import Listener, dial
from runtimes.transport.pair import Channel
from runtimes.vllm_pd import jobs
from runtimes.vllm_pd.kv_memory import KvMemory
from runtimes.vllm_pd.landing import Landings, Outcome, Prompt
from runtimes.vllm_pd.pushing import Pushes
from runtimes.vllm_pd.scheduler_side import Plan, Progress
from runtimes.vllm_pd.worker_side import Worker

LAYERS, BLOCKS, SIZE = 3, 40, 1024
WAIT_S = 60.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def memory(seed: int) -> tuple[KvMemory, list[memoryview]]:
    layers = [memoryview(bytearray(random.Random(seed + n).randbytes(BLOCKS * SIZE))) for n in range(LAYERS)]
    made = KvMemory()
    made.register_views(layers, BLOCKS)
    return made, layers


class Setup:
    """One decode with a channel to one prefill, and queues of what they tell."""

    def __init__(self, rung: Rung) -> None:
        self.clock = Clock()
        self.prefill_memory, self.source = memory(1)
        self.decode_memory, self.target = memory(9)
        self.pushes = Pushes(self.prefill_memory, 60.0, self.clock)
        self.landings = Landings(self.decode_memory, 30.0, self.clock)
        self.jobs: SimpleQueue[tuple[int, jobs.Prefill]] = SimpleQueue()
        self.cancelled: SimpleQueue[int] = SimpleQueue()
        self.outcomes: SimpleQueue[Outcome] = SimpleQueue()
        self.told: SimpleQueue[jobs.Computed | jobs.Sent] = SimpleQueue()
        self.pushes.accept_jobs(lambda key, job: self.jobs.put((key, job)), self.cancelled.put)
        accepted: SimpleQueue[Channel] = SimpleQueue()
        self.listener = Listener(b"key", lambda: Identity("p", 1, Layout()), accepted.put)
        window = LAYERS * SIZE * 4
        identity = Identity("d", 1, Layout())
        self.channel = dial(self.listener.addr, b"key", identity, rungs=(rung,), window=window)
        self.far = accepted.get(timeout=WAIT_S)
        self.pushes.attach(self.far)
        self.landings.attach(self.channel)

    def open(self, tokens: int = 100) -> tuple[int, int]:
        """decode's number, prefill's key"""
        number = self.landings.open(
            self.channel, Prompt("request", list(range(tokens)), self.outcomes.put, self.told.put)
        )
        key, job = self.jobs.get(timeout=WAIT_S)
        assert (job.transfer, job.request_id, len(job.tokens)) == (number, "request", tokens)
        return number, key

    def outcome(self) -> Outcome:
        return self.outcomes.get(timeout=WAIT_S)

    def close(self) -> None:
        self.channel.close()
        self.far.close()
        self.listener.close()


@pytest.fixture(params=["shm", "tcp"])
def setup(request: pytest.FixtureRequest) -> Iterator[Setup]:
    made = Setup(request.param)
    yield made
    made.close()


def same(setup: Setup, sources: list[int], targets: list[int]) -> bool:
    return all(
        setup.source[layer][s * SIZE : (s + 1) * SIZE] == setup.target[layer][t * SIZE : (t + 1) * SIZE]
        for layer in range(LAYERS)
        for s, t in zip(sources, targets, strict=True)
    )


def test_blocks_arrive_chunk_by_chunk_and_only_those_asked_for(setup: Setup) -> None:
    sources, targets = [4, 5, 6, 7, 20, 21, 30], [10, 11, 12, 0, 1]
    untouched = bytes(setup.target[0][13 * SIZE :])
    number, key = setup.open()
    setup.pushes.computed(key, "engine-p", sources[:4], 3, False)
    setup.landings.reserve(number, "engine-d", 2, targets, 80)
    setup.pushes.computed(key, "engine-p", sources, 5, False)
    assert setup.landings.results() == (set(), set())
    setup.pushes.computed(key, "engine-p", sources, 7, True)
    outcome = setup.outcome()
    assert outcome._replace(ms=0) == Outcome("", outcome.rung, 5 * LAYERS * SIZE, 5, 80, 0)
    assert same(setup, sources[2:], targets)
    assert bytes(setup.target[0][13 * SIZE :]) == untouched
    assert setup.landings.results() == ({"engine-d"}, set())
    assert setup.landings.results() == (set(), set())
    assert _eventually(lambda: setup.pushes.results({"engine-p", "stranger"})) == {"engine-p"}
    assert setup.pushes.open_transfers == setup.landings.open_transfers == 0


@pytest.mark.parametrize("by_layers", [True, False])
def test_layers_leave_while_the_step_computes_the_others(
    setup: Setup, by_layers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not computed yet is other bytes until it is; its names are not in the order of its numbers."""
    monkeypatch.setattr(kv_plan, "AHEAD_FROM", 0)
    monkeypatch.setattr(kv_plan, "LEAST", 1)
    memory = setup.prefill_memory
    memory.order = tuple(reversed(range(LAYERS)))
    memory._turns = {f"layer.{turn}": turn for turn in range(LAYERS)}
    worker = Worker(memory, setup.landings, setup.pushes, by_layers=by_layers)
    made = [bytes(layer) for layer in setup.source]
    for layer in setup.source:
        layer[:] = bytes(len(layer))
    number, key = setup.open()
    setup.landings.reserve(number, "engine-d", 0, [1, 2, 7], 40)
    plan = Plan(progress=(Progress(key, "engine-p", [8, 9, 4], 3, True),))
    worker.before_forward(plan)
    worker.layer_computed("of another model", plan)
    for turn, number_of in enumerate(memory.order):
        setup.source[number_of][:] = made[number_of]
        worker.layer_computed(f"layer.{turn}", plan)
        worker.layer_computed(f"layer.{turn}", plan)  # out of turn: changes nothing
        if by_layers and turn < LAYERS - 1:
            expected = 3 * SIZE * (turn + 1)
            _until(lambda expected=expected: setup.landings._transfers[number].bytes == expected)  # type: ignore[misc]
    assert setup.outcomes.empty()
    assert by_layers or setup.landings._transfers[number].bytes == 0
    worker.after_forward(plan)
    assert setup.outcome().reason == ""
    assert same(setup, [8, 9, 4], [1, 2, 7])
    assert _eventually(lambda: worker.results({"engine-p"})[0]) == {"engine-p"}


def test_a_step_that_raised_between_its_layers_is_no_part_of_the_next_one(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_plan, "AHEAD_FROM", 0)
    monkeypatch.setattr(kv_plan, "LEAST", 1)
    memory = setup.prefill_memory
    memory._turns = {f"layer.{turn}": turn for turn in range(LAYERS)}
    worker = Worker(memory, setup.landings, setup.pushes)
    number, key = setup.open()
    plan = Plan(progress=(Progress(key, "engine-p", [8], 1, True),))
    worker.before_forward(plan)
    worker.layer_computed("layer.0", plan)
    worker.before_forward(plan.failed_step())
    assert setup.outcome().reason == "step-failed"
    number, key = setup.open()
    setup.landings.reserve(number, "engine-d", 0, [1], 40)
    plan = Plan(progress=(Progress(key, "engine-q", [8], 1, True),))
    worker.before_forward(plan)
    worker.layer_computed("layer.0", plan)
    _until(lambda: setup.landings._transfers[number].bytes == SIZE)
    worker.after_forward(plan)
    assert setup.outcome().reason == ""


def test_a_transfer_that_is_cancelled_within_a_step_sends_nothing_more_of_it(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_plan, "AHEAD_FROM", 0)
    monkeypatch.setattr(kv_plan, "LEAST", 1)
    number, key = setup.open()
    setup.landings.reserve(number, "engine-d", 0, [1], 40)
    setup.pushes.ahead(key, [8], 1, 1)
    _until(lambda: setup.landings._transfers[number].bytes == SIZE)
    setup.landings.cancel(number, "gone")
    assert setup.outcome().reason == "gone"
    assert setup.landings.results() == ({"engine-d"}, {"engine-d"})
    assert setup.cancelled.get(timeout=WAIT_S) == key
    before = [bytes(layer) for layer in setup.target]
    setup.pushes.ahead(key, [8], 1, 2)
    setup.pushes.computed(key, "engine-p", [8], 1, True)
    assert setup.pushes.results({"engine-p"}) == {"engine-p"}
    assert [bytes(layer) for layer in setup.target] == before


def test_blocks_are_kept_while_they_are_read_although_their_transfer_was_cancelled_within_their_first_step(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its only step ends, and its request with it, while a layer that left within it is still being copied."""
    monkeypatch.setattr(kv_plan, "AHEAD_FROM", 0)
    monkeypatch.setattr(kv_plan, "LEAST", 1)
    reads, go_on = threading.Event(), threading.Event()
    write, write_rows = setup.far.write, setup.far.write_rows

    def slowly(copy: Callable[..., int]) -> Callable[..., int]:
        def slow(*args: object) -> int:
            reads.set()
            assert go_on.wait(WAIT_S)
            return copy(*args)

        return slow

    monkeypatch.setattr(setup.far, "write", slowly(write))
    monkeypatch.setattr(setup.far, "write_rows", slowly(write_rows))
    number, key = setup.open()
    setup.pushes.take(setup.far, jobs.Reserve(number, 0, [1], LAYERS, SIZE))
    setup.pushes.ahead(key, [8], 1, 1)
    assert reads.wait(WAIT_S)
    setup.pushes.take(setup.far, jobs.Cancel(number, "gone"))
    setup.pushes.computed(key, "engine-p", [8], 1, True)
    assert setup.pushes.results({"engine-p"}) == set()
    go_on.set()
    assert _eventually(lambda: setup.pushes.results(set())) == {"engine-p"}


def test_reserving_first_works_as_well(setup: Setup) -> None:
    number, key = setup.open()
    setup.landings.reserve(number, "engine-d", 0, [1, 2], 40)
    setup.pushes.computed(key, "engine-p", [8, 9], 2, True)
    assert setup.outcome().reason == ""
    assert same(setup, [8, 9], [1, 2])
    assert setup.told.get(timeout=WAIT_S) == jobs.Sent(number, 0.0)  # all was computed before
    setup.pushes.job_ended(key, 5.0, 6.0, "")  # after the last block: told nevertheless
    assert setup.told.get(timeout=WAIT_S) == jobs.Computed(number, 5.0, 6.0)


def test_prefill_says_for_which_share_of_the_transfer_it_was_still_computing(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    last, right = threading.Event(), KvMemory.view

    def view(memory: KvMemory, layer: int, block: int, count: int) -> memoryview | Pages:
        assert (memory, block) != (setup.prefill_memory, 9) or last.wait(WAIT_S)
        return right(memory, layer, block, count)

    monkeypatch.setattr(KvMemory, "view", view)
    setup.clock.now = 1.0
    number, key = setup.open()
    setup.landings.reserve(number, "engine-d", 0, [1, 2], 40)
    setup.pushes.computed(key, "engine-p", [8, 9], 1, False)
    assert _eventually(lambda: {"first"} if same(setup, [8], [1]) else set())
    setup.clock.now = 4.0
    setup.pushes.computed(key, "engine-p", [8, 9], 2, True)
    setup.clock.now = 5.0
    last.set()
    assert setup.outcome().reason == ""
    told = setup.told.get(timeout=WAIT_S)
    assert isinstance(told, jobs.Sent)
    assert (told.transfer, told.overlap) == (number, 0.75)


def test_the_times_of_the_computation_are_told(setup: Setup) -> None:
    number, key = setup.open()
    setup.pushes.job_ended(key, 5.0, 6.0, "")
    assert setup.told.get(timeout=WAIT_S) == jobs.Computed(number, 5.0, 6.0)


def test_a_job_that_fails_ends_the_transfer_on_both_sides(setup: Setup) -> None:
    number, key = setup.open()
    setup.landings.reserve(number, "engine-d", 0, [1, 2], 40)
    setup.pushes.job_ended(key, 5.0, 6.0, "out of cheese")
    assert setup.outcome().reason == "out of cheese"
    assert setup.landings.results() == ({"engine-d"}, {"engine-d"})
    assert setup.pushes.open_transfers == 0


def test_too_few_blocks_never_count_as_whole(setup: Setup) -> None:
    number, key = setup.open()
    setup.landings.reserve(number, "engine-d", 0, [1, 2, 3], 40)
    setup.pushes.computed(key, "engine-p", [8, 9], 2, True)
    assert setup.outcome().reason == "short"
    assert setup.landings.results() == ({"engine-d"}, {"engine-d"})


def test_decode_gives_up_in_time_and_prefill_frees_its_blocks(setup: Setup) -> None:
    number, key = setup.open()
    setup.pushes.computed(key, "engine-p", [8, 9], 1, False)
    setup.landings.reserve(number, "engine-d", 0, [1, 2], 40)
    assert setup.pushes.results({"engine-p"}) == set()
    setup.clock.now = 31.0
    assert _eventually(lambda: setup.landings.results()[1]) == {"engine-d"}  # not while a block is written
    assert setup.outcome().reason == "timeout"
    assert setup.cancelled.get(timeout=WAIT_S) == key
    assert _eventually(lambda: setup.pushes.results(set())) == {"engine-p"}


def test_short_prompts_are_given_up_sooner_and_those_before_them_count(setup: Setup) -> None:
    setup.open(200)
    setup.open(300)
    setup.clock.now = 5.0 + 2.0 + 0.1
    setup.landings.results()
    assert setup.outcome().reason == "timeout"
    assert setup.landings.open_transfers == 1
    setup.clock.now = 5.0 + 5.0 + 0.1
    setup.landings.results()
    assert setup.outcome().reason == "timeout"


def test_prefills_lease_ends_although_decode_says_nothing(setup: Setup) -> None:
    number, key = setup.open()
    setup.pushes.computed(key, "engine-p", [8, 9], 2, True)
    assert setup.pushes.results({"engine-p"}) == set()  # nothing was reserved: kept
    setup.clock.now = 61.0
    assert setup.pushes.results(set()) == {"engine-p"}
    assert setup.outcome().reason == "lease-expired"
    setup.landings.reserve(number, "engine-d", 0, [1, 2], 40)  # too late: told at once
    assert setup.landings.results() == ({"engine-d"}, {"engine-d"})


def test_a_cancelled_transfer_writes_nothing_more(setup: Setup) -> None:
    number, key = setup.open()
    setup.landings.reserve(number, "engine-d", 0, [1, 2], 40)
    before = bytes(setup.target[0])
    setup.landings.cancel(number, "the client has gone")
    assert setup.cancelled.get(timeout=WAIT_S) == key
    setup.pushes.computed(key, "engine-p", [8, 9], 2, True)
    assert _eventually(lambda: setup.landings.results()[1]) == {"engine-d"}  # when prefill has stopped
    assert setup.pushes.results({"engine-p"}) == {"engine-p"}
    assert bytes(setup.target[0]) == before


def test_losing_the_channel_fails_everything_on_it(setup: Setup) -> None:
    number, key = setup.open()
    _, other = setup.open()
    setup.landings.reserve(number, "engine-d", 0, [1, 2], 40)
    setup.pushes.computed(key, "engine-p", [8], 1, False)
    setup.far.close()
    assert {setup.outcome().reason, setup.outcome().reason} == {"channel-closed"}
    assert setup.landings.results() == ({"engine-d"}, {"engine-d"})
    assert _eventually(lambda: setup.pushes.results({"engine-p"})) == {"engine-p"}
    assert {setup.cancelled.get(timeout=WAIT_S), setup.cancelled.get(timeout=WAIT_S)} == {key, other}
    with pytest.raises(ChannelError):
        setup.landings.open(setup.channel, Prompt("r", [1], setup.outcomes.put, setup.told.put))
    assert setup.landings.open_transfers == 0


def test_preempted_blocks_are_not_read_any_more(setup: Setup) -> None:
    number, key = setup.open()
    setup.landings.reserve(number, "engine-d", 0, [1, 2, 3], 40)
    setup.pushes.computed(key, "engine-p", [8], 1, False)
    setup.pushes.overwritten(key, "preempted")
    setup.source[0][8 * SIZE : 9 * SIZE] = bytes(SIZE)
    assert setup.outcome().reason == "preempted"
    assert setup.landings.results() == ({"engine-d"}, {"engine-d"})


def test_a_draining_prefill_refuses_jobs(setup: Setup) -> None:
    setup.pushes.refuse_jobs()
    setup.landings.open(setup.channel, Prompt("r", [1], setup.outcomes.put, setup.told.put))
    assert setup.outcome().reason == "not-serving"


def test_caches_of_another_shape_are_incompatible(setup: Setup) -> None:
    number, _ = setup.open()
    setup.decode_memory.register_views([memoryview(bytearray(BLOCKS * SIZE))], BLOCKS)
    setup.landings.reserve(number, "engine-d", 0, [1], 40)
    assert setup.outcome().reason == "incompatible"


@pytest.mark.parametrize(
    "job",
    [
        ["Reserve", 1, 0, [-1], LAYERS, SIZE],
        ["Reserve", 1, 0, [1 << 32], LAYERS, SIZE],
        ["Reserve", 1, -1, [1], LAYERS, SIZE],
        ["Claim", 1 << 32, 1, 0, [1], LAYERS, SIZE, 0, ""],
        ["Prefill", -1, "request", [1, 2], "", 0],
    ],
    ids=str,
)
def test_numbers_that_no_frame_can_carry_lose_the_channel_of_whoever_says_them(
    setup: Setup, job: list[object]
) -> None:
    _, key = setup.open()
    setup.pushes.computed(key, "engine-p", [8, 9], 2, False)
    setup.channel.send(msgspec.msgpack.encode(job))
    assert setup.outcome().reason == "channel-closed"
    assert _eventually(lambda: setup.pushes.results({"engine-p"})) == {"engine-p"}
    assert isinstance(setup.far.lost, ChannelError)
    assert setup.far.lost.reason == "protocol"


def test_many_transfers_share_one_channel(setup: Setup) -> None:
    opened = [setup.open() for _ in range(8)]
    for index, (number, key) in enumerate(opened):
        setup.landings.reserve(number, f"d{index}", 0, [index * 5 + n for n in range(5)], 40)
        setup.pushes.computed(key, f"p{index}", [39 - index * 5 - n for n in range(5)], 5, True)
    assert {setup.outcome().reason for _ in opened} == {""}
    assert same(setup, list(range(39, -1, -1)), list(range(40)))


def _until(condition: Callable[[], bool]) -> None:
    assert _eventually(lambda: {"so"} if condition() else set())


def _eventually(result: Callable[[], set[str]]) -> set[str]:
    """Threads of the other side finish on their own; their result comes once."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if got := result():
            return got
        time.sleep(0.005)
    return set()


def test_blocks_larger_than_a_usual_batch_wait_for_room_and_go_on() -> None:
    size, count = 512 << 10, 12
    sides = []
    for seed in (1, 2):
        made = KvMemory()
        layer = memoryview(bytearray(random.Random(seed).randbytes(size * count)))
        made.register_views([layer], count)
        sides.append((made, layer))
    pushes, landings = Pushes(sides[0][0], 60.0), Landings(sides[1][0], 30.0)
    started: SimpleQueue[int] = SimpleQueue()
    outcomes: SimpleQueue[Outcome] = SimpleQueue()
    pushes.accept_jobs(lambda key, job: started.put(key), lambda key: None)
    accepted: SimpleQueue[Channel] = SimpleQueue()
    listener = Listener(b"key", lambda: Identity("p", 1, Layout()), accepted.put)
    channel = dial(listener.addr, b"key", Identity("d", 1, Layout()), rungs=("tcp",), window=2 * size)
    far = accepted.get(timeout=WAIT_S)
    pushes.attach(far)
    landings.attach(channel)
    number = landings.open(channel, Prompt("request", [1], outcomes.put, lambda job: None))
    landings.reserve(number, "engine-d", 0, list(range(count)), 90)
    pushes.computed(started.get(timeout=WAIT_S), "engine-p", list(range(count)), count, True)
    assert outcomes.get(timeout=WAIT_S).reason == ""
    assert sides[0][1] == sides[1][1]
    channel.close()
    far.close()
    listener.close()
