"""Traces of a whole activator: what the pod is told, what the collector gets, what config-observability says."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from activator_replacement.knative.client import KnativeClient
from activator_replacement.knative.http2 import KnativeHttp2Exchange
from activator_replacement.knative.reports import tracer
from activator_replacement.knative.reports.tracer import Tracer
from activator_replacement.seam import Exchange
from kserve_ext.api.knative.observability import Tracing
from kserve_ext.api.knative.revision import read
from kserve_ext.kube.kinds import CONFIG_MAPS
from tests.support.api_server import ApiServer
from tests.support.dataplane import Client, HoldingDispatch, dataplane, get, run
from tests.support.dispatch_cluster import until
from tests.support.http2 import connect, echo2, instance2
from tests.support.knative_activator import Pod, activator, put_config, put_endpoints, put_revision, running
from tests.telemetry.collectors import over_grpc

REVISION = "hello-00001"
HEADERS = ("Knative-Serving-Namespace: default", f"Knative-Serving-Revision: {REVISION}")
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector:
    def __init__(self) -> None:
        self.status = 200
        self.asked = 0
        self.spans: list = []  # type: ignore[type-arg]
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        self.asked += 1
        assert request.path == "/v1/traces"
        assert request.content_type == "application/x-protobuf"
        read = ExportTraceServiceRequest.FromString(await request.read())
        self.spans += read.resource_spans[0].scope_spans[0].spans
        return web.Response(status=self.status)


@contextlib.asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/{path:.*}", collector.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield collector
    await runner.cleanup()


def put_tracing(api: ApiServer, url: str, rate: str, protocol: str = "http/protobuf") -> None:
    metadata = {"namespace": "knative-serving", "name": "config-observability"}
    data = {"tracing-protocol": protocol, "tracing-endpoint": url, "tracing-sampling-rate": rate}
    api.put(CONFIG_MAPS, {"metadata": metadata, "data": data})


def told(head: bytes) -> str:
    """The traceparent that the pod got."""
    lines = [line for line in head.decode().split("\r\n") if line.lower().startswith("traceparent:")]
    assert len(lines) == 1
    return lines[0].partition(": ")[2]


def test_a_trace_goes_on_or_begins_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracer, "PERIOD_S", 0.02)

    async def test() -> None:
        async with ApiServer() as api, running(Pod()) as pod, collecting() as collector:
            put_config(api)
            put_tracing(api, collector.url, "0.000000001")
            put_revision(api, REVISION)
            put_endpoints(api, REVISION, [pod.addr])
            async with activator(api) as made:
                client = await Client.connect("127.0.0.1", made.http1[1])
                client.send(get("/", *HEADERS))
                assert (await client.response())[0] == 200
                assert told(pod.heads[0]).endswith("-00"), "not one of the share that is recorded"
                client.send(get("/", *HEADERS, f"traceparent: {PARENT}"))
                assert (await client.response())[0] == 200
                _, trace_id, span_id, flags = told(pod.heads[1]).split("-")
                assert (trace_id, flags) == (PARENT[3:35], "01")
                await until(lambda: len(collector.spans) == 3, "the spans have come")
                handle, waited, proxied = collector.spans
                assert [span.name for span in collector.spans] == [
                    "handle",
                    "throttler_try",
                    "activator_proxy",
                ]
                assert handle.parent_span_id.hex() == PARENT[36:52]
                assert waited.parent_span_id == proxied.parent_span_id == handle.span_id
                assert proxied.span_id.hex() == span_id
                assert {span.trace_id.hex() for span in collector.spans} == {trace_id}
                attributes = {a.key: a.value.string_value or a.value.int_value for a in handle.attributes}
                assert attributes["kn.revision.name"] == REVISION
                assert attributes["http.response.status_code"] == 200

    run(test())


class TracingDispatch(HoldingDispatch):
    """Traces each request, as the dispatcher does."""

    def submit(self, exchange: Exchange) -> None:
        assert isinstance(exchange, KnativeHttp2Exchange)
        exchange.trace = Tracer(Tracing("grpc", "http://c", 1.0), {}).begin(exchange)
        super().submit(exchange)


def test_over_http2_the_pod_is_told_as_well() -> None:
    async def test() -> None:
        async with instance2(echo2) as made:
            dispatch = TracingDispatch(made.addr)
            async with dataplane(dispatch, client_type=KnativeClient) as (_, host, port, _):
                client = await connect(host, port)
                seen = await client.request(b"hello", ("traceparent", PARENT), ("x-a", "b"))
                assert seen.status == 200
                fields = made.peers[0].streams[1].heads[0]
                assert fields["x-a"] == "b"
                assert fields["traceparent"][:35] == PARENT[:35]
                assert fields["traceparent"][36:52] != PARENT[36:52]

    run(test())


def test_a_collector_that_takes_nothing_costs_spans_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracer, "PERIOD_S", 0.02)

    async def test() -> None:
        async with ApiServer() as api, running(Pod()) as pod, collecting() as collector:
            collector.status = 503
            put_config(api)
            put_tracing(api, collector.url, "1")
            put_revision(api, REVISION)
            put_endpoints(api, REVISION, [pod.addr])
            async with activator(api) as made:
                client = await Client.connect("127.0.0.1", made.http1[1])
                traces = made.dispatcher.tracer
                assert traces is not None
                client.send(get("/", *HEADERS))
                assert (await client.response())[0] == 200
                await until(lambda: traces.dropped == 3, "they are counted")
                monkeypatch.setattr(tracer, "MOST_UNSENT", 2)
                client.send(get("/", *HEADERS))
                assert (await client.response())[0] == 200
                assert traces.dropped == 6

    run(test())


def test_without_a_collector_a_traceparent_passes_as_it_came() -> None:
    async def test() -> None:
        async with ApiServer() as api, running(Pod()) as pod:
            put_config(api)
            put_revision(api, REVISION)
            put_endpoints(api, REVISION, [pod.addr])
            async with activator(api) as made:
                client = await Client.connect("127.0.0.1", made.http1[1])
                client.send(get("/", *HEADERS, f"traceparent: {PARENT}"))
                assert (await client.response())[0] == 200
                assert told(pod.heads[0]) == PARENT
                assert made.dispatcher.tracer is None

    run(test())


@pytest.mark.parametrize(
    ("config", "alone", "sampled", "unsampled"),
    [
        (Tracing("grpc", "http://c", 1.0), True, True, True),
        (Tracing("grpc", "http://c", 0.0), False, False, False),
        (Tracing("grpc", "http://c", 1e-12), False, True, False),
        (Tracing("stdout"), True, True, True),
    ],
)
def test_whose_spans_are_recorded(config: Tracing, alone: bool, sampled: bool, unsampled: bool) -> None:
    async def test() -> None:
        made = Tracer(config, {})
        assert made.begin(Request(None)).proxy.sampled == alone
        assert made.begin(Request(PARENT)).proxy.sampled == sampled
        assert made.begin(Request(PARENT[:-2] + "00")).proxy.sampled == unsampled

    run(test())


class Request:
    method = b"GET"

    def __init__(self, parent: str | None) -> None:
        self._parent = parent

    def header(self, name: bytes) -> bytes | None:
        return self._parent.encode() if self._parent is not None else None


def test_on_stdout_a_span_is_a_line_of_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracer, "PERIOD_S", 0.01)
    lines: list[str] = []
    printed = asyncio.Event()

    def keep(text: str) -> None:
        lines.extend(text.split("\n"))
        printed.set()

    async def test() -> None:
        made = Tracer(Tracing("stdout"), {"service.name": "activator"}, keep)
        running_ = asyncio.ensure_future(made.run())
        facts = read({"metadata": {"namespace": "default", "name": REVISION}, "spec": {"containers": []}})
        request = Request(PARENT)
        made.ended(request, made.begin(request), facts, 503)
        await printed.wait()
        running_.cancel()
        await asyncio.gather(running_, return_exceptions=True)
        assert [json.loads(line)["Name"] for line in lines] == ["handle", "throttler_try"]
        handle = json.loads(lines[0])
        assert handle["SpanContext"]["TraceID"] == PARENT[3:35]
        assert handle["Parent"]["SpanID"] == PARENT[36:52]
        assert handle["Attributes"]["http.response.status_code"] == 503
        assert handle["Status"]["Code"] == "Error"
        assert handle["Resource"] == {"service.name": "activator"}

    run(test())


@pytest.mark.parametrize("answers", [True, False])
def test_what_is_under_way_when_it_ends_is_sent_or_counted(
    answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracer, "PERIOD_S", 0.01)
    monkeypatch.setattr(tracer, "LAST_S", 60.0 if answers else 0.01)
    asked = asyncio.Event()
    exports: list[bytes] = []

    async def take(export: bytes) -> bool:
        exports.append(export)
        asked.set()
        if len(exports) == 1 or not answers:
            await asyncio.Event().wait()
        return True

    async def test() -> None:
        made = Tracer(Tracing("http/protobuf", "http://127.0.0.1:1", 1.0), {})
        monkeypatch.setattr(made._collector, "take", take)
        running_ = asyncio.ensure_future(made.run())
        facts = read({"metadata": {"namespace": "default", "name": REVISION}, "spec": {"containers": []}})
        request = Request(PARENT)
        made.ended(request, made.begin(request), facts, 503)
        await asked.wait()
        running_.cancel()
        await asyncio.gather(running_, return_exceptions=True)
        assert exports[1:] == exports[:1]
        assert made.dropped == (0 if answers else 2)

    run(test())


def test_traces_begin_and_end_as_the_configmap_changes() -> None:
    async def test() -> None:
        async with ApiServer() as api, running(Pod()) as pod, over_grpc() as collector:
            put_config(api)
            put_revision(api, REVISION)
            put_endpoints(api, REVISION, [pod.addr])
            async with activator(api) as made:
                client = await Client.connect("127.0.0.1", made.http1[1])
                client.send(get("/", *HEADERS))
                assert (await client.response())[0] == 200
                assert "traceparent" not in pod.heads[0].decode().lower()
                put_tracing(api, collector.url, "1", "grpc")
                await until(lambda: made.dispatcher.tracer is not None, "traces are taken")
                client.send(get("/", *HEADERS))
                assert (await client.response())[0] == 200
                assert told(pod.heads[1]).endswith("-01")
                put_tracing(api, "", "1", "none")
                await until(lambda: made.dispatcher.tracer is None, "none are taken any more")
                path, body = await collector.next()  # what was left was sent
                assert path == "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
                (sent,) = ExportTraceServiceRequest.FromString(body).resource_spans
                assert len(sent.scope_spans[0].spans) == 3

    run(test())
