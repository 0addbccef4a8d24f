"""Dispatch functions over real rpc and HTTP: bursts from zero within bounds, take-over, refusals, going to zero."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kserve_ext.core.dispatch import facts, ghosts, leases
from kserve_ext.core.facts import Command, Hold, Model, Resources, Revision, Scale
from kserve_ext.core.ids import RevisionKey
from tests.support.dataplane import run
from tests.support.dispatch_cluster import Cluster, cluster, until
from tests.support.load import Tally, one, session, volley

KEY = RevisionKey("ns/echo-00001")
HOST = "echo.ns.galaxy.local"


HOLD = Hold()


def revision(concurrency: int = 8, most: int = 3, hold: Hold = HOLD, window_s: float = 60.0) -> Revision:
    scale = Scale(min=0, max=most, initial=0, window_s=window_s, grace_s=0.5)
    return Revision(
        KEY, "ns/echo", 1, Command(("serve",)), Model(), Resources(), scale, hold, concurrency=concurrency
    )


async def routed(up: Cluster, rev: Revision) -> list[str]:
    """The URLs of the shards, once all of them know the revision."""
    up.apply(rev, HOST)
    await until(
        lambda: all(
            rev.key in d.function.routes.revisions and HOST.encode() in d.function.routes._routes
            for d in up.dispatch.values()
        ),
        "routes everywhere",
    )
    return [d.http for d in up.dispatch.values()]


def records(up: Cluster) -> list[dict[str, object]]:
    return [r.body() for d in up.dispatch.values() for r in d.function.dispatcher.requests._records.values()]


def test_a_thousand_requests_at_zero_over_two_shards(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0", "dispatch-1") as up:
            urls = await routed(up, revision())
            # A home that is late with a thousand requests starts the third when it has caught up.
            up.answering.clear()
            load = asyncio.create_task(volley(urls, HOST, 1000))
            await until(lambda: len(up.instances) == 3, "as many instances as there may be")
            up.answering.set()
            tally = await load
            assert (tally.ok, tally.accounted) == (1000, 1000), str(tally)
            assert up.most == 3
            assert len(tally.pids) == 3
            assert tally.peak <= 8
            assert sum(s.answered for s in up.instances.values()) == 1000

    run(test())


def test_unlimited_concurrency_uses_every_instance_from_every_shard(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0", "dispatch-1") as up:
            urls = await routed(up, revision(concurrency=0, most=4))
            up.answering.clear()
            load = asyncio.create_task(volley(urls, HOST, 300))
            await until(lambda: len(up.instances) == 3, "one instance for each hundred")
            await until(lambda: sum(s.in_flight for s in up.instances.values()) == 300, "all sent")
            up.answering.set()
            tally = await load
            assert tally.ok == 300, str(tally)
            assert up.most == 3

    run(test())


def test_the_home_dies_while_it_holds_demand_and_slots(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0", "dispatch-1", "dispatch-2") as up:
            await routed(up, revision(concurrency=2))
            home = up.home(KEY)
            survivors = [d.http for n, d in up.dispatch.items() if n != home]
            doomed = up.dispatch[home].http
            up.answering.clear()
            load = asyncio.create_task(volley(survivors, HOST, 60))
            lost = asyncio.create_task(volley([doomed], HOST, 20))
            await until(lambda: sum(s.in_flight for s in up.instances.values()) == 6, "all slots used")
            await up.kill(home)
            assert (await lost).reset == 20
            up.answering.set()
            tally = await load
            assert (tally.ok, tally.accounted) == (60, 60), str(tally)
            assert up.most == 3
            assert tally.peak <= 2
            assert up.home(KEY) != home

    run(test())


@pytest.mark.parametrize("victim", ["home", "other"])
def test_slots_of_a_dispatch_function_that_died_come_back_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    """Here no lease ends by time."""
    for module in (facts, leases, ghosts):
        monkeypatch.setattr(module, "LEASE_TTL_S", 3600.0)

    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0", "dispatch-1") as up:
            await routed(up, revision(concurrency=2, most=1))
            home = up.home(KEY)
            dies = next(name for name in up.dispatch if (name == home) == (victim == "home"))
            survivor = next(d.http for name, d in up.dispatch.items() if name != dies)
            up.answering.clear()
            lost = asyncio.create_task(volley([up.dispatch[dies].http], HOST, 2))
            await until(lambda: sum(s.in_flight for s in up.instances.values()) == 2, "all slots used")
            load = asyncio.create_task(volley([survivor], HOST, 4))
            await until(lambda: sum(d.function.dispatcher.held for d in up.dispatch.values()) == 4, "held")
            await up.kill(dies)
            assert (await lost).reset == 2
            up.answering.set()
            assert (await load).ok == 4

    run(test())


def test_the_home_dies_before_any_instance_is_ready(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0", "dispatch-1") as up:
            await routed(up, revision())
            home = up.home(KEY)
            survivor = next(d.http for n, d in up.dispatch.items() if n != home)
            up.starting.clear()
            load = asyncio.create_task(volley([survivor], HOST, 50))
            await until(lambda: len(up.instances) == 3, "started")
            await up.kill(home)
            up.starting.set()
            tally = await load
            assert tally.ok == 50, str(tally)
            assert up.most == 3, "the new home started what was starting already"

    run(test())


def test_an_instance_dies_and_what_it_had_not_answered_goes_elsewhere(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0", "dispatch-1") as up:
            urls = await routed(up, revision(concurrency=4))
            up.answering.clear()
            load = asyncio.create_task(volley(urls, HOST, 40))
            await until(lambda: sum(s.in_flight for s in up.instances.values()) == 12, "all slots used")
            up.lose(next(iter(up.instances.values())))
            up.answering.set()
            tally = await load
            assert tally.ok == 40, str(tally)
            assert tally.peak <= 4
            assert len(up.instances) <= 3

    run(test())


def test_a_request_waits_for_an_instance_that_says_it_is_full_and_no_other_is_started(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0", "dispatch-1") as up:
            urls = await routed(up, revision(concurrency=1, most=1))
            assert (await volley(urls, HOST, 2)).ok == 2
            (served,) = up.instances.values()
            served.full = True
            load = asyncio.create_task(volley(urls, HOST, 2))
            await until(lambda: served.refused >= 5, "it was asked again and again")
            served.full = False
            tally = await load
            assert tally.ok == 2, str(tally)
            assert list(up.instances.values()) == [served], "its node was not asked whether it is well"
            assert any(mark[0] == "full" for r in records(up) for mark in r["marks"])  # type: ignore[attr-defined]

    run(test())


def test_a_permanent_failure_answers_all_at_once_with_the_reason(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0", "dispatch-1") as up:
            urls = await routed(up, revision())
            up.fail = "the process ended with exit code 2: --max-len: no such option"
            tally = await volley(urls, HOST, 20)
            assert tally.refused == {503: 20}, str(tally)
            assert "--max-len: no such option" in tally.reasons[0]
            assert not any("Retry-After" in reason for reason in tally.reasons)
            started = up.serial
            again = await volley(urls, HOST, 4)
            assert again.refused == {503: 4}
            assert up.serial == started, "what can't work isn't tried again at once"

    run(test())


def test_no_room_is_said_when_holding_ends(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0", "dispatch-1") as up:
            up.refuse = "node node-0: cpu: needs 64000m, 4000m free"
            urls = await routed(up, revision(hold=Hold(seconds=1.5)))
            tally = await volley(urls, HOST, 6)
            assert tally.refused == {503: 6}, str(tally)
            assert all("cpu: needs 64000m" in reason for reason in tally.reasons)
            assert all("Retry-After" in reason for reason in tally.reasons)

    run(test())


def test_room_that_comes_later_serves_what_is_held(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0", "dispatch-1") as up:
            up.refuse = "no node fits"
            urls = await routed(up, revision())
            load = asyncio.create_task(volley(urls, HOST, 6))
            await until(lambda: sum(d.function.dispatcher.held for d in up.dispatch.values()) == 6, "held")
            up.refuse = ""
            assert (await load).ok == 6

    run(test())


def test_bounds_of_holding_refuse_the_rest(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0") as up:
            urls = await routed(up, revision(hold=Hold(requests=20)))
            up.starting.clear()
            load = asyncio.create_task(volley(urls, HOST, 100))
            await until(lambda: up.dispatch["dispatch-0"].function.dispatcher.submitted == 100, "sent")
            up.starting.set()
            tally = await load
            assert (tally.ok, tally.refused) == (20, {429: 80}), str(tally)
            assert "hold-requests" in tally.reasons[0]

    run(test())


def test_cold_and_warm_are_told_apart_and_recorded(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0", "dispatch-1") as up:
            urls = await routed(up, revision(concurrency=1, most=1))
            assert (await volley(urls[:1], HOST, 1)).ok == 1
            up.answering.clear()
            load = asyncio.create_task(volley(urls[:1], HOST, 2))
            await until(
                lambda: sum(d.function.dispatcher.held for d in up.dispatch.values()) == 1, "one waits"
            )
            up.answering.set()
            assert (await load).ok == 2
            first, *others = records(up)
            assert first["cold"] is True
            assert [name for name, _, _ in first["marks"]] == [  # type: ignore[attr-defined]
                *("arrived", "held", "slot", "sent", "first_byte", "last_byte")
            ]
            assert [r["cold"] for r in others] == [False, False], "waiting for a slot isn't a cold start"

    run(test())


def test_scales_to_zero_and_a_deleted_revision_ends(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0", "dispatch-1") as up:
            urls = await routed(up, revision(window_s=2.0))
            assert (await volley(urls, HOST, 4)).ok == 4
            await until(lambda: not up.instances, "scale to zero", 30.0)
            assert (await volley(urls, HOST, 4)).ok == 4
            up.store.write([(f"routes/{HOST}", None), (f"revisions/{KEY}", None)])
            await until(lambda: not up.instances, "instances of a deleted revision end")
            tally = Tally()
            async with session() as client:
                await one(client, urls[0], HOST, tally)
            assert tally.refused == {404: 1}

    run(test())


def test_requests_held_for_a_revision_whose_successor_only_computes_prompts_are_refused(
    tmp_path: Path,
) -> None:
    """A service that joins a group as prefill while its last revision is at zero."""

    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0") as up:
            old = revision(concurrency=1, most=1)
            new = old._replace(key=RevisionKey("ns/echo-00002"), generation=2, role="prefill", group="g")
            urls = await routed(up, old)
            up.answering.clear()
            load = asyncio.create_task(volley(urls, HOST, 5))
            dispatcher = up.dispatch["dispatch-0"].function.dispatcher
            await until(lambda: dispatcher.held == 4, "all but one held")
            await routed(up, new)
            up.delete(old.key)
            await until(lambda: old.key not in dispatcher.routes.revisions, "the old one is gone")
            up.answering.set()
            tally = await load
            assert (tally.ok, tally.refused, tally.accounted) == (1, {503: 4}, 5), str(tally)

    run(test())


def test_requests_held_for_a_revision_that_is_rolled_over_go_to_its_successor(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0", "dispatch-1") as up:
            old = revision(concurrency=1, most=1)
            new = old._replace(key=RevisionKey("ns/echo-00002"), generation=2)
            urls = await routed(up, old)
            up.answering.clear()
            load = asyncio.create_task(volley(urls, HOST, 30))
            await until(lambda: sum(s.in_flight for s in up.instances.values()) == 1, "one under way")
            held = [d.function.dispatcher for d in up.dispatch.values()]
            await until(lambda: sum(d.held for d in held) == 29, "the others held")
            await routed(up, new)
            up.delete(old.key)
            await until(lambda: all(old.key not in d.routes.revisions for d in held), "the old one is gone")
            up.answering.set()
            tally = await load
            assert (tally.ok, tally.accounted) == (30, 30), str(tally)
            moved = [r for r in records(up) if any(m[0] == "moved" for m in r["marks"])]  # type: ignore[attr-defined]
            assert len(moved) == 29
            assert {r["revision"] for r in moved} == {new.key}

    run(test())
