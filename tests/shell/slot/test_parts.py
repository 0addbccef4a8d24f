"""Parts of a slot in this process: what goes wrong before a server begins, and how soon an agent is dialled again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from autoscaler_shim.slot import line
from autoscaler_shim.slot.base import NoFork
from autoscaler_shim.slot.line import AgentLine
from autoscaler_shim.slot.server import Server
from kserve_ext.api.standby import names
from kserve_ext.core.standby.slot_events import Event, ServerFailed
from tests.support.dataplane import run
from tests.support.dispatch_cluster import until
from tests.support.standby import assignment


def said_at_start(folder: Path, base: Any) -> list[Event]:
    """What a server says first that is to be forked from this base."""
    said: list[Event] = []
    nothing: Any = None

    async def test() -> None:
        Server(folder, base, nothing, said.append).start(assignment())
        await until(lambda: said != [], "it is said")

    run(test())
    return said


def test_a_server_whose_folder_can_not_be_made_has_failed(tmp_path: Path) -> None:
    (failed,) = said_at_start(tmp_path / "gone", None)
    assert isinstance(failed, ServerFailed)
    assert "No such file" in failed.reason


def test_a_server_is_told_its_own_variables_of_the_pod_and_not_the_slots(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in (
        names.ENV_POOL,
        names.ENV_SHAPE,
        names.ENV_TOKEN,
        "GALAXY_READY_SOCKET",
        "GALAXY_OF_A_SECRET",
    ):
        monkeypatch.setenv(name, "the pod's")
    told: dict[str, str] = {}

    class OneFork:
        async def fork(self, argv: tuple[str, ...], env: dict[str, str], folder: Path) -> None:
            told.update(env)
            raise NoFork("it was asked")

    said_at_start(tmp_path, OneFork())
    assert told["GALAXY_OF_A_SECRET"] == "the pod's"
    assert told["GALAXY_READY_SOCKET"] == str(tmp_path / "ready.sock")
    assert not {names.ENV_POOL, names.ENV_SHAPE, names.ENV_TOKEN} & told.keys()


@pytest.mark.parametrize(("lasted", "failures"), [(True, {1}), (False, {1, 2, 3})])
def test_an_agent_that_had_answered_is_dialled_again_at_once(
    monkeypatch: pytest.MonkeyPatch, lasted: bool, failures: set[int]
) -> None:
    found: list[int] = []

    def pause_s(count: int, *_: float) -> float:
        found.append(count)
        return 0.0

    async def once() -> str:
        return "it closed the connection"

    monkeypatch.setattr(line, "LASTED_S", 0.0 if lasted else 1000.0)
    monkeypatch.setattr(line, "pause_s", pause_s)

    async def test() -> None:
        settings: Any = None
        made = AgentLine(settings, 1, lambda: None, lambda _: None)
        monkeypatch.setattr(made, "_once", once)
        dialling = asyncio.create_task(made.run())
        await until(lambda: len(found) >= 3, "it was dialled again")
        dialling.cancel()
        assert set(found[:3]) == failures

    run(test())
