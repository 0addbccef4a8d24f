"""One server: `--port N --model FILE`. It reads the model, and only then listens and says that it is ready.

GET /            {"model": what the file says, "sha256": of it, "pid", "revision"}
GET /sleep?s=1   the same after so many seconds
GET /events?n=3  an event stream: so many events, every `s` seconds (0.1), and [DONE]
GET /head        the request's own head
POST             its body
GET /exit?code=3 ends the process
An Upgrade to anything echoes bytes from then on. SIGTERM ends it when nothing is under way.

`--wait-for FILE` keeps it loading until there is such a file; `--silent` says nothing of its state.
A file that is not there, or is empty, is refused as our runtimes refuse (status failed, exit code 2).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from runtimes.vllm_pd.status import StartRefused, Status


class Server:
    def __init__(self, model: bytes) -> None:
        self._facts: dict[str, Any] = {
            "model": model[:64].decode(errors="replace"),
            "sha256": hashlib.sha256(model).hexdigest(),
            "pid": os.getpid(),
            "revision": os.environ.get("GALAXY_REVISION", ""),
        }
        self._busy = 0
        self.ended = asyncio.Event()
        self._draining = False

    def drain(self) -> None:
        self._draining = True
        if not self._busy:
            self.ended.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other side went, or this one ends
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        self._busy += 1
        try:
            return await self._answer(head, reader, writer)
        finally:
            self._busy -= 1
            if self._draining and not self._busy:
                self.ended.set()

    async def _answer(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        lines = head.decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        method, target, _ = lines[0].split(" ")
        url = urlsplit(target)
        query = dict(parse_qsl(url.query))
        body = await reader.readexactly(int(fields.get("content-length") or 0))
        if "upgrade" in fields.get("connection", "").lower():
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n")
            writer.write(b"Upgrade: %s\r\n\r\n" % fields["upgrade"].encode())
            while data := await reader.read(65536):
                writer.write(data)
            return False
        if url.path == "/sleep":
            await asyncio.sleep(float(query.get("s", "1")))
        elif url.path == "/exit":
            os._exit(int(query.get("code", "3")))
        elif url.path == "/events":
            await _events(writer, int(query.get("n", "3")), float(query.get("s", "0.1")))
            return True
        said = json.dumps(self._facts).encode()
        if url.path == "/head":
            said = head
        elif method == "POST":
            said = body
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n" % len(said) + said)
        await writer.drain()
        return True


async def _events(writer: asyncio.StreamWriter, count: int, every_s: float) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    for i in range(count):
        event = b"data: %d\n\n" % i
        writer.write(b"%x\r\n%s\r\n" % (len(event), event))
        await writer.drain()
        await asyncio.sleep(every_s)
    writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
    await writer.drain()


def _load(path: Path) -> bytes:
    file = path / "model.bin" if path.is_dir() else path
    try:
        model = file.read_bytes()
    except OSError as error:
        raise StartRefused(str(error), "--model", "give a file, or a folder with model.bin") from error
    if not model:
        raise StartRefused(f"{file} is empty", "--model", "give a file with something in it")
    return model


async def _run(status: Status, model: bytes, host: str, port: int) -> None:
    server = Server(model)
    listener = await asyncio.start_server(server.serve, host, port, backlog=1024)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.drain)
    status.listening(port)
    status.event("ready")
    status.enter("ready")
    await server.ended.wait()
    listener.close()


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    made.add_argument("--host", default="127.0.0.1")
    made.add_argument("--port", type=int, required=True)
    made.add_argument("--model", type=Path, required=True)
    made.add_argument("--wait-for", type=Path)
    made.add_argument("--silent", action="store_true")
    return made


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    status = Status(None) if args.silent else Status.from_environment()
    status.enter("loading")
    while args.wait_for is not None and not args.wait_for.exists():
        time.sleep(0.01)
    try:
        model = _load(args.model)
    except StartRefused as refusal:
        status.fail(refusal)
        return 2
    asyncio.run(_run(status, model, args.host, args.port))
    return 0
