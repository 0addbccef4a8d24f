"""What servers are forked from: a runtime's zygote, started here, asked over its socket (kserve_ext/rpc/zygote.py).

Its `ping` answers that it is ready when the next fork can be had at once: a plain zygote after its imports; one that
keeps an engine ready for the next server, once that stands again. Forks write to the slot's own output.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from autoscaler_shim.node.process_backend import base_environment
from autoscaler_shim.node.processes import Process, identify
from autoscaler_shim.node.watcher import Exit, Watcher
from kserve_ext.rpc.unix_socket import dial

log = logging.getLogger(__name__)

DIAL_PERIOD_S = 0.02
FORK_TIMEOUT_S = 30.0


#: Run as the zygote would be: whether there is such a module, without its imports but those of the packages above it.
_IS_THERE = """
import importlib.util, sys
wanted = sys.argv[1]
try:
    found = importlib.util.find_spec(wanted)
except ModuleNotFoundError as error:
    sys.exit(3 if wanted.startswith(error.name or "?") else 0)
sys.exit(0 if found else 3)
"""
_MISSING = 3
LOOK_TIMEOUT_S = 60.0


class NoFork(Exception):
    """No server came of it, and why."""


class Forked(NamedTuple):
    process: Process
    why: str  # it is not the process that the zygote kept ready; "" = it is, or none is kept


class Base:
    def __init__(
        self,
        module: str,
        socket: Path,
        watcher: Watcher,
        own: set[int],
        ready: Callable[[str], None],
        died: Callable[[str, bool], None],
    ) -> None:
        """`own`: pids that are waited for here; `ready` hears why nothing is kept ready where it should be; `died`
        whether it would be the same the next time."""
        self.module = module
        self._socket = socket
        self._watcher = watcher
        self._own = own
        self._ready = ready
        self._died = died
        self._process: Process | None = None
        self._checking: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._answered = False  # a ping, ever

    @property
    def process(self) -> Process | None:
        """Of the zygote; None while there is none."""
        return self._process

    def start(self) -> None:
        self._socket.unlink(missing_ok=True)
        command = [sys.executable, "-m", f"{self.module}.zygote"]
        command += ["--socket", str(self._socket), "--name", self.module]
        # What the slot itself is told, a zygote that keeps an engine ready must know, too.
        own = {name: value for name, value in os.environ.items() if name.startswith("GALAXY_SLOT_")}
        env = base_environment() | own
        try:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=env, start_new_session=True)
        except OSError as error:
            asyncio.get_running_loop().call_soon(
                self._died, f"the zygote of {self.module} can't begin ({error})", False
            )
            return
        self._own.add(child.pid)
        process = identify(child.pid) or Process(child.pid, 0)
        self._process = process

        def ended(exit: Exit) -> None:
            self._own.discard(child.pid)
            if self._process == process:
                self._process = None
                how = f"signal {exit.signum}" if exit.signum else f"exit code {exit.code}"
                why = f"the zygote of {self.module} ended ({how})"
                if self._answered or exit.signum:
                    self._died(why, False)
                else:
                    self._looking = asyncio.get_running_loop().create_task(self._look(why))

        self._watcher.watch(process, ended, child=child)
        self.check()

    def check(self) -> None:
        """`ready` is called once the next fork can be had at once."""
        if self._checking is None or self._checking.done():
            self._checking = asyncio.get_running_loop().create_task(self._check())

    async def fork(self, argv: tuple[str, ...], env: dict[str, str], folder: Path) -> Forked:
        """Raises NoFork."""
        request = {
            "argv": list(argv),
            "env": env,
            "stdio": "inherit",
            "hold": True,  # what a new engine writes isn't to be taken for the revision's
            "instance_dir": str(folder),
        }
        try:
            answer = await asyncio.wait_for(self._ask(request), FORK_TIMEOUT_S)
        except TimeoutError:
            self.kill()  # so that it does not fork later
            raise NoFork(f"the zygote of {self.module} forked nothing within {FORK_TIMEOUT_S:g} s") from None
        except (OSError, ValueError) as error:
            raise NoFork(f"the zygote of {self.module} did not answer ({error})") from error
        pid = answer.get("pid")
        if not isinstance(pid, int):
            raise NoFork(f"the zygote of {self.module} refused: {answer.get('error', answer)}")
        return Forked(identify(pid) or Process(pid, 0), str(answer.get("forked") or ""))

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill_group()

    def close(self) -> None:
        for task in (self._checking, self._looking):
            if task is not None:
                task.cancel()

    async def _look(self, why: str) -> None:
        """It has never answered: whether there is one at all."""
        module = f"{self.module}.zygote"
        try:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", _IS_THERE, module),
                stdin=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                env=base_environment(),
            )
            self._own.add(child.pid)
            try:
                missing = await asyncio.wait_for(child.wait(), LOOK_TIMEOUT_S) == _MISSING
            finally:
                self._own.discard(child.pid)
        except (OSError, TimeoutError):
            missing = False
        if missing:
            why = (
                f"the image has no module {module}: give the runtime one (docs/standby-slot.md), or name the package "
                "that has it in the annotation kserve-galaxy.io/zygote"
            )
        self._died(why, missing)

    async def _check(self) -> None:
        process = self._process
        while process is not None and self._process == process:
            try:
                answer = await self._ask({"ping": True})
            except (OSError, ValueError):
                answer = {}
            self._answered = self._answered or bool(answer)
            if answer.get("ready") and self._process == process:
                kept = answer.get("kept")
                self._ready(kept if isinstance(kept, str) else "")
                return
            await asyncio.sleep(DIAL_PERIOD_S)

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        reader, writer = await dial(self._socket)
        try:
            writer.write(json.dumps(request).encode() + b"\n")
            await writer.drain()
            answer = json.loads(await reader.readline())
        finally:
            writer.close()
        if not isinstance(answer, dict):
            raise ValueError(f"not a JSON object: {answer!r}")
        return answer
