"""Critical paths: a clock that traces changes nothing, and stages add up to what a request has waited."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kserve_ext.sim.layout import of_each
from kserve_ext.sim.runs import Make, ours, run
from kserve_ext.sim.stages import paths, table
from kserve_ext.sim.workloads import EMULATED, cold_starts

WORLD = replace(EMULATED, nodes=20)
ARRIVALS = cold_starts(2000.0, 100, 20, 0)


@pytest.fixture
def make() -> Make:
    return ours(of_each(4), "four")


def test_stages_add_up_and_tracing_changes_nothing(make: Make) -> None:
    found, plain = paths(make, ARRIVALS, WORLD), run(make, ARRIVALS, WORLD)
    assert len(found) == plain.begun == 100
    assert found[50].latency == plain.p50
    for path in found:
        assert sum(path.stages.values()) == pytest.approx(path.latency)
        assert path.stages["start of the instance"] >= WORLD.start_s * 0.99


def test_a_request_waits_for_its_start_and_then_for_one_message(make: Make) -> None:
    for path in paths(make, ARRIVALS, WORLD):
        last = path.messages.index("start")
        assert path.messages[last + 1 :] in (("told",), ("announce",))


def test_the_table_names_every_message_of_the_path(make: Make) -> None:
    text = "\n".join(table(paths(make, ARRIVALS, WORLD)))
    for kind in ("demand", "schedule-call", "start"):
        assert f"{kind}: on its way" in text
        assert f"{kind}: work" in text
