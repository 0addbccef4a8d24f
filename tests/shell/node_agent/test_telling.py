"""News for activators: repeated while nobody answers, each revision's by itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from autoscaler_shim.node_agent import telling
from autoscaler_shim.node_agent.telling import Telling
from kserve_ext.core.ids import InstanceID, NodeID, RevisionKey
from kserve_ext.core.standby.effects import News
from kserve_ext.rpc import RpcError
from kserve_ext.wire.frames import ErrorCode
from kserve_ext.wire.messages import ModInstance, ModInstanceReply
from tests.support.dataplane import run
from tests.support.dispatch_cluster import until

ADDR = "10.0.0.7:8012"


class Line:
    """To an activator that answers nothing at first."""

    def __init__(self) -> None:
        self.silent = True
        self.heard: list[tuple[str, str]] = []

    def call_soon(self, addr: str, message: ModInstance, done: Any, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        if self.silent:
            loop.call_soon(done, RpcError(ErrorCode.UNAVAILABLE, "away", addr, sent=False))
            return
        self.heard.append((message.revision, message.instances[0].state))
        loop.call_soon(done, ModInstanceReply(home=False))


def news(revision: str, serves: bool) -> News:
    return News(("act:8014",), RevisionKey(revision), InstanceID("pod"), ADDR, 1, serves)


def test_that_a_pod_has_left_a_revision_is_told_although_it_serves_another_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(telling, "AGAIN_S", (0.01,) * 500)

    async def test() -> None:
        line = Line()
        rpc: Any = line
        made = Telling(rpc, NodeID("n"), 1)
        made.tell(news("ns/one", True))
        made.tell(news("ns/one", False))
        made.tell(news("ns/two", True))
        line.silent = False
        await until(lambda: made.told == 2, "both revisions are told of")
        assert sorted(line.heard) == [("ns/one", "gone"), ("ns/two", "ready")]

    run(test())
