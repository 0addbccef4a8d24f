"""An order is waited for while its agent answers others, and no longer."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from autoscaler_shim.standby.agents import Agents
from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.standby.facts import Slot
from kserve_ext.core.standby.known import Known, Seen
from kserve_ext.kube.client import Client
from kserve_ext.rpc import Rpc, RpcError
from kserve_ext.wire.frames import ErrorCode
from kserve_ext.wire.messages import SlotReply
from tests.support.knative_autoscaler import run, until

REVISION = RevisionKey("default/chat-00001")
SEEN = Seen(Slot("default/a", "uid-a", "p", "10.0.0.9", "S0", "serving", REVISION), "node-1")


class Peer:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.under_way: list[Any] = []

    def call_soon(self, addr: str, message: Any, done: Any, timeout_s: float) -> None:
        self.under_way.append(done)


def agents_of(peer: Peer) -> Agents:
    agents = Agents(cast("Client", None), "galaxy", Known(), lambda _: None)
    agents._rpc = cast("Rpc", peer)
    return agents


def test_one_that_is_silent_is_given_up_and_what_it_says_later_is_no_second_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kserve_ext.core.standby.patience.SILENT_S", 0.01)

    async def script() -> None:
        peer, heard = Peer(), list[Any]()
        agents = agents_of(peer)
        agents.free(SEEN, REVISION, 1, heard.append)
        await until(lambda: heard)
        assert isinstance(heard[0], RpcError)
        assert (heard[0].code, heard[0].sent) == (ErrorCode.DEADLINE, True), "it may have been obeyed"
        peer.under_way[0](SlotReply(""))
        await asyncio.sleep(0)
        assert len(heard) == 1

    run(script())


def test_one_that_answers_others_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script() -> None:
        peer, heard, told = Peer(), list[Any](), list[float]()
        agents = agents_of(peer)
        monkeypatch.setattr(agents._patience, "left_s", lambda *_: 0.001)  # there is always a word of it
        agents._order("node-1", cast("Any", None), heard.append, lambda: told.append(1.0))
        await until(lambda: len(told) >= 5)
        assert not heard
        peer.under_way[0](SlotReply(""))
        assert heard == [SlotReply("")]
        assert not agents._patience.silent("node-1", asyncio.get_running_loop().time()), (
            "that was a word, too"
        )

    run(script())
