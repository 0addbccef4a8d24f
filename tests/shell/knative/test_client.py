"""The activator's HTTP/1.1 side over real sockets: probes, heads, timeouts, streams, upgrades, hand-over."""

from __future__ import annotations

import asyncio
import socket

import pytest

from activator_replacement.knative.client import KnativeClient
from activator_replacement.knative.exchange import KnativeExchange
from activator_replacement.seam import CLIENT_GONE, OK, TIMEOUT, UPSTREAM_FAILED, Exchange
from kserve_ext.core.knative.timeouts import Timeouts
from tests.support.dataplane import (
    Client,
    HoldingDispatch,
    Serve,
    dataplane,
    echo,
    get,
    instance,
    post,
    read_request,
    run,
    time_passes,
)
from tests.support.dispatch_cluster import until

UPGRADE = ("Connection: Upgrade", "Upgrade: websocket")


class Dispatch(HoldingDispatch):
    """Sets a revision's timeouts, as the dispatcher does."""

    def __init__(self, addr: str = "", timeouts: Timeouts | None = None) -> None:
        super().__init__(addr)
        self.timeouts = timeouts or Timeouts()

    def submit(self, exchange: Exchange) -> None:
        assert isinstance(exchange, KnativeExchange)
        exchange.timeouts = self.timeouts
        exchange.timeout_s = self.timeouts.total_s
        super().submit(exchange)


def activator(dispatch: HoldingDispatch, **limits: float):  # type: ignore[no-untyped-def]
    return dataplane(dispatch, client_type=KnativeClient, **limits)


def test_probes_never_reach_dispatch_and_keep_the_connection() -> None:
    async def test() -> None:
        dispatch = Dispatch()
        async with activator(dispatch) as (server, host, port, _):
            client = await Client.connect(host, port)
            client.send(get("/healthz", "K-Network-Probe: probe", "K-Network-Hash: override"))
            status, head, _ = await client.response()
            assert status == 200
            assert b"\r\nK-Network-Hash: override\r\n" in head
            client.send(get("//healthz", "K-Network-Probe: activator"))
            assert (await client.response())[::2] == (200, b"activator")
            client.send(get("/", "K-Network-Probe: queue"))
            assert (await client.response())[0] == 400
            client.send(get("/", "User-Agent: kube-probe/1.36"))
            assert (await client.response())[0] == 200
            server.plane.unhealthy = "received SIGTERM from kubelet"
            client.send(get("/any", "User-Agent: kube-probe/1.36"))
            assert (await client.response())[::2] == (500, b"received SIGTERM from kubelet\n")
            client.send(post(b"body of a probe", "K-Network-Probe: activator"))
            assert (await client.response())[0] == 200
            assert dispatch.calls == []

    run(test())


def test_what_the_pod_and_the_client_see() -> None:
    async def test() -> None:
        heads = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heads.append((await read_request(reader))[0])
            writer.write(b"HTTP/1.1 200 OK\r\nX-Request-Id: theirs\r\nContent-Length: 2\r\n\r\nok")

        async with instance(serve) as addr, activator(Dispatch(addr)) as (_, host, port, _):
            client = await Client.connect(host, port)
            client.send(get("/a", "Knative-Serving-Namespace: n", "Knative-Serving-Revision: r"))
            _, head, _ = await client.response()
            assert head == b"HTTP/1.1 200 OK\r\nX-Request-Id: theirs\r\nContent-Length: 2\r\n\r\n"
            assert (
                heads[0]
                == (
                    f"GET /a HTTP/1.1\r\nHost: {addr}\r\nK-Original-Host: tiny\r\n"
                    "Knative-Serving-Namespace: n\r\nKnative-Serving-Revision: r\r\nK-Proxy-Request: activator\r\n"
                    "X-Forwarded-For: 127.0.0.1\r\n\r\n"
                ).encode()
            )

    run(test())


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    await reader.read()


async def begins(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    await reader.read()


@pytest.mark.parametrize("timeouts", [Timeouts(0.05), Timeouts(300, 0.05), Timeouts(300, 0, 0.05)])
@pytest.mark.parametrize("held", [False, True])
def test_each_timeout_answers_504_before_the_response(timeouts: Timeouts, held: bool) -> None:
    async def test() -> None:
        async with instance(silent) as addr:
            dispatch = Dispatch("" if held else addr, timeouts)
            async with activator(dispatch) as (_, host, port, _):
                client = await Client.connect(host, port)
                client.send(get())
                status, head, body = await client.response()
                assert (status, body) == (504, b"activator request timeout")
                assert b"text/plain" in head
                assert dispatch.outcomes == [TIMEOUT]
                dispatch.addr = ""
                client.send(get(host="unknown"))
                assert (await client.response())[0] == 404

    run(test())


@pytest.mark.parametrize("timeouts", [Timeouts(10), Timeouts(300, 0, 5)])
def test_a_response_in_its_midst_is_cut_off(timeouts: Timeouts) -> None:
    async def test() -> None:
        async with instance(begins) as addr:
            dispatch = Dispatch(addr, timeouts)
            async with activator(dispatch, tick_s=1000.0) as (server, host, port, _):
                client = await Client.connect(host, port)
                client.send(get())
                await client.reader.readuntil(b"hello\r\n")
                time_passes(server, dispatch)
                assert await client.closed() == b""
                assert dispatch.outcomes == [TIMEOUT]

    run(test())


def test_a_stream_of_events_that_breaks_off_between_two_is_cut_off() -> None:
    """No event is added that says so, as there is for model calls."""
    events = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    event = b"9\r\ndata: 0\n\n\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(events + event)
        await writer.drain()
        writer.close()

    async def test() -> None:
        async with instance(serve) as addr:
            dispatch = Dispatch(addr)
            async with activator(dispatch) as (_, host, port, _):
                client = await Client.connect(host, port)
                client.send(get())
                assert (await client.reader.readuntil(event)).endswith(event)
                assert await client.closed() == b""
                assert dispatch.outcomes == [UPSTREAM_FAILED]

    run(test())


def test_writes_keep_a_response_from_being_idle() -> None:
    async def test() -> None:
        more = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                writer.write(b"1\r\nx\r\n")
                await more.wait()
                more.clear()

        async with instance(serve) as addr:
            dispatch = Dispatch(addr, Timeouts(300, 3, 4))
            async with activator(dispatch, tick_s=1000.0) as (server, host, port, _):
                client = await Client.connect(host, port)
                client.send(get())
                await client.reader.readuntil(b"x\r\n")
                [side] = server.plane.clients
                started = dispatch.exchanges[0].started
                for second in (3.5, 7.0, 10.5):
                    side.check(started + second)
                    more.set()
                    await client.reader.readuntil(b"x\r\n")
                side.check(started + 14.0)
                side.check(started + 17.9)
                assert dispatch.outcomes == []
                side.check(started + 18.0)
                assert dispatch.outcomes == [TIMEOUT]
                assert await client.closed() == b""

    run(test())


async def websocket(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Switches, then answers each line with itself, and "mute" with nothing."""
    await read_request(reader)
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    while line := await reader.readline():
        if line != b"mute\n":
            writer.write(line)


@pytest.mark.parametrize("timeouts", [Timeouts(10), Timeouts(300, 0, 5), Timeouts(300, 5)])
def test_an_upgraded_connection_obeys_the_timeouts(timeouts: Timeouts) -> None:
    async def test() -> None:
        async with instance(websocket) as addr:
            dispatch = Dispatch(addr, timeouts)
            async with activator(dispatch, tick_s=1000.0) as (server, host, port, _):
                client = await Client.connect(host, port)
                client.send(get("/", *UPGRADE))
                head = await client.reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 101 ")
                client.send(b"mute\n")
                time_passes(server, dispatch)
                assert await client.closed() == b""
                assert dispatch.outcomes == [TIMEOUT]

    run(test())


def test_an_upgraded_connection_passes_both_ways_and_ends_with_either() -> None:
    async def test() -> None:
        async with instance(websocket) as addr:
            dispatch = Dispatch(addr)
            async with activator(dispatch) as (_, host, port, _):
                client = await Client.connect(host, port)
                client.send(get("/", *UPGRADE) + b"early\n")
                await client.reader.readuntil(b"\r\n\r\n")
                assert await client.reader.readline() == b"early\n"
                client.send(b"later\n")
                assert await client.reader.readline() == b"later\n"
                client.writer.write_eof()
                assert await client.closed() == b""
                await dispatch.until(lambda: dispatch.outcomes == [OK])

    run(test())


def test_a_request_an_instance_may_have_seen_is_not_sent_again() -> None:
    async def test() -> None:
        seen = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append((await read_request(reader))[0].split()[0])

        async with instance(serve) as addr:
            dispatch = Dispatch(addr)
            dispatch.requeue = True
            async with activator(dispatch) as (_, host, port, _):
                client = await Client.connect(host, port)
                for request in (get(), post(b"x")):
                    client.send(request)
                    assert (await client.response())[0] == 502
                assert seen == [b"GET", b"POST"]
                assert "failed True" not in dispatch.calls

    run(test())


@pytest.mark.parametrize(("request_", "sent"), [(get(), 2), (post(b"x"), 1)])
def test_only_a_safe_method_is_sent_again_after_a_kept_connection_broke(request_: bytes, sent: int) -> None:
    async def test() -> None:
        seen = []
        connections = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            while True:
                seen.append(await read_request(reader))
                if connections == 1 and len(seen) == 2:
                    return
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        async with instance(serve) as addr, activator(Dispatch(addr)) as (_, host, port, _):
            client = await Client.connect(host, port)
            client.send(get())
            assert (await client.response())[0] == 200
            client.send(request_)
            assert (await client.response())[0] == (200 if sent == 2 else 502)
            assert len(seen) == 1 + sent

    run(test())


def full_duplex(answers_first: bool) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        if answers_first:
            writer.write(b"5\r\nfirst\r\n")
        while (line := await reader.readuntil(b"\r\n")) != b"0\r\n":
            chunk = await reader.readexactly(int(line, 16) + 2)
            writer.write(line + chunk)
        await reader.readuntil(b"\r\n")
        writer.write(b"0\r\nX-Sum: 7\r\n\r\n")

    return serve


def test_full_duplex_and_trailers() -> None:
    async def test() -> None:
        async with instance(full_duplex(True)) as addr, activator(Dispatch(addr)) as (_, host, port, _):
            client = await Client.connect(host, port)
            client.send(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
            await client.reader.readuntil(b"first\r\n")
            for _ in range(3):
                client.send(b"3\r\nabc\r\n")
                assert await client.reader.readexactly(8) == b"3\r\nabc\r\n"
            client.send(b"0\r\nX-Sum: 9\r\n\r\n")
            assert await client.reader.readuntil(b"\r\n\r\n") == b"0\r\nX-Sum: 7\r\n\r\n"

    run(test())


def test_one_that_reads_no_answers_is_cut_off() -> None:
    async def test() -> None:
        async with activator(Dispatch(), stall_timeout_s=0.1) as (server, host, port, _):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, (host, port))
            sending = asyncio.ensure_future(
                loop.sock_sendall(sock, get("/", "User-Agent: kube-probe/1.36") * 100_000)
            )
            await until(lambda: bool(server.plane.clients), "it is there")
            await until(lambda: not server.plane.clients, "it is cut off")
            await asyncio.gather(sending, return_exceptions=True)
            sock.close()

    run(test())


def test_how_long_a_request_may_be_quiet_is_its_revisions_to_say() -> None:
    async def test() -> None:
        dispatch = Dispatch(timeouts=Timeouts(0.4))
        async with activator(dispatch, stall_timeout_s=0.05) as (_, host, port, _):
            client = await Client.connect(host, port)
            client.send(post(b"x" * 100)[:-1])
            assert (await client.response())[0] == 504
            assert dispatch.outcomes == [TIMEOUT]

    run(test())


def test_expect_100_continue() -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await reader.readexactly(4)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n" + body)

        async with instance(serve) as addr, activator(Dispatch(addr)) as (_, host, port, _):
            client = await Client.connect(host, port)
            client.send(b"PUT / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
            assert (await client.response())[0] == 100
            client.send(b"body")
            assert (await client.response())[::2] == (200, b"body")

    run(test())


def test_a_client_that_goes_frees_its_slot() -> None:
    async def test() -> None:
        async with instance(silent) as addr:
            dispatch = Dispatch(addr)
            async with activator(dispatch) as (_, host, port, _):
                client = await Client.connect(host, port)
                client.send(get())
                await dispatch.until(lambda: "sent" in dispatch.calls)
                client.close()
                await dispatch.until(lambda: dispatch.outcomes == [CLIENT_GONE])

    run(test())


def test_large_bodies_pass() -> None:
    async def test() -> None:
        async with instance(echo) as addr, activator(Dispatch(addr)) as (_, host, port, _):
            client = await Client.connect(host, port)
            body = bytes(range(256)) * 8192
            client.send(post(body))
            assert (await client.response())[::2] == (200, body)

    run(test())


def test_absolute_form_is_served_with_the_targets_host_and_what_follows_too() -> None:
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append((await read_request(reader))[0])
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async def test() -> None:
        async with instance(serve) as addr, activator(Dispatch(addr)) as (_, host, port, _):
            client = await Client.connect(host, port)
            client.send(get("http://a.b:8080/a?b") + get("/c"))
            assert (await client.response())[0] == 204
            assert (await client.response())[0] == 204
            first, second = heads
            assert first.startswith(b"GET /a?b HTTP/1.1\r\n")
            assert b"\r\nK-Original-Host: a.b:8080\r\n" in first
            assert second.startswith(b"GET /c HTTP/1.1\r\n")
            assert b"\r\nK-Original-Host: tiny\r\n" in second

    run(test())
