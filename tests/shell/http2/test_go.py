"""The data plane between Go's net/http and grpc-go on both sides: what Knative's ingresses and pods are made of.

The program is built once into the cache folder; where that can't be done the tests are skipped, and say why.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from activator_replacement.http1 import ClientProtocol
from activator_replacement.knative.client import KnativeClient
from kserve_ext.wire.http2.hpack import literal
from tests.support.dataplane import HoldingDispatch, dataplane, run
from tests.support.http2 import REQUEST, REQUEST_BLOCK, at_rest, connect, turn_until
from tools.setup.layout import Layout, digest

SOURCE = Path(__file__).resolve().parents[2] / "support" / "gopeer"
SOURCES = [SOURCE / name for name in ("main.go", "go.mod", "go.sum")]


@pytest.fixture(scope="module")
def gopeer() -> str:
    target = Layout.of_user().cache / "tests" / f"gopeer-{digest(SOURCES)}"
    if target.exists():
        return str(target)
    go = shutil.which("go")
    if go is None:
        pytest.skip("no Go compiler")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = f"{target}.{os.getpid()}"
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    built = subprocess.run(
        [go, "build", "-trimpath", "-o", partial, "."],
        cwd=SOURCE,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode:
        pytest.skip(f"the Go program is not built: {built.stderr.strip()[-300:]}")
    os.replace(partial, target)
    return str(target)


@contextlib.asynccontextmanager
async def serving(program: str, mode: str) -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(program, mode, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    port = int(await process.stdout.readline())
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("dialect", [ClientProtocol, KnativeClient])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_go_on_both_sides(gopeer: str, protocol: str, dialect: type[ClientProtocol]) -> None:
    async def test() -> None:
        async with serving(gopeer, f"serve-{protocol}") as addr:
            dispatch = HoldingDispatch(addr)
            async with dataplane(dispatch, client_type=dialect) as (server, host, port, _):
                process = await asyncio.create_subprocess_exec(
                    gopeer, f"check-{protocol}", f"{host}:{port}", stdout=asyncio.subprocess.PIPE
                )
                said, _nothing = await process.communicate()
                assert said.decode().splitlines()[-1] == "ok", said.decode()
                await turn_until(lambda: not dispatch.in_flight)
                # An instance may tell of a deadline before its client does.
                assert dispatch.submitted == len(dispatch.outcomes) + dispatch.finally_failed > 200
                at_rest(server.plane)

    run(test())


_LIST = sum(32 + len(name) + len(value) for name, value in REQUEST)
_MIB = 1 << 20


@pytest.mark.parametrize(
    ("more", "statuses"),
    [
        (b"\x90" * (_MIB - 100), {431}),  # 60 bytes of a list each
        (b"\x90" * 17_000, {200}),
        (b"\x90" * ((_MIB - _LIST) // 60), {200, 431}),  # with what is added, about what Go takes
        (literal(b"x", b"v" * (_MIB - _LIST - 33)), {200, 431}),
        (literal(b"x", b"v" * (_MIB - _LIST - 600)), {200, 431}),
        (literal(b"x", b"v" * 900_000), {200}),
    ],
)
def test_no_request_costs_others_the_connection_to_go(gopeer: str, more: bytes, statuses: set[int]) -> None:
    async def test() -> None:
        async with serving(gopeer, "serve-http") as addr:
            dispatch = HoldingDispatch(addr)
            async with dataplane(dispatch, client_type=KnativeClient, head_bytes=_MIB) as (
                server,
                host,
                port,
                _,
            ):
                client, other = await connect(host, port), await connect(host, port)
                number = client.begin()
                await client.head(number)
                await other.settled()
                await other.request()  # its blocks need no table from here on
                assert (await other.over(other.send_block(REQUEST_BLOCK + more))).status in statuses
                await client.send(number, b"still here", True)
                assert (await client.over(number)).body == b"still here"
                assert server.plane.http2_cache.opened == 1
                await turn_until(lambda: not dispatch.in_flight)
                at_rest(server.plane)

    run(test())
