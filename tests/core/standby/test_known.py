"""What an autoscaler knows of standby pods: who can be taken, and that nothing is kept of what has gone."""

from __future__ import annotations

from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.standby.facts import Level, Slot
from kserve_ext.core.standby.known import RUSH_S, Known, StandbyPod, choose

POOL, ADDR = "default/pool", "10.0.0.1"


def slot(uid: str, addr: str = ADDR) -> Slot:
    return Slot(f"default/{uid}", uid, "pool", addr, "S0", "ready")


def pod(uid: str) -> StandbyPod:
    return StandbyPod(f"default/{uid}", uid, POOL, addr=ADDR)


def free(known: Known) -> list[str]:
    return [uid for slots in known.free(POOL).values() for uid in slots]


def test_a_slot_that_says_another_address_than_its_pods_is_not_taken() -> None:
    known = Known()
    for uid in ("a", "b"):
        known.pod(uid, pod(uid))
    known.told("n", [slot("a"), slot("b", "10.0.0.9")], ())
    assert free(known) == ["a"]


def test_what_has_not_changed_keeps_its_place_in_line_and_is_no_news() -> None:
    known = Known()
    for uid in ("a", "b"):
        known.pod(uid, pod(uid))
    known.told("n", [slot("b")], ())
    known.told("n", [slot("a"), slot("b")], ())
    assert free(known) == ["b", "a"]
    assert known.told("n", [slot("a"), slot("b")], ()) == set()


def test_nothing_is_kept_of_a_node_that_has_gone() -> None:
    known = Known()
    known.pod("a", pod("a"))
    known.told("n", [slot("a")], ("m",))
    known.away("n")
    known.forget()
    assert known.slots, "its agent may come back"
    known.pod("a", None)
    known.forget()
    assert (known.slots, known.models) == ({}, {})


def sleeping(uid: str, asleep: tuple[str, ...], reason: str = "", level: Level = "S2") -> Slot:
    return slot(uid)._replace(level=level, asleep=asleep, reason=reason)


def test_a_slot_in_which_its_engine_sleeps_comes_before_a_shaped_one_and_others_sleepers_last() -> None:
    known = Known()
    slots = [
        sleeping("others", ("b",)),
        slot("plain"),
        sleeping("shaped", (), level="S1"),
        sleeping("own", ("a", "b")),
    ]
    for one in slots:
        known.pod(one.uid, pod(one.uid))
    known.told("n", slots, ())
    chosen = choose(known.free(POOL), 4, "", {}, {}, engine="a")
    assert [seen.slot.uid for seen in chosen] == ["own", "shaped", "plain", "others"]
    chosen = choose(known.free(POOL), 4, "m", {"n": frozenset("m")}, {})
    assert [seen.slot.uid for seen in chosen][:2] == ["shaped", "plain"], "sleepers are for others"


def test_why_an_engine_sleeps_in_no_slot_of_its_pool() -> None:
    known = Known()
    assert known.sleepless(POOL, "a") == "", "nothing is known yet"
    known.pod("u", pod("u"))
    known.told("n", [sleeping("u", ("b",), "a does not sleep here: it is broken")], ())
    assert known.sleepless(POOL, "a") == "a does not sleep here: it is broken"
    assert known.sleepless(POOL, "c") == "a does not sleep here: it is broken"
    assert known.sleepless(POOL, "b") == ""
    known.told("n", [sleeping("u", ("a", "b"))], ())
    assert known.sleepless(POOL, "a") == ""


def test_slots_of_a_node_that_is_to_get_nothing_new_are_not_taken() -> None:
    known = Known()
    known.pod("a", pod("a"))
    known.told("n", [slot("a")], ())
    known.told("n", [slot("a")], (), closed=True)
    assert free(known) == []
    known.told("n", [slot("a")], ())
    assert free(known) == ["a"]


def test_a_slot_that_starts_is_waited_for_but_not_for_ever() -> None:
    known = Known()
    known.pod("a", pod("a"))
    known.told("n", [slot("a")], ())
    assert not known.rush(0.0)
    starting = slot("a")._replace(state="starting", revision=RevisionKey("default/r"))
    known.told("n", [starting], ())
    assert known.rush(100.0)
    known.told("n", [starting._replace(reason="it loads")], ())
    assert not known.rush(100.0 + RUSH_S)
    known.told("n", [slot("a")], ())
    known.told("n", [starting], ())
    assert known.rush(200.0), "another start of it"
