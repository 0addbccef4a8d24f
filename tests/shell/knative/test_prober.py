"""Probes over real sockets: which answer means what, and what becomes of the connection."""

from __future__ import annotations

import asyncio
import socket

import pytest

from activator_replacement.knative.client import KnativeClient
from activator_replacement.knative.discovery.prober import Prober
from activator_replacement.static import StaticDispatch
from kserve_ext.core.knative.pods import DENIED, OK, SILENT
from tests.support.dataplane import dataplane, instance, read_request, run
from tests.support.dispatch_cluster import until


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nqueue", OK),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nqueue\r\n0\r\n\r\n", OK),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother", DENIED),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", DENIED),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", DENIED),
        (b"HTTP/1.1 400 Bad Request\r\n\r\nhalf", DENIED),
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", SILENT),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", SILENT),
        (b"SSH-2.0-OpenSSH\r\n\r\n", DENIED),
        (b"x" * 20_000, DENIED),
        (b"", SILENT),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nque", SILENT),
    ],
)
def test_answers(response: bytes, answer: int) -> None:
    async def test() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            half = len(response) // 2
            writer.write(response[:half])
            await writer.drain()
            writer.write(response[half:])
            await writer.drain()

        async with (
            instance(serve) as addr,
            dataplane(StaticDispatch({}), client_type=KnativeClient) as (server, *_),
        ):
            assert await Prober(server.plane, 5.0).probe(addr) == answer

    run(test())


def test_who_does_not_answer_in_time_and_who_does_not_listen() -> None:
    async def test() -> None:
        closed = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await read_request(reader)  # if it comes before the time is over
                await reader.read()
            finally:
                closed.set()

        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            nobody = f"127.0.0.1:{unused.getsockname()[1]}"
            async with instance(serve) as addr, dataplane(StaticDispatch({})) as (server, *_):
                prober = Prober(server.plane, 0.05)
                assert await prober.probe(addr) == SILENT
                await closed.wait()
                assert await prober.probe(nobody) == SILENT

    run(test())


def test_the_question_and_what_becomes_of_the_connection() -> None:
    """Kept from one question to the next while the answer is no, and for requests after a yes if asked to."""

    async def test() -> None:
        heads = []
        connections = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            while True:
                heads.append((await read_request(reader))[0])
                if len(heads) < 3:
                    writer.write(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n")
                else:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nqueue")

        async with instance(serve) as addr, dataplane(StaticDispatch({})) as (server, *_):
            prober = Prober(server.plane, 5.0)
            assert [await prober.probe(addr) for _ in range(2)] == [SILENT, SILENT]
            assert await prober.probe(addr, keep=True) == OK
            assert connections == 1
            assert server.plane.cache.idle_count == 1
            assert await prober.probe(addr, "r-private.ns") == OK
            assert connections == 2
            assert server.plane.cache.idle_count == 1, "not kept unless asked to"
            common = "User-Agent: Knative-Activator-Probe\r\nK-Network-Probe: queue\r\n"
            assert heads[0].decode() == f"GET /healthz HTTP/1.1\r\nHost: {addr}\r\n{common}\r\n"
            assert heads[3].decode() == (
                f"GET /healthz HTTP/1.1\r\nHost: r-private.ns\r\n{common}K-Passthrough-Lb: true\r\n\r\n"
            )
            assert await prober.probe(addr) == OK
            prober.close()

    run(test())


def test_connections_of_pods_that_went_are_forgotten() -> None:
    async def test() -> None:
        leave = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n")
            await leave.wait()

        async with instance(serve) as addr, dataplane(StaticDispatch({})) as (server, *_):
            prober = Prober(server.plane, 5.0)
            assert await prober.probe(addr) == SILENT
            assert list(prober._open) == [addr]
            leave.set()
            await until(lambda: not prober._open, "it is forgotten")

    run(test())
