"""A whole autoscaler against a fake API server: several replicas and their buckets, stock ones among them."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import aiohttp
import pytest

from autoscaler_shim.knative import buckets, deciders
from autoscaler_shim.knative.autoscaler import Autoscaler
from autoscaler_shim.knative.settings import StatefulSet
from kserve_ext.kube.kinds import (
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    ENDPOINTS,
    LEASES,
    SERVICES,
)
from kserve_ext.store import elector
from kserve_ext.wire.stats import Stat, encode
from tests.support.api_server import ApiServer
from tests.support.knative_autoscaler import (
    NAME,
    NAMESPACE,
    SYSTEM,
    activator,
    autoscaler,
    cluster,
    message,
    put_config,
    put_revision,
    put_sks,
    replicas,
    run,
    settings,
    state,
    status,
    until,
    until_written,
)

KEY = f"{NAMESPACE}/{NAME}"
BUCKET = "autoscaler-bucket-00-of-01"


@pytest.fixture(autouse=True)
def _quick_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deciders, "TICK_S", 0.1)


def test_the_holder_points_the_buckets_service_to_itself() -> None:
    async def test() -> None:
        async with ApiServer() as api:
            old = {
                "metadata": {"namespace": SYSTEM, "name": BUCKET},
                "subsets": [{"addresses": [{"ip": "10.9.9.9"}]}],
            }
            api.put(ENDPOINTS, old)
            async with autoscaler(api) as made:
                await api.until(lambda: "ports" in str(api.get(ENDPOINTS, SYSTEM, BUCKET)))
                endpoints = api.get(ENDPOINTS, SYSTEM, BUCKET)
                service = api.get(SERVICES, SYSTEM, BUCKET)
                lease = api.get(LEASES, SYSTEM, BUCKET)
                assert endpoints is not None
                assert service is not None
                assert lease is not None
                assert endpoints["subsets"][0]["addresses"] == [{"ip": "127.0.0.1"}]
                assert service["spec"]["ports"] == [{"name": "http", "port": 8080, "targetPort": 8080}]
                assert lease["spec"]["holderIdentity"] == "autoscaler-0_127.0.0.1"
                assert made.forwarder is not None
                assert made.forwarder.holds(BUCKET)
            lease = api.get(LEASES, SYSTEM, BUCKET)
            assert lease is not None
            assert lease["spec"]["holderIdentity"] == ""

    run(test())


def test_a_holder_that_is_no_autoscaler_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with ApiServer() as api:
            lease = {"holderIdentity": "somebody", "leaseDurationSeconds": 60, "leaseTransitions": 0}
            api.put(LEASES, {"metadata": {"namespace": SYSTEM, "name": BUCKET}, "spec": lease})
            api.put(LEASES, {"metadata": {"namespace": SYSTEM, "name": "another"}, "spec": lease})
            async with autoscaler(api) as made:
                await until(lambda: "somebody" in caplog.text)
                assert made.forwarder is not None
                assert not made.forwarder.holds(BUCKET)

    run(test())


def test_a_slice_that_may_not_be_written_does_not_matter(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with ApiServer() as api:
            api.fail(403, path="endpointslices")
            async with autoscaler(api) as made:
                path = f"PATCH {ENDPOINT_SLICES.path(SYSTEM, BUCKET)}"
                await api.until(lambda: path in api.requests)
                await until(lambda: made.forwarder and made.forwarder.holds(BUCKET))

    run(test())
    assert "failed, again" not in caplog.text


def test_a_stateful_set_needs_no_leases() -> None:
    async def test() -> None:
        member = StatefulSet("autoscaler", 0, "autoscaler", "8080", "http")
        async with cluster(stateful_set=member) as (api, _, reporter):
            put_config(api, "config-leader-election", buckets="1")
            put_sks(api, put_revision(api, 0, status=state("False")))
            await api.until(lambda: status(api).get("metricsServiceName"))
            await reporter.report(1.0)
            await api.until(lambda: replicas(api) == 1)
            assert not [request for request in api.requests if "leases" in request]
        async with ApiServer() as api:
            put_config(api, "config-leader-election", buckets="2")
            async with autoscaler(api, stateful_set=member) as made:
                assert made.forwarder is not None
                names = member.buckets(2, SYSTEM, "cluster.local").names
                assert [made.forwarder.holds(name) for name in names] == [True, False]

    run(test())


def test_a_second_replica_takes_over_when_the_first_goes() -> None:
    async def test() -> None:
        async with ApiServer() as api:
            put_sks(api, put_revision(api, 0, status=state("False", desired=0)))
            async with api.client() as client:
                second = Autoscaler(settings("autoscaler-1"), client)
                async with autoscaler(api):
                    await until_written(api)
                    await second.start()
                    assert not second.reconciler.outcomes
                async with activator(second.stat_server.port) as reporter:
                    await until(lambda: second.reconciler.outcomes)
                    await reporter.report(1.0)
                    await api.until(lambda: replicas(api) == 1)
                await second.stop()

    run(test())


def test_whoever_has_lost_its_lease_scales_nothing_any_more() -> None:
    """A patch is on its way when the Lease goes to another: it ends as it may, and is not repeated."""

    async def test() -> None:
        async with ApiServer() as api:
            times = {"lease_duration": "3s", "renew_deadline": "2s", "retry_period": "1s"}
            put_config(api, "config-leader-election", **times)
            put_sks(api, put_revision(api, 0, status=state("False")))
            async with autoscaler(api) as made, activator(made.stat_server.port) as reporter:
                await api.until(lambda: status(api).get("metricsServiceName"))
                lease = api.get(LEASES, SYSTEM, BUCKET)
                assert lease is not None
                patch = f"PATCH {DEPLOYMENTS.path(NAMESPACE, NAME)}-deployment"
                api.fail(503, 1000, method="PATCH", path="/deployments/")
                await reporter.report(1.0)
                await api.until(lambda: patch in api.requests)
                thief = {**lease["spec"], "holderIdentity": "thief_127.0.0.9", "leaseDurationSeconds": 60}
                api.put(LEASES, {**lease, "spec": thief})
                await until(lambda: not made.reconciler.outcomes)
                await until(lambda: made.forwarder and not made.forwarder.holds(BUCKET))
                await made.reconciler.queue.idle()
                tried = api.requests.count(patch)
                await reporter.report(5.0)
                await until(lambda: made.stat_server.taken == 2)
                await made.reconciler.queue.idle()
                assert api.requests.count(patch) == tried
                assert not made.deciders.entries

    run(test())


def test_whoever_was_stopped_for_longer_than_its_lease_scales_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clock has gone on, and no alarm has rung yet."""
    ahead = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead)
    monkeypatch.setattr(elector, "time", clock)

    async def test() -> None:
        nonlocal ahead
        async with ApiServer() as api:
            times = {"lease_duration": "3s", "renew_deadline": "2s", "retry_period": "1s"}
            put_config(api, "config-leader-election", **times)
            api.fail(503, 1000, method="PATCH", path="/deployments/")
            notes = {"autoscaling.knative.dev/min-scale": "2"}
            put_sks(api, put_revision(api, 1, notes, status=state("True", desired=1)))
            async with autoscaler(api) as made:
                patch = f"PATCH {DEPLOYMENTS.path(NAMESPACE, NAME)}-deployment"
                await api.until(lambda: patch in api.requests)
                await made.reconciler.queue.idle()
                api.fail(503, 1000, path="/leases/")
                ahead += 3.0
                tried, runs = api.requests.count(patch), made.reconciler.queue.counters.runs
                made.reconciler.add(KEY)
                await until(lambda: made.reconciler.queue.counters.runs > runs)
                await made.reconciler.queue.idle()
                assert api.requests.count(patch) == tried
                api.failures.clear()
                await api.until(lambda: replicas(api) == 2)

    run(test())


def test_a_lease_that_nobody_else_took_costs_no_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The API server takes no renewals for longer than a Lease lasts: nothing is done meanwhile, but all is known."""
    ahead = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead)
    monkeypatch.setattr(elector, "time", clock)

    async def test() -> None:
        nonlocal ahead
        async with ApiServer() as api:
            times = {"lease_duration": "3s", "renew_deadline": "2s", "retry_period": "1s"}
            put_config(api, "config-leader-election", **times)
            notes = {"autoscaling.knative.dev/target": "10"}
            put_sks(api, put_revision(api, 1, notes, status=state("True", desired=1)))
            async with autoscaler(api) as made, activator(made.stat_server.port) as reporter:
                await reporter.report(5.0)
                await until_written(api)
                await made.reconciler.queue.idle()
                entry = made.deciders.entries[KEY]
                api.fail(503, 1000, path="/leases/")
                ahead += 3.0
                await reporter.report(95.0)
                await until(lambda: entry.decider.desired >= 10)
                await made.reconciler.queue.idle()
                assert made.deciders.entries[KEY] is entry
                assert replicas(api) == 1
                api.failures.clear()
                await api.until(lambda: replicas(api) >= 10)
                assert made.deciders.entries[KEY] is entry

    run(test())


def test_what_is_known_is_forgotten_once_somebody_else_is_seen_to_lead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ahead = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead)
    monkeypatch.setattr(elector, "time", clock)

    async def test() -> None:
        nonlocal ahead
        async with ApiServer() as api:
            put_sks(api, put_revision(api, 1, status=state("True", desired=1)))
            async with autoscaler(api) as made:
                await until_written(api)
                await until(lambda: made.forwarder and made.forwarder.holds(BUCKET))
                await made.reconciler.queue.idle()
                found = api.get(LEASES, SYSTEM, BUCKET)
                assert found is not None
                api.fail(503, 1000, path="/leases/")
                ahead += 41.0
                runs = made.reconciler.queue.counters.runs
                made.reconciler.add(KEY)
                await until(lambda: made.reconciler.queue.counters.runs > runs)
                await made.reconciler.queue.idle()
                assert KEY in made.deciders.entries
                thief = {**found["spec"], "holderIdentity": "thief_127.0.0.9"}
                api.put(LEASES, {**found, "spec": thief})
                await until(lambda: not made.deciders.entries)
                await until(lambda: made.forwarder and not made.forwarder.holds(BUCKET))
                assert made.collector.averages(KEY, "concurrency") is None
                assert not made.reconciler.outcomes

    run(test())


def test_what_another_replica_holds_is_forwarded_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with ApiServer() as api:
            put_sks(api, put_revision(api, 0, status=state("False")))
            async with autoscaler(api, host="127.0.0.2", pod="a", ip="127.0.0.2") as first:
                await until_written(api)
                # both listen on one port, as pods do
                port = first.stat_server.port
                monkeypatch.setattr(buckets, "PORT", port)
                async with autoscaler(
                    api, host="127.0.0.3", pod="b", ip="127.0.0.3", stats_port=port
                ) as second:
                    async with activator(port, "127.0.0.3") as reporter:
                        await reporter.report(1.0)
                        await api.until(lambda: replicas(api) == 1)
                    assert not second.reconciler.outcomes

    run(test())


def test_a_clock_that_is_ahead_blinds_nobody() -> None:
    async def test() -> None:
        async with cluster() as (api, made, reporter):
            put_sks(api, put_revision(api, 0, status=state("False")))
            await api.until(lambda: status(api).get("metricsServiceName"))
            milliseconds = int(time.time() * 1000)
            await reporter.ws.send_bytes(
                encode([message(1.0)._replace(stat=Stat("a", 5.0, timestamp=milliseconds))])
            )
            await reporter.report(1.0)
            await api.until(lambda: replicas(api) == 1)
            averages = made.collector.averages(KEY, "concurrency")
            assert averages is not None
            assert averages.panic > 0

    run(test())


def test_on_the_way_down_clients_are_told_to_come_again() -> None:
    async def test() -> None:
        async with ApiServer() as api, api.client() as client:
            made = Autoscaler(settings(), client)
            await made.start()
            async with activator(made.stat_server.port) as reporter:
                stopping = asyncio.ensure_future(made.stop())
                end = await reporter.ws.receive()
                assert (end.type, end.data) == (aiohttp.WSMsgType.CLOSE, 1012)
                await stopping

    run(test())
