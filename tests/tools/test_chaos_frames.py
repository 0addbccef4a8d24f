"""The weather of chaos runs (tests/chaos/frames.py) over real connections: when it is over, it is over for all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from kserve_ext.core.ids import FunctionID
from kserve_ext.rpc import Rpc, RpcError
from kserve_ext.rpc.connection import Connection
from kserve_ext.wire.messages import Report, ReportReply
from tests.chaos import frames

SILENT = frames.Weather(silent=1.0)


@pytest.fixture
def weather(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[frames.Frames, Path]:
    """All connections of this process, and the file that says how they fare."""
    for of, name in ((Connection, "data_received"), (Connection, "connection_lost"), (Rpc, "requested")):
        monkeypatch.setattr(of, name, getattr(of, name))  # to be put back
    file = tmp_path / "frames"
    frames.write(file, frames.Weather())
    made = frames.Frames()
    made.put_in_place()
    made.follow(str(file), "a seed")
    return made, file


def held(made: frames.Frames) -> int:
    return sum(len(line.held) for line in made._lines.values())


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def test_what_a_peer_said_before_it_gave_up_is_heard_and_keeps_nobody_else_silent(
    weather: tuple[frames.Frames, Path],
) -> None:
    made, file = weather
    wrong: list[dict[str, Any]] = []
    heard: list[int] = []

    def answer(message: Report, who: object) -> ReportReply:
        heard.append(message.incarnation)
        return ReportReply(message.incarnation, True)

    async def story() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))
        listener, gone, stays = (Rpc(name, b"k" * 32) for name in ("listener", "gone", "stays"))
        listener.handle(Report, answer)
        addr = await listener.listen("127.0.0.1")
        for n, rpc in enumerate((gone, stays)):
            await rpc.call(addr, Report(FunctionID(rpc.name), n, 1))
        frames.write(file, SILENT)
        lost: list[str] = []
        listener.on_lost(lambda caller: lost.append(caller.name))
        given_up = asyncio.ensure_future(gone.call(addr, Report(FunctionID("gone"), 2, 1), 30.0))
        await until(lambda: held(made) == 1)
        waiting = asyncio.ensure_future(stays.call(addr, Report(FunctionID("stays"), 3, 1), 30.0))
        await until(lambda: held(made) == 2)
        await gone.close()
        with pytest.raises(RpcError):
            await given_up
        await until(lambda: any(line.ended for line in made._lines.values()))
        assert (heard, lost) == ([0, 1], [])
        frames.write(file, frames.Weather())
        assert await waiting == ReportReply(3, True)
        await until(lambda: lost == ["gone"])
        await stays.close()
        await listener.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(story())
    assert heard == [0, 1, 2, 3]
    assert wrong == []
