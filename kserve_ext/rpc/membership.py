"""A member's side of the view: joins, reports, takes pushes, and keeps the last view when the controller is away.

Functions and nodes alike use it; what a new view means to them is their own business (on_view). It never gives up:
a controller that dies is looked for until it is back, at every address that one may have, and nothing waits for it
meanwhile; one that doesn't lead says who does. Views of older epochs are refused. A connection that breaks is
followed by a report at once, so that the controller doesn't take this member for dead. Each report carries how loaded
this process is; one that is past the threshold of its kind, which the controller's answers name, applies for more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec

from kserve_ext.core.control.meter import Meter
from kserve_ext.core.facts import Member, View
from kserve_ext.core.ids import FunctionID
from kserve_ext.rpc.caller import Caller
from kserve_ext.rpc.errors import RpcError
from kserve_ext.rpc.rpc import Rpc
from kserve_ext.wire.frames import ErrorCode
from kserve_ext.wire.messages import (
    Ack,
    Apply,
    ApplyReply,
    Join,
    Leave,
    Load,
    Message,
    PublishView,
    Report,
    ReportReply,
)

log = logging.getLogger(__name__)

REPORT_PERIOD_S = 0.5
CALL_TIMEOUT_S = 1.0
JOIN_TIMEOUT_S = 3.0  # a controller that has lost its store gathers members before it answers
BACKOFF_S = (0.05, 1.0)


class Membership:
    """This process's membership in the cluster."""

    def __init__(self, rpc: Rpc, member: Member, *controllers: str) -> None:
        self.rpc = rpc
        self.member = member
        self.controllers = controllers
        #: the one that leads, as far as is known
        self.controller = controllers[0]
        self._moved = asyncio.Event()
        self.view = View()
        #: those of the view, by id: they are looked up for every call
        self._members: dict[str, Member] = {}
        self._callbacks: list[Callable[[View], None]] = []
        self._confirmed: list[Callable[[float], None]] = []
        self._load: Callable[[], Load] = Load
        self._task: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._superseded = False
        self._meter: Meter | None = None
        self._threshold = 0.0
        rpc.epoch = lambda: self.view.epoch
        rpc.handle(PublishView, self._published)
        rpc.on_peer_lost(self._peer_lost)

    @property
    def me(self) -> FunctionID:
        return self.member.id

    @property
    def addr(self) -> str:
        return self.member.addr

    def set_info(self, **info: str) -> None:
        """Facts about this member that others read in the view, e.g. http="127.0.0.1:8081". Before start()."""
        merged = {**dict(self.member.info), **info}
        self.member = self.member._replace(info=tuple(sorted(merged.items())))

    def on_view(self, callback: Callable[[View], None]) -> None:
        """Called with every newer view, in order of epochs."""
        self._callbacks.append(callback)

    def on_confirmed(self, callback: Callable[[float], None]) -> None:
        """Called when the controller has said that this is a member of the view that is known here.

        With the loop's time at which it was asked.
        """
        self._confirmed.append(callback)

    def report_load(self, load: Callable[[], Load]) -> None:
        """`load` is asked every period for what only this part knows: requests since start, and what it holds."""
        self._load = load

    def addr_of(self, member_id: str) -> str:
        """The rpc address of a member; "" if it isn't in the view."""
        member = self._members.get(member_id)
        return member.addr if member else ""

    async def start(self) -> None:
        """Joins (waiting for the controller as long as it takes), then reports until leave()."""
        await self._join()
        self._task = asyncio.create_task(self._report())

    async def leave(self, reason: str = "stopped") -> None:
        if self._task is not None:
            self._task.cancel()
        message = Leave(self.me, self.member.incarnation, reason=reason)
        with contextlib.suppress(RpcError):
            await self.rpc.call(self.controller, message, CALL_TIMEOUT_S)

    # --- inside

    def _published(self, message: PublishView, caller: Caller) -> Ack:
        if message.leader and message.view.epoch > self.view.epoch:
            self._led_by(message.leader)
        self._take(message.view)
        return Ack(self.view.epoch)

    def _take(self, view: View) -> None:
        if view.epoch <= self.view.epoch:
            return
        self.view = view
        self._members = {m.id: m for m in view.members}
        self.rpc.history.say("view", epoch=view.epoch, incarnation=self.member.incarnation)
        for callback in self._callbacks:
            try:
                callback(view)
            except Exception:
                log.exception("taking in the view of epoch %d failed in one part of this process", view.epoch)

    def _peer_lost(self, addr: str) -> None:
        if addr == self.controller:
            self._lost.set()

    def _led_by(self, addr: str) -> None:
        if addr != self.controller:
            log.info("the controller at %s leads", addr)
            self.controller = addr
            self._moved.set()

    def _try_next(self, asked: str) -> None:
        """The one that was asked doesn't answer, and nobody has said who leads."""
        if asked == self.controller:
            known = self.controllers
            self.controller = known[(known.index(asked) + 1) % len(known)] if asked in known else known[0]

    async def _ask(self, message: Message, timeout_s: float) -> Any:
        """The controller's answer. Raises RpcError, also as soon as another one is known to lead."""
        self._moved.clear()
        answer = asyncio.ensure_future(self.rpc.call(self.controller, message, timeout_s))
        moved = asyncio.ensure_future(self._moved.wait())
        try:
            await asyncio.wait({answer, moved}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise RpcError(ErrorCode.UNAVAILABLE, "another controller leads now", self.controller)
        finally:
            answer.cancel()
            moved.cancel()

    async def _join(self) -> None:
        pause = BACKOFF_S[0]
        complained = False
        while True:
            asked, asked_at = self.controller, asyncio.get_running_loop().time()
            try:
                reply: PublishView = await self._ask(Join(self.member, self.view.epoch), JOIN_TIMEOUT_S)
                if reply.view.epoch:
                    break
                why = f"{asked} does not lead, {reply.leader or 'nobody'} does"
                self._led_by(reply.leader or asked)
            except RpcError as error:
                why = str(error)
            if not complained:
                log.warning("can't join yet, keep trying with the last view: %s", why)
                complained = True
            self._try_next(asked)
            await asyncio.sleep(pause)
            pause = min(pause * 2, BACKOFF_S[1])
        if complained:
            log.info("joined again at epoch %d", reply.view.epoch)
        self._take(reply.view)
        self._check(reply.view)
        self._confirm(asked_at, reply.view.epoch)

    def _confirm(self, asked_at: float, epoch: int) -> None:
        mine = self._members.get(self.me)
        if epoch >= self.view.epoch and mine is not None and mine.incarnation == self.member.incarnation:
            for callback in self._confirmed:
                callback(asked_at)

    def _check(self, view: View) -> None:
        mine = view.member(self.me)
        superseded = mine is not None and mine.incarnation > self.member.incarnation
        if superseded and not self._superseded:
            log.error(
                "another process is %s since later (at %s): end one of the two", self.me, mine and mine.addr
            )
        self._superseded = superseded

    async def _report(self) -> None:
        loop = asyncio.get_running_loop()
        self._meter = Meter(loop.time(), time.process_time())
        while True:
            due = loop.time() + REPORT_PERIOD_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_PERIOD_S):
                    await self._lost.wait()
            self._lost.clear()
            load = self._measure(self._meter, due)
            message = Report(self.me, self.member.incarnation, self.view.epoch, load)
            asked, asked_at = self.controller, loop.time()
            try:
                reply: ReportReply = await self._ask(message, CALL_TIMEOUT_S)
            except RpcError:
                self._try_next(asked)
                await self._join()
                continue
            self._threshold = reply.threshold
            if not reply.known:
                self._led_by(reply.leader or asked)
                await self._join()
            elif reply.epoch == self.view.epoch:
                self._confirm(asked_at, reply.epoch)

    def _measure(self, meter: Meter, due: float) -> Load:
        """This period's load; applies when it is too much. A lost application is made up for by the next period's."""
        load, now, cpu_s = self._load(), asyncio.get_running_loop().time(), time.process_time()
        reading = meter.read(load.requests, cpu_s, max(0.0, now - due), now)
        load = msgspec.structs.replace(load, cpu_seconds=cpu_s, **reading._asdict())
        if meter.applies(reading, self._threshold):
            message = Apply(self.me, self.member.kind, reading.srps, load)
            self.rpc.call_soon(self.controller, message, self._answered, CALL_TIMEOUT_S)
        return load

    def _answered(self, reply: Message | RpcError) -> None:
        if isinstance(reply, ApplyReply) and reply.granted:
            log.info("applied for scale-out: %s", reply.reason)
