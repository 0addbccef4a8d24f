"""Events: counted where they repeat, bounded in rate and number, and nobody's failure."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kserve_ext.kube import events as module
from kserve_ext.kube.events import About, Events, owner_of
from kserve_ext.kube.kinds import EVENTS
from tests.support.api_server import ApiServer
from tests.support.dataplane import run
from tests.support.dispatch_cluster import until

ONE = About("serving.knative.dev/v1", "Revision", "default", "one", "u1")


def written(api: ApiServer) -> list[dict[str, Any]]:
    return list(api.objects.of(EVENTS).values())


def test_what_is_said_again_is_counted_in_one_event() -> None:
    async def test() -> None:
        async with ApiServer() as api, api.client() as client:
            events = Events(client, "tests")
            for _ in range(3):
                events.tell(ONE, "Warning", "Odd", "the first words")
            events.start()
            await until(lambda: events.told == 3, "it is written")
            (event,) = written(api)
            assert (event["count"], event["type"], event["reason"]) == (3, "Warning", "Odd")
            assert event["involvedObject"]["uid"] == "u1"
            events.tell(ONE, "Warning", "Odd", "other words")
            await until(lambda: events.told == 4, "it is counted")
            (event,) = written(api)
            assert (event["count"], event["message"]) == (4, "other words")
            api.remove(EVENTS, "default", event["metadata"]["name"])
            events.tell(ONE, "Warning", "Odd", "it had been forgotten there")
            await until(lambda: events.told == 5, "it is made anew")
            events.tell(ONE, "Normal", "Even", "x" * 5000)
            await until(lambda: len(written(api)) == 2, "another reason is another event")
            assert max(len(e["message"]) for e in written(api)) == 1024
            await events.stop()

    run(test())


def test_they_are_bounded_wait_for_what_matters_more_and_are_dropped_where_they_are_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MOST", 2)
    monkeypatch.setattr(module, "LOOK_S", 0.001)

    async def test() -> None:
        busy = [True]
        async with ApiServer() as api, api.client() as client:
            events = Events(client, "tests", lambda: busy[0])
            events.start()
            for name in "abcd":
                events.tell(ONE._replace(name=name), "Normal", "R", "m")
            assert events.dropped == 2
            for _ in range(20):
                await asyncio.sleep(0)
            assert written(api) == []
            api.fail(403, 1, method="POST", path="/events")
            busy[0] = False
            await until(lambda: (events.told, events.dropped) == (1, 3), "one is written, one refused")
            await events.stop()
        assert "events can't be written" in caplog.text

    run(test())


class Bucket:
    def __init__(self) -> None:
        self.taken = 0

    def take(self, now: float) -> float:
        self.taken += 1
        return 0.0


def test_each_that_leaves_has_taken_its_place_in_the_rate() -> None:
    async def test() -> None:
        async with ApiServer() as api, api.client() as client:
            events = Events(client, "tests")
            bucket: Any = Bucket()
            events._bucket = bucket
            for number in range(5):
                events.tell(ONE._replace(name=f"r{number}"), "Normal", "R", "m")
                events.tell(ONE._replace(name=f"r{number}"), "Normal", "R", "again")
            events.start()
            await until(lambda: events.told == 10, "all are written")
            assert len(written(api)) == bucket.taken == 5
            await events.stop()

    run(test())


def test_the_owner_of_an_object() -> None:
    owners = [{"kind": "Other"}, {"kind": "Revision", "apiVersion": "v1", "name": "r", "uid": "u"}]
    found = {"metadata": {"namespace": "ns", "ownerReferences": owners}}
    assert owner_of(found, "Revision") == About("v1", "Revision", "ns", "r", "u")
    assert owner_of({"metadata": {}}, "Revision") is None
