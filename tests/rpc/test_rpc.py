"""Rpc over real sockets on loopback: the hello, deadlines, losses, big frames, many calls, the own-address path."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import pytest
import uvloop

from kserve_ext.core.ids import FunctionID
from kserve_ext.rpc import Caller, Rpc, RpcError, Trace
from kserve_ext.wire.frames import MAX_BODY_BYTES, REQUEST, ErrorCode, frame
from kserve_ext.wire.messages import Ack, Describe, Description, Leave, Report, ReportReply, StoreScan

KEY = b"k" * 32
Story = Callable[[Rpc, Rpc, str], Coroutine[Any, Any, None]]


def run(
    story: Story, *, caller_key: bytes = KEY, factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> None:
    async def main() -> None:
        listener = Rpc("listener", KEY, epoch=lambda: 7)
        caller = Rpc("caller", caller_key, epoch=lambda: 3)
        addr = await listener.listen("127.0.0.1")
        try:
            async with asyncio.timeout(100):
                await story(caller, listener, addr)
        finally:
            await caller.close()
            await listener.close()

    with asyncio.Runner(loop_factory=factory or uvloop.new_event_loop) as runner:
        runner.run(main())


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
        assert 0 < seen[0].deadline_left_s(asyncio.get_running_loop().time()) < 5.1

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
        caller.outgoing.get(addr)._transport.abort()  # type: ignore[union-attr]
        with pytest.raises(RpcError) as caught:
            await call
        assert caught.value.code == ErrorCode.UNAVAILABLE
        assert caught.value.sent
        assert not caught.value.nobody
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
            assert caught.value.nobody == (nowhere == "127.0.0.1:1")

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
        assert not listener.outgoing.connections()

    run(story)


def test_unix_sockets(tmp_path: Path) -> None:
    async def story(caller: Rpc, listener: Rpc, addr: str) -> None:
        listener.handle(Leave, lambda m, c: Ack(5))
        path = await listener.listen_unix(str(tmp_path / "agent.sock"))
        assert await caller.call(path, Leave(FunctionID("f"), 1)) == Ack(5)

    run(story)


def test_a_request_past_its_deadline_is_not_run() -> None:
    async def story(caller: Rpc, listener: Rpc, addr: str) -> None:
        ran: list[int] = []

        def block(message: Report, who: Caller) -> ReportReply:
            ran.append(message.incarnation)
            until = monotonic() + 1.05
            while message.incarnation == 1 and monotonic() < until:
                pass  # holds the loop, as an import would
            return ReportReply(1, True)

        listener.handle(Report, block)
        await caller.call(addr, report(0))
        results = await asyncio.gather(
            *(caller.call(addr, report(n), timeout_s=1.0) for n in (1, 2, 3)), return_exceptions=True
        )
        assert [type(r) for r in results] == [RpcError] * 3
        assert await caller.call(addr, report(4)) == ReportReply(1, True)
        assert ran == [0, 1, 4]

    run(story)


def test_deadlines_of_calls_that_wait_for_a_connection() -> None:
    async def story(caller: Rpc, listener: Rpc, addr: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            with pytest.raises(RpcError) as caught:
                await caller.call(f"127.0.0.1:{mute.getsockname()[1]}", report(), timeout_s=0.05)
            assert caught.value.code == ErrorCode.DEADLINE
            assert not caught.value.sent

    run(story)


def test_what_waits_for_a_peer_that_does_not_read_is_bounded() -> None:
    async def story(caller: Rpc, listener: Rpc, addr: str) -> None:
        listener.handle(Describe, lambda m, c: Description(b""))
        await caller.call(addr, Describe())
        (accepted,) = listener._accepted
        accepted._transport.pause_reading()  # type: ignore[union-attr]
        big = Describe("status", "x" * 1_000_000)
        calls = [asyncio.create_task(caller.call(addr, big)) for _ in range(64)]
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        refused = [e for e in (t.exception() for t in done) if isinstance(e, RpcError)]
        assert refused
        assert all(e.code == ErrorCode.REFUSED and not e.sent for e in refused)
        assert "doesn't read" in str(refused[0])
        accepted._transport.resume_reading()  # type: ignore[union-attr]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(r) for r in results} == {Description, RpcError}
        assert await caller.call(addr, Describe()) == Description(b"")

    run(story)


def test_a_message_past_the_limit_is_refused_here_and_a_reply_there() -> None:
    async def story(caller: Rpc, listener: Rpc, addr: str) -> None:
        listener.handle(Describe, lambda m, c: Description(bytes(MAX_BODY_BYTES)))
        with pytest.raises(RpcError, match="at most") as caught:
            await caller.call(addr, Describe("status", "x" * MAX_BODY_BYTES))
        assert caught.value.code == ErrorCode.REFUSED
        with pytest.raises(RpcError, match="Description has") as caught:
            await caller.call(addr, Describe())
        assert caught.value.code == ErrorCode.INTERNAL

    run(story)


def test_a_callback_that_raises_harms_no_other_call(caplog: pytest.LogCaptureFixture) -> None:
    async def story(caller: Rpc, listener: Rpc, addr: str) -> None:
        listener.handle(Report, lambda m, c: ReportReply(m.incarnation, True))
        seen: list[object] = []

        def bad(reply: object) -> None:
            seen.append(reply)
            raise ValueError("a mistake of whoever called")

        caller.call_soon(addr, report(1), bad)
        assert await caller.call(addr, report(2)) == ReportReply(2, True)
        assert seen == [ReportReply(1, True)]
        assert "a mistake of whoever called" in caplog.text

    run(story)


def test_a_stranger_gets_nothing_handled_and_no_room() -> None:
    async def story(caller: Rpc, listener: Rpc, addr: str) -> None:
        listener.handle(Report, lambda m, c: pytest.fail("handled without a hello"))
        host, _, port = addr.rpartition(":")
        body = msgspec.msgpack.encode(report())
        for data in (frame(REQUEST, 3, 1, body), frame(REQUEST, 3, 1, bytes(1_000_000))[:200_000]):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(data)
            with contextlib.suppress(ConnectionResetError):
                await reader.read()
            writer.close()
        assert not listener._accepted

    run(story)


def test_both_sides_learn_that_a_connection_is_lost() -> None:
    async def story(caller: Rpc, listener: Rpc, addr: str) -> None:
        lost: list[str] = []
        told = asyncio.Event()

        def note(where: str) -> None:
            lost.append(where)
            told.set()

        caller.on_peer_lost(note)
        listener.handle(Leave, lambda m, c: Ack(1))
        await caller.call(addr, Leave(FunctionID("f"), 1))
        await listener.close()
        await told.wait()
        assert lost == [addr]

    run(story)


def test_close_lets_a_handler_answer() -> None:
    async def story(caller: Rpc, listener: Rpc, addr: str) -> None:
        started, may_end = asyncio.Event(), asyncio.Event()

        async def answer(message: Report, who: Caller) -> ReportReply:
            started.set()
            await may_end.wait()
            return ReportReply(1, True)

        listener.handle(Report, answer)
        call = asyncio.create_task(caller.call(addr, report()))
        await started.wait()
        closing = asyncio.create_task(listener.close())
        may_end.set()
        assert await call == ReportReply(1, True)
        await closing

    run(story)


class Records(logging.Handler):
    """Gathers log records, and says when there are enough."""

    def __init__(self, enough: int) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.enough = enough
        self.there = asyncio.Event()

    def emit(self, entry: logging.LogRecord) -> None:
        self.texts.append(entry.getMessage())
        if len(self.texts) == self.enough:
            self.there.set()


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_wrong_key_is_told_in_the_log_of_both_sides(
    factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def story(caller: Rpc, listener: Rpc, addr: str) -> None:
        records = Records(2)
        logging.getLogger("kserve_ext.rpc").addHandler(records)
        try:
            with pytest.raises(RpcError, match="holds another cluster key"):
                await caller.call(addr, report())
            await records.there.wait()
        finally:
            logging.getLogger("kserve_ext.rpc").removeHandler(records)
        theirs, ours = sorted(records.texts)[::-1]
        assert theirs.startswith("hello with a caller failed: the peer refused the hello: listener holds")
        assert ours.startswith(f"hello with {addr} failed: listener holds another cluster key")

    run(story, caller_key=b"x" * 32, factory=factory)
