"""What only the node may tell an instance, over a unix socket in its folder: a JSON object a line.

{"sleep": true} and {"wake": true, "generation": N} -> {"state"}, or {"error", "field", "remedy"}. Not over HTTP: who
reaches its port is a user.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtimes.vllm_pd.sleep import Sleeper, SleepRefused

SOCKET = "control.sock"
_LONGEST = 100  # characters of a unix socket's path, of 107


class Control:
    """`died`: called when the engine is in no known state."""

    def __init__(self, sleeper: Sleeper, died: Callable[[BaseException], None]) -> None:
        self._sleeper = sleeper
        self._died = died
        self._server: asyncio.Server | None = None
        self._path = ""
        self._order = asyncio.Lock()

    async def listen(self, folder: Path) -> None:
        path = str(folder / SOCKET)
        if len(path) > _LONGEST:
            return
        with contextlib.suppress(OSError):
            os.unlink(path)
        self._server = await asyncio.start_unix_server(self._serve, path)
        self._path = path
        os.chmod(path, 0o600)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            answer = await self.answer(await reader.readuntil(b"\n"))
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()

    async def answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            async with self._order:
                if request.get("sleep"):
                    await self._sleeper.sleep()
                elif request.get("wake"):
                    await self._sleeper.wake(int(request["generation"]))
                return {"state": self._sleeper.state, "generation": self._sleeper.generation}
        except SleepRefused as refusal:
            return {"error": refusal.error, "field": refusal.field, "remedy": refusal.remedy}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if self._sleeper.state != "failed":
                return {
                    "error": f"{type(error).__name__}: {error}",
                    "field": "request",
                    "remedy": "correct it",
                }
            self._died(error)
            return {"error": str(error), "field": "engine", "remedy": "replace its process"}
        except Exception as error:
            self._died(error)
            return {"error": str(error), "field": "engine", "remedy": "replace its process"}
