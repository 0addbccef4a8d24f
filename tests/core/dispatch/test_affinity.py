"""Which instance a session or a prompt prefers: alike on all shards, sticky until saturated, bounded in memory."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.dispatch.affinity import (
    BLOCK_BYTES,
    MOST_BLOCKS,
    READ_BYTES,
    Choice,
    Keys,
    PrefixTree,
    choose,
    prefix_blocks,
    saturated,
)
from kserve_ext.core.ids import InstanceID

INSTANCES = [InstanceID(f"i-{k}") for k in range(6)]
sessions = st.text("abcdef0123456789", min_size=1, max_size=8)
loads = st.dictionaries(st.sampled_from(INSTANCES), st.integers(0, 40), min_size=1)


def chosen(keys: Keys, loads: dict[InstanceID, int], tree: PrefixTree | None = None) -> InstanceID:
    choice = choose(keys, loads, tree or PrefixTree())
    assert choice is not None
    return choice.instance


@given(sessions, st.permutations(INSTANCES))
def test_all_shards_choose_alike(session: str, order: list[InstanceID]) -> None:
    here, there = dict.fromkeys(INSTANCES, 0), dict.fromkeys(order, 0)
    assert chosen(Keys(session), here) == chosen(Keys(session), there)


@given(st.lists(sessions, unique=True, min_size=1, max_size=40), st.sampled_from(INSTANCES))
def test_only_the_keys_of_an_instance_that_goes_move(keys: list[str], gone: InstanceID) -> None:
    before = {k: chosen(Keys(k), dict.fromkeys(INSTANCES, 0)) for k in keys}
    left = {i: 0 for i in INSTANCES if i != gone}
    for key, instance in before.items():
        if instance != gone:
            assert chosen(Keys(key), left) == instance


@given(sessions, loads)
def test_never_a_saturated_one(session: str, loads: dict[InstanceID, int]) -> None:
    assert not saturated(loads[chosen(Keys(session), loads)], min(loads.values()))


@given(sessions, st.integers(0, 30))
def test_sticky_until_saturated_and_back(session: str, least: int) -> None:
    idle = dict.fromkeys(INSTANCES, least)
    mine = chosen(Keys(session), idle)
    load = least
    while not saturated(load, least):
        assert chosen(Keys(session), idle | {mine: load}) == mine
        load += 1
    away = choose(Keys(session), idle | {mine: load}, PrefixTree())
    assert away is not None
    assert away.instance != mine
    assert f"{mine} has {load} in flight" in away.why
    assert chosen(Keys(session), idle) == mine


def test_no_key_no_preference() -> None:
    assert choose(Keys(), {INSTANCES[0]: 0}, PrefixTree()) is None
    assert choose(Keys("s"), {}, PrefixTree()) is None


@given(
    st.binary(max_size=4 * BLOCK_BYTES), st.binary(max_size=4 * BLOCK_BYTES), st.integers(0, 4 * BLOCK_BYTES)
)
def test_equal_beginnings_and_only_they_have_equal_blocks(a: bytes, b: bytes, common: int) -> None:
    b = a[:common] + b
    same = sum(x == y for x, y in zip(prefix_blocks(a), prefix_blocks(b), strict=False))
    shared = 0
    while (
        a[: (shared + 1) * BLOCK_BYTES] == b[: (shared + 1) * BLOCK_BYTES]
        and len(a) >= (shared + 1) * BLOCK_BYTES
    ):
        shared += 1
    assert same == min(shared, len(prefix_blocks(b)))
    assert prefix_blocks(a, "ns/x")[:1] != prefix_blocks(a, "ns/y")[:1] or len(a) < BLOCK_BYTES


def test_a_long_prompt_has_a_bounded_number_of_blocks() -> None:
    assert len(prefix_blocks(b"x" * BLOCK_BYTES * 1000)) == MOST_BLOCKS


def test_a_conversation_goes_where_most_of_it_was() -> None:
    tree = PrefixTree()
    idle = dict.fromkeys(INSTANCES, 0)
    system = bytes(range(256)) * 8
    mine, other = prefix_blocks(system + b"m" * 4096), prefix_blocks(system + b"o" * 4096)
    first = chosen(Keys(blocks=mine), idle, tree)
    assert chosen(Keys(blocks=other), idle, tree) == first, "no instance has had it: by the first block"
    tree.note(mine, first)
    busy = idle | {first: 20}
    second = chosen(Keys(blocks=other), busy, tree)
    assert second != first
    tree.note(other, second)
    assert choose(Keys(blocks=other), idle, tree) == Choice(second, "prefix: had 12 of 12 blocks")
    assert chosen(Keys(blocks=mine), idle, tree) == first
    assert chosen(Keys(blocks=mine), {i: n for i, n in idle.items() if i != first}, tree) == second, (
        "of what is left, the one that has had the system prompt"
    )


def test_the_tree_is_bounded_and_forgets_what_is_deepest_and_oldest() -> None:
    tree = PrefixTree(10)
    blocks = prefix_blocks(random.Random(1).randbytes(BLOCK_BYTES * 8))
    tree.note(blocks, INSTANCES[0])
    tree.note(prefix_blocks(random.Random(2).randbytes(BLOCK_BYTES * 5)), INSTANCES[1])
    assert len(tree) == 10
    assert tree.depths(blocks) == {INSTANCES[0]: 5}


class Cache:
    """An engine's prefix cache: the blocks that it has used lately."""

    def __init__(self, kept: int) -> None:
        self.kept, self.blocks = kept, dict[int, None]()

    def serve(self, blocks: tuple[int, ...]) -> int:
        """How many of the first ones it held."""
        hit = next((k for k, block in enumerate(blocks) if block not in self.blocks), len(blocks))
        for block in blocks:
            self.blocks.pop(block, None)
            self.blocks[block] = None
        while len(self.blocks) > self.kept:
            del self.blocks[next(iter(self.blocks))]
        return hit


def hits(conversations: int, turns: int, policy: str) -> tuple[float, float]:
    """Share of the conversations' own blocks that were held where they went; the busiest instance's of the requests.

    Their first six blocks are one of three system prompts.
    """
    rng = random.Random(5)
    system = [rng.randbytes(BLOCK_BYTES * 6) for _ in range(3)]
    texts = [system[rng.randrange(3)] for _ in range(conversations)]
    caches = {i: Cache(250) for i in INSTANCES}
    flying: list[InstanceID] = []
    trees = [PrefixTree(), PrefixTree()]  # of two shards, which say nothing to each other
    asked = held = 0
    went = dict.fromkeys(INSTANCES, 0)
    for turn in range(turns * conversations):
        k = rng.randrange(conversations)
        texts[k] = (texts[k] + rng.randbytes(BLOCK_BYTES))[:READ_BYTES]
        blocks = prefix_blocks(texts[k])
        loads = {i: flying.count(i) for i in INSTANCES}
        tree = trees[rng.randrange(2)]
        keys = {"prefix": Keys(blocks=blocks), "session": Keys(session=str(k))}.get(policy, Keys())
        choice = choose(keys, loads, tree)
        instance = choice.instance if choice is not None else INSTANCES[turn % len(INSTANCES)]
        tree.note(blocks, instance)
        flying = [*flying[-23:], instance]
        went[instance] += 1
        asked += len(blocks) - 6
        held += max(0, caches[instance].serve(blocks) - 6)
    return held / asked, max(went.values()) / sum(went.values())


def test_more_of_each_prompt_is_held_where_it_goes_and_none_is_crowded() -> None:
    found = {policy: hits(90, 12, policy) for policy in ("prefix", "session", "round robin")}
    assert found["prefix"][0] > 2 * found["round robin"][0]
    assert found["session"][0] > 2 * found["round robin"][0]
    assert max(share for _, share in found.values()) < 0.35
