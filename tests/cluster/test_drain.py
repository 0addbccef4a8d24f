"""SIGTERM of a Dispatch function under load: what it has is answered, the other one notices nothing."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.cluster.test_at_zero import shard_urls
from tests.cluster.test_kills import HOST, under_load
from tests.support.embedded import Embedded, echo_service
from tests.support.load import volley

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def service(cluster: Embedded, model: str) -> Embedded:
    spec = "    maxReplicas: 4\n    containerConcurrency: 4\n"
    cluster.apply(echo_service("steady", model, spec=spec))
    assert asyncio.run(volley(shard_urls(cluster), HOST, 8)).ok == 8
    return cluster


@pytest.mark.parametrize("part", ["dispatch-0", "dispatch-1"])
def test_a_dispatch_function_that_is_ended_answers_what_it_has(service: Embedded, part: str) -> None:
    """Both are ended in turn, so one of the two was the home."""

    def act() -> None:
        service.back(part, service.kill(part, signal.SIGTERM))

    urls = shard_urls(service)
    for url, tally in under_load(service, act).items():
        assert tally.sent == tally.accounted
        assert not tally.refused, f"{url}: {tally}"
        if part != f"dispatch-{urls.index(url)}":
            assert tally.reset == 0, f"{url}: {tally}"
    log = (service.data / "log" / f"{part}.log").read_text()
    assert "cut off" not in log
    assert "Traceback" not in log
