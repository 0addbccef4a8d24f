"""Carries out what the elastic control plane's machine decides: asks nodes to start, show, drain and stop functions.

A function is started like any instance, by Start to a node agent, as an instance of its kind's own revision, whose
home is the controller; what nodes then tell of it (ModInstance) comes back here. What must outlive this controller is
written before anything is started: so one that was succeeded without noticing starts nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import Any, Final, NamedTuple

import msgspec

from autoscaler_shim.metrics import ControlCollector, MetricsServer
from kserve_ext.api.kserve.priority_class import SYSTEM
from kserve_ext.core.control.calibrated import THRESHOLDS
from kserve_ext.core.control.facts import (
    NEEDS,
    SCALED,
    Bounds,
    Kept,
    Reading,
    ScaledKind,
    kind_of,
    revision_of,
    scaled,
)
from kserve_ext.core.control.machine import ElasticMachine, Instruction, Remember
from kserve_ext.core.control.roster import Drain, Start, Stop
from kserve_ext.core.control.scaling import Pace
from kserve_ext.core.facts import Command, Model, Revision, Scale
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID
from kserve_ext.core.membership import MembershipMachine, Push
from kserve_ext.rpc import Caller, Rpc, RpcError
from kserve_ext.rpc.process import Process
from kserve_ext.wire import messages as m

log = logging.getLogger(__name__)

CALL_TIMEOUT_S: Final = 2.0
DRAIN_S: Final = 30.0
START_TIMEOUT_S: Final = 15.0
#: How a process of ours tells of itself; a node hands on no GALAXY_ variable of its own.
TELLING: Final = ("GALAXY_HISTORY", "GALAXY_LOG_LEVEL")
CRITICAL: Final = SYSTEM["system-node-critical"].value  # nobody is given its room


class Launch(NamedTuple):
    """What a function's command needs besides its name."""

    data: str
    controller: str  # the addresses of all of them
    host: str
    http: str = ""  # the public address that Dispatch functions share
    domain: str = ""
    env: tuple[tuple[str, str], ...] = ()

    def revision(self, kind: ScaledKind, function: FunctionID) -> Revision:
        """Of one function: its name is among its arguments."""
        module = "activator_replacement" if kind == "dispatch" else "autoscaler_shim"
        argv = [sys.executable, "-m", module, *([] if kind == "dispatch" else [kind.replace("_", "-")])]
        argv += ["--id", function, "--data", self.data, "--controller", self.controller]
        argv += ["--host", self.host, "--port", "0"]
        if kind == "dispatch":
            argv += ["--http", self.http, "--domain", self.domain]
        command = Command(
            tuple(argv),
            self.env,
            runtime="control plane",
            zygote=module,
            port_arg="",
            drain_s=DRAIN_S,
            start_timeout_s=START_TIMEOUT_S,
        )
        return Revision(revision_of(kind), "", 1, command, Model(), NEEDS, Scale(), priority=CRITICAL)


class Elastic:
    """Of one controller that leads. `show` pushes views, `remember` writes to the store.

    While `busy` says that something isn't written yet, nothing is started; then written() has to be called.
    """

    def __init__(
        self,
        rpc: Rpc,
        addr: str,
        membership: MembershipMachine,
        machine: ElasticMachine,
        launch: Launch,
        show: Callable[[Iterable[Push]], None],
        remember: Callable[[bytes], None],
        busy: Callable[[], bool],
    ) -> None:
        self.rpc, self._addr = rpc, addr
        self.membership, self.machine, self.launch = membership, machine, launch
        self._show, self._remember, self._busy = show, remember, busy
        self._unwritten: list[Start] = []
        self._now = asyncio.get_running_loop().time
        self._since = time.time() - self._now()
        #: host:port of its series, "" until they are served
        self.metrics = ""
        rpc.handle(m.Apply, self.apply)
        rpc.handle(m.ModInstance, self.mod_instance)

    # --- handlers

    def reported(self, message: m.Report) -> float:
        """A member's load; the threshold that it is told."""
        member = self.membership.member(message.id)
        if member is None:
            return 0.0
        if member.kind == "node":
            self.machine.room(NodeID(message.id), member.addr, message.load.free)
        else:
            self.machine.report(message.id, member.kind, _reading(message.load))
        return self.machine.threshold(member.kind)

    def apply(self, message: m.Apply, caller: Caller) -> m.ApplyReply:
        kind = scaled(message.kind)
        if kind is None:
            return m.ApplyReply(0, f"the number of {message.kind} functions is fixed")
        before = self.machine.scalings[kind].decision
        answer = self.machine.apply(message.id, kind, _reading(message.load), self._now())
        if self.machine.scalings[kind].decision != before:
            log.info("%s: %s", kind, answer.reason)
            self.step()
        return m.ApplyReply(*answer)

    def mod_instance(self, message: m.ModInstance, caller: Caller) -> m.ModInstanceReply:
        if kind_of(message.revision) is None:
            return m.ModInstanceReply(home=False, epoch=self.membership.epoch)
        unwanted, out = self.machine.told(message.node, message.instances, self._now())
        self._carry_out(out)
        self.step()
        return m.ModInstanceReply(home=True, unwanted=tuple(unwanted), epoch=self.membership.epoch)

    async def run(self) -> None:
        """Serves the series until cancelled."""
        server = MetricsServer(ControlCollector(self.membership, self.machine))
        try:
            self.metrics = await server.start(self.launch.host, 0)
            await asyncio.Event().wait()
        finally:
            await server.close()

    # --- carrying out

    def step(self) -> None:
        """After each change of the view and its acknowledgement, and once a period."""
        membership = self.membership
        if not membership.gathering(self._now()):
            consistent = membership.consistent()
            self._carry_out(self.machine.step(membership.view, self._now(), consistent=consistent))

    def _carry_out(self, instructions: Iterable[Instruction]) -> None:
        for i in instructions:
            match i:
                case Remember():
                    self._remember(msgspec.msgpack.encode(i.kept))
                case Start():
                    self._unwritten.append(i)
                case Drain():
                    self._show(self.membership.drain(i.function, self._now()))
                case Stop():
                    self._stop(i)
                case _:
                    log.log(logging.WARNING if i.bad else logging.INFO, "%s", i.text)
        self.written()

    def written(self) -> None:
        """Starts what was decided, if that is written."""
        if self._unwritten and not self._busy():
            starts, self._unwritten = self._unwritten, []
            for start in starts:
                self._start(start)

    def _start(self, i: Start) -> None:
        message = m.Start(
            instance=InstanceID(i.function),
            revision=self.launch.revision(i.kind, i.function),
            epoch=self.membership.epoch,
            home=FunctionID(self.rpc.name),
            home_addr=self._addr,
        )

        def done(reply: m.Message | RpcError) -> None:
            if isinstance(reply, m.StartReply):
                refusal = "" if reply.admitted else reply.reason
            elif isinstance(reply, RpcError) and not reply.sent:
                refusal = str(reply)
            else:
                return  # it may have been started: the view or the node will say
            self._carry_out(self.machine.started(i.function, refusal, self._now()))

        log.info("%s is started on %s", i.function, i.node)
        self.rpc.call_soon(i.addr, message, done, CALL_TIMEOUT_S)

    def _stop(self, i: Stop) -> None:
        member = self.membership.member(FunctionID(i.node))
        if member is None:
            return
        epoch, home = self.membership.epoch, FunctionID(self.rpc.name)
        message = m.Stop(InstanceID(i.function), epoch, home, DRAIN_S, i.reason)
        self.rpc.call_soon(member.addr, message, lambda reply: None, CALL_TIMEOUT_S)

    def describe(self) -> dict[str, Any]:
        """By kind, for `galaxy status`."""
        return {kind: self._describe(kind) for kind in SCALED}

    def _describe(self, kind: ScaledKind) -> dict[str, Any]:
        scaling, roster = self.machine.scalings[kind], self.machine.roster
        starting, _, draining = roster.counts(kind)
        grown = self.machine.grown.get(kind)
        return {
            "wanted": scaling.wanted,
            "running": len(self.membership.view.of(kind)),
            "starting": starting,
            "draining": draining,
            **scaling.bounds._asdict(),
            "elastic": scaling.elastic,
            "threshold": scaling.threshold,
            "srps": scaling.srps,
            "pressure": scaling.pressure,
            "decision": scaling.decision._asdict() | {"at": self._since + scaling.decision.at},
            "short": roster.short.get(kind, ""),
            "grown": grown._asdict() if grown else None,
        }


def stored(kept: bytes | None) -> Kept:
    return msgspec.msgpack.decode(kept, type=Kept) if kept else Kept()


def add_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("elastic control plane", "how many functions of each kind there may be")
    group.add_argument(
        "--bounds",
        action="append",
        type=_bounds,
        default=[],
        metavar="KIND=MIN:MAX",
        help="e.g. schedule=2:8",
    )
    group.add_argument(
        "--threshold",
        action="append",
        type=read_threshold,
        default=[],
        metavar="KIND=RATE",
        help="requests a second that one function bears, instead of the calibrated figure",
    )
    group.add_argument(
        "--stable", type=float, default=Pace().stable_s, help="seconds of low load before one goes"
    )
    group.add_argument("--http", default="", help="public address, for Dispatch functions that are started")
    group.add_argument("--domain", default="", help="for Dispatch functions that are started")


def machine_of(args: argparse.Namespace, kept: Kept, now: float) -> ElasticMachine:
    bounds: Mapping[ScaledKind, Bounds] = dict(args.bounds)
    pace = Pace(stable_s=args.stable, shrink_s=min(Pace().shrink_s, args.stable))
    return ElasticMachine(bounds, kept, now, {**THRESHOLDS, **dict(args.threshold)}, pace)


def launch_of(args: argparse.Namespace, process: Process) -> Launch:
    controllers = ",".join(process.controllers)
    env = tuple((name, os.environ[name]) for name in TELLING if name in os.environ)
    return Launch(str(process.data), controllers, process.host, args.http, args.domain, env)


def _reading(load: m.Load) -> Reading:
    return Reading(load.srps, load.busy, load.queue_age_s)


def read_threshold(text: str) -> tuple[ScaledKind, float]:
    """KIND=RATE. Raises ValueError that says what to write."""
    kind, _, rate = text.partition("=")
    try:
        value = float(rate)
    except ValueError:
        value = 0.0
    if not 0 < value < inf:
        raise ValueError(f"{text!r}: write KIND=RATE, e.g. schedule=500")
    return _kind(kind), value


def _kind(text: str) -> ScaledKind:
    kind = scaled(text.replace("-", "_"))
    if kind is None:
        raise ValueError(f"{text!r} is none of {', '.join(SCALED)}")
    return kind


def _bounds(text: str) -> tuple[ScaledKind, Bounds]:
    kind, _, rest = text.partition("=")
    low, _, high = rest.partition(":")
    bounds = Bounds(int(low), int(high or low))
    if bounds.max < bounds.min:
        raise ValueError(f"{text!r}: the most is less than the least")
    return _kind(kind), bounds
