"""The engine that a router starts for itself: a plain server on a port of its own, which ends with the router.

The command is the engine's own; `--host 127.0.0.1 --port N` is appended to it, and NIXL's side channel gets a
port, for several engines of one machine would otherwise take the same. Where either is given already, it stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
from collections.abc import Sequence
from typing import Final

from kserve_ext.rpc.ports import free_ports
from runtimes.vllm_pd.status import StartRefused

_SIDE_CHANNEL: Final = "VLLM_NIXL_SIDE_CHANNEL_PORT"
_KILL_AFTER_S: Final = 10.0
_PR_SET_PDEATHSIG: Final = 1


class Child:
    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self._process = process
        self.url = url

    @classmethod
    async def start(cls, command: Sequence[str]) -> Child:
        """Raises StartRefused."""
        program = shutil.which(command[0])
        if program is None:
            remedy = "install it, or correct the command after --"
            raise StartRefused(f"there is no program {command[0]!r} here", "command", remedy)
        port, side = free_ports(2)
        env = {name: value for name, value in os.environ.items() if not name.startswith("GALAXY_")}
        env.pop("PORT", None)
        env.setdefault(_SIDE_CHANNEL, str(side))
        words = [*command[1:], "--host", "127.0.0.1", "--port", str(port)]
        process = await asyncio.create_subprocess_exec(program, *words, env=env, preexec_fn=_end_with_parent)
        return cls(process, f"http://127.0.0.1:{port}")

    async def ended(self) -> int:
        """Its exit code, once it has one."""
        return await self._process.wait()

    async def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), _KILL_AFTER_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


def _end_with_parent() -> None:
    """In the child: the kernel ends it when the router is killed. (Engines end their own workers when they end.)"""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
