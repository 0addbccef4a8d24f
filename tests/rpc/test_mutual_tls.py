"""Mutual TLS beneath rpc and websockets: who is let in, who is spoken to, and that certificates may change."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from kserve_ext.rpc.errors import RpcError
from kserve_ext.rpc.listener import Listener
from kserve_ext.rpc.mutual_tls import HANDSHAKE, BadIdentity, Identity
from kserve_ext.rpc.rpc import Rpc
from kserve_ext.rpc.websocket import connect
from kserve_ext.wire.messages import Describe, Description
from tests.support.certificates import Authority
from tests.support.dataplane import run

NAME = "kserve-galaxy.knative-serving"
KEY = bytes(range(32))
LOCAL = "127.0.0.1"
OURS, THEIRS = Authority(), Authority("another")


def identity(authority: Authority | None = OURS, name: str = NAME, *, strict: bool = False) -> Identity:
    made = Identity(NAME, strict=strict)
    if authority is not None:
        made.load(*authority.issue(name), OURS.pem + THEIRS.pem if authority is THEIRS else OURS.pem)
    return made


@contextlib.asynccontextmanager
async def endpoint(name: str, tls: Identity | None) -> AsyncIterator[tuple[Rpc, str]]:
    rpc = Rpc(name, KEY, identity=tls)
    rpc.handle(Describe, lambda message, caller: Description(caller.name.encode()))
    addr = await rpc.listen(LOCAL)
    try:
        yield rpc, addr
    finally:
        await rpc.close()


async def asked(caller: Identity | None, listener: Identity | None) -> str:
    """The answer, or why there was none."""
    async with endpoint("listener", listener) as (_, addr), endpoint("caller", caller) as (rpc, _):
        try:
            reply = await rpc.call(addr, Describe("x"), 5.0)
        except RpcError as error:
            return f"no: {error}"
        assert isinstance(reply, Description)
        return reply.body.decode()


@pytest.mark.parametrize(
    ("caller", "listener"),
    [
        (identity(strict=True), identity(strict=True)),
        (identity(), identity()),
        (identity(), None),  # the listener is of before
        (None, identity()),  # the caller is
        (identity(None), identity()),  # one has no certificate yet
        (identity(), identity(None)),
    ],
)
def test_parts_of_ours_speak_to_each_other(caller: Identity | None, listener: Identity | None) -> None:
    async def test() -> None:
        assert await asked(caller, listener) == "caller"

    run(test(), 100)


@pytest.mark.parametrize(
    ("caller", "listener", "said"),
    [
        (None, identity(strict=True), "speaks without TLS: refused, since mutual TLS is strict"),
        (identity(strict=True), None, "does not speak TLS: refused, since mutual TLS is strict"),
        (identity(THEIRS), identity(), "was refused"),  # unknown to the listener
        (identity(), identity(THEIRS), "certificate verify failed"),  # unknown to the caller
        (identity(name="somebody"), identity(), "wanted: kserve-galaxy.knative-serving"),
        (identity(), identity(name="somebody"), "certificate verify failed"),
        (identity(None, strict=True), identity(), "there is no certificate here yet: refused"),
    ],
)
def test_others_are_refused_and_the_log_says_why(
    caller: Identity | None, listener: Identity | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        answer = await asked(caller, listener)
        assert answer.startswith("no: ")
        assert said in caplog.text + answer

    with caplog.at_level(logging.WARNING):
        run(test(), 100)


def test_a_renewed_certificate_counts_from_the_next_connection_on() -> None:
    async def test() -> None:
        tls = identity(strict=True)
        async with endpoint("listener", tls) as (_, addr):
            async with endpoint("caller", identity(strict=True)) as (rpc, _):
                assert (await rpc.call(addr, Describe("x"), 5.0)).body == b"caller"
                tls.load(*THEIRS.issue(NAME), THEIRS.pem)
                assert (await rpc.call(addr, Describe("x"), 5.0)).body == b"caller"  # it was open
            renewed = Identity(NAME, strict=True)
            renewed.load(*THEIRS.issue(NAME), THEIRS.pem)
            async with endpoint("renewed", renewed) as (rpc, _):
                assert (await rpc.call(addr, Describe("x"), 5.0)).body == b"renewed"

    run(test(), 100)


def test_what_can_not_be_used_is_named_and_changes_nothing() -> None:
    made = identity()
    before = (made.server, made.client)
    certificate, key = OURS.issue(NAME)
    for parts, said in (
        ((b"", key, OURS.pem), "certificate or its key"),
        ((certificate, OURS.issue(NAME)[1], OURS.pem), "certificate or its key"),
        ((certificate, key, b""), "authorities"),
        ((certificate, key, b"\xff"), "authorities"),
    ):
        with pytest.raises(BadIdentity, match=said):
            made.load(*parts)
    assert (made.server, made.client) == before


@contextlib.asynccontextmanager
async def websockets(tls: Identity | None) -> AsyncIterator[str]:
    """Says over which kind of connection it was reached."""

    async def handle(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        transport = request.transport
        assert transport is not None
        await socket.send_str("tls" if transport.get_extra_info("ssl_object") else "plain")
        await socket.close()
        return socket

    app = web.Application()
    app.router.add_get("/", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    assert runner.server is not None
    if tls is None:
        await web.TCPSite(runner, LOCAL, 0).start()
        port = runner.addresses[0][1]
        listener = None
    else:
        listener = Listener(runner.server, tls)
        port = listener.start(LOCAL, 0)[1]
    try:
        yield f"ws://{LOCAL}:{port}"
    finally:
        if listener is not None:
            listener.close()
        await runner.cleanup()


@pytest.mark.parametrize(
    ("client", "server", "way"),
    [
        (identity(strict=True), identity(strict=True), "tls"),
        (identity(), None, "plain"),
        (None, identity(), "plain"),
        (identity(None), identity(), "plain"),
        (identity(), identity(None), "plain"),
        (identity(strict=True), None, ""),
        (identity(), identity(name="somebody"), ""),
        (identity(name="somebody"), identity(), ""),
        (None, identity(strict=True), ""),
    ],
)
def test_websockets_take_the_same_way(client: Identity | None, server: Identity | None, way: str) -> None:
    async def test() -> None:
        async with websockets(server) as url, aiohttp.ClientSession() as session:
            try:
                async with asyncio.timeout(60):
                    socket = await connect(session, url, client)
                    assert await socket.receive_str() == way
                    await socket.close()
            except (aiohttp.ClientError, OSError):
                assert not way

    run(test(), 100)


def test_who_says_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kserve_ext.rpc.listener.BEGIN_S", 0.01)

    async def test() -> None:
        async with endpoint("listener", identity()) as (_, addr):
            reader, writer = await asyncio.open_connection(*addr.split(":"))
            assert await reader.read() == b""
            writer.close()

    run(test(), 100)


@pytest.mark.parametrize("name", ["x" * 213, "y" * 250])
def test_a_hello_of_any_length_is_no_handshake(name: str) -> None:
    """The first byte of a frame is its length's, and may be that of a handshake."""

    async def test() -> None:
        async with endpoint("listener", identity()) as (_, addr), endpoint(name, None) as (rpc, _):
            assert (await rpc.call(addr, Describe("x"), 5.0)).body == name.encode()

    run(test(), 100)


def test_a_handshake_may_come_byte_by_byte() -> None:
    async def test() -> None:
        listener = Listener(asyncio.Protocol, identity())
        host, port = listener.start(LOCAL, 0)
        reader, writer = await asyncio.open_connection(host, port)
        client = identity().client
        assert client is not None
        outgoing = ssl.MemoryBIO()
        with pytest.raises(ssl.SSLWantReadError):
            client.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=NAME).do_handshake()
        hello = outgoing.read()
        writer.write(hello[:1])
        await writer.drain()
        writer.write(hello[1:])
        assert (await reader.readexactly(2)) == HANDSHAKE  # the listener's own
        writer.close()
        listener.close()

    run(test(), 100)
