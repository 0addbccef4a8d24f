"""What a timeline says of a transfer, in whichever order it hears of it; metrics of pairs that have gone."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from runtimes.vllm_pd import metrics
from runtimes.vllm_pd.timeline import Timeline, Timelines


@pytest.mark.parametrize("late", [True, False])
def test_the_overlap_is_told_whether_it_comes_before_or_after_the_end(late: bool) -> None:
    timeline = Timeline("r")
    if not late:
        timeline.overlapped(0.756)
    timeline.transferred("rdma", 4096, 64, 2, 1.5)
    if late:
        timeline.overlapped(0.756)
    assert timeline.transfer == "rdma;bytes=4096;tokens=64;ms=1.50;overlap=0.76"
    assert timeline.kv["overlap"] == 0.756


def test_what_was_computed_here_has_no_overlap() -> None:
    timeline = Timeline("r")
    timeline.overlapped(0.5)
    timeline.local("timeout", "tcp")
    timeline.overlapped(0.5)
    assert timeline.transfer == "none;reason=timeout;tried=tcp"
    assert "overlap" not in timeline.kv


def test_requests_of_one_id_are_told_apart() -> None:
    """Clients choose ids; when the first token of one request came says nothing of the next, which is measured."""
    timelines = Timelines(capacity=2)
    first = timelines.open("same")
    first.mark("first_token")
    timelines.open("other")
    again = timelines.open("same")
    assert again.when("first_token") is None
    assert timelines.get("same") is again
    timelines.open("third")
    assert timelines.facts().keys() == {"same", "third"}


def test_series_of_a_pair_end_when_the_peer_is_no_longer_known() -> None:
    def value(peer: str) -> float | None:
        labels = {"peer": peer, "rung": "tcp", "outcome": "whole"}
        return REGISTRY.get_sample_value("galaxy_kv_transfers_total", labels)

    metrics.transferred("p-here", "tcp", "", 4096, 0.01, 64)
    metrics.transferred("p-gone", "tcp", "", 4096, 0.01, 64)
    metrics.transferred("", "none", "no-prefill", 0, 0.0)
    metrics.keep({"p-here"})
    assert value("p-here") == 1
    assert value("p-gone") is None
    assert REGISTRY.get_sample_value(
        "galaxy_kv_transfers_total", {"peer": "", "rung": "none", "outcome": "no-prefill"}
    )
    metrics.keep(())
    assert value("p-here") is None
