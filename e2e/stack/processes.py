"""The record of a stack: who owns it, and which of its processes should run.

A process is known by its id and the moment it started, so that a reused id is never taken for it. A stack whose owner
is dead is dead itself. Ending a stack goes by its namespaces, not by the record: whatever runs in them is ended, also
what nobody wrote down.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from e2e.stack import network
from e2e.stack.place import PREFIX, Place, root


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    #: Clock ticks from boot to its start.
    started: int

    @property
    def alive(self) -> bool:
        return self.pid > 0 and _started(self.pid) == self.started


def of_pid(pid: int) -> Process:
    return Process(pid, _started(pid))


def command(pid: int) -> str:
    """Its words; "" once it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _started(pid: int) -> int:
    """0 for a process that is gone, or dead and not yet waited for."""
    try:
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        )
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])


@dataclass(slots=True)
class Record:
    #: None: the stack stays until somebody takes it down.
    owner: Process | None = None
    processes: dict[str, Process] = field(default_factory=dict)
    ready: bool = False

    @classmethod
    def read(cls, place: Place) -> Record | None:
        try:
            raw = json.loads(place.record.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        owner = Process(**raw["owner"]) if raw["owner"] else None
        return cls(owner, {name: Process(**entry) for name, entry in raw["processes"].items()}, raw["ready"])

    def write(self, place: Place) -> None:
        partial = place.record.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        os.replace(partial, place.record)

    @property
    def dead(self) -> list[str]:
        return [name for name, process in self.processes.items() if not process.alive]


#: Children of this process; waited for once their stack is down.
_children: list[subprocess.Popen[bytes]] = []


def start(
    place: Place,
    record: Record,
    name: str,
    argv: list[str],
    env: Mapping[str, str] | None = None,
    enter: Callable[[str, list[str]], list[str]] = network.command,
) -> None:
    """In the node's namespace, in a session of its own, so that an interrupt at the terminal passes it by."""
    with (place.logs / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            enter(place.node, argv),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**network.environment(), **(env or {})},
            cwd=place.folder,
            start_new_session=True,
        )
    _children.append(process)
    record.processes[name] = of_pid(process.pid)
    record.write(place)


def end(place: Place, record: Record, name: str) -> None:
    """One that was started here."""
    process = record.processes.pop(name)
    for child in [child for child in _children if child.pid == process.pid]:
        child.kill()
        child.wait()
        _children.remove(child)
    record.write(place)


def known() -> list[Place]:
    """Every stack that has left something: a folder, or a namespace."""
    names = {path.name for path in root().iterdir()} if root().exists() else set()
    names |= {space.split("-")[1] for space in network.namespaces() if re.match(rf"{PREFIX}-\w+-", space)}
    return [Place(name) for name in sorted(names)]


def abandoned(place: Place) -> bool:
    """Its owner is dead, or it was never written down and nothing is about to."""
    record = Record.read(place)
    return record is None or (record.owner is not None and not record.owner.alive)


def remove(place: Place) -> None:
    """End everything in the stack's namespaces, then the namespaces, then the folder."""
    spaces = [space for space in network.namespaces() if place.owns(space)]
    # The node first: nothing there shall start another pod meanwhile.
    spaces.sort(key=lambda space: space != place.node)
    for space in spaces:
        network.end(space)
    for space in [space for space in network.namespaces() if place.owns(space)]:
        network.end(space)
        network.remove(space)
    _children[:] = [child for child in _children if child.poll() is None]
    shutil.rmtree(place.folder, ignore_errors=True)
