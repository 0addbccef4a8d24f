"""The choice of a prefill instance: properties of the cost, and queueing on a bursty trace beside other policies."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.dispatch.affinity import prefix_blocks
from kserve_ext.core.dispatch.choosing import Chosen
from kserve_ext.core.dispatch.pairing import BLOCK_TOKENS, Ask, Pairing
from kserve_ext.core.dispatch.throttler import Tracker
from kserve_ext.core.ids import InstanceID

P: Final = [InstanceID(f"p-{k}") for k in range(4)]
tokens = st.integers(1, 30_000)


@dataclass(eq=False)
class Lease:
    ask: Ask
    why: str = ""
    ahead: int = 0


def given_to(pairing: Pairing, ask: Ask, instance: InstanceID) -> Lease:
    lease = Lease(ask)
    pairing.chosen(lease, Chosen(Tracker(instance)), 0.0)
    return lease


def best(pairing: Pairing, ask: Ask, instances: list[InstanceID] = P) -> InstanceID:
    found = pairing.best(ask, instances)
    assert found is not None
    return found[0]


def loaded(queued: list[int], seed: int = 0, places: dict[InstanceID, str] | None = None) -> Pairing:
    pairing = Pairing(random.Random(seed).choice, lambda i: (places or {}).get(i, ""))
    for instance, count in zip(P, queued, strict=False):
        given_to(pairing, Ask(count), instance)
    return pairing


@given(st.lists(tokens, min_size=4, max_size=4), tokens)
def test_fewest_tokens_not_requests(queued: list[int], prompt: int) -> None:
    pairing = loaded(queued)
    for _ in range(3):
        given_to(pairing, Ask(1), best(pairing, Ask(prompt)))
    chosen = best(pairing, Ask(prompt))
    assert pairing.queued(chosen) == min(pairing.queued(i) for i in P)


@given(st.lists(tokens, min_size=4, max_size=4), st.sets(st.sampled_from(P)), tokens)
def test_an_excluded_one_never(queued: list[int], out: set[InstanceID], prompt: int) -> None:
    found = loaded(queued).best(Ask(prompt, excluded=tuple(out)), P)
    assert (found is None) == (len(out) == 4)
    assert found is None or found[0] not in out


@given(st.integers(0, 3), tokens, st.sampled_from(P), st.sampled_from(P))
def test_of_equally_busy_ones_that_with_a_channel_then_that_which_is_near(
    queued: int, prompt: int, channel: InstanceID, near: InstanceID
) -> None:
    pairing = loaded([queued] * 4, places={near: "here"})
    assert best(pairing, Ask(prompt, channels=(channel,), place="here", uncached=1)) == channel
    assert best(pairing, Ask(prompt, place="here", uncached=prompt)) == near
    assert best(pairing, Ask(prompt, channels=(channel, near), place="here", uncached=prompt)) == near


def test_a_channel_is_not_worth_a_queue() -> None:
    assert best(loaded([8000, 0, 8000, 8000]), Ask(100, channels=(P[0],))) == P[1]


def test_what_an_instance_holds_of_a_prompt_counts_as_computed() -> None:
    pairing = Pairing(random.Random(0).choice)
    prefix = prefix_blocks(random.Random(1).randbytes(4 * BLOCK_TOKENS * 16))
    lease = given_to(pairing, Ask(2048, prefix=prefix), P[2])
    pairing.released(P[2], lease.ask, 2048, 0.0, 1.0)
    assert best(pairing, Ask(2048, prefix=prefix)) == P[2]
    assert pairing.cost(Ask(2048, prefix=prefix), P[2]).compute_s < 0.01, "all but the last token"
    assert pairing.cost(Ask(2048, prefix=prefix[:8]), P[2]).compute_s == 1024 / 2048
    given_to(pairing, Ask(4096), P[2])
    assert best(pairing, Ask(2048, prefix=prefix)) != P[2], "sticky until its queue costs more than computing"


def test_a_fast_instance_may_have_the_longer_queue() -> None:
    pairing = loaded([3000, 2000, 9000, 9000])
    for instance, seconds in ((P[0], 1.0), (P[1], 4.0)):
        pairing.released(instance, Ask(0), 4000, 0.0, seconds)
    assert best(pairing, Ask(1000), P[:2]) == P[0]


@given(st.lists(st.tuples(st.sampled_from(P), tokens, st.booleans()), max_size=40))
def test_the_account_is_that_of_open_leases(steps: list[tuple[InstanceID, int, bool]]) -> None:
    pairing = Pairing(random.Random(0).choice)
    open_: list[tuple[InstanceID, Ask]] = []
    for instance, count, release in steps:
        if release and open_:
            pairing.released(*open_.pop())
        else:
            open_.append((instance, given_to(pairing, Ask(count), instance).ask))
        for i in P:
            assert pairing.queued(i) == sum(ask.tokens for at, ask in open_ if at == i)


def test_ties_are_drawn_and_the_same_for_the_same_seed() -> None:
    drawn, again = (
        [best(Pairing(random.Random(seed).choice), Ask(100)) for seed in range(40)] for _ in range(2)
    )
    assert set(drawn) == set(P)
    assert drawn == again


# --- beside other policies, on a virtual clock

TOKENS_S: Final = 4000.0


@dataclass
class Server:
    """First come, first served; what is decided about is only what a home can know."""

    free_at: float = 0.0
    open: list[tuple[float, int]] = field(default_factory=list)  # ends, tokens


def trace(seed: int, count: int) -> list[tuple[float, int]]:
    """Bursts: arrivals at four times the mean rate for a tenth of the time, and few long prompts among many short."""
    rng = random.Random(seed)
    now, out = 0.0, []
    for k in range(count):
        busy = (k // 40) % 4 == 0
        now += rng.expovariate(60.0 if busy else 9.0)
        length = int(min(16_000, 120 * rng.paretovariate(0.95)))
        out.append((now, length))
    return out


Policy = Callable[[list[Server], int, float], int]


def p99_wait(policy: Policy, arrivals: list[tuple[float, int]]) -> float:
    servers = [Server() for _ in P]
    waits = []
    for now, length in arrivals:
        for server in servers:
            while server.open and server.open[0][0] <= now:
                heapq.heappop(server.open)
        server = servers[policy(servers, length, now)]
        start = max(now, server.free_at)
        waits.append(start - now)
        server.free_at = start + length / TOKENS_S
        heapq.heappush(server.open, (server.free_at, length))
    return sorted(waits)[int(len(waits) * 0.99)]


def by_tokens(seed: int) -> Policy:
    pairing = Pairing(random.Random(seed).choice)
    leases: list[tuple[float, InstanceID, Ask, float]] = []

    def policy(servers: list[Server], length: int, now: float) -> int:
        while leases and leases[0][0] <= now:
            ended, instance, ask, started = heapq.heappop(leases)
            pairing.released(instance, ask, ask.tokens, started, ended)
        chosen = P.index(best(pairing, ask := Ask(length)))
        given_to(pairing, ask, P[chosen])
        start = max(now, servers[chosen].free_at)
        heapq.heappush(leases, (start + length / TOKENS_S, P[chosen], ask, start))
        return chosen

    return policy


def round_robin() -> Policy:
    turns = iter(range(1 << 30))
    return lambda servers, length, now: next(turns) % len(servers)


def anywhere(seed: int) -> Policy:
    rng = random.Random(seed)
    return lambda servers, length, now: rng.randrange(len(servers))


def test_on_a_bursty_trace_the_longest_waits_are_shorter_than_with_other_policies() -> None:
    for seed in range(5):
        arrivals = trace(seed, 4000)
        ours = p99_wait(by_tokens(seed), arrivals)
        others = {
            "random": p99_wait(anywhere(seed), arrivals),
            "round robin": p99_wait(round_robin(), arrivals),
            "least requests": p99_wait(
                lambda servers, length, now: min(
                    range(len(servers)), key=lambda k: (len(servers[k].open), k)
                ),
                arrivals,
            ),
        }
        assert others["random"] > 1.5 * ours
        assert others["round robin"] > 1.5 * ours
        assert others["least requests"] > 1.2 * ours
