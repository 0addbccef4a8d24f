"""The slot's machine: what may come in any order, and the stories that count, event by event."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.standby.facts import Assignment, Started
from kserve_ext.core.standby.slot import (
    AGAIN,
    FREED_QUIET_S,
    MOST_BASE_FAILURES,
    QUIET_S,
    SERVER_GRACE_S,
    SlotMachine,
)
from kserve_ext.core.standby.slot_events import (
    BaseDied,
    BaseReady,
    CheckBase,
    Clean,
    Cleaned,
    Connected,
    End,
    EndServer,
    Event,
    Fork,
    FreeAsked,
    FrontAssign,
    FrontAssigned,
    FrontBlank,
    FrontDied,
    FrontDrain,
    FrontDrained,
    FrontServe,
    FrontUp,
    Instruction,
    NotCleaned,
    Outdated,
    ServerEnded,
    ServerFailed,
    ServerReady,
    StartAsked,
    StartBase,
    StartFront,
    Tell,
    Terminated,
)
from tests.core.standby.test_command import assignment as made


def assignment(name: str = "a", **fields: object) -> Assignment:
    return made(("run",), ())._replace(revision=RevisionKey(f"ns/{name}"), **fields)  # type: ignore[arg-type]


def slot(*events: Event) -> SlotMachine:
    """A slot to which this has happened after it was ready."""
    machine = SlotMachine("pod")
    assert machine.begin() == [StartBase(0), StartFront(0)]
    for event in (FrontUp(), BaseReady(), *events):
        machine.handle(event)
    return machine


def serving() -> SlotMachine:
    machine = slot(StartAsked(assignment()), FrontAssigned("ns/a"), ServerReady())
    assert machine.state == "serving"
    return machine


def test_ready_needs_the_base_and_the_front_whichever_is_first() -> None:
    for events in ((BaseReady(), FrontUp()), (FrontUp(), BaseReady())):
        machine = SlotMachine("pod")
        machine.handle(events[0])
        assert machine.state == "warming"
        assert machine.handle(events[1]) == [FrontBlank(True, ""), Tell("ready", "", "")]


def test_from_start_to_serving_whoever_is_ready_first() -> None:
    machine = slot()
    asked = assignment()
    assert machine.handle(StartAsked(asked)) == [
        Tell("starting", "ns/a", ""),
        Fork(asked),
        FrontAssign(asked),
    ]
    assert machine.handle(FrontAssigned("ns/a")) == []
    assert machine.handle(ServerReady()) == [FrontServe("ns/a"), Tell("serving", "ns/a", "")]
    machine = slot(StartAsked(asked))
    assert machine.handle(ServerReady()) == [FrontServe("ns/a")]
    assert machine.handle(FrontAssigned("ns/a")) == [Tell("serving", "ns/a", "")]


def test_a_start_that_was_asked_before_is_answered_with_the_state() -> None:
    assert serving().handle(StartAsked(assignment())) == [Tell("serving", "ns/a", "")]


def refusal(machine: SlotMachine, asked: Assignment) -> str:
    state, revision = machine.state, machine.revision
    [told] = machine.handle(StartAsked(asked))
    assert isinstance(told, Tell)
    assert told[:2] == (state, revision)
    assert (machine.state, machine.revision) == (state, revision)
    return told.reason


def test_a_slot_whose_variables_have_changed_serves_to_its_end_and_takes_nothing_more() -> None:
    changed = Outdated("secret keys has changed")
    end = [End(0, "secret keys has changed")]
    assert slot().handle(changed) == end
    assert SlotMachine("pod").handle(changed) == end, "while it imports"
    machine = serving()
    assert machine.handle(changed) == []
    assert machine.state == "serving"
    assert machine.handle(FreeAsked("ns/a"))[-1] == FrontDrain("ns/a", 300.0, FREED_QUIET_S, False)
    assert machine.handle(FrontDrained("ns/a")) == [EndServer(SERVER_GRACE_S)]
    assert machine.handle(ServerEnded("ended")) == end
    machine = serving()
    for event in (FreeAsked("ns/a"), FrontDrained("ns/a"), ServerEnded("ended"), changed):
        machine.handle(event)
    assert machine.handle(Cleaned()) == end, "it was being cleaned meanwhile"


def test_every_refusal_says_why_and_changes_nothing() -> None:
    assert "it has ns/a" in refusal(serving(), assignment("b"))
    assert "is warming" in refusal(SlotMachine("pod"), assignment())
    assert "'other'" in refusal(slot(), assignment(instance="other"))
    assert "argv is empty" in refusal(slot(), assignment(argv=()))
    for port in (0, 8012, 9090, 70000):
        assert f"port {port} is none" in refusal(slot(), assignment(port=port))
    assert "the pod is being deleted" in refusal(
        slot(StartAsked(assignment()), Terminated()), assignment("b")
    )
    assert "is failed" in refusal(slot(StartAsked(assignment()), ServerFailed("no model")), assignment("b"))


def test_free_drains_ends_the_server_and_is_a_standby_again() -> None:
    machine = serving()
    assert machine.handle(FreeAsked("ns/a")) == [
        Tell("draining", "ns/a", ""),
        FrontDrain("ns/a", 300.0, FREED_QUIET_S, False),
    ]
    assert machine.handle(FrontDrained("ns/a")) == [EndServer(SERVER_GRACE_S)]
    assert machine.handle(ServerEnded("ended with exit code 0")) == [Clean()]
    assert refusal(machine, assignment("b"))
    assert machine.handle(Cleaned())[-1] == CheckBase()
    assert machine.revision == ""
    assert machine.handle(BaseReady()) == [FrontBlank(True, ""), Tell("ready", "", "")]
    assert machine.handle(StartAsked(assignment("b")))[0] == Tell("starting", "ns/b", "")


def test_free_of_another_revision_is_refused() -> None:
    assert serving().handle(FreeAsked("ns/b")) == [Tell("serving", "ns/a", "can't free ns/b: it has ns/a")]
    assert slot().handle(FreeAsked("ns/b")) == [Tell("ready", "", "can't free ns/b: it has none")]


def test_free_before_it_serves_ends_the_server() -> None:
    machine = slot(StartAsked(assignment()))
    assert machine.handle(FreeAsked("ns/a")) == [Tell("draining", "ns/a", ""), EndServer(SERVER_GRACE_S)]
    assert machine.handle(ServerReady()) == []
    assert machine.handle(ServerEnded("x")) == [Clean()]
    machine.handle(Cleaned())
    assert machine.state == "warming"


def test_a_server_that_can_not_start_fails_the_slot_which_stays_until_it_is_deleted_or_freed() -> None:
    machine = slot(StartAsked(assignment()), FrontAssigned("ns/a"))
    told = machine.handle(ServerEnded("ended with exit code 3"))
    assert told[0] == Tell(
        "failed", "ns/a", "the server ended with exit code 3 before it was ready: see the pod's log"
    )
    assert machine.handle(FreeAsked("ns/a"))[-1] == Clean()
    assert machine.handle(Cleaned())[-1] == CheckBase()
    machine.handle(BaseReady())
    assert machine.state == "ready"


def test_what_can_not_be_cleaned_ends_the_slot_with_the_reason() -> None:
    machine = serving()
    for event in (FreeAsked("ns/a"), FrontDrained("ns/a"), ServerEnded("x")):
        machine.handle(event)
    assert machine.handle(FrontDied("x")) == [StartFront(1)], "it is cleaned once"
    told, end = machine.handle(NotCleaned("/tmp/x can't be deleted"))
    reason = "ns/a has left something behind, the pod is to be replaced: /tmp/x can't be deleted"
    assert told == Tell("failed", "ns/a", reason)
    assert end == End(0, reason)


def test_a_pod_that_is_deleted_while_it_is_cleaned_ends() -> None:
    for event in (Cleaned(), NotCleaned("x")):
        machine = slot(StartAsked(assignment()), FreeAsked("ns/a"))
        assert machine.handle(ServerEnded("x")) == [Clean()]
        assert machine.handle(Terminated()) == []
        assert machine.handle(event) == [End(0, "the pod is deleted")]


def test_a_server_that_dies_while_it_serves_ends_the_slot() -> None:
    told, end = serving().handle(ServerEnded("was ended by signal 9"))
    reason = "the server was ended by signal 9: the pod is to be replaced"
    assert told == Tell("failed", "ns/a", reason)
    assert end == End(1, reason)


def test_a_deleted_pod_drains_with_a_quiet_time_and_ends() -> None:
    machine = serving()
    assert machine.handle(Terminated())[-1] == FrontDrain("ns/a", 300.0, QUIET_S, True)
    assert machine.handle(FrontDrained("ns/a")) == [EndServer(SERVER_GRACE_S)]
    assert machine.handle(ServerEnded("ended")) == [End(0, "the pod is deleted")]
    assert machine.handle(BaseReady()) == []


def test_a_deleted_pod_without_a_revision_ends_at_once() -> None:
    assert slot().handle(Terminated()) == [End(0, "the pod is deleted")]


def test_a_base_that_dies_is_started_again_and_a_server_serves_on() -> None:
    machine = slot()
    told = machine.handle(BaseDied("the zygote ended (signal 9)"))
    assert told[0] == Tell("warming", "", f"the zygote ended (signal 9); {AGAIN}")
    assert told[-1] == StartBase(1)
    assert machine.handle(BaseDied("again"))[-1] == StartBase(2)
    machine.handle(BaseReady())
    assert machine.handle(BaseDied("later"))[-1] == StartBase(1)
    machine = serving()
    assert machine.handle(BaseDied("x")) == [StartBase(1)]
    assert machine.handle(BaseReady()) == []
    assert machine.state == "serving"


def test_a_base_that_can_not_be_fails_the_slot_and_its_server_none() -> None:
    machine = SlotMachine("pod")
    machine.begin()
    assert machine.handle(BaseDied("the image has no module x.zygote", True)) == [
        Tell("failed", "", "the image has no module x.zygote")
    ]
    assert "is failed" in refusal(machine, assignment())
    # The front may be up only now, and the agent be found: neither makes it one that is on its way.
    assert machine.handle(FrontUp()) == [FrontBlank(False, "the image has no module x.zygote")]
    assert machine.handle(Connected()) == [Tell("failed", "", "the image has no module x.zygote")]
    machine = SlotMachine("pod")
    machine.begin()
    for _ in range(MOST_BASE_FAILURES - 1):
        assert machine.handle(BaseDied("x"))[-1] == StartBase(machine._base_failures)
    assert machine.handle(BaseDied("x"))[0] == Tell("failed", "", "x, 6 times in a row: see the pod's log")
    machine = serving()
    for _ in range(MOST_BASE_FAILURES):
        machine.handle(BaseDied("x"))
    assert machine.state == "serving"


def test_how_it_started_is_told_while_it_serves() -> None:
    started = Started("S0", "--dtype: differs", (("ready", 40),))
    machine = slot(StartAsked(assignment()), FrontAssigned("ns/a"))
    assert machine.handle(ServerReady(started))[-1] == Tell("serving", "ns/a", "", started)
    assert machine.handle(Connected()) == [Tell("serving", "ns/a", "", started)]
    assert machine.handle(FreeAsked("ns/a"))[0] == Tell("draining", "ns/a", "")
    machine = SlotMachine("pod")
    machine.handle(FrontUp())
    assert machine.handle(BaseReady("no engine"))[-1] == Tell("ready", "", "no engine")


def test_a_front_that_dies_while_it_serves_is_told_again() -> None:
    machine = serving()
    assert machine.handle(FrontDied("x")) == [StartFront(1)]
    assert machine.handle(FrontUp()) == [FrontAssign(assignment()), FrontServe("ns/a")]
    assert machine.handle(FrontAssigned("ns/a")) == []
    assert machine.state == "serving"


def test_a_front_that_dies_while_it_drains_has_drained() -> None:
    machine = serving()
    machine.handle(FreeAsked("ns/a"))
    assert machine.handle(FrontDied("x")) == [StartFront(1), EndServer(SERVER_GRACE_S)]


def test_who_connects_hears_the_state() -> None:
    assert serving().handle(Connected()) == [Tell("serving", "ns/a", "")]


class World(RuleBasedStateMachine):
    """Base, front and server behave as such parts may; the agent asks whatever it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = SlotMachine("pod")
        self.base = self.front = False  # running
        self.base_ready = self.front_up = False
        self.front_has = ""
        self.draining = False
        self.server = ""
        self.server_ending = False
        self.told = "warming"
        self.ended = self.cleaning = False
        self.do(self.machine.begin())

    def happens(self, event: Event) -> None:
        self.do(self.machine.handle(event))

    def do(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            assert not self.ended
            match instruction:
                case StartBase():
                    assert not self.base
                    self.base, self.base_ready = True, False
                case StartFront():
                    assert not self.front
                    self.front, self.front_up, self.front_has, self.draining = True, False, "", False
                case Fork(asked):
                    assert not self.server
                    self.server, self.server_ending = asked.revision, False
                case EndServer():
                    self.server_ending = True
                case FrontAssign(asked):
                    self.front_has = asked.revision
                case FrontBlank():
                    self.front_has = ""
                case FrontDrain(revision):
                    assert revision == self.front_has
                    self.draining = True
                case Tell(state):
                    self.told = state
                case Clean():
                    assert not self.server
                    assert not self.cleaning
                    self.cleaning = True
                case CheckBase():
                    self.base_ready = False
                case End():
                    self.ended = True

    @rule()
    def all_goes_well(self) -> None:
        """To a server that serves, if nothing is in the way."""
        if self.base and not self.base_ready:
            self.base_is_ready()
        if self.front and not self.front_up:
            self.front_is_up()
        self.start("a")
        if self.front_has and self.front_up:
            self.front_assigned()
        if self.server and not self.server_ending:
            self.server_says(True)

    @precondition(lambda self: self.base and not self.base_ready)
    @rule()
    def base_is_ready(self) -> None:
        self.base_ready = True
        self.happens(BaseReady())

    @precondition(lambda self: self.base)
    @rule()
    def base_dies(self) -> None:
        self.base = self.base_ready = False
        self.happens(BaseDied("died"))

    @precondition(lambda self: self.front and not self.front_up)
    @rule()
    def front_is_up(self) -> None:
        self.front_up = True
        self.happens(FrontUp())

    @precondition(lambda self: self.front_has)
    @rule()
    def front_assigned(self) -> None:
        self.happens(FrontAssigned(self.front_has))

    @precondition(lambda self: self.draining)
    @rule()
    def front_drained(self) -> None:
        self.draining = False
        self.happens(FrontDrained(self.front_has))

    @precondition(lambda self: self.front)
    @rule()
    def front_dies(self) -> None:
        self.front, self.front_has, self.draining = False, "", False
        self.happens(FrontDied("died"))

    @precondition(lambda self: self.server and not self.server_ending)
    @rule(well=st.booleans())
    def server_says(self, well: bool) -> None:
        self.happens(ServerReady() if well else ServerFailed("no model"))

    @precondition(lambda self: self.server)
    @rule()
    def server_ends(self) -> None:
        self.server = ""
        self.happens(ServerEnded("ended"))

    @precondition(lambda self: self.cleaning)
    @rule(well=st.sampled_from((True, True, False)))
    def cleaned(self, well: bool) -> None:
        self.cleaning = False
        self.happens(Cleaned() if well else NotCleaned("a file"))

    @rule(name=st.sampled_from("ab"))
    def start(self, name: str) -> None:
        before = self.machine.revision
        self.happens(StartAsked(assignment(name)))
        assert self.machine.revision == before or not before

    @rule(name=st.sampled_from("ab"))
    def free(self, name: str) -> None:
        self.happens(FreeAsked(f"ns/{name}"))

    @rule()
    def connects(self) -> None:
        self.happens(Connected())

    @precondition(lambda self: self.machine.assignment is not None)
    @rule()
    def outdated(self) -> None:
        self.happens(Outdated("a Secret"))

    @precondition(lambda self: self.machine.state == "serving")
    @rule()
    def terminated(self) -> None:
        self.happens(Terminated())

    @invariant()
    def one_revision(self) -> None:
        if not self.ended:
            assert self.server in ("", self.machine.revision)
            assert self.told == self.machine.state or self.machine.state == "warming"
            if self.machine.state == "ready":
                assert self.base_ready
                assert self.front
                assert not self.server
            if self.machine.state == "serving":
                assert self.server

    @invariant()
    def never_stuck(self) -> None:
        """Whoever waits, waits for something that will happen."""
        if self.ended:
            return
        state = self.machine.state
        if state == "draining":
            assert self.draining or (self.server and self.server_ending) or self.cleaning
        if state == "starting":
            assert self.server


TestWorld = World.TestCase
