"""A whole activator over real sockets: from zero, slots, pods that come and go, meshes, reports, drain."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Sequence

import pytest

from activator_replacement.knative import activator as activator_module
from activator_replacement.knative.activator import UNHEALTHY, Activator
from kserve_ext.kube.kinds import ENDPOINT_SLICES, REVISIONS, SERVICES
from kserve_ext.rpc import background
from kserve_ext.wire.stats import StatMessage, encode
from tests.support.api_server import ApiServer
from tests.support.dataplane import Client, get, post, run
from tests.support.dispatch_cluster import until
from tests.support.knative_activator import (
    NAMESPACE,
    Autoscaler,
    Pod,
    activator,
    put_config,
    put_endpoints,
    put_revision,
    put_slice,
    running,
    settings,
)

REVISION = "hello-00001"
HEADERS = (f"Knative-Serving-Namespace: {NAMESPACE}", f"Knative-Serving-Revision: {REVISION}")


async def connect(made: Activator) -> Client:
    return await Client.connect("127.0.0.1", made.http1[1])


async def goes_to(made: Activator, *addrs: str, revision: str = REVISION) -> None:
    """Waits until requests go there."""
    part = made.dispatcher.parts[f"{NAMESPACE}/{revision}"]  # type: ignore[index]
    await until(
        lambda: [t.addr for t in part.activation.assigned] == sorted(addrs), f"requests go to {addrs}"
    )


async def held(made: Activator, n: int) -> None:
    parts = made.dispatcher.parts
    await until(lambda: sum(part.activation.held for part in parts.values()) == n, f"{n} are held")


@pytest.mark.parametrize("slices", [False, True])
def test_from_zero(slices: bool) -> None:
    """Held while there is no pod, told to the autoscaler at once, sent when a pod answers, though it isn't ready."""

    async def test() -> None:
        async with ApiServer() as api, Autoscaler() as autoscaler, running(Pod(ready=False)) as pod:
            put_config(api)
            put_revision(api, REVISION)
            if not slices:
                api.fail(403, 1000, reason="Forbidden", path="endpointslices")
            async with activator(api, autoscaler, GALAXY_ENDPOINTS="auto") as made:
                await autoscaler.until(lambda: autoscaler.connections == 1)
                client = await connect(made)
                client.send(get("/", *HEADERS))
                await autoscaler.until(lambda: bool(autoscaler.told(REVISION)))
                assert autoscaler.told(REVISION)[0] == (1.0, 1.0)
                if slices:
                    put_slice(api, REVISION, [], [pod.addr])
                else:
                    put_endpoints(api, REVISION, [], [pod.addr])
                await pod.until(lambda: pod.probes >= 2)
                assert pod.heads == []
                pod.ready = True
                assert (await client.response())[::2] == (200, b"hello")
                assert f"\r\nHost: {pod.addr}\r\nK-Original-Host: tiny\r\n".encode() in pod.heads[0]
                assert pod.connections == 1, "the probe's connection serves the first request"

    run(test())


def test_by_host_and_unknown() -> None:
    async def test() -> None:
        async with ApiServer() as api, running(Pod()) as pod:
            put_config(api)
            put_revision(api, REVISION)
            put_endpoints(api, REVISION, [pod.addr])
            async with activator(api) as made:
                client = await connect(made)
                client.send(get(host=f"{REVISION}.{NAMESPACE}.svc.cluster.local:80"))
                assert (await client.response())[0] == 200
                for request, name in (
                    (get(host=f"other.{NAMESPACE}.svc.cluster.local"), "other"),
                    (get(host=f"{REVISION}.{NAMESPACE}.svc.cluster.example"), ""),
                    (get("/", HEADERS[0], "Knative-Serving-Revision: gone"), "gone"),
                ):
                    client.send(request)
                    status, head, body = await client.response()
                    assert status == 404
                    assert b"text/plain" in head
                    assert body.decode() == (
                        f'Error getting active endpoint: revision.serving.knative.dev "{name}" not found\n'
                    )
                api.remove(REVISIONS, NAMESPACE, REVISION)
                await until(lambda: not made.dispatcher.parts, "the revision is forgotten")
                client.send(get("/", *HEADERS))
                assert (await client.response())[0] == 404

    run(test())


def test_a_revision_that_is_deleted_while_a_request_is_held() -> None:
    async def test() -> None:
        async with ApiServer() as api:
            put_config(api)
            put_revision(api, REVISION)
            async with activator(api) as made:
                client = await connect(made)
                client.send(get("/", *HEADERS))
                await held(made, 1)
                api.remove(REVISIONS, NAMESPACE, REVISION)
                status, _, body = await client.response()
                assert (status, REVISION.encode() in body) == (404, True)
                assert made.dispatcher.held_bytes == 0
                assert not made.backends.backends

    run(test())


def test_one_request_a_pod_and_those_held_in_order() -> None:
    async def test() -> None:
        async with ApiServer() as api, running(Pod()) as pod:
            pod.gate.clear()
            put_config(api)
            put_revision(api, REVISION, containerConcurrency=1)
            put_endpoints(api, REVISION, [pod.addr])
            async with activator(api) as made:
                clients = [await connect(made) for _ in range(5)]
                for n, client in enumerate(clients):
                    client.send(get(f"/{n}", *HEADERS))
                    if n:
                        await held(made, n)
                    else:
                        await pod.until(lambda: pod.in_flight == 1)
                clients[2].close()
                await held(made, 3)
                pod.gate.set()
                for n in (0, 1, 3, 4):
                    assert (await clients[n].response())[0] == 200
                assert [head.split()[1] for head in pod.heads] == [b"/0", b"/1", b"/3", b"/4"]
                assert pod.most_in_flight == 1

    run(test())


def test_more_than_may_be_held_is_refused() -> None:
    async def test() -> None:
        async with ApiServer() as api:
            put_config(api)
            put_revision(api, REVISION, timeoutSeconds=1)
            async with activator(api, GALAXY_HELD_REQUESTS="1") as made:
                first, second = await connect(made), await connect(made)
                first.send(get("/", *HEADERS))
                await held(made, 1)
                second.send(post(b"x", *HEADERS))
                status, head, body = await second.response()
                assert (status, body) == (503, b"pending request queue full\n")
                assert b"\r\nRetry-After: 1\r\n" in head
                assert (await first.response())[::2] == (504, b"activator request timeout")
                await held(made, 0)
                assert made.dispatcher.held_bytes == 0

    run(test())


def test_a_pod_that_refuses_connections_is_left_for_another_and_asked_again() -> None:
    """Kubernetes calls both ready, and nobody asks them: with meshes ruled out that is enough."""

    async def test() -> None:
        async with ApiServer() as api, running(Pod()) as good:
            async with running(Pod()) as bad:
                addrs = [good.addr, bad.addr]
            put_config(api, mesh_compatibility_mode="disabled")
            put_revision(api, REVISION, containerConcurrency=1)
            put_endpoints(api, REVISION, addrs)
            async with activator(api) as made:
                await goes_to(made, *addrs)
                clients = [await connect(made) for _ in range(4)]
                for client in clients:
                    client.send(post(b"body", *HEADERS))
                for client in clients:
                    assert (await client.response())[::2] == (200, b"body")
                await goes_to(made, good.addr)
                assert good.most_in_flight == 1

    run(test())


def test_the_share_of_this_activator() -> None:
    async def test() -> None:
        async with ApiServer() as api, running(Pod()) as one, running(Pod()) as two:
            put_config(api)
            put_revision(api, REVISION, containerConcurrency=1)
            put_endpoints(api, REVISION, [one.addr, two.addr])
            async with activator(api) as made:
                await goes_to(made, one.addr, two.addr)
                put_endpoints(api, REVISION, ["127.0.0.1:8012", "127.0.0.2:8012"], public=True)
                await goes_to(made, min(one.addr, two.addr))
                put_endpoints(api, REVISION, ["127.0.0.2:8012"], public=True)
                put_endpoints(api, REVISION, ["127.0.0.0:8012", "127.0.0.1:8012"], public=True)
                await goes_to(made, max(one.addr, two.addr))

    run(test())


def test_through_a_mesh_by_the_services_address_and_back() -> None:
    """The pod is reached at its Service's address only, until it answers itself."""

    async def test() -> None:
        async with ApiServer() as api, running(Pod(ready=False)) as pod, running(Pod()) as service:
            put_config(api)
            put_revision(api, REVISION)
            host, _, port = service.addr.rpartition(":")
            spec = {"clusterIP": host, "ports": [{"name": "http", "port": int(port)}]}
            api.put(
                SERVICES, {"metadata": {"namespace": NAMESPACE, "name": f"{REVISION}-private"}, "spec": spec}
            )
            put_endpoints(api, REVISION, [pod.addr])
            async with activator(api) as made:
                await goes_to(made, service.addr)
                client = await connect(made)
                client.send(get("/", *HEADERS))
                assert (await client.response())[0] == 200
                assert len(service.heads) == 1
                pod.ready = True
                put_endpoints(api, REVISION, [pod.addr], ["127.0.0.1:1"])
                await goes_to(made, pod.addr)

    run(test())


def test_pod_addressability_of_a_mesh() -> None:
    async def test() -> None:
        async with ApiServer() as api, running(Pod()) as pod:
            put_config(api, enable_mesh_pod_addressability="true")
            put_revision(api, REVISION)
            put_endpoints(api, REVISION, [pod.addr])
            async with activator(api) as made:
                client = await connect(made)
                client.send(get("/", *HEADERS))
                assert (await client.response())[0] == 200
                assert f"\r\nHost: {REVISION}-private.{NAMESPACE}\r\n".encode() in pod.heads[0]
                assert b"\r\nK-Passthrough-Lb: true\r\n" in pod.heads[0]

    run(test())


def test_reports_go_on_after_the_autoscaler_was_away_and_probes_never_fail_for_it() -> None:
    async def test() -> None:
        async with ApiServer() as api, Autoscaler() as autoscaler:
            put_config(api)
            put_revision(api, REVISION)
            async with activator(api, autoscaler) as made:
                await autoscaler.until(lambda: autoscaler.connections == 1)
                await autoscaler.down()
                await until(lambda: not made.sink.reachable, "the autoscaler is away")
                client = await connect(made)
                client.send(get("/", *HEADERS))
                await held(made, 1)
                kubelet = await connect(made)
                kubelet.send(get("/", "User-Agent: kube-probe/1.36"))
                assert (await kubelet.response())[0] == 200
                await autoscaler.up()
                await autoscaler.until(lambda: bool(autoscaler.told(REVISION)))
                assert made.sink.errors >= 1

    run(test())


def test_what_fails_in_the_background_is_logged_and_begins_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "RESTART_S", 0.01)
    faults = [ValueError("one"), ValueError("two")]

    def faulty(messages: Sequence[StatMessage]) -> bytes:
        if faults:
            raise faults.pop()
        return encode(messages)

    async def test() -> None:
        async with ApiServer() as api, Autoscaler() as autoscaler, running(Pod(ready=False)) as pod:
            put_config(api)
            put_revision(api, REVISION)
            put_endpoints(api, REVISION, [], [pod.addr])
            async with activator(api, autoscaler) as made:
                await autoscaler.until(lambda: autoscaler.connections == 1)
                client = await connect(made)
                client.send(get("/", *HEADERS))
                await held(made, 1)
                monkeypatch.setattr("activator_replacement.knative.reports.reporter.encode", faulty)
                await autoscaler.down()
                await autoscaler.up()
                told = len(autoscaler.told(REVISION))
                await autoscaler.until(lambda: len(autoscaler.told(REVISION)) > told and not faults)
        failures = [record for record in caplog.records if "begins anew" in record.getMessage()]
        assert len(failures) == 2
        assert all(record.exc_info for record in failures)

    run(test())


def test_nothing_is_kept_for_ever_for_a_client_that_does_not_read() -> None:
    assert math.isfinite(activator_module.limits(settings()).stall_timeout_s)


def test_metrics() -> None:
    async def test() -> None:
        async with ApiServer() as api, Autoscaler() as autoscaler, running(Pod()) as pod:
            put_config(api)
            put_revision(api, REVISION)
            put_revision(api, "idle-00001")
            put_endpoints(api, "idle-00001", [pod.addr])
            async with activator(api, autoscaler) as made:
                await until(lambda: made.sink.reachable, "the autoscaler is there")
                client, other = await connect(made), await connect(made)
                other.send(get("/", HEADERS[0], "Knative-Serving-Revision: idle-00001"))
                assert (await other.response())[0] == 200
                client.send(get("/", *HEADERS))
                await held(made, 1)
                assert made.metrics is not None
                scrape = await Client.connect("127.0.0.1", made.metrics[1])
                scrape.send(get("/metrics"))
                _, _, body = await scrape.response()
                text = body.decode()
                place = f'{{k8s_namespace_name="{NAMESPACE}",kn_revision_name="{REVISION}"}}'
                assert f"kn_revision_request_queued{place} 1.0" in text
                assert f"kn_revision_request_active{place} 0.0" in text
                assert (
                    'kn_activator_stats_conn_reachable{otel_scope_name="knative.dev/serving/pkg/activator",'
                    'peer="autoscaler"} 1.0'
                ) in text
                revision = 'k8s_namespace_name="default",kn_configuration_name="hello",kn_revision_name'
                assert (
                    f'kn_revision_request_concurrency{{{revision}="{REVISION}",kn_service_name="hello",'
                    'otel_scope_name="knative.dev/serving/pkg/activator"}'
                ) in text
                assert (
                    'http_server_request_duration_seconds_count{http_request_method="GET",'
                    f'http_response_status_code="200",{revision}="idle-00001",kn_service_name="hello",'
                    'network_protocol_name="http",network_protocol_version="1.1",'
                    'otel_scope_name="go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"} 1.0'
                ) in text
                assert re.search('^target_info{.*service_name="activator".*} 1.0$', text, re.MULTILINE)
                asked = 'http_client_request_duration_seconds_count{http_request_method="GET",'
                assert re.search(f'^{asked}.*url_template="/api/v1/', text, re.MULTILINE)
                assert re.search(
                    "^kn_k8s_client_http_response_status_code_total{.*} [1-9]", text, re.MULTILINE
                )

    run(test())


def test_the_end() -> None:
    """Probes fail, new requests are served meanwhile, what is under way is waited for."""

    async def test() -> None:
        async with ApiServer() as api, running(Pod()) as pod:
            put_config(api)
            put_revision(api, REVISION)
            put_endpoints(api, REVISION, [pod.addr])
            async with activator(api, GALAXY_DRAIN="1s") as made:
                client, other = await connect(made), await connect(made)
                pod.gate.clear()
                client.send(get("/", *HEADERS))
                await pod.until(lambda: pod.in_flight == 1)
                ending = asyncio.create_task(made.end())
                await asyncio.sleep(0)
                other.send(get("/", "User-Agent: kube-probe/1.36"))
                status, _, body = await other.response()
                assert (status, body) == (500, f"{UNHEALTHY}\n".encode())
                other.send(get("/", *HEADERS))
                await pod.until(lambda: pod.in_flight == 2)
                await until(lambda: made.server.plane.draining, "the drain time is over")
                pod.gate.set()
                assert (await client.response())[0] == 200
                assert (await other.response())[0] == 200
                await ending

    run(test())


def test_endpoints_that_vanish_leave_nothing() -> None:
    async def test() -> None:
        async with ApiServer() as api, running(Pod()) as pod:
            put_config(api)
            put_revision(api, REVISION)
            put_slice(api, REVISION, [pod.addr], [])
            async with activator(api, GALAXY_ENDPOINTS="endpointslices") as made:
                assert made.backends.backends
                await goes_to(made, pod.addr)
                api.remove(ENDPOINT_SLICES, NAMESPACE, f"{REVISION}-private-0")
                await goes_to(made)
                put_slice(api, REVISION, [pod.addr], [])
                await goes_to(made, pod.addr)

    run(test())
