"""Instances of the benches answer what activators and autoscalers ask of a queue-proxy."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from bench.peers.events import Instance
from bench.peers.light_node import QueueProxy
from kserve_ext.wire.stats import decode_stat

PROBE = b"GET /healthz HTTP/1.1\r\nHost: x\r\nK-Network-Probe: queue\r\n\r\n"
PLAIN = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
Exchange = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def talk(protocol: Callable[[], asyncio.Protocol], exchange: Exchange) -> None:
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        try:
            await exchange(reader, writer)
        finally:
            writer.close()
            await writer.wait_closed()


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n", 1)[0])
    return head, await reader.readexactly(length)


def test_a_light_pod_answers_probes_and_requests_in_any_pieces() -> None:
    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in PROBE:
            writer.write(bytes([byte]))
            await writer.drain()
        assert (await answer(reader))[1] == b"queue"
        writer.write(PLAIN + PROBE)
        assert [(await answer(reader))[1] for _ in range(2)] == [b"hello", b"queue"]

    asyncio.run(talk(lambda: QueueProxy({"127.0.0.1": ("p", 0.0)}, stats=False), exchange))


def test_a_light_pods_statistics_are_those_of_its_name() -> None:
    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        head, body = await answer(reader)
        assert b"content-type: application/protobuf\r\n" in head.lower()
        stat = decode_stat(body)
        assert stat.pod_name == "p"
        assert stat.process_uptime > 0
        assert stat.request_count == stat.average_concurrent_requests == 0

    asyncio.run(talk(lambda: QueueProxy({"127.0.0.1": ("p", 0.0)}, stats=True), exchange))


def test_a_pod_that_is_gone_answers_nothing() -> None:
    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(PROBE)
        with contextlib.suppress(ConnectionResetError):  # an aborted connection may end in either way
            assert await reader.read() == b""

    asyncio.run(talk(lambda: QueueProxy({}, stats=False), exchange))


def test_a_sender_of_events_answers_probes_and_streams_on_the_same_connection() -> None:
    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(PROBE)
        assert (await answer(reader))[1] == b"queue"
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{")
        writer.write(b"}")
        assert b"text/event-stream" in await reader.readuntil(b"\r\n\r\n")
        for _ in range(2):
            assert await reader.readuntil(b"data: ")

    asyncio.run(talk(Instance, exchange))
