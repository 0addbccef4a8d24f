"""The zygotes of this node: processes that have done a runtime's imports and fork instances of it on request.

Carries out what kserve_ext/core/node/slots.py decides (which to start, which to end). A zygote has a session of its
own and outlives the agent; the next agent finds it by its file and its socket. It is asked for a fork with one
JSON request a connection (runtimes' zygote.py answers), and while it still imports the request waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autoscaler_shim.node.folders import NodeFolder, read_json, write_json
from autoscaler_shim.node.processes import NOBODY, Process, identify, parent_of
from autoscaler_shim.node.watcher import Exit, Watcher
from kserve_ext.rpc.unix_socket import dial

log = logging.getLogger(__name__)

DIAL_PERIOD_S = 0.05
FORK_TIMEOUT_S = 10.0


class NoZygote(Exception):
    """There is no zygote that could fork: it has died, was ended, or was never started."""


class ZygotePool:
    def __init__(
        self,
        folder: NodeFolder,
        watcher: Watcher,
        env: Mapping[str, str],
        on_ready: Callable[[str], None],
        on_died: Callable[[str], None],
    ) -> None:
        self.folder, self.watcher, self.env = folder, watcher, dict(env)
        self.on_ready, self.on_died = on_ready, on_died
        self._running: dict[str, Process] = {}
        #: done when the zygote of that module is ready; failed with NoZygote when it has died before
        self._ready: dict[str, asyncio.Future[None]] = {}
        #: forks under way; a zygote that is to end meanwhile ends after them
        self._forks: dict[str, int] = {}
        self._ending: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def pids(self) -> dict[int, str]:
        return {process.pid: module for module, process in self._running.items()}

    def parent(self, process: Process, module: str) -> Process:
        """Of a fork of a zygote of this module: that zygote, or nobody where that was an earlier one."""
        own = self._running.get(module, NOBODY)
        return own if parent_of(process) in (own.pid, None) else NOBODY

    def start(self, module: str) -> None:
        socket = self.folder.zygote_socket(module)
        socket.unlink(missing_ok=True)
        command = [sys.executable, "-m", f"{module}.zygote", "--socket", str(socket), "--name", module]
        try:
            with (self.folder.zygotes / f"{module}.log").open("ab") as output:
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=self.env,
                    start_new_session=True,
                )
        except OSError as error:
            log.error("the zygote of %s can't be started: %s", module, error)
            asyncio.get_running_loop().call_soon(self.on_died, module)
            return
        process = identify(child.pid) or Process(child.pid, 0)
        write_json(self._file(module), {"pid": process.pid, "ticks": process.ticks, "module": module})
        self._follow(module, process, child)

    def end(self, module: str) -> None:
        """Ends it as soon as no fork is under way, so that its memory is free; its forks live on."""
        if self._forks.get(module):
            self._ending.add(module)
            return
        process = self._running.pop(module, None)
        if process is not None and process.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self._forget(module)

    def adopt(self) -> list[str]:
        """The modules whose zygotes an earlier agent has left running."""
        found = []
        for file in sorted(self.folder.zygotes.glob("*.json")):
            facts = read_json(file)
            process = Process(facts.get("pid", 0), facts.get("ticks", 0))
            module = str(facts.get("module", ""))
            if module and process.pid and process.alive:
                self._follow(module, process, None)
                found.append(module)
            else:
                file.unlink(missing_ok=True)
        return found

    async def wait(self, module: str) -> None:
        """Until the zygote is ready. Raises NoZygote when there is none, or it ends before."""
        ready = self._ready.get(module)
        if ready is None:
            raise NoZygote(f"there is no zygote of {module} on this node")
        await asyncio.shield(ready)

    async def fork(self, module: str, request: dict[str, Any]) -> int:
        """The pid of a new instance, from a zygote that is ready.

        Raises NoZygote (nothing was forked), or OSError, TimeoutError, ValueError: that isn't known, but the zygote
        is dead, and what it had forked is in its instance's folder or dead, too.
        """
        self._forks[module] = self._forks.get(module, 0) + 1
        try:
            return await self._fork(module, request)
        finally:
            self._forks[module] -= 1
            if module in self._ending and not self._forks[module]:
                self._ending.discard(module)
                self.end(module)

    async def _fork(self, module: str, request: dict[str, Any]) -> int:
        process = self._running.get(module)
        try:
            reader, writer = await dial(self.folder.zygote_socket(module))
        except OSError as error:
            raise NoZygote(f"the zygote of {module} can't be reached: {error}") from error
        try:
            answer = await asyncio.wait_for(_ask(reader, writer, request), FORK_TIMEOUT_S)
        except (OSError, TimeoutError, ValueError):
            if process is not None:
                process.kill_group()  # it hangs or is out of step: so that it does not fork later
            raise
        if not isinstance(answer.get("pid"), int):
            raise NoZygote(f"the zygote of {module} refused: {answer.get('error', answer)}")
        return int(answer["pid"])

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _follow(self, module: str, process: Process, child: subprocess.Popen[bytes] | None) -> None:
        loop = asyncio.get_running_loop()
        self._running[module] = process
        ready: asyncio.Future[None] = loop.create_future()
        ready.add_done_callback(lambda f: f.cancelled() or f.exception())  # nobody need be waiting
        self._ready[module] = ready

        def ended(exit: Exit) -> None:
            if self._running.get(module) == process:
                del self._running[module]
                self._forget(module)
                log.warning(
                    "zygote of %s ended (%s): see %s", module, exit, self.folder.zygotes / f"{module}.log"
                )
                self.on_died(module)

        self.watcher.watch(process, ended, child=child, folder=None)
        task = loop.create_task(self._wait_until_ready(module, process, ready))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _wait_until_ready(self, module: str, process: Process, ready: asyncio.Future[None]) -> None:
        path = self.folder.zygote_socket(module)
        while self._running.get(module) == process and not ready.done():
            try:
                reader, writer = await dial(path)
                answer = await _ask(reader, writer, {"ping": True})
            except (OSError, ValueError):
                await asyncio.sleep(DIAL_PERIOD_S)
                continue
            if answer.get("ready") and not ready.done():
                log.info("zygote of %s is ready (imports took %.1f s)", module, answer.get("imported_s", 0.0))
                ready.set_result(None)
                self.on_ready(module)

    def _forget(self, module: str) -> None:
        self._file(module).unlink(missing_ok=True)
        ready = self._ready.pop(module, None)
        if ready is not None and not ready.done():
            ready.set_exception(NoZygote(f"the zygote of {module} ended before it was ready"))

    def _file(self, module: str) -> Path:
        return self.folder.zygotes / f"{module}.json"


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: dict[str, Any]
) -> dict[str, Any]:
    try:
        writer.write(json.dumps(request).encode() + b"\n")
        await writer.drain()
        answer = json.loads(await reader.readline())
    finally:
        writer.close()
    if not isinstance(answer, dict):
        raise ValueError(f"not a JSON object: {answer!r}")
    return answer
