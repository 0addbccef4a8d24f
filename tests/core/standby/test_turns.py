"""Adoptions go in order, never more at once than there are places, and a place that is forgotten is none for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.standby.turns import PLACE_S, Turns

STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["ask", "ask", "done", "free"]), st.integers(0, 9)),
        st.tuples(st.just("wait"), st.sampled_from([1, 8])),
    ),
    max_size=80,
)


def test_who_asks_again_keeps_its_turn_and_who_waits_is_named() -> None:
    turns = Turns(1)
    assert turns.ask("a", 0.0)
    assert turns.ask("a", 1.0)
    assert not turns.ask("b", 1.0)
    assert not turns.ask("c", 1.0)
    assert turns.free(1.0) == []
    turns.done("a")
    assert not turns.ask("c", 2.0), "not past b"
    assert turns.free(2.0) == ["b"]
    assert turns.ask("b", 2.0)
    assert turns.waiting == 1
    turns.done("c")
    assert (turns.waiting, turns.free(2.0 + PLACE_S)) == (0, [])
    assert turns.ask("d", 2.0 + PLACE_S), "b had its time"


@given(STEPS, st.integers(1, 3))
def test_in_order_and_never_more_at_once(steps: list[tuple[str, int]], places: int) -> None:
    turns, now = Turns(places), 0.0
    line: list[str] = []
    under_way: dict[str, float] = {}
    for what, number in steps:
        key = str(number)
        if what == "wait":
            now += number * PLACE_S / 8
        elif what == "done":
            turns.done(key)
            under_way.pop(key, None)
            line = [one for one in line if one != key]
        elif what == "free":
            under_way = {one: until for one, until in under_way.items() if until > now}
            admitted = line[: places - len(under_way)]
            assert turns.free(now) == admitted
            under_way |= dict.fromkeys(admitted, now + PLACE_S)
            line = line[len(admitted) :]
        elif key in under_way:
            assert turns.ask(key, now)
        else:
            line += [] if key in line else [key]
            under_way = {one: until for one, until in under_way.items() if until > now}
            first = line[0] == key and len(under_way) < places
            assert turns.ask(key, now) == first
            if first:
                line.remove(key)
                under_way[key] = now + PLACE_S
        assert turns.waiting == len(line)
