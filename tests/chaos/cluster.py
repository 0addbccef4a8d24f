"""The cluster of a chaos run: parts as real processes that are started again when they die, and its services.

There is no supervisor: what is killed comes back when the schedule says so. Nor is there an objects process, but
where the shape says so: revisions are written to the store as it would write them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from kserve_ext.cli.embedded import elastic
from kserve_ext.cli.embedded.parts import ROOT, parts
from kserve_ext.core.control.facts import Bounds
from kserve_ext.core.facts import Revision
from kserve_ext.rpc import Rpc
from kserve_ext.rpc.history import VARIABLE, History
from kserve_ext.rpc.ports import free_ports
from kserve_ext.store import Store
from kserve_ext.store.location import Location
from kserve_ext.store.redis import RedisStore
from kserve_ext.store.remote import RemoteStore
from tests.chaos import frames
from tests.chaos.network import Network
from tests.chaos.statestore import StateStore

#: A part that dies by itself comes back after so long.
RESTART_S = 0.2
#: Low: what a run asks for is enough for another function.
ELASTIC_THRESHOLD, ELASTIC_STABLE_S = "schedule=2", 4.0
#: What is written under these nobody but the runner writes.
OWN = ("revisions/", "routes/")


class Shape(NamedTuple):
    """How many of each part, and how large a node is."""

    #: more than one have Redis for their store
    controllers: int = 1
    dispatch: int = 2
    schedule: int = 2
    cluster_mgr: int = 2
    nodes: int = 3
    cpu_milli: int = 4000
    memory_mib: int = 4096
    #: Schedule functions that the controller may add to those that are there
    elastic: int = 0
    #: each Dispatch function has a host of its own, as on machines of their own
    apart: bool = False
    #: with the objects process, to which services belong then
    objects: bool = False

    @property
    def counts(self) -> dict[str, int]:
        return {
            "controller": self.controllers,
            "cluster-mgr": self.cluster_mgr,
            "schedule": self.schedule,
            "dispatch": self.dispatch,
            "node": self.nodes,
            **({"objects": 1} if self.objects else {}),
        }

    @property
    def ids(self) -> list[str]:
        return [f"{kind}-{k}" for kind, count in self.counts.items() for k in range(count)]

    @property
    def targets(self) -> list[str]:
        """What faults may name."""
        leaders = ("leader", "store") if self.controllers > 1 else ()
        return [*self.ids, *leaders, *(("function",) if self.elastic else ())]


@dataclass
class Part:
    id: str
    kind: str
    argv: list[str]
    clock: Path
    #: how its connections fare, and the faults that make it so
    frames: Path
    weather: list[tuple[str, float]] = field(default_factory=list)
    net: str = ""
    pid: int = 0
    #: it isn't started again while this is set
    held_down: bool = False
    #: it is being started at this moment
    starting: bool = False
    up: asyncio.Event = field(default_factory=asyncio.Event)

    def __str__(self) -> str:
        return self.id


class Cluster:
    def __init__(
        self, folder: Path, shape: Shape, said: History, bug: str = "", network: Network | None = None
    ) -> None:
        """`network`: open, and with a place for every node; None: all is on this machine's loopback."""
        self.network = network
        self.host = network.host if network is not None else "127.0.0.1"
        self.folder, self.shape, self.said, self.bug = folder, shape, said, bug
        self.data = folder / "data"
        self.history = folder / "history"
        self.ports = free_ports(shape.controllers + 1 + shape.dispatch + 1)
        #: where the objects process answers, if there is one
        self.admin = f"{self.host}:{self.ports[-1]}"
        self.controller = ",".join(f"{self.host}:{port}" for port in self.ports[: shape.controllers])
        self.redis: StateStore | None = None
        self.parts: dict[str, Part] = {}
        self.nursery: asyncio.subprocess.Process | None = None
        self.rpc: Rpc | None = None
        self.store: Store | None = None
        self.ending = False
        self._of_pid: dict[int, Part] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: revisions by key, in the order of their coming
        self.services: dict[str, Revision] = {}

    @property
    def shards(self) -> dict[str, int]:
        """Port of each Dispatch function's own HTTP address."""
        return {
            f"dispatch-{k}": self.ports[self.shape.controllers + 1 + k] for k in range(self.shape.dispatch)
        }

    def http(self, shard: str) -> tuple[str, int]:
        return self.host_of(shard), self.shards[shard]

    def host_of(self, shard: str) -> str:
        """Where a Dispatch function listens."""
        return f"127.0.1.{1 + int(shard.rpartition('-')[2])}" if self.shape.apart else self.host

    # --- life

    async def start(self) -> None:
        for name in ("run", "log", "clock", "frames"):
            (self.data / name).mkdir(parents=True, exist_ok=True)
        (self.data / "cluster.key").write_bytes(secrets.token_bytes(32))
        self.history.mkdir(exist_ok=True)
        await self._start_nursery()
        described: dict[str, Any] = {
            "controller": self.controller,
            "http": f"{self.host}:{self.ports[self.shape.controllers]}",
            "objects": self.admin,
            "domain": "galaxy.local",
            "counts": self.shape.counts,
            "node": {
                "cpu_milli": self.shape.cpu_milli,
                "memory_mib": self.shape.memory_mib,
                "gpus": 0,
            },
        }
        if self.shape.elastic:
            most = self.shape.schedule + self.shape.elastic
            bounds = {"schedule": Bounds(self.shape.schedule, most)}
            described["elastic"] = elastic.document(bounds, (ELASTIC_THRESHOLD,), ELASTIC_STABLE_S)
        if self.shape.controllers > 1:
            self.redis = StateStore(
                self.folder / "redis", self.host, lambda pid: self._order({"follow": pid})
            )
            await self.redis.start()
            described["store"] = self.redis.url
        (self.data / "cluster.json").write_text(json.dumps(described))
        for found in parts(described, self.data):
            if found.kind == "objects" and not self.shape.objects:
                continue
            argv = list(found.argv[2:])
            if found.kind == "dispatch":
                argv += ["--own-http", str(self.shards[found.id])]
                argv[argv.index("--host") + 1] = self.host_of(found.id)
            if found.kind == "node":
                argv += ["--zygote-memory", "64Mi"]
                if self.network is not None:
                    argv[argv.index("--host") + 1] = self.network.host_of(found.id)
            clock = self.data / "clock" / found.id
            clock.write_bytes(struct.pack("d", 0.0))
            part = Part(found.id, found.kind, argv, clock, self.data / "frames" / found.id)
            frames.write(part.frames, frames.Weather())
            self.parts[found.id] = part
            if self.network is not None and found.kind == "node":
                part.net = self.network.namespace(found.id)
            await self._launch(part)
        self.rpc = Rpc("runner", (self.data / "cluster.key").read_bytes())
        self.rpc.history = self.said
        if self.redis is None:
            self.store = RemoteStore(self.rpc, self.controller)
            return
        self.store = RedisStore(Location.of(self.redis.url, self.rpc.key))
        self.store.restate(lambda: [i for r in self.services.values() for i in _items(r)], OWN)
        self.store.watch(OWN[0], lambda *_: None, lambda *_: None)  # so it hears that all is lost

    async def _start_nursery(self) -> None:
        env = {**os.environ, "GALAXY_COMPILED": "off", VARIABLE: str(self.history)}
        env["PYTHONPATH"] = str(ROOT)
        env.setdefault("GALAXY_LOG_LEVEL", "INFO")
        self.nursery = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.chaos.nursery",
            str(self.data / "nodes"),
            *([self.bug] if self.bug else []),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env=env,
            start_new_session=True,  # what kills us and our group leaves it to clear away
        )
        assert self.nursery.stdout is not None
        await self.nursery.stdout.readline()
        self._spawn(self._listen())
        if self.network is not None:
            self._order({"network": self.network.nodes})

    def _order(self, order: dict[str, Any]) -> None:
        assert self.nursery is not None
        assert self.nursery.stdin is not None
        self.nursery.stdin.write(json.dumps(order).encode() + b"\n")

    async def _listen(self) -> None:
        assert self.nursery is not None
        assert self.nursery.stdout is not None
        while line := await self.nursery.stdout.readline():
            said = json.loads(line)
            if "died" in said:
                self._died(int(said["died"]), int(said["status"]))
            else:
                part = self.parts[said["part"]]
                part.pid, part.starting = int(said["pid"]), False
                self._of_pid[part.pid] = part
                self.said.say("started", part=part.id, of=part.pid)
                part.up.set()

    async def _launch(self, part: Part) -> None:
        part.starting = True
        part.up.clear()
        order: dict[str, Any] = {
            "part": part.id,
            "argv": part.argv,
            "log": str(self.data / "log" / f"{part.id}.log"),
            "env": {},
            "clock": str(part.clock),
            "frames": str(part.frames),
            "net": part.net,
        }
        self._order(order)
        await part.up.wait()

    def _died(self, pid: int, status: int) -> None:
        part = self._of_pid.pop(pid)
        self.said.say("died", part=part.id, of=pid, status=status)
        part.pid = 0
        if not self.ending and not part.held_down:
            self._spawn(self._again(part))

    async def _again(self, part: Part) -> None:
        await asyncio.sleep(RESTART_S)
        if not (self.ending or part.held_down or part.pid or part.starting):
            await self._launch(part)

    async def bring_back(self, part: Part) -> None:
        part.held_down = False
        if not (self.ending or part.pid or part.starting):
            await self._launch(part)

    async def close(self) -> None:
        """Ends everything, whatever state it is in."""
        self.ending = True
        if self.store is not None:
            await self.store.close()
        if self.rpc is not None:
            await self.rpc.close()
        for sig, patience_s in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0)):
            order = sorted(self.parts.values(), key=lambda p: p.kind == "controller")
            for part in order:
                if part.pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(part.pid, signal.SIGCONT)
                        os.kill(part.pid, sig)
            await self.until(lambda: not any(p.pid for p in self.parts.values()), patience_s)
        if self.redis is not None:
            self.redis.close()
        if self.nursery is not None:
            assert self.nursery.stdin is not None
            self.nursery.stdin.close()  # it ends what instances there are, too
            await self.nursery.wait()
        for task in self._tasks:
            task.cancel()

    # --- what is done to it

    def signal(self, part: Part, number: int) -> None:
        if part.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(part.pid, number)

    def shift_clock(self, part: Part, seconds: float) -> None:
        with part.clock.open("r+b") as file:
            file.write(struct.pack("d", seconds))

    def set_weather(self, part: Part) -> None:
        """The worst of each kind that is at work."""
        worst = [
            max((amount for kind, amount in part.weather if kind == k), default=0.0) for k in frames.KINDS
        ]
        frames.write(part.frames, frames.Weather(*worst))

    def apply(self, revision: Revision) -> None:
        """As the objects process does: the revision, and the route of its host."""
        assert self.store is not None
        self.services[revision.key] = revision
        self.said.say(
            "service",
            revision=revision.key,
            bounds=(revision.scale.min, revision.scale.max),
            concurrency=revision.concurrency,
            needs=revision.needs,
            group=revision.group,
            drain_s=revision.command.drain_s,
        )
        self.store.put(_items(revision))

    def delete(self, key: str) -> None:
        assert self.store is not None
        del self.services[key]
        self.said.say("deleted", revision=key)
        self.store.put([(f"routes/{host_of(key)}", None), (f"revisions/{key}", None)])

    async def until(self, check: Callable[[], bool], within_s: float) -> bool:
        loop = asyncio.get_running_loop()
        due = loop.time() + within_s
        while not check():
            if loop.time() > due:
                return False
            await asyncio.sleep(0.02)
        return True

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _items(revision: Revision) -> list[tuple[str, bytes | None]]:
    return [
        (f"revisions/{revision.key}", msgspec.msgpack.encode(revision)),
        (f"routes/{host_of(revision.key)}", msgspec.msgpack.encode(((revision.key, 100),))),
    ]


def host_of(key: str) -> str:
    return f"{key.rpartition('/')[2]}.test"
