"""The request log of a whole activator: what a line says, over both protocols, and that it comes and goes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from activator_replacement.knative.activator import Activator
from activator_replacement.knative.client import KnativeClient
from activator_replacement.knative.http2 import KnativeHttp2Exchange
from activator_replacement.knative.reports.request_log import RequestLog
from activator_replacement.seam import Exchange
from kserve_ext.api.knative.revision import read
from kserve_ext.kube.kinds import CONFIG_MAPS
from tests.support.api_server import ApiServer
from tests.support.dataplane import Client, HoldingDispatch, Serve, dataplane, get, run
from tests.support.dispatch_cluster import until
from tests.support.http2 import connect, echo2, instance2
from tests.support.knative_activator import Pod, activator, put_config, put_endpoints, put_revision, running

REVISION = "hello-00001"
HEADERS = ("Knative-Serving-Namespace: default", f"Knative-Serving-Revision: {REVISION}")
TEMPLATE = (
    '{{.Request.Method}} {{.Request.RequestURI}} {{.Request.Proto}} {{.Request.Host}} {{.Request.Header.Get "X-A"}} '
    "{{.Request.ContentLength}} {{.Response.Code}} {{.Response.Size}} {{.Revision.Service}}/{{.Revision.Name}}"
)


class Lines:
    def __init__(self) -> None:
        self._text = ""
        self._came = asyncio.Event()

    def write(self, text: str) -> None:
        self._text += text
        self._came.set()

    def flush(self) -> None:
        """Nothing waits."""

    async def next(self) -> str:
        while "\n" not in self._text:
            self._came.clear()
            await self._came.wait()
        line, _, self._text = self._text.partition("\n")
        return line


def put_log(api: ApiServer, **data: str) -> None:
    metadata = {"namespace": "knative-serving", "name": "config-observability"}
    named = {f"logging.{name.replace('_', '-')}": value for name, value in data.items()}
    api.put(CONFIG_MAPS, {"metadata": metadata, "data": named})


def put_on(api: ApiServer, template: str = TEMPLATE) -> None:
    put_log(api, enable_request_log="true", request_log_template=template)


@asynccontextmanager
async def logged(
    monkeypatch: pytest.MonkeyPatch, serve: Serve | None = None, template: str = TEMPLATE
) -> AsyncIterator[tuple[ApiServer, Activator, Lines]]:
    lines = Lines()
    monkeypatch.setattr(sys, "stdout", lines)
    async with ApiServer() as api, running(Pod(serve)) as pod:
        put_config(api)
        put_on(api, template)
        put_revision(api, REVISION)
        put_endpoints(api, REVISION, [pod.addr])
        async with activator(api) as made:
            yield api, made, lines


def test_a_line_for_each_request_whichever_way_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with logged(monkeypatch) as (_, made, lines):
            client = await Client.connect("127.0.0.1", made.http1[1])
            client.send(get("/a?b=c", *HEADERS, "X-A: yes"))
            assert (await client.response())[0] == 200
            assert await lines.next() == f"GET /a?b=c HTTP/1.1 tiny yes 0 200 5 hello/{REVISION}"
            client.send(
                b"POST /p HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\n"
                + "".join(f"{header}\r\n" for header in HEADERS).encode()
                + b"\r\nabc"
            )
            assert (await client.response())[0] == 200
            assert await lines.next() == f"POST /p HTTP/1.1 t  3 200 3 hello/{REVISION}"
            client.send(b"GET /h HTTP/1.1\r\nHost: t\r\nK-Network-Probe: activator\r\n\r\n")  # no line for it
            assert (await client.response())[0] == 200

    run(test())


class LoggingDispatch(HoldingDispatch):
    """Keeps a record of each request, as the dispatcher does."""

    def __init__(self, addr: str) -> None:
        super().__init__(addr)
        self._log = RequestLog(TEMPLATE)

    def submit(self, exchange: Exchange) -> None:
        assert isinstance(exchange, KnativeHttp2Exchange)
        labels = {"serving.knative.dev/service": "hello"}
        metadata = {"namespace": "default", "name": REVISION, "labels": labels}
        exchange.record = self._log.begin(exchange, read({"metadata": metadata, "spec": {"containers": []}}))
        super().submit(exchange)

    def finished(self, exchange: Exchange, outcome: int) -> None:
        assert isinstance(exchange, KnativeHttp2Exchange)
        assert exchange.record is not None
        exchange.record.ended(exchange, exchange.status, 0.5)
        super().finished(exchange, outcome)


def test_over_http2(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Lines()
    monkeypatch.setattr(sys, "stdout", lines)

    async def test() -> None:
        async with instance2(echo2) as made:
            dispatch = LoggingDispatch(made.addr)
            async with dataplane(dispatch, client_type=KnativeClient) as (_, host, port, _):
                client = await connect(host, port)
                seen = await client.request(b"hello!", ("x-a", "two"))
                assert seen.status == 200
                assert bytes(seen.body) == b"hello!"
                method, uri, proto, _, header, length, code, size, revision = (await lines.next()).split(" ")
                assert (method, uri, proto, header) == ("POST", "/v1/x", "HTTP/2.0", "two")
                assert (length, code, size, revision) == ("-1", "200", "6", f"hello/{REVISION}")

    run(test(), 100)


def test_sizes_of_what_comes_in_chunks_are_those_of_the_payload(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n2\r\n")
        writer.write(b"!!\r\n0\r\n\r\n")
        await writer.drain()

    async def test() -> None:
        async with logged(monkeypatch, serve, "{{.Response.Code}} {{.Response.Size}}") as (_, made, lines):
            client = await Client.connect("127.0.0.1", made.http1[1])
            client.send(get("/", *HEADERS))
            assert await lines.next() == "200 7"

    run(test())


def test_what_passes_in_another_protocol_is_no_body(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        for message in (b"\x81\x05hello", b"\x81\x0511111"):
            writer.write(message)
            await writer.drain()
            await asyncio.sleep(0)

    async def test() -> None:
        async with logged(monkeypatch, serve, "{{.Response.Code}} {{.Response.Size}}") as (_, made, lines):
            client = await Client.connect("127.0.0.1", made.http1[1])
            client.send(get("/", *HEADERS, "Connection: Upgrade", "Upgrade: websocket"))
            assert await lines.next() == "101 0"

    run(test())


def test_what_the_activator_answers_itself_has_a_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        template = "{{.Response.Code}} {{.Response.Size}}"
        async with logged(monkeypatch, template=template) as (api, made, lines):
            put_endpoints(api, REVISION, [])
            put_revision(api, "gone-00001", timeoutSeconds=0)
            put_revision(api, "slow-00001", timeoutSeconds=1)
            await until(lambda: len(made.dispatcher.parts) == 3, "they are known")
            client = await Client.connect("127.0.0.1", made.http1[1])
            client.send(get("/", HEADERS[0], "Knative-Serving-Revision: slow-00001"))
            status, _, body = await client.response()
            assert status == 504
            assert await lines.next() == f"504 {len(body)}"

    run(test())


def test_it_comes_and_goes_with_the_configmap_on_connections_that_stay(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with logged(monkeypatch, template="one {{.Response.Code}}") as (api, made, lines):
            client = await Client.connect("127.0.0.1", made.http1[1])

            async def ask() -> None:
                client.send(get("/", *HEADERS))
                assert (await client.response())[0] == 200

            await ask()
            assert await lines.next() == "one 200"
            put_log(api, enable_request_log="false")
            await until(lambda: made.dispatcher.request_log is None, "it is off")
            await ask()
            put_on(api, "two {{.Response.Code}}")
            await until(lambda: made.dispatcher.request_log is not None, "it is on")
            put_on(api, "{{.Nothing}}")
            await until(lambda: ".Nothing" in caplog.text, "what is wrong is named")
            assert "data[logging.request-log-template]" in caplog.text
            await ask()
            assert await lines.next() == "two 200"
            put_on(api, "{{if lt .Request.Method 3}}x{{end}}")
            await until(lambda: "two" not in repr(made.observing._config), "it is taken")
            await ask()
            assert (await lines.next()).startswith(
                "Invalid request log template: method: GET, response code: 200"
            )

    run(test())


def test_switched_off_the_classes_are_the_usual_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with logged(monkeypatch) as (api, made, _):
            put_log(api)
            await until(lambda: made.dispatcher.request_log is None, "it is off")
            client = await Client.connect("127.0.0.1", made.http1[1])
            client.send(get("/", *HEADERS))
            assert (await client.response())[0] == 200
            assert {type(known) for known in made.server.plane.clients} == {KnativeClient}

    run(test())
