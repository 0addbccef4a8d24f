"""Schedule calls to one Schedule function, so many under way at once, and what came of them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from time import perf_counter

from bench.sockets.cluster import ControlPlane
from kserve_ext.core.facts import Command, Model, Resources, Revision, Scale
from kserve_ext.core.ids import FunctionID, InstanceID, RevisionKey
from kserve_ext.rpc import Rpc
from kserve_ext.wire.messages import Item, Message, Placements, Schedule

EPOCH = 1_000_000  # newer than any view here
ANSWER_S = 30.0


def revisions(count: int, name: str = "r") -> list[Revision]:
    """One request at a time an instance, a processor each.

    Nodes obey nobody of an older epoch than EPOCH about those that Calls asks for: whoever is their home later takes
    another `name`.
    """
    command = Command(("python", "-m", "runtimes.vllm_pd", "--port", "0"), runtime="vllm-pd")
    needs = Resources(cpu_milli=1000, memory_mib=512)
    scale = Scale(initial=0, target=1.0, utilization=1.0)
    return [
        Revision(
            RevisionKey(f"bench/{name}{k}-00001"),
            f"bench/{name}{k}",
            1,
            command,
            Model(),
            needs,
            scale,
            concurrency=1,
        )
        for k in range(count)
    ]


@dataclass
class Calls:
    """A closed loop. Each call is for `count` instances of one revision; `waiting` are told when they are ready."""

    rpc: Rpc
    addr: str
    count: int
    under_way: int
    tag: str
    waiting: tuple[str, ...] = ()
    placed: int = 0
    refused: int = 0
    waited: list[float] = field(default_factory=list)
    number: int = 0

    async def run(self, seconds: float) -> float:
        """Seconds until the last answer."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        began = perf_counter()
        until, left = began + seconds, self.under_way
        pool = revisions(200)
        home_addr = self.waiting[0] if self.waiting else ""

        def call() -> None:
            number = self.number = self.number + 1
            ids = tuple(InstanceID(f"{self.tag}-{number}-{k}") for k in range(self.count))
            item = Item(pool[number % len(pool)], ids)
            message = Schedule((item,), EPOCH, FunctionID("bench"), home_addr, self.waiting)
            asked = perf_counter()

            def done(reply: Message | Exception) -> None:
                nonlocal left
                now = perf_counter()
                if not isinstance(reply, Placements):
                    if not ended.done():
                        ended.set_exception(RuntimeError(f"no placement: {reply}"))
                    return
                self.waited.append(now - asked)
                self.placed += len(reply.placed)
                self.refused += len(reply.refused)
                if now < until:
                    call()
                    return
                left -= 1
                if not left:
                    ended.set_result(None)

            self.rpc.call_soon(self.addr, message, done, ANSWER_S)

        for _ in range(self.under_way):
            call()
        await ended
        return perf_counter() - began


@dataclass(frozen=True)
class Decisions:
    """Times in seconds; processor time in microseconds a decision."""

    rate: float
    p50: float
    p99: float
    schedule_us: float
    nodes_us: float
    client_us: float
    busy: float  # of the Schedule function's processor
    placed: int
    refused: int
    conflicts: int


async def decisions(
    plane: ControlPlane,
    count: int,
    under_way: int,
    seconds: float,
    tag: str,
    waiting: tuple[str, ...] = (),
) -> Decisions:
    """Refuses to answer when the agents' own counters say something else than the client was told."""
    calls = Calls(plane.rpc, plane.addr["schedule-0"], count, under_way, tag, waiting)
    before = await plane.counters()
    cpu, own = {name: plane.cpu_s(name) for name in plane.processes}, time.process_time()
    took = await calls.run(seconds)
    mine = time.process_time() - own
    used = {name: plane.cpu_s(name) - was for name, was in cpu.items()}
    after = await plane.counters()
    admitted = after["admitted"] - before["admitted"]
    if admitted != calls.placed:
        raise SystemExit(f"the client was told of {calls.placed} placements, agents have admitted {admitted}")
    waited = sorted(calls.waited)
    each = 1e6 / calls.placed
    return Decisions(
        rate=calls.placed / took,
        p50=waited[len(waited) // 2],
        p99=waited[int(len(waited) * 0.99)],
        schedule_us=used["schedule-0"] * each,
        nodes_us=sum(used[name] for name in plane.groups) * each,
        client_us=mine * each,
        busy=used["schedule-0"] / took,
        placed=calls.placed,
        refused=calls.refused,
        conflicts=after["refused"] - before["refused"],
    )
