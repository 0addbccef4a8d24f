"""Durations by method, status and version."""

from __future__ import annotations

from activator_replacement.knative.reports.durations import BUCKETS_S, Durations


def test_buckets_and_sum() -> None:
    made = Durations()
    for seconds in (0.001, 0.005, 0.0051, 3.0, 60.0):
        made.add(b"GET", 200, "1.1", seconds)
    buckets, total = made.buckets((b"GET", 200, "1.1"))
    assert [bound for bound, _ in buckets] == [*map(str, BUCKETS_S), "+Inf"]
    assert dict(buckets)["0.005"] == 2
    assert dict(buckets)["0.01"] == 3
    assert (dict(buckets)["2.5"], dict(buckets)["5.0"], dict(buckets)["+Inf"]) == (3, 4, 5)
    assert abs(total - 63.0111) < 1e-9


def test_methods_that_clients_make_up_share_one_series() -> None:
    made = Durations()
    for n in range(100):
        made.add(b"MADE%d" % n, 200, "1.1", 0.1)
    made.add(b"PUT", 404, "2.0", 0.1)
    assert sorted(made.by) == [(b"PUT", 404, "2.0"), (b"_OTHER", 200, "1.1")]
    assert made.buckets((b"_OTHER", 200, "1.1"))[0][-1] == ("+Inf", 100)
