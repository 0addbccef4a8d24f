"""A home in a full cluster: whom it lets go for others, and how soon it asks when room is kept for it."""

from __future__ import annotations

from collections.abc import Iterable

from kserve_ext.core.dispatch.facts import Instruction, Outcome, Place, StopInstance
from kserve_ext.core.dispatch.home import Home
from kserve_ext.core.facts import Instance, Revision, Role
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from tests.support.world_nodes import revision

NODE = NodeID("node-0")
WHY = "preempted by x/high (priority 9 over 0)"


class One:
    """A home and what it has asked for; every start succeeds at once, on NODE."""

    def __init__(self, *revisions: Revision, full: bool = False) -> None:
        self.now, self.ids = 0.0, 0
        self.stopped: list[StopInstance] = []
        self.places: list[Place] = []
        self.full = full
        self.home = Home(FunctionID("dispatch-0"), 1, self.new_id)
        self.carry(self.home.view([NODE], {FunctionID("dispatch-0"): 1}, (), self.now))
        for of in revisions:
            self.carry(self.home.add(of, True, (), self.now))
            self.carry(self.home.recalled(FunctionID("dispatch-0"), [of.key], (), self.now))
            self.carry(self.home.node_says(of.key, NODE, (), self.now, self.now))

    def new_id(self, key: str) -> InstanceID:
        self.ids += 1
        return InstanceID(f"i{self.ids}")

    def carry(self, out: Iterable[Instruction]) -> None:
        for i in out:
            if isinstance(i, StopInstance):
                self.stopped.append(i)
            if isinstance(i, Place):
                self.places.append(i)
                self.placed(i)

    def placed(self, place: Place) -> None:
        answers = {
            of.key: [Outcome(n, reason="full") if self.full else Outcome(n, NODE) for n in ids]
            for of, ids in place.items
        }
        self.carry(self.home.placed(answers, self.now))
        for of, ids in place.items:
            if not self.full:
                facts = [Instance(n, of.key, NODE, "ready", f"h:{n}") for n in ids]
                self.carry(self.home.observed(of.key, NODE, facts, False, self.now)[1])

    def ask(self, of: Revision, count: int, priority: int = 9) -> int:
        given, out = self.home.make_room(of.key, NODE, count, priority, WHY, self.now)
        self.carry(out)
        return given

    def time(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.1)):
            self.now += 0.1
            self.carry(self.home.tick(self.now))

    def running(self, of: Revision) -> int:
        return self.home.revisions[of.key].fleet.wanted


def of(
    name: str = "m", least: int = 0, initial: int = 3, role: Role = "unified", group: str = ""
) -> Revision:
    base = revision()
    scale = base.scale._replace(min=least, initial=initial, max=0)
    key = RevisionKey(f"default/{name}")
    return base._replace(key=key, scale=scale, role=role, group=group, priority=0)


def test_the_youngest_go_first_down_to_min_scale_and_home_says_why() -> None:
    m = of(least=2)
    one = One(m)
    assert one.running(m) == 3
    one.full = True
    assert one.ask(m, 2) == 1
    one.time(1.5)
    assert [(s.instance, s.reason) for s in one.stopped[:1]] == [("i3", WHY)]
    assert one.running(m) == 2
    assert one.ask(m, 1) == 0, "the rest is its least"


def test_equal_and_higher_priorities_never_go() -> None:
    m = of()
    one = One(m)
    assert one.ask(m, 1, priority=0) == 0
    assert one.ask(m, 1, priority=-1) == 0
    assert one.running(m) == 3


def test_what_was_preempted_is_not_kept_after_all_and_not_started_at_once() -> None:
    m = of(least=1)
    one = One(m)
    one.full = True
    places = len(one.places)
    assert one.ask(m, 1) == 1
    assert len(one.places) == places, "not at once"
    one.time(10.0)
    fleet = one.home.revisions[m.key].fleet
    assert fleet.known[InstanceID("i3")].preempted
    assert 1 <= len(one.places) - places <= 10, "again and again, with pauses"
    assert one.places[-1].waited_s > 3.0, "and it says how long it has waited"


def test_home_asks_the_function_that_keeps_room_at_once() -> None:
    m = of(initial=2, least=2)
    one = One(m, full=True)
    one.time(5.0)
    places, one.full = len(one.places), False
    wanted, out = one.home.room_for([m.key], FunctionID("schedule-1"), one.now)
    one.carry(out)
    assert wanted
    assert len(one.places) == places + 1
    assert one.places[-1].at == "schedule-1"
    wanted, out = one.home.room_for([m.key], FunctionID("schedule-1"), one.now)
    assert not wanted, "nothing is missing any more"
    assert one.home.revisions[m.key].without_room_since is None


def test_the_last_of_a_role_stays_with_its_partner_or_both_go() -> None:
    prefill, decode = of("p", 0, 1, "prefill", "g"), of("d", 1, 1, "decode", "g")
    one = One(prefill, decode)
    assert (one.running(prefill), one.running(decode)) == (1, 1)
    one.full = True
    assert one.ask(prefill, 1) == 0, "decode must stay, so its prefill does"
    free = of("d2", 0, 1, "decode", "h")
    both = One(of("p2", 0, 1, "prefill", "h"), free)
    both.full = True
    assert both.ask(free, 1) == 1
    assert sum(h.fleet.wanted for h in both.home.revisions.values()) == 0
    assert {s.reason for s in both.stopped} <= {WHY}


def test_a_gang_of_which_a_part_has_room_is_asked_for_as_a_whole_where_that_is() -> None:
    prefill, decode = of("p", 0, 1, "prefill", "g"), of("d", 0, 1, "decode", "g")
    one = One(prefill, decode, full=True)
    one.time(3.0)
    places, one.full = len(one.places), False
    wanted, out = one.home.room_for([prefill.key], FunctionID("schedule-1"), one.now)
    one.carry(out)
    assert wanted
    assert len(one.places) == places + 1
    place = one.places[-1]
    assert (place.gang, place.at) == (True, "schedule-1")
    assert {r.key for r, _ in place.items} == {prefill.key, decode.key}


def test_a_group_s_instance_is_sought_near_its_partners() -> None:
    prefill, decode = of("p", 1, 1, "prefill", "g"), of("d", 1, 1, "decode", "g")
    one = One(prefill, decode)
    one.home.revisions[decode.key].goal.count = 2
    one.time(0.3)
    assert one.places[-1].items[0][0].key == decode.key
    assert one.places[-1].near == (NODE,)
