"""gRPC through the data plane, grpcio on both sides: all kinds of calls, deadlines, cancelling, errors, sizes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from activator_replacement.knative.client import KnativeClient
from activator_replacement.seam import CLIENT_GONE, OK
from tests.support.dataplane import HoldingDispatch, dataplane, run
from tests.support.http2 import turn_until

NO_LIMIT = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
#: No connection of another test is taken up again.
OWN = [("grpc.use_local_subchannel_pool", 1)]


class Service:
    """Echoes; `started` and `ended` count the calls that it saw begin and end."""

    def __init__(self) -> None:
        self.started = self.ended = 0
        self.metadata: dict[str, Any] = {}
        self.hold = asyncio.Event()
        self.time_left = 0.0

    @contextlib.contextmanager
    def call(self, context: Any) -> Any:
        self.started += 1
        self.metadata = dict(context.invocation_metadata())
        self.time_left = context.time_remaining() or 0.0
        try:
            yield
        finally:
            self.ended += 1

    async def unary(self, request: bytes, context: Any) -> bytes:
        with self.call(context):
            await context.send_initial_metadata((("x-initial", "i"),))
            context.set_trailing_metadata((("x-trailing", "t"), ("x-raw-bin", b"\x00\xff")))
            return request

    async def fails(self, request: bytes, context: Any) -> bytes:
        with self.call(context):
            await context.abort(grpc.StatusCode[request.decode()], "because é")
            return b""

    async def waits(self, request: bytes, context: Any) -> bytes:
        with self.call(context):
            await self.hold.wait()
            return request

    async def counts(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        with self.call(context):
            for i in range(int(request)):
                yield b"%d" % i

    async def sums(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        with self.call(context):
            total = 0
            async for request in requests:
                total += len(request)
            return b"%d" % total

    async def chats(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        with self.call(context):
            async for request in requests:
                yield request.upper()

    def handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "test.Echo",
            {
                "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
                "Fails": grpc.unary_unary_rpc_method_handler(self.fails),
                "Waits": grpc.unary_unary_rpc_method_handler(self.waits),
                "Counts": grpc.unary_stream_rpc_method_handler(self.counts),
                "Sums": grpc.stream_unary_rpc_method_handler(self.sums),
                "Chats": grpc.stream_stream_rpc_method_handler(self.chats),
            },
        )


@contextlib.asynccontextmanager
async def served(service: Service) -> AsyncIterator[str]:
    server = grpc.aio.server(options=NO_LIMIT)
    server.add_generic_rpc_handlers((service.handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@contextlib.asynccontextmanager
async def relayed(**limits: Any) -> AsyncIterator[tuple[Service, HoldingDispatch, Any, Any]]:
    """(service, dispatch, channel through the data plane, server)"""
    service = Service()
    async with served(service) as addr:
        dispatch = HoldingDispatch(addr)
        async with (
            dataplane(dispatch, **limits) as (server, host, port, _),
            grpc.aio.insecure_channel(f"{host}:{port}", options=[*NO_LIMIT, *OWN]) as channel,
        ):
            yield service, dispatch, channel, server


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value


def test_unary_with_metadata_and_trailers() -> None:
    async def test() -> None:
        async with relayed() as (service, dispatch, channel, _):
            unary = channel.unary_unary("/test.Echo/Unary")
            metadata = (
                ("knative-serving-namespace", "n"),
                ("knative-serving-revision", "r"),
                ("x-own", "a b"),
                ("x-own-bin", bytes(range(256))),
            )
            call = unary(b"hello", metadata=metadata)
            assert await call == b"hello"
            assert dict(await call.initial_metadata())["x-initial"] == "i"
            assert dict(await call.trailing_metadata()) == {"x-trailing": "t", "x-raw-bin": b"\x00\xff"}
            assert service.metadata["x-own"] == "a b"
            assert service.metadata["x-own-bin"] == bytes(range(256))
            assert service.metadata["k-proxy-request"] == "activator"
            assert "knative-serving-revision" not in service.metadata
            assert dispatch.exchanges[0].revision == "n/r"
            got = await asyncio.gather(*(unary(b"%d" % i) for i in range(300)))
            assert got == [b"%d" % i for i in range(300)]
            assert dispatch.outcomes == [OK] * 301

    run(test())


def test_streams_in_each_direction() -> None:
    async def test() -> None:
        async with relayed() as (_, dispatch, channel, _server):
            counts = channel.unary_stream("/test.Echo/Counts")
            assert [m async for m in counts(b"500")] == [b"%d" % i for i in range(500)]
            assert [m async for m in counts(b"0")] == []

            async def messages() -> AsyncIterator[bytes]:
                for i in range(100):
                    yield b"x" * i * 100

            assert await channel.stream_unary("/test.Echo/Sums")(messages()) == b"%d" % (4950 * 100)
            chat = channel.stream_stream("/test.Echo/Chats")()
            for i in range(20):  # each answer before the next question
                await chat.write(b"m%d" % i)
                assert await chat.read() == b"M%d" % i
            await chat.done_writing()
            assert await chat.read() is grpc.aio.EOF
            assert await chat.code() == grpc.StatusCode.OK
            assert dispatch.outcomes == [OK] * 4

    run(test())


@pytest.mark.parametrize("size", [16_384, 65_535, 5_000_000])
def test_large_messages(size: int) -> None:
    async def test() -> None:
        async with relayed() as (_, _d, channel, server):
            message = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
            unary = channel.unary_unary("/test.Echo/Unary")
            assert await asyncio.gather(*(unary(message) for _ in range(4))) == [message] * 4
            (client,) = server.plane.clients
            await turn_until(lambda: client.connection.buffered == 0)

    run(test())


@pytest.mark.parametrize(
    "code", ["NOT_FOUND", "RESOURCE_EXHAUSTED", "INTERNAL", "UNAVAILABLE", "UNAUTHENTICATED"]
)
def test_codes_and_messages_pass(code: str) -> None:
    async def test() -> None:
        async with relayed() as (_, dispatch, channel, _server):
            error = await failure(channel.unary_unary("/test.Echo/Fails")(code.encode()))
            assert error.code() == grpc.StatusCode[code]
            assert error.details() == "because é"
            assert dispatch.outcomes == [OK]
            unknown = await failure(channel.unary_unary("/test.Echo/None")(b""))
            assert unknown.code() == grpc.StatusCode.UNIMPLEMENTED

    run(test())


def test_a_deadline_reaches_the_instance_and_ends_its_work() -> None:
    async def test() -> None:
        async with relayed() as (service, dispatch, channel, _):
            assert await channel.unary_unary("/test.Echo/Unary")(b"connected") == b"connected"
            error = await failure(channel.unary_unary("/test.Echo/Waits")(b"x", timeout=1.0))
            assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            assert 0 < service.time_left < 5
            await dispatch.until(lambda: not dispatch.in_flight)
            await turn_until(lambda: service.ended == 2)
            assert await channel.unary_unary("/test.Echo/Unary")(b"after") == b"after"

    run(test())


def test_a_cancelled_call_is_cancelled_at_the_instance() -> None:
    async def test() -> None:
        async with relayed() as (service, dispatch, channel, _):
            call = channel.unary_unary("/test.Echo/Waits")(b"x")
            chat = channel.stream_stream("/test.Echo/Chats")()
            await chat.write(b"a")
            assert await chat.read() == b"A"
            await turn_until(lambda: service.started == 2)
            call.cancel()
            chat.cancel()
            await turn_until(lambda: service.ended == 2)
            await dispatch.until(lambda: dispatch.outcomes == [CLIENT_GONE] * 2)
            assert await channel.unary_unary("/test.Echo/Unary")(b"after") == b"after"

    run(test())


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (404, grpc.StatusCode.UNIMPLEMENTED),
        (429, grpc.StatusCode.UNAVAILABLE),
        (502, grpc.StatusCode.UNAVAILABLE),
        (503, grpc.StatusCode.UNAVAILABLE),
        (504, grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_plain_statuses_are_mapped_by_the_client(status: int, code: grpc.StatusCode) -> None:
    async def test() -> None:
        class Refusing(HoldingDispatch):
            def submit(self, exchange: Any) -> None:
                exchange.refuse(status, "not now")

        async with (
            dataplane(Refusing()) as (_, host, port, _a),
            grpc.aio.insecure_channel(f"{host}:{port}", options=OWN) as channel,
        ):
            error = await failure(channel.unary_unary("/test.Echo/Unary")(b"x"))
            assert error.code() == code
            assert str(status) in (error.details() or "")

    run(test())


def test_held_calls_go_on_when_an_instance_is_there() -> None:
    async def test() -> None:
        async with relayed() as (_, dispatch, channel, _server):
            addr, dispatch.addr = dispatch.addr, ""
            unary = channel.unary_unary("/test.Echo/Unary")
            calls = [asyncio.ensure_future(_await(unary(b"%d" % i))) for i in range(50)]
            chat = channel.stream_stream("/test.Echo/Chats")()
            await chat.write(b"early")
            await dispatch.until(lambda: len(dispatch.held) == 51)
            dispatch.release(addr)
            assert await asyncio.gather(*calls) == [b"%d" % i for i in range(50)]
            assert await chat.read() == b"EARLY"
            await chat.done_writing()

    run(test())


async def _await(call: Any) -> Any:
    return await call


def test_an_instance_that_dies_in_the_midst_of_a_stream() -> None:
    async def test() -> None:
        service = Service()
        async with contextlib.AsyncExitStack() as stack:
            dispatch = HoldingDispatch()
            _, host, port, _ = await stack.enter_async_context(dataplane(dispatch))
            channel = await stack.enter_async_context(
                grpc.aio.insecure_channel(f"{host}:{port}", options=OWN)
            )
            async with served(service) as addr:
                dispatch.addr = addr
                chat = channel.stream_stream("/test.Echo/Chats")()
                await chat.write(b"a")
                assert await chat.read() == b"A"
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await chat.read()
            assert raised.value.code() in (
                grpc.StatusCode.INTERNAL,
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.CANCELLED,
            )
            async with served(service) as addr:
                dispatch.addr = addr
                assert await channel.unary_unary("/test.Echo/Unary")(b"again") == b"again"

    run(test())


def test_a_thousand_calls_over_one_connection() -> None:
    async def test() -> None:
        async with relayed() as (service, dispatch, channel, server):
            waits = channel.unary_unary("/test.Echo/Waits")
            calls = [asyncio.ensure_future(_await(waits(b"%d" % i))) for i in range(1000)]
            await turn_until(lambda: service.started == 1000)
            assert len(server.plane.clients) == 1
            service.hold.set()
            assert await asyncio.gather(*calls) == [b"%d" % i for i in range(1000)]
            assert dispatch.outcomes == [OK] * 1000

    run(test())


def test_in_the_dialect_of_knative() -> None:
    async def test() -> None:
        service = Service()
        async with served(service) as addr:
            dispatch = HoldingDispatch(addr)
            async with (
                dataplane(dispatch, client_type=KnativeClient) as (_, host, port, _a),
                grpc.aio.insecure_channel(f"{host}:{port}", options=OWN) as channel,
            ):
                call = channel.unary_unary("/test.Echo/Unary")(b"x", metadata=(("x-own", "1"),))
                assert await call == b"x"
                assert set(dict(await call.initial_metadata())) == {"x-initial"}
                assert service.metadata["k-original-host"] == f"{host}:{port}"
                assert service.metadata["x-own"] == "1"
                dispatch.addr = "127.0.0.1:1"
                error = await failure(channel.unary_unary("/test.Echo/Unary")(b"x"))
                assert error.code() == grpc.StatusCode.UNAVAILABLE

    run(test())
