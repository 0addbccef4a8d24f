"""The class that vLLM loads, under vLLM's own context of a step, with real channels behind it."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from runtimes.vllm_pd.scheduler_side import Plan, Progress
from runtimes.vllm_pd.worker_side import Worker
from tests.runtimes.test_transfers import Setup, _eventually

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("fails", [False, True])
def test_a_step_that_raises_has_computed_nothing(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """vLLM says that it has ended all the same, in a `finally`."""
    from vllm.v1.worker import kv_connector_model_runner_mixin as steps

    from runtimes.vllm_pd.connector import GalaxyConnector, PlanMetadata

    setup = Setup("shm")
    connector: Any = GalaxyConnector.__new__(GalaxyConnector)
    connector._worker = Worker(setup.prefill_memory, setup.landings, setup.pushes)
    monkeypatch.setattr(steps, "get_kv_transfer_group", lambda: connector)
    monkeypatch.setattr(steps, "get_forward_context", lambda: None)
    number, key = setup.open()
    setup.landings.reserve(number, "engine-d", 0, [1, 2, 7], 40)
    before = [bytes(layer) for layer in setup.target]
    plan = Plan(progress=(Progress(key, "engine-p", [8, 9, 4], 3, True),))
    step: Any = SimpleNamespace(
        kv_connector_metadata=PlanMetadata(plan), has_sync_kv_loads=False, finished_req_ids=set()
    )
    raised = False
    try:
        with steps.KVConnectorModelRunnerMixin._get_kv_connector_output(step):
            if fails:
                raise RuntimeError("out of memory, in the middle of a step")
    except RuntimeError:
        raised = True
    outcome = setup.outcome()
    assert (raised, outcome.reason != "") == (fails, fails), outcome
    assert ([bytes(layer) for layer in setup.target] == before) == fails
    assert fails or _eventually(lambda: setup.pushes.results({"engine-p"})) == {"engine-p"}
    setup.close()


class _Core:
    """An engine's core with steps to go: of requests that have ended, and behind the last answer."""

    def __init__(self, ended: int, behind: int) -> None:
        self.scheduler = self
        self.ended, self.batch_queue = ended, deque(range(behind))

    def has_requests(self) -> bool:
        return self.ended > 0

    def step_fn(self) -> None:
        if self.ended:
            self.ended -= 1
        else:
            self.batch_queue.popleft()


def test_an_engine_settles_when_nothing_is_left_of_what_has_ended() -> None:
    from runtimes.vllm_pd.connector import settle

    core = _Core(ended=3, behind=2)
    settle(core)
    assert (core.ended, list(core.batch_queue)) == (0, [])
    never = _Core(ended=10_000, behind=0)
    settle(never, most_steps=7)
    assert never.ended == 10_000 - 7
