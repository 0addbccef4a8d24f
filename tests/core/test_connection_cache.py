"""The connection cache against a plain list of what was used when, in any order of events."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kserve_ext.core.connection_cache import (
    BUSY_QUIET_S,
    DEAF_S,
    FOUND_BUSY_S,
    FOUND_IDLE_S,
    LOOK_S,
    PONG_S,
    QUIET_S,
    ConnectionCache,
)

ADDRS = st.sampled_from([f"h:{n}" for n in range(9)])


class Connection:
    def __init__(self, addr: str, *, open: bool = True, busy: bool = False) -> None:
        self.addr, self.open, self._busy, self.heard = addr, open, busy, False

    @property
    def busy(self) -> bool:
        return self._busy or not self.open


class Caching(RuleBasedStateMachine):
    """The model: addresses in order of use, and which of them may not go."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.cache: ConnectionCache[Connection] = ConnectionCache(4)
        self.used: list[Connection] = []

    @rule(addr=ADDRS, busy=st.booleans(), open=st.booleans())
    def call(self, addr: str, busy: bool, open: bool) -> None:
        found = self.cache.get(addr)
        assert found is next((c for c in self.used if c.addr == addr), None)
        if found is not None:
            self.used.remove(found)
            self.used.append(found)
            return
        made = Connection(addr, open=open, busy=busy)
        evicted = self.cache.put(addr, made, self.now)
        self.gone(evicted, len(self.used) + 1)
        self.used.append(made)

    def gone(self, evicted: list[Connection], before: int) -> None:
        """Exactly the least recently used ones without calls, as many as there are too many."""
        idle = [c for c in self.used if not c.busy]
        assert evicted == idle[: max(0, before - 4)]
        for c in evicted:
            self.used.remove(c)

    @precondition(lambda self: self.used)
    @rule(data=st.data(), busy=st.booleans())
    def turns(self, data: st.DataObject, busy: bool) -> None:
        one = data.draw(st.sampled_from(self.used))
        one.open, one._busy = True, busy

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def hears(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.used)).heard = True

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.used))
        self.cache.drop(one.addr, Connection(one.addr))  # not this one: nothing happens
        self.cache.drop(one.addr, one)
        self.used.remove(one)

    @rule(after=st.sampled_from([LOOK_S, 2 * LOOK_S, 60.0]))
    def look(self, after: float) -> None:
        self.now += after
        look = self.cache.look(self.now)
        for dead in look.dead:
            self.used.remove(dead)
        self.gone(look.evicted, len(self.used))
        assert not {id(c) for c in look.ping} & {id(c) for c in look.dead}
        assert all(c.open for c in [*look.ping, *look.dead])

    @invariant()
    def keeps_what_it_should(self) -> None:
        assert self.cache.connections() == self.used


TestCaching = Caching.TestCase


@given(busy=st.booleans(), answers=st.lists(st.booleans(), max_size=30), start=st.floats(0, 1e6))
def test_the_silent_are_found_in_the_time_that_is_stated_and_nobody_else(
    busy: bool, answers: list[bool], start: float
) -> None:
    cache: ConnectionCache[Connection] = ConnectionCache(4, start)
    peer = Connection("h:1", busy=busy)
    cache.put("h:1", peer, start)
    now = start
    for answer in answers:  # it lives: it answers pings, and now and then says something by itself
        now += LOOK_S
        look = cache.look(now)
        assert not look.dead
        peer.heard = answer or bool(look.ping)
    silent_from = now
    while not look_dead(cache, now := now + LOOK_S):
        assert now - silent_from <= (FOUND_BUSY_S if busy else FOUND_IDLE_S)
    assert len(cache) == 0


def look_dead(cache: ConnectionCache[Connection], now: float) -> bool:
    return bool(cache.look(now).dead)


def test_a_process_that_did_not_run_blames_nobody() -> None:
    cache: ConnectionCache[Connection] = ConnectionCache(4)
    peer = Connection("h:1")
    cache.put("h:1", peer, 0.0)
    now, pinged = 0.0, False
    while not pinged:
        now += LOOK_S
        pinged = bool(cache.look(now).ping)
    now += 100 * (PONG_S + DEAF_S)  # suspended while the answer was on its way
    assert not cache.look(now).dead
    peer.heard = True
    assert not cache.look(now + LOOK_S).dead


def test_what_waits_for_an_answer_is_asked_sooner() -> None:
    cache: ConnectionCache[Connection] = ConnectionCache(4)
    idle, busy = Connection("h:1"), Connection("h:2", busy=True)
    cache.put("h:1", idle, 0.0)
    cache.put("h:2", busy, 0.0)
    first: dict[str, float] = {}
    for second in range(1, 20):
        look = cache.look(second * LOOK_S)
        for c in look.ping:
            first.setdefault(c.addr, second * LOOK_S)
            c.heard = True
    assert first == {"h:2": BUSY_QUIET_S, "h:1": QUIET_S}


@given(st.sets(ADDRS), st.integers(1, 9))
def test_those_to_be_opened_ahead_are_missing_ones_and_put_nobody_out(wanted: set[str], bound: int) -> None:
    cache: ConnectionCache[Connection] = ConnectionCache(bound)
    cache.put("h:0", Connection("h:0"), 0.0)
    ahead = cache.missing([*wanted, ""], "node-1")
    assert len(ahead) == min(len(wanted - {"h:0"}), bound - 1)
    assert set(ahead) <= wanted - {"h:0"}
    for addr in ahead:
        assert not cache.put(addr, Connection(addr), 0.0)


def test_callers_do_not_all_come_to_the_same_door_first() -> None:
    cache: ConnectionCache[Connection] = ConnectionCache(64)
    doors = [f"h:{n}" for n in range(8)]
    first = {cache.missing(doors, f"node-{n}")[0] for n in range(64)}
    assert first == set(doors)
