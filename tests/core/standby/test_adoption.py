"""How a revision takes standby pods: scripts for what is to be seen, a machine for what must always hold."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kserve_ext.core.standby import adoption
from kserve_ext.core.standby.adoption import Wanted
from kserve_ext.core.standby.taken import ORDER_S, SILENT_S
from tests.core.standby.world import POOL, A, B, World


def serving(world: World) -> None:
    """All orders arrive, and what starts serves."""
    while world.orders:
        world.deliver(0)
    for uid in list(world.pods):
        world.step(uid)
    world.report()


def asked(pods: int, wanted: int = 1, guards: bool = False) -> World:
    """So many pods stand by, and so many are wanted of A, which has yet to plan."""
    world = World(guards=guards)
    world.add(pods)
    world.restart()
    world.wanted[A] = wanted
    return world


def served(pods: int, guards: bool = False) -> World:
    """A has taken one of them, which serves and is to be adopted."""
    world = asked(pods, guards=guards)
    world.act(A)
    serving(world)
    return world


def adopted() -> World:
    """A has adopted the one pod that there is."""
    world = asked(1)
    world.settle()
    return world


def test_a_slot_is_taken_and_nothing_is_written_before_it_serves() -> None:
    world = asked(2)
    plan = world.plan(A)
    assert [seen.slot.uid for seen in plan.take] == ["u1"]
    assert (plan.replicas, plan.label, plan.missed) == (0, (), 0)


def test_then_replicas_rise_and_it_gets_its_labels() -> None:
    world = served(2)
    plan = world.plan(A)
    assert (plan.replicas, plan.label, plan.take) == (1, ("u1",), ())


def test_one_that_has_waited_for_others_and_can_not_be_adopted_yet_is_not_looked_at_all_the_time() -> None:
    world = served(1)
    wanted = Wanted(1, 0, 0, 0, POOL, adoptable=False, rush=True)
    assert world.adoptions[A].plan(wanted, world.now).recheck_s == adoption.BEHIND_S
    recheck_s = world.adoptions[A].plan(wanted, world.now + adoption.BEHIND_S + 1.0).recheck_s
    assert recheck_s is not None
    assert recheck_s > 1.0


def test_what_its_own_pool_lacks_is_taken_from_pools_of_lower_levels() -> None:
    world = asked(2, wanted=0)
    wanted = Wanted(3, 0, 0, 0, "default/of-sleepers", lesser=("default/shaped", POOL), engine="a")
    plan = world.adoptions[A].plan(wanted, world.now)
    assert [seen.slot.uid for seen in plan.take] == ["u1", "u2"]
    assert (plan.missed, plan.why) == (1, "empty")


def test_what_finds_no_slot_is_scaled_at_once() -> None:
    world = asked(2, wanted=5)
    plan = world.plan(A)
    assert (len(plan.take), plan.replicas, plan.missed, plan.why) == (2, 3, 3, "empty")
    assert world.plan(A).missed == 0  # counted once


def test_a_slot_is_promised_to_one_of_two_revisions() -> None:
    world = asked(1)
    world.wanted[B] = 1
    assert len(world.plan(A).take) == 1
    plan = world.plan(B)
    assert (plan.take, plan.replicas, plan.why) == ((), 1, "empty")


def test_a_slot_that_fails_is_made_up_for_and_its_pod_goes() -> None:
    world = asked(2)
    world.act(A)
    world.deliver(0)
    world.step("u1", goes_well=False)
    world.report()
    plan = world.plan(A)
    assert (plan.take, plan.replicas, plan.delete, plan.why) == ((), 1, ("u1",), "set-back")
    world.now += adoption.SETBACK_S[0] + 1
    assert [seen.slot.uid for seen in world.plan(A).take] == ["u2"]


def test_a_slot_that_does_not_serve_in_time_is_given_up() -> None:
    world = asked(1)
    world.act(A)
    world.deliver(0)
    world.report()
    assert world.plan(A).replicas == 0
    world.now += 600.0
    plan = world.plan(A)
    assert (plan.replicas, plan.delete) == (1, ("u1",))


def test_an_order_that_got_lost_is_made_up_for() -> None:
    world = asked(1)
    world.act(A)
    world.orders.clear()
    world.now += ORDER_S
    plan = world.plan(A)
    assert (plan.take, plan.replicas) == ((), 1), "its agent may be as silent to the next order"


def test_a_slot_that_was_refused_is_not_asked_for_again_at_once() -> None:
    world = asked(2)
    for _ in range(2):
        (seen,) = world.plan(A).take
        world.adoptions[A].refused(seen.slot.uid, world.now)
    assert (world.plan(A).take, world.plan(A).replicas) == ((), 1)
    world.now += adoption.REFUSED_S
    assert len(world.plan(A).take) == 1


def test_an_agent_that_does_not_answer_is_passed_by_and_a_second_one_is_the_last() -> None:
    world = asked(3)
    (first,) = world.plan(A).take
    assert world.adoptions[A].unanswered(first.slot.uid, world.now)
    assert not world.adoptions[A].unanswered(first.slot.uid, world.now), "it is waited for no more"
    (second,) = world.plan(A).take
    assert second.slot.uid != first.slot.uid
    world.adoptions[A].unanswered(second.slot.uid, world.now)
    assert (world.plan(A).take, world.plan(A).replicas) == ((), 1)


def test_adoption_waits_while_others_are_starting_but_not_for_ever() -> None:
    world = served(1)
    world.rush = True
    plan = world.plan(A)
    assert (plan.replicas, plan.label) == (0, ())
    assert plan.recheck_s is not None
    world.now += adoption.BEHIND_S
    assert world.plan(A).label == ("u1",)


def test_while_nothing_is_wanted_a_pod_gets_one_place_however_late_its_labels_come() -> None:
    world = served(1)
    world.act(A, fails_at="label")
    for _ in range(3):
        plan = world.adoptions[A].plan(Wanted(None, world.replicas[A], 0, 0, "pool"), world.now)
        assert (plan.replicas, plan.label) == (1, ("u1",))


def test_after_a_restart_between_scale_and_labels_it_gets_them_and_the_plain_pod_goes() -> None:
    world = served(1)
    world.act(A, fails_at="label")
    world.control()
    assert (world.replicas[A], world.plain[A]) == (1, [False])
    world.restart()
    plan = world.plan(A)
    assert (plan.replicas, plan.label, plan.free) == (1, ("u1",), ())
    world.act(A)
    world.control()
    assert world.plain[A] == []
    assert world.count(A) == 1


def test_who_has_just_begun_lets_none_that_serves_go_before_it_can_have_heard_of_requests() -> None:
    """Killed before the PodAutoscaler's status was written, which says yet that nobody comes."""
    for held in (False, True):
        world = served(1, guards=held)
        if held:
            world.act(A, fails_at="label")
        world.restart()
        world.wanted[A] = 0
        plan = world.plan(A)
        assert (plan.replicas, plan.label, plan.free, plan.release) == (1, ("u1",), (), ())
        assert plan.recheck_s == adoption.NEW_S
        world.now += adoption.NEW_S
        plan = world.plan(A)
        assert (plan.replicas, plan.label, plan.free + plan.release) == (0, (), ("u1",))


def test_down_it_goes_back_to_a_pool_that_is_short_labels_first() -> None:
    world = adopted()
    assert world.pods["u1"].labels == A
    world.wanted[A], world.short = 0, 1
    plan = world.plan(A)
    assert (plan.release, plan.replicas) == (("u1",), 0)
    world.settle()
    assert (world.pods["u1"].labels, world.pods["u1"].state) == ("", "ready")


def test_who_serves_does_not_go_back_while_those_beside_it_are_not_ready() -> None:
    world = adopted()
    world.replicas[A] = 2
    world.control()
    assert world.plain[A] == [False]
    world.short = 1
    plan = world.plan(A)
    assert (plan.release, plan.replicas) == ((), 1)
    world.plain[A] = [True]
    assert world.plan(A).release == ("u1",)


def test_down_it_is_deleted_where_the_pool_lacks_none() -> None:
    world = adopted()
    world.wanted[A] = 0
    assert world.plan(A).release == ()
    world.settle()
    assert world.pods == {}


def test_what_is_no_longer_wanted_before_it_serves_is_free_again() -> None:
    world = asked(1)
    world.act(A)
    world.deliver(0)
    world.report()
    world.wanted[A] = 0
    plan = world.plan(A)
    assert (plan.free, plan.replicas) == (("u1",), 0)


def test_while_its_agent_is_away_a_slot_counts_and_then_it_does_not() -> None:
    world = asked(1)
    world.act(A)
    world.deliver(0)
    world.report()
    world.plan(A)
    world.known.away("node-0")
    world.now += SILENT_S - 1
    assert world.plan(A).replicas == 0
    world.now += 1
    assert world.plan(A).replicas == 1


def test_a_word_from_before_the_order_changes_nothing() -> None:
    world = asked(1)
    world.act(A)
    world.report()  # it is ready yet
    plan = world.plan(A)
    assert (plan.take, plan.replicas) == ((), 0)


def test_where_pods_can_be_held_no_other_pod_is_made_and_none_is_deleted_by_a_deaf_controller() -> None:
    world = served(1, guards=True)
    world.deaf = True
    world.act(A)
    assert (world.pods["u1"].labels, world.pods["u1"].hold, world.replicas[A]) == (A, "guarded", 1)
    world.control()
    assert (world.plain[A], world.pods["u1"].owned) == ([], True)
    world.settle()
    assert (world.plain[A], world.pods["u1"].hold, world.lost) == ([], "", [])


def test_after_a_restart_between_the_hold_and_the_scale_the_pod_is_no_second_one() -> None:
    world = served(2, guards=True)
    world.act(A, fails_at="scale")
    world.control()
    assert (world.pods["u1"].hold, world.replicas[A]) == ("held", 0)
    world.restart()
    plan = world.plan(A)
    assert (plan.take, plan.replicas, plan.label, plan.release) == ((), 1, ("u1",), ())


def test_after_a_restart_between_the_scale_and_the_hand_over_the_held_pod_has_its_place() -> None:
    """Whether anybody knows yet how many are wanted, or not."""
    world = served(2, guards=True)
    world.act(A, fails_at="label")
    world.control()
    assert (world.pods["u1"].hold, world.replicas[A], world.plain[A]) == ("held", 1, [])
    for known in (False, True):
        world.restart()
        plan = world.plan(A, known)
        assert (plan.take, plan.replicas, plan.label, plan.release) == ((), 1, ("u1",), ())


def test_a_held_pod_takes_no_place_of_another() -> None:
    world = asked(1, wanted=0, guards=True)
    world.replicas[A] = 1
    world.control()
    assert world.plain[A] == [False]
    world.wanted[A] = 2
    world.act(A)
    serving(world)
    world.act(A, fails_at="scale")
    assert (world.pods["u1"].hold, world.replicas[A]) == ("held", 1)
    for known in (False, True):
        world.restart()
        plan = world.plan(A, known)
        assert (plan.replicas, plan.label) == (2, ("u1",))


def test_a_held_pod_that_is_no_longer_wanted_loses_its_labels_before_it_is_free() -> None:
    world = served(1, guards=True)
    world.act(A, fails_at="scale")
    world.inform()
    world.wanted[A] = 0
    plan = world.plan(A)
    assert (plan.release, plan.free, plan.replicas) == (("u1",), (), 0)
    world.settle()
    assert (world.pods["u1"].labels, world.pods["u1"].state) == ("", "ready")


class Adoptions(RuleBasedStateMachine):
    """Two revisions, one pool; orders, answers, reports and writes are lost, late or repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @initialize(pods=st.integers(0, 4))
    def begin(self, pods: int) -> None:
        self.world.add(pods)
        self.world.restart()

    @rule(key=st.sampled_from((A, B)), count=st.integers(0, 3))
    def want(self, key: str, count: int) -> None:
        self.world.wanted[key] = count  # type: ignore[index]

    @rule(
        key=st.sampled_from((A, B)),
        fails_at=st.sampled_from(("", "", "", "release", "scale", "label")),
        short=st.integers(0, 2),
        known=st.sampled_from((True, True, False)),
    )
    def act(self, key: str, fails_at: str, short: int, known: bool) -> None:
        self.world.short = short
        self.world.act(key, fails_at, known)  # type: ignore[arg-type]

    @rule(data=st.data(), fate=st.sampled_from(("done", "unanswered", "lost", "twice")))
    def order(self, data: st.DataObject, fate: str) -> None:
        orders = self.world.orders
        if not orders:
            return
        index = data.draw(st.integers(0, len(orders) - 1))
        if fate == "twice":
            orders.append(orders[index])
        if fate == "lost":
            del orders[index]
        else:
            self.world.deliver(index, answer=fate != "unanswered")

    @rule(data=st.data(), lost=st.booleans())
    def answer(self, data: st.DataObject, lost: bool) -> None:
        replies = self.world.replies
        if replies:
            index = data.draw(st.integers(0, len(replies) - 1))
            if lost:
                del replies[index]
            else:
                self.world.answer(index)

    @rule(data=st.data(), well=st.booleans())
    def step(self, data: st.DataObject, well: bool) -> None:
        if self.world.pods:
            self.world.step(data.draw(st.sampled_from(sorted(self.world.pods))), well)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """A slot's process ends."""
        if self.world.pods:
            self.world.pods[data.draw(st.sampled_from(sorted(self.world.pods)))].ended = "killed"

    @rule()
    def report(self) -> None:
        self.world.report()

    @rule()
    def inform(self) -> None:
        self.world.inform()

    @rule()
    def away(self) -> None:
        self.world.known.away("node-0")

    @rule()
    def control(self) -> None:
        self.world.control()

    @rule(count=st.integers(1, 2))
    def refill(self, count: int) -> None:
        if len(self.world.pods) < 6:
            self.world.add(count)

    @rule(seconds=st.sampled_from((0.1, 3.0, 6.0, 20.0, 700.0)))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds

    @rule(guards=st.booleans())
    def guard(self, guards: bool) -> None:
        """The policy comes and goes."""
        self.world.guards = guards

    @rule(deaf=st.booleans())
    def deafen(self, deaf: bool) -> None:
        self.world.deaf = deaf

    @rule(rush=st.booleans())
    def rush(self, rush: bool) -> None:
        self.world.rush = rush

    @rule()
    def restart(self) -> None:
        self.world.restart()

    @invariant()
    def promises_are_whose_they_are(self) -> None:
        for uid, key in self.world.known.promised.items():
            assert uid in self.world.adoptions[key].taken

    @invariant()
    def nobody_who_serves_is_one_too_many(self) -> None:
        assert self.world.lost == []

    @invariant()
    def what_can_be_taken_is_what_is_free(self) -> None:
        known = self.world.known
        found = {uid for at in known.free(POOL).values() for uid in at}
        assert found == {
            uid
            for uid, seen in known.slots.items()
            if seen.slot.state == "ready" and not seen.away and uid not in known.promised
            if (pod := known.pods.get(uid)) and not (pod.revision or pod.leaving or pod.ended)
        }

    def teardown(self) -> None:
        world = self.world
        world.settle()
        for key in (A, B):
            assert world.replicas[key] == world.wanted[key]
            assert world.count(key) == world.wanted[key]
            assert not world.adoptions[key].taken
        for pod in world.pods.values():
            assert pod.slot_of == pod.labels, pod
            assert not pod.hold, pod
            assert pod.state == ("serving" if pod.labels else "ready"), pod


TestAdoptions = Adoptions.TestCase
TestAdoptions.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
