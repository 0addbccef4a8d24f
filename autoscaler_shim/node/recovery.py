"""What an agent finds when it comes back: its instances, by their folders and verified processes.

A process counts as an instance's only by pid and start time. Whatever of this node runs without being known
(it was forked in the moment its agent died) is killed; folders without a process tell how it ended.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import msgspec

from autoscaler_shim.node.folders import NodeFolder, read_json, remove
from autoscaler_shim.node.logs import last_words
from autoscaler_shim.node.process_backend import Spec
from autoscaler_shim.node.processes import Process, environment, identify, leaders
from autoscaler_shim.node.readiness import read_status
from autoscaler_shim.node.watcher import read_exit
from kserve_ext.core.facts import InstanceState, Mark
from kserve_ext.core.node.instance_life import End, how_it_ended

log = logging.getLogger(__name__)

_decode = msgspec.msgpack.Decoder(Spec).decode


class Found(NamedTuple):
    """An instance's folder. `process` None: it is over, `end` says how."""

    spec: Spec
    state: InstanceState
    addr: str
    process: Process | None
    end: End | None


def find(folder: NodeFolder) -> list[Found]:
    """Every instance whose end no agent has seen."""
    found = []
    for place in sorted(folder.instances.iterdir()):
        if (place / "ended.json").exists():
            continue
        try:
            spec = _decode((place / "spec.msgpack").read_bytes())
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("%s is no instance's folder, removed: %s", place, error)
            remove(place)
            continue
        found.append(_found(place, spec))
    return found


def kill_strays(folder: NodeFolder, known: Collection[int], zygotes: Collection[int]) -> list[int]:
    """Kills instances of this node that started before this agent and are not known to it."""
    me = identify(os.getpid())
    assert me is not None
    killed = []
    for process, parent in leaders():
        if (
            process.pid in known
            or process.pid in zygotes
            or process.ticks > me.ticks
            or process.pid == me.pid
        ):
            continue
        if parent in zygotes or belongs(process, folder.instances):
            process.kill_group()
            killed.append(process.pid)
    return killed


def belongs(process: Process, instances: Path) -> bool:
    """Whether it was executed as an instance of this node (a fork of a zygote can't be told by this)."""
    return environment(process.pid).get("GALAXY_INSTANCE_DIR", "").startswith(f"{instances}{os.sep}")


def process_of(place: Path) -> Process | None:
    """The instance's process if it is alive: as the agent wrote it down, else as the instance itself did."""
    facts = read_json(place / "pid.json")
    if facts:
        process = Process(int(facts.get("pid", 0)), int(facts.get("ticks", 0)))
        return process if process.pid and process.alive else None
    said = read_status(place)
    own = identify(said.pid) if said is not None and said.pid else None
    return own if own is not None and os.path.realpath(f"/proc/{own.pid}/cwd") == str(place) else None


def _found(place: Path, spec: Spec) -> Found:
    process = process_of(place)
    forked = read_json(place / "pid.json")
    if forked:
        mark = Mark("forked", float(forked.get("at", 0.0)), str(forked.get("how", "")))
        spec = msgspec.structs.replace(spec, order=spec.order._replace(marks=(*spec.order.marks, mark)))
    drain = read_json(place / "drain.json")
    end = End(bool(drain.get("failed")), str(drain.get("reason", ""))) if drain else None
    said = read_status(place)
    addr = str(read_json(place / "ready.json").get("addr", ""))
    if said is not None and said.phase == "ready" and not addr:
        addr = f"{spec.host}:{said.port or spec.port}"
    if process is None:
        return Found(spec, "gone", addr, None, end or _how(place))
    state: InstanceState = "starting"
    if drain or (said is not None and said.phase == "draining"):
        state = "draining"
    elif addr:
        state = "ready"
    return Found(spec, state, addr, process, end)


def _how(place: Path) -> End:
    if not (place / "pid.json").exists():
        return End(True, "its node agent ended while it was being started")
    exit = read_exit(place)
    said = read_status(place)
    detail = said.error if said is not None and said.error else last_words(place / "log")
    return how_it_ended(exit.code, exit.signum, detail)
