"""Who gets room when there is none for all: no overtaking, fair shares, ageing, preemption, gangs."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kserve_ext.core.facts import Resources
from kserve_ext.core.schedule.fairness import AGED_S
from tests.core.schedule.full_cluster import FullCluster

BIG = 64_000


def cpu(*amounts: int) -> list[Resources]:
    return [Resources(amount, BIG) for amount in amounts]


def test_who_waits_is_served_before_those_who_come_later() -> None:
    cluster = FullCluster({"s0": cpu(4000)})
    cluster.want("a/holds", 1000, 4)
    cluster.run(0.2)
    cluster.want("b/first", 1000)
    cluster.run(3.0)
    later = cluster.want("c/later", 1000)
    cluster.homes["a/holds"].wanted = 3
    cluster.end("a/holds")
    cluster.run(0.2)
    assert cluster.count("b/first") == 1
    assert cluster.count("c/later") == 0
    assert "full" in later.reason


def test_a_full_cluster_is_shared_by_dominant_shares_and_weights() -> None:
    cluster = FullCluster({"s0": cpu(12_000)}, weights={"heavy": 2.0})
    cluster.want("hog/old", 1000, 12)
    cluster.run(0.2)
    cluster.want("heavy/m", 1000, 12)
    cluster.want("light/m", 1000, 12)
    cluster.run(1.0)
    cluster.homes["hog/old"].wanted = 0
    for _ in range(12):
        cluster.end("hog/old")
        cluster.run(0.5)
    assert (cluster.count("heavy/m"), cluster.count("light/m")) == (8, 4)


def test_a_higher_class_is_served_first_but_nobody_waits_longer_than_the_bound() -> None:
    cluster = FullCluster({"s0": cpu(1000)})
    cluster.want("a/old", 1000)
    cluster.run(0.2)
    cluster.homes["a/old"].wanted = 0
    low = cluster.want("b/low", 1000)
    cluster.run(0.3)
    began = cluster.now
    for k in range(60):  # there always is somebody of a higher class
        cluster.want(f"c/high{k}", 1000, priority=10)
        cluster.run(1.0)
        for name in ("a/old", *(f"c/high{n}" for n in range(k + 1))):
            if cluster.count(name):
                cluster.homes[name].wanted = 0
                cluster.end(name)
        cluster.run(1.0)
        if low.placed_at:
            break
    assert low.placed_at
    assert low.placed_at[0] - began > 30, "the higher class was first for long"
    assert low.placed_at[0] - began <= AGED_S + 4.0


def test_one_that_needs_a_whole_node_is_not_starved_by_small_ones() -> None:
    cluster = FullCluster({"s0": cpu(4000, 4000)}, seed=3)
    for k in range(8):
        cluster.want(f"small/m{k}", 1000)
    cluster.run(0.5)
    large = cluster.want("large/m", 4000)
    cluster.run(0.3)
    began, turn = cluster.now, 0
    while not large.placed_at and cluster.now - began < 3 * AGED_S:
        name = f"small/m{turn}"  # each ends in turn and at once wants to run again
        cluster.end(name)
        cluster.homes[name].retry_at = 0.0
        turn = (turn + 1) % 8
        cluster.run(1.0)
    assert large.placed_at
    assert large.placed_at[0] - began <= AGED_S + 10.0, "a node's instances have all ended once by then"


def test_preemption_takes_the_lowest_the_fewest_and_only_where_the_class_allows_it() -> None:
    cluster = FullCluster({"s0": cpu(4000, 4000)})
    cluster.want("a/low", 1000, 4, priority=1)
    cluster.run(0.2)
    cluster.want("a/middle", 1000, 4, priority=5)
    cluster.run(0.2)
    cluster.want("a/never", 2000, priority=100)
    cluster.run(3.0)
    assert cluster.count("a/never") == 0
    assert not cluster.homes["a/low"].preempted
    cluster.want("a/equal", 1000, priority=1, preempts=True)
    cluster.run(3.0)
    assert cluster.count("a/equal") == 0, "nobody is below it"
    cluster.homes["a/never"].wanted = cluster.homes["a/equal"].wanted = 0
    cluster.want("a/high", 2000, priority=50, preempts=True)
    cluster.run(3.0)
    assert cluster.count("a/high") == 1
    assert len(cluster.homes["a/low"].preempted) == 2
    assert not cluster.homes["a/middle"].preempted
    assert "preempted by a/high (priority 50 over 1)" in cluster.homes["a/low"].preempted
    cluster.run(20.0)
    assert cluster.count("a/high") == 1
    assert len(cluster.homes["a/low"].preempted) == 2, (
        "what was preempted waits, and isn't started again and again"
    )


def test_who_is_at_its_least_number_is_spared_and_the_next_lowest_makes_room() -> None:
    cluster = FullCluster({"s0": cpu(2000)})
    cluster.want("a/low", 1000, priority=1, least=1)
    cluster.want("a/middle", 1000, priority=5)
    cluster.run(0.2)
    cluster.want("a/high", 1000, priority=50, preempts=True)
    cluster.run(4.0)
    assert cluster.count("a/low") == 1
    assert cluster.count("a/high") == 1
    assert cluster.homes["a/middle"].preempted


def test_a_gang_preempts_for_all_of_its_members_or_for_none() -> None:
    cluster = FullCluster({"s0": cpu(2000, 2000)})
    cluster.want("a/low", 1000, 3, priority=1)
    cluster.want("a/high", 1000, priority=100)
    cluster.run(0.2)
    cluster.want("b/pair", 0, priority=50, preempts=True, gang=(2000, 2000))
    cluster.run(5.0)
    assert not cluster.homes["a/low"].preempted, "one half has no place, so nobody goes for the other"
    cluster.homes["b/pair"].wanted = 0
    cluster.want("b/fits", 0, priority=50, preempts=True, gang=(2000, 1000))
    cluster.run(5.0)
    assert cluster.count("b/fits-0") == cluster.count("b/fits-1") == 1
    assert cluster.count("a/high") == 1


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), first=st.sampled_from(("s0", "s1")))
def test_two_gangs_that_need_two_partitions_do_not_starve_each_other(seed: int, first: str) -> None:
    """Each wants one instance in either partition, and there is room for one gang at a time."""
    cluster = FullCluster({"s0": cpu(1000), "s1": cpu(1000)}, seed)
    other = "s1" if first == "s0" else "s0"
    a = cluster.want("a/pair", 0, gang=(1000, 1000), machine=first)
    b = cluster.want("b/pair", 0, gang=(1000, 1000), machine=other)
    cluster.run(20.0)
    assert a.placed_at or b.placed_at, "the one or the other"
    assert not (a.placed_at and b.placed_at)
    winner, loser = ("a/pair", "b/pair") if a.placed_at else ("b/pair", "a/pair")
    cluster.homes[winner].wanted = 0
    for k in range(2):
        cluster.end(f"{winner}-{k}")
    cluster.run(20.0)
    assert cluster.homes[loser].placed_at


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    sizes=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=2),
    wants=st.lists(
        st.tuples(
            st.integers(1, 3),  # cpu
            st.integers(1, 3),  # how many
            st.sampled_from((0, 0, 5, 9)),  # priority
            st.booleans(),  # preempts
            st.integers(0, 1),  # least
            st.booleans(),  # a gang of two
        ),
        min_size=2,
        max_size=6,
    ),
)
def test_a_crowded_cluster_keeps_its_bounds(
    seed: int, sizes: list[list[int]], wants: list[tuple[int, int, int, bool, int, bool]]
) -> None:
    """Capacity, atomic gangs (both asserted by the cluster itself), and that only lower priorities make room."""
    cluster = FullCluster({f"s{k}": cpu(*(1000 * n for n in of)) for k, of in enumerate(sizes)}, seed)
    for k, (size, count, priority, preempts, least, gang) in enumerate(wants):
        cluster.want(
            f"ns{k % 2}/m{k}",
            size * 1000,
            count,
            priority=priority,
            preempts=preempts,
            least=least,
            gang=(size * 1000, 1000) if gang else (),
        )
        cluster.run(0.5)
    cluster.run(5.0)
    for k, (_, _, _, _, least, gang) in enumerate(wants):
        home = cluster.homes[f"ns{k % 2}/m{k}"]
        for reason in home.preempted:
            words = reason.rpartition("(priority ")[2].rstrip(")").split(" over ")
            assert int(words[0]) > int(words[1]) == home.members[0].priority
        if not gang and home.placed_at and home.preempted:
            assert cluster.count(home.members[0].key) >= min(least, len(home.placed_at))
    before = sum(len(h.preempted) for h in cluster.homes.values())
    cluster.run(10.0)
    after = sum(len(h.preempted) for h in cluster.homes.values())
    assert after - before <= len(wants), "preemption comes to rest"
    for machine in cluster.machines.values():
        assert machine.under_way == 0
