"""choose_subset() and Buckets: vectors of the real Go code, Knative's own examples, and what must hold for all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.knative.buckets import Buckets, Holder, bucket_name, bucket_of_host, choose_subset

PLANETS = {"sun", "moon", "mars", "mercury"}
ROWS = [
    line.split("\t")
    for line in (Path(__file__).parent / "knative_hash.txt").read_text().splitlines()
    if not line.startswith("#")
]
members = st.sets(st.text(max_size=12), min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("target", "count", "chosen"),
    [
        ("a target!", 2, ["mercury", "moon"]),
        ("something else entirely", 2, ["mars", "mercury"]),
        ("something else entirely", 3, ["mars", "mercury", "sun"]),
        ("anything", 4, sorted(PLANETS)),
        ("anything", 9, sorted(PLANETS)),
        ("anything", 0, []),
    ],
)
def test_knatives_own_examples(target: str, count: int, chosen: list[str]) -> None:
    assert choose_subset(PLANETS, count, target) == chosen


@pytest.mark.parametrize("row", [row for row in ROWS if row[0] == "owner"], ids="-".join)
def test_owners_as_the_go_code_says(row: list[str]) -> None:
    _, total, key, owner = row
    assert Buckets.of(int(total)).owner(key) == owner


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row[0] == "subset"], ids=lambda row: "-".join(row[1:4])
)
def test_subsets_as_the_go_code_says(row: list[str]) -> None:
    _, total, count, target, chosen = row
    addresses = [f"10.{i // 65536}.{i // 256 % 256}.{i % 256}" for i in range(int(total))]
    assert choose_subset(addresses, int(count), target) == chosen.split(",")


@given(members, st.integers(0, 50), st.text(max_size=20))
def test_a_subset_has_its_size_and_is_the_same_in_any_order(names: set[str], count: int, target: str) -> None:
    chosen = choose_subset(names, count, target)
    assert chosen == choose_subset(sorted(names, reverse=True), count, target)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(count, len(names))
    assert set(chosen) <= names


@given(members, st.integers(0, 40), st.text(max_size=20))
def test_a_larger_subset_contains_the_smaller_one(names: set[str], count: int, target: str) -> None:
    assert set(choose_subset(names, count, target)) <= set(choose_subset(names, count + 1, target))


def test_more_members_than_slots_are_refused() -> None:
    with pytest.raises(ValueError, match="2049 members"):
        choose_subset([str(i) for i in range(2049)], 1, "x")


def test_an_owner_is_remembered() -> None:
    buckets = Buckets.of(3)
    assert [buckets.owner(f"ns/{i % 20000}") for i in range(40000)] == 2 * [
        buckets.owner(f"ns/{i}") for i in range(20000)
    ]


def test_names_hosts_and_holders() -> None:
    assert bucket_name(3, 10) == "autoscaler-bucket-03-of-10"
    assert bucket_of_host("autoscaler-bucket-00-of-01.knative-serving.svc.cluster.local:8080") == bucket_name(
        0, 1
    )
    assert bucket_of_host("autoscaler.knative-serving.svc.cluster.local:8080") is None
    assert bucket_of_host("10.0.0.1:8080") is None
    assert Holder.parse("autoscaler-5c9d_10.0.0.7") == Holder("autoscaler-5c9d", "10.0.0.7")
    assert str(Holder("a", "::1")) == "a_::1"
    assert [Holder.parse(text) for text in ("", "autoscaler", "autoscaler_")] == [None, None, None]
