"""rendezvous: everyone agrees, and only the keys of the member that came or went move."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.rendezvous import Owners, Ranks, owner, ranked

names = st.text(min_size=1, max_size=12)
member_sets = st.sets(names, min_size=1, max_size=8)
key_sets = st.sets(names, max_size=30)


def test_nobody_owns_without_members() -> None:
    assert owner("default/llm", []) is None
    assert ranked("default/llm", []) == []


def test_the_hash_is_the_same_in_every_release() -> None:
    members = ["dispatch-0", "dispatch-1", "dispatch-2"]
    owners = {key: owner(key, members) for key in ("default/a", "default/b", "default/c", "default/d")}
    assert owners == {
        "default/a": "dispatch-0",
        "default/b": "dispatch-1",
        "default/c": "dispatch-1",
        "default/d": "dispatch-0",
    }


@given(names, st.lists(names, min_size=1, max_size=8, unique=True))
def test_order_of_members_does_not_matter(key: str, members: list[str]) -> None:
    shuffled = sorted(members, key=lambda m: (len(m), m[::-1]))
    assert ranked(key, members) == ranked(key, shuffled)
    assert owner(key, members) == ranked(key, members)[0]


@given(key_sets, member_sets)
def test_only_the_keys_of_the_lost_member_move_and_to_the_next_in_order(
    keys: set[str], members: set[str]
) -> None:
    lost = min(members)
    rest = members - {lost}
    for key in keys:
        before = owner(key, members)
        if before != lost:
            assert owner(key, rest) == before
        elif rest:
            assert owner(key, rest) == ranked(key, members)[1]


@given(key_sets, member_sets, names)
def test_a_new_member_takes_keys_only_for_itself(keys: set[str], members: set[str], joined: str) -> None:
    for key in keys:
        after = owner(key, members | {joined})
        assert after in (joined, owner(key, members))


@given(names, st.lists(names, min_size=1, max_size=8, unique=True))
def test_ranks_are_the_same_order(key: str, members: list[str]) -> None:
    ranks = Ranks(members)
    assert ranks.first(key, members) == owner(key, members)
    assert sorted(members, key=lambda m: ranks.rank(key, m), reverse=True) == ranked(key, members)


@given(key_sets, st.lists(member_sets | st.just(set()), max_size=5))
def test_owners_are_kept_as_members_come_and_go(keys: set[str], history: list[set[str]]) -> None:
    owners = Owners[str]()
    before: set[str] = set()
    for members in history:
        assert owners.change(members) == (members != before)
        before = members
        assert [owners.of(key) for key in keys] == [owner(key, members) for key in keys]


def test_shares_are_even_in_the_mean() -> None:
    functions = [f"schedule-{i}" for i in range(4)]
    owners = [owner(f"node-{i}", functions) for i in range(2000)]
    assert all(400 < owners.count(function) < 600 for function in functions)
