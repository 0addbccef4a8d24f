"""Standby pods as the API server has them: one that is deleted is nobody's any more before that is heard."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from autoscaler_shim.standby.pods import StandbyPods
from kserve_ext.core.standby.known import Known, StandbyPod
from kserve_ext.kube.client import Conflict, KubeError, NotFound, Unavailable

POD = StandbyPod("default/standby-a", "a", "default/pool")


class Server:
    """Answers a deletion with `error`, if there is one."""

    def __init__(self, known: Known, error: KubeError | None) -> None:
        self._known, self._error = known, error
        self.left: list[bool] = []  # whether it counted as leaving when it was deleted

    async def delete(self, *_: object, uid: str) -> None:
        self.left.append(self._known.pods[uid].leaving)
        if self._error is not None:
            raise self._error


def deleted(error: KubeError | None) -> tuple[Known, Server, list[str]]:
    async def test() -> tuple[Known, Server, list[str]]:
        known, pools = Known(), list[str]()
        known.pod("a", POD)
        server: Any = Server(known, error)
        pods = StandbyPods(server, known, lambda revisions: None, pools.append)
        for _ in range(2):
            with contextlib.suppress(Unavailable):
                await pods.delete("a")
        await pods.delete("unknown")
        return known, server, pools

    return asyncio.run(test())


@pytest.mark.parametrize("error", [None, NotFound(404, "NotFound", ""), Conflict(409, "Conflict", "")])
def test_one_that_is_deleted_leaves_at_once_and_is_not_deleted_twice(error: KubeError | None) -> None:
    known, server, pools = deleted(error)
    assert server.left == [True]
    assert known.pods["a"].leaving
    assert pools == ["default/pool"]


def test_one_whose_deletion_is_cancelled_stays() -> None:
    """A run of a queue may end before a server that hangs is given up."""

    class Hanging:
        async def delete(self, *_: object, uid: str) -> None:
            await asyncio.Event().wait()

    async def test() -> None:
        known, server = Known(), Hanging()
        known.pod("a", POD)
        client: Any = server
        pods = StandbyPods(client, known, lambda revisions: None, lambda pool: None)
        deleting = asyncio.create_task(pods.delete("a"))
        while not known.pods["a"].leaving:  # noqa: ASYNC110
            await asyncio.sleep(0)
        deleting.cancel()
        await asyncio.wait([deleting])
        assert deleting.cancelled()
        assert known.pods["a"] == POD

    asyncio.run(test())


def test_one_that_could_not_be_deleted_stays() -> None:
    known, server, _ = deleted(Unavailable(0, "", "the server is away"))
    assert server.left == [True, True]
    assert not known.pods["a"].leaving
