"""Engines that sleep in a pod: the stories that count, and a slot that has some, whatever happens in any order.

Of the device it must hold that nobody gets memory of it while another has some; of host memory that weights never
take more than they may; of the slot that a revision has one server, and that whoever waits, waits for something that
will happen.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from kserve_ext.core.standby.engine_events import (
    EndEngine,
    EngineEvent,
    EngineGone,
    EngineLoaded,
    EngineMissed,
    EngineSlept,
    EngineWoke,
    SleepEngine,
    StartEngine,
    WakeEngine,
)
from kserve_ext.core.standby.engines import MOST_FAILURES, Planned, PodEngines
from kserve_ext.core.standby.facts import SLEEPERS_ENDED, Started
from kserve_ext.core.standby.room import CONTEXT_MIB, DEFAULT_SHARE, Memory
from kserve_ext.core.standby.slot import AGAIN, SlotMachine
from kserve_ext.core.standby.slot_events import (
    BaseReady,
    Clean,
    Cleaned,
    End,
    EndServer,
    Event,
    Fork,
    FreeAsked,
    FrontAssign,
    FrontAssigned,
    FrontBlank,
    FrontDrain,
    FrontDrained,
    FrontServe,
    FrontUp,
    Instruction,
    ServerEnded,
    ServerReady,
    StartAsked,
    StartBase,
    StartFront,
    Tell,
    Terminated,
)
from tests.core.standby.test_slot import World, assignment

HOST, BEGAN = 100, 1000
ONE, TWO = Planned("one", 40), Planned("two", 40)
OF_ONE = assignment("a", engine="one")


def asleep(*planned: Planned) -> PodEngines:
    """All of them, one after the other."""
    engines = PodEngines(planned, HOST, BEGAN)
    for one in planned:
        assert engines.next() == [StartEngine(one.name, 0)]
        assert engines.next() == [], "the device is taken"
        assert engines.handle(EngineLoaded(one.name)) == [SleepEngine(one.name)]
        assert engines.handle(EngineSlept(one.name)) == []
    assert engines.settled
    return engines


def slot(*planned: Planned) -> SlotMachine:
    machine = SlotMachine("pod", engines=asleep(*planned))
    assert machine.begin() == [StartBase(0), StartFront(0)]
    machine.handle(FrontUp())
    names = tuple(one.name for one in planned)
    assert machine.handle(BaseReady()) == [FrontBlank(True, ""), Tell("ready", "", "", None, names)]
    return machine


def awake() -> SlotMachine:
    machine = slot(ONE, TWO)
    for event in (StartAsked(OF_ONE), FrontAssigned("ns/a"), EngineWoke("one")):
        machine.handle(event)
    assert machine.state == "serving"
    return machine


def test_a_slot_is_ready_when_all_of_its_engines_sleep() -> None:
    machine = SlotMachine("pod", engines=PodEngines((ONE, TWO), HOST, BEGAN))
    machine.handle(FrontUp())
    first = machine.handle(BaseReady())
    assert first[0] == StartEngine("one", 0)
    assert first[-1] == Tell("warming", "", "engine one is loaded and put to sleep")
    assert machine.handle(EngineLoaded("one"))[0] == SleepEngine("one")
    second = machine.handle(EngineSlept("one"))
    assert second[0] == StartEngine("two", 0)
    assert second[-1] == Tell("warming", "", "engine two is loaded and put to sleep", None, ("one",))
    machine.handle(EngineLoaded("two"))
    assert machine.handle(EngineSlept("two"))[-1] == Tell("ready", "", "", None, ("one", "two"))


def test_the_revisions_engine_wakes_in_place_of_a_fork_and_sleeps_when_it_is_given_back() -> None:
    machine = slot(ONE, TWO)
    assert machine.handle(StartAsked(OF_ONE)) == [
        Tell("starting", "ns/a", "", None, ("two",)),
        WakeEngine("one", BEGAN + 1),
        FrontAssign(OF_ONE, "one"),
    ]
    assert machine.handle(FrontAssigned("ns/a")) == []
    assert machine.handle(EngineWoke("one", 70)) == [
        FrontServe("ns/a"),
        Tell("serving", "ns/a", "", Started("S2", "", (("awake", 70),)), ("two",)),
    ]
    machine.handle(FreeAsked("ns/a"))
    assert machine.handle(FrontDrained("ns/a")) == [SleepEngine("one")]
    assert machine.handle(EngineSlept("one")) == [Clean()]
    machine.handle(Cleaned())
    assert machine.handle(BaseReady())[-1] == Tell("ready", "", "", None, ("one", "two"))
    assert machine.handle(StartAsked(assignment("b", engine="one")))[1] == WakeEngine("one", BEGAN + 2)


def test_while_one_is_awake_another_is_refused_and_nothing_changes() -> None:
    engines = asleep(ONE, TWO)
    engines.wake("one")
    assert engines.wake("two") == ([], "one is being woken: ask another pod")
    engines.handle(EngineWoke("one"))
    orders, why = engines.wake("two")
    assert (orders, why) == ([], "one is awake and has 1 requests open: drain it first")
    assert engines.sleep("one") == [SleepEngine("one")]
    engines.handle(EngineSlept("one"))
    assert engines.wake("two") == ([WakeEngine("two", BEGAN + 2)], "")


def test_a_slot_that_serves_refuses_another_model_and_says_what_it_has() -> None:
    machine = awake()
    (told,) = machine.handle(StartAsked(assignment("b", engine="two")))
    assert isinstance(told, Tell)
    assert (told.state, told.revision, told.asleep) == ("serving", "ns/a", ("two",))
    assert "it has ns/a" in told.reason


def test_what_does_not_wake_is_killed_and_forked_and_the_pod_goes_when_it_is_given_back() -> None:
    machine = slot(ONE, TWO)
    machine.handle(StartAsked(OF_ONE))
    machine.handle(FrontAssigned("ns/a"))
    late = EngineMissed("one", "no wake within 60 s")
    assert machine.handle(late) == [EndEngine("one", 0.0)]
    why = "its engine did not wake: no wake within 60 s"
    assert machine.handle(EngineGone("one", "was ended by signal 9")) == [
        Tell("starting", "ns/a", why, None, ("two",)),
        Fork(OF_ONE),
        FrontAssign(OF_ONE),
    ]
    machine.handle(FrontAssigned("ns/a"))
    told = machine.handle(ServerReady(Started("S0", "", (("ready", 9),))))[-1]
    assert told == Tell("serving", "ns/a", "", Started("S0", why, (("ready", 9),)), ("two",))
    machine.handle(FreeAsked("ns/a"))
    machine.handle(FrontDrained("ns/a"))
    (end,) = machine.handle(ServerEnded("ended"))
    assert isinstance(end, End)
    assert "one failed while it was waking" in end.reason


def test_an_engine_that_dies_while_it_wakes_is_forked_at_once() -> None:
    machine = slot(ONE)
    machine.handle(StartAsked(OF_ONE))
    instructions = machine.handle(EngineGone("one", "was ended by signal 9"))
    assert instructions[1] == Fork(OF_ONE)
    assert machine.reason == "its engine was ended by signal 9 while it was woken"


def test_one_that_is_none_of_its_engines_is_forked_with_the_reason() -> None:
    machine = slot(ONE)
    asked = assignment("a", engine="three")
    told, fork, _ = machine.handle(StartAsked(asked))
    reason = "its engine was not woken: three is none of its engines"
    assert told == Tell("starting", "ns/a", reason, None, ("one",))
    assert fork == Fork(asked)
    machine.handle(FrontAssigned("ns/a"))
    machine.handle(ServerReady())
    machine.handle(FreeAsked("ns/a"))
    assert machine.handle(FrontDrained("ns/a"))[0] == EndServer(10.0)
    machine.handle(ServerEnded("ended"))
    machine.handle(Cleaned())
    assert machine.handle(BaseReady())[-1] == Tell("ready", "", "", None, ("one",)), (
        "nothing is wrong with it"
    )


def test_one_that_dies_in_its_sleep_is_started_again() -> None:
    machine = slot(ONE, TWO)
    instructions = machine.handle(EngineGone("one", "was ended by signal 9"))
    assert instructions[0] == StartEngine("one", 1)
    reason = f"engine one: was ended by signal 9 in its sleep; {AGAIN}"
    assert instructions[-1] == Tell("warming", "", reason, None, ("two",))
    assert isinstance(machine.handle(StartAsked(OF_ONE))[0], Tell)
    machine.handle(EngineLoaded("one"))
    assert machine.handle(EngineSlept("one"))[-1] == Tell("ready", "", "", None, ("one", "two"))


def test_one_that_dies_while_another_serves_waits_for_the_device() -> None:
    machine = awake()
    assert machine.handle(EngineGone("two", "was ended by signal 9")) == []
    machine.handle(FreeAsked("ns/a"))
    machine.handle(FrontDrained("ns/a"))
    assert machine.handle(EngineSlept("one")) == [Clean()]
    assert not any(isinstance(i, StartEngine) for i in machine.handle(Cleaned()))
    assert machine.handle(BaseReady())[0] == StartEngine("two", 1)


def test_free_while_it_wakes_waits_until_it_can_sleep() -> None:
    machine = slot(ONE)
    machine.handle(StartAsked(OF_ONE))
    assert machine.handle(FreeAsked("ns/a")) == [Tell("draining", "ns/a", "")]
    assert machine.handle(EngineWoke("one")) == [SleepEngine("one")]
    machine.handle(EngineSlept("one"))
    machine.handle(Cleaned())
    assert machine.state == "warming"


def test_a_pod_that_is_deleted_ends_the_engine_that_is_awake() -> None:
    machine = awake()
    machine.handle(Terminated())
    assert machine.handle(FrontDrained("ns/a")) == [EndEngine("one", 10.0)]
    assert machine.handle(EngineGone("one", "ended with exit code 0")) == [End(0, "the pod is deleted")]


def test_one_that_never_sleeps_is_given_up_and_the_slot_is_ready_without_it() -> None:
    machine = slot(ONE)
    engines = machine.engines = PodEngines((ONE, TWO), HOST, BEGAN)
    machine.handle(BaseReady())
    for count in range(MOST_FAILURES):
        assert engines.loading == "one", count
        machine.handle(EngineMissed("one", "--model: it is broken"))
        machine.handle(EngineGone("one", "ended with exit code 1"))
    assert engines.given_up == {"one": "--model: it is broken"}
    machine.handle(EngineLoaded("two"))
    told = machine.handle(EngineSlept("two"))[-1]
    assert told == Tell("ready", "", "one does not sleep here: --model: it is broken", None, ("two",))


def test_one_that_can_not_succeed_is_not_tried_again() -> None:
    engines = PodEngines((ONE,), HOST, BEGAN)
    engines.next()
    engines.handle(EngineGone("one", "ended with exit code 2", permanent=True))
    assert engines.next() == []
    assert engines.settled


def test_nobody_is_woken_while_another_is_loaded() -> None:
    engines = asleep(ONE)
    engines.handle(EngineGone("one", "was ended by signal 9"))
    engines.next()
    assert engines.wake("one") == ([], "one is on the device: ask another pod")


def test_weights_that_host_memory_has_no_room_for_are_not_loaded() -> None:
    engines = PodEngines((ONE, Planned("large", 61), TWO), HOST, BEGAN)
    engines.next()
    engines.handle(EngineLoaded("one"))
    engines.handle(EngineSlept("one"))
    assert engines.next() == [StartEngine("two", 0)]
    assert engines.given_up["large"] == "its weights need 61 MiB of host memory, 60 are left: raise the limit"


GPU_MIB, AWAKE_MIB, KEPT_MIB = 80_000, 70_000, 800
GREEDY = tuple(Planned(name, 10, 0.9) for name in ("one", "two", "three", "four"))


class Gpu:
    """Of a slot: what each engine has of it, and others have."""

    def __init__(self, engines: PodEngines, outside: int = 0) -> None:
        self.engines = engines
        self.outside = outside
        self.held: dict[str, int] = {}
        self.look()

    def look(self) -> None:
        self.engines.measured(Memory(GPU_MIB, GPU_MIB - self.outside - sum(self.held.values())))

    def has(self, name: str, mib: int) -> None:
        self.held[name] = mib
        self.look()

    def gone(self, name: str) -> None:
        del self.held[name]
        self.look()


def greedy(count: int, outside: int) -> tuple[SlotMachine, Gpu]:
    """A slot in which so many sleep, each of which wants nine tenths of the GPU; where others have some of that the
    rest of four engines has found no room."""
    machine = SlotMachine("pod", engines=PodEngines(GREEDY if outside else GREEDY[:count], HOST, BEGAN))
    assert machine.engines is not None
    gpu = Gpu(machine.engines, outside)
    machine.handle(FrontUp())
    machine.handle(BaseReady())
    for one in GREEDY[:count]:
        assert machine.engines.loading == one.name
        gpu.has(one.name, AWAKE_MIB)
        machine.handle(EngineLoaded(one.name))
        gpu.has(one.name, KEPT_MIB)
        machine.handle(EngineSlept(one.name))
    assert machine.state == "ready"
    assert machine.engines.asleep == tuple(one.name for one in GREEDY[:count])
    return machine, gpu


NO_ROOM = (
    8_000 - CONTEXT_MIB - 2 * KEPT_MIB
)  # of others: with two asleep nine tenths are not free any more, with one they are


def test_one_for_whom_nobody_has_asked_ends_no_sleeper_and_is_left_out_with_the_numbers() -> None:
    machine, _ = greedy(2, NO_ROOM + 1)
    assert machine.reason.startswith(
        "three does not sleep here: the GPU has no room: three starts with 72640 MiB free, 72639 of 80000 are: lower "
        "its --gpu-memory-utilization (0.9)"
    )
    assert "four does not sleep here: the GPU has no room" in machine.reason
    greedy(3, NO_ROOM)


def test_one_for_whom_a_revision_asks_ends_the_oldest_sleeper_and_sleeps_in_its_place_afterwards() -> None:
    machine, gpu = greedy(2, NO_ROOM + 1)
    asked = assignment("a", engine="three", argv=("run", "--gpu-memory-utilization=0.9"))
    told, end = machine.handle(StartAsked(asked))
    why = "it was ended for the server of three since 72639 of the GPU's 80000 MiB were free, and it kept 800"
    assert end == EndEngine("one", 0.0, why)
    assert isinstance(told, Tell)
    assert told.state == "starting"
    assert "three starts with 72640 MiB free" in told.reason
    gpu.gone("one")
    assert machine.handle(EngineGone("one", "was ended by signal 9", took_ms=40))[1:] == [
        Fork(asked),
        FrontAssign(asked),
    ]
    machine.handle(FrontAssigned("ns/a"))
    gpu.has("server", AWAKE_MIB)
    told = machine.handle(ServerReady(Started("S0", "", (("ready", 9),))))[-1]
    assert isinstance(told, Tell)
    assert told.started is not None
    assert told.started.steps == ((SLEEPERS_ENDED, 40), ("ready", 49))
    machine.handle(FreeAsked("ns/a"))
    machine.handle(FrontDrained("ns/a"))
    gpu.gone("server")
    machine.handle(ServerEnded("ended"))
    machine.handle(Cleaned())
    assert machine.handle(BaseReady())[0] == StartEngine("three", 0), "the one asked for last is first"
    gpu.has("three", AWAKE_MIB)
    machine.handle(EngineLoaded("three"))
    gpu.has("three", KEPT_MIB)
    told = machine.handle(EngineSlept("three"))[-1]
    assert isinstance(told, Tell)
    assert told.state == "ready"
    assert told.asleep == ("two", "three")
    assert "one does not sleep here: the GPU has no room: one starts with 72640 MiB free" in told.reason


def test_a_wake_ends_sleepers_one_after_the_other_until_it_fits() -> None:
    machine, gpu = greedy(3, 0)
    gpu.outside = GPU_MIB - AWAKE_MIB  # a wake lacks what both others keep
    gpu.look()
    asked = assignment("a", engine="three")
    told, end = machine.handle(StartAsked(asked))
    assert told == Tell("starting", "ns/a", "sleepers make room for it", None, ("two", "three"))
    assert (end.engine, end.grace_s) == ("one", 0.0)  # type: ignore[union-attr]
    assert machine.handle(FrontUp()) == [], "the front is told with the wake"
    gpu.gone("one")
    told, end = machine.handle(EngineGone("one", "was ended by signal 9", took_ms=30))
    assert end.engine == "two"  # type: ignore[union-attr]
    gpu.outside = 0
    gpu.gone("two")
    told, *rest = machine.handle(EngineGone("two", "was ended by signal 9", took_ms=20))
    assert rest == [WakeEngine("three", BEGAN + 1), FrontAssign(asked, "three")]
    machine.handle(FrontAssigned("ns/a"))
    told = machine.handle(EngineWoke("three", 7))[-1]
    assert isinstance(told, Tell)
    assert told.started == Started("S2", "", ((SLEEPERS_ENDED, 50), ("awake", 57)))


def test_what_would_not_fit_without_any_sleeper_fails_with_the_numbers_and_ends_nobody() -> None:
    machine, gpu = greedy(2, 0)
    gpu.outside = 30_000
    gpu.look()
    told, failed, *_ = machine.handle(StartAsked(assignment("a", engine="two")))
    assert isinstance(told, Tell)
    assert isinstance(failed, Tell)
    assert (told.state, failed.state) == ("starting", "failed")
    assert failed.reason == (
        "the GPU has no room: two wakes with 69200 MiB free, 48400 of 80000 are and sleepers that may go for it keep "
        "800: give it another GPU, or free the GPU of others"
    )
    assert failed.asleep == ("one", "two")
    machine.handle(FreeAsked("ns/a"))
    machine.handle(Cleaned())
    machine.handle(BaseReady())
    assert machine.state == "ready"


def test_a_wake_without_memory_gives_its_engine_up_and_nothing_else() -> None:
    machine, gpu = greedy(2, 0)
    asked = assignment("a", engine="one", argv=("run", "--gpu-memory-utilization=0.9"))
    machine.handle(StartAsked(asked))
    machine.handle(FrontAssigned("ns/a"))
    missed = EngineMissed("one", "CUDA Error: out of memory at cumem_allocator.cpp:62")
    assert machine.handle(missed) == [EndEngine("one", 0.0)]
    gpu.gone("one")
    instructions = machine.handle(EngineGone("one", "was ended by signal 9"))
    assert Fork(asked) in instructions
    assert "its engine did not wake: CUDA Error: out of memory" in machine.reason
    assert machine.engines is not None
    assert machine.engines.worn == "", "its process is gone, and nothing is in doubt"
    machine.handle(FrontAssigned("ns/a"))
    machine.handle(ServerReady())
    machine.handle(FreeAsked("ns/a"))
    machine.handle(FrontDrained("ns/a"))
    assert machine.handle(ServerEnded("ended")) == [Clean()]
    machine.handle(Cleaned())
    machine.handle(BaseReady())
    assert "one" in machine.engines.given_up
    assert machine.state == "ready"


def test_where_a_fork_has_no_room_either_the_revision_goes_elsewhere_with_both_reasons() -> None:
    machine, gpu = greedy(2, 0)
    machine.handle(StartAsked(assignment("a", engine="one", argv=("run", "--gpu-memory-utilization=0.9"))))
    machine.handle(EngineMissed("one", "CUDA Error: out of memory at cumem_allocator.cpp:62"))
    gpu.outside = 60_000
    gpu.gone("one")
    machine.handle(EngineGone("one", "was ended by signal 9"))
    assert machine.state == "failed"
    assert machine.reason.startswith("its engine did not wake: CUDA Error: out of memory")
    assert "the GPU has no room: one starts with 72640 MiB free, 19200 of 80000 are" in machine.reason


def test_a_revision_that_has_no_engine_here_is_named_where_there_is_no_room() -> None:
    machine, gpu = greedy(2, 0)
    gpu.outside = 60_000
    gpu.look()
    machine.handle(StartAsked(assignment("a", argv=("run", "--gpu-memory-utilization=0.9"))))
    assert machine.state == "failed"
    assert "no room: ns/a starts with 72640 MiB free" in machine.reason


def test_a_revision_that_is_given_back_while_room_is_made_for_it() -> None:
    machine, gpu = greedy(2, NO_ROOM + 1)
    machine.handle(StartAsked(assignment("a", engine="three", argv=("run", "--gpu-memory-utilization=0.9"))))
    assert machine.handle(FreeAsked("ns/a"))[-1] == Clean()
    machine.handle(Cleaned())
    machine.handle(BaseReady())
    assert machine.state == "warming", "one is on its way out"
    gpu.gone("one")
    assert StartEngine("three", 0) in machine.handle(EngineGone("one", "was ended by signal 9"))


class Sleepers(World):
    """The world of a slot, with engines that do what such may, on a GPU that is short of memory."""

    def __init__(self) -> None:
        super().__init__()
        self.planned = tuple(one._replace(share=0.9) for one in (ONE, TWO, Planned("large", 50)))
        self.engines: dict[str, str] = {}  # processes, and what they are at
        self.outside = 0  # of the GPU, by others
        self.keeps = {"one": 800, "two": 500, "large": 1500}
        self.generation = BEGAN
        #: Whose port requests go to.
        self.front_to = ""

    @initialize()
    def has_engines(self) -> None:
        self.machine.engines = PodEngines(self.planned, HOST, BEGAN)

    def free_mib(self) -> int:
        held = sum(self.keeps[n] if state == "asleep" else AWAKE_MIB for n, state in self.engines.items())
        return max(0, GPU_MIB - self.outside - held - (AWAKE_MIB if self.server else 0))

    def happens(self, event: Event) -> None:
        if self.machine.engines is not None:
            self.machine.engines.measured(Memory(GPU_MIB, self.free_mib()))
        super().happens(event)

    @rule(mib=st.sampled_from([0, 5_000, 6_500, 7_000, 7_500, 9_000, 12_000]))
    def others_take(self, mib: int) -> None:
        self.outside = mib

    def do(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case StartEngine(name):
                    assert name not in self.engines
                    assert self.on_device() == []
                    assert self.free_mib() >= 0.9 * GPU_MIB + CONTEXT_MIB
                    self.engines[name] = "loading"
                case SleepEngine(name):
                    assert self.engines[name] in ("loaded", "awake")
                    self.engines[name] = "loaded, falling" if self.engines[name] == "loaded" else "falling"
                case WakeEngine(name, generation):
                    assert self.engines[name] == "asleep"
                    assert self.on_device() == []
                    assert generation > self.generation
                    self.generation = generation
                    self.engines[name] = "waking"
                case EndEngine(name, _, reason):
                    asleep = self.engines[name] == "asleep"
                    assert asleep == bool(reason), (
                        "who sleeps goes for somebody, and the reason says for whom"
                    )
                    assert not asleep or self.free_mib() < DEFAULT_SHARE * GPU_MIB + CONTEXT_MIB, (
                        "for nothing"
                    )
                    assert not asleep or "ending" not in self.engines.values(), "one after the other"
                    self.engines[name] = "ending"
                case Fork():
                    assert self.on_device() == []
                    assert self.free_mib() >= DEFAULT_SHARE * GPU_MIB + CONTEXT_MIB
                    super().do([instruction])
                case FrontAssign(_, engine):
                    self.front_to = engine
                    super().do([instruction])
                case FrontDrain():
                    assert self.front_to in ("", *self.on_device())
                    super().do([instruction])
                case _:
                    super().do([instruction])

    def on_device(self) -> list[str]:
        return [name for name, state in self.engines.items() if state != "asleep"]

    def engine_says(self, event: EngineEvent) -> None:
        self.happens(event)

    @precondition(lambda self: "loading" in self.engines.values())
    @rule(well=st.booleans())
    def loads(self, well: bool) -> None:
        name = self.at("loading")
        if well:
            self.engines[name] = "loaded"
            self.engine_says(EngineLoaded(name))
        else:
            self.engine_says(EngineMissed(name, "no memory"))

    @precondition(lambda self: any("falling" in state for state in self.engines.values()))
    @rule(well=st.booleans())
    def sleeps(self, well: bool) -> None:
        name = next(n for n, state in self.engines.items() if "falling" in state)
        if well:
            self.engines[name] = "asleep"
        self.engine_says(EngineSlept(name) if well else EngineMissed(name, "can't"))

    @precondition(lambda self: "waking" in self.engines.values())
    @rule(well=st.booleans())
    def wakes(self, well: bool) -> None:
        name = self.at("waking")
        if well:
            self.engines[name] = "awake"
        self.engine_says(EngineWoke(name) if well else EngineMissed(name, "can't"))

    @precondition(lambda self: self.engines)
    @rule(data=st.data(), permanent=st.sampled_from([False, False, False, True]))
    def engine_ends(self, data: st.DataObject, permanent: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.engines)))
        del self.engines[name]
        self.engine_says(EngineGone(name, "was ended", permanent))

    @precondition(lambda self: "ending" in self.engines.values())
    @rule()
    def ended_engine_goes(self) -> None:
        name = self.at("ending")
        del self.engines[name]
        self.engine_says(EngineGone(name, "was ended by signal 9"))

    @rule()
    def all_sleep(self) -> None:
        """As it is in most pods at most times."""
        if self.base and not self.base_ready:
            self.base_is_ready()
        if self.front and not self.front_up:
            self.front_is_up()
        for _ in range(2 * len(self.planned)):
            if "loading" in self.engines.values():
                self.loads(True)
            elif any("falling" in state for state in self.engines.values()):
                self.sleeps(True)

    @rule(name=st.sampled_from("ab"), engine=st.sampled_from(["one", "two", "large"]))
    def start_its_engine(self, name: str, engine: str) -> None:
        self.happens(StartAsked(assignment(name, engine=engine)))

    @rule()
    def wakes_and_serves(self) -> None:
        if "waking" in self.engines.values():
            self.wakes(True)
        if self.front_has and self.front_up:
            self.front_assigned()

    def at(self, state: str) -> str:
        return next(name for name, at in self.engines.items() if at == state)

    @invariant()
    def engines_are_within_bounds(self) -> None:
        if self.machine.engines is not None and not self.ended:
            self.machine.engines.check()
            assert set(self.machine.engines.asleep) <= {n for n, s in self.engines.items() if s == "asleep"}

    @invariant()
    def one_revision(self) -> None:
        """In place of a slot's without engines."""
        if self.ended:
            return
        machine = self.machine
        assert self.server in ("", machine.revision)
        assert not (self.server and self.on_device())
        if machine.state == "ready":
            assert self.base_ready
            assert self.front
            assert not self.server
            assert self.on_device() == []
        if machine.state == "serving":
            assert self.server or "awake" in self.engines.values() or "ending" in self.engines.values()

    @invariant()
    def never_stuck(self) -> None:
        if self.ended:
            return
        state = self.machine.state
        if state == "draining":
            assert self.draining or self.cleaning or (self.server and self.server_ending) or self.on_device()
        if state == "starting":
            assert self.server or self.on_device()
        engines = self.machine.engines
        if state == "warming" and self.base_ready and self.front_up and engines is not None:
            assert self.on_device(), "else it would be ready"


TestSleepers = Sleepers.TestCase
