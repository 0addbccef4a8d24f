"""The revision's server: forked from the base, watched until it answers and until it ends.

Servers of our runtimes say themselves how they are (status.json, and a line on a socket that wakes us); one that
says nothing is ready when its readiness path answers, or its port takes a connection.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoscaler_shim.node.folders import remove
from autoscaler_shim.node.processes import Process
from autoscaler_shim.node.readiness import ReadySocket, answers, read_status
from autoscaler_shim.node.watcher import Exit, Watcher
from autoscaler_shim.slot.base import Base, NoFork
from kserve_ext.api.standby import names
from kserve_ext.core.facts import Mark
from kserve_ext.core.standby import command
from kserve_ext.core.standby.facts import Assignment, Level, Started
from kserve_ext.core.standby.slot_events import Event, ServerEnded, ServerFailed, ServerReady

PROBE_PERIOD_S = 0.02
#: Exit code of a start that can't succeed.
PERMANENT = 2
#: A server of ours has said something by then.
SILENT_S = 0.5


class Server:
    """One after another, at most one at a time."""

    def __init__(
        self,
        folder: Path,
        base: Base,
        watcher: Watcher,
        happened: Callable[[Event], None],
        level: Level = "S0",
    ) -> None:
        """`level`: what its base keeps ready."""
        self.folder = folder / "server"
        self._socket_path = folder / "ready.sock"
        self._base = base
        self._watcher = watcher
        self._happened = happened
        self._socket = ReadySocket(self._look)
        self._process: Process | None = None
        self._starting: asyncio.Task[None] | None = None
        self._settled = True  # ready or failed was said, or nothing is there
        self._unwanted = False  # it is to end before it has begun
        self._killing: asyncio.TimerHandle | None = None
        self._level = level
        self._why = ""  # the start was made from no better level than S0
        self._begun = 0.0

    @property
    def pid(self) -> int:
        """0 while there is none."""
        return self._process.pid if self._process is not None else 0

    async def listen(self) -> None:
        await self._socket.listen(self._socket_path)

    def start(self, assignment: Assignment) -> None:
        self._begun, self._why = time.time(), ""
        self._settled = self._unwanted = False
        self._starting = asyncio.get_running_loop().create_task(self._start(assignment))

    def end(self, grace_s: float) -> None:
        """ServerEnded follows."""
        self._settled = True
        if self._process is None:
            self._unwanted = True
            if self._starting is None or self._starting.done():
                ended = ServerEnded("was never started")
                asyncio.get_running_loop().call_soon(self._happened, ended)
            return  # what is being forked ends as soon as its pid is known
        process = self._process
        process.terminate()
        self._killing = asyncio.get_running_loop().call_later(grace_s, process.kill_group)

    def close(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
        if self._killing is not None:
            self._killing.cancel()
        self._socket.close()

    # --- inside

    async def _start(self, assignment: Assignment) -> None:
        try:
            remove(self.folder)
            self.folder.mkdir()
            line = command.of(assignment)
            env = {**given(os.environ), **self._told(assignment), **line.env}
            process, self._why = await self._base.fork(line.argv, env, self.folder)
        except (NoFork, OSError) as error:
            self._settled, self._starting = True, None
            failed = ServerEnded("was never started") if self._unwanted else ServerFailed(str(error))
            self._happened(failed)
            return
        self._process = process
        self._watcher.watch(process, self._ended, folder=self.folder, parent=self._base.process)
        if self._unwanted:
            process.kill_group()
            return
        self._look()
        await self._ask(assignment)

    def _told(self, assignment: Assignment) -> dict[str, str]:
        """What every server of ours is told; the revision's own variables come on top."""
        return {
            "GALAXY_INSTANCE_DIR": str(self.folder),
            "GALAXY_INSTANCE_ID": assignment.instance,
            "GALAXY_GENERATION": str(time.time_ns()),
            "GALAXY_REVISION": assignment.revision,
            "GALAXY_READY_SOCKET": str(self._socket_path),
            "GALAXY_DRAIN_SECONDS": str(assignment.drain_s),
            "PORT": str(assignment.port),
        }

    def _started(self, marks: Sequence[Mark]) -> Started:
        steps = [
            (mark.name, round(1000 * (mark.at - self._begun))) for mark in marks if mark.at >= self._begun
        ]
        steps.append(("ready", round(1000 * (time.time() - self._begun))))
        level: Level = "S0" if self._why and self._level != "S0" else self._level
        return Started(level, self._why if self._level != "S0" else "", tuple(dict(steps).items()))

    def _look(self) -> None:
        """It has said something, perhaps."""
        if self._settled or self._process is None:
            return
        said = read_status(self.folder)
        if said is None:
            return
        if said.phase == "ready":
            self._settled = True
            self._happened(ServerReady(self._started(said.marks)))
        elif said.phase == "failed":
            self._settled = True
            self._happened(ServerFailed(said.error or "its server failed: see the pod's log"))

    async def _ask(self, assignment: Assignment) -> None:
        """A server that says nothing is asked, until it answers or ends."""
        path = _path(assignment.probe)
        since = time.monotonic()
        while not self._settled and self._process is not None:
            await asyncio.sleep(PROBE_PERIOD_S)
            if (self.folder / "status.json").exists():
                self._look()
            elif time.monotonic() - since > SILENT_S:
                good = await answers("127.0.0.1", assignment.port, path)
                if good and not self._settled:
                    self._settled = True
                    self._happened(ServerReady(self._started(())))

    def _ended(self, exit: Exit) -> None:
        self._look()  # its last words say more than its exit code
        self._process = None
        self._settled = True
        if self._killing is not None:
            self._killing.cancel()
            self._killing = None
        if exit.signum:
            how = f"was ended by signal {exit.signum}"
        elif exit.code is None:
            how = "ended"
        else:
            how = f"ended with exit code {exit.code}"
        self._happened(ServerEnded(how, permanent=exit.code == PERMANENT))


def given(environ: Mapping[str, str]) -> dict[str, str]:
    """Of the pod's variables those that a revision's own may be and a zygote is not told: GALAXY_ by reference."""
    return {
        name: value
        for name, value in environ.items()
        if name.startswith("GALAXY_")
        and not name.startswith(names.OF_SLOTS_PREFIX)
        and name not in names.OF_SLOTS
    }


def _path(probe: str) -> str:
    """Of an HTTP probe; "" asks whether the port takes a connection."""
    if not probe:
        return ""
    try:
        action: dict[str, Any] = json.loads(probe).get("httpGet") or {}
    except (ValueError, AttributeError):
        return ""
    return str(action.get("path") or "/") if action else ""
