"""Decode's cache of channels: where a peer's channels listen, and dials that nobody waits for any more."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from queue import SimpleQueue
from typing import Any

import pytest

from runtimes.transport.channel import ChannelError
from runtimes.transport.handshake import Identity
from runtimes.transport.layout import Layout
from runtimes.transport.listener import Listener
from runtimes.transport.pair import Channel
from runtimes.vllm_pd import channels
from runtimes.vllm_pd.channels import Channels, lookup
from runtimes.vllm_pd.home_client import Lease

WAIT_S = 60.0
KEY = b"k" * 32
LEASE = Lease("l1", "p-1", "127.0.0.1:9", 7)


class _Prefill(BaseHTTPRequestHandler):
    answer = b'{"channel": "127.0.0.1:4711"}'

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/galaxy/channel" else 404)
        self.send_header("content-length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def addr() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Prefill)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_a_proxy_is_not_asked_for_a_peer(addr: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert lookup(addr) == "127.0.0.1:4711"


@pytest.mark.parametrize("answer", [b"not JSON", b"{}", b""])
def test_whoever_is_no_prefill_instance_is_unreachable(
    addr: str, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(_Prefill, "answer", answer)
    with pytest.raises(ChannelError) as caught:
        lookup(addr)
    assert caught.value.reason == "unreachable"


class _Listens:
    """The far side's owner."""

    def __init__(self) -> None:
        self.lost_by: SimpleQueue[ChannelError] = SimpleQueue()

    def message(self, channel: object, body: bytes) -> None:
        return

    def lost(self, channel: object, error: ChannelError) -> None:
        self.lost_by.put(error)


class Dialling:
    """A prefill's listener whose address becomes known when the test says so, and what decode makes of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.accepted: SimpleQueue[Channel] = SimpleQueue()
        self.layout = Layout()
        self.listener = Listener(KEY, lambda: Identity("p-1", 7, self.layout), self.accepted.put)
        self.asked, self.answer = threading.Event(), threading.Event()
        self.known = self.listener.addr
        self.made: list[Channel] = []
        self.errors: list[dict[str, Any]] = []
        monkeypatch.setattr(channels, "lookup", self._lookup)

    def _lookup(self, http_addr: str) -> str:
        self.asked.set()
        assert self.answer.wait(WAIT_S)
        if not self.known:
            raise ChannelError("unreachable", http_addr)
        return self.known

    async def begin(self) -> Channels:
        """A dial whose only waiter has gone."""
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: self.errors.append(context))
        opened = Channels(KEY, Identity("d-1", 3, Layout()), ("tcp",), self.made.append)
        waiter = asyncio.create_task(opened.get(LEASE))
        await asyncio.to_thread(self.asked.wait, WAIT_S)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        return opened

    async def end(self, opened: Channels) -> None:
        [dial] = opened._dialling.values()
        self.answer.set()
        await asyncio.wait([dial])


@pytest.fixture
def dialling(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dialling]:
    made = Dialling(monkeypatch)
    yield made
    made.answer.set()
    made.listener.close()


def test_a_channel_whose_requests_have_gone_is_kept_for_the_next(dialling: Dialling) -> None:
    async def run() -> None:
        opened = await dialling.begin()
        await dialling.end(opened)
        [channel] = dialling.made
        assert await opened.get(LEASE) == (channel, False)
        opened.close()
        assert channel.lost is not None

    asyncio.run(run())
    dialling.accepted.get(timeout=WAIT_S).close()


def test_a_failed_dial_that_nobody_waits_for_is_not_reported_as_an_error(dialling: Dialling) -> None:
    async def run() -> None:
        opened = await dialling.begin()
        dialling.known = ""
        await dialling.end(opened)
        gc.collect()
        with pytest.raises(ChannelError):
            await opened.get(LEASE)

    asyncio.run(run())
    assert not dialling.made
    assert not dialling.errors


def test_a_channel_that_stands_after_the_end_is_closed(dialling: Dialling) -> None:
    async def run() -> None:
        opened = await dialling.begin()
        opened.close()
        await dialling.end(opened)

    asyncio.run(run())
    assert not dialling.made
    assert not dialling.errors
    far = dialling.accepted.get(timeout=WAIT_S)
    listens = _Listens()
    far.start(listens, None)
    assert listens.lost_by.get(timeout=WAIT_S).reason == "closed"
    far.close()


def test_why_blocks_are_of_no_use_is_logged_once_for_each_cause(
    dialling: Dialling, capsys: pytest.CaptureFixture[str]
) -> None:
    why: list[str] = []

    async def run() -> None:
        opened = Channels(KEY, Identity("d-1", 3, Layout(dtype="float32")), ("tcp",), dialling.made.append)
        for dtype in (None, None, "float16"):
            dialling.layout = Layout(dtype=dtype)
            with pytest.raises(ChannelError) as caught:
                await opened.get(LEASE)
            assert caught.value.reason == "incompatible"
            why.append(str(caught.value))

    dialling.answer.set()
    asyncio.run(run())
    assert why[0] == why[1] != why[2]
    logged = capsys.readouterr().err.splitlines()
    assert logged == [f"warning: no KV transfer from p-1: {text}" for text in (why[0], why[2])]
