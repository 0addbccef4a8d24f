from __future__ import annotations

from kserve_ext.core.queue.draining import Draining


def test_each_request_begins_the_quiet_time_anew_until_it_has_been_quiet() -> None:
    draining = Draining(30.0, 100.0)
    assert draining.left_s(110.0) == 20.0
    draining.came(120.0)
    assert draining.left_s(121.0) == 29.0
    assert draining.left_s(150.0) == 0.0
    draining.came(151.0)  # too late: it was quiet
    assert draining.left_s(152.0) == 0.0
