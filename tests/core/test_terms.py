"""Leases and terms together: two candidates whose clocks run apart, paused anywhere, on a store that comes and goes.

It loses everything at times, too. What they publish has one content an epoch, and no member obeys an older one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kserve_ext.core.election import Claim, Election, ElectionSpec, LeaseRecord
from kserve_ext.core.facts import Member, View
from kserve_ext.core.ids import FunctionID
from kserve_ext.core.membership import MembershipMachine

LEASE, TERM, VIEW = "lease", "term", "view"
NOTHING = View()


class Store:
    """Conditional writes, as core of every adapter."""

    def __init__(self) -> None:
        self.revision = 0
        self.values: dict[str, tuple[object, int]] = {}
        self.away = False

    def put(self, key: str, value: object, expect: tuple[str, int]) -> int | None:
        """The revision, None on conflict."""
        if self.values.get(expect[0], (None, 0))[1] != expect[1]:
            return None
        self.revision += 1
        self.values[key] = (value, self.revision)
        return self.revision


@dataclass
class Candidate:
    name: str
    offset: float = 0.0
    election: Election = field(init=False)
    #: of the term that it has begun, and what it leads with
    term: int = 0
    machine: MembershipMachine | None = None
    last: View = NOTHING
    lease: int = 0

    def __post_init__(self) -> None:
        self.election = Election(ElectionSpec(self.name, 3.0, 2.0, 0.5))

    def clock(self, now: float) -> float:
        return now + self.offset


class Terms(RuleBasedStateMachine):
    """Every rule is one step of one candidate between which it may be paused for any time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.store = Store()
        self.candidates = [Candidate("a", 0.0), Candidate("b", 1e6)]
        #: content by epoch, of all that was ever published
        self.published: dict[int, View] = {}
        self.members = {f"m{k}": View() for k in range(3)}
        self.emptied = False

    candidate = st.integers(0, 1)

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.9, 3.5, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(away=st.booleans())
    def store_goes_or_comes(self, away: bool) -> None:
        self.store.away = away

    @rule()
    def store_loses_everything(self) -> None:
        revision, self.store = self.store.revision + 1000, Store()
        self.store.revision = revision  # as another life's: none is ever given twice
        self.emptied = True

    @rule(k=candidate)
    def looks_and_claims(self, k: int) -> None:
        c = self.candidates[k]
        if self.store.away:
            return
        found = self.store.values.get(LEASE)
        holder, version = found if found else ("", 0)
        record = LeaseRecord(str(version), str(holder), 3.0, 0, "") if found else None
        c.election.observe(record, c.clock(self.now))
        act = c.election.decide(c.clock(self.now))
        if isinstance(act, Claim):
            revision = self.store.put(LEASE, c.name, (LEASE, version))
            assert revision is not None
            c.lease = revision
            c.election.claimed(
                LeaseRecord(str(revision), c.name, 3.0, 0, ""), c.clock(self.now), c.clock(self.now)
            )

    @rule(k=candidate)
    def begins_a_term(self, k: int) -> None:
        """It may have been paused since it was given the lease: only the store knows better."""
        c = self.candidates[k]
        if self.store.away or not c.election.holds or c.machine is not None:
            return
        revision = self.store.put(TERM, c.name, (LEASE, c.lease))
        if revision is None:
            c.election.lost()
            return
        c.term = revision
        stored = self.store.values.get(VIEW, (View(), 0))[0]
        assert isinstance(stored, View)
        c.machine = MembershipMachine(max(stored, c.last, key=lambda v: v.epoch), self.now)

    @rule(k=candidate, which=st.integers(0, 2), publishes=st.booleans())
    def a_member_joins(self, k: int, which: int, publishes: bool) -> None:
        """At whichever candidate leads or believes it does; what changes is published once it is written."""
        c = self.candidates[k]
        if c.machine is None:
            return
        name = f"m{which}"
        c.machine.join(
            Member(FunctionID(name), "node", f"{name}:{k}", 1), self.members[name].epoch, k, self.now
        )
        if publishes:
            self.publish(c)

    @rule(k=candidate)
    def drains_somebody(self, k: int) -> None:
        c = self.candidates[k]
        if c.machine is not None and c.machine.view.members:
            c.machine.leave(c.machine.view.members[0].id, 9, "gone", self.now)
            self.publish(c)

    def publish(self, c: Candidate) -> None:
        assert c.machine is not None
        if self.store.away:
            return
        view = c.machine.view
        if self.store.put(VIEW, view, (TERM, c.term)) is None:
            c.machine = None  # its term is over
            c.election.lost()
            return
        c.last = view
        if c.machine.gathering(self.now):
            return
        if not self.emptied:
            assert self.published.setdefault(view.epoch, view) == view
        for name in self.members:
            if view.member(name) is not None and view.epoch > self.members[name].epoch:
                self.members[name] = view

    @rule(k=candidate)
    def dies_and_is_started_again(self, k: int) -> None:
        self.candidates[k] = Candidate(self.candidates[k].name, self.candidates[k].offset)

    @invariant()
    def one_term_can_write(self) -> None:
        able = [
            c for c in self.candidates if c.machine and self.store.values.get(TERM, (None, 0))[1] == c.term
        ]
        assert len({c.term for c in able}) == len(able) <= 1

    @invariant()
    def members_of_one_epoch_have_one_view(self) -> None:
        by_epoch: dict[int, View] = {}
        for view in self.members.values():
            assert by_epoch.setdefault(view.epoch, view) == view

    def teardown(self) -> None:
        """In a good world one leads, above everything that any member has seen."""
        self.store.away = False
        for _ in range(40):
            self.now += 0.5
            for k in (0, 1):
                self.looks_and_claims(k)
                self.begins_a_term(k)
                for which in range(3):
                    self.a_member_joins(k, which, True)
                c = self.candidates[k]
                if c.machine is not None:
                    self.publish(c)
        assert sum(c.machine is not None for c in self.candidates) == 1
        assert len({view.epoch for view in self.members.values()}) == 1


Terms.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestTerms = Terms.TestCase
