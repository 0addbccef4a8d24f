"""Sleep and wake, as an engine is told: on control.sock in its folder, else by vLLM's own endpoints of its port.

A runtime of ours listens on the socket (runtimes/vllm_pd/control.py), where its channels end before its engine sleeps
and begin anew, in the generation that is said, after it has woken. Another one is told as vLLM's server is in its
development mode (vllm/entrypoints/serve/dev/sleep): POST /sleep and /wake_up, and GET /is_sleeping has the last word.
"""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any, Final

from kserve_ext.rpc.unix_socket import dial

SOCKET: Final = "control.sock"
#: Weights to host memory, KV cache dropped (2 drops the weights as well).
LEVEL: Final = 1
_MOST_BYTES: Final = 1 << 20
_LENGTH: Final = re.compile(rb"\r\ncontent-length:\s*(\d{1,6})\s*\r\n", re.IGNORECASE)


class NotDone(Exception):
    """The engine didn't, and what it says."""


async def sleep(folder: Path, port: int) -> None:
    """Raises NotDone, or OSError."""
    if (folder / SOCKET).exists():
        await _say(folder / SOCKET, {"sleep": True}, "asleep")
        return
    await _post(port, f"/sleep?level={LEVEL}&mode=wait")
    if await _sleeps(port) is not True:
        raise NotDone("it says that it sleeps, and /is_sleeping that it doesn't")


async def wake(folder: Path, port: int, generation: int) -> None:
    """Likewise."""
    if (folder / SOCKET).exists():
        await _say(folder / SOCKET, {"wake": True, "generation": generation}, "awake")
        return
    await _post(port, "/wake_up")
    if await _sleeps(port) is not False:
        raise NotDone("it says that it is awake, and /is_sleeping that it isn't")


async def _say(path: Path, order: dict[str, Any], state: str) -> None:
    reader, writer = await dial(path, limit=_MOST_BYTES)
    try:
        writer.write(json.dumps(order).encode() + b"\n")
        answer = _object(await reader.readline(), "its control socket")
    finally:
        writer.close()
    if answer.get("state") != state:
        said = [str(answer[key]) for key in ("error", "remedy") if answer.get(key)]
        raise NotDone("; ".join(said) or f"it is {answer.get('state', 'silent')}")


async def _post(port: int, target: str) -> None:
    status, body = await _http(port, "POST", target)
    if status == 404:
        raise NotDone(
            f"it has no {target.partition('?')[0]}: start vLLM with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1"
        )
    if status != 200:
        raise NotDone(f"{target.partition('?')[0]} answers {status}: {body[:300].decode(errors='replace')}")


async def _sleeps(port: int) -> bool | None:
    status, body = await _http(port, "GET", "/is_sleeping")
    return _object(body, "/is_sleeping").get("is_sleeping") if status == 200 else None


async def _http(port: int, method: str, target: str) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        lines = (
            f"{method} {target} HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            "Content-Length: 0",
            "Connection: close",
        )
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await (reader.readexactly(int(length[1])) if length else reader.read(_MOST_BYTES))
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise NotDone(f"{target} is not answered whole ({error})") from None
    finally:
        writer.close()
    words = head.split(None, 2)
    if len(words) < 2 or not words[1].isdigit():
        raise NotDone(f"{target} has no answer")
    return int(words[1]), body


def _object(text: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise NotDone(f"{where} answers {text[:100]!r}, which is no JSON object")
    return found
