"""An instance serves no more at once than its revision's concurrency, whoever asks; what is refused has not begun."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from runtimes.vllm_pd.breaker import VARIABLE, Breaker, Message, Receive, Scope, Send
from runtimes.vllm_pd.http_server import http_server, listen

LONG_S = 60.0


class Served:
    """Requests at a Breaker, each of which ends when it is told to."""

    def __init__(self, limit: str, grace_s: float = 0.0) -> None:
        self.breaker = Breaker(self._app, {VARIABLE: limit}, grace_s=grace_s)
        self.begun: list[str] = []
        self.came = asyncio.Event()
        self.ends: dict[str, asyncio.Event] = {}
        self.gone: dict[str, asyncio.Event] = {}

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        self.begun.append(path)
        self.came.set()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        waits = [asyncio.ensure_future(w) for w in (self.ends[path].wait(), receive())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await send({"type": "http.response.body", "body": b"x"})

    def ask(self, path: str, **headers: str) -> asyncio.Task[tuple[int, dict[bytes, bytes]]]:
        self.ends[path], self.gone[path] = asyncio.Event(), asyncio.Event()
        return asyncio.create_task(self._ask(path, headers or {"x-request-id": path}))

    async def _ask(self, path: str, headers: dict[str, str]) -> tuple[int, dict[bytes, bytes]]:
        said: list[Message] = []

        async def receive() -> Message:
            await self.gone[path].wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            said.append(message)

        raw = [(k.encode(), v.encode()) for k, v in headers.items()]
        scope: dict[str, Any] = {"type": "http", "path": path, "headers": raw}
        await self.breaker(scope, receive, send)
        return said[0]["status"], dict(said[0]["headers"])

    async def until(self, count: int) -> None:
        while len(self.begun) < count:
            self.came.clear()
            await self.came.wait()


def test_what_is_over_is_refused_before_it_has_begun() -> None:
    async def test() -> None:
        served = Served("2")
        first, second = served.ask("/1"), served.ask("/2")
        await served.until(2)
        status, head = await served.ask("/3")
        assert (status, head[b"x-galaxy-full"]) == (503, b"1")
        assert served.begun == ["/1", "/2"]
        served.ends["/1"].set()
        assert (await first)[0] == 200
        third = served.ask("/4")
        await served.until(3)
        for path in ("/2", "/4"):
            served.ends[path].set()
        assert [(await task)[0] for task in (second, third)] == [200, 200]
        assert served.breaker.in_flight == 0

    asyncio.run(test())


@pytest.mark.parametrize("how", ["ends", "gone"])
def test_one_that_is_just_over_is_waited_for(how: str) -> None:
    async def test() -> None:
        served = Served("1", LONG_S)
        first = served.ask("/1")
        await served.until(1)
        second = served.ask("/2")
        await asyncio.sleep(0)
        getattr(served, how)["/1"].set()
        await served.until(2)
        served.ends["/2"].set()
        assert ((await first)[0], (await second)[0]) == (200, 200)
        assert served.breaker.in_flight == 0

    asyncio.run(test())


def test_of_those_who_wait_as_many_go_on_as_there_are_places() -> None:
    async def test() -> None:
        served = Served("1", LONG_S)
        first = served.ask("/0")
        await served.until(1)
        waiting = [served.ask(f"/{k}") for k in range(1, 4)]
        for k in range(4):
            await served.until(k + 1)
            assert (len(served.begun), served.breaker.in_flight) == (k + 1, 1)
            served.ends[served.begun[k]].set()
        assert [(await task)[0] for task in (first, *waiting)] == [200] * 4

    asyncio.run(test())


@pytest.mark.parametrize(("limit", "headers"), [("0", {}), ("", {}), ("1", {"user-agent": "kube-probe/1"})])
def test_without_a_limit_and_without_dispatch_nothing_is_counted(limit: str, headers: dict[str, str]) -> None:
    async def test() -> None:
        served = Served(limit)
        tasks = [served.ask(f"/{k}", **headers) for k in range(3)]
        await served.until(3)
        for end in served.ends.values():
            end.set()
        assert [(await task)[0] for task in tasks] == [200] * 3

    asyncio.run(test())


def test_over_http_a_second_one_is_refused_until_the_first_client_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, "1")

    async def test() -> None:
        begun = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            begun.set()
            if scope["path"] == "/long":
                while (await receive())["type"] != "http.disconnect":
                    pass
            else:
                await send({"type": "http.response.start", "status": 204, "headers": []})
                await send({"type": "http.response.body", "body": b""})

        async def ask(path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nx-request-id: {path}\r\n\r\n".encode())
            return reader, writer

        listener = listen("127.0.0.1", 0)
        port = listener.getsockname()[1]
        server = http_server(app, 1.0)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        _, first = await ask("/long")
        await begun.wait()
        reader, second = await ask("/short")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nx-galaxy-full: 1\r\n" in head
        first.transport.abort()
        while not head.startswith(b"HTTP/1.1 204 "):  # it is noticed in a moment
            reader, third = await ask("/short")
            head = await reader.readuntil(b"\r\n\r\n")
            third.close()
        second.close()
        server.should_exit = True
        await serving

    asyncio.run(test())
