"""The elector on a real socket: gains, renews, loses in time, gives back, and writes what client-go writes."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace

import pytest
import uvloop

from kserve_ext.core.election import ElectionSpec
from kserve_ext.kube.client import KubeObject
from kserve_ext.kube.kinds import LEASES
from kserve_ext.kube.lease import KubeLease
from kserve_ext.store import elector
from kserve_ext.store.elector import Elector
from tests.support.api_server import ApiServer

MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
PATH = "/apis/coordination.k8s.io/v1/namespaces/sys/leases/bucket"


class Candidate:
    """An elector, and what it said: "+" gained, "-" lost."""

    def __init__(
        self, server: ApiServer, identity: str, lease_s: float, renew_s: float, retry_s: float
    ) -> None:
        self.client = server.client()
        self.said = ""
        self._more = asyncio.Event()
        spec = ElectionSpec(identity, lease_s, renew_s, retry_s)
        keeper = KubeLease(self.client, "sys", "bucket")
        self.elector = Elector(keeper, spec, lambda: self.say("+"), lambda: self.say("-"))

    def say(self, what: str) -> None:
        assert self.elector.leading is (what == "+")
        self.said += what
        self._more.set()

    async def says(self, said: str) -> None:
        while len(self.said) < len(said):
            self._more.clear()
            await self._more.wait()
        assert self.said == said


@contextlib.asynccontextmanager
async def candidate(
    server: ApiServer, identity: str, lease_s: float = 60.0, renew_s: float = 40.0, retry_s: float = 0.01
) -> AsyncIterator[Candidate]:
    made = Candidate(server, identity, lease_s, renew_s, retry_s)
    made.elector.start()
    try:
        yield made
    finally:
        await made.elector.stop()
        await made.client.close()


def play(scenario: Callable[[ApiServer], Awaitable[None]]) -> None:
    async def main() -> None:
        async with ApiServer() as server:
            await scenario(server)

    uvloop.run(main())


def spec_of(server: ApiServer) -> KubeObject:
    lease = server.get(LEASES, "sys", "bucket")
    assert lease is not None
    spec: KubeObject = lease["spec"]
    return spec


def put(server: ApiServer, holder: str, seconds: int = 60) -> None:
    spec = {
        "holderIdentity": holder,
        "leaseDurationSeconds": seconds,
        "leaseTransitions": 3,
        "strategy": "kept",
    }
    server.put(
        LEASES, {"metadata": {"name": "bucket", "namespace": "sys", "labels": {"kept": "too"}}, "spec": spec}
    )


def test_a_new_lease_is_made_renewed_without_reading_and_given_back() -> None:
    async def scenario(server: ApiServer) -> None:
        async with candidate(server, "pod_10.0.0.1") as first:
            await first.says("+")
            made = dict(spec_of(server))
            assert (made["holderIdentity"], made["leaseDurationSeconds"]) == ("pod_10.0.0.1", 60)
            assert made["leaseTransitions"] == 0
            assert MICRO_TIME.fullmatch(made["acquireTime"])
            await server.until(lambda: server.requests.count(f"PUT {PATH}") >= 3)
            renewed = dict(spec_of(server))
            assert renewed["renewTime"] > made["renewTime"]
            assert {**renewed, "renewTime": ""} == {**made, "renewTime": ""}
            assert server.requests.count(f"GET {PATH}") == 1
        assert first.said == "+-"
        last = spec_of(server)
        assert (last["holderIdentity"], last["leaseDurationSeconds"], last["leaseTransitions"]) == ("", 1, 0)

    play(scenario)


def test_who_waits_takes_over_from_one_that_gave_back() -> None:
    async def scenario(server: ApiServer) -> None:
        async with candidate(server, "first") as first:
            await first.says("+")
            async with candidate(server, "second", retry_s=39.0) as second:
                await server.until(lambda: server.requests.count(f"GET {PATH}") >= 2)
                await first.elector.stop()
                assert second.said == ""
                second.elector.wake()
                await second.says("+")
                assert second.elector.holder == "second"
                assert spec_of(server)["leaseTransitions"] == 1

    play(scenario)


def test_an_expired_lease_is_taken_and_what_else_it_carries_is_kept() -> None:
    async def scenario(server: ApiServer) -> None:
        put(server, "dead", seconds=1)
        async with candidate(server, "me") as me:
            await me.says("+")
            lease = server.get(LEASES, "sys", "bucket")
            assert lease is not None
            assert (lease["spec"]["leaseTransitions"], lease["spec"]["strategy"]) == (4, "kept")
            assert lease["metadata"]["labels"] == {"kept": "too"}

    play(scenario)


def test_a_holder_whose_renewals_fail_loses_before_the_lease_ends_and_gains_again() -> None:
    async def scenario(server: ApiServer) -> None:
        async with candidate(server, "me", lease_s=60.0, renew_s=1.0, retry_s=0.02) as me:
            await me.says("+")
            await server.down()
            await me.says("+-")
            assert not me.elector.leading
            await server.up()
            await me.says("+-+")
            assert spec_of(server)["leaseTransitions"] == 0

    play(scenario)


def test_a_holder_that_hears_no_answer_loses_in_time() -> None:
    async def scenario(server: ApiServer) -> None:
        async with candidate(server, "me", lease_s=60.0, renew_s=1.0, retry_s=0.05) as me:
            await me.says("+")
            server.hold()
            await me.says("+-")
            server.release()

    play(scenario)


def test_a_holder_is_not_troubled_by_a_short_absence_or_a_change_by_others() -> None:
    async def scenario(server: ApiServer) -> None:
        async with candidate(server, "me") as me:
            await me.says("+")
            server.fail(503, times=3)
            await server.until(lambda: not server.failures)
            lease = server.get(LEASES, "sys", "bucket")
            assert lease is not None
            server.put(LEASES, {**lease, "metadata": {**lease["metadata"], "labels": {"by": "hand"}}})
            puts = server.requests.count(f"PUT {PATH}")
            await server.until(lambda: server.requests.count(f"PUT {PATH}") >= puts + 3)
            assert me.said == "+"

    play(scenario)


def test_a_lease_taken_by_hand_or_deleted() -> None:
    async def scenario(server: ApiServer) -> None:
        async with candidate(server, "me") as me:
            await me.says("+")
            server.remove(LEASES, "sys", "bucket")
            await server.until(lambda: server.get(LEASES, "sys", "bucket"))
            assert me.said == "+"
            put(server, "another")
            await me.says("+-")
            assert me.elector.holder == "another"
        assert spec_of(server)["holderIdentity"] == "another"  # not given back: it isn't ours

    play(scenario)


def test_a_lease_that_cannot_be_read_is_looked_at_again(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(server: ApiServer) -> None:
        spec = {"holderIdentity": "x", "leaseDurationSeconds": "many"}
        server.put(LEASES, {"metadata": {"name": "bucket", "namespace": "sys"}, "spec": spec})
        async with candidate(server, "me") as me:
            await server.until(lambda: server.requests.count(f"GET {PATH}") >= 2)
            put(server, "")
            await me.says("+")

    play(scenario)
    assert "lease bucket: a try failed" in caplog.text


def test_callbacks_that_raise_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(server: ApiServer) -> None:
        def broken() -> None:
            raise RuntimeError("broken")

        async with server.client() as client:
            spec = ElectionSpec("me", retry_s=0.01)
            elector = Elector(KubeLease(client, "sys", "bucket"), spec, broken, broken)
            elector.start()
            await server.until(lambda: server.requests.count(f"PUT {PATH}") >= 2)
            assert elector.leading
            await elector.stop()
            assert spec_of(server)["holderIdentity"] == ""

    play(scenario)
    assert caplog.text.count("RuntimeError: broken") == 2


def test_of_many_candidates_one_leads_at_a_time_and_all_do_in_turn() -> None:
    async def scenario(server: ApiServer) -> None:
        async with contextlib.AsyncExitStack() as stack:
            waiting = [await stack.enter_async_context(candidate(server, f"c{k}")) for k in range(5)]
            while waiting:
                leads = asyncio.Event()
                for one in waiting:
                    one.elector.on_gain = leads.set
                if not any(one.elector.leading for one in waiting):
                    await leads.wait()
                (leader,) = [one for one in waiting if one.elector.leading]
                waiting.remove(leader)
                await leader.elector.stop()
            assert spec_of(server)["leaseTransitions"] == 4

    play(scenario)


def test_a_lapse_is_told_to_whoever_asks_before_the_alarm_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was stopped: the clock has gone on, nothing else has run yet."""
    ahead = 0.0
    monkeypatch.setattr(elector, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + ahead))

    async def test() -> None:
        nonlocal ahead
        async with ApiServer() as server, candidate(server, "a") as a:
            await a.says("+")
            ahead += 41.0
            assert not a.elector.leading
            assert a.said == "+-"
            await a.says("+-+")

    asyncio.run(test())
