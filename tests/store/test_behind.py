"""What waits to be written, and what a watcher is told: the pure halves of every adapter."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.store import Unavailable
from kserve_ext.store.behind import BATCH, WHOLE, Batch, Pending, WriteBehind
from kserve_ext.store.following import Following

writes = st.tuples(st.sampled_from("abcdef"), st.none() | st.binary(max_size=6))


@given(
    st.lists(st.one_of(writes, st.sampled_from(["send", "lose", "forget"])), max_size=60),
    st.integers(1, 6),
    st.integers(0, 30),
)
def test_the_store_ends_with_the_latest_of_each_key_that_was_not_dropped(
    steps: list[tuple[str, bytes | None] | str], most: int, most_bytes: int
) -> None:
    pending = Pending(most, most_bytes)
    latest: dict[str, bytes | None] = {}
    store: dict[str, bytes | None] = {}
    for step in [*steps, "send"]:
        if isinstance(step, tuple):
            before = pending.waiting()
            dropped = pending.dropped
            pending.put([step])
            latest[step[0]] = step[1]
            in_order = [*(k for k in before if k != step[0]), step[0]]
            gone = [k for k in in_order if k not in pending.waiting()]
            assert len(gone) == pending.dropped - dropped
            assert gone == in_order[: len(gone)]  # oldest first
            for key in gone:
                del latest[key]
        elif step == "forget":
            pending.forget("a")
            latest.pop("a", None)
        else:
            batch = pending.batch()
            if step == "send":
                store |= batch
                pending.written(batch)
        assert len(pending) <= most
        assert pending.bytes <= most_bytes
        assert pending.bytes == sum(len(latest[k] or b"") for k in pending.waiting())
    assert not pending
    assert {k: store[k] for k in latest} == latest


def test_a_key_that_is_put_again_while_its_batch_is_under_way_waits_on() -> None:
    pending = Pending()
    pending.put([("a", b"1"), ("b", b"1")])
    batch = pending.batch()
    pending.put([("a", b"2")])
    pending.written(batch)
    assert pending.batch() == {"a": b"2"}


def test_batches_are_bounded_in_keys_and_bytes() -> None:
    pending = Pending()
    pending.put([(str(k), b"") for k in range(BATCH + 1)])
    assert len(pending.batch()) == BATCH
    pending = Pending()
    pending.put([(str(k), bytes(600_000)) for k in range(4)])
    assert list(pending.batch()) == ["0"]


class Sink:
    """A store that takes batches when it is there."""

    def __init__(self) -> None:
        self.taken: list[Batch] = []
        self.away = False
        self.tried = asyncio.Event()

    async def write(self, batch: Batch) -> None:
        self.tried.set()
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("state store: away")
        self.taken.append(dict(batch))


def test_what_comes_while_a_batch_is_under_way_goes_as_one() -> None:
    async def story() -> None:
        sink = Sink()
        behind = WriteBehind(sink.write)
        behind.put([("a", b"1")])
        await sink.tried.wait()
        for k in range(5):
            behind.put([("a", str(k).encode()), (f"b{k}", b"")])
        assert await behind.flush(10)
        assert len(sink.taken) == 2
        assert sink.taken[1] == {"a": b"4", **{f"b{k}": b"" for k in range(5)}}

    asyncio.run(story())


def test_while_the_store_is_away_the_newest_are_kept_and_the_rest_counted() -> None:
    async def story() -> None:
        sink = Sink()
        sink.away = True
        behind = WriteBehind(sink.write, Pending(10))
        behind.put([(f"k{k}", b"x") for k in range(25)])
        await sink.tried.wait()
        assert not await behind.flush(0.01)
        assert behind.pending.dropped == 15
        assert behind.pending.waiting() == [f"k{k}" for k in range(15, 25)]
        sink.away = False
        assert await behind.flush(10)
        assert list(sink.taken[-1]) == [f"k{k}" for k in range(15, 25)]
        await behind.close()

    asyncio.run(story())


def test_another_life_of_the_store_is_told_everything_and_that_it_is_whole() -> None:
    async def story() -> None:
        sink = Sink()
        behind = WriteBehind(sink.write)
        behind.restate(lambda: [("r/1", b"x")], ["r/"])
        behind.heard("one")
        behind.heard("one")
        assert await behind.flush(10)
        assert sink.taken == []
        behind.heard("two")
        assert await behind.flush(10)
        assert sink.taken == [{"r/1": b"x", "r/" + WHOLE: b"two"}]

    asyncio.run(story())


def test_following_over_gaps_losses_and_the_mark_of_the_owner() -> None:
    told: list[object] = []
    following = Following("r/", lambda items: told.append(items), lambda k, v: told.append((k, v)))
    mark = "r/" + WHOLE
    following.scanned("one", {"r/1": b"1", "r/2": b"2"})
    assert not following.changed("r/3", b"3")
    following.scanned("one", {"r/3": b"3"})  # a gap: the rest has gone
    following.scanned("two", {"r/4": b"4", mark: b"one"})  # lost: nobody has restated yet
    assert told == [{"r/1": b"1", "r/2": b"2"}, ("r/3", b"3"), {"r/3": b"3"}, ("r/4", b"4")]
    told.clear()
    following.scanned("two", {"r/5": b"5"})  # a gap before it is whole
    assert not following.changed("r/6", None)
    assert following.changed(mark, b"two")  # whole: what follows is the truth
    following.scanned("two", {"r/3": b"3", mark: b"two"})
    assert not following.changed(mark, b"two")
    assert told == [("r/5", b"5"), ("r/6", None), {"r/3": b"3"}]


def test_a_watcher_that_fails_on_one_change_hears_of_the_next() -> None:
    told = []

    def change(key: str, value: bytes | None) -> None:
        if value == b"bad":
            raise ValueError(value)
        told.append(key)

    following = Following("r/", lambda items: None, change)
    following.scanned("one", {})
    following.changed("r/1", b"bad")
    following.changed("r/2", b"good")
    assert told == ["r/2"]
