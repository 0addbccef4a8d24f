"""A pair under phases of long prompts and of long answers, on a virtual clock: its home scales the stage that needs
it, and more requests are in time than with any fixed ratio of the same number of instances at every moment."""

from __future__ import annotations

import itertools
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import pytest

from kserve_ext.core.dispatch.facts import Demand, Instruction, Outcome, Place, StopInstance
from kserve_ext.core.dispatch.home import Home
from kserve_ext.core.facts import Command, Hold, Instance, Model, Resources, Revision, Role, Scale
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey

STEP_S: Final = 0.25
START_S: Final = 5.0
PREFILL_S: Final = 4000.0  # prompt tokens a second of an instance
DECODE_S: Final = 1500.0  # generated tokens a second of a full one
SEATS: Final = 30  # requests that fill it
LATEST_S: Final = 1.0  # until the first token, beside what its prompt takes
PACE_S: Final = 25.0  # tokens a second that a client wants to see

SHARD, NODE = FunctionID("dispatch-0"), NodeID("node-0")
KEYS: Final[dict[Role, RevisionKey]] = {r: RevisionKey(f"ns/{r}-00001") for r in ("prefill", "decode")}


@dataclass(eq=False)
class Request:
    at: float
    prompt: int
    answer: int
    left: float = 0.0
    first: float = 0.0
    ended: float = 0.0

    @property
    def in_time(self) -> bool:
        pace = self.answer / max(self.ended - self.first, 1e-9)
        return (
            self.ended > 0 and self.first - self.at <= LATEST_S + self.prompt / PREFILL_S and pace >= PACE_S
        )


@dataclass(eq=False)
class Engines:
    """Both stages, with so many engines each."""

    prefill: list[deque[Request]] = field(default_factory=list)
    decode: list[list[Request]] = field(default_factory=list)
    computed: list[tuple[Request, float, float]] = field(default_factory=list)
    generated: list[float] = field(default_factory=list)

    def resize(self, prefill: int, decode: int) -> None:
        while len(self.prefill) < prefill:
            self.prefill.append(deque())
        while len(self.decode) < decode:
            self.decode.append([])
        for request in itertools.chain.from_iterable(self.prefill[prefill:]):
            min(self.prefill[:prefill], key=len).append(request)
        for request in itertools.chain.from_iterable(self.decode[decode:]):
            min(self.decode[:decode], key=len).append(request)
        del self.prefill[prefill:], self.decode[decode:]

    def take(self, request: Request) -> None:
        request.left = request.prompt
        min(self.prefill, key=lambda q: sum(r.left for r in q)).append(request)

    def step(self, now: float) -> None:
        self.computed, self.generated = [], []
        for seats in self.decode:
            pace = min(DECODE_S / SEATS, DECODE_S / max(len(seats), 1))
            self.generated.append(sum(min(pace * STEP_S, r.left) for r in seats))
            for request in list(seats):
                request.left -= pace * STEP_S
                if request.left <= 0:
                    request.ended = now + STEP_S
                    seats.remove(request)
        for queue in self.prefill:
            room, at = PREFILL_S * STEP_S, now
            while queue and room > 0:
                request = queue[0]
                done = min(room, request.left)
                room, request.left, at = room - done, request.left - done, at + done / PREFILL_S
                if request.left <= 0:
                    queue.popleft()
                    request.first, request.left = at, request.answer
                    self.computed.append((request, at - request.prompt / PREFILL_S, at))
                    min(self.decode, key=len).append(request)


class Scaled:
    """A real home, and nodes that start what it asks for in START_S."""

    def __init__(self, ratio: tuple[int, int, int, int] | None = None) -> None:
        ids = itertools.count(1)
        self.home = Home(SHARD, 1, lambda key: InstanceID(f"{key}-{next(ids)}"))
        self.starting: dict[InstanceID, tuple[RevisionKey, float]] = {}
        self.ready: dict[RevisionKey, list[InstanceID]] = {key: [] for key in KEYS.values()}
        self.seq = 0
        out = self.home.view([NODE], {SHARD: 1}, (), 0.0)
        for role, key in KEYS.items():
            scale = Scale(min=1, max=12, target=float(SEATS), window_s=30.0)
            rev = Revision(
                key,
                f"ns/{role}",
                1,
                Command(()),
                Model(),
                Resources(),
                scale,
                Hold(),
                role,
                "ns/g",
                pd_ratio=ratio,
            )
            out += self.home.add(rev, True, (), 0.0)
        self.carry(out, 0.0)

    def carry(self, out: list[Instruction], now: float) -> None:
        for i in out:
            if isinstance(i, Place):
                outcomes = {rev.key: [Outcome(x, NODE) for x in named] for rev, named in i.items}
                self.starting |= {x: (rev.key, now + START_S) for rev, named in i.items for x in named}
                self.carry(self.home.placed(outcomes, now), now)
            elif isinstance(i, StopInstance):
                self.starting.pop(i.instance, None)
                if i.instance in self.ready[i.revision]:
                    self.ready[i.revision].remove(i.instance)
                self.say(i.revision, i.instance, "gone", now)

    def say(self, key: RevisionKey, instance: InstanceID, state: str, now: float) -> None:
        fact = Instance(instance, key, NODE, state, f"{instance}:80")  # type: ignore[arg-type]
        self.carry(self.home.observed(key, NODE, [fact], False, now)[1], now)

    def demand(self, role: Role, arrived: int, in_flight: int, now: float) -> None:
        self.seq += 1
        demand = Demand(KEYS[role], self.seq, 0, in_flight, 0, arrived, 0, in_flight * STEP_S, STEP_S, term=1)
        self.carry(self.home.demand(SHARD, demand, now)[1], now)

    def tick(self, now: float) -> tuple[int, int]:
        for instance, (key, due) in list(self.starting.items()):
            if now >= due:
                del self.starting[instance]
                self.ready[key].append(instance)
                self.say(key, instance, "ready", now)
        self.carry(self.home.tick(now), now)
        self.home.check()
        return len(self.ready[KEYS["prefill"]]), len(self.ready[KEYS["decode"]])

    def wanted(self) -> tuple[int, int]:
        prefill, decode = (self.home.revisions[KEYS[role]].agreed for role in ("prefill", "decode"))
        return prefill, decode


def load(phases: list[tuple[float, float, int, int]], seed: int) -> list[Request]:
    """Phases of (seconds, requests a second, tokens of a prompt, tokens of an answer)."""
    rng = random.Random(seed)
    out, begin = [], 20.0
    for seconds, rate, prompt, answer in phases:
        at = begin
        while (at := at + rng.expovariate(rate)) < begin + seconds:
            out.append(
                Request(at, round(prompt * rng.uniform(0.5, 1.5)), round(answer * rng.uniform(0.5, 1.5)))
            )
        begin += seconds
    return out


def scaled(
    requests: list[Request], seconds: float, *, ratio: tuple[int, int, int, int] | None = None
) -> list[tuple[int, int]]:
    """Under a home; the instances of both stages that were ready at each step."""
    cluster, engines, waiting = Scaled(ratio), Engines(), deque(requests)
    history, now, velocity = [], 0.0, 0.0
    while now < seconds:
        ready = cluster.tick(now)
        history.append((max(1, ready[0]), max(1, ready[1])))
        engines.resize(*history[-1])
        new = []
        while waiting and waiting[0].at <= now:
            new.append(waiting.popleft())
            engines.take(new[-1])
        queued = round(sum(r.left for q in engines.prefill for r in q))
        cluster.demand("prefill", len(new), sum(map(len, engines.prefill)), now)
        cluster.demand("decode", len(new), sum(map(len, engines.decode)), now)
        arrived = sum(r.prompt for r in new)
        cluster.carry(cluster.home.prefill(KEYS["prefill"], arrived, queued, velocity, now), now)
        engines.step(now)
        velocity = PREFILL_S if engines.computed else velocity
        for instance, tokens, seats in zip(
            cluster.ready[KEYS["decode"]], engines.generated, engines.decode, strict=False
        ):
            cluster.home.decoded(instance, round(tokens), min(1.0, len(seats) / SEATS), STEP_S)
        now += STEP_S
    return history


def fixed(requests: list[Request], history: list[tuple[int, int]], share: float) -> None:
    """The same number of instances at every step, always split alike."""
    engines, waiting = Engines(), deque(requests)
    for k, (prefill, decode) in enumerate(history):
        total = prefill + decode
        mine = min(total - 1, max(1, round(total * share)))
        engines.resize(mine, total - mine)
        while waiting and waiting[0].at <= k * STEP_S:
            engines.take(waiting.popleft())
        engines.step(k * STEP_S)


def in_time(requests: list[Request]) -> float:
    return sum(r.in_time for r in requests) / len(requests)


PHASES: Final = [
    (120.0, 3.0, 1000, 100),
    (240.0, 3.0, 6000, 60),
    (240.0, 6.0, 200, 800),
    (120.0, 3.0, 1000, 100),
]
SECONDS: Final = 760.0


def at(history: list[tuple[int, int]], begin: float, end: float) -> tuple[float, float]:
    part = history[round(begin / STEP_S) : round(end / STEP_S)]
    return sum(p for p, _ in part) / len(part), sum(d for _, d in part) / len(part)


def test_the_stage_that_has_the_work_grows_and_more_is_in_time_than_with_any_fixed_ratio() -> None:
    requests = load(PHASES, 1)
    history = scaled(requests, SECONDS)
    ours = in_time(requests)
    prompts, answers = at(history, 220, 380), at(history, 480, 620)
    assert prompts[0] > 2 * prompts[1]
    assert answers[1] > 2 * answers[0]
    others = {}
    for share in (0.25, 1 / 3, 0.5, 2 / 3, 0.75):
        again = load(PHASES, 1)
        fixed(again, history, share)
        others[share] = in_time(again)
    assert ours > 0.9
    assert ours > max(others.values()) + 0.15


@pytest.mark.parametrize("ratio", [(1, 2, 1, 1), (1, 1, 3, 1), (1, 4, 2, 1)])
def test_the_bounds_of_the_ratio_hold_at_every_moment(ratio: tuple[int, int, int, int]) -> None:
    requests = load([(60.0, 3.0, 6000, 60), (60.0, 6.0, 200, 800)], 2)
    cluster = Scaled(ratio)
    del requests
    now = 0.0
    rng = random.Random(3)
    while now < 200.0:
        cluster.tick(now)
        cluster.carry(cluster.home.prefill(KEYS["prefill"], rng.randrange(9000), 0, PREFILL_S, now), now)
        for instance in cluster.ready[KEYS["decode"]]:
            cluster.home.decoded(instance, rng.randrange(400), 0.9, STEP_S)
        cluster.demand("decode", 1, rng.randrange(100), now)
        prefill, decode = cluster.wanted()
        if now > START_S and max(prefill, decode) < 12:
            assert ratio[0] * decode <= ratio[1] * prefill or decode == 1
            assert ratio[3] * prefill <= ratio[2] * decode or prefill == 1
        now += STEP_S


def test_steady_load_keeps_its_numbers() -> None:
    requests = load([(580.0, 4.0, 3000, 300)], 4)
    history = scaled(requests, 600.0)
    settled = history[round(200 / STEP_S) :]
    changes = sum(a != b for a, b in itertools.pairwise(settled))
    assert changes <= 4
    assert in_time(requests) > 0.9
