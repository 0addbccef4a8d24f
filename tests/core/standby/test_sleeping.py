"""One engine of a pod is awake: orders, refusals with their reasons, and what never happens, whatever the order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kserve_ext.core.standby.sleeping import (
    Asleep,
    Done,
    Event,
    Failed,
    Refuse,
    Replace,
    Requests,
    Sleep,
    SleepAsked,
    Sleepers,
    Wake,
    WakeAsked,
)

DEVICE, HOST, BEGAN = 80_000, 100_000, 1000


def pod(*engines: str) -> Sleepers:
    made = Sleepers(DEVICE, HOST, BEGAN)
    for engine in engines:
        assert made.handle(Asleep(engine, 30_000, 70_000)) == []
    return made


def test_the_one_that_is_awake_sleeps_before_the_other_wakes() -> None:
    sleepers = pod("a", "b")
    assert sleepers.handle(WakeAsked("a")) == [Wake("a", BEGAN + 1)]
    assert sleepers.awake == ""
    sleepers.handle(Done("a"))
    assert sleepers.awake == "a"
    assert sleepers.handle(WakeAsked("b")) == [Sleep("a")]
    assert sleepers.handle(WakeAsked("b")) == [], "asked twice, told once"
    assert sleepers.handle(Done("a")) == [Wake("b", BEGAN + 2)]
    sleepers.handle(Done("b"))
    assert sleepers.awake == "b"


def test_an_engine_that_wakes_again_has_a_new_generation() -> None:
    sleepers = pod("a")
    seen = []
    for _ in range(3):
        (wake,) = sleepers.handle(WakeAsked("a"))
        assert isinstance(wake, Wake)
        seen.append(wake.generation)
        sleepers.handle(Done("a"))
        assert sleepers.handle(SleepAsked("a")) == [Sleep("a")]
        sleepers.handle(Done("a"))
    assert seen == sorted(set(seen))


def test_requests_that_are_open_are_not_slept_away() -> None:
    sleepers = pod("a", "b")
    sleepers.handle(WakeAsked("a"))
    sleepers.handle(Done("a"))
    sleepers.handle(Requests("a", 2))
    for event in (WakeAsked("b"), SleepAsked("a")):
        (refused,) = sleepers.handle(event)
        assert isinstance(refused, Refuse)
        assert "2 requests open" in refused.reason
    sleepers.handle(Requests("a", 0))
    assert sleepers.handle(WakeAsked("b")) == [Sleep("a")]


def test_memory_is_looked_at_before_an_engine_comes() -> None:
    sleepers = pod("a", "b", "c")
    (host,) = sleepers.handle(Asleep("d", 10_001, 1))
    assert host == Refuse("d", "its weights need 10001 MiB of host memory, 10000 are left: raise the limit")
    (device,) = sleepers.handle(Asleep("d", 1, DEVICE + 1))
    assert isinstance(device, Refuse)
    assert sleepers.handle(Asleep("d", 10_000, DEVICE)) == []


def test_one_that_fails_on_the_device_takes_its_pod_with_it() -> None:
    sleepers = pod("a", "b")
    sleepers.handle(WakeAsked("a"))
    sleepers.handle(Done("a"))
    sleepers.handle(WakeAsked("b"))
    refused, replace = sleepers.handle(Failed("a", "out of memory"))
    assert isinstance(refused, Refuse)
    assert refused.engine == "b"
    assert isinstance(replace, Replace)
    assert "out of memory" in replace.reason
    assert isinstance(sleepers.handle(WakeAsked("b"))[0], Refuse)


def test_one_that_ends_in_its_sleep_is_only_gone() -> None:
    sleepers = pod("a", "b")
    assert sleepers.handle(Failed("b", "killed")) == []
    assert sleepers.handle(WakeAsked("a")) == [Wake("a", BEGAN + 1)]
    assert isinstance(sleepers.handle(WakeAsked("b"))[0], Refuse)


def test_one_that_went_for_want_of_memory_when_it_woke_leaves_nothing_in_doubt() -> None:
    sleepers = pod("a", "b")
    sleepers.handle(WakeAsked("a"))
    assert sleepers.handle(Failed("a", "out of memory", gone=True)) == []
    assert "a" not in sleepers.engines
    assert sleepers.handle(WakeAsked("b")) == [Wake("b", BEGAN + 2)]


engines = st.sampled_from(["a", "b", "c", "x"])
events = st.one_of(
    st.builds(WakeAsked, engines),
    st.builds(SleepAsked, engines),
    st.builds(Requests, engines, st.integers(0, 2)),
    st.builds(Failed, engines, st.just("why"), st.booleans()),
    st.just(None),  # what was told first is done
)


@given(st.lists(events, max_size=60))
def test_two_engines_never_have_the_device_and_generations_only_grow(happening: list[Event | None]) -> None:
    sleepers = pod("a", "b", "c")
    told: list[Sleep | Wake] = []
    on_device: set[str] = set()
    generation, lost = BEGAN, False
    for event in happening:
        if event is None:
            if not told:
                continue
            first = told.pop(0)
            if isinstance(first, Sleep):
                on_device.discard(first.engine)
            event = Done(first.engine)
        elif isinstance(event, Failed):
            told = [order for order in told if order.engine != event.engine]
            waking = event.engine in sleepers.engines and sleepers.engines[event.engine].state == "waking"
            event = event._replace(gone=event.gone and waking)
            if event.gone:
                on_device.discard(event.engine)
        before = {name: engine.requests for name, engine in sleepers.engines.items()}
        for out in sleepers.handle(event):
            match out:
                case Wake(name, new):
                    assert not lost
                    assert new > generation
                    generation = new
                    on_device.add(name)
                    assert on_device == {name}, "the other has not slept yet"
                    told.append(out)
                case Sleep(name):
                    assert name in on_device
                    assert before[name] == 0
                    told.append(out)
                case Replace():
                    lost = True
                case Refuse(_, reason):
                    assert reason
