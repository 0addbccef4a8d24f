"""Streams that break off and go on at another instance, over real sockets: the client has each byte once."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activator_replacement.continuing import MOST_CONTINUATIONS
from activator_replacement.seam import CLIENT_GONE, OK, TIMEOUT
from kserve_ext.wire.continuation import END, SEAM, chunk
from tests.support.dataplane import (
    Client,
    HoldingDispatch,
    dataplane,
    instance,
    post,
    read_chunked,
    read_request,
    run,
    unchunk,
)

EVENTS = [b'data: {"text": "%d"}\n\n' % n for n in range(1, 9)]
DONE = b"data: [DONE]\n\n"
WHOLE = b"".join(EVENTS) + DONE
BODY = b'{"stream": true, "prompt": "x"}'
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Galaxy-Continuation: 17\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def mark(text: bytes) -> bytes:
    return b": galaxy " + text + b"\n\n"


class Engine:
    """Streams EVENTS with marks, or what follows in them on a record. Each of `lives` is after how many bytes it
    breaks off."""

    def __init__(self, *lives: int) -> None:
        self.lives = list(lives)
        self.asked: list[bytes] = []
        self.bodies: list[bytes] = []
        self.status = b"200 OK"  # of what it is asked to go on with
        self.die = asyncio.Event()
        self.die.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, body = await read_request(reader)
            found = re.search(rb"X-Galaxy-Continuation: (\S+)\r\n", head)
            self.asked.append(found[1] if found else b"")
            self.bodies.append(body)
            told = 0
            if found and found[1].startswith(b"resume="):
                assert head.lower().count(b"content-length") == 1
                size = int(found[1].partition(b"=")[2])
                assert body[:size] == BODY
                begins, *marks = body[size:].split(b"\n")
                assert begins == b"17"
                assert marks == [b"%d %d" % (n, n) for n in range(1, len(marks) + 1)]
                told = len(marks)
                if self.status != b"200 OK":
                    writer.write(b"HTTP/1.1 " + self.status + b"\r\nContent-Length: 0\r\n\r\n")
                    continue
            out = b"".join(
                chunk(event + mark(b"%d %d" % (n, n))) for n, event in enumerate(EVENTS[told:], told + 1)
            )
            out += chunk(DONE + mark(b"done")) + END
            life = self.lives.pop(0) if self.lives else len(out)
            writer.write(HEAD + out[:life])
            await writer.drain()
            if life < len(out):
                await self.die.wait()
                writer.transport.abort()
                return


@contextlib.asynccontextmanager
async def streaming(engine: Engine) -> AsyncIterator[tuple[HoldingDispatch, Client, str]]:
    async with instance(engine.serve) as addr:
        dispatch = HoldingDispatch(addr)
        dispatch.continues = dispatch.requeue = True
        async with dataplane(dispatch) as (server, host, port, _):
            client = await Client.connect(host, port)
            client.send(post(BODY))
            yield dispatch, client, addr
            assert server.plane.kept_bytes == 0


def test_marks_are_taken_out_of_a_stream_that_ends_as_it_should() -> None:
    async def test() -> None:
        engine = Engine()
        async with streaming(engine) as (dispatch, client, _):
            status, head, body = await client.response()
            assert (status, body) == (200, WHOLE)
            assert b"galaxy" not in head.lower()
            assert engine.asked == [b"marks"]
            client.send(post(BODY))  # the connections are at rest again, on both sides
            assert (await client.response())[2] == WHOLE
            assert dispatch.outcomes == [OK, OK]

    run(test())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 420), min_size=1, max_size=MOST_CONTINUATIONS))
def test_dead_after_any_bytes_it_goes_on_elsewhere(lives: list[int]) -> None:
    async def test() -> None:
        engine = Engine(*lives)
        async with streaming(engine) as (dispatch, client, addr):
            reading = asyncio.create_task(client.response())
            while not reading.done():
                dispatch.changed.clear()
                if dispatch.held:
                    dispatch.release(addr)
                waiting = asyncio.create_task(dispatch.changed.wait())
                await asyncio.wait([reading, waiting], return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
            _, _, body = await reading
            assert body.replace(SEAM, b"") == WHOLE
            assert body.count(SEAM) == len(engine.asked) - 1
            assert dispatch.outcomes == [OK]
            assert not dispatch.in_flight

    run(test())


def test_it_is_held_until_there_is_an_instance_and_counted() -> None:
    async def test() -> None:
        engine = Engine(100)
        async with instance(engine.serve) as addr:
            dispatch = HoldingDispatch(addr)
            dispatch.continues = dispatch.requeue = True
            async with dataplane(dispatch) as (server, host, port, _):
                client = await Client.connect(host, port)
                client.send(post(BODY))
                await dispatch.until(lambda: bool(dispatch.held))
                assert server.plane.kept_bytes == len(BODY)
                dispatch.release(addr)
                assert (await client.response())[2].replace(SEAM, b"") == WHOLE
                counters = server.plane.counters
                assert (counters.continued, counters.not_continued) == (1, 0)
                assert counters.responses == {200: 1}
                assert server.plane.kept_bytes == 0
                assert dispatch.calls[-3:] == ["sent", "first_byte", "finished"]

    run(test())


async def ends_with_error(client: Client, said: bytes) -> None:
    head = await client.reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    body = unchunk(await read_chunked(client.reader))
    events = body.replace(SEAM, b"").split(b"\n\n")
    assert events[-2].startswith(b'data: {"error": {')
    assert said in events[-2]
    assert b"[DONE]" not in body
    assert WHOLE.startswith(b"".join(event + b"\n\n" for event in events[:-2]))


def test_a_stream_that_kills_every_instance_comes_to_an_end() -> None:
    async def test() -> None:
        engine = Engine(*[60] * 9)
        async with streaming(engine) as (dispatch, client, addr):
            reading = asyncio.create_task(ends_with_error(client, b"in the middle of its response"))
            for _ in range(MOST_CONTINUATIONS):
                await dispatch.until(lambda: bool(dispatch.held))
                dispatch.release(addr)
            await reading
            assert len(engine.asked) == 1 + MOST_CONTINUATIONS

    run(test())


@pytest.mark.parametrize("status", [b"503 Loading", b"400 No", b"200 OK\r\nX-Other: 1"])
def test_an_instance_that_does_not_take_it_up(status: bytes) -> None:
    async def test() -> None:
        engine = Engine(60)
        engine.status = status
        async with streaming(engine) as (dispatch, client, addr):
            await dispatch.until(lambda: bool(dispatch.held))
            dispatch.release(addr)
            if status.startswith(b"503"):  # perhaps another one does
                await dispatch.until(lambda: bool(dispatch.held))
                dispatch.requeue = False
                dispatch.release(addr)
            await ends_with_error(client, b"did not go on with the stream")
            assert not dispatch.in_flight

    run(test())


def test_no_instance_in_time() -> None:
    async def test() -> None:
        async with streaming(Engine(60)) as (dispatch, client, _):
            await dispatch.until(lambda: bool(dispatch.held))
            dispatch.held[0].timeout_s = 0.01
            await ends_with_error(client, b"no instance was free")
            assert dispatch.outcomes == [TIMEOUT]

    run(test())


def test_dispatch_refuses_it() -> None:
    async def test() -> None:
        async with streaming(Engine(60)) as (dispatch, client, _):
            await dispatch.until(lambda: bool(dispatch.held))
            dispatch.held.popleft().refuse(503, "nobody can serve", 1.0)
            await ends_with_error(client, b"nobody can serve")

    run(test())


def test_a_client_that_goes_while_its_stream_is_held_ends_it() -> None:
    async def test() -> None:
        async with streaming(Engine(60)) as (dispatch, client, _):
            await dispatch.until(lambda: bool(dispatch.held))
            client.close()
            await dispatch.until(lambda: not dispatch.held)
            assert dispatch.outcomes == [CLIENT_GONE]

    run(test())


@pytest.mark.parametrize("why", ["off", "too large", "too many", "chunked", "another path"])
def test_what_is_not_continued_is_not_asked_for_marks(why: str) -> None:
    limits: dict[str, Any] = {
        "too large": {"continued_body_bytes": 10},
        "too many": {"continued_bytes": 10},
    }.get(why, {})

    async def test() -> None:
        engine = Engine()
        async with instance(engine.serve) as addr:
            dispatch = HoldingDispatch(addr)
            dispatch.continues = why != "off"
            async with dataplane(dispatch, **limits) as (server, host, port, _):
                client = await Client.connect(host, port)
                sent = post(BODY, "X-Galaxy-Continuation: marks")  # a client's own goes no further
                if why == "chunked":
                    sent = sent.replace(b"Content-Length: %d" % len(BODY), b"Transfer-Encoding: chunked")
                    sent = sent.replace(BODY, chunk(BODY) + END)
                if why == "another path":
                    sent = sent.replace(b"/v1/completions", b"/v2/models/x/infer")
                client.send(sent)
                await client.response()
                assert engine.asked == [b""]
                assert server.plane.kept_bytes == 0

    run(test())
