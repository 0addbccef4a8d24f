"""The data plane over real sockets: bodies, holding, streams, ends of either side, limits, drain."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from typing import cast

import aiohttp
import pytest

from activator_replacement.http1 import ClientProtocol
from activator_replacement.seam import CLIENT_GONE, OK, TIMEOUT, UPSTREAM_FAILED
from activator_replacement.upstream import UpstreamProtocol, reset
from tests.support.dataplane import (
    Client,
    HoldingDispatch,
    dataplane,
    echo,
    get,
    instance,
    post,
    read_chunked,
    read_request,
    run,
)
from tests.support.dispatch_cluster import until

MB = 1 << 20


def chunked(body: bytes, size: int = 60_000) -> bytes:
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x;n=1\r\n%s\r\n" % (len(p), p) for p in parts) + b"0\r\nX-Sum: 1\r\n\r\n"


CHUNKED_HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: tiny\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_simple_exchange_and_headers() -> None:
    async def test() -> None:
        heads = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                head, _ = await read_request(reader)
                heads.append(head)
                writer.write(
                    b"HTTP/1.1 200 OK\r\nServer: x\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"
                )

        async with instance(serve) as addr:
            dispatch = HoldingDispatch(addr)
            async with dataplane(dispatch) as (server, host, port, _):
                client = await Client.connect(host, port)
                client.send(get("/a", "Knative-Serving-Namespace: n", "Knative-Serving-Revision: r"))
                status, head, body = await client.response()
                assert (status, body) == (200, b"ok")
                request_id = dispatch.exchanges[0].request_id
                assert head == (
                    b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 2\r\nx-request-id: "
                    + request_id
                    + b"\r\nx-cold-start: false\r\n\r\n"
                )
                assert heads[0] == (
                    b"GET /a HTTP/1.1\r\nHost: tiny\r\nK-Proxy-Request: activator\r\nX-Forwarded-For: 127.0.0.1\r\n"
                    b"X-Forwarded-Proto: http\r\nForwarded: for=127.0.0.1;proto=http\r\nX-Request-Id: "
                    + request_id
                    + b"\r\n\r\n"
                )
                assert dispatch.exchanges[0].revision == "n/r"
                dispatch.cold = True
                client.send(get("/b", "X-Request-Id: mine", "X-Tenant: blue"))
                _, head, _ = await client.response()
                assert b"\r\nx-request-id: mine\r\nx-cold-start: true\r\n" in head
                assert dispatch.exchanges[1].header(b"x-tenant") == b"blue"
                assert dispatch.calls == ["submit", "sent", "first_byte", "finished"] * 2
                assert (server.plane.cache.opened, server.plane.cache.reused) == (1, 1)

    run(test())


def test_every_split_of_request_and_response() -> None:
    body = b"5\r\nhello\r\n2;x=y\r\n\r\n\r\n0\r\nA: b\r\n\r\n"
    request = CHUNKED_HEAD + body
    answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body

    async def test() -> None:
        cut = 0
        seen = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                seen.append((await read_request(reader))[1])
                writer.write(answer[:cut])
                await writer.drain()
                await asyncio.sleep(0)
                writer.write(answer[cut:])

        async with instance(serve) as addr, dataplane(HoldingDispatch(addr)) as (_, host, port, _):
            client = await Client.connect(host, port)
            for cut in range(max(len(request), len(answer))):
                client.send(request[:cut])
                await asyncio.sleep(0)
                client.send(request[cut:])
                assert (await client.response())[0] == 100
                status, _, got = await client.response()
                assert (status, got) == (200, b"hello\r\n")
                assert seen[-1] == body

    run(test())


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("held", [False, True])
def test_large_bodies_both_ways(framing: str, held: bool) -> None:
    body = os.urandom(3 * MB)
    request = post(body) if framing == "length" else CHUNKED_HEAD + chunked(body)

    async def test() -> None:
        async with instance(echo) as addr:
            dispatch = HoldingDispatch("" if held else addr)
            async with dataplane(dispatch) as (_, host, port, _):
                client = await Client.connect(host, port)
                for _ in range(2):
                    client.send(request)
                    if held:
                        await dispatch.until(lambda: bool(dispatch.held))
                        assert dispatch.held[0].held_bytes < 400_000
                        dispatch.release(addr)
                        dispatch.addr = ""
                    status, _, got = await client.response()
                    assert status == 200
                    assert hashlib.sha256(got).digest() == hashlib.sha256(body).digest()

    run(test())


def test_pipelining_keeps_order() -> None:
    async def test() -> None:
        async with instance(echo) as addr, dataplane(HoldingDispatch(addr)) as (_, host, port, _):
            client = await Client.connect(host, port)
            n = 500
            client.send(b"".join(post(b"%d" % i) for i in range(n)))
            for i in range(n):
                assert (await client.response())[2] == b"%d" % i

    run(test())


def test_many_pipelined_refusals_do_not_recurse() -> None:
    async def test() -> None:
        async with dataplane(HoldingDispatch("")) as (_, host, port, _):
            client = await Client.connect(host, port)
            n = 3000
            client.send(get(host="unknown") * n)
            for _ in range(n):
                status, error = await client.error()
                assert (status, error["code"]) == (404, "not_found")

    run(test())


def test_events_pass_one_by_one() -> None:
    async def test() -> None:
        received = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            for i in range(20):
                event = b"data: %d\n\n" % i
                writer.write(b"%x\r\n%s\r\n" % (len(event), event))
                await received.wait()  # the next is only made once the client has this one
                received.clear()
            writer.write(b"0\r\n\r\n")

        async with instance(serve) as addr, dataplane(HoldingDispatch(addr)) as (_, host, port, _):
            client = await Client.connect(host, port)
            client.send(post(b"{}"))
            await client.reader.readuntil(b"\r\n\r\n")
            for i in range(20):
                assert await client.reader.readuntil(b"\n\n\r\n") == b"%x\r\ndata: %d\n\n\r\n" % (
                    9 + (i > 9),
                    i,
                )
                received.set()
            assert await client.reader.readexactly(5) == b"0\r\n\r\n"

    run(test())


def test_two_hundred_streams_at_once() -> None:
    async def test() -> None:
        all_there = asyncio.Barrier(200)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            _, body = await read_request(reader)
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            await all_there.wait()
            for i in range(30):
                event = b"data: %s-%d\n\n" % (body, i)
                writer.write(b"%x\r\n%s\r\n" % (len(event), event))
                await writer.drain()
                await asyncio.sleep(0)
            writer.write(b"0\r\n\r\n")

        async with instance(serve) as addr, dataplane(HoldingDispatch(addr)) as (_, host, port, _):

            async def one(i: int) -> None:
                client = await Client.connect(host, port)
                client.send(post(b"%d" % i))
                _, _, got = await client.response()
                assert got == b"".join(b"data: %d-%d\n\n" % (i, j) for j in range(30))
                client.close()

            await asyncio.gather(*(one(i) for i in range(200)))

    run(test())


def test_slow_reader_bounds_memory_and_stops_the_instance() -> None:
    async def test() -> None:
        sent = 0
        blocked = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await read_request(reader)
            writer.transport.set_write_buffer_limits(0)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (200 * MB))
            while sent < 200 * MB:
                writer.write(bytes(MB))
                sent += MB
                try:
                    await asyncio.wait_for(writer.drain(), 0.5)
                except TimeoutError:
                    blocked.set()
                    await writer.drain()

        async with instance(serve) as addr, dataplane(HoldingDispatch(addr)) as (server, host, port, _):
            client = await Client.connect(host, port)
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.send(get())
            await blocked.wait()
            assert sent < 60 * MB  # what sockets of three hops buffer, not what the instance would send
            (proxied,) = server.plane.clients
            assert isinstance(proxied, ClientProtocol)
            assert proxied.transport.get_write_buffer_size() < 2 * MB
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert b"200 OK" in head
            got = 0
            while got < 200 * MB:
                got += len(await client.reader.read(MB))
            assert got == 200 * MB

    run(test())


def test_slow_instance_bounds_memory() -> None:
    async def test() -> None:
        go_on = asyncio.Event()
        total = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal total
            await reader.readuntil(b"\r\n\r\n")
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            await go_on.wait()
            reader._transport.resume_reading()  # type: ignore[attr-defined]
            while total < 100 * MB:
                total += len(await reader.read(MB))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        async with instance(serve) as addr:
            dispatch = HoldingDispatch(addr)
            async with dataplane(dispatch) as (server, host, port, _):
                client = await Client.connect(host, port)
                client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (100 * MB))
                for _ in range(100):
                    client.send(bytes(MB))
                await dispatch.until(lambda: "sent" in dispatch.calls)
                (proxied,) = server.plane.clients
                assert isinstance(proxied, ClientProtocol)
                assert proxied.exchange is not None
                upstream = proxied.exchange.upstream
                assert upstream is not None
                await until(lambda: not proxied.reading, "the client is not read any more")
                assert upstream.transport.get_write_buffer_size() < 2 * MB
                go_on.set()
                assert (await client.response())[0] == 200
                assert total == 100 * MB

    run(test())


@pytest.mark.parametrize("when", ["before the head", "in the stream", "while held", "while held, unread"])
def test_client_gone_ends_the_instance_work(when: str) -> None:
    async def test() -> None:
        gone = asyncio.Event()
        begun = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            if when == "in the stream":
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
            begun.set()
            assert await reader.read() == b""
            gone.set()

        async with instance(serve) as addr:
            dispatch = HoldingDispatch("" if when.startswith("while held") else addr)
            async with dataplane(dispatch) as (_, host, port, _):
                client = await Client.connect(host, port)
                client.send(post(bytes(100_000)) if when == "while held, unread" else post(b"{}"))
                if when.startswith("while held"):
                    await dispatch.until(lambda: bool(dispatch.held))
                    client.close()
                    await dispatch.until(lambda: not dispatch.held)
                    assert dispatch.calls == ["submit", "cancelled"]
                else:
                    await begun.wait()
                    if when == "in the stream":
                        await client.reader.readuntil(b"x\r\n")
                    client.close()
                    await gone.wait()
                    await dispatch.until(lambda: not dispatch.in_flight)
                assert dispatch.outcomes == [CLIENT_GONE]

    run(test())


def test_eleven_thousand_requests_against_a_small_bound() -> None:
    async def test() -> None:
        dispatch = HoldingDispatch("", bound=50)
        async with dataplane(dispatch) as (server, host, port, _):
            keep = [await Client.connect(host, port) for _ in range(50)]
            for client in keep:
                client.send(post(b"x" * 1000))
            await dispatch.until(lambda: len(dispatch.held) == 50)
            held = sum(exchange.held_bytes for exchange in dispatch.held)
            assert 50_000 < held < 60_000

            async def flood(requests: int) -> None:
                client = await Client.connect(host, port)
                for _ in range(requests):
                    client.send(post(b"x" * 1000))
                    status, head, _ = await client.response()
                    assert status == 429
                    assert b"\r\nretry-after: 2\r\n" in head
                client.close()

            def resident() -> int:
                with open("/proc/self/statm") as file:
                    return int(file.read().split()[1]) * 4096

            await asyncio.gather(*(flood(10) for _ in range(100)))
            before = resident()
            for _ in range(10):
                await asyncio.gather(*(flood(10) for _ in range(100)))
            assert resident() - before < 16 * MB
            assert len(dispatch.held) == 50
            assert server.plane.counters.responses == {429: 11_000}

    run(test())


def test_held_requests_go_out_in_order_when_released() -> None:
    async def test() -> None:
        async with instance(echo) as addr:
            dispatch = HoldingDispatch("")
            async with dataplane(dispatch) as (_, host, port, _):
                clients = [await Client.connect(host, port) for _ in range(40)]
                for i, client in enumerate(clients):
                    client.send(post(b"%d" % i))
                await dispatch.until(lambda: len(dispatch.held) == 40)
                dispatch.release(addr)
                for i, client in enumerate(clients):
                    assert (await client.response())[2] == b"%d" % i
                assert dispatch.outcomes == [OK] * 40

    run(test())


@pytest.mark.parametrize("requeue", [False, True])
def test_instance_refuses_the_connection(requeue: bool) -> None:
    async def test() -> None:
        async with instance(echo) as addr:
            pass  # closed again: nobody listens there
        async with instance(echo) as other:
            dispatch = HoldingDispatch(addr)
            dispatch.requeue = requeue
            async with dataplane(dispatch) as (_, host, port, _):
                client = await Client.connect(host, port)
                client.send(post(b"abc"))
                if requeue:
                    await dispatch.until(lambda: bool(dispatch.held))
                    dispatch.release(other)
                    assert (await client.response())[2] == b"abc"
                    assert dispatch.exchanges[0].attempts == 2
                else:
                    status, error = await client.error()
                    assert (status, error["code"]) == (502, "instance_failed")
                    assert "refused the connection" in error["message"]
                    dispatch.addr = other
                    client.send(post(b"again"))
                    assert (await client.response())[2] == b"again"

    run(test())


@pytest.mark.parametrize("size", [3, MB])
def test_an_instance_that_is_full_is_asked_again_and_nobody_hears_of_it(size: int) -> None:
    async def test() -> None:
        async def full(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(b"HTTP/1.1 503 Full\r\nContent-Length: 4\r\nx-galaxy-full: 1\r\n\r\nfull")

        async with instance(full) as addr, instance(echo) as other:
            dispatch = HoldingDispatch(addr)
            async with dataplane(dispatch) as (_, host, port, _):
                client = await Client.connect(host, port)
                client.send(post(bytes(size)))
                if size == 3:
                    await dispatch.until(lambda: bool(dispatch.held))
                    dispatch.release(other)
                    assert (await client.response())[2] == bytes(size)
                    assert dispatch.outcomes == [OK]
                else:  # its body is gone: who asked has to ask again
                    status, head, body = await client.response()
                    assert (status, body) == (503, b"full")
                    assert b"x-galaxy-full" not in head
                    assert "full" not in dispatch.calls

    run(test())


@pytest.mark.parametrize("size", [3, MB])
def test_instance_dies_before_its_head(size: int) -> None:
    async def test() -> None:
        async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.transport.abort()

        async with instance(die) as addr, instance(echo) as other:
            dispatch = HoldingDispatch(addr)
            dispatch.requeue = True
            async with dataplane(dispatch) as (_, host, port, _):
                client = await Client.connect(host, port)
                client.send(post(bytes(size)))
                if size == 3:  # still in our hands: goes to another instance
                    await dispatch.until(lambda: bool(dispatch.held))
                    dispatch.release(other)
                    assert (await client.response())[2] == bytes(size)
                    assert "failed True" in dispatch.calls
                else:  # gone with the instance
                    status, error = await client.error()
                    assert status == 502
                    assert "closed the connection" in error["message"] or "broke" in error["message"]
                    assert "failed False" in dispatch.calls

    run(test())


def test_kept_connection_closed_under_a_request_is_retried_once() -> None:
    async def test() -> None:
        connections = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            _, body = await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            await read_request(reader)  # the keep-alive time is over just as the next request comes
            writer.transport.abort()

        async with instance(serve) as addr:
            dispatch = HoldingDispatch(addr)
            async with dataplane(dispatch) as (server, host, port, _):
                client = await Client.connect(host, port)
                for i in range(5):
                    client.send(post(b"%d" % i))
                    assert (await client.response())[2] == b"%d" % i
                assert connections == 5
                assert server.plane.counters.retried == 4
                assert dispatch.outcomes == [OK] * 5

    run(test())


STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
)


@pytest.mark.parametrize(
    ("head", "part", "ended_with_event"),
    [
        (STREAM, b"9\r\ndata: 1\n\n\r\n", True),
        (STREAM, b"", True),
        (STREAM, b"8\r\ndata: 1\n\r\n", False),  # in the middle of an event
        (STREAM, b"9\r\ndata: ", False),  # in the middle of a chunk
        (STREAM.replace(b"text/event-stream", b"text/plain"), b"9\r\ndata: 1\n\n\r\n", False),
        (STREAM.replace(b"Content-Type", b"Content-Encoding: br\r\nContent-Type"), b"1\r\n\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", b"half", False),
    ],
)
def test_instance_dies_in_mid_response(head: bytes, part: bytes, ended_with_event: bool) -> None:
    async def test() -> None:
        die = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(head + part)
            await die.wait()
            writer.transport.abort()

        async with instance(serve) as addr:
            dispatch = HoldingDispatch(addr)
            async with dataplane(dispatch) as (_, host, port, _):
                client = await Client.connect(host, port)
                client.send(post(b"{}"))
                await client.reader.readuntil(b"\r\n\r\n")
                assert await client.reader.readexactly(len(part)) == part
                die.set()
                if ended_with_event:
                    rest = await read_chunked(client.reader)
                    assert b'data: {"error": {' in rest
                    assert b"in the middle of its response" in rest
                    assert b"[DONE]" not in rest
                    assert rest.endswith(b"\n\n\r\n0\r\n\r\n")
                else:
                    assert await client.closed() == b""
                await dispatch.until(lambda: not dispatch.in_flight)
                assert dispatch.outcomes == [UPSTREAM_FAILED]

    run(test())


@pytest.mark.parametrize(("mark", "outcome"), [(b"[DONE]", OK), (b"[MORE]", CLIENT_GONE)])
def test_a_client_that_closes_after_the_end_mark_of_a_stream_has_all_of_it(mark: bytes, outcome: int) -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(STREAM + b"e\r\ndata: " + mark + b"\n\n\r\n")
            await reader.read()

        async with instance(serve) as addr:
            dispatch = HoldingDispatch(addr)
            async with dataplane(dispatch) as (_, host, port, _):
                client = await Client.connect(host, port)
                client.send(post(b"{}"))
                await client.reader.readuntil(mark + b"\n\n\r\n")
                client.close()
                await dispatch.until(lambda: not dispatch.in_flight)
                assert dispatch.outcomes == [outcome]

    run(test())


@pytest.mark.parametrize("clean", [True, False])
def test_body_that_ends_with_the_connection(clean: bool) -> None:
    async def test() -> None:
        die = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nhalf")
            await die.wait()
            if not clean:
                reset(cast("asyncio.Transport", writer.transport))

        async with instance(serve) as addr:
            dispatch = HoldingDispatch(addr)
            async with dataplane(dispatch) as (_, host, port, _):
                client = await Client.connect(host, port)
                client.send(get())
                head = await client.reader.readuntil(b"\r\n\r\n")
                assert b"\r\nConnection: close\r\n" in head
                assert await client.reader.readexactly(4) == b"half"
                die.set()
                if clean:
                    assert await client.reader.read() == b""
                    assert dispatch.outcomes == [OK]
                else:
                    with pytest.raises(ConnectionResetError):
                        await client.reader.read()
                    assert dispatch.outcomes == [UPSTREAM_FAILED]

    run(test())


@pytest.mark.parametrize(
    "answer",
    [
        b"not http at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 40_000 + b"\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ],
)
def test_instance_answers_nonsense(answer: bytes) -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(answer)
            await reader.read()

        async with instance(serve) as addr, dataplane(HoldingDispatch(addr)) as (_, host, port, _):
            client = await Client.connect(host, port)
            client.send(get())
            status, error = await client.error()
            assert status == 502
            assert error["message"].startswith("instance i-1 at ")

    run(test())


@pytest.mark.parametrize("held", [True, False])
def test_deadline(held: bool) -> None:
    async def test() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await read_request(reader)  # if it comes before the deadline
                assert await reader.read() == b""
            finally:
                closed.set()

        closed = asyncio.Event()
        async with instance(silent) as addr:
            dispatch = HoldingDispatch("" if held else addr)
            dispatch.timeout_s = 0.1
            async with dataplane(dispatch) as (_, host, port, _):
                client = await Client.connect(host, port)
                client.send(get())
                status, error = await client.error()
                assert (status, error["code"]) == (504, "timeout")
                assert dispatch.outcomes == [TIMEOUT]
                assert dispatch.calls[-1] == ("cancelled" if held else "finished")
                if not held:
                    await closed.wait()

    run(test())


@pytest.mark.parametrize("sent", [b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\nX: "])
def test_slow_head_is_cut_off(sent: bytes) -> None:
    async def test() -> None:
        async with dataplane(HoldingDispatch(""), head_timeout_s=0.1) as (_, host, port, _):
            client = await Client.connect(host, port)
            client.send(sent)
            drip = asyncio.ensure_future(_drip(client))
            status, error = await client.error()
            assert (status, error["code"]) == (408, "request_timeout")
            drip.cancel()
            assert await client.closed() == b""

    run(test())


async def _drip(client: Client) -> None:
    """A byte now and then does not make a head that never ends acceptable."""
    while not client.writer.is_closing():
        await asyncio.sleep(0.02)
        client.writer.write(b"x")


def test_slow_body_is_cut_off() -> None:
    async def test() -> None:
        dispatch = HoldingDispatch("")
        async with dataplane(dispatch, stall_timeout_s=0.1) as (_, host, port, _):
            client = await Client.connect(host, port)
            client.send(post(b"x" * 100)[:-1])
            assert (await client.error())[0] == 408
            assert dispatch.outcomes == [CLIENT_GONE]

    run(test())


def test_idle_connection_is_closed() -> None:
    async def test() -> None:
        async with dataplane(HoldingDispatch(""), idle_timeout_s=0.1) as (_, host, port, _):
            client = await Client.connect(host, port)
            assert await client.closed() == b""

    run(test())


def test_reader_that_never_reads_is_cut_off() -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (100 * MB) + bytes(100 * MB))
            await reader.read()

        async with instance(serve) as addr:
            dispatch = HoldingDispatch(addr)
            async with dataplane(dispatch, stall_timeout_s=0.2) as (_, host, port, _):
                client = await Client.connect(host, port)
                client.writer.transport.pause_reading()  # type: ignore[attr-defined]
                client.send(get())
                await dispatch.until(lambda: bool(dispatch.outcomes))
                assert dispatch.outcomes == [CLIENT_GONE]

    run(test())


def test_too_many_connections() -> None:
    async def test() -> None:
        async with dataplane(HoldingDispatch(""), connections=3) as (server, host, port, _):
            kept = [await Client.connect(host, port) for _ in range(3)]
            over = await Client.connect(host, port)
            status, error = await over.error()
            assert (status, error["code"]) == (503, "no_capacity")
            assert server.plane.counters.refused_connections == 1
            for client in kept:
                client.close()

    run(test())


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40_000, 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", 431),
        (CHUNKED_HEAD + b"zz\r\n", 400),
    ],
)
def test_bad_requests(sent: bytes, status: int) -> None:
    async def test() -> None:
        dispatch = HoldingDispatch("")
        async with dataplane(dispatch) as (_, host, port, _):
            client = await Client.connect(host, port)
            client.send(sent + get())
            got, error = await client.error()
            assert got == status
            assert error["message"]
            assert await client.closed() == b""  # nothing after it is looked at
            assert dispatch.calls == []

    run(test())


def test_bad_chunk_in_flight_closes_both_sides() -> None:
    async def test() -> None:
        gone = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"5\r\nhello\r\n")
            assert await reader.read() == b""
            gone.set()

        async with instance(serve) as addr:
            dispatch = HoldingDispatch(addr)
            async with dataplane(dispatch) as (_, host, port, _):
                client = await Client.connect(host, port)
                client.send(CHUNKED_HEAD + b"5\r\nhello\r\n")
                await dispatch.until(lambda: "sent" in dispatch.calls)
                client.send(b"-5\r\n")
                assert (await client.error())[0] == 400
                await gone.wait()

    run(test())


def test_expect_continue_is_the_instances_to_answer() -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"Expect: 100-continue" in head
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await reader.readexactly(5)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + body)

        async with instance(serve) as addr:
            dispatch = HoldingDispatch("")
            async with dataplane(dispatch) as (_, host, port, _):
                client = await Client.connect(host, port)
                client.send(post(b"hello", "Expect: 100-continue")[:-5])
                await dispatch.until(lambda: bool(dispatch.held))
                dispatch.release(addr)
                assert (await client.response())[0] == 100
                client.send(b"hello")
                assert (await client.response())[2] == b"hello"

    run(test())


def test_answer_before_the_body_is_read_ends_the_connection() -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\nno")
            await reader.read()

        async with instance(serve) as addr, dataplane(HoldingDispatch(addr)) as (_, host, port, _):
            client = await Client.connect(host, port)
            client.send(post(b"hello", "Expect: 100-continue")[:-5])
            assert (await client.response())[2] == b"no"
            assert await client.closed() == b""

    run(test())


def test_refusal_reaches_a_client_that_still_sends() -> None:
    async def test() -> None:
        async with dataplane(HoldingDispatch("", bound=0)) as (_, host, port, _):
            client = await Client.connect(host, port)
            client.send(post(bytes(3 * MB)))
            status, head, _ = await client.response()
            assert status == 429
            assert b"\r\nconnection: close\r\n" in head

    run(test())


def test_head_and_bodiless_answers() -> None:
    async def test() -> None:
        answers = [
            b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        ]

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for answer in answers:
                await read_request(reader)
                writer.write(answer)
            await reader.read()

        async with instance(serve) as addr, dataplane(HoldingDispatch(addr)) as (server, host, port, _):
            client = await Client.connect(host, port)
            for i, status in enumerate([200, 304, 204, 200]):
                client.send(get().replace(b"GET", b"HEAD" if i in (0, 3) else b"GET"))
                head = await client.reader.readuntil(b"\r\n\r\n")
                assert int(head[9:12]) == status
            assert server.plane.cache.opened == 1
            client.send(get(host="unknown").replace(b"GET", b"HEAD"))
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 404")
            client.writer.write_eof()
            assert await client.closed() == b""

    run(test())


def test_http10_client() -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"GET / HTTP/1.0\r\n")
            writer.write(b"HTTP/1.0 200 OK\r\n\r\nold")

        async with instance(serve) as addr, dataplane(HoldingDispatch(addr)) as (_, host, port, _):
            client = await Client.connect(host, port)
            client.send(b"GET / HTTP/1.0\r\n\r\n")
            status, _, body = await client.response()
            assert (status, body) == (200, b"old")

    run(test())


def test_upgrade_becomes_a_pipe() -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"\r\nConnection: Upgrade\r\n" in head
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhi"
            )
            while data := await reader.read(1 << 16):
                writer.write(data.upper())
                await writer.drain()
            closed.set()

        closed = asyncio.Event()
        async with instance(serve) as addr:
            dispatch = HoldingDispatch(addr)
            async with dataplane(dispatch) as (_, host, port, _):
                client = await Client.connect(host, port)
                client.send(get("/ws", "Connection: Upgrade", "Upgrade: websocket") + b"early")
                assert (await client.response())[0] == 101
                assert await client.reader.readexactly(7) == b"hiEARLY"
                client.send(b"GET / HTTP/1.1\r\n\r\n\x00\xff")
                assert await client.reader.readexactly(20) == b"GET / HTTP/1.1\r\n\r\n\x00\xff"
                client.close()
                await closed.wait()
                await dispatch.until(lambda: not dispatch.in_flight)

    run(test())


def test_upgrade_ended_by_the_instance() -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nbye"
            )

        async with instance(serve) as addr, dataplane(HoldingDispatch(addr)) as (_, host, port, _):
            client = await Client.connect(host, port)
            client.send(get("/ws", "Connection: Upgrade", "Upgrade: websocket"))
            assert (await client.response())[0] == 101
            assert await client.reader.read() == b"bye"

    run(test())


def test_drain_answers_a_request_whose_head_is_half_read() -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        async with instance(serve) as addr, dataplane(HoldingDispatch(addr)) as (server, host, port, _):
            client = await Client.connect(host, port)
            client.send(b"GET / HTTP/1.1\r\nHost: ti")
            await until(lambda: any(c._buffer for c in server.plane.clients), "half a head")  # type: ignore[attr-defined]
            draining = asyncio.ensure_future(server.drain(30))
            await asyncio.sleep(0)
            client.send(b"ny\r\n\r\n")
            answer = await client.closed()
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"Connection: close\r\n" in answer
            assert await draining == 0

    run(test())


def test_drain_finishes_what_runs_and_refuses_what_comes() -> None:
    async def test() -> None:
        go_on = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            await go_on.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await reader.read()

        async with instance(serve) as addr:
            dispatch = HoldingDispatch(addr)
            async with dataplane(dispatch) as (server, host, port, (admin_host, admin_port)):
                idle = await Client.connect(host, port)
                busy = await Client.connect(host, port)
                busy.send(get())
                await dispatch.until(lambda: "sent" in dispatch.calls)
                draining = asyncio.ensure_future(server.drain(30))
                assert await idle.closed() == b""
                with pytest.raises(OSError):
                    await Client.connect(host, port)
                readyz = f"http://{admin_host}:{admin_port}/readyz"
                async with aiohttp.ClientSession() as session, session.get(readyz) as reply:
                    assert (reply.status, await reply.text()) == (503, "draining\n")
                go_on.set()
                status, head, body = await busy.response()
                assert (status, body) == (200, b"ok")
                assert b"\r\nConnection: close\r\n" in head
                assert await draining == 0

    run(test())


def test_drain_is_bounded() -> None:
    async def test() -> None:
        dispatch = HoldingDispatch("")
        async with dataplane(dispatch) as (server, host, port, _):
            client = await Client.connect(host, port)
            client.send(get())
            await dispatch.until(lambda: bool(dispatch.held))
            assert await server.drain(0.05) == 1
            assert await client.closed() == b""
            assert dispatch.outcomes == [CLIENT_GONE]

    run(test())


def test_kernel_watches_both_sides() -> None:
    async def test() -> None:
        async with instance(echo) as addr, dataplane(HoldingDispatch(addr)) as (server, host, port, _):
            client = await Client.connect(host, port)
            client.send(post(b"x"))
            await client.response()
            (proxied,) = server.plane.clients
            assert isinstance(proxied, ClientProtocol)
            upstream = server.plane.cache.take(addr)
            assert isinstance(upstream, UpstreamProtocol)
            for transport in (proxied.transport, upstream.transport):
                sock = transport.get_extra_info("socket")
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15
            upstream.close()

    run(test())


def test_public_port_is_shared() -> None:
    async def test() -> None:
        from activator_replacement.server import Server

        one, two = Server(HoldingDispatch("")), Server(HoldingDispatch(""))
        (address,), _, _ = await one.start([("127.0.0.1", 0)], ("127.0.0.1", 0))
        (same,), _, _ = await two.start([address], ("127.0.0.1", 0))
        assert same == address
        with pytest.raises(OSError, match="choose another port"):
            await two._listen(address, reuse_port=False)
        await one.close()
        await two.close()

    run(test())


def test_admin_port() -> None:
    async def test() -> None:
        async with instance(echo) as addr, dataplane(HoldingDispatch(addr)) as (_, host, port, (ah, ap)):
            client = await Client.connect(host, port)
            client.send(post(b"x"))
            await client.response()
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://{ah}:{ap}/metrics") as reply:
                    text = await reply.text()
                assert "galaxy_requests_total 1.0" in text
                assert 'galaxy_responses_total{status="200"} 1.0' in text
                assert 'galaxy_exchange_outcomes_total{outcome="ok"} 1.0' in text
                assert 'galaxy_time_to_response_head_seconds_bucket{le="+Inf"} 1.0' in text
                for path in ("healthz", "readyz"):
                    async with session.get(f"http://{ah}:{ap}/{path}") as reply:
                        assert reply.status == 200
                async with session.get(f"http://{ah}:{ap}/status") as reply:
                    assert (await reply.json())["responses"] == {"200": 1}

    run(test())
