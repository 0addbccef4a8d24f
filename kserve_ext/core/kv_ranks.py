"""Which tensor-parallel rank of one engine sends which KV heads to which rank of another, of any two degrees. Pure.

Follows vLLM's division of heads: a rank holds an equal run of them, and where there are fewer heads than ranks, equal
runs of ranks hold the same head. Where heads lie behind each other within a block, what travels between two ranks is
one range of a block's bytes. Knows no blocks, addresses or time.
"""

from __future__ import annotations

from typing import NamedTuple


class Indivisible(ValueError):
    """The heads can't be divided so; the message says why and what to do."""


class Part(NamedTuple):
    """`heads` of them: from number `source_head` of rank `source` to number `target_head` of rank `target`."""

    source: int
    target: int
    source_head: int
    target_head: int
    heads: int


class Bytes(NamedTuple):
    """A range within a block."""

    offset: int
    size: int


def held(kv_heads: int, degree: int, rank: int) -> range:
    """The heads of one rank."""
    if kv_heads >= degree:
        each = kv_heads // degree
        return range(rank * each, (rank + 1) * each)
    head = rank * kv_heads // degree
    return range(head, head + 1)


def parts(kv_heads: int, sending: int, receiving: int) -> tuple[Part, ...]:
    """Every head of every receiving rank exactly once, in order of these. `sending`, `receiving`: degrees.

    Of several ranks that could send a head, those that want it take turns. Raises Indivisible.
    """
    for degree in (sending, receiving):
        _check(kv_heads, degree)
    found: list[Part] = []
    for target in range(receiving):
        wanted = held(kv_heads, receiving, target)
        at = wanted.start
        while at < wanted.stop:
            source = _source(kv_heads, sending, receiving, target, at)
            has = held(kv_heads, sending, source)
            end = min(wanted.stop, has.stop)
            found.append(Part(source, target, at - has.start, at - wanted.start, end - at))
            at = end
    return tuple(found)


def within(block_bytes: int, heads: int, first: int, count: int) -> Bytes:
    """Where `count` heads from `first` on lie in a block of `heads`."""
    if block_bytes % heads:
        raise ValueError(f"a block of {block_bytes} bytes does not hold {heads} equal heads")
    each = block_bytes // heads
    return Bytes(first * each, count * each)


def _source(kv_heads: int, sending: int, receiving: int, target: int, head: int) -> int:
    if kv_heads >= sending:
        return head // (kv_heads // sending)
    copies = sending // kv_heads
    takers = max(1, receiving // kv_heads)
    return head * copies + (target % takers) * copies // takers


def _check(kv_heads: int, degree: int) -> None:
    if kv_heads < 1 or degree < 1:
        raise Indivisible(f"tensor_parallel: {kv_heads} KV heads over {degree} ranks")
    if max(kv_heads, degree) % min(kv_heads, degree):
        raise Indivisible(
            f"tensor_parallel: {kv_heads} KV heads can't be divided among {degree} ranks; "
            "set --tensor-parallel-size to a divisor or a multiple of them"
        )
