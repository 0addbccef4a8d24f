"""Clients of a chaos run: plain HTTP/1.1 over connections of their own, an account of every request in the history.

A request ends in exactly one of: answered (any status), broken (the connection ended first), unreached (nobody
took the connection, or nothing of the request), silent (nothing for SILENT_S). Whether that was right is the
checker's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from typing import NamedTuple

from kserve_ext.rpc.history import History

SILENT_S = 60.0


class Answer(NamedTuple):
    status: int
    body: bytes


class Client:
    """One connection to one shard at a time; requests one after the other."""

    _numbers = itertools.count()

    def __init__(self, said: History, shard: str, addr: tuple[str, int]) -> None:
        self.said, self.shard, self.addr = said, shard, addr
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, host: str, revision: str, path: str = "/") -> str:
        """Sends one request and writes down what became of it; the outcome."""
        number = f"r{next(self._numbers)}"
        began = asyncio.get_running_loop().time()
        outcome, answer, why = "answered", Answer(0, b""), ""
        reached = False
        try:
            async with asyncio.timeout(SILENT_S):
                await self._connect()
                reached = True
                self._send(number, host, path)
                answer = await self._read()
        except TimeoutError:
            outcome = "silent"
        except (OSError, asyncio.IncompleteReadError, ValueError, EOFError) as error:
            outcome, why = "broken" if reached else "unreached", f"{type(error).__name__} {error}"
        if outcome != "answered":
            self.close()
        streamed = "/stream" in path and answer.status == 200
        self.said.say(
            "request",
            request=number,
            shard=self.shard,
            revision=revision,
            path=path,
            began=began,
            outcome=outcome,
            status=answer.status,
            body=answer.body[:400].decode("latin-1") if not streamed else "",
            stream=_stream(answer.body) if streamed else None,
            why=why,
        )
        return outcome if outcome != "answered" else str(answer.status)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _connect(self) -> None:
        if self._writer is not None and self._reader is not None and not self._reader.at_eof():
            return
        self.close()
        self._reader, self._writer = await asyncio.open_connection(*self.addr)

    def _send(self, number: str, host: str, path: str) -> None:
        assert self._writer is not None
        assert self._reader is not None
        # Bytes that nobody asked for: a second answer to an earlier request.
        if self._reader._buffer:  # type: ignore[attr-defined]
            raise ValueError(f"unasked: {bytes(self._reader._buffer[:200])!r}")  # type: ignore[attr-defined]
        self._writer.write(f"GET {path} HTTP/1.1\r\nhost: {host}\r\nx-request-id: {number}\r\n\r\n".encode())

    async def _read(self) -> Answer:
        assert self._reader is not None
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lines = head.split("\r\n")
        status = int(lines[0].split(" ")[1])
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
        body = b""
        if headers.get("transfer-encoding") == "chunked":
            while True:
                size = int(await self._reader.readline(), 16)
                chunk = await self._reader.readexactly(size + 2)
                body += chunk[:-2]
                if not size:
                    break
        elif "content-length" in headers:
            body = await self._reader.readexactly(int(headers["content-length"]))
        else:
            body = await self._reader.read()
        if headers.get("connection", "").lower() == "close":
            self.close()
        return Answer(status, body)


def _stream(body: bytes) -> dict[str, object]:
    """What came of a stream: how many events in order, whether it was done, whether it told of an error."""
    count, order, done, error, after = 0, True, 0, 0, False
    for line in body.decode("latin-1").split("\n\n"):
        if not line.strip():
            continue
        after = after or bool(done)
        data = line.rpartition("data: ")[2]
        if data == "[DONE]":
            done += 1
        elif '"error"' in data:
            error += 1
        else:
            with contextlib.suppress(ValueError):
                order = order and json.loads(data) == count
            count += 1
    return {
        "events": count,
        "in_order": order,
        "done": done,
        "errors": error,
        "after_done": after and done < 2,
    }
