"""A whole autoscaler against a fake API server: from zero and back, bursts, an absent server, hand-over."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from autoscaler_shim.knative import buckets, deciders
from autoscaler_shim.knative.autoscaler import Autoscaler
from kserve_ext.api.knative_conditions import rfc3339
from kserve_ext.kube.kinds import (
    DEPLOYMENTS,
    ENDPOINTS,
    LEASES,
    METRICS,
    POD_AUTOSCALERS,
    SERVERLESS_SERVICES,
    SERVICES,
)
from kserve_ext.wire.stats import Stat, encode
from tests.support.api_server import ApiServer
from tests.support.knative_autoscaler import (
    LABELS,
    LONG_AGO,
    NAME,
    NAMESPACE,
    SYSTEM,
    Activator,
    QueueProxies,
    activator,
    autoscaler,
    condition,
    message,
    put_config,
    put_pod,
    put_revision,
    put_sks,
    replicas,
    run,
    settings,
    spec,
    state,
    status,
    until,
)

KEY = f"{NAMESPACE}/{NAME}"
BUCKET = "autoscaler-bucket-00-of-01"


@pytest.fixture(autouse=True)
def _quick_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deciders, "TICK_S", 0.1)


@contextlib.asynccontextmanager
async def cluster(**changes: object) -> AsyncIterator[tuple[ApiServer, Autoscaler, Activator]]:
    async with (
        ApiServer() as api,
        autoscaler(api, **changes) as made,
        activator(made.stat_server.port) as reporter,
    ):
        yield api, made, reporter


async def until_written(api: ApiServer) -> None:
    await api.until(lambda: status(api).get("observedGeneration"))


def test_a_new_revision_becomes_active() -> None:
    async def test() -> None:
        async with cluster() as (api, _, _):
            pa = put_revision(api, 1)
            await api.until(lambda: spec(api, SERVERLESS_SERVICES) and condition(api, "Active")[0])
            assert spec(api, SERVERLESS_SERVICES)["mode"] == "Proxy"
            assert condition(api, "Active") == ("Unknown", "Queued")
            assert condition(api, "SKSReady") == ("Unknown", "NotReady")
            put_sks(api, pa)
            await api.until(lambda: spec(api, METRICS) and status(api).get("metricsServiceName"))
            assert spec(api, METRICS) == {
                "stableWindow": 60 * 10**9,
                "panicWindow": 6 * 10**9,
                "scrapeTarget": "",
            }
            put_pod(api, "pod-0")
            await api.until(lambda: condition(api, "Ready")[0] == "True")
            assert condition(api, "ScaleTargetInitialized")[0] == "True"
            assert status(api)["actualScale"] == 1
            assert replicas(api) == 1
            await api.until(lambda: condition(api, "Ready", METRICS)[0] == "True")

    run(test())


def test_a_request_at_zero_starts_a_pod_at_once() -> None:
    async def test() -> None:
        async with cluster() as (api, made, reporter):
            put_sks(api, put_revision(api, 0, status=state("False")))
            await api.until(lambda: status(api).get("metricsServiceName"))
            await reporter.report(1.0)
            await api.until(lambda: replicas(api) == 1)
            await api.until(lambda: condition(api, "Active") == ("Unknown", "Queued"))
            assert made.reconciler.outcomes[KEY].want == 1

    run(test())


def test_our_own_class_is_served_the_same_way_and_no_other() -> None:
    async def test() -> None:
        async with cluster() as (api, made, reporter):
            ours = put_revision(api, 0, status=state("False"), class_="kserve-galaxy.io")
            other = put_revision(
                api, 0, status=state("False"), class_="hpa.autoscaling.knative.dev", name="other"
            )
            put_sks(api, ours)
            put_sks(api, other)
            await api.until(lambda: status(api).get("metricsServiceName"))
            await reporter.report(1.0, name="other")
            await reporter.report(1.0)
            await api.until(lambda: replicas(api) == 1)
            assert set(made.reconciler.outcomes) == {KEY}
            assert replicas(api, "other") == 0

    run(test())


def test_idle_for_a_window_it_goes_to_zero_in_two_steps() -> None:
    async def test() -> None:
        async with cluster() as (api, _, _):
            pa = put_revision(api, 1, status=state("True"))
            put_pod(api, "pod-0")
            put_sks(api, pa)
            await api.until(lambda: replicas(api) == 0)
            writes = [r for r in api.requests if r.startswith("PATCH")]
            inactive = f"PATCH {POD_AUTOSCALERS.path(NAMESPACE, NAME)}/status"
            assert writes.index(inactive) < writes.index(
                f"PATCH {DEPLOYMENTS.path(NAMESPACE, NAME)}-deployment"
            )
            assert condition(api, "Active") == ("False", "NoTraffic")

    run(test())


def test_not_idle_for_long_enough_it_stays() -> None:
    async def test() -> None:
        async with cluster() as (api, made, _):
            pa = put_revision(api, 3, status=state("True", rfc3339(time.time())))
            put_pod(api, "pod-0")
            put_sks(api, pa)
            await api.until(lambda: replicas(api) == 1)
            await until(lambda: made.reconciler.outcomes[KEY].why == "idle-wait")
            assert condition(api, "Active")[0] == "True"

    run(test())


def test_a_burst_does_not_wait_for_the_windows() -> None:
    async def test() -> None:
        async with cluster() as (api, made, reporter):
            pa = put_revision(api, 1, {"autoscaling.knative.dev/target": "10"}, state("True", desired=1))
            put_pod(api, "pod-0")
            put_sks(api, pa)
            await api.until(lambda: status(api).get("metricsServiceName"))
            await reporter.report(5.0)
            await reporter.report(95.0)
            await api.until(lambda: replicas(api) >= 10)
            assert made.deciders.entries[KEY].decider.panicking

    run(test())


def test_with_the_api_server_away_it_decides_on_and_scales_when_it_is_back() -> None:
    async def test() -> None:
        async with cluster() as (api, made, reporter):
            put_sks(api, put_revision(api, 0, status=state("False")))
            await api.until(lambda: status(api).get("metricsServiceName"))
            await api.down()
            await reporter.report(1.0)
            decider = made.deciders.entries[KEY].decider
            await until(lambda: not (decider.desired < 1))
            await api.up()
            await api.until(lambda: replicas(api) == 1)
            await api.until(lambda: condition(api, "Active") == ("Unknown", "Queued"))

    run(test())


def test_a_scale_does_not_wait_for_other_writes() -> None:
    async def test() -> None:
        async with cluster() as (api, _, reporter):
            put_sks(api, put_revision(api, 0, status=state("False")))
            await api.until(lambda: status(api).get("metricsServiceName"))
            api.fail(503, 1000, method="PATCH", path="/status")
            await reporter.report(1.0)
            await api.until(lambda: replicas(api) == 1)
            assert condition(api, "Active")[0] == "False"

    run(test())


def test_somebody_elses_scale_is_put_right() -> None:
    async def test() -> None:
        async with cluster() as (api, _, _):
            put_sks(
                api,
                put_revision(api, 1, {"autoscaling.knative.dev/min-scale": "2"}, state("True", desired=2)),
            )
            await api.until(lambda: replicas(api) == 2)
            deployment = api.get(DEPLOYMENTS, NAMESPACE, f"{NAME}-deployment")
            assert deployment is not None
            api.put(DEPLOYMENTS, {**deployment, "spec": {"replicas": 7}})
            await api.until(lambda: replicas(api) == 2)

    run(test())


def test_a_deployment_that_comes_late_is_scaled_when_it_comes() -> None:
    async def test() -> None:
        async with cluster() as (api, _, _):
            pa = put_revision(api, 1, {"autoscaling.knative.dev/min-scale": "2"})
            deployment = api.get(DEPLOYMENTS, NAMESPACE, f"{NAME}-deployment")
            assert deployment is not None
            api.remove(DEPLOYMENTS, NAMESPACE, f"{NAME}-deployment")
            put_sks(api, pa)
            await api.until(lambda: f"GET {DEPLOYMENTS.path(NAMESPACE, NAME)}-deployment" in api.requests)
            api.put(DEPLOYMENTS, deployment)
            await api.until(lambda: replicas(api) == 2)

    run(test())


def test_pods_are_scraped_where_activators_may_be_out_of_the_path() -> None:
    async def test() -> None:
        async with QueueProxies() as proxies:
            proxies.answers = {f"127.0.0.{i}": Stat(f"pod-{i}", 9.0, process_uptime=1000) for i in (2, 3)}
            async with cluster(scrape_port=proxies.port) as (api, _, _):
                notes = {
                    "autoscaling.knative.dev/target": "10",
                    "autoscaling.knative.dev/target-burst-capacity": "0",
                }
                pa = put_revision(api, 2, notes, state("True", desired=2))
                for i in (2, 3):
                    put_pod(api, f"pod-{i}", f"127.0.0.{i}")
                put_sks(api, pa)
                await api.until(lambda: replicas(api) == 3)
                assert set(proxies.asked) == {"127.0.0.2", "127.0.0.3"}
                await api.until(lambda: spec(api, SERVERLESS_SERVICES)["mode"] == "Serve")
                proxies.answers = {}
                await api.until(lambda: condition(api, "Ready", METRICS) == ("False", "CollectionFailed"))

    run(test())


def test_a_metric_of_another_class_is_collected_too() -> None:
    async def test() -> None:
        async with QueueProxies() as proxies:
            proxies.answers = {"127.0.0.2": Stat("pod-2", 9.0)}
            async with cluster(scrape_port=proxies.port) as (api, made, _):
                put_pod(api, "pod-2", "127.0.0.2")
                windows = {"stableWindow": 60 * 10**9, "panicWindow": 6 * 10**9, "scrapeTarget": "private"}
                metadata = {"namespace": NAMESPACE, "name": NAME, "labels": LABELS}
                api.put(METRICS, {"metadata": metadata, "spec": windows})
                await api.until(lambda: condition(api, "Ready", METRICS) == ("True", ""))
                await until(lambda: made.collector.averages(KEY, "concurrency") == (9, 9))
                api.put(METRICS, {"metadata": metadata, "spec": {**windows, "stableWindow": 0}})
                await api.until(lambda: condition(api, "Ready", METRICS) == ("False", "CollectionFailed"))
                api.put(METRICS, {"metadata": {**metadata, "labels": {}}, "spec": windows})
                await api.until(lambda: "add it" in str(api.get(METRICS, NAMESPACE, NAME)))
                api.remove(METRICS, NAMESPACE, NAME)
                await until(lambda: made.collector.averages(KEY, "concurrency") is None)

    run(test())


def test_a_new_configuration_holds_at_once_and_a_bad_one_never() -> None:
    async def test() -> None:
        async with cluster() as (api, made, _):
            put_config(api, "config-autoscaler", min_scale="2")
            put_sks(api, put_revision(api, 1, status=state("True", desired=1)))
            await api.until(lambda: replicas(api) == 2)
            put_config(api, "config-autoscaler", min_scale="many")
            put_config(api, "config-autoscaler", min_scale="3")
            await api.until(lambda: replicas(api) == 3)
            assert made.config.rejected == 1

    run(test())


def test_a_bad_annotation_is_named_in_the_status() -> None:
    async def test() -> None:
        async with cluster() as (api, _, _):
            put_sks(api, put_revision(api, 1, {"autoscaling.knative.dev/window": "soon"}))
            await api.until(lambda: condition(api, "AnnotationsUnderstood")[0] == "False")

    run(test())


def test_a_service_of_somebody_else_is_left_alone() -> None:
    async def test() -> None:
        async with cluster() as (api, _, _):
            pa = put_revision(api, 1)
            stranger = {"metadata": {**pa["metadata"], "uid": "another"}}
            put_sks(api, stranger)
            await api.until(lambda: condition(api, "Active") == ("False", "NotOwned"))
            assert spec(api, SERVERLESS_SERVICES)["numActivators"] == 2

    run(test())


def test_a_revision_that_is_gone_is_forgotten() -> None:
    async def test() -> None:
        async with cluster() as (api, made, _):
            put_sks(api, put_revision(api, 1))
            await until_written(api)
            api.remove(POD_AUTOSCALERS, NAMESPACE, NAME)
            api.remove(METRICS, NAMESPACE, NAME)
            await until(lambda: not (made.reconciler.outcomes or made.deciders.entries))

    run(test())


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


def test_metrics_have_knatives_names() -> None:
    async def test() -> None:
        async with cluster() as (api, made, reporter):
            put_sks(api, put_revision(api, 1, status=state("True", desired=1)))
            put_pod(api, "pod-0")
            await until_written(api)
            await reporter.report(5.0)
            await until(lambda: made.deciders.entries[KEY].decider.averages)
            assert made._exposition is not None
            port = made._exposition.addresses[0][1]
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://127.0.0.1:{port}/metrics") as answer,
            ):
                text = await answer.text()
            for line in (
                "kn_revision_pods_count",
                "kn_revision_concurrency_stable",
                "kn_revision_panic_mode",
                "kn_revision_capacity_excess",
                "kn_autoscaler_scrape_duration_seconds",
                "galaxy_autoscaler_scale_patches",
            ):
                assert line in text
            assert 'kn_revision_name="hello-00001"' in text
            assert LONG_AGO not in text

    run(test())


def test_deployments_are_only_patched() -> None:
    """A scale is one field: nothing else of the Deployment is ours."""

    async def test() -> None:
        async with cluster() as (api, _, reporter):
            put_sks(api, put_revision(api, 0, status=state("False")))
            await api.until(lambda: status(api).get("metricsServiceName"))
            await reporter.report(1.0)
            await api.until(lambda: replicas(api) == 1)
            writes = {r for r in api.requests if "deployments" in r and not r.startswith("GET")}
            assert writes == {f"PATCH {DEPLOYMENTS.path(NAMESPACE, NAME)}-deployment"}

    run(test())
