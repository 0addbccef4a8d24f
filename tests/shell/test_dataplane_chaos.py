"""Clients and instances that do anything at any time: every request ends once, nothing is left behind.

Seeded, so a failure repeats; HoldingDispatch checks the order of calls, `run` that no callback raises.
"""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from activator_replacement.upstream import reset
from tests.support.dataplane import Client, HoldingDispatch, dataplane, get, instance, post, read_request, run
from tests.support.dispatch_cluster import until

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def pieces(data: bytes, rng: random.Random) -> list[bytes]:
    cuts = sorted({0, len(data), *(rng.randrange(len(data) + 1) for _ in range(rng.randrange(4)))})
    return [data[a:b] for a, b in itertools.pairwise(cuts)]


async def unsteady(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rng: random.Random) -> None:
    while True:
        if rng.random() < 0.05:
            writer.close()
            return
        _, body = await read_request(reader)
        kind = rng.randrange(8)
        if kind == 0:
            reset(writer.transport)  # type: ignore[arg-type]
            return
        if kind == 1:
            answer = b"nonsense\r\n\r\n"
        elif kind <= 4:
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        elif kind == 5:
            answer = b"HTTP/1.0 200 OK\r\n\r\n" + body
        else:
            answer = STREAM + b"9\r\ndata: 1\n\n\r\n" * 5 + b"0\r\n\r\n"
        for piece in pieces(answer, rng):
            if writer.is_closing():
                return
            writer.write(piece)
            await writer.drain()
            if rng.random() < 0.1:
                writer.transport.abort()
                return
            await asyncio.sleep(0)
        if kind in (1, 5):
            return


async def fickle(host: str, port: int, rng: random.Random) -> None:
    client = await Client.connect(host, port)
    try:
        for _ in range(rng.randrange(1, 6)):
            body = bytes(rng.choice([0, 10, 1000, 100_000, 300_000]))
            kind = rng.randrange(10)
            if kind == 0:
                request = b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n"
            elif kind == 1:
                request = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nxyz"
            elif kind == 2:
                request = get(host="unknown")
            elif kind == 3:
                request = (
                    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
                    + (b"%x\r\n%s\r\n" % (len(body), body) if body else b"")
                    + b"0\r\n\r\n"
                )
            elif kind == 4:
                request = get() * 3
            else:
                request = post(body)
            for piece in pieces(request, rng):
                client.send(piece)
                await asyncio.sleep(0)
                if rng.random() < 0.05:
                    return
            for _ in range(3 if kind == 4 else 1):
                if rng.random() < 0.1:
                    return
                await client.response()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # cut off, as some of these deserve
    finally:
        client.close()


@pytest.mark.parametrize("seed", range(6))
def test_every_request_ends_once(seed: int) -> None:
    async def test() -> None:
        rng = random.Random(seed)
        async with instance(
            lambda reader, writer: unsteady(reader, writer, random.Random(rng.random()))
        ) as addr:
            dispatch = HoldingDispatch(addr, bound=20)
            dispatch.requeue = True
            dispatch.timeout_s = 5.0
            async with dataplane(dispatch, stall_timeout_s=1.0) as (server, host, port, _):

                async def open_and_shut() -> None:
                    while True:
                        dispatch.addr = ""
                        await asyncio.sleep(0.005)
                        dispatch.release(addr)
                        await asyncio.sleep(0.005)

                steering = asyncio.ensure_future(open_and_shut())
                await asyncio.gather(*(fickle(host, port, random.Random(rng.random())) for _ in range(150)))
                await dispatch.until(lambda: not dispatch.held and not dispatch.in_flight)
                steering.cancel()
                counters = server.plane.counters
                assert counters.requests >= dispatch.submitted > 50
                await until(lambda: not any(c.active for c in server.plane.clients), "no exchange is left")
                ended = len(dispatch.outcomes) + dispatch.finally_failed
                assert dispatch.submitted == ended + dispatch.refused

    run(test())
