"""What every process of the cluster has in common: arguments, cluster key, run file, log, loop, graceful end.

One that a node agent has started is an instance on its node: it says so in its folder there, not by a run file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from kserve_ext.core.facts import Kind, Member
from kserve_ext.core.ids import FunctionID
from kserve_ext.rpc.membership import Membership
from kserve_ext.rpc.rpc import Rpc

log = logging.getLogger(__name__)

Run = Callable[[Rpc, Membership], Awaitable[None]]


BEAT_S = 2.0
#: objects more than at the last collection, and how many of the younger ones go before one of the older
COLLECT_AT = (20_000, 20, 50)


def wall_time() -> float:
    """Unix seconds: what marks carry, so that processes of one machine can be laid over each other."""
    return time.time()


def steady_clock() -> Callable[[], float]:
    """Unix seconds that go on evenly whatever is done to the machine's clock: for times both shown and decided by."""
    since = time.time() - time.monotonic()
    return lambda: since + time.monotonic()


def common_args(parser: argparse.ArgumentParser) -> None:
    """The options that every part takes."""
    parser.add_argument("--id", required=True, help="name of this part in the cluster, e.g. schedule-0")
    parser.add_argument("--data", required=True, type=Path, help="the cluster's data folder")
    parser.add_argument(
        "--controller", required=True, help="HOST:PORT of the top-level controller, with commas of several"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="rpc port, 0 = any free one")


def settle_memory() -> None:
    """What is here now stays: no later collection, which calls would wait for, has to look at it.

    And collections are rare: what calls leave behind is freed by its last reference, and what stays (who was placed
    where, what nodes have said) is looked at by every one of them: a quarter of a Schedule function's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AT)


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot: pid and this name it for good. 0 = there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[19])


def write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


class Process:
    """One part of the cluster as an OS process."""

    def __init__(self, part_id: str, kind: Kind, data: Path, controller: str, host: str, port: int) -> None:
        self.id = part_id
        self.kind: Kind = kind
        self.data = data
        #: addresses of the top-level controllers
        self.controllers = tuple(controller.split(","))
        #: rpc address of this process, once it listens
        self.addr = ""
        self.host = host
        self.port = port
        self._info: dict[str, str] = {}
        folder = os.environ.get("GALAXY_INSTANCE_DIR")
        self._instance = Path(folder) if folder else None

    @classmethod
    def from_args(cls, args: argparse.Namespace, kind: Kind) -> Process:
        return cls(args.id, kind, args.data, args.controller, args.host, args.port)

    def key(self) -> bytes:
        path = self.data / "cluster.key"
        try:
            return path.read_bytes()
        except OSError as error:
            raise SystemExit(
                f"error: no cluster key\n  why: {error}\n  do: start the cluster with `galaxy up`"
            ) from None

    def info(self, **info: str) -> None:
        """Addresses besides rpc (http, admin) for the run file."""
        self._info.update(info)

    def ready(self) -> None:
        """From now on this part can be found and asked."""
        settle_memory()
        if self._instance is not None:
            port = int(self._info["rpc"].rpartition(":")[2])
            said = {"phase": "ready", "pid": os.getpid(), "port": port, "info": self._info}
            with contextlib.suppress(OSError):  # its node has forgotten it
                write_atomically(self._instance / "status.json", json.dumps(said))
            self._beat(asyncio.get_running_loop())
            return
        self._run_file.parent.mkdir(parents=True, exist_ok=True)
        facts = {"id": self.id, "kind": self.kind, "pid": os.getpid(), "started": start_ticks(os.getpid())}
        write_atomically(self._run_file, json.dumps({**facts, **self._info}))
        self._beat(asyncio.get_running_loop())

    @property
    def _run_file(self) -> Path:
        return self.data / "run" / f"{self.id}.json"

    def _incarnation(self) -> int:
        """Above that of every earlier process of this name here, also when the clock was set back in between."""
        file = self._run_file.with_suffix(".incarnation")
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
        try:
            former = int(file.read_text())
        except (OSError, ValueError):
            former = 0
        incarnation = max(time.time_ns(), former + 1)
        with contextlib.suppress(OSError):
            write_atomically(file, str(incarnation))
        return incarnation

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        """Shows whoever watches the file that this loop turns."""
        with contextlib.suppress(OSError):
            if self._instance is not None:
                (self._instance / "pulse").touch()
            else:
                os.utime(self._run_file)
        loop.call_later(BEAT_S, self._beat, loop)

    def run(self, main: Run) -> int:
        """Runs main(rpc, membership) on uvloop until it ends or SIGTERM or SIGINT comes; the exit code."""
        logging.basicConfig(
            level=os.environ.get("GALAXY_LOG_LEVEL", "INFO"),
            format=f"%(asctime)s %(levelname).1s {self.id} %(name)s: %(message)s",
            stream=sys.stderr,
        )
        uvloop.run(self._serve(main))
        return 0

    async def _serve(self, main: Run) -> None:
        rpc = Rpc(self.id, self.key())
        try:
            addr = await rpc.listen(self.host, self.port)
        except OSError as error:
            why = f"can't listen on {self.host}:{self.port}: {os.strerror(error.errno or 0)}"
            raise SystemExit(
                f"error: {self.id} did not start\n  why: {why}\n  do: choose another port"
            ) from None
        self.addr = addr
        self.info(rpc=addr)
        member = Member(FunctionID(self.id), self.kind, addr, self._incarnation())
        membership = Membership(rpc, member, *self.controllers)
        task = asyncio.ensure_future(main(rpc, membership))
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, task.cancel)
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        finally:
            if self.kind != "controller":
                await membership.leave()
            await rpc.close()
            log.info("ended")
