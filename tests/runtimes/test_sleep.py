"""Sleep and wake with a stand-in for the engine, on real channels: order, refusals, and memory that has moved."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from runtimes.transport.channel import ChannelError, Rung
from runtimes.transport.handshake import Identity
from runtimes.transport.layout import Layout
from runtimes.transport.listener import Listener, dial
from runtimes.transport.pair import Channel
from runtimes.vllm_pd import jobs
from runtimes.vllm_pd.control import SOCKET, Control
from runtimes.vllm_pd.kv_memory import KvMemory
from runtimes.vllm_pd.landing import Landings, Outcome, Prompt
from runtimes.vllm_pd.pushing import Pushes
from runtimes.vllm_pd.sleep import Sleeper, SleepRefused, why_not

LAYERS, BLOCKS, SIZE = 2, 8, 1024
WAIT_S = 60.0


class StandIn:
    """An engine that prefill's memory belongs to: asleep it has none, and awake again it lies elsewhere."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.open = 0
        self.broken = ""
        self.memory = self._allocate(1)

    def _allocate(self, seed: int) -> list[memoryview]:
        return [
            memoryview(bytearray(random.Random(seed + n).randbytes(BLOCKS * SIZE))) for n in range(LAYERS)
        ]

    async def sleep(self, level: int) -> None:
        self.told.append(f"sleep {level}")
        if self.broken:
            raise RuntimeError(self.broken)
        for layer in self.memory:
            layer.release()  # who still reads it fails
        self.memory = []

    async def wake_up(self) -> bool:
        self.told.append("wake")
        self.memory = self._allocate(100 + len(self.told))
        return True

    def get_num_unfinished_requests(self) -> int:
        return self.open


class Prefill:
    """What other instances have of it: `leave` and `join` as an instance's."""

    def __init__(self, engine: StandIn) -> None:
        self.engine = engine
        self.accepted: SimpleQueue[Channel] = SimpleQueue()
        self.jobs: SimpleQueue[int] = SimpleQueue()
        self._stand(1)

    def _stand(self, generation: int) -> None:
        known = KvMemory()
        known.register_views(self.engine.memory, BLOCKS)
        self.pushes = Pushes(known, 60.0)
        self.pushes.accept_jobs(lambda key, job: self.jobs.put(key), lambda key: None)
        self.channels: list[Channel] = []

        def take(channel: Channel) -> None:
            self.pushes.attach(channel)
            self.channels.append(channel)
            self.accepted.put(channel)

        self.listener = Listener(b"key", lambda: Identity("p", generation, Layout()), take)

    async def leave(self) -> None:
        self.engine.told.append("leave")
        self.listener.close()
        for channel in self.channels:
            channel.close()

    async def join(self, generation: int) -> None:
        self.engine.told.append("join")
        self._stand(generation)


class Decode:
    def __init__(self) -> None:
        self.target = [memoryview(bytearray(BLOCKS * SIZE)) for _ in range(LAYERS)]
        memory = KvMemory()
        memory.register_views(self.target, BLOCKS)
        self.landings = Landings(memory, 30.0)

    def dial(self, prefill: Prefill, rung: Rung, generation: int) -> Channel:
        who = Identity("d", 1, Layout())
        window = LAYERS * SIZE * 4
        channel = dial(
            prefill.listener.addr, b"key", who, peer_generation=generation, rungs=(rung,), window=window
        )
        prefill.accepted.get(timeout=WAIT_S)
        self.landings.attach(channel)
        return channel

    def fetch(self, prefill: Prefill, channel: Channel, source: int, target: int) -> Outcome:
        outcomes: SimpleQueue[Outcome] = SimpleQueue()
        told: SimpleQueue[jobs.Computed | jobs.Sent] = SimpleQueue()
        number = self.landings.open(channel, Prompt("r", list(range(16)), outcomes.put, told.put))
        key = prefill.jobs.get(timeout=WAIT_S)
        self.landings.reserve(number, "d", 0, [target], 16)
        prefill.pushes.computed(key, "p", [source], 1, True)
        return outcomes.get(timeout=WAIT_S)

    def holds(self, engine: StandIn, source: int, target: int) -> bool:
        return all(
            self.target[n][target * SIZE : (target + 1) * SIZE]
            == engine.memory[n][source * SIZE : (source + 1) * SIZE]
            for n in range(LAYERS)
        )


def sleeper(
    engine: StandIn, channels: Prefill, doors: list[str], refusal: SleepRefused | None = None
) -> Sleeper:
    return Sleeper(engine, channels, refusal, lambda: doors.append("shut"), lambda: doors.append("open"))


@pytest.mark.parametrize("rung", ["shm", "tcp"])
def test_memory_is_registered_anew_and_channels_of_before_are_void(rung: Rung) -> None:
    engine, doors = StandIn(), list[str]()
    prefill, decode = Prefill(engine), Decode()
    made = sleeper(engine, prefill, doors)
    before = decode.dial(prefill, rung, 1)
    assert decode.fetch(prefill, before, 3, 0).reason == ""
    assert decode.holds(engine, 3, 0)
    asyncio.run(made.sleep())
    assert engine.told == ["leave", "sleep 1"]
    _until(lambda: before.lost is not None)
    with pytest.raises((ChannelError, OSError)):
        decode.dial(prefill, rung, 1)
    asyncio.run(made.wake(7))
    assert engine.told[2:] == ["wake", "join"]
    with pytest.raises(ChannelError) as refused:
        decode.dial(prefill, rung, 1)
    assert refused.value.reason == "generation"
    after = decode.dial(prefill, rung, 7)
    assert decode.fetch(prefill, after, 5, 1).reason == ""
    assert decode.holds(engine, 5, 1)
    assert doors == ["shut", "open"]
    after.close()
    asyncio.run(prefill.leave())


def test_requests_that_are_open_keep_it_awake() -> None:
    engine, doors = StandIn(), list[str]()
    prefill = Prefill(engine)
    made = sleeper(engine, prefill, doors)
    engine.open = 1
    with pytest.raises(SleepRefused, match="1 requests are open"):
        asyncio.run(made.sleep())
    assert (made.state, engine.told, doors) == ("awake", [], ["shut", "open"])
    asyncio.run(prefill.leave())


def test_generations_only_grow_and_asking_twice_changes_nothing() -> None:
    engine = StandIn()
    prefill = Prefill(engine)
    made = sleeper(engine, prefill, [])

    async def play() -> None:
        await made.sleep()
        await made.sleep()
        await made.wake(5)
        await made.wake(6)
        await made.sleep()
        with pytest.raises(SleepRefused, match="not above 5"):
            await made.wake(5)
        await made.wake(6)
        await prefill.leave()

    asyncio.run(play())
    assert engine.told.count("wake") == 2
    assert made.generation == 6


def test_on_a_cpu_and_without_the_argument_it_is_refused_with_a_remedy() -> None:
    assert why_not(False, True) is None
    for refusal, field in ((why_not(True, True), "sleep"), (why_not(False, False), "--enable-sleep-mode")):
        assert refusal is not None
        assert refusal.field == field
        engine = StandIn()
        prefill = Prefill(engine)
        made = sleeper(engine, prefill, [], refusal)
        with pytest.raises(SleepRefused):
            asyncio.run(made.sleep())
        assert engine.told == []
        asyncio.run(prefill.leave())


def test_the_socket_answers_orders_and_an_engine_in_no_known_state_ends(tmp_path: Path) -> None:
    engine = StandIn()
    prefill = Prefill(engine)
    made = sleeper(engine, prefill, [])
    died: list[BaseException] = []

    def ask(request: Any) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(WAIT_S)
            connection.connect(str(tmp_path / SOCKET))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as file:
                answer: dict[str, Any] = json.loads(file.readline())
                return answer

    async def play() -> None:
        control = Control(made, died.append)
        await control.listen(tmp_path)
        assert await asyncio.to_thread(ask, {"sleep": True}) == {"state": "asleep", "generation": 0}
        assert (await asyncio.to_thread(ask, {"wake": True}))["field"] == "request"
        assert (await asyncio.to_thread(ask, []))["field"] == "request"
        assert await asyncio.to_thread(ask, {"wake": True, "generation": 3}) == {
            "state": "awake",
            "generation": 3,
        }
        assert not died
        engine.broken = "the device is gone"
        assert (await asyncio.to_thread(ask, {"sleep": True}))["error"] == "the device is gone"
        assert [str(error) for error in died] == ["the device is gone"]
        assert (await asyncio.to_thread(ask, {"wake": True, "generation": 9}))[
            "error"
        ] == "the engine is failed"
        control.close()

    asyncio.run(play())
    assert not (tmp_path / SOCKET).exists()


def _until(condition: Callable[[], bool]) -> None:
    async def wait() -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():  # noqa: ASYNC110  (a thread of the channel says so)
                await asyncio.sleep(0.005)

    asyncio.run(wait())
