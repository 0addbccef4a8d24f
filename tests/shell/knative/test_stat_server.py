"""The stat server and the forwarder over real sockets: who is let in, what is taken, and who gets it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection, Mapping

import aiohttp
import pytest
from aiohttp import web

from autoscaler_shim.knative.stats import forwarder as forwarding
from autoscaler_shim.knative.stats import server as stat_server
from autoscaler_shim.knative.stats.forwarder import Forwarder, Revision
from autoscaler_shim.knative.stats.server import StatServer
from kserve_ext.core.knative.buckets import Buckets
from kserve_ext.rpc.mutual_tls import Identity
from kserve_ext.rpc.websocket import connect
from kserve_ext.wire.stats import Stat, StatMessage, encode
from tests.support.certificates import Authority
from tests.support.knative_autoscaler import activator, message, run, until

BUCKET = "autoscaler-bucket-00-of-01"
REVISION = ("ns", "rev")


class Received:
    def __init__(self) -> None:
        self.messages: list[StatMessage] = []
        self.holds: set[str] = set()
        self.ready = True
        self.left: list[Mapping[str, Collection[Revision]]] = []


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[StatServer, Received]]:
    received = Received()
    server = StatServer(
        received.messages.extend, received.holds.__contains__, lambda: received.ready, received.left.append
    )
    await server.start("127.0.0.1", 0)
    try:
        yield server, received
    finally:
        await server.stop()


def test_who_leaves_before_the_answer_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def leave(request: web.Request) -> None:
        assert request.transport is not None
        request.transport.abort()

    monkeypatch.setattr(stat_server, "_keep_alive", leave)
    caplog.set_level("INFO")

    async def test() -> None:
        async with serving() as (server, received), aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError):
                await session.ws_connect(f"http://127.0.0.1:{server.port}/")
            assert received.left == []

    run(test())
    assert "left before it brought statistics" in caplog.text
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize(
    ("headers", "ready", "status"),
    [
        ({"User-Agent": "kube-probe/1.36"}, True, 200),
        ({"User-Agent": "x", "K-Kubelet-Probe": "queue"}, True, 200),
        ({"User-Agent": "kube-probe/1.36"}, False, 503),
        ({"User-Agent": "curl"}, True, 400),
        ({"Host": f"{BUCKET}.knative-serving.svc.cluster.local:8080"}, True, 200),
    ],
)
def test_who_comes_without_a_websocket(headers: dict[str, str], ready: bool, status: int) -> None:
    async def test() -> None:
        async with serving() as (server, received), aiohttp.ClientSession() as session:
            received.ready = ready
            async with session.get(f"http://127.0.0.1:{server.port}/any/path", headers=headers) as answer:
                assert answer.status == status

    run(test())


def test_whose_connection_ended_is_told() -> None:
    async def test() -> None:
        async with serving() as (server, received):
            async with activator(server.port) as reporter:
                await reporter.report(1.0, pod="act-0")
                await reporter.report(1.0, pod="act-1")
                await until(lambda: len(received.messages) == 2)
                assert received.left == []
            await until(lambda: received.left)
            hello = ("default", "hello-00001")
            assert received.left == [{"act-0": {hello}, "act-1": {hello}}]

    run(test())


def test_of_what_is_quiet_nothing_is_told() -> None:
    """A connection may last for months, with ever other revisions."""

    async def test() -> None:
        async with serving() as (server, received):
            async with activator(server.port) as reporter:
                for name in ("old-00001", "old-00002", "live-00003"):
                    await reporter.report(1.0, name=name)
                    await reporter.report(0.0, 0.0, name=name)
                await reporter.report(1.0, name=name)
                await until(lambda: len(received.messages) == 7)
            await until(lambda: received.left)
            assert received.left == [{"act-0": {("default", "live-00003")}}]

    run(test())


def test_a_bucket_that_is_not_ours_gets_no_websocket() -> None:
    async def test() -> None:
        async with serving() as (server, received), aiohttp.ClientSession() as session:
            url, headers = f"ws://127.0.0.1:{server.port}/", {"Host": f"{BUCKET}.knative-serving.svc"}
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await session.ws_connect(url, headers=headers)
            received.holds.add(BUCKET)
            async with session.ws_connect(url, headers=headers) as ws:
                await ws.send_bytes(encode([message(1)]))
                await until(lambda: received.messages)

    run(test())


def test_what_is_no_statistics_is_dropped_and_the_connection_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        async with serving() as (server, received), activator(server.port) as peer:
            for _ in range(3):
                await peer.ws.send_bytes(b"\x0a\xff")
                await peer.ws.send_str("text")
            await peer.ws.ping()
            await peer.report(2.0)
            await until(lambda: received.messages)
            assert received.messages == [message(2.0)]
            assert (server.malformed, server.clients) == (3, 1)

    run(test())
    complaints = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert len(complaints) == 2, "once for each kind"
    assert "WireStatMessages" in complaints[0]


def test_a_client_that_does_not_answer_the_close_does_not_hold_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoscaler_shim.knative.stats.server.SHUTDOWN_S", 0.05)

    async def test() -> None:
        async with serving() as (server, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(
                b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            await reader.readuntil(b"\r\n\r\n")
            await server.stop()
            assert (await reader.readexactly(4))[2:] == (1012).to_bytes(2, "big")
            writer.close()

    run(test())


# --- forwarding


def now_message(concurrency: float = 1.0, name: str = "rev") -> StatMessage:
    return StatMessage("ns", name, Stat("act-0", concurrency, timestamp=int(time.time())))


def test_what_is_ours_stays_here() -> None:
    async def test() -> None:
        accepted: list[StatMessage] = []
        forwarder = Forwarder(Buckets.of(1), accepted.append)
        assert not forwarder.holds(BUCKET)
        early = now_message()
        forwarder.send([early])
        assert accepted == [], "nobody is known yet"
        await forwarder.held_here(BUCKET)
        assert accepted == [early]
        forwarder.send([now_message(2)])
        assert len(accepted) == 2
        await forwarder.held_by_nobody(BUCKET)
        assert not forwarder.holds(BUCKET)
        await forwarder.stop()

    run(test())


def test_what_is_anothers_goes_there_together() -> None:
    async def test() -> None:
        async with serving() as (server, received):
            forwarder = Forwarder(Buckets.of(1), lambda _: None)
            await forwarder.held_by(BUCKET, (f"ws://127.0.0.1:{server.port}",))
            sent = [now_message(i + 1) for i in range(2500)]
            forwarder.send(sent)
            await until(lambda: len(received.messages) == 2500)
            assert received.messages == sent
            forwarder.send([now_message(0.5)])
            await until(lambda: len(received.messages) == 2501)
            assert server.clients == 1
            await forwarder.stop()

    run(test())


def test_the_service_is_tried_when_the_pod_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "ESTABLISH_S", 0.2)

    async def test() -> None:
        async with serving() as (server, received):
            forwarder = Forwarder(Buckets.of(1), lambda _: None)
            addresses = ("ws://127.0.0.1:1", f"ws://127.0.0.1:{server.port}")
            await forwarder.held_by(BUCKET, addresses)
            forwarder.send([now_message()])
            await until(lambda: received.messages)
            await forwarder.held_by(BUCKET, addresses)
            assert server.clients == 1, "the same holder is no change"
            await forwarder.stop()

    run(test())


def test_what_waited_for_a_holder_that_is_gone_goes_to_the_next() -> None:
    async def test() -> None:
        accepted: list[StatMessage] = []
        forwarder = Forwarder(Buckets.of(1), accepted.append)
        await forwarder.held_by(BUCKET, ("ws://127.0.0.1:1",))
        sent = [now_message(i + 1) for i in range(3)]
        forwarder.send(sent)
        await forwarder.held_here(BUCKET)
        assert accepted == sent

    run(test())


def test_what_waits_is_bounded_in_number_and_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "MOST_WAITING", 5)

    async def test() -> None:
        forwarder = Forwarder(Buckets.of(1), lambda _: None)
        await forwarder.held_by(BUCKET, ("ws://127.0.0.1:1",))
        forwarder.send([now_message(i + 1) for i in range(8)])
        assert forwarder.dropped == 3
        old = now_message()
        forwarder.send([old._replace(stat=old.stat._replace(timestamp=int(time.time()) - 100))])
        assert forwarder.dropped == 4, "it has gone to and fro for long enough"
        monkeypatch.setattr(forwarding, "MOST_AGE_S", -1.0)
        monkeypatch.setattr(forwarding, "AGAIN_S", 0.001)
        await until(lambda: forwarder.dropped == 9)
        await forwarder.stop()

    run(test())


def test_a_connection_that_breaks_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "AGAIN_S", 0.01)

    async def test() -> None:
        accepted: list[StatMessage] = []
        async with serving() as (server, received):
            port = server.port
            forwarder = Forwarder(Buckets.of(1), accepted.append)
            await forwarder.held_by(BUCKET, (f"ws://127.0.0.1:{port}",))
            forwarder.send([now_message(1)])
            await until(lambda: received.messages)
        again = StatServer(accepted.extend, lambda _: True, lambda: True, lambda _: None)
        await again.start("127.0.0.1", port)
        forwarder.send([now_message(2)])
        await until(lambda: accepted)
        assert accepted[0].stat.average_concurrent_requests == 2
        await forwarder.stop()
        await again.stop()

    run(test())


def test_the_holder_hears_that_an_activator_of_elsewhere_is_gone() -> None:
    async def test() -> None:
        async with serving() as (server, received):
            here: list[StatMessage] = []
            forwarder = Forwarder(Buckets.of(1), here.append)
            await forwarder.held_by(BUCKET, (f"ws://127.0.0.1:{server.port}",))
            forwarder.hung_up({"act-0": {REVISION}})
            await until(lambda: received.messages)
            (message,) = received.messages
            assert (message.namespace, message.name) == REVISION
            assert message.stat.pod_name == "act-0"
            assert message.stat.average_concurrent_requests == message.stat.request_count == 0
            await forwarder.held_here(BUCKET)
            forwarder.hung_up({"act-0": {REVISION}})
            assert here == [], "whoever holds it has been told by its own server"
            await forwarder.stop()

    run(test())


@pytest.mark.parametrize(("strict", "plain"), [(False, 101), (True, 403)])
def test_with_mutual_tls_the_kubelet_is_answered_and_who_brings_statistics_shows_who_it_is(
    strict: bool, plain: int
) -> None:
    async def test() -> None:
        authority = Authority()
        identity = Identity("ours", strict=strict)
        identity.load(*authority.issue("ours"), authority.pem)
        received = Received()
        received.ready = True
        server = StatServer(
            received.messages.extend, lambda _: True, lambda: received.ready, received.left.append, identity
        )
        await server.start("127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.port}"
        async with aiohttp.ClientSession() as session:
            async with session.get(url, headers={"User-Agent": "kube-probe/1.36"}) as answer:
                assert answer.status == 200
            upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
            async with session.get(url, headers={**upgrade, "Sec-WebSocket-Key": "A" * 22 + "=="}) as answer:
                assert answer.status == plain
            secured = await connect(session, url.replace("http", "ws"), identity)
            await secured.send_bytes(encode([now_message(3)]))
            await until(lambda: received.messages)
            await secured.close()
        await server.stop()

    run(test())
