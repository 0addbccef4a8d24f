"""The activator's HTTP/2 side over real sockets: probes, header blocks, timeouts, texts, no second try."""

from __future__ import annotations

import pytest

from activator_replacement.knative.client import KnativeClient
from activator_replacement.knative.http2 import KnativeHttp2Exchange
from activator_replacement.seam import CLIENT_GONE, TIMEOUT, Exchange
from kserve_ext.core.knative.timeouts import Timeouts
from kserve_ext.wire.http2 import frames
from tests.support.dataplane import Client, HoldingDispatch, dataplane, run, time_passes
from tests.support.http2 import REQUEST, connect, echo2, instance2


class Dispatch(HoldingDispatch):
    """Sets a revision's timeouts, as the dispatcher does."""

    def __init__(self, addr: str = "", timeouts: Timeouts | None = None, host: bytes = b"") -> None:
        super().__init__(addr)
        self.timeouts = timeouts or Timeouts()
        self.host = host

    def submit(self, exchange: Exchange) -> None:
        assert isinstance(exchange, KnativeHttp2Exchange)
        exchange.timeouts = self.timeouts
        exchange.host = self.host
        exchange.timeout_s = self.timeouts.total_s
        super().submit(exchange)


def activator(dispatch: HoldingDispatch, **limits: float):  # type: ignore[no-untyped-def]
    return dataplane(dispatch, client_type=KnativeClient, **limits)


def test_probes_never_reach_dispatch() -> None:
    async def test() -> None:
        dispatch = Dispatch()
        async with activator(dispatch) as (server, host, port, _):
            client = await connect(host, port)
            await client.settled()
            assert client.h2.remote_settings.max_concurrent_streams == 250
            seen = await client.request(b"", ("k-network-probe", "probe"), ("k-network-hash", "override"))
            assert (seen.status, seen.heads[0]["k-network-hash"]) == (200, "override")
            assert (await client.request(b"", ("k-network-probe", "probe"))).status == 400
            seen = await client.request(b"", ("k-network-probe", "activator"))
            assert (seen.status, bytes(seen.body)) == (200, b"activator")
            seen = await client.request(b"", ("k-network-probe", "<queue>"))
            assert (seen.status, bytes(seen.body)) == (
                400,
                b'unexpected probe header value: "&lt;queue&gt;"\n',
            )
            assert (await client.request(b"", ("user-agent", "kube-probe/1.36"))).status == 200
            assert (await client.request(b"", ("k-kubelet-probe", "queue"))).status == 200
            server.plane.unhealthy = "received SIGTERM from kubelet"
            assert (await client.request(b"", ("user-agent", "kube-probe/1.36"))).status == 500
            assert dispatch.calls == []
            assert not any(c.active for c in server.plane.clients)

    run(test())


@pytest.mark.parametrize("mesh", [b"", b"r-private.n"])
def test_header_blocks_as_the_pod_and_the_client_get_them(mesh: bytes) -> None:
    async def test() -> None:
        async with instance2(echo2) as made:
            dispatch = Dispatch(made.addr, host=mesh)
            async with activator(dispatch) as (_, host, port, _a):
                client = await connect(host, port)
                seen = await client.request(
                    b"hello",
                    ("knative-serving-namespace", "n"),
                    ("knative-serving-revision", "r"),
                    ("knative-serving-revision", "r"),
                    ("k-network-hash", "x"),
                    ("te", "trailers"),
                    ("x-request-id", "of the ingress"),
                )
                assert seen.heads == [{":status": "200", "x-path": "/v1/x"}]
                got = made.peers[0].streams[1].heads[0]
                assert got == {
                    **dict(REQUEST),
                    ":authority": mesh.decode() or made.addr,
                    "te": "trailers",
                    "x-request-id": "of the ingress",
                    "k-proxy-request": "activator",
                    "k-original-host": "tiny",
                    "x-forwarded-for": "127.0.0.1",
                    "knative-serving-namespace": "n",
                    "knative-serving-revision": "r",
                    **({"k-passthrough-lb": "true"} if mesh else {}),
                }
                (exchange,) = dispatch.exchanges
                assert isinstance(exchange, KnativeHttp2Exchange)
                assert (exchange.revision, exchange.method, exchange.version) == ("n/r", b"POST", "2.0")

    run(test())


def test_errors_have_the_texts_of_knative() -> None:
    async def test() -> None:
        dispatch = Dispatch("127.0.0.1:1")
        async with activator(dispatch) as (_, host, port, _a):
            client = await connect(host, port)
            seen = await client.request(b"x")
            assert seen.status == 502
            assert seen.heads[0]["content-type"] == "text/plain; charset=utf-8"
            seen = await client.request(pairs=[*REQUEST[:3], (":authority", "unknown.example.com")])
            assert (seen.status, bytes(seen.body)) == (404, b"no such host\n")

    run(test())


@pytest.mark.parametrize("timeouts", [Timeouts(10), Timeouts(60, 5), Timeouts(60, 0, 5)])
def test_timeouts_before_a_response(timeouts: Timeouts) -> None:
    async def test() -> None:
        async with instance2() as made:
            dispatch = Dispatch("", timeouts)
            async with activator(dispatch, tick_s=1000.0, idle_timeout_s=1e9) as (server, host, port, _):
                client = await connect(host, port)
                number = client.begin(end=True)
                await dispatch.until(lambda: bool(dispatch.held))
                time_passes(server, dispatch)
                held = await client.over(number)
                assert (held.status, bytes(held.body)) == (504, b"activator request timeout")
                dispatch.addr = made.addr
                number = client.begin(end=True)
                await made.requests(1)
                time_passes(server, dispatch)
                sent = await client.over(number)
                assert (sent.status, bytes(sent.body)) == (504, b"activator request timeout")
                await made.until(lambda: made.peers[0].streams[1].reset == frames.CANCEL)
                assert dispatch.outcomes == [TIMEOUT, TIMEOUT]

    run(test())


@pytest.mark.parametrize("timeouts", [Timeouts(10), Timeouts(60, 0, 5)])
def test_timeouts_in_the_midst_of_a_response(timeouts: Timeouts) -> None:
    async def test() -> None:
        async with instance2() as made:
            dispatch = Dispatch(made.addr, timeouts)
            async with activator(dispatch, tick_s=1000.0, idle_timeout_s=1e9) as (server, host, port, _):
                client = await connect(host, port)
                number = client.begin(end=True)
                await made.requests(1)
                made.peers[0].respond(1)
                await made.peers[0].send(1, b"some")
                await client.until(
                    lambda: number in client.streams and client.streams[number].body == b"some"
                )
                time_passes(server, dispatch)
                seen = await client.over(number)
                assert (bytes(seen.body), seen.reset) == (b"some", frames.INTERNAL_ERROR)
                await made.until(lambda: made.peers[0].streams[1].reset == frames.CANCEL)
                assert dispatch.outcomes == [TIMEOUT]
                assert not any(c.active for c in server.plane.clients)

    run(test())


@pytest.mark.parametrize(("method", "status"), [("POST", 502), ("GET", 200)])
def test_what_may_have_been_begun_is_not_sent_again(method: str, status: int) -> None:
    async def test() -> None:
        async with instance2() as made:
            dispatch = Dispatch(made.addr)
            async with activator(dispatch) as (_, host, port, _a):
                client = await connect(host, port)
                pairs = [(":method", method), *REQUEST[1:]]
                first = client.begin(end=True, pairs=pairs)
                await made.requests(1)
                made.peers[0].respond(1, end=True)
                await client.over(first)
                second = client.begin(end=True, pairs=pairs)
                await made.requests(2)
                made.peers[0].close()
                if status == 200:
                    await made.requests(3)
                    made.peers[1].respond(1, end=True)
                assert (await client.over(second)).status == status
                assert len(made.peers) == (2 if status == 200 else 1)
                assert dispatch.calls[-1] == ("finished" if status == 200 else "failed False")

    run(test())


def test_upgrade_and_a_client_that_goes() -> None:
    async def test() -> None:
        async with instance2() as made:
            dispatch = Dispatch(made.addr)
            async with activator(dispatch) as (_, host, port, _a):
                client = await Client.connect(host, port)
                client.send(
                    b"GET /up HTTP/1.1\r\nHost: tiny\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
                    b"HTTP2-Settings: AAMAAABk\r\nKnative-Serving-Namespace: n\r\nKnative-Serving-Revision: r\r\n\r\n"
                )
                assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
                await made.requests(1)
                got = made.peers[0].streams[1].heads[0]
                assert (got[":authority"], got["k-original-host"]) == (made.addr, "tiny")
                assert (got["knative-serving-namespace"], got["knative-serving-revision"]) == ("n", "r")
                client.close()
                await made.until(lambda: made.peers[0].streams[1].reset == frames.CANCEL)
                assert dispatch.outcomes == [CLIENT_GONE]

    run(test())
