"""The chaos suite: its checker catches every planted bug, and finds nothing where none is planted.

Each bug has a script of a few seconds (tests/chaos/plans.py) that is run twice on real processes, with the bug and
without. Runs go some at a time: they mostly wait.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.chaos.network import possible
from tests.chaos.plans import SCRIPTS, STORIES
from tests.chaos.planted import BUGS
from tests.chaos.statestore import why_not
from tests.support.embedded import ROOT

pytestmark = pytest.mark.cluster

AT_ONCE = 6
#: A script lasts seconds, and its bug does harm when messages meet as they mostly do: on a machine that is busy with
#: something else they may not.
MOST_RUNS = 5
#: Which invariant each bug breaks.
BREAKS = {
    "lost-instance": "3 known",
    "double-home": "6 epochs",
    "stale-epoch": "6 epochs",
    "leaked-lease": "2 requests",
    "over-commit": "1 capacity",
    "lost-request": "2 requests",
    "answered-twice": "2 requests",
    "placed-twice": "6 epochs",
    "bound-passed": "4 bounds",
    "never-stopped": "3 known",
    "not-recalled": "4 bounds",
    "not-told": "4 bounds",
    "not-fenced": "4 bounds",
    "half-a-gang": "4 bounds",
    "epoch-back": "6 epochs",
    "store-in-the-way": "5 store down",
    "done-though-dead": "2 requests",
    "started-twice": "6 epochs",
    "object-forgotten": "7 objects",
    "grant-overtaken": "4 bounds",
}
#: A fault found nobody to do harm to.
_NOBODY = "there is none"
Result = subprocess.CompletedProcess[str]
Runs = dict[tuple[str, bool], Future[Result]]


def run(script: str, planted: bool) -> Result:
    """A bug is looked for up to MOST_RUNS times; without one the first run counts that had all its faults."""
    argv = [sys.executable, "-m", "tests.chaos", "--script", script, *(["--bug", script] if planted else [])]
    for seed in range(1, MOST_RUNS + 1):
        done = subprocess.run(
            [*argv, "--seed", str(seed)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode or not (planted or _NOBODY in done.stdout):
            break
    return done


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[Runs]:
    """Those that the chosen tests ask for, all under way from the first test on."""
    chosen = [
        (item.callspec.params["bug"], item.callspec.params["planted"])
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {key: pool.submit(run, *key) for key in chosen}


@pytest.mark.parametrize("planted", [True, False], ids=["planted", "clean"])
@pytest.mark.parametrize("bug", BUGS)
def test_the_checker_sees_a_planted_bug_and_nothing_else(runs: Runs, bug: str, planted: bool) -> None:
    done = runs[bug, planted].result()
    if not planted:
        assert done.returncode == 0, done.stdout + done.stderr
        return
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"'{BREAKS[bug]}'" in done.stdout.partition("VIOLATIONS:")[2], done.stdout


@pytest.mark.parametrize("bug", STORIES)
@pytest.mark.parametrize("planted", [False], ids=["clean"])
def test_a_story_that_ends_well(runs: Runs, bug: str, planted: bool) -> None:
    if any(fault.kind == "cut" for fault in STORIES[bug].faults) and not possible():
        pytest.skip("network namespaces need root and the ip command")
    if STORIES[bug].shape.controllers > 1 and (why := why_not()):
        pytest.skip(f"no redis-server: {why}")
    done = runs[bug, planted].result()
    assert done.returncode == 0, done.stdout + done.stderr
    assert _NOBODY not in done.stdout, "a fault of the story was not carried out"


def test_every_bug_has_a_script() -> None:
    assert BUGS.keys() == SCRIPTS.keys() == BREAKS.keys()
