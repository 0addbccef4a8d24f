"""Medians of rounds, set beside every peer; which fields a unit has."""

from __future__ import annotations

from bench.samples import Sample, rows_of

OURS = [Sample(100.0, 1.0, 2.0, 30.0), Sample(300.0, 3.0, 6.0, 50.0), Sample(200.0, 2.0, 9.0, 40.0)]
PEER = [Sample(50.0, 4.0, 8.0, 120.0)] * 3


def test_every_field_is_the_median_of_its_rounds() -> None:
    rows = rows_of("c", "request", {"ours": OURS, "activator": PEER}, "quiet")
    found = {row["metric"]: (row["ours"], row["peer"], row["better"]) for row in rows}
    assert found == {
        "c: requests/s": (200.0, 50.0, "higher"),
        "c: p50": (2.0, 4.0, "lower"),
        "c: p99": (6.0, 8.0, "lower"),
        "c: CPU per request": (40.0, 120.0, "lower"),
    }
    assert {row["peer_name"] for row in rows} == {"Knative's activator"}
    assert {row["conditions"] for row in rows} == {"quiet"}


def test_events_come_at_the_senders_pace_so_their_rate_is_not_reported() -> None:
    rows = rows_of("c", "event", {"ours": OURS, "go": PEER, "rust": PEER}, "")
    assert [row["metric"] for row in rows] == ["c: p99 between events"] * 2 + ["c: CPU per event"] * 2
