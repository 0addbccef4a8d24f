"""Prefill leases over real rpc: held like requests, given back, passed on after the home has moved, ended with the
connection of the decode instance."""

from __future__ import annotations

import asyncio
from pathlib import Path

from kserve_ext.core.facts import Command, Hold, Model, Resources, Revision, Scale
from kserve_ext.core.ids import InstanceID, RequestID, RevisionKey
from kserve_ext.rpc import Caller, Rpc
from kserve_ext.wire.messages import LeasePrefill, PrefillLease, PrefillPeer, ReturnPrefill, WatchPrefill
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
            await decode.close()  # the decode instance dies
            await until(lambda: in_use(up) == 0, "its lease ends with its connection")

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
