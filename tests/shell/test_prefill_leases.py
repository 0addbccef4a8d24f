"""Prefill leases over real rpc: held like requests, given back, passed on after the home has moved, ended with the
connection of the decode instance."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from activator_replacement.peers import PeerWatches
from kserve_ext.core.facts import Command, Hold, Model, Resources, Revision, Scale
from kserve_ext.core.ids import InstanceID, RequestID, RevisionKey
from kserve_ext.rpc import Caller, Rpc
from kserve_ext.wire.messages import (
    Decoded,
    LeasePrefill,
    PrefillLease,
    PrefillPeer,
    ReturnPrefill,
    WatchPrefill,
)
from tests.support.dataplane import run
from tests.support.dispatch_cluster import KEY as CLUSTER_KEY
from tests.support.dispatch_cluster import Cluster, Dispatch, cluster, until

GROUP = "ns/pair"
SCALE = Scale(min=0, max=1, initial=0)


def member(role: str) -> Revision:
    key = RevisionKey(f"ns/{role}-00001")
    return Revision(
        key,
        f"ns/{role}",
        1,
        Command(("serve",)),
        Model(),
        Resources(),
        SCALE,
        Hold(),
        role=role,  # type: ignore[arg-type]
        group=GROUP,
        concurrency=1,
    )


async def applied(up: Cluster) -> None:
    for role in ("decode", "prefill"):
        up.apply(member(role), f"{role}.ns.galaxy.local")
    await until(lambda: all(len(d.function.routes.revisions) == 2 for d in up.dispatch.values()), "known")


async def lease(rpc: Rpc, addr: str, k: int) -> PrefillLease:
    message = LeasePrefill(GROUP, RequestID(f"r{k}"), 100, InstanceID("decode-1"))
    reply: PrefillLease = await rpc.call(addr, message, 60.0)
    return reply


def within(seconds: float) -> Caller:
    """Whoever waits so long, and would take an answer later, too."""
    return Caller("decode-1", 0, b"", b"", asyncio.get_running_loop().time() + seconds)


def in_use(up: Cluster) -> int:
    return sum(d.function.dispatcher.in_flight for d in up.dispatch.values())


def test_leases_wake_the_pair_and_take_turns(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0", "dispatch-1") as up:
            await applied(up)
            decode = Rpc("decode-1", CLUSTER_KEY)
            addr = up.dispatch[up.home(member("prefill").key)].membership.addr
            first = await lease(decode, addr, 1)
            assert {i.revision.role for i in up.instances.values()} == {"prefill", "decode"}
            served = up.instances[first.instance]
            assert (served.revision.role, first.addr) == ("prefill", served.addr)
            second = asyncio.create_task(lease(decode, addr, 2))
            await until(lambda: sum(d.function.dispatcher.held for d in up.dispatch.values()) == 1, "held")
            await decode.call(addr, ReturnPrefill(GROUP, first.lease, ""), 30.0)
            assert (await second).instance == first.instance
            assert in_use(up) == 1
            leases = up.dispatch[up.home(member("prefill").key)].function.prefill
            assert leases._queued == {member("prefill").key: 100}
            await decode.close()  # the decode instance dies
            await until(lambda: in_use(up) == 0, "its lease ends with its connection")
            assert not leases._queued

    run(test())


def test_a_lease_given_back_to_another_function_reaches_the_one_that_gave_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0", "dispatch-1") as up:
            await applied(up)
            decode = Rpc("decode-1", CLUSTER_KEY)
            home = up.home(member("prefill").key)
            other = next(d.membership.addr for n, d in up.dispatch.items() if n != home)
            given = await lease(decode, up.dispatch[home].membership.addr, 1)
            assert in_use(up) == 1
            await decode.call(other, ReturnPrefill(GROUP, given.lease, ""), 30.0)
            await until(lambda: in_use(up) == 0, "passed on")
            await decode.close()

    run(test())


def test_a_lease_that_can_not_be_had_says_why_in_time(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0") as up:
            up.refuse = "node node-0: gpus: needs 1, 0 free"
            await applied(up)
            message = LeasePrefill(GROUP, RequestID("r1"), 100, InstanceID("decode-1"))
            function = up.dispatch["dispatch-0"].function
            reply: PrefillLease = await function.prefill.lease(message, within(1.0))
            assert reply.lease == ""
            assert "gpus: needs 1" in reply.reason
            assert function.dispatcher.held == 0

    run(test())


def test_a_slot_that_comes_when_the_caller_has_given_up_goes_back(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0") as up:
            await applied(up)
            leases = up.dispatch["dispatch-0"].function.prefill
            loop = asyncio.get_running_loop()
            message = LeasePrefill(GROUP, RequestID("r1"), 100, InstanceID("decode-1"))
            up.starting.clear()
            answer = leases.lease(message, within(30.0))
            (wait,) = leases._open.values()
            wait.until = loop.time()  # its timer, which is late, hasn't fired
            up.starting.set()
            given: PrefillLease = await answer
            assert given.lease == ""
            await until(lambda: not leases._open and in_use(up) == 0, "the slot is free")

    run(test())


def test_who_watches_hears_of_each_change_takes_no_slot_and_is_no_demand(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0", "dispatch-1") as up:
            await applied(up)
            decode = Rpc("decode-1", CLUSTER_KEY)
            home = up.home(member("prefill").key)
            addr = up.dispatch[home].membership.addr
            watches = up.dispatch[home].function.peers
            none = await decode.call(addr, WatchPrefill(GROUP), 30.0)
            assert none.tag
            assert none.peers == ()
            assert await watches.watch(WatchPrefill(GROUP, none.tag), within(0.3)) == none, "at its deadline"
            assert not up.instances, "nothing is started for it"
            news = asyncio.create_task(decode.call(addr, WatchPrefill(GROUP, none.tag), 60.0))
            first = await lease(decode, addr, 1)
            found = await news
            assert found.peers == (PrefillPeer(first.instance, first.addr, first.generation),)
            assert in_use(up) == 1
            other = next(d.membership.addr for n, d in up.dispatch.items() if n != home)
            for nobody in (WatchPrefill("ns/other"), WatchPrefill(GROUP)):
                unknown = await decode.call(other, nobody, 30.0)
                assert (unknown.tag, unknown.peers) == ("", ())
            await decode.close()

    run(test())


def test_however_many_watch_a_group_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activator_replacement.peers.LOOK_AGAIN_S", 1000.0)
    found = [(PrefillPeer(InstanceID(f"p-{n}"), "127.0.0.1:9"),) for n in range(2)]
    looks = iter(found)
    rpc: Any = SimpleNamespace(handle=lambda message, handler: None)
    routes: Any = SimpleNamespace(prefill_of=lambda group: member("prefill"))
    watches = PeerWatches(rpc, routes, lambda key: next(looks))

    async def test() -> None:
        answers = await asyncio.gather(*(watches.watch(WatchPrefill(GROUP), within(10.0)) for _ in range(50)))
        assert {answer.peers for answer in answers} == {found[0]}

    run(test())


def test_a_lease_of_a_former_process_is_not_taken_for_one_of_its_successor(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0") as up:
            await applied(up)
            decode = Rpc("decode-1", CLUSTER_KEY)
            old = await lease(decode, up.dispatch["dispatch-0"].membership.addr, 1)
            await up.dispatch["dispatch-0"].die()
            successor = up.dispatch["dispatch-0"] = Dispatch(up, "dispatch-0", 2)
            await successor.start()
            await until(lambda: successor.function.routes.loaded, "routes")
            addr = successor.membership.addr
            await lease(decode, addr, 2)
            await decode.call(addr, ReturnPrefill(GROUP, old.lease, ""), 30.0)
            assert in_use(up) == 1
            await decode.close()

    run(test())


async def two_prefill(up: Cluster, concurrency: int) -> tuple[str, list[InstanceID]]:
    """The home's address, and the prefill instances; the decode instance is theirs to ask for."""
    scale = Scale(min=2, max=6, initial=2, target=100.0)
    for role in ("decode", "prefill"):
        up.apply(member(role)._replace(scale=scale, concurrency=concurrency), f"{role}.ns.galaxy.local")
    await until(lambda: all(len(d.function.routes.revisions) == 2 for d in up.dispatch.values()), "known")
    key = member("prefill").key
    await until(lambda: sum(s.state == "ready" for s in up.instances.values()) == 4, "all are ready")
    home = up.dispatch[up.home(key)]
    await until(lambda: len(home.function.homes.peers_of(key) or ()) == 2, "home knows them")
    return home.membership.addr, sorted(i for i, s in up.instances.items() if s.revision.role == "prefill")


async def asked(rpc: Rpc, addr: str, tokens: int, **facts: object) -> PrefillLease:
    message = LeasePrefill(GROUP, RequestID("r"), tokens, InstanceID("decode-1"), **facts)  # type: ignore[arg-type]
    reply: PrefillLease = await rpc.call(addr, message, 60.0)
    return reply


@pytest.mark.parametrize("concurrency", [0, 8])
def test_a_prompt_goes_where_fewest_tokens_wait(tmp_path: Path, concurrency: int) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0", "dispatch-1") as up:
            addr, _ = await two_prefill(up, concurrency)
            decode = Rpc("decode-1", CLUSTER_KEY)
            long = await asked(decode, addr, 10_000)
            short = [await asked(decode, addr, 100) for _ in range(4)]
            assert {lease.instance for lease in short} == {short[0].instance}
            assert short[0].instance != long.instance
            assert [lease.queued for lease in short] == [0, 100, 200, 300]
            assert "300 tokens wait there" in short[3].why
            await decode.call(addr, ReturnPrefill(GROUP, long.lease), 30.0)
            assert (await asked(decode, addr, 100)).instance == long.instance, (
                "what is given back waits no more"
            )
            await decode.close()

    run(test())


@pytest.mark.parametrize("concurrency", [0, 8])
def test_what_decode_says_of_its_channels_counts(tmp_path: Path, concurrency: int) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0") as up:
            addr, (one, other) = await two_prefill(up, concurrency)
            decode = Rpc("decode-1", CLUSTER_KEY)
            for _ in range(4):
                lease = await asked(decode, addr, 10, channels=(other,))
                assert lease.instance == other
                assert "channel stands" in lease.why
            assert (await asked(decode, addr, 10, excluded=(other,))).instance == one
            none = await asked(decode, addr, 10, excluded=(one, other))
            assert (none.lease, none.reason) == ("", "decode leaves every prefill instance alone for now")
            await decode.close()

    run(test())


def test_prompt_tokens_over_velocity_scale_prefill(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0") as up:
            addr, _ = await two_prefill(up, 0)
            decode = Rpc("decode-1", CLUSTER_KEY)
            first = await asked(decode, addr, 1000)
            await decode.call(addr, ReturnPrefill(GROUP, first.lease, "", 1000, 100.0, 101.0), 30.0)
            leases = [await asked(decode, addr, 2000) for _ in range(4)]
            assert leases[0].tokens_s == 1000.0
            await until(lambda: prefill(up) == 4, "a queue of 8000 tokens at 1000 a second, in two seconds")
            for lease in leases:
                await decode.call(addr, ReturnPrefill(GROUP, lease.lease), 30.0)
            assert len([i for i in up.instances.values() if i.revision.role == "decode"]) == 2
            await decode.close()

    run(test())


def test_what_decode_generates_scales_decode(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, "dispatch-0") as up:
            addr, _ = await two_prefill(up, 0)
            decode = Rpc("decode-1", CLUSTER_KEY)
            names = [s.id for s in up.instances.values() if s.revision.role == "decode"]

            async def full() -> None:
                while True:
                    for name in names:
                        await decode.call(addr, Decoded(GROUP, name, 500, 0.5, 1.0), 30.0)
                    await asyncio.sleep(0.05)  # ten times their work, for a slow machine

            working = asyncio.create_task(full())
            await until(lambda: len(up.instances) - prefill(up) > 2, "two full ones are one too few")
            working.cancel()
            assert prefill(up) == 2
            await decode.close()

    run(test())


def prefill(up: Cluster) -> int:
    return sum(s.revision.role == "prefill" for s in up.instances.values())
