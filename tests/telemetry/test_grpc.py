"""What a collector says that is no gRPC: a word to the caller, and no fault of ours."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from yarl import URL

from kserve_ext.telemetry import grpc
from kserve_ext.wire.http2.frames import END_HEADERS, FRAME_HEAD, HEADERS, settings
from kserve_ext.wire.http2.hpack import literal
from tests.support.dataplane import run


@pytest.mark.parametrize(
    "block",
    [
        b"\x88\x00\x7f",  # ends within a field
        b"\x00\x05abc",
        b"\xff\xff\xff",  # of a table of size 0
        b"\xbe",
        b"\x88\x00\x02A:\x01b",
    ],
)
def test_a_header_block_that_is_none(block: bytes) -> None:
    async def test() -> None:
        faults: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(65536)
            payload = b"\x20" + block
            writer.write(settings() + FRAME_HEAD.pack(0, len(payload), HEADERS, END_HEADERS, 1) + payload)
            await reader.read(65536)
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            problem = await grpc.call(URL(f"http://127.0.0.1:{port}"), "/a.B/C", b"")
        assert problem.startswith("does not speak gRPC: ")
        assert faults == []

    run(test())


@pytest.mark.parametrize("target", ["http://[::1]:4317", "http://me:secret@[::1]:4317"])
def test_an_authority_is_host_and_port(target: str) -> None:
    async def test() -> None:
        call = grpc._Call(asyncio.get_running_loop(), URL(target), "/a.B/C", b"")
        sent = b"".join(call._connection.out)
        assert literal(b":authority", b"[::1]:4317") in sent

    run(test())
