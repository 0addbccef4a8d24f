"""The node's machine, driven in random orders against model processes, and its rules one by one."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kserve_ext.core.facts import Command, Instance, Mark, Model, Resources, Revision, Scale
from kserve_ext.core.ids import FunctionID, InstanceID, NodeID, RevisionKey
from kserve_ext.core.node.admission import Held, Ledger
from kserve_ext.core.node.facts import (
    Ended,
    EndZygote,
    Fetch,
    Instruction,
    Launch,
    Order,
    Signal,
    StartZygote,
    Tell,
    Timing,
)
from kserve_ext.core.node.instance_life import End
from kserve_ext.core.node.machine import NodeMachine
from kserve_ext.core.node.slots import Slots

CAPACITY = Resources(cpu_milli=4000, memory_mib=4096, gpus=2, gpu_memory_mib=1000, rdma=1)
HOME = FunctionID("dispatch-0")
ADDR = "127.0.0.1:1"


def revision(
    name: str = "a",
    *,
    cpu: int = 1000,
    memory: int = 1024,
    gpus: int = 0,
    zygote: str = "",
    uri: str = "",
    drain_s: float = 10.0,
    start_timeout_s: float = 60.0,
) -> Revision:
    return Revision(
        key=RevisionKey(f"default/{name}"),
        service=f"default/{name}",
        generation=1,
        command=Command(("serve",), zygote=zygote, drain_s=drain_s, start_timeout_s=start_timeout_s),
        model=Model(uri=uri, path=uri.removeprefix("file://")),
        needs=Resources(cpu_milli=cpu, memory_mib=memory, gpus=gpus),
        scale=Scale(),
    )


def order(instance: str, of: Revision | None = None, *, epoch: int = 1, reserve: bool = False) -> Order:
    return Order(InstanceID(instance), of or revision(), epoch, HOME, ADDR, reserve=reserve)


def machine(timing: Timing | None = None, zygote_mib: int = 1024) -> NodeMachine:
    ledger = Ledger(CAPACITY)
    m = NodeMachine(NodeID("n"), "n:1", 1, ledger, Slots(ledger, zygote_mib), timing or Timing())
    m.view(1, {HOME: ADDR}, 0.0)
    return m


def only(kind: type, out: list[Instruction]) -> list[Instruction]:
    return [i for i in out if isinstance(i, kind)]


def tells(out: list[Instruction]) -> list[Tell]:
    return [i for i in out if isinstance(i, Tell)]


def ready(m: NodeMachine, instance: str, now: float = 0.0, of: Revision | None = None) -> None:
    m.start(order(instance, of), now)
    m.lives.launched(InstanceID(instance), "exec", 1, now)
    m.lives.observed(InstanceID(instance), "ready", "127.0.0.1:80", (), now)


class World(RuleBasedStateMachine):
    """Random orders, outcomes and time. Every admission is released once, and nothing exceeds the capacity."""

    def __init__(self) -> None:
        super().__init__()
        self.m = machine()
        self.now = 0.0
        self.count = 0
        self.epoch = 1
        self.admitted: set[InstanceID] = set()
        self.ended: list[InstanceID] = []
        self.launching: set[InstanceID] = set()
        self.processes: dict[InstanceID, Resources] = {}
        self.launches: list[InstanceID] = []
        self.zygotes: set[str] = set()
        self.fetching: set[InstanceID] = set()
        self.unanswered: list[Tell] = []
        self.needs: dict[InstanceID, Resources] = {}
        self.used: set[InstanceID] = set()

    def carry_out(self, out: list[Instruction]) -> None:
        for i in out:
            match i:
                case Launch():
                    assert i.instance not in self.launches, "launched twice"
                    assert len(i.devices) == self.needs[i.instance].gpus
                    self.launches.append(i.instance)
                    self.launching.add(i.instance)
                case Fetch():
                    self.fetching.add(i.instance)
                case Signal():
                    assert i.instance in self.processes or i.instance in self.launching
                case Ended():
                    assert i.instance in self.admitted
                    assert i.instance not in self.processes
                    self.ended.append(i.instance)
                case StartZygote():
                    assert i.module not in self.zygotes
                    self.zygotes.add(i.module)
                case EndZygote():
                    self.zygotes.remove(i.module)
                case Tell():
                    self.unanswered.append(i)

    def _start(self, instance: InstanceID, of: Revision, reserve: bool, epoch: int) -> None:
        self.needs.setdefault(instance, of.needs)
        verdict, out = self.m.start(order(instance, of, epoch=epoch, reserve=reserve), self.now)
        if epoch >= self.epoch and instance in self.admitted:
            assert (verdict.reason == "") == (instance not in self.ended), "a duplicate has the same answer"
        if not verdict.reason:
            assert instance not in self.ended, "an ended instance was started again"
            self.admitted.add(instance)
        self.carry_out(out)

    @rule(
        name=st.sampled_from(["a", "b"]),
        cpu=st.sampled_from([500, 1500, 3000]),
        memory=st.sampled_from([256, 2048, 4096]),
        gpus=st.integers(0, 2),
        zygote=st.sampled_from(["", "z1", "z2"]),
        uri=st.sampled_from(["", "file:///m"]),
        reserve=st.booleans(),
    )
    def start(
        self, name: str, cpu: int, memory: int, gpus: int, zygote: str, uri: str, reserve: bool
    ) -> None:
        self.count += 1
        of = revision(name, cpu=cpu, memory=memory, gpus=gpus, zygote=zygote, uri=uri)
        self._start(InstanceID(f"i{self.count}"), of, reserve, self.epoch)

    @precondition(lambda self: self.admitted)
    @rule(data=st.data(), reserve=st.booleans(), age=st.integers(0, 1))
    def start_again(self, data: st.DataObject, reserve: bool, age: int) -> None:
        instance = data.draw(st.sampled_from(sorted(self.admitted)))
        self._start(instance, revision(), reserve, self.epoch - age)

    @precondition(lambda self: self.admitted)
    @rule(data=st.data(), cancel=st.booleans())
    def commit(self, data: st.DataObject, cancel: bool) -> None:
        some = data.draw(
            st.lists(st.sampled_from(sorted(self.admitted)), min_size=1, max_size=3, unique=True)
        )
        _, out = self.m.commit(some, self.epoch, self.now, cancel=cancel)
        self.carry_out(out)

    @precondition(lambda self: self.admitted)
    @rule(data=st.data(), age=st.integers(0, 1))
    def stop(self, data: st.DataObject, age: int) -> None:
        instance = data.draw(st.sampled_from(sorted(self.admitted)))
        _, out = self.m.stop(instance, self.epoch - age, 1.0, "", self.now)
        self.carry_out(out)

    @precondition(lambda self: self.fetching)
    @rule(data=st.data(), well=st.booleans())
    def fetch_done(self, data: st.DataObject, well: bool) -> None:
        instance = data.draw(st.sampled_from(sorted(self.fetching)))
        self.fetching.remove(instance)
        lives = self.m.lives
        self.carry_out(
            lives.fetched(instance, "", self.now)
            if well
            else lives.fetch_failed(instance, "no", True, self.now)
        )

    @precondition(lambda self: self.launching)
    @rule(data=st.data(), well=st.booleans())
    def launch_done(self, data: st.DataObject, well: bool) -> None:
        instance = data.draw(st.sampled_from(sorted(self.launching)))
        self.launching.remove(instance)
        if well:
            self.processes[instance] = self.needs[instance]
            self.carry_out(self.m.lives.launched(instance, "fork", 1, self.now))
        else:
            self.carry_out(self.m.lives.launch_failed(instance, "no", False, self.now))

    @rule(zygote=st.sampled_from(["", "z1", "z2"]))
    def start_and_get_ready(self, zygote: str) -> None:
        self.count += 1
        instance = InstanceID(f"i{self.count}")
        self._start(instance, revision(cpu=500, memory=256, zygote=zygote), False, self.epoch)
        if instance in self.launching:
            self.launching.remove(instance)
            self.processes[instance] = self.needs[instance]
            self.carry_out(self.m.lives.launched(instance, "fork", 1, self.now))
            self.carry_out(self.m.lives.observed(instance, "ready", "x:1", (), self.now))

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), phase=st.sampled_from(["loading", "ready", "draining", "failed"]))
    def observe(self, data: st.DataObject, phase: str) -> None:
        instance = data.draw(st.sampled_from(sorted(self.processes)))
        self.carry_out(self.m.lives.observed(instance, phase, "x:1", (Mark(phase, self.now),), self.now))

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), code=st.sampled_from([None, 0, 1, 2]))
    def exit(self, data: st.DataObject, code: int | None) -> None:
        instance = data.draw(st.sampled_from(sorted(self.processes)))
        del self.processes[instance]
        self.carry_out(self.m.lives.exited(instance, code, None, "", self.now))

    @precondition(lambda self: self.zygotes)
    @rule(data=st.data(), well=st.booleans())
    def zygote(self, data: st.DataObject, well: bool) -> None:
        module = data.draw(st.sampled_from(sorted(self.zygotes)))
        if well:
            self.carry_out(self.m.zygote_ready(module))
        else:
            self.zygotes.remove(module)
            self.carry_out(self.m.zygote_died(module, self.now))

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0, 20.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.carry_out(self.m.tick(self.now))

    @rule(newer=st.integers(0, 1), keys=st.sets(st.sampled_from(["default/a", "default/b"])))
    def recall(self, newer: int, keys: set[str]) -> None:
        self.epoch += newer
        found, _ = self.m.recall(self.epoch, ADDR, {RevisionKey(k) for k in keys}, self.now)
        assert {i.id for i in found if i.state not in ("gone", "failed")} >= {
            p for p in self.processes if self.m.lives.known[p].revision.key in keys
        }

    @precondition(lambda self: self.unanswered)
    @rule(data=st.data(), well=st.booleans(), wanted=st.booleans())
    def answer(self, data: st.DataObject, well: bool, wanted: bool) -> None:
        tell = self.unanswered.pop(data.draw(st.integers(0, len(self.unanswered) - 1)))
        if not well:
            self.m.lives.tell_failed(tell, self.now)
            return
        unwanted = () if wanted else tuple(i.id for i in tell.instances)
        self.carry_out(self.m.lives.acknowledged(tell, tell.home, unwanted, self.epoch, self.now))

    @invariant()
    def never_above_capacity(self) -> None:
        self.m.check()
        alive = {module for module, z in self.m.slots.zygotes.items() if z.state != "dead"}
        assert alive | self.m.slots.leaving == self.zygotes
        taken = Resources()
        for needs in self.processes.values():
            taken = taken.plus(needs)
        taken = taken.plus(Resources(memory_mib=1024 * len(self.zygotes)))
        assert taken.fits(CAPACITY), f"{taken} of {CAPACITY}"

    @invariant()
    def released_once(self) -> None:
        assert len(self.ended) == len(set(self.ended))
        for instance in self.admitted:
            life = self.m.lives.known.get(instance)
            assert (instance in self.ended) == (life is None or life.ended)

    def teardown(self) -> None:
        """With every process ending when signalled, all of it is over in the end, and all is free."""
        self.now += 1000.0
        self.carry_out(self.m.tick(self.now))  # a gap: nothing is an orphan by it
        for _ in range(60):
            self.now += 1.5
            self.carry_out(self.m.tick(self.now))
            for instance in sorted(self.launching):
                self.launching.remove(instance)
                self.carry_out(self.m.lives.launch_failed(instance, "end", False, self.now))
            for instance in sorted(self.fetching):
                self.fetching.remove(instance)
                self.carry_out(self.m.lives.fetch_failed(instance, "end", False, self.now))
            for instance in [i for i in self.processes if self.m.lives.known[i].state == "draining"]:
                del self.processes[instance]
                self.carry_out(self.m.lives.exited(instance, 0, None, "", self.now))
        assert not self.processes, "an orphan was left running"
        assert sorted(self.ended) == sorted(self.admitted)
        assert self.m.slots.free == CAPACITY


World.TestCase.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
TestWorld = World.TestCase


def test_a_duplicate_start_is_admitted_again_but_launched_once() -> None:
    m = machine()
    _, first = m.start(order("x"), 0.0)
    verdict, second = m.start(order("x"), 0.1)
    assert len(only(Launch, first)) == 1
    assert not verdict.reason
    assert not second
    assert m.admitted_total == 1


def test_a_refusal_names_what_is_short_and_what_is_free() -> None:
    m = machine()
    m.start(order("x", revision(cpu=3000)), 0.0)
    verdict, _ = m.start(order("y", revision(cpu=3000)), 0.0)
    assert verdict.reason == "node n: cpu: needs 3000m, 1000m free"
    assert not verdict.stale


def test_no_device_has_two_instances() -> None:
    m = machine()
    _, out = m.start(order("x", revision(gpus=1)), 0.0)
    _, more = m.start(order("y", revision(gpus=1)), 0.0)
    assert [i.devices for i in [*out, *more] if isinstance(i, Launch)] == [(0,), (1,)]


def test_an_older_epoch_than_one_obeyed_starts_and_stops_nothing() -> None:
    m = machine()
    ready(m, "x")
    m.recall(5, "127.0.0.1:9", [RevisionKey("default/a")], 1.0)
    assert m.start(order("y", epoch=4), 1.0)[0].stale
    assert m.stop(InstanceID("x"), 4, 0.0, "", 1.0)[0].stale
    assert m.lives.known[InstanceID("x")].state == "ready"
    assert not m.start(order("y", epoch=5), 1.0)[0].reason
    assert not m.start(order("z", revision("b"), epoch=1), 1.0)[0].stale, "other revisions are not concerned"


def test_after_a_restart_nothing_older_than_the_first_view_is_obeyed() -> None:
    ledger = Ledger(CAPACITY)
    m = NodeMachine(NodeID("n"), "n:1", 2, ledger, Slots(ledger, 0))
    m.view(7, {HOME: ADDR}, 0.0)
    assert m.start(order("x", epoch=6), 0.0)[0].stale


def test_a_home_named_under_a_newer_epoch_than_the_view_is_told() -> None:
    m = machine()
    ready(m, "x")
    m.recall(2, "127.0.0.1:9", [RevisionKey("default/a")], 1.0)
    assert {t.addr for t in tells(m.tick(2.1))} == {"127.0.0.1:9"}
    m.view(3, {FunctionID("dispatch-7"): "127.0.0.1:7"}, 3.0)
    assert {t.addr for t in tells(m.tick(3.0))} == {"127.0.0.1:7"}, "a new home is told at once"


def test_reservation_lapses_and_its_commit_is_refused() -> None:
    m = machine()
    verdict, out = m.start(order("x", reserve=True), 0.0)
    assert not verdict.reason
    assert not only(Launch, out)
    assert m.status().free.cpu_milli == 3000
    m.tick(1.0)
    out = m.tick(5.1)
    assert only(Ended, out)
    assert m.status().free == CAPACITY
    assert "lapsed" in m.commit([InstanceID("x")], 1, 5.2)[0].reason


def test_commit_is_all_or_none() -> None:
    m = machine()
    m.start(order("x", reserve=True), 0.0)
    verdict, out = m.commit([InstanceID("x"), InstanceID("never")], 1, 0.1)
    assert verdict.reason
    assert not out
    verdict, out = m.commit([InstanceID("x")], 1, 0.2)
    assert not verdict.reason
    assert only(Launch, out)


def test_waiting_shards_are_told_when_it_is_ready_and_not_afterwards() -> None:
    m = machine()
    m.start(order("x")._replace(waiting=("s:1", "s:2", ADDR)), 0.0)
    m.lives.launched(InstanceID("x"), "fork", 1, 0.1)
    out = m.lives.observed(InstanceID("x"), "ready", "127.0.0.1:80", (), 0.5)
    told = [(t.addr, t.home, t.instances[0].state, t.instances[0].addr) for t in tells(out)]
    assert told == [
        (ADDR, True, "ready", "127.0.0.1:80"),
        ("s:1", False, "ready", "127.0.0.1:80"),
        ("s:2", False, "ready", "127.0.0.1:80"),
    ]
    _, out = m.stop(InstanceID("x"), 1, 1.0, "", 0.6)
    assert {t.addr for t in tells(out)} == {ADDR}


def test_stop_drains_then_kills_after_the_drain_and_five_seconds() -> None:
    m = machine()
    ready(m, "x")
    _, out = m.stop(InstanceID("x"), 1, 10.0, "scale down", 1.0)
    assert only(Signal, out) == [Signal(InstanceID("x"), kill=False, kill_at=16.0)]
    assert m.stop(InstanceID("x"), 1, 10.0, "again", 2.0)[1] == []
    assert not only(Signal, m.tick(15.9))
    assert only(Signal, m.tick(16.0)) == [Signal(InstanceID("x"), kill=True)]
    out = m.lives.exited(InstanceID("x"), None, 9, "", 16.1)
    [told] = tells(out)
    assert (told.instances[0].state, told.instances[0].reason) == ("gone", "scale down")


def test_stop_before_the_process_exists_drains_it_as_soon_as_it_does() -> None:
    m = machine()
    m.start(order("x"), 0.0)
    _, out = m.stop(InstanceID("x"), 1, 10.0, "", 0.1)
    assert only(Signal, out), "its launch may be given up"
    assert only(Signal, m.lives.launched(InstanceID("x"), "fork", 1, 0.2)), "too late for that"
    assert m.status().free != CAPACITY, "held until the process is gone"


def test_stop_while_the_model_is_fetched_ends_it_at_once() -> None:
    m = machine()
    m.start(order("x", revision(uri="file:///m")), 0.0)
    _, out = m.stop(InstanceID("x"), 1, 10.0, "", 0.1)
    assert only(Ended, out)
    assert m.lives.fetched(InstanceID("x"), "", 0.2) == []


def test_what_hangs_is_killed_and_has_failed() -> None:
    m = machine()
    m.start(order("w"), 0.0)
    m.lives.launched(InstanceID("w"), "exec", 1, 0.0)
    assert m.lives.hung(InstanceID("w"), 31.0, 1.0) == [], "a start has a limit of its own"
    ready(m, "x")
    out = m.lives.hung(InstanceID("x"), 31.2, 40.0)
    assert only(Signal, out) == [Signal(InstanceID("x"), kill=True)]
    assert [t.instances[0].state for t in tells(out)] == ["draining"]
    assert m.lives.hung(InstanceID("x"), 32.2, 41.0) == [], "once"
    m.lives.exited(InstanceID("x"), None, 9, "", 41.0)
    (fact,) = [life.fact(NodeID("n")) for life in m.lives.known.values() if life.id == "x"]
    assert (fact.state, fact.permanent) == ("failed", False)
    assert "no sign of life for 31 s" in fact.reason


def test_start_timeout_kills_and_fails() -> None:
    m = machine()
    m.start(order("x", revision(start_timeout_s=20.0)), 0.0)
    m.lives.launched(InstanceID("x"), "fork", 1, 0.0)
    assert not only(Signal, m.tick(19.0))
    assert only(Signal, m.tick(20.0)) == [Signal(InstanceID("x"), kill=True)]
    m.lives.exited(InstanceID("x"), None, 9, "", 20.1)
    life = m.lives.known[InstanceID("x")]
    assert life.state == "failed"
    assert life.end is not None
    assert "not ready 20 s after its start" in life.end.reason
    assert not life.end.permanent


@pytest.mark.parametrize(
    ("code", "signum", "was_ready", "permanent", "reason"),
    [
        (2, None, False, True, "the process ended with exit code 2: model: no such folder"),
        (2, None, True, False, "the process ended with exit code 2: model: no such folder"),
        (1, None, False, False, "the process ended with exit code 1: model: no such folder"),
        (None, 9, True, False, "the process was killed by SIGKILL: model: no such folder"),
        (None, None, True, False, "the process ended, its exit code is not known: model: no such folder"),
    ],
)
def test_a_process_that_ends_by_itself_has_failed(
    code: int | None, signum: int | None, was_ready: bool, permanent: bool, reason: str
) -> None:
    m = machine()
    m.start(order("x"), 0.0)
    m.lives.launched(InstanceID("x"), "fork", 1, 0.0)
    if was_ready:
        m.lives.observed(InstanceID("x"), "ready", "a:1", (), 0.1)
    [told] = tells(m.lives.exited(InstanceID("x"), code, signum, "model: no such folder", 1.0))
    [instance] = told.instances
    assert (instance.state, instance.permanent, instance.reason) == ("failed", permanent, reason)


def test_what_home_does_not_want_is_stopped_unless_its_epoch_is_old() -> None:
    m = machine()
    ready(m, "x")
    [full] = [t for t in tells(m.tick(2.0)) if t.full]
    m.recall(4, ADDR, [RevisionKey("default/a")], 2.0)
    assert m.lives.acknowledged(full, True, [InstanceID("x")], 3, 2.1) == []
    assert m.lives.acknowledged(full, False, [InstanceID("x")], 4, 2.1) == []
    assert only(Signal, m.lives.acknowledged(full, True, [InstanceID("x")], 4, 2.1))


def test_an_instance_that_no_home_acknowledges_is_stopped_after_thirty_seconds() -> None:
    m = machine()
    ready(m, "x")
    signalled = None
    for tenth in range(1, 400):
        out = m.tick(tenth / 10)
        if only(Signal, out):
            signalled = tenth / 10
            break
    assert signalled == pytest.approx(30.1)


def test_acknowledged_instances_live_on_and_a_suspended_node_kills_nothing() -> None:
    m = machine()
    ready(m, "x")
    for second in range(1, 100):
        for tell in tells(m.tick(float(second))):
            m.lives.acknowledged(tell, True, [], 1, float(second))
    assert not only(Signal, m.tick(5000.0)), "the clock jumped: the node was suspended"
    assert m.lives.known[InstanceID("x")].state == "ready"


def test_an_end_is_told_until_home_has_taken_notice_and_then_the_revision_is_let_go() -> None:
    m = machine()
    ready(m, "x")
    m.lives.exited(InstanceID("x"), 1, None, "", 1.0)
    [full] = tells(m.tick(2.0))
    assert [i.state for i in full.instances] == ["failed"]
    m.lives.tell_failed(full, 2.0)
    [full] = tells(m.tick(2.3))
    m.lives.acknowledged(full, True, [], 1, 2.4)
    [empty] = tells(m.tick(4.4))
    assert empty.full
    assert empty.instances == ()
    m.lives.acknowledged(empty, True, [], 1, 4.5)
    assert tells(m.tick(9.0)) == []
    assert "already ended" in m.start(order("x"), 9.0)[0].reason


def test_a_zygote_gives_way_to_an_instance_and_its_memory_counts() -> None:
    m = machine(zygote_mib=2048)
    _, out = m.start(order("x", revision(memory=1024, zygote="z")), 0.0)
    assert only(StartZygote, out)
    m.zygote_ready("z")
    assert m.status().slots == (("z", 1),)
    assert m.status().free.memory_mib == 3072, "to the outside its memory is free"
    assert m.ledger.free.memory_mib == 1024
    verdict, out = m.start(order("y", revision("b", memory=2048)), 0.0)
    assert not verdict.reason
    assert only(EndZygote, out) == [EndZygote("z")]
    assert m.status().slots == ()


def test_a_zygote_ends_after_the_instance_that_takes_its_memory_is_forked_from_it() -> None:
    m = machine(zygote_mib=2048)
    m.start(order("x", revision(memory=1024, zygote="z")), 0.0)
    m.zygote_ready("z")
    verdict, out = m.start(order("y", revision("b", memory=2048, zygote="z")), 0.0)
    assert not verdict.reason
    assert only(Launch, out)
    assert not only(EndZygote, out), "it is to be forked from it"
    assert m.status().slots == ()
    assert not only(StartZygote, m.tick(1.0))
    assert m.lives.launched(InstanceID("y"), "forked", 2, 1.0) == [EndZygote("z")]
    assert m.lives.launched(InstanceID("x"), "forked", 1, 1.0) == []


def test_a_zygote_that_gave_its_memory_ends_also_when_the_start_comes_to_nothing() -> None:
    m = machine(zygote_mib=2048)
    m.wants(["z"], 0.0)
    m.zygote_ready("z")
    m.start(order("y", revision(memory=3072, zygote="z", uri="file:///m")), 0.0)
    out = m.lives.fetch_failed(InstanceID("y"), "no such folder", True, 1.0)
    assert only(EndZygote, out) == [EndZygote("z")]
    assert only(StartZygote, m.tick(2.0)) == [StartZygote("z")], "and comes back"


def test_a_dead_zygote_is_started_again_with_back_off() -> None:
    m = machine()
    m.start(order("x", revision(zygote="z")), 0.0)
    starts = []
    m.zygote_died("z", 0.0)
    for tenth in range(80):
        now = tenth / 10
        if only(StartZygote, m.tick(now)):
            starts.append(now)
            m.zygote_died("z", now)
    assert starts == [1.0, 3.0, 7.0]


def test_found_processes_are_entered_even_beyond_a_lowered_capacity() -> None:
    m = machine()
    big = Held(Resources(cpu_milli=6000), ())
    m.lives.adopt(order("x", revision(cpu=6000)), "ready", "a:1", 3, big, None, 0.0)
    assert m.status().free.cpu_milli == 0
    [full] = tells(m.tick(0.0))
    assert full.full, "home is told at once"
    assert full.instances[0].generation == 3
    assert m.start(order("y"), 0.0)[0].reason
    m.lives.exited(InstanceID("x"), 0, None, "", 1.0)
    assert m.status().free == CAPACITY


def test_an_instance_that_died_while_the_agent_was_away_is_reported() -> None:
    m = machine()
    m.lives.found_dead(order("x"), End(True, "its node agent was away"), 3, 0.0)
    [full] = tells(m.tick(0.0))
    instance: Instance = full.instances[0]
    assert (instance.state, instance.reason) == ("failed", "its node agent was away")
    assert m.status().free == CAPACITY


def test_home_hears_where_a_prefill_instance_listens_while_it_still_loads() -> None:
    m = machine()
    m.start(order("x"), 0.0)
    m.lives.launched(InstanceID("x"), "exec", 1, 0.0)
    early = m.lives.observed(InstanceID("x"), "loading", "a:1", (Mark("listening", 0.1),), 0.1)
    assert tells(early) == [], "its channels can't be opened yet"
    marks = (Mark("channel_listening", 0.2),)
    told = tells(m.lives.observed(InstanceID("x"), "loading", "a:1", marks, 0.2))
    assert [(i.state, i.addr) for tell in told for i in tell.instances] == [("starting", "a:1")]
    assert not tells(m.lives.observed(InstanceID("x"), "loading", "a:1", marks, 0.3)), "once"
    (ready,) = tells(m.lives.observed(InstanceID("x"), "ready", "a:1", marks, 0.4))[:1]
    assert [(i.state, i.addr) for i in ready.instances] == [("ready", "a:1")]


def test_the_status_says_what_could_be_given_up_by_revision_without_what_drains() -> None:
    m = machine()
    ready(m, "x")
    m.start(order("y"), 0.0)
    assert [(h.revision, h.instances, h.priority) for h in m.status().holdings] == [("default/a", 2, 0)]
    m.stop(InstanceID("x"), 1, 30.0, "enough", 1.0)
    assert [h.instances for h in m.status().holdings] == [1]
    assert m.status().labels == (("kubernetes.io/hostname", "n"),)


def whole(m: NodeMachine, until: float, answer: bool | None) -> list[float]:
    """When home is told all from 0 on, if it answers so at once; None: not at all."""
    told = []
    for tenth in range(1, int(until * 10) + 1):
        now = tenth / 10
        for tell in tells(m.tick(now)):
            told.append(now)
            if answer:
                m.lives.acknowledged(tell, True, [], 1, now)
            elif answer is not None:
                m.lives.tell_failed(tell, now)
    return told


def test_a_home_that_has_not_answered_is_not_told_the_whole_again() -> None:
    m = machine()
    ready(m, "x")
    [first] = whole(m, 20.0, None)
    assert first == pytest.approx(2.0)
    m.view(2, {FunctionID("dispatch-9"): "other"}, 20.0)
    [tell] = tells(m.tick(20.0))
    assert tell.addr == "other", "another home is told at once"


def test_a_home_that_does_not_hear_is_told_later_each_time_up_to_the_period() -> None:
    m = machine()
    ready(m, "x")
    told = whole(m, 12.0, False)
    between = [round(b - a, 3) for a, b in pairwise(told)]
    assert between[:5] == pytest.approx([0.2, 0.4, 0.8, 1.6, 2.0], abs=0.11)


def test_what_home_knows_it_is_told_less_and_less_often_until_something_changes() -> None:
    m = machine()
    ready(m, "x")
    told = whole(m, 26.0, True)
    assert [round(b - a, 3) for a, b in pairwise(told)] == pytest.approx([2.0, 4.0, 8.0, 8.0])
    m.lives.exited(InstanceID("x"), 1, None, "", 26.0)
    [full] = tells(m.tick(28.0))
    assert [i.state for i in full.instances] == ["failed"]


def test_that_an_instance_starts_is_said_by_the_answer_to_who_asked_and_not_to_home() -> None:
    m = machine()
    verdict, out = m.start(order("x"), 0.0)
    assert not verdict.reason
    assert only(Launch, out)
    assert tells(out) == []
