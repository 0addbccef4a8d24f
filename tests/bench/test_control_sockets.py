"""The bench of the control plane over sockets, in small: agents' counters against the client, and its rows."""

from __future__ import annotations

import asyncio
import os

import pytest

from bench import control_sockets
from bench.record import _complete
from bench.sockets.cluster import ControlPlane
from bench.sockets.load import Decisions, decisions, revisions


def test_decisions_of_real_processes_are_those_that_agents_have_counted() -> None:
    async def story() -> None:
        core = min(os.sched_getaffinity(0))
        async with ControlPlane(3, schedule_cpu=core, other_cpu=core) as plane:
            one = await decisions(plane, 2, 2, 0.2, "t")
            assert one.placed > 0
            assert (await plane.counters())["running"] == one.placed
            await plane.end_instances()
            assert (await plane.counters())["running"] == 0

            rows = await control_sockets.connecting(plane, 20, "here")
            shares = [row["ours"] for row in rows if row["metric"].startswith("share")]
            assert len(shares) == 2
            assert all(0.0 < share < 1.0 for share in shares), "a kept connection costs something, and less"
            assert (await plane.counters())["admitted"] == one.placed, (
                "the agent alone counts for nobody else"
            )

    asyncio.run(story())


def test_rows_are_complete_and_say_how_many_were_under_way() -> None:
    found = Decisions(1000.0, 0.001, 0.002, 40.0, 50.0, 10.0, 0.5, 5000, 0, 0)
    rows = [_complete(row) for row in control_sockets.of_decisions(found, 16, 4, "here")]
    assert rows[0]["metric"] == "decisions/s, count 16, 4 under way"
    assert rows[0]["ratio"] == 0.05
    assert all("4 calls under way" in row["conditions"] for row in rows)
    assert next(row for row in rows if "Schedule function, count" in row["metric"])["ratio"] == 1.25


def test_revisions_differ_by_name_only() -> None:
    first, second = revisions(2)
    assert first.key != second.key
    assert first._replace(key=second.key, service=second.service) == second


def test_a_part_that_ends_is_told() -> None:
    async def story() -> None:
        plane = ControlPlane(1, schedule_cpu=0, other_cpu=0)
        plane.start("broken", min(os.sched_getaffinity(0)), "no_such_module")
        try:
            with pytest.raises(SystemExit, match=r"broken has ended: .*no_such_module"):
                await plane.running("broken")
        finally:
            await plane.end()

    asyncio.run(story())
