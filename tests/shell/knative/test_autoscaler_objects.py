"""A whole autoscaler against a fake API server: configuration, what it owns and what others do to it, metrics."""

from __future__ import annotations

import re

import aiohttp
import pytest

from autoscaler_shim.knative import deciders
from autoscaler_shim.knative.autoscaler import Autoscaler
from autoscaler_shim.knative.config import ConfigStore
from kserve_ext.kube.config_map import BadConfig
from kserve_ext.kube.kinds import (
    DEPLOYMENTS,
    METRICS,
    POD_AUTOSCALERS,
    PODS,
    SERVERLESS_SERVICES,
)
from kserve_ext.wire.stats import Stat
from tests.support.api_server import ApiServer
from tests.support.knative_autoscaler import (
    LABELS,
    NAME,
    NAMESPACE,
    SYSTEM,
    QueueProxies,
    cluster,
    condition,
    put_config,
    put_pod,
    put_revision,
    put_sks,
    replicas,
    run,
    spec,
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


async def exposed(made: Autoscaler) -> str:
    """What Prometheus gets."""
    url = f"http://127.0.0.1:{made.metrics_server.port}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return await answer.text()


def test_pods_are_scraped_where_activators_may_be_out_of_the_path() -> None:
    async def test() -> None:
        async with QueueProxies() as proxies:
            proxies.answers = {f"127.0.0.{i}": Stat(f"pod-{i}", 9.0, process_uptime=1000) for i in (2, 3)}
            async with cluster(scrape_port=proxies.port) as (api, made, _):
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
                for i in (2, 3):
                    api.remove(PODS, NAMESPACE, f"pod-{i}")
                await api.until(lambda: condition(api, "Ready", METRICS)[0] == "True")
                assert (
                    'kn_autoscaler_scrape_duration_seconds_bucket{k8s_namespace_name="default"'
                    in await exposed(made)
                )

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


def test_it_does_not_start_with_a_configuration_that_cannot_be_read() -> None:
    async def test() -> None:
        async with ApiServer() as api, api.client() as client:
            put_config(api, "config-autoscaler", min_scale="many")
            store = ConfigStore(client, SYSTEM, lambda: None)
            with pytest.raises(BadConfig, match=r"config-autoscaler: .*min-scale.*many"):
                await store.start()
            await store.stop()

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


def test_a_metric_of_somebody_else_is_left_alone() -> None:
    async def test() -> None:
        async with cluster() as (api, _, _):
            api.put(
                METRICS, {"metadata": {"namespace": NAMESPACE, "name": NAME}, "spec": {"stableWindow": 1}}
            )
            put_sks(api, put_revision(api, 1))
            await api.until(lambda: condition(api, "Active") == ("False", "NotOwned"))
            assert spec(api, METRICS) == {"stableWindow": 1}

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


#: What the stock autoscaler of Knative 0.48.1 exposes of a revision with this metric (metrics-protocol: prometheus).
OF_A_REVISION = {
    "capacity_excess", "panic_mode", "pods_count", "pods_desired", "pods_not_ready_count", "pods_pending_count",
    "pods_requested", "pods_terminating_count",
}  # fmt: skip
BY_METRIC = {
    "concurrency": {"concurrency_panic", "concurrency_stable", "concurrency_target"},
    "rps": {"rps_panic_per_second", "rps_stable_per_second", "rps_target_per_second"},
}
#: And of a work queue.
OF_A_QUEUE = (
    "depth", "adds_total", "retries_total", "queue_duration_seconds_count", "process_duration_seconds_count",
    "unfinished_work_seconds", "longest_running_processor_seconds",
)  # fmt: skip


@pytest.mark.parametrize("metric", BY_METRIC)
def test_metrics_have_knatives_names(metric: str) -> None:
    async def test() -> None:
        async with cluster() as (api, made, reporter):
            notes = {"autoscaling.knative.dev/metric": metric, "autoscaling.knative.dev/min-scale": "1"}
            put_sks(api, put_revision(api, 1, notes, state("True", desired=1)))
            put_pod(api, "pod-0")
            await until_written(api)
            await reporter.report(5.0)
            await until(lambda: made.deciders.entries[KEY].decider.averages)
            text = await exposed(made)
            found = re.findall(r"^kn_revision_(\w+){(.*)} ", text, re.MULTILINE)
            assert {name for name, _ in found} == OF_A_REVISION | BY_METRIC[metric]
            assert {labels for _, labels in found} == {
                'k8s_namespace_name="default",kn_configuration_name="hello",kn_revision_name="hello-00001",'
                'kn_service_name="hello",otel_scope_name="knative.dev/serving/pkg/autoscaler"'
            }
            for name in OF_A_QUEUE:
                for queue in ("autoscaling.kpa.Reconciler", "metric.reconciler"):
                    assert f'kn_workqueue_{name}{{name="knative.dev.serving.pkg.reconciler.{queue}"' in text
            assert "galaxy_autoscaler_scale_patches_total 0.0" in text
            assert re.search('^target_info{.*service_name="autoscaler".*} 1.0$', text, re.MULTILINE)
            asked = 'http_client_request_duration_seconds_count{http_request_method="GET",'
            assert re.search(f'^{asked}.*url_template="/api/v1/', text, re.MULTILINE)
            assert re.search("^kn_k8s_client_http_response_status_code_total{.*} [1-9]", text, re.MULTILINE)

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
