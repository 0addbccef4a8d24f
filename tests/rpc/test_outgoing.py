"""Kept connections over real sockets: evicted, pinged, opened ahead, and calls that find theirs dead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from prometheus_client import CollectorRegistry, generate_latest

from activator_replacement.metrics import ConnectionCollector
from kserve_ext.core.connection_cache import FOUND_BUSY_S, LOOK_S, WARM_AT_ONCE
from kserve_ext.core.ids import FunctionID
from kserve_ext.rpc import Caller, Rpc, RpcError, outgoing
from kserve_ext.wire.frames import ErrorCode
from kserve_ext.wire.messages import Ack, Leave, Ping, Report, ReportReply

KEY = b"k" * 32
Story = Callable[[Rpc, list[Rpc], list[str]], Coroutine[Any, Any, None]]


def report(n: int = 1) -> Report:
    return Report(FunctionID("f"), n, 2)


def run(story: Story, listeners: int = 3, bound: int = 2) -> None:
    async def main() -> None:
        peers = [Rpc(f"listener-{n}", KEY) for n in range(listeners)]
        caller = Rpc("caller", KEY, connections=bound)
        for peer in peers:
            peer.handle(Report, lambda m, c: ReportReply(m.incarnation, True))
        addrs = [await peer.listen("127.0.0.1") for peer in peers]
        try:
            async with asyncio.timeout(100):
                await story(caller, peers, addrs)
        finally:
            for rpc in (caller, *peers):
                await rpc.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110  nothing tells
        await asyncio.sleep(0.001)


def test_the_least_recently_used_idle_one_goes_and_nobody_is_lost() -> None:
    async def story(caller: Rpc, peers: list[Rpc], addrs: list[str]) -> None:
        lost: list[str] = []
        caller.on_peer_lost(lost.append)
        for peer in peers:
            peer.on_lost(lambda who: lost.append(who.name))
        for addr in (*addrs[:2], addrs[0], addrs[2]):
            await caller.call(addr, report())
        assert addrs[1] not in caller.outgoing.cache
        await until(lambda: peers[1].connections()["accepted"] == 0)
        assert await caller.call(addrs[1], report(5)) == ReportReply(5, True)
        await until(lambda: peers[0].connections()["accepted"] == 0)
        assert lost == []
        counts = caller.connections()
        assert (counts["kept"], counts["dials"], counts["evictions"]) == (2, 4, 2)
        assert (counts["hits"], counts["misses"]) == (1, 4)

    run(story)


def test_one_with_a_call_under_way_stays_and_the_bound_waits() -> None:
    async def story(caller: Rpc, peers: list[Rpc], addrs: list[str]) -> None:
        may_end, began = asyncio.Event(), asyncio.Event()

        async def slow(message: Leave, who: Caller) -> Ack:
            began.set()
            await may_end.wait()
            return Ack(9)

        peers[0].handle(Leave, slow)
        held = asyncio.create_task(caller.call(addrs[0], Leave(FunctionID("f"), 1)))
        await began.wait()
        await caller.call(addrs[1], report())
        await caller.call(addrs[2], report())
        assert [c.addr for c in caller.outgoing.connections()] == [addrs[0], addrs[2]]
        may_end.set()
        assert await held == Ack(9)

    run(story, bound=0)


def test_a_process_is_connected_ahead_to_those_it_will_call() -> None:
    async def story(caller: Rpc, peers: list[Rpc], addrs: list[str]) -> None:
        most = 0

        def count() -> bool:
            nonlocal most
            opening = len(caller.outgoing._warming)
            most = max(most, opening)
            return not opening

        caller.warm([*addrs, ""])
        await until(count)
        assert 0 < most <= WARM_AT_ONCE
        assert caller.connections()["kept"] == len(peers)
        for addr in addrs:
            await caller.call(addr, report())
        counts = caller.connections()
        assert (counts["hits"], counts["misses"], counts["dials"]) == (len(peers), 0, len(peers))

    run(story, listeners=2 * WARM_AT_ONCE + 1, bound=64)


def test_one_that_can_not_be_reached_keeps_no_other_waiting() -> None:
    async def story(caller: Rpc, peers: list[Rpc], addrs: list[str]) -> None:
        await peers[0].close()
        caller.warm(addrs)
        await until(lambda: not caller.outgoing._warming)
        assert set(addrs[1:]) == {c.addr for c in caller.outgoing.connections()}

    run(story, bound=64)


def test_a_request_that_was_not_written_goes_to_a_new_connection() -> None:
    async def story(caller: Rpc, peers: list[Rpc], addrs: list[str]) -> None:
        await caller.call(addrs[0], report())
        found = caller.outgoing.get(addrs[0])
        assert found is not None
        call = asyncio.create_task(caller.call(addrs[0], report(7)))
        await asyncio.sleep(0)  # the call is made, and leaves with the end of this turn of the loop
        found.drop(RpcError(ErrorCode.UNAVAILABLE, "lost", addrs[0]))
        assert await call == ReportReply(7, True)
        assert caller.connections()["repeated"] == 1

    run(story)


def test_a_request_that_was_written_is_not_repeated() -> None:
    async def story(caller: Rpc, peers: list[Rpc], addrs: list[str]) -> None:
        seen: list[int] = []

        def never(message: Leave, who: Caller) -> asyncio.Future[Ack]:
            seen.append(message.incarnation)
            return asyncio.get_running_loop().create_future()

        peers[0].handle(Leave, never)
        call = asyncio.create_task(caller.call(addrs[0], Leave(FunctionID("f"), 3)))
        await until(lambda: bool(seen))
        (accepted,) = peers[0]._accepted
        accepted.drop(RpcError(ErrorCode.UNAVAILABLE, "lost"))
        with pytest.raises(RpcError, match="connection lost") as caught:
            await call
        assert caught.value.sent
        assert seen == [3]

    run(story)


def test_a_network_that_drops_everything_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time goes a second a look: the peer's side reads nothing, so it says nothing either."""
    now = 0.0
    monkeypatch.setattr(outgoing, "monotonic", lambda: now)

    async def story(caller: Rpc, peers: list[Rpc], addrs: list[str]) -> None:
        nonlocal now
        loop = asyncio.get_running_loop()
        peers[0].handle(Leave, lambda m, c: loop.create_future())
        await caller.call(addrs[0], report())
        (accepted,) = peers[0]._accepted
        assert accepted._transport is not None
        accepted._transport.pause_reading()
        call = asyncio.create_task(caller.call(addrs[0], Leave(FunctionID("f"), 3), timeout_s=50.0))
        found = caller.outgoing.get(addrs[0])
        assert found is not None
        await asyncio.sleep(0)
        found.flush()
        for _ in range(int(FOUND_BUSY_S / LOOK_S) + 1):
            now += LOOK_S
            caller.outgoing._look(loop)
        with pytest.raises(RpcError, match="not even the answer to a ping"):
            await call
        assert caller.connections()["dead"] == 1
        assert await caller.call(addrs[0], report(4)) == ReportReply(4, True)

    run(story)


def test_a_ping_is_answered_by_whoever_listens() -> None:
    async def story(caller: Rpc, peers: list[Rpc], addrs: list[str]) -> None:
        assert isinstance(await caller.call(addrs[0], Ping()), Ack)

    run(story)


def test_metrics_name_every_counter_of_the_cache() -> None:
    """A counter that is added belongs into the metrics too."""

    async def story(caller: Rpc, peers: list[Rpc], addrs: list[str]) -> None:
        await caller.call(addrs[0], report())
        registry = CollectorRegistry()
        registry.register(ConnectionCollector(caller.connections))
        text = generate_latest(registry).decode()
        for name in caller.connections().keys() - {"bound"}:
            assert f"_{name}" in text
        assert "galaxy_rpc_connection_misses_total 1.0" in text

    run(story)


def test_who_hears_that_its_call_is_lost_may_call_again_at_once() -> None:
    async def story(caller: Rpc, peers: list[Rpc], addrs: list[str]) -> None:
        began = asyncio.Event()

        async def never(message: Leave, who: Caller) -> Ack:
            began.set()
            return await asyncio.Future()

        peers[0].handle(Leave, never)
        again: asyncio.Future[object] = asyncio.get_running_loop().create_future()

        def lost(answer: object) -> None:
            assert isinstance(answer, RpcError)
            caller.call_soon(addrs[0], report(3), again.set_result)

        caller.call_soon(addrs[0], Leave(FunctionID("f"), 1), lost, 10.0)
        await began.wait()
        (accepted,) = peers[0]._accepted
        accepted.drop(RpcError(ErrorCode.UNAVAILABLE, "the test ends it"), abort=True)
        assert await again == ReportReply(3, True)

    run(story)
