"""Rpc over real sockets on loopback: the hello, deadlines, losses, big frames, many calls, the own-address path."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from kserve_ext.core.ids import FunctionID
from kserve_ext.rpc import Caller, Rpc, RpcError, Trace
from kserve_ext.wire.frames import ErrorCode
from kserve_ext.wire.messages import Ack, Describe, Description, Leave, Report, ReportReply, StoreScan

KEY = b"k" * 32
Story = Callable[[Rpc, Rpc, str], Coroutine[Any, Any, None]]


def run(story: Story, *, caller_key: bytes = KEY, host: str = "127.0.0.1") -> None:
    async def main() -> None:
        listener = Rpc("listener", KEY, epoch=lambda: 7)
        caller = Rpc("caller", caller_key, epoch=lambda: 3)
        addr = await listener.listen(host)
        try:
            async with asyncio.timeout(20):
                await story(caller, listener, addr)
        finally:
            await caller.close()
            await listener.close()

    asyncio.run(main())


def report(n: int = 1) -> Report:
    return Report(FunctionID("f"), n, 2)


def test_a_call_carries_name_epoch_trace_and_deadline() -> None:
    seen: list[Caller] = []

    def answer(message: Report, who: Caller) -> ReportReply:
        seen.append(who)
        return ReportReply(message.incarnation, True)

    async def story(caller: Rpc, listener: Rpc, addr: str) -> None:
        listener.handle(Report, answer)
        trace = Trace.new()
        assert await caller.call(addr, report(9), trace=trace) == ReportReply(9, True)
        assert (seen[0].name, seen[0].epoch, seen[0].trace) == ("caller", 3, trace)
        assert 0 < seen[0].deadline_left_s(asyncio.get_running_loop().time()) <= 5.0

    run(story)


def test_another_key_is_refused_on_both_sides_and_nothing_is_handled() -> None:
    async def story(caller: Rpc, listener: Rpc, addr: str) -> None:
        listener.handle(Report, lambda m, c: pytest.fail("handled without a hello"))
        with pytest.raises(RpcError, match="another cluster key") as caught:
            await caller.call(addr, report())
        assert caught.value.code == ErrorCode.REFUSED
        assert not caught.value.sent

    run(story, caller_key=b"x" * 32)


def test_bytes_that_are_no_frame_end_the_connection() -> None:
    async def story(caller: Rpc, listener: Rpc, addr: str) -> None:
        host, _, port = addr.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nAccept: everything there is to have\r\n\r\n")
        assert await reader.read() == b""
        writer.close()

    run(story)


def test_deadline_passes_while_the_handler_works() -> None:
    async def slow(message: Report, who: Caller) -> ReportReply:
        await asyncio.sleep(10)
        return ReportReply(1, True)

    async def story(caller: Rpc, listener: Rpc, addr: str) -> None:
        listener.handle(Report, slow)
        with pytest.raises(RpcError) as caught:
            await caller.call(addr, report(), timeout_s=0.05)
        assert caught.value.code == ErrorCode.DEADLINE

    run(story)


def test_a_lost_connection_fails_its_calls_at_once_and_is_redialled() -> None:
    async def story(caller: Rpc, listener: Rpc, addr: str) -> None:
        started = asyncio.Event()

        async def hang(message: Report, who: Caller) -> ReportReply:
            started.set()
            await asyncio.sleep(60)
            raise AssertionError

        lost: list[str] = []
        listener.handle(Report, hang)
        listener.handle(Leave, lambda m, c: Ack(1))
        listener.on_lost(lambda who: lost.append(who.name))
        call = asyncio.create_task(caller.call(addr, report(), timeout_s=30))
        await started.wait()
        caller._out[addr]._transport.abort()  # type: ignore[union-attr]
        with pytest.raises(RpcError) as caught:
            await call
        assert caught.value.code == ErrorCode.UNAVAILABLE
        assert caught.value.sent
        assert await caller.call(addr, Leave(FunctionID("f"), 1)) == Ack(1)
        assert lost == ["caller"]

    run(story)


def test_nobody_listens() -> None:
    async def story(caller: Rpc, listener: Rpc, addr: str) -> None:
        for nowhere in ("127.0.0.1:1", "", "no address at all"):
            with pytest.raises(RpcError) as caught:
                await caller.call(nowhere, report())
            assert caught.value.code == ErrorCode.UNAVAILABLE
            assert not caught.value.sent

    run(story)


def test_unknown_method_malformed_result_and_a_handler_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    def bad(message: Report, who: Caller) -> ReportReply:
        raise ValueError("no such thing")

    async def story(caller: Rpc, listener: Rpc, addr: str) -> None:
        with pytest.raises(RpcError, match="listener does not answer Report"):
            await caller.call(addr, report())
        listener.handle(Report, bad)
        with caplog.at_level(logging.ERROR), pytest.raises(RpcError, match="no such thing") as caught:
            await caller.call(addr, report())
        assert caught.value.code == ErrorCode.INTERNAL
        assert "Report from caller failed here" in caplog.text

    run(story)


def test_big_bodies_and_ten_thousand_calls_in_flight() -> None:
    def describe(message: Describe, who: Caller) -> Awaitable[Description] | Description:
        return Description(message.key.encode())

    async def story(caller: Rpc, listener: Rpc, addr: str) -> None:
        listener.handle(Describe, describe)
        big = "x" * 5_000_000
        assert (await caller.call(addr, Describe("status", big))).body == big.encode()
        answers = await asyncio.gather(*(caller.call(addr, Describe("s", str(k))) for k in range(10_000)))
        assert [a.body for a in answers] == [str(k).encode() for k in range(10_000)]

    run(story)


def test_calls_to_the_own_address_take_the_short_way() -> None:
    async def story(caller: Rpc, listener: Rpc, addr: str) -> None:
        async def answer(message: Report, who: Caller) -> ReportReply:
            return ReportReply(1, who.name == "listener")

        listener.handle(Report, answer)
        assert await listener.call(addr, report()) == ReportReply(1, True)
        with pytest.raises(RpcError, match="does not answer StoreScan"):
            await listener.call(addr, StoreScan("x"))
        assert not listener._out

    run(story)


def test_unix_sockets(tmp_path: Path) -> None:
    async def story(caller: Rpc, listener: Rpc, addr: str) -> None:
        listener.handle(Leave, lambda m, c: Ack(5))
        path = await listener.listen_unix(str(tmp_path / "agent.sock"))
        assert await caller.call(path, Leave(FunctionID("f"), 1)) == Ack(5)

    run(story)
