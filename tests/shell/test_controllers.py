"""A controller that leads with others standing by: what it may do, and when, as its store answers or not."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from autoscaler_shim import candidacy, keeping
from autoscaler_shim.candidacy import Candidacy
from autoscaler_shim.controller import Controller
from autoscaler_shim.elastic import Elastic, Launch, launch_of
from autoscaler_shim.keeping import InTerm, Keeper
from kserve_ext.core.control.facts import Kept
from kserve_ext.core.control.machine import ElasticMachine, Remember
from kserve_ext.core.control.roster import Start
from kserve_ext.core.facts import View
from kserve_ext.core.ids import FunctionID, NodeID
from kserve_ext.core.membership import MembershipMachine
from kserve_ext.rpc import Caller, Rpc
from kserve_ext.store import Conflict, Unavailable
from kserve_ext.wire import messages as m


class Calls:
    """Of one rpc."""

    name = "controller-0"

    def __init__(self) -> None:
        self.made: list[m.Message] = []

    def handle(self, *ignored: object) -> None: ...

    def call_soon(self, addr: str, message: m.Message, *ignored: Any) -> None:
        self.made.append(message)


def test_nothing_is_started_before_it_is_written_that_it_is() -> None:
    async def main() -> None:
        calls, busy = Calls(), True
        remembered: list[bytes] = []
        elastic = Elastic(
            calls,  # type: ignore[arg-type]
            "here:1",
            MembershipMachine(View(), 0.0),
            ElasticMachine({}, Kept(), 0.0),
            Launch("data", "here:1", "127.0.0.1"),
            lambda pushes: None,
            remembered.append,
            lambda: busy,
        )
        start = Start(FunctionID("schedule-e1"), "schedule", NodeID("node-0"), "node-0:1")
        elastic._carry_out([Remember(Kept(number=1)), start])
        assert remembered
        assert calls.made == []
        busy = False
        elastic.written()
        (made,) = calls.made
        assert isinstance(made, m.Start)
        elastic.written()
        assert len(calls.made) == 1

    asyncio.run(main())


def test_a_function_tells_of_itself_as_its_controller_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALAXY_HISTORY", "/somewhere")
    monkeypatch.setenv("GALAXY_INSTANCE_DIR", "/not/its/own")
    monkeypatch.delenv("GALAXY_LOG_LEVEL", raising=False)
    process: Any = SimpleNamespace(data="data", controllers=("here:1",), host="127.0.0.1")
    launch = launch_of(argparse.Namespace(http="", domain=""), process)
    assert launch.revision("schedule", FunctionID("schedule-e1")).command.env == (
        ("GALAXY_HISTORY", "/somewhere"),
    )


class OnlyWritten:
    """A store that takes writes and gives nothing back."""

    async def put_now(self, items: object, expect: object = ()) -> int:
        return 7

    async def scan(self, prefix: str) -> dict[str, tuple[bytes, int]]:
        raise Unavailable("no answer")


def test_no_term_begins_without_what_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the term would write takes the place of a view that is only out of sight."""

    async def main() -> None:
        async def lead(keeper: object, kept: object) -> None:
            raise AssertionError("leads without having read the view")

        of_one = Candidacy(Calls(), "here:1", OnlyWritten(), lead)  # type: ignore[arg-type]
        monkeypatch.setattr(candidacy, "RENEW_S", 0.0)
        with pytest.raises(Unavailable):
            await of_one._begin()

    asyncio.run(main())


def test_the_only_controller_begins_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "PATIENCE_S", 0.0)
    assert asyncio.run(keeping.read_if_there(OnlyWritten())) == {}  # type: ignore[arg-type]


def test_what_is_put_after_a_term_is_not_written_and_ends_no_later_term() -> None:
    async def main() -> None:
        writes: list[object] = []
        over: list[bool] = []

        class OfOne:
            async def write(self, items: object) -> None:
                writes.append(items)
                raise Conflict("another term has begun")

        keeper = InTerm(OfOne(), lambda: over.append(True))  # type: ignore[arg-type]
        keeper.close()
        keeper.put("view", b"late")
        for _ in range(5):
            await asyncio.sleep(0)
        assert (writes, over, keeper.busy) == ([], [], True)

    asyncio.run(main())


def test_a_term_that_is_over_hears_of_no_connection_and_a_stranger_s_load_is_not_kept() -> None:
    async def main() -> None:
        rpc = Rpc("controller-0", b"k" * 32)
        keeper = keeping.Alone(lambda key, value: None)

        def scaled(kept: Kept, now: float) -> ElasticMachine:
            return ElasticMachine({}, kept, now)

        launch = Launch("data", "here:1", "127.0.0.1")
        for _ in range(3):
            controller = Controller(rpc, "here:1", keeper, {}, scaled, launch)
            who = Caller("stranger", 0, b"", b"", 0.0)
            assert not controller.report(m.Report(FunctionID("stranger"), 1, 0), who).known
            assert controller.loads == {}
            term = asyncio.create_task(controller.run())
            await asyncio.sleep(0)
            term.cancel()
            await asyncio.wait([term])
        assert rpc._lost == []
        await rpc.close()

    asyncio.run(main())


class Emptied(OnlyWritten):
    """A store that has a view until it loses it."""

    def __init__(self, view: View) -> None:
        self.items = {"view": (msgspec.msgpack.encode(view), 1)}
        self.read = asyncio.Event()

    async def scan(self, prefix: str) -> dict[str, tuple[bytes, int]]:
        self.read.set()
        return {key: found for key, found in self.items.items() if key.startswith(prefix)}


def test_who_has_never_led_goes_on_from_the_view_that_the_store_has_lost() -> None:
    async def main() -> None:
        led: list[tuple[int, bool]] = []

        async def lead(keeper: Keeper, kept: Mapping[str, bytes]) -> None:
            led.append((candidacy.decode(kept["view"]).epoch, keeper.lost))

        store = Emptied(View(9))
        of_one = Candidacy(Calls(), "here:1", store, lead)  # type: ignore[arg-type]
        following = asyncio.create_task(of_one._follow())
        await store.read.wait()
        await asyncio.sleep(0)
        following.cancel()
        await of_one._begin()
        store.items.clear()
        await of_one._begin()
        assert led == [(9, False), (9, True)]

    asyncio.run(main())
