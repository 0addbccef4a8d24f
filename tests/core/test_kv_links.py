"""Which channels stand: single rules as examples, then whatever happens, against a model of peers."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kserve_ext.core.kv_links import (
    ANSWER_S,
    IDLE_ANSWER_S,
    IDLE_QUIET_S,
    IN_HAND_S,
    MOST_REST_S,
    QUIET_S,
    STALLED_S,
    Close,
    Dial,
    Instruction,
    Key,
    Links,
    Peer,
    Ping,
    Refusal,
)


def links(pairs: int = 2, most: int = 4) -> Links:
    return Links("d-1", pairs, most, Random(1).random)


def peer(name: str, generation: int = 1) -> Peer:
    return Peer(name, f"{name}:80", generation)


def dials(out: list[Instruction]) -> list[Dial]:
    return [each for each in out if isinstance(each, Dial)]


def closes(out: list[Instruction]) -> list[tuple[str, str]]:
    return [(each.key.peer, each.reason) for each in out if isinstance(each, Close)]


def standing(made: Links, *names: str, now: float = 0.0) -> None:
    """As many channels as the machine wants, of these peers."""
    for dial in dials(made.peers([peer(name) for name in names], now)):
        assert not made.stood(dial.key, dial.number, 1, now)


def up(made: Links) -> set[str]:
    return {key.peer for key, link in made.known.items() if link.state == "up"}


def test_as_many_peers_as_are_wanted_are_dialled_and_each_instance_has_its_own() -> None:
    names = [f"p-{n}" for n in range(8)]
    chosen = set()
    for me in range(30):
        made = Links(f"d-{me}", 2, 8, Random(1).random)
        out = dials(made.peers([peer(name) for name in names], 0.0))
        assert len(out) == 2
        chosen |= {dial.key.peer for dial in out}
    assert chosen == set(names), "nobody is left alone, nobody has all"


def test_a_lease_names_one_beside_them_and_its_word_is_older_than_the_next_list() -> None:
    made = links(pairs=0)
    refusal, out = made.want(Key("p"), "p:80", 1, 0.0)
    [dial] = dials(out)
    assert (refusal, dial.addr, dial.generation) == (None, "p:80", 1)
    assert made.want(Key("p"), "p:80", 1, 0.1) == (None, []), "dialled once, however many want it"
    made.stood(dial.key, dial.number, 1, 0.2)
    assert closes(made.peers([peer("p")], 10.0)) == []
    assert closes(made.peers([], 11.0)) == [("p", "closed")]
    assert not made.known


def test_a_peer_that_is_no_longer_eligible_is_let_go_when_nothing_is_open_on_its_channel() -> None:
    made = links()
    standing(made, "p", "q")
    number = made.known[Key("p")].number
    made.seen(Key("p"), number, 5.0, 3)
    assert closes(made.peers([peer("q")], 5.0)) == []
    made.seen(Key("p"), number, 9.0, 0)
    assert closes(made.tick(9.0)) == [("p", "closed")]
    assert up(made) == {"q"}


def test_a_new_generation_ends_the_old_channel_at_once_and_touches_nobody_else() -> None:
    made = links()
    standing(made, "p", "q")
    made.seen(Key("p"), made.known[Key("p")].number, 5.0, 3)
    out = made.peers([peer("p", 2), peer("q")], 5.0)
    assert closes(out) == [("p", "generation")]
    assert [(dial.key.peer, dial.generation) for dial in dials(out)] == [("p", 2)]
    assert made.peers([peer("p", 1), peer("q")], 6.0) == [], "an old word changes nothing"
    assert up(made) == {"q"}


def test_a_lease_of_a_later_generation_does_the_same_and_the_old_dial_is_void() -> None:
    made = links(pairs=0)
    _, out = made.want(Key("p"), "p:80", 1, 0.0)
    [old] = dials(out)
    _, out = made.want(Key("p"), "p:81", 2, 1.0)
    [new] = dials(out)
    assert (new.addr, new.generation) == ("p:81", 2)
    assert closes(made.stood(old.key, old.number, 1, 1.5)) == [("p", "closed")]
    assert made.stood(new.key, new.number, 2, 2.0) == []
    assert up(made) == {"p"}


def test_who_cannot_be_reached_rests_for_longer_each_time_and_others_take_its_place() -> None:
    made = links(pairs=1)
    first, second = (dial.key.peer for dial in _each_alone())
    now, rests = 0.0, []
    [dial] = dials(made.peers([peer(first), peer(second)], now))
    assert dial.key.peer == first
    [other] = dials(made.failed(dial.key, dial.number, "unreachable", "no", 0, now))
    assert other.key.peer == second
    made.stood(other.key, other.number, 1, now)
    for _ in range(7):
        refused, out = made.want(Key(first), "", 1, now)
        assert (refused, out) == (Refusal("unreachable", "no"), []), "no request waits for it while it rests"
        begun = now
        while not (again := dials(made.tick(now))):
            now += 0.25
            made.seen(other.key, other.number, now, 0)
        rests.append(now - begun)
        made.failed(again[0].key, again[0].number, "unreachable", "no", 0, now)
    assert rests[0] <= 1.25
    assert 7.5 <= max(rests) <= MOST_REST_S + 0.25


def _each_alone() -> list[Dial]:
    """p and q in the order in which this instance prefers them."""
    made = Links("d-1", 2, 4, Random(1).random)
    return dials(made.peers([peer("p"), peer("q")], 0.0))


def test_who_refused_is_remembered_for_its_generation() -> None:
    made = links()
    [dial] = dials(made.peers([peer("p")], 0.0))
    made.failed(dial.key, dial.number, "incompatible", "dtype", 1, 0.0)
    for now in (1.0, 100.0, 1000.0):
        assert made.tick(now) == []
        assert made.want(Key("p"), "", 1, now) == (Refusal("incompatible", "dtype"), [])
    [again] = dials(made.peers([peer("p", 2)], 1001.0))
    assert again.refused_by is None


def test_where_no_generation_is_known_who_refused_is_looked_at_again_but_rarely() -> None:
    made = links()
    [dial] = dials(made.peers([peer("p", 0)], 0.0))
    made.failed(dial.key, dial.number, "incompatible", "dtype", 7, 0.0)
    assert made.tick(MOST_REST_S - 0.1) == []
    [again] = dials(made.tick(MOST_REST_S))
    assert again.refused_by == 7, "to be compared with who is there now"


def test_where_no_generation_is_told_whoever_is_there_after_a_restart_is_taken() -> None:
    made = links()
    [dial] = dials(made.peers([peer("p", 0)], 0.0))
    made.stood(dial.key, dial.number, 7, 0.0)
    made.lost(dial.key, dial.number, 20.0)
    [again] = dials(made.tick(30.0))
    assert again.generation == 0
    made.stood(again.key, again.number, 8, 30.0)
    assert made.known[Key("p")].generation == 8
    assert made.peers([peer("p", 8)], 31.0) == [], "a word that comes later and says the same"
    assert closes(made.peers([peer("p", 9)], 32.0)) == [("p", "generation")]


def test_the_longest_idle_channel_makes_room_and_one_with_open_transfers_never() -> None:
    made = links(pairs=0, most=2)
    for now, name in enumerate("pq"):
        _, out = made.want(Key(name), name, 1, float(now))
        made.stood(dials(out)[0].key, dials(out)[0].number, 1, float(now))
    made.seen(Key("p"), made.known[Key("p")].number, 10.0, 1)
    _, out = made.want(Key("r"), "r", 1, 10.0)
    assert closes(out) == [("q", "closed")]
    made.stood(dials(out)[0].key, dials(out)[0].number, 1, 10.0)
    refusal, out = made.want(Key("s"), "s", 1, 10.0 + IN_HAND_S / 2)
    assert refusal is not None
    assert (refusal.reason, out) == ("limit", []), "one has transfers, the other was given out just now"
    _, out = made.want(Key("s"), "s", 1, 10.0 + IN_HAND_S)
    assert closes(out) == [("r", "closed")]


def test_a_silent_peer_is_asked_and_given_up_sooner_while_transfers_wait() -> None:
    for transfers, quiet, answer in ((0, IDLE_QUIET_S, IDLE_ANSWER_S), (2, QUIET_S, ANSWER_S)):
        made = links(pairs=1)
        standing(made, "p")
        key, number = Key("p"), made.known[Key("p")].number
        at = {"ping": 0.0, "close": 0.0}
        now = 0.0
        while not at["close"]:
            now += 0.25
            made.seen(key, number, 0.0, transfers)
            for each in made.tick(now):
                if isinstance(each, Ping):
                    at["ping"] = now
                elif isinstance(each, Close):
                    assert (each.key, each.number, each.reason) == (key, number, "timeout")
                    at["close"] = now
        assert at == {"ping": quiet, "close": quiet + answer}


def test_whatever_is_heard_is_an_answer() -> None:
    made = links(pairs=1)
    standing(made, "p")
    key, number, now = Key("p"), made.known[Key("p")].number, 0.0
    pings = 0
    while now < 60.0:
        now += 0.25
        out = made.tick(now)
        pings += len(out)
        assert not closes(out)
        if out:
            made.seen(key, number, now + 0.1, 0)
    assert pings == 60 // (IDLE_QUIET_S + 0.25)


def test_nobody_is_given_up_for_the_time_that_we_were_away() -> None:
    made = links(pairs=1)
    standing(made, "p")
    key, number = Key("p"), made.known[Key("p")].number
    made.tick(0.5)
    assert made.tick(100.0) == [Ping(key, number)], "stopped for long: asked before it is judged"
    made.tick(100.0 + STALLED_S)
    assert made.tick(200.0) == [Ping(key, number)]
    assert up(made) == {"p"}


def test_a_listener_takes_the_later_of_two_channels_and_never_an_older_generation() -> None:
    made = links(pairs=0, most=2)
    first, out = made.accepted(Key("d"), 5, 0.0)
    assert out == []
    second, out = made.accepted(Key("d"), 5, 1.0)
    assert [(c.number, c.reason) for c in out if isinstance(c, Close)] == [(first, "closed")]
    third, out = made.accepted(Key("d"), 6, 2.0)
    assert [c.number for c in out if isinstance(c, Close)] == [second]
    stale, out = made.accepted(Key("d"), 5, 3.0)
    assert [(c.number, c.reason) for c in out if isinstance(c, Close)] == [(stale, "generation")]
    assert made.known[Key("d")].number == third
    made.accepted(Key("e"), 1, 4.0)
    _, out = made.accepted(Key("f"), 1, 9.0)
    assert closes(out) == [("d", "closed")]
    for name in "ef":
        made.seen(Key(name), made.known[Key(name)].number, 9.0, 1)
    refused, out = made.accepted(Key("g"), 1, 10.0)
    assert [c.number for c in out if isinstance(c, Close)] == [refused]
    assert up(made) == {"e", "f"}
    made.lost(Key("e"), made.known[Key("e")].number, 11.0)
    assert set(made.known) == {Key("f")}, "who dials us is known as long as its channel stands"


@pytest.mark.parametrize("pairs", [1, 3])
def test_all_ranks_of_a_peer_are_one_pair(pairs: int) -> None:
    made = Links("d", pairs, 99, Random(1).random)
    out = dials(made.peers([Peer(name, name, 1, ranks=4) for name in "pqrst"], 0.0))
    assert len(out) == pairs * 4
    assert len({dial.key.peer for dial in out}) == pairs
    assert {dial.key.rank for dial in out} == {0, 1, 2, 3}


NAMES = st.sampled_from(["p", "q", "r", "s", "t"])


class World(RuleBasedStateMachine):
    """Peers that restart, vanish, refuse and fall silent; a shell that carries out whatever it is told."""

    @initialize(pairs=st.integers(0, 3), most=st.integers(1, 4), seed=st.integers(0, 99), told=st.booleans())
    def begin(self, pairs: int, most: int, seed: int, told: bool) -> None:
        """`told`: in the end, with the generations."""
        self.told = told
        self.now = 0.0
        self.pairs, self.most = min(pairs, most), most
        self.made = Links("me", pairs, most, Random(seed).random)
        self.generation = dict.fromkeys("pqrst", 1)
        self.alive = dict.fromkeys("pqrst", True)
        self.fits = dict.fromkeys("pqrst", True)
        self.listed: set[str] = set()
        self.dialling: dict[int, Dial] = {}
        self.channels: dict[int, Key] = {}  # that stand
        self.of: dict[int, int] = {}  # their peer's generation
        self.open: dict[int, int] = {}
        self.refused: set[tuple[str, int]] = set()

    def carry(self, out: list[Instruction]) -> None:
        for each in out:
            if isinstance(each, Dial):
                assert each.number not in self.dialling
                assert (each.key.peer, each.generation) not in self.refused, "it has refused"
                self.dialling[each.number] = each
            elif isinstance(each, Close):
                if each.reason == "closed":
                    assert not self.open.get(each.number), "there were transfers on it"
                self.channels.pop(each.number, None)
                self.open.pop(each.number, None)
            else:
                assert self.channels[each.number] == each.key

    def look(self) -> None:
        for number, key in self.channels.items():
            here = self.alive[key.peer] and self.of[number] == self.generation[key.peer]
            self.made.seen(key, number, self.now if here else 0.0, self.open.get(number, 0))

    @rule(names=st.sets(NAMES), known=st.booleans())
    def list(self, names: set[str], known: bool) -> None:
        self.look()
        self.listed = names
        self.refused = {(name, there) for name, there in self.refused if name in names}  # else forgotten
        generation = self.generation if known else dict.fromkeys(names, 0)
        self.carry(self.made.peers([peer(name, generation[name]) for name in sorted(names)], self.now))

    @rule(name=NAMES, known=st.booleans())
    def lease(self, name: str, known: bool) -> None:
        self.look()
        refusal, out = self.made.want(
            Key(name), f"{name}:80", self.generation[name] if known else 0, self.now
        )
        self.carry(out)
        link = self.made.known.get(Key(name))
        assert refusal is not None or (link is not None and link.state != "down")

    @rule(name=NAMES)
    def restart(self, name: str) -> None:
        self.generation[name] += 1
        self.alive[name] = True

    @rule(name=NAMES, alive=st.booleans(), fits=st.booleans())
    def change(self, name: str, alive: bool, fits: bool) -> None:
        self.alive[name] = alive
        if fits != self.fits[name]:
            self.fits[name] = fits
            self.generation[name] += 1

    @precondition(lambda self: self.dialling)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        self.look()
        number = data.draw(st.sampled_from(sorted(self.dialling)))
        self.answered(self.dialling.pop(number))

    def answered(self, dial: Dial) -> None:
        name, there = dial.key.peer, self.generation[dial.key.peer]
        if not self.alive[name]:
            self.carry(self.made.failed(dial.key, dial.number, "unreachable", "", 0, self.now))
        elif dial.generation not in (0, there):
            self.carry(self.made.failed(dial.key, dial.number, "generation", "", there, self.now))
        elif not self.fits[name]:
            before = self.made.known.get(dial.key)
            current = dial.generation and before is not None and before.number == dial.number
            out = self.made.failed(dial.key, dial.number, "incompatible", "", there, self.now)
            if current and dial.key in self.made.known:  # else nobody names it any more
                self.refused.add((name, there))
            self.carry(out)
        else:
            self.channels[dial.number], self.of[dial.number] = dial.key, there
            self.carry(self.made.stood(dial.key, dial.number, there, self.now))

    @precondition(lambda self: self.channels)
    @rule(data=st.data(), transfers=st.integers(0, 2))
    def use(self, data: st.DataObject, transfers: int) -> None:
        self.open[data.draw(st.sampled_from(sorted(self.channels)))] = transfers

    @precondition(lambda self: self.channels)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.channels)))
        self.open.pop(number, None)
        self.carry(self.made.lost(self.channels.pop(number), number, self.now))

    @rule(seconds=st.sampled_from([0.25, 0.5, 2.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.look()
        self.carry(self.made.tick(self.now))

    @invariant()
    def sane(self) -> None:
        if not hasattr(self, "made"):
            return
        self.made.check()
        standing = {link.number: key for key, link in self.made.known.items() if link.state == "up"}
        assert standing == self.channels, "nothing is leaked, nothing is forgotten"
        assert len(set(self.channels.values())) == len(self.channels)

    def teardown(self) -> None:
        """In the end everything works and home has said who there is: what was wanted stands, and nothing else."""
        if not hasattr(self, "made"):
            return
        self.alive = dict.fromkeys("pqrst", True)
        for name in self.fits:
            self.change(name, True, True)
        self.open.clear()
        self.list(self.listed, self.told)
        for _ in range(200):
            self.now += 0.5
            self.look()
            for number in sorted(self.dialling):
                self.answered(self.dialling.pop(number))
            self.carry(self.made.tick(self.now))
            self.sane()
        standing = {key.peer for key in self.channels.values()}
        assert standing <= self.listed
        assert len(standing) >= min(self.pairs, len(self.listed))
        assert all(self.of[number] == self.generation[key.peer] for number, key in self.channels.items())
        assert not self.dialling


class Listening(RuleBasedStateMachine):
    """The side that is dialled: decode instances that come again, fall silent and have transfers."""

    @initialize(most=st.integers(1, 3))
    def begin(self, most: int) -> None:
        self.now, self.most = 0.0, most
        self.made = Links("me", 0, most, Random(1).random)
        self.channels: dict[int, tuple[str, int]] = {}  # peer and generation
        self.open: dict[int, int] = {}
        self.silent: set[int] = set()

    def carry(self, out: list[Instruction], new: int = 0, peer: str = "") -> None:
        for each in out:
            assert not isinstance(each, Dial)
            if isinstance(each, Close):
                held = self.channels.pop(each.number)
                full = each.reason == "closed" and held[0] != peer
                assert not (full and each.number != new and self.open.get(each.number)), "it had transfers"
                self.open.pop(each.number, None)
                self.silent.discard(each.number)

    def look(self) -> None:
        for number, (name, _) in self.channels.items():
            heard = 0.0 if number in self.silent else self.now
            self.made.seen(Key(name), number, heard, self.open.get(number, 0))

    @rule(name=NAMES, generation=st.integers(1, 3))
    def dialled(self, name: str, generation: int) -> None:
        self.look()
        known = {held[0]: held[1] for held in self.channels.values()}
        number, out = self.made.accepted(Key(name), generation, self.now)
        self.channels[number] = name, generation
        self.carry(out, number, name)
        if number not in self.channels:
            full = len(self.channels) == self.most
            assert full or generation < known.get(name, 0), "nobody is turned away without need"

    @precondition(lambda self: self.channels)
    @rule(data=st.data(), transfers=st.integers(0, 2), silent=st.booleans())
    def use(self, data: st.DataObject, transfers: int, silent: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.channels)))
        self.open[number] = transfers
        (self.silent.add if silent else self.silent.discard)(number)

    @precondition(lambda self: self.channels)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.channels)))
        name, _ = self.channels.pop(number)
        self.open.pop(number, None)
        self.carry(self.made.lost(Key(name), number, self.now))

    @rule(seconds=st.sampled_from([0.25, 0.5, 2.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.look()
        self.carry(self.made.tick(self.now))

    @invariant()
    def sane(self) -> None:
        if hasattr(self, "made"):
            self.made.check()
            assert {link.number for link in self.made.known.values()} == set(self.channels)
            assert len({name for name, _ in self.channels.values()}) == len(self.channels) <= self.most

    def teardown(self) -> None:
        """Nothing is held for long for those that have gone without a word."""
        if not hasattr(self, "made"):
            return
        self.silent = set(self.channels)
        for _ in range(40):
            self.now += 0.5
            self.look()
            self.carry(self.made.tick(self.now))
        assert not self.channels
        assert not self.made.known


World.TestCase.settings = Listening.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None
)
TestWorld = World.TestCase
TestListening = Listening.TestCase


def test_who_stands_and_whom_no_lease_should_name() -> None:
    links = Links("d", 4, 8, Random(1).random)
    dials = [
        i for i in links.peers([Peer(n, f"{n}:1", 1) for n in ("a", "b", "c")], 0.0) if isinstance(i, Dial)
    ]
    numbers = {i.key.peer: i.number for i in dials}
    links.stood(Key("a"), numbers["a"], 1, 0.1)
    links.failed(Key("b"), numbers["b"], "unreachable", "refused", 0, 0.1)
    assert links.usable(0.2) == ({"a"}, {"b": Refusal("unreachable", "refused")})
    assert links.usable(100.0) == ({"a"}, {}), "it may be tried again"
