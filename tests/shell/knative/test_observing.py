"""What config-observability and config-logging switch on in whole parts while they run."""

from __future__ import annotations

import logging

import aiohttp
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from activator_replacement import server
from kserve_ext.kube.kinds import CONFIG_MAPS
from tests.support.api_server import ApiServer
from tests.support.dataplane import run
from tests.support.dispatch_cluster import until
from tests.support.knative_activator import activator, put_config, settings
from tests.support.knative_autoscaler import autoscaler
from tests.telemetry.collectors import Sent, over_grpc


def put(api: ApiServer, name: str, **data: str) -> None:
    keys = {key.replace("__", ".").replace("_", "-"): value for key, value in data.items()}
    api.put(CONFIG_MAPS, {"metadata": {"namespace": "knative-serving", "name": name}, "data": keys})


async def pushed(sent: Sent) -> set[str]:
    """The names of one export."""
    _, body = await sent.next()
    (exported,) = ExportMetricsServiceRequest.FromString(body).resource_metrics
    return {metric.name for scope in exported.scope_metrics for metric in scope.metrics}


def test_an_activator_pushes_profiles_and_lowers_its_voice() -> None:
    async def test() -> None:
        async with ApiServer() as api, over_grpc() as sent:
            put_config(api)
            async with activator(api, PROFILING_PORT="0") as made:
                put(
                    api,
                    "config-observability",
                    metrics_protocol="grpc",
                    metrics_endpoint=sent.url,
                    metrics_export_interval="20ms",
                    runtime_profiling="enabled",
                )
                assert "kn.activator.stats.conn.reachable" in await pushed(sent)
                profiling = made.observing.telemetry.profiling
                await until(lambda: profiling.port > 0, "profiles are to be had")
                url = f"http://127.0.0.1:{profiling.port}/debug/pprof/goroutine?debug=1"
                async with aiohttp.ClientSession() as session, session.get(url) as answer:
                    assert "StatSink.run" in await answer.text()
                put(api, "config-observability", runtime_profiling="sometimes")
                put(api, "config-logging", loglevel__activator="warn")
                await until(lambda: logging.getLogger().level == logging.WARNING, "the level is another")
                assert profiling.port > 0, "what is wrong changes nothing"
                put(api, "config-logging", loglevel__activator="loud")
                put(api, "config-observability")
                await until(lambda: profiling.port == 0, "and none any more")
                assert logging.getLogger().level == logging.WARNING

    level = logging.getLogger().level
    try:
        run(test(), 60)
    finally:
        logging.getLogger().setLevel(level)


def test_an_autoscaler_pushes_and_lowers_its_voice() -> None:
    async def test() -> None:
        async with ApiServer() as api, over_grpc() as sent, autoscaler(api, profiling_port=0) as made:
            put(
                api,
                "config-observability",
                metrics_protocol="grpc",
                metrics_endpoint=sent.url,
                metrics_export_interval="20ms",
                runtime_profiling="enabled",
            )
            assert "kn.workqueue.depth" in await pushed(sent)
            await until(lambda: made.telemetry.profiling.port > 0, "profiles are to be had")
            put(api, "config-logging", zap_logger_config='{"level": "error"}')
            await until(lambda: logging.getLogger().level == logging.ERROR, "the level is another")

    level = logging.getLogger().level
    try:
        run(test(), 60)
    finally:
        logging.getLogger().setLevel(level)


def test_where_metrics_are_read_is_the_configmaps_to_say() -> None:
    async def test() -> None:
        async with ApiServer() as api:
            put_config(api)
            put(
                api, "config-observability", metrics_protocol="prometheus", metrics_endpoint="127.0.0.1:29090"
            )
            async with activator(api) as made:
                assert made.metrics == ("127.0.0.1", 29090)

    run(test(), 60)


def test_status_is_for_the_pod_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with ApiServer() as api:
            put_config(api)
            async with activator(api) as made, aiohttp.ClientSession() as session:
                assert made.metrics is not None
                base = f"http://127.0.0.1:{made.metrics[1]}"
                async with session.get(f"{base}/status") as answer:
                    assert (await answer.json())["pod"] == settings().pod_name
                monkeypatch.setattr(server, "_is_here", lambda remote: False)
                async with session.get(f"{base}/status") as answer:
                    assert answer.status == 403
                async with session.get(f"{base}/metrics") as answer:
                    assert answer.status == 200

    run(test(), 60)


@pytest.mark.parametrize(
    ("remote", "here"),
    [("127.0.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("10.0.0.1", False), ("", False)],
)
def test_who_is_here(remote: str, here: bool) -> None:
    assert server._is_here(remote) == here
