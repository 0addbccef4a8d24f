"""A member's side of the view over real sockets, with a controller that says what the test wants."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from kserve_ext.core.facts import Member, View
from kserve_ext.core.ids import FunctionID
from kserve_ext.rpc import Caller, Rpc
from kserve_ext.rpc import membership as module
from kserve_ext.rpc.membership import Membership
from kserve_ext.wire.messages import (
    Ack,
    Apply,
    ApplyReply,
    Join,
    Leave,
    Load,
    PublishView,
    Report,
    ReportReply,
)

KEY = b"k" * 32
ME = FunctionID("schedule-0")


class Controller:
    """Answers with `view`, and keeps what it was told."""

    def __init__(self) -> None:
        self.rpc = Rpc("controller-0", KEY)
        self.view = View(1)
        self.known = True
        self.threshold = 0.0
        self.applied: asyncio.Queue[Apply] = asyncio.Queue()
        self.heard: asyncio.Queue[Join | Report | Leave] = asyncio.Queue()
        self.rpc.handle(Join, self.join)
        self.rpc.handle(Report, self.report)
        self.rpc.handle(Leave, self.leave)
        self.rpc.handle(Apply, self.apply)

    def join(self, message: Join, caller: Caller) -> PublishView:
        self.heard.put_nowait(message)
        if not self.view.members:
            self.view = View(self.view.epoch, (message.member,))
        return PublishView(self.view)

    def report(self, message: Report, caller: Caller) -> ReportReply:
        self.heard.put_nowait(message)
        return ReportReply(self.view.epoch, self.known, self.threshold)

    def apply(self, message: Apply, caller: Caller) -> ApplyReply:
        self.applied.put_nowait(message)
        return ApplyReply(1, "one more")

    def leave(self, message: Leave, caller: Caller) -> Ack:
        self.heard.put_nowait(message)
        return Ack(self.view.epoch)


Story = Callable[[Controller, Membership, Rpc], Coroutine[Any, Any, None]]


def run(story: Story) -> None:
    async def main() -> None:
        controller, rpc = Controller(), Rpc(ME, KEY)
        addr = await controller.rpc.listen("127.0.0.1")
        member = Member(ME, "schedule", await rpc.listen("127.0.0.1"), 7)
        membership = Membership(rpc, member, addr)
        try:
            async with asyncio.timeout(100):
                await membership.start()
                assert await controller.heard.get() == Join(member, 0)
                await story(controller, membership, rpc)
        finally:
            await membership.leave()
            await rpc.close()
            await controller.rpc.close()

    uvloop.run(main())


def test_a_broken_connection_is_followed_by_a_report_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPORT_PERIOD_S", 3600.0)

    async def story(controller: Controller, membership: Membership, rpc: Rpc) -> None:
        (accepted,) = controller.rpc._accepted
        accepted._transport.abort()  # type: ignore[union-attr]
        assert isinstance(await controller.heard.get(), Report)
        assert accepted not in controller.rpc._accepted

    run(story)


def test_it_is_confirmed_by_answers_to_reports_under_the_view_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "REPORT_PERIOD_S", 0.01)

    async def story(controller: Controller, membership: Membership, rpc: Rpc) -> None:
        asked: asyncio.Queue[float] = asyncio.Queue()
        membership.on_confirmed(asked.put_nowait)
        since = asyncio.get_running_loop().time()
        while await asked.get() < since:
            pass
        controller.view = View(2, controller.view.members)  # it hasn't heard of this one
        for _ in range(3):
            await controller.heard.get()
        while not asked.empty():
            asked.get_nowait()
        for _ in range(3):
            await controller.heard.get()
        assert asked.empty()

    run(story)


def test_a_member_that_is_not_known_joins_again_with_the_epoch_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "REPORT_PERIOD_S", 0.01)

    async def story(controller: Controller, membership: Membership, rpc: Rpc) -> None:
        controller.known = False
        while isinstance(heard := await controller.heard.get(), Report):
            pass
        assert heard == Join(membership.member, 1)

    run(story)


def test_a_member_past_its_threshold_applies_until_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPORT_PERIOD_S", 0.01)

    async def story(controller: Controller, membership: Membership, rpc: Rpc) -> None:
        asked = 0

        def load() -> Load:
            nonlocal asked
            asked += 1000
            return Load(requests=asked, queued=3)

        membership.report_load(load)
        controller.threshold = 1.0
        for _ in range(3):
            applied = await controller.applied.get()
        assert applied.id == ME
        assert applied.kind == "schedule"
        assert applied.srps == applied.load.srps > 1000.0
        assert applied.load.queued == 3
        controller.threshold = 0.0  # the number is fixed from now on
        for queue in (controller.heard, controller.applied):
            while not queue.empty():
                queue.get_nowait()
        for _ in range(8):
            await controller.heard.get()
        assert controller.applied.qsize() <= 2  # those that were under way

    run(story)


def test_views_are_taken_in_order_and_one_part_that_fails_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "REPORT_PERIOD_S", 3600.0)

    async def story(controller: Controller, membership: Membership, rpc: Rpc) -> None:
        seen: list[int] = []

        def broken(view: View) -> None:
            raise ValueError("this part is broken")

        membership.on_view(broken)
        membership.on_view(lambda view: seen.append(view.epoch))
        other = Member(FunctionID("node-0"), "node", "127.0.0.1:9", 1)
        for epoch in (5, 4, 5, 6):
            view = View(epoch, (other,))
            answer: Ack = await controller.rpc.call(membership.addr, PublishView(view))
            assert answer.epoch == max(epoch, 5)
        assert seen == [5, 6]
        assert membership.addr_of("node-0") == "127.0.0.1:9"
        assert membership.addr_of("node-1") == ""
        assert rpc.epoch() == 6
        assert "this part is broken" in caplog.text

    run(story)


def test_a_second_process_of_the_same_name_is_named_in_the_log_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "REPORT_PERIOD_S", 0.01)

    async def story(controller: Controller, membership: Membership, rpc: Rpc) -> None:
        later = membership.member._replace(incarnation=8, addr="127.0.0.1:8")
        controller.view, controller.known = View(2, (later,)), False
        joins = 0
        while joins < 3:
            joins += isinstance(await controller.heard.get(), Join)
        found = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
        assert found == ["another process is schedule-0 since later (at 127.0.0.1:8): end one of the two"]

    run(story)


def test_leave_is_told() -> None:
    async def story(controller: Controller, membership: Membership, rpc: Rpc) -> None:
        await membership.leave("stopped")
        while not isinstance(heard := await controller.heard.get(), Leave):
            pass
        assert heard == Leave(ME, 7, reason="stopped")

    run(story)
