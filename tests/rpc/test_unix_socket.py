"""Whoever dials a unix socket that is dialled by too many waits for its turn, on either loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from kserve_ext.rpc.unix_socket import dial

MANY = 20
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    found: Run = request.param
    return found


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """Its queue is short, and nobody is taken out of it yet."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen(1)
        sock.setblocking(False)
        yield sock


def test_all_get_through_as_soon_as_somebody_takes_them(
    listener: socket.socket, tmp_path: Path, run: Run
) -> None:
    async def ask(number: int) -> str:
        reader, writer = await dial(tmp_path / "s")
        writer.write(b"%d\n" % number)
        await writer.drain()
        answer = await reader.readline()
        writer.close()
        return answer.decode()

    async def script() -> None:
        asking = [asyncio.create_task(ask(number)) for number in range(MANY)]
        done, _ = await asyncio.wait(asking, timeout=0.1)
        assert done == set(), "nobody has failed, and nobody was answered"

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            writer.close()

        server = await asyncio.start_unix_server(echo, sock=listener, backlog=1)
        async with server:
            assert await asyncio.gather(*asking) == [f"{number}\n" for number in range(MANY)]

    run(script())


def test_nobody_waits_for_ever(listener: socket.socket, tmp_path: Path, run: Run) -> None:
    async def script() -> None:
        dialling = [asyncio.create_task(dial(tmp_path / "s", seconds=0.05)) for _ in range(MANY)]
        found = await asyncio.gather(*dialling, return_exceptions=True)
        assert any(isinstance(one, TimeoutError) for one in found)
        for one in found:
            if not isinstance(one, BaseException):
                one[1].close()

    run(script())


def test_where_nobody_listens_that_is_said_at_once(tmp_path: Path, run: Run) -> None:
    async def script() -> None:
        with pytest.raises(FileNotFoundError):
            await dial(tmp_path / "s")

    run(script())
