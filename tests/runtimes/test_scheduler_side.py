"""The scheduler's half of the connector, on plain stand-ins for vLLM's objects."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from runtimes.vllm_pd.scheduler_side import (
    PUSH,
    TRANSFER,
    DecodeSide,
    Fetch,
    Plan,
    PrefillSide,
    Progress,
    Reservation,
)

BLOCK = 16


class Holdings:
    """What decode says: blocks by push. A fetch pays from `least` tokens on."""

    def __init__(self, least: int = 1, **held: int | None) -> None:
        self.blocks = {int(name.removeprefix("p")): blocks for name, blocks in held.items()}
        self.least = least
        self.asked: list[int] = []

    def held(self, push: int) -> int | None:
        return self.blocks.get(push, 0)

    def pays(self, tokens: int) -> bool:
        self.asked.append(tokens)
        return tokens >= self.least


def prefill(holdings: Holdings | None = None) -> PrefillSide:
    return PrefillSide(BLOCK, holdings or Holdings())


def request(name: str, tokens: int, **params: int) -> Any:
    return SimpleNamespace(request_id=name, num_prompt_tokens=tokens, kv_transfer_params=params or None)


def output(
    new: dict[str, tuple[int, int]] | None = None,
    cached: dict[str, tuple[int, int]] | None = None,
    blocks: dict[str, list[int]] | None = None,
    preempted: set[str] | None = None,
    resumed: set[str] | None = None,
) -> Any:
    """`new`, `cached`: request -> tokens computed before, tokens in this step."""
    new, cached, held = new or {}, cached or {}, blocks or {}
    return SimpleNamespace(
        scheduled_new_reqs=[SimpleNamespace(req_id=n, num_computed_tokens=c) for n, (c, _) in new.items()],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(cached),
            num_computed_tokens=[c for c, _ in cached.values()],
            resumed_req_ids=resumed or set(),
        ),
        num_scheduled_tokens={n: s for n, (_, s) in {**new, **cached}.items()},
        preempted_req_ids=preempted,
        kv_connector_block_state=SimpleNamespace(
            get_block_ids=lambda name: (held[name],) if name in held else None
        ),
    )


def test_decode_reserves_what_it_has_not_got() -> None:
    side = DecodeSide(BLOCK)
    asked = request("a", 50, **{TRANSFER: 7})
    side.arrived(asked)
    assert side.matched(asked, 0) == 50
    assert side.matched(asked, 32) == 18  # asked again: no side effect
    side.allocated(asked, [3, 4, 8, 9, 10], 18)
    assert side.step(output()) == Plan(reserve=(Reservation(7, "a", [3, 4], [8, 9], 18),))
    assert side.step(output()) == Plan()


def test_decode_does_not_try_a_failed_transfer_again() -> None:
    side = DecodeSide(BLOCK)
    asked = request("a", 50, **{TRANSFER: 7})
    side.arrived(asked)
    side.allocated(asked, [1, 2, 3, 4], 50)
    side.step(output())
    assert side.matched(asked, 0) == 0
    side.allocated(asked, [1, 2, 3, 4], 0)
    assert side.step(output()) == Plan()


def test_decode_cancels_what_it_does_not_need() -> None:
    side = DecodeSide(BLOCK)
    cached, aborted = request("a", 50, **{TRANSFER: 7}), request("b", 50, **{TRANSFER: 8})
    for each in (cached, aborted, request("c", 50)):
        side.arrived(each)
    side.allocated(cached, [1, 2, 3, 4], 0)
    assert side.finished(aborted) is False
    assert side.step(output()) == Plan(unused=(7, 8))


def test_decode_cancels_a_transfer_that_its_request_no_longer_waits_for() -> None:
    side = DecodeSide(BLOCK)
    asked = request("a", 50, **{TRANSFER: 7})
    side.arrived(asked)
    side.allocated(asked, [1, 2, 3, 4], 50)
    side.step(output())
    side.finished(asked)
    assert side.step(output()).unused == (7,)


def test_prefill_tells_whole_blocks_as_they_come_and_the_rest_at_the_end() -> None:
    side = prefill()
    job = request("a", 50, **{PUSH: 3})
    side.arrived(job)
    first = side.step(output(new={"a": (0, 20)}, blocks={"a": [5, 6]}))
    assert first.progress == (Progress(3, "a", [5, 6], 1, False),)
    second = side.step(output(cached={"a": (20, 30)}, blocks={"a": [5, 6, 9, 10]}))
    assert second.progress == (Progress(3, "a", [5, 6, 9, 10], 4, True),)
    assert side.finished(job) is True
    assert side.finished(job) is False


def test_prefill_keeps_nothing_for_requests_of_its_own_or_never_begun() -> None:
    side = prefill()
    own, early = request("a", 50), request("b", 50, **{PUSH: 4})
    side.arrived(own)
    side.arrived(early)
    assert side.step(output(new={"a": (0, 50)}, blocks={"a": [1, 2, 3, 4]})) == Plan()
    assert side.finished(own) is False
    assert side.finished(early) is False


def test_a_preempted_job_is_given_up_but_its_blocks_are_accounted_for() -> None:
    side = prefill()
    job = request("a", 50, **{PUSH: 3})
    side.arrived(job)
    side.step(output(new={"a": (0, 20)}, blocks={"a": [5, 6]}))
    assert side.step(output(preempted={"a"})).withdrawn == (3,)
    again = side.step(output(cached={"a": (0, 50)}, blocks={"a": [1, 2, 3, 4]}, resumed={"a"}))
    assert again == Plan()
    assert side.finished(job) is True


def test_prefill_fetches_what_decode_holds_and_it_lacks() -> None:
    side = prefill(Holdings(p3=4))
    job = request("a", 90, **{PUSH: 3})
    side.arrived(job)
    assert side.matched(job, 16) == 48
    side.allocated(job, [9, 2, 3, 4, 5, 6], 48)
    assert side.step(output()) == Plan(fetch=(Fetch(3, "a", 1, [2, 3, 4], 48),))
    after = side.step(output(new={"a": (64, 26)}, blocks={"a": [9, 2, 3, 4, 5, 6]}))
    assert after == Plan(progress=(Progress(3, "a", [9, 2, 3, 4, 5, 6], 6, True),))
    assert side.finished(job) is True
    assert side.step(output()) == Plan()


def test_prefill_waits_until_decode_says_what_it_holds() -> None:
    holdings = Holdings(p3=None)
    side = prefill(holdings)
    job = request("a", 90, **{PUSH: 3})
    side.arrived(job)
    assert side.matched(job, 0) is None
    holdings.blocks[3] = 2
    assert side.matched(job, 0) == 32


def test_prefill_fetches_nothing_that_it_has_or_that_does_not_pay() -> None:
    for holdings, computed in ((Holdings(p3=2), 32), (Holdings(p3=2), 64), (Holdings(17, p3=2), 16)):
        side = prefill(holdings)
        job = request("a", 90, **{PUSH: 3})
        side.arrived(job)
        assert side.matched(job, computed) == 0
        side.allocated(job, [1, 2, 3, 4, 5, 6], 0)
        assert side.step(output()) == Plan()


def test_whether_a_fetch_pays_is_decided_once() -> None:
    holdings = Holdings(17, p3=2)
    side = prefill(holdings)
    job = request("a", 90, **{PUSH: 3})
    side.arrived(job)
    assert side.matched(job, 16) == 0
    assert side.matched(job, 0) == 0  # no room for it before, and its cached block has gone since
    assert holdings.asked == [16]


def test_a_failed_fetch_is_not_tried_again() -> None:
    side = prefill(Holdings(p3=2))
    job = request("a", 90, **{PUSH: 3})
    side.arrived(job)
    side.allocated(job, [1, 2, 3, 4, 5, 6], side.matched(job, 0) or 0)
    side.step(output())
    assert side.matched(job, 0) == 0


def test_a_fetch_that_nobody_waits_for_any_more_is_dropped() -> None:
    side = prefill(Holdings(p3=2))
    job = request("a", 90, **{PUSH: 3})
    side.arrived(job)
    side.allocated(job, [1, 2, 3, 4, 5, 6], side.matched(job, 0) or 0)
    assert side.finished(job) is False  # its blocks are free when the fetch has ended
    plan = side.step(output())
    assert [fetch.push for fetch in plan.fetch] == [3]
    assert plan.dropped == ("a",)
