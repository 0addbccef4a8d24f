"""How the agent learns what its instances say of themselves: a socket that wakes it, and the status file.

An instance of our runtimes writes `status.json` and sends a line to the ready socket; the line is a wake-up
only, the file is what counts, so nothing depends on who sent it, and a line that is lost costs POLL_S. A foreign
command says nothing: it is ready when its readiness path answers 200 to 399, or its port accepts a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from autoscaler_shim.node.folders import read_json
from kserve_ext.core.facts import Mark
from kserve_ext.rpc.unix_socket import BACKLOG

POLL_S = 0.25
PROBE_PERIOD_S = 0.1
PROBE_TIMEOUT_S = 1.0


class Said(NamedTuple):
    """The content of a status.json."""

    phase: str
    pid: int
    port: int
    marks: tuple[Mark, ...]
    error: str  # what is wrong, where, and the remedy
    kv: dict[str, Any] | None = None  # its channels to the other role's instances


class ReadySocket:
    """Calls `poke` for each line that arrives."""

    def __init__(self, poke: Callable[[], None]) -> None:
        self._poke = poke
        self._server: asyncio.AbstractServer | None = None

    async def listen(self, path: Path) -> None:
        _clear(path)
        self._server = await asyncio.start_unix_server(self._serve, str(path), backlog=BACKLOG)
        os.chmod(path, 0o600)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while await reader.read(65536):
                self._poke()
        writer.close()


def _status(line: bytes) -> int:
    """The status of an HTTP response's first line, 0 if it is none."""
    words = line.split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


def _clear(path: Path) -> None:
    """A socket that an earlier agent has left."""
    path.unlink(missing_ok=True)


def read_status(folder: Path) -> Said | None:
    facts = read_json(folder / "status.json")
    if not facts:
        return None
    marks = [
        Mark(str(e.get("name", "")), float(e.get("at", 0.0)))
        for e in facts.get("events") or ()
        if isinstance(e, dict)
    ]
    return Said(
        str(facts.get("phase", "")),
        int(facts.get("pid") or 0),
        int(facts.get("port") or 0),
        tuple(marks),
        _error_text(facts.get("error")),
        kv if isinstance(kv := facts.get("kv"), dict) else None,
    )


def _error_text(error: object) -> str:
    if not isinstance(error, dict):
        return str(error) if error else ""
    text = str(error.get("error", ""))
    if error.get("field"):
        text = f"{error['field']}: {text}"
    return f"{text}; {error['remedy']}" if error.get("remedy") else text


async def answers(host: str, port: int, path: str) -> bool:
    """One probe of a foreign command."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                if not path:
                    return True
                head = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
                writer.write(head.encode())
                await writer.drain()
                return 200 <= _status(await reader.readline()) < 400
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
