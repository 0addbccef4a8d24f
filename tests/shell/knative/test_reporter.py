"""Reports, message by message; scenarios of Knative's concurrency_reporter_test.go."""

from __future__ import annotations

from activator_replacement.knative.reports.reporter import Reporter
from kserve_ext.core.knative.request_stats import RequestStats
from kserve_ext.wire.stats import Stat, decode


class Part:
    def __init__(self, name: str) -> None:
        self.namespace = "ns"
        self.name = name
        self.stats: RequestStats | None = None
        self.concurrency = 0.0


class World:
    """A reporter, and what it has sent: per message the revision, concurrency and count."""

    def __init__(self) -> None:
        self.sent: list[list[tuple[str, float, float]]] = []
        self.reporter = Reporter("act-0", self._take)
        self.now = 100.0
        self.connected = True

    def _take(self, data: bytes) -> bool:
        if not self.connected:
            return False
        batch = decode(data)
        assert {(m.namespace, m.stat.pod_name) for m in batch} == {("ns", "act-0")}
        assert all(
            m.stat == Stat("act-0", m.stat.average_concurrent_requests, 0.0, m.stat.request_count)
            for m in batch
        )
        self.sent.append([(m.name, m.stat.average_concurrent_requests, m.stat.request_count) for m in batch])
        return True

    def enter(self, part: Part) -> None:
        stats = part.stats or self.reporter.first(part, self.now)
        stats.enter(self.now)

    def leave(self, part: Part) -> None:
        assert part.stats is not None
        part.stats.leave(self.now)

    def tick(self) -> list[list[tuple[str, float, float]]]:
        self.now += 1.0
        self.reporter.report(self.now)
        sent, self.sent = self.sent, []
        return sent


def test_the_first_request_of_each_revision_is_told_at_once_and_a_period_in_one_message() -> None:
    world, one, two = World(), Part("one"), Part("two")
    world.enter(one)
    world.enter(two)
    assert world.sent == [[("one", 1.0, 1.0)], [("two", 1.0, 1.0)]]
    world.sent.clear()
    assert world.tick() == [[("one", 0.0, 0.0), ("two", 0.0, 0.0)]]
    assert world.tick() == [[("one", 1.0, 0.0), ("two", 1.0, 0.0)]]


def test_many_first_requests_make_one_message() -> None:
    world, part = World(), Part("r")
    for _ in range(50):
        world.enter(part)
    assert len(world.sent) == 1
    assert world.tick()[1:] == [[("r", 49.0, 49.0)]]


def test_quiet_again_it_is_told_anew() -> None:
    world, part = World(), Part("r")
    world.enter(part)
    world.leave(part)
    assert world.tick() == [[("r", 1.0, 1.0)], [("r", 0.0, 0.0)]]
    assert part.stats is None
    assert world.tick() == []
    world.enter(part)
    assert world.sent == [[("r", 1.0, 1.0)]]


def test_one_whose_request_goes_on_is_never_quiet() -> None:
    world, part = World(), Part("r")
    world.enter(part)
    for _ in range(3):
        world.tick()
    assert part.stats is not None
    assert part.concurrency == 1.0
    world.leave(part)
    assert world.tick() == [[("r", 0.0, 0.0)]]
    assert part.stats is None


def test_a_first_request_that_could_not_be_told_is_in_the_report_at_reconnect() -> None:
    world, part = World(), Part("r")
    world.connected = False
    world.enter(part)
    world.connected = True
    assert world.tick() == [[("r", 1.0, 1.0)]]
    assert world.tick() == [[("r", 1.0, 0.0)]]
