"""What the probe cache saves in the simulator, in small: far fewer questions at equal placement quality."""

from __future__ import annotations

from kserve_ext.sim import probing
from kserve_ext.sim.fleet import World
from kserve_ext.sim.probing import Case, compare, equal, saved


def test_kept_answers_save_nine_questions_in_ten_and_place_as_well() -> None:
    ways = compare(Case("at load", 2, 2000.0, 400), World(nodes=60), seed=0)
    assert ways.told.probes == 0
    assert ways.asking.probes >= 2.9 * ways.asking.starts
    assert saved(ways) >= 0.9
    assert equal(ways)
    assert ways.cache.begun == ways.told.begun == 400


def test_asking_loses_where_few_nodes_have_room() -> None:
    ways = compare(Case("nearly full", 1, 0.0, 0, 0.98), World(nodes=20), seed=0)
    assert ways.told.probes == 0
    assert ways.asking.probes > 3 * ways.asking.starts
    assert ways.told.p99 <= ways.asking.p99


def test_every_row_says_what_is_compared_with_what() -> None:
    case = probing.SAVING[0]
    small = case._replace(schedule=2, starts=40)
    ways = compare(small, World(nodes=12), seed=1)
    assert "2 Schedule functions" in ways.said
    assert (ways.told.system, ways.asking.system, ways.cache.system) == ("told", "asking", "cache")
