"""What is said of a revision that standby slots were to wake, slot by slot."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.standby import wakes as module
from kserve_ext.core.standby.facts import SLEEPERS_ENDED, Level, Slot, Started
from kserve_ext.core.standby.known import Seen
from kserve_ext.core.standby.wakes import KEEP_SLOTS, Wakes

ONE = RevisionKey("ns/one")


def seen(uid: str = "u", level: Level = "S1") -> Seen:
    return Seen(Slot(f"ns/{uid}", uid, "pool", "10.0.0.1", level, "ready"), "node-1")


def taken(level: Level = "S1") -> Wakes:
    made = Wakes()
    made.took(ONE, seen(level=level), 10.0)
    made.accepted(ONE, "u", 10.004)
    return made


def test_which_slot_at_which_level_and_how_long_each_step_took() -> None:
    made = taken()
    started = Started("S1", "", (("weights_into_shape", 290), ("ready", 301)))
    told = made.serves(ONE, "u", started, 10.312)
    assert told is not None
    assert told.reason == "Taken"
    assert told.message == (
        "pod ns/u on node node-1, level S1, accepted after 4 ms, weights into shape 290 ms, served after 312 ms"
    )
    assert made.serves(ONE, "u", started, 11.0) is None, "said once"
    assert made.own(ONE, "u", 10.5)
    assert not made.own(ONE, "u", 10.6)
    told = made.told(ONE)
    assert told is not None
    assert told.message.endswith("served after 312 ms, was its own after 500 ms")
    assert not made.fallbacks


def test_a_lower_level_is_said_with_its_reason_and_counted() -> None:
    made = taken()
    told = made.serves(ONE, "u", Started("S0", "--max-model-len: 2048, not 4096"), 12.0)
    assert told is not None
    assert (told.reason, told.good, told.served) == ("FellBack", False, True)
    assert "level S0" in told.message
    assert told.message.endswith("not from its level S1: --max-model-len: 2048, not 4096")
    assert made.fallbacks == {("S1", "S0"): 1}


def test_sleepers_that_were_ended_for_it_are_said_and_counted() -> None:
    made = taken()
    told = made.serves(ONE, "u", Started("S2", "", ((SLEEPERS_ENDED, 116), ("awake", 133))), 12.0)
    assert told is not None
    assert "sleepers ended 116 ms, awake 133 ms" in told.message
    assert made.made_room == {"S2": 1}
    assert made.serves(ONE, "u", Started("S2", "", ((SLEEPERS_ENDED, 116),)), 13.0) is None
    assert made.made_room == {"S2": 1}, "counted once"


def test_what_served_nobody_says_why_and_what_happens_instead() -> None:
    made = taken()
    told = made.refused(ONE, "u", "pod ns/u is starting ns/other; take another slot")
    assert told.reason == "SlotRefused"
    assert told.message.startswith("standby pod ns/u could not be had: pod ns/u is starting ns/other")
    assert made.told(ONE) == told
    assert made.serves(ONE, "u", None, 11.0) is None, "it is no longer this revision's"
    assert made.failed(ONE, "v", "ns/v", "--model: no such folder").message.startswith(
        "standby pod ns/v could not start it: --model: no such folder"
    )
    assert made.missed(ONE, "empty", 3).message == (
        "its pool had no slot that could be taken: 3 pods were asked for the plain way"
    )
    assert [made.missed(ONE, why, 1).reason for why in ("set-back", "unfit", "else")] == [
        "RestingAfterFailure",
        "RevisionUnfit",
        "PoolEmpty",
    ]


def test_an_order_without_an_answer_is_said_and_the_slot_may_serve_after_all() -> None:
    made = Wakes()
    made.took(ONE, seen(), 10.0)
    told = made.unanswered(ONE, "u", "timeout: no answer within 2.0 s")
    assert (told.reason, told.good, told.served) == ("AgentSilent", False, False)
    assert told.message == (
        "standby pod ns/u could not be had: the agent of node node-1 has left the order unanswered "
        "(timeout: no answer within 2.0 s); another slot or a plain pod takes its place"
    )
    assert made.told(ONE) == told
    assert not made.slots(ONE)
    late = made.serves(ONE, "u", None, 13.0)
    assert late is not None
    assert late.reason == "Taken"


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("123"))))
def test_what_is_kept_has_bounds(many: list[tuple[str, str]]) -> None:
    before, module.KEEP = module.KEEP, 2  # type: ignore[misc]
    try:
        made = Wakes()
        for uid, name in many:
            revision = RevisionKey(f"ns/{name}")
            made.took(revision, seen(uid), 0.0)
            made.serves(revision, uid, None, 1.0)
            made.missed(revision, "empty", 1)
            assert len(made.slots(revision)) <= KEEP_SLOTS
            assert len(made._of) <= 2
            assert made._told.keys() <= made._of.keys()
    finally:
        module.KEEP = before  # type: ignore[misc]
