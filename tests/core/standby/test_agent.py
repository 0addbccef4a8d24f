"""The agent's account of slots: a slot has one revision, whoever asks, and nobody believes what isn't so."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kserve_ext.core.ids import InstanceID, RevisionKey
from kserve_ext.core.standby.agent import (
    KEEP_PODS,
    MOST_MS,
    MOST_REASON,
    MOST_STEP,
    MOST_STEPS,
    ORDER_S,
    UNCLAIMED_S,
    SlotAccount,
)
from kserve_ext.core.standby.effects import Drop, Effect, EmptySlot, News, StartSlot
from kserve_ext.core.standby.facts import Assignment, Slot, SlotState, Started, Timeouts
from kserve_ext.core.standby.fence import KEEP_TERMS_S
from kserve_ext.core.standby.idle_time import KEEP_POOLS

PODS = ["ns/a", "ns/b"]
REVISIONS = [RevisionKey("ns/one"), RevisionKey("ns/two")]
ONE, TWO = REVISIONS
TELL = ("act-0:8014",)


def slot(pod: str = "ns/a", uid: str = "u", incarnation: int = 1, gpus: int = 0) -> Slot:
    return Slot(pod, uid, "pool", "10.0.0.1", "S0", "warming", incarnation=incarnation, gpus=gpus)


def job(revision: RevisionKey) -> Assignment:
    return Assignment(revision, InstanceID("a"), ("x",), (), 8080, False, 0, Timeouts(), "", ())


def standing_by() -> SlotAccount:
    account = SlotAccount()
    account.connected(1, slot(), 0.0)
    account.said(1, "ready", RevisionKey(""), "", 0.0)
    return account


def serving() -> SlotAccount:
    account = standing_by()
    account.take("ns/a", "u", job(ONE), TELL, 1, 1.0)
    account.said(1, "serving", ONE, "", 2.0)
    return account


def test_engines_that_sleep_are_told_on_when_they_change() -> None:
    account = standing_by()
    before = account.changes
    account.said(1, "ready", RevisionKey(""), "", 1.0, None, ("one", "two"))
    assert [slot.asleep for slot in account.slots] == [("one", "two")]
    assert account.changes == before + 1
    account.said(1, "ready", RevisionKey(""), "", 2.0, None, ("one", "two"))
    assert account.changes == before + 1
    verdict, _ = account.take("ns/a", "u", job(ONE), TELL, 1, 3.0)
    assert verdict.slot is not None
    assert verdict.slot.asleep == ("one", "two")
    account.said(1, "starting", ONE, "", 4.0, None, ("two",))
    assert [slot.asleep for slot in account.slots] == [("two",)]


def test_what_was_said_before_an_order_was_read_changes_nothing() -> None:
    account = standing_by()
    account.take("ns/a", "u", job(ONE), TELL, 1, 1.0)
    assert account.said(1, "ready", RevisionKey(""), "", 1.1) == []
    assert account.slots[0].state == "starting"
    assert account.tick(1.0 + ORDER_S) == []
    assert [s.state for s in account.slots] == ["ready"], "nobody has answered: it is to be had again"


def test_while_its_node_is_cordoned_no_slot_gets_a_revision_and_who_has_one_keeps_it() -> None:
    account = standing_by()
    account.closed = "node n is cordoned"
    verdict, effects = account.take("ns/a", "u", job(ONE), TELL, 1, 1.0)
    assert (verdict.reason, effects) == ("node n is cordoned; take a slot of another node", [])
    account = serving()
    account.closed = "node n is cordoned"
    assert account.take("ns/a", "u", job(ONE), TELL, 1, 3.0)[0].reason == ""


def test_an_order_to_be_empty_is_not_undone_by_what_was_said_before() -> None:
    account = serving()
    _, effects = account.free("ns/a", "u", ONE, 1, 3.0)
    assert [type(effect) for effect in effects] == [News, EmptySlot]
    assert account.said(1, "serving", ONE, "", 3.1) == []
    assert account.slots[0].state == "draining"
    account.said(1, "draining", ONE, "", 3.2)
    account.said(1, "ready", RevisionKey(""), "", 3.3)
    assert (account.slots[0].state, account.slots[0].revision) == ("ready", "")


def test_a_slot_that_no_autoscaler_has_heard_of_is_freed() -> None:
    account = serving()
    assert account.due() == 2.0 + UNCLAIMED_S
    effects = account.tick(2.0 + UNCLAIMED_S)
    assert EmptySlot(1, ONE) in effects


def test_a_slot_that_an_autoscaler_knows_is_its_to_free() -> None:
    account = serving()
    account.heard(account.changes)
    assert account.due() == float("inf")
    assert account.tick(1e9) == []


def test_a_slot_that_had_its_revision_before_this_agent_began_is_left_alone() -> None:
    account = SlotAccount()
    account.connected(1, slot(), 0.0)
    account.said(1, "serving", ONE, "", 0.0)
    assert account.tick(1e9) == []
    assert account.slots[0].revision == ONE


def test_what_fails_is_said_with_its_reason_and_taken_back() -> None:
    account = serving()
    (news,) = account.said(1, "failed", ONE, "the server ended with status 1", 3.0)
    assert isinstance(news, News)
    assert (news.serves, news.reason) == (False, "the server ended with status 1")
    verdict, _ = account.take("ns/a", "u", job(TWO), (), 1, 4.0)
    assert "failed ns/one: the server ended with status 1" in verdict.reason


def test_a_process_that_begins_anew_replaces_its_former_self_and_not_the_other_way() -> None:
    account = serving()
    effects = account.connected(2, slot(incarnation=2), 3.0)
    assert [type(effect) for effect in effects] == [Drop, News]
    assert account.slots[0].state == "warming"
    assert [type(e) for e in account.connected(3, slot(incarnation=1), 4.0)] == [Drop]
    assert account.slots[0].incarnation == 2


def test_the_same_process_on_another_connection_keeps_its_place() -> None:
    account = serving()
    assert account.connected(2, slot(), 3.0) == [Drop(1, "this pod has connected again")]
    assert account.lost(1, 3.1) == [], "the former connection's end is no news"
    assert account.slots[0].state == "serving"


@pytest.mark.parametrize("state", ["starting", "serving", "failed"])
def test_a_slot_can_not_claim_a_revision_of_another_namespace(state: SlotState) -> None:
    account = standing_by()
    (drop,) = account.said(1, state, RevisionKey("other/one"), "", 1.0)
    assert isinstance(drop, Drop)
    assert "not of the namespace" in drop.reason
    assert account.slots == ()


def test_a_reason_is_passed_on_at_a_bearable_length() -> None:
    account = standing_by()
    account.said(1, "warming", RevisionKey(""), "x" * 60_000, 1.0)
    assert len(account.slots[0].reason) == MOST_REASON


def test_how_a_slot_started_is_passed_on_in_bounds_and_as_long_as_it_serves() -> None:
    account = standing_by()
    account.take("ns/a", "u", job(ONE), TELL, 1, 1.0)
    steps = tuple((f"{n}{'x' * 99}", -1 if n else 1 << 90) for n in range(2 * MOST_STEPS))
    account.said(1, "serving", ONE, "", 2.0, Started("S0", "w" * 9999, steps))
    found = account.slots[0].started
    assert found is not None
    assert (found.level, len(found.why), len(found.steps)) == ("S0", MOST_REASON, MOST_STEPS)
    assert found.steps[0] == ("0" + "x" * (MOST_STEP - 1), MOST_MS)
    assert found.steps[1][1] == 0
    account.said(1, "draining", ONE, "", 3.0, found)
    assert account.slots[0].started is None


def test_a_former_holder_is_refused_and_terms_that_begin_anew_are_obeyed_after_a_while() -> None:
    account = serving()
    account.free("ns/a", "u", ONE, 5, 3.0)
    account.said(1, "ready", RevisionKey(""), "", 4.0)
    verdict, _ = account.take("ns/a", "u", job(ONE), (), 0, 4.0)
    assert verdict.stale
    verdict, _ = account.take("ns/a", "u", job(ONE), (), 0, 3.0 + KEEP_TERMS_S)
    assert verdict.reason == "", "there is another number of buckets now"


def test_only_what_stands_by_counts_as_idle() -> None:
    account = SlotAccount()
    account.connected(1, slot(gpus=2), 0.0)
    account.said(1, "ready", RevisionKey(""), "", 3.0)
    assert account.idle_by_pool(5.0) == {"pool": 10.0}
    account.take("ns/a", "u", job(ONE), (), 1, 10.0)
    assert account.idle_by_pool(99.0) == {"pool": 20.0}
    account.lost(1, 100.0)
    assert account.idle_by_pool(200.0) == {"pool": 20.0}


def test_a_pod_has_one_pool_for_its_life() -> None:
    account = SlotAccount()
    account.connected(1, slot(), 0.0)
    account.lost(1, 1.0)
    (drop,) = account.connected(2, slot(incarnation=2)._replace(pool="other"), 2.0)
    assert isinstance(drop, Drop)
    assert (drop.link, drop.reason) == (2, "pod ns/a is of pool pool, not other: say what its label says")
    assert account.slots == ()
    assert account.connected(3, slot(incarnation=3), 3.0) == []
    assert account.connected(4, slot("ns/b", "v")._replace(pool="other"), 3.0) == []
    for number in range(KEEP_PODS):
        account.connected(5, slot("ns/c", f"uid {number}"), 4.0)
    assert len(account._pools) == KEEP_PODS


def test_pools_that_have_stood_by_are_kept_in_mind_up_to_a_number() -> None:
    account = SlotAccount()
    account.connected(1, slot(gpus=1)._replace(pool="stays"), 0.0)
    account.said(1, "ready", RevisionKey(""), "", 1.0)
    for number in range(KEEP_POOLS + 9):
        account.connected(2, slot("ns/b", f"v{number}", gpus=1)._replace(pool=f"pool {number}"), 10.0)
        account.lost(2, 11.0)
    assert account.idle_by_pool(20.0) == {
        "stays": 20.0,
        **{f"pool {number}": 1.0 for number in range(10, KEEP_POOLS + 9)},
    }


class Machine(RuleBasedStateMachine):
    """Slots that obey late or not at all, two autoscalers with rising terms, an agent between them."""

    @initialize()
    def begin(self) -> None:
        self.account = SlotAccount()
        self.now = 0.0
        self.links: dict[int, str] = {}  # of slots that are connected
        self.last_link = 0
        self.incarnations = dict.fromkeys(PODS, 1)
        self.runs: dict[str, tuple[SlotState, RevisionKey]] = {}  # what each slot is really doing
        self.mail: dict[int, list[Effect]] = {}  # orders on their way
        self.believed: dict[InstanceID, RevisionKey] = {}  # by the activator
        self.terms = dict.fromkeys(REVISIONS, 1)
        self.obeyed = dict.fromkeys(REVISIONS, 0)
        self.obeyed_at = dict.fromkeys(REVISIONS, 0.0)

    def carry(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case StartSlot() | EmptySlot():
                    assert effect.link in self.links, "an order to nobody"
                    self.mail[effect.link].append(effect)
                case Drop():
                    self.links.pop(effect.link, None)
                    self.mail.pop(effect.link, None)
                case News():
                    if effect.serves:
                        self.believed[effect.instance] = effect.revision
                    else:
                        assert effect.instance in self.believed, "taken back what nobody was told"
                        del self.believed[effect.instance]

    def say(self, link: int) -> None:
        state, revision = self.runs[self.links[link]]
        self.carry(self.account.said(link, state, revision, "", self.now))

    @rule(pod=st.sampled_from(PODS), anew=st.booleans())
    def dial(self, pod: str, anew: bool) -> None:
        if anew or pod not in self.runs:
            self.incarnations[pod] += 1
            self.runs[pod] = "ready", RevisionKey("")
        self.last_link += 1
        self.links[self.last_link], self.mail[self.last_link] = pod, []
        self.carry(
            self.account.connected(self.last_link, slot(pod, incarnation=self.incarnations[pod]), self.now)
        )
        self.say(self.last_link)

    @precondition(lambda self: self.links)
    @rule(data=st.data())
    def hang_up(self, data: st.DataObject) -> None:
        link = data.draw(st.sampled_from(sorted(self.links)))
        del self.runs[self.links.pop(link)], self.mail[link]
        self.carry(self.account.lost(link, self.now))

    @rule(data=st.data(), back=st.integers(0, 1), uid=st.sampled_from(["u", "u", "other"]))
    def take(self, data: st.DataObject, back: int, uid: str) -> None:
        pod, revision = data.draw(st.sampled_from(PODS)), data.draw(st.sampled_from(REVISIONS))
        term = self.terms[revision] - back
        before = {s.pod: s for s in self.account.slots}
        given = job(revision)._replace(instance=InstanceID(pod))
        verdict, effects = self.account.take(pod, uid, given, TELL, term, self.now)
        remembered = self.now < self.obeyed_at[revision] + KEEP_TERMS_S
        assert verdict.stale == (term < self.obeyed[revision] and remembered)
        if pod in before and uid == "u" and not verdict.stale:
            self.obeyed[revision], self.obeyed_at[revision] = term, self.now
        if not verdict.reason:
            was = before[pod]
            assert (was.state, was.revision) in (("ready", ""), ("starting", revision), ("serving", revision))
            assert bool([e for e in effects if isinstance(e, StartSlot)]) == (was.state == "ready")
            again, more = self.account.take(pod, uid, given, TELL, term, self.now)
            assert (again.reason, more) == ("", []), "asked again, nothing changes"
        else:
            assert effects == []
        self.carry(effects)

    @rule(revision=st.sampled_from(REVISIONS))
    def another_holder(self, revision: RevisionKey) -> None:
        """It asks for a slot that there isn't as well: its term counts once it was obeyed."""
        self.terms[revision] += 1

    @rule(pod=st.sampled_from(PODS), revision=st.sampled_from(REVISIONS))
    def free(self, pod: str, revision: RevisionKey) -> None:
        verdict, effects = self.account.free(pod, "u", revision, self.terms[revision], self.now)
        if pod in self.links.values():
            self.obeyed[revision], self.obeyed_at[revision] = self.terms[revision], self.now
        if verdict.reason:
            assert effects == []
        self.carry(effects)

    @precondition(lambda self: any(self.mail.values()))
    @rule(data=st.data(), fails=st.booleans())
    def obey(self, data: st.DataObject, fails: bool) -> None:
        link = data.draw(st.sampled_from(sorted(link for link, mail in self.mail.items() if mail)))
        order = self.mail[link].pop(0)
        pod = self.links[link]
        state, revision = self.runs[pod]
        if isinstance(order, StartSlot) and state == "ready":
            self.runs[pod] = "failed" if fails else "starting", order.assignment.revision
        elif isinstance(order, EmptySlot) and revision == order.revision:
            self.runs[pod] = "draining", revision
        self.say(link)

    @precondition(lambda self: self.links)
    @rule(data=st.data())
    def goes_on(self, data: st.DataObject) -> None:
        """A slot's own next step."""
        link = data.draw(st.sampled_from(sorted(self.links)))
        pod = self.links[link]
        state, revision = self.runs[pod]
        if state == "starting":
            self.runs[pod] = "serving", revision
        elif state == "draining":
            self.runs[pod] = "ready", RevisionKey("")
        self.say(link)

    @rule(wait=st.sampled_from([0.1, ORDER_S, UNCLAIMED_S]))
    def time_passes(self, wait: float) -> None:
        self.now += wait
        self.carry(self.account.tick(self.now))

    @rule()
    def watched(self) -> None:
        self.account.heard(self.account.changes)

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "account"):
            return
        self.account.check()
        assert self.account.due() > self.now or self.account.due() == float("inf")
        slots = {slot.pod: slot for slot in self.account.slots}
        assert slots.keys() == set(self.links.values())
        serving = {InstanceID(s.pod): s.revision for s in slots.values() if s.state == "serving"}
        assert self.believed.items() <= serving.items(), "activators believe only what is so"
        for link, pod in self.links.items():
            if not self.mail[link] and not self.account._lives[pod].ordered_until:
                assert (slots[pod].state, slots[pod].revision) == self.runs[pod]


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
