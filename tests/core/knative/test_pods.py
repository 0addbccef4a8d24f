"""Which addresses of a revision answer; cases of Knative's revision_backends_test.go."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kserve_ext.core.knative.announced import KEEP_S
from kserve_ext.core.knative.pods import DENIED, HEAL_S, OK, SILENT, Ask, Pods, Rules
from kserve_ext.core.knative.sampling import MeshMode

A, B = "128.0.0.1:8012", "128.0.0.2:8012"
NONE: frozenset[str] = frozenset()


def pods(**rules: object) -> Pods:
    return Pods(Rules(**rules))  # type: ignore[arg-type]


def test_a_pod_counts_once_it_answers_before_kubernetes_calls_it_ready() -> None:
    made = pods()
    assert made.observe(NONE, {A}, 0.0) == Ask((A,))
    assert made.due() is None
    assert made.probed(A, SILENT, 0.05) == Ask()
    assert made.due() == 0.2
    assert made.tick(0.2) == Ask((A,))
    assert made.probed(A, OK, 0.21) == Ask(changed=True)
    assert made.healthy == {A}
    assert made.due() is None
    assert made.observe({A}, NONE, 1.0) == Ask()


def test_a_slow_probe_is_repeated_at_once_and_delays_no_other() -> None:
    made = pods()
    made.observe({A}, {B}, 0.0)
    assert made.probed(B, OK, 0.01) == Ask(changed=True)
    assert made.probed(A, SILENT, 0.3) == Ask((A,))


def test_with_checks_of_the_kubelet_only_ready_pods_count() -> None:
    made = pods(early=False)
    assert made.observe(NONE, {A}, 0.0) == Ask()
    assert made.observe({A}, NONE, 0.1) == Ask((A,))
    made.probed(A, OK, 0.2)
    assert made.healthy == {A}


def test_a_pod_that_is_no_longer_ready_is_asked_again() -> None:
    made = pods()
    made.observe({A, B}, NONE, 0.0)
    made.probed(A, OK, 0.0)
    made.probed(B, OK, 0.0)
    assert made.observe({B}, {A}, 0.1) == Ask((A,), changed=True)
    assert made.healthy == {B}
    assert made.probed(A, OK, 0.2) == Ask(changed=True)
    assert made.healthy == {A, B}


def test_pods_that_are_gone_no_longer_count() -> None:
    made = pods()
    made.observe({A, B}, NONE, 0.0)
    made.probed(A, OK, 0.0)
    assert made.observe({B}, NONE, 0.1) == Ask(changed=True)
    assert made.probed(B, OK, 0.2) == Ask(changed=True)
    assert made.observe(NONE, NONE, 0.3) == Ask(changed=True)
    assert made.probed(B, OK, 0.4) == Ask(), "an answer that comes late"
    assert made.due() is None


def test_the_services_address_is_tried_when_ready_pods_are_silent() -> None:
    made = pods()
    made.observe({A}, {B}, 0.0)
    assert made.probed(A, SILENT, 0.1) == Ask()
    assert made.probed(B, SILENT, 0.1) == Ask(cluster=True)
    assert made.cluster_probed(False, 0.15) == Ask()
    assert made.tick(0.2) == Ask((A, B))
    assert made.probed(A, SILENT, 0.35) == Ask(cluster=True)
    assert made.cluster_probed(True, 0.36) == Ask(changed=True)
    assert made.cluster
    assert made.observe({A, B}, NONE, 0.4).changed, "the number of ready pods is the capacity"


def test_the_services_address_is_left_when_a_pod_answers() -> None:
    made = pods()
    made.observe({A, B}, NONE, 0.0)
    made.probed(A, SILENT, 0.1)
    made.probed(B, SILENT, 0.1)
    made.cluster_probed(True, 0.1)
    assert made.cluster
    assert made.due() == HEAL_S
    assert made.tick(1.0) == Ask()
    assert made.tick(HEAL_S) == Ask((A,)), "one at a time"
    assert made.probed(A, SILENT, HEAL_S) == Ask()
    assert made.tick(2 * HEAL_S) == Ask((B,))
    assert made.probed(B, OK, 2 * HEAL_S) == Ask((A,), changed=True)
    assert (made.cluster, made.healthy) == (False, {B})


def test_an_answer_that_no_mesh_gives_rules_the_services_address_out() -> None:
    made = pods()
    made.observe({A}, {B}, 0.0)
    made.probed(A, SILENT, 0.1)
    assert made.probed(B, DENIED, 0.1) == Ask()
    assert not made.tick(0.3).cluster
    made.probed(A, SILENT, 0.4)
    made.probed(B, SILENT, 0.4)
    assert not made.cluster
    assert made.cluster_probed(True, 0.5).changed


def test_no_ready_pod_no_services_address() -> None:
    made = pods()
    made.observe(NONE, {A}, 0.0)
    assert made.probed(A, SILENT, 0.1) == Ask()


def test_passthrough_never_falls_back() -> None:
    made = pods(passthrough=True)
    made.observe({A}, NONE, 0.0)
    assert made.probed(A, SILENT, 0.1) == Ask()


def test_mesh_enabled_uses_the_services_address_only() -> None:
    made = pods(mesh=MeshMode.ENABLED)
    assert made.observe(NONE, {A}, 0.0) == Ask()
    assert made.observe({A}, NONE, 0.1) == Ask(cluster=True)
    assert made.cluster_probed(True, 0.2) == Ask(changed=True)
    assert made.due() is None
    assert made.observe(NONE, NONE, 1.0) == Ask(changed=True)


def test_mesh_disabled_trusts_ready_pods_until_a_connection_fails() -> None:
    made = pods(mesh=MeshMode.DISABLED)
    assert made.observe({A}, {B}, 0.0) == Ask((B,), changed=True)
    assert made.healthy == {A}
    assert made.probed(B, SILENT, 0.1) == Ask()
    assert made.failed(A, 0.1) == Ask((A,), changed=True)
    assert not made.observe({A}, {B}, 0.15).changed
    assert made.probed(A, OK, 0.2).changed
    assert made.healthy == {A}


def test_a_pod_to_which_a_connection_failed_is_asked_at_once() -> None:
    made = pods()
    made.observe({A, B}, NONE, 0.0)
    made.probed(A, OK, 0.0)
    made.probed(B, OK, 0.0)
    assert made.failed(A, 5.0) == Ask((A,), changed=True)
    assert made.healthy == {B}
    assert made.failed(A, 5.0) == Ask(), "told twice"
    assert made.probed(A, OK, 5.1).changed


def behind_a_mesh(**rules: object) -> Pods:
    """A is ready, and answers nobody; its Service does."""
    made = pods(**rules)
    made.observe({A}, NONE, 0.0)
    made.probed(A, SILENT, 0.1)
    made.cluster_probed(True, 0.1)
    assert made.cluster
    return made


def test_without_a_ready_pod_the_services_address_is_left_and_nothing_is_due() -> None:
    made = behind_a_mesh(early=False)
    assert made.observe(NONE, {A}, 5.0) == Ask(changed=True)
    assert not made.cluster
    assert made.due() is None
    assert made.observe({A}, NONE, 6.0) == Ask((A,))


def test_nothing_is_due_while_a_pod_behind_the_service_is_being_asked() -> None:
    made = behind_a_mesh()
    assert made.tick(HEAL_S) == Ask((A,))
    assert made.tick(3 * HEAL_S) == Ask(), "it takes long to answer"
    assert made.due() is None
    assert made.probed(A, SILENT, 3.5 * HEAL_S) == Ask((A,))


def test_only_the_services_own_failure_ends_it() -> None:
    made = behind_a_mesh()
    assert made.failed(B, 0.5) == Ask(), "a pod that is gone already"
    assert made.cluster
    assert made.cluster_failed(0.5) == Ask((A,), True, True)
    assert not made.cluster


def test_an_announced_pod_is_used_at_once_until_the_endpoints_have_it() -> None:
    made = pods()
    assert made.announce(A, 1.0) == Ask(changed=True), "no probe: it has said that it serves"
    assert made.healthy == {A}
    assert made.due() == 1.0 + KEEP_S
    assert made.observe(NONE, {A}, 2.0) == Ask(), "labelled, and the kubelet has yet to ask it"
    assert made.observe({A}, NONE, 3.0) == Ask()
    assert made.due() is None
    assert made.observe({B}, NONE, 4.0).changed, "from then on they say whether it is there"
    assert made.healthy == set()


def test_an_announcement_that_the_endpoints_never_confirm_ends() -> None:
    made = pods()
    made.announce(A, 0.0)
    made.observe({B}, NONE, 5.0)
    assert A in made.healthy, "they don't have it yet"
    assert made.tick(KEEP_S - 0.1) == Ask()
    assert made.tick(KEEP_S) == Ask(changed=True)
    assert A not in made.healthy


def test_a_pod_that_was_listed_and_no_longer_is_has_gone() -> None:
    made = pods(early=False)
    made.announce(A, 0.0)
    made.observe(NONE, {A}, 1.0)
    assert made.healthy == {A}, "its slot has made the checks"
    assert made.observe(NONE, NONE, 2.0) == Ask(changed=True)
    assert made.healthy == set()


def test_an_announcement_is_taken_back() -> None:
    made = pods()
    made.announce(A, 0.0)
    assert made.withdraw(A, 1.0) == Ask(changed=True)
    assert (made.healthy, made.due()) == (set(), None)
    made.observe({A}, NONE, 2.0)
    made.probed(A, OK, 2.0)
    assert made.withdraw(A, 3.0) == Ask((A,), changed=True), "where it is listed, it is asked"


def test_an_announced_pod_that_fails_is_asked_and_dropped_if_it_is_silent() -> None:
    made = pods()
    made.announce(A, 0.0)
    assert made.failed(A, 1.0) == Ask((A,), changed=True)
    assert made.probed(A, OK, 1.1) == Ask(changed=True)
    assert made.failed(A, 2.0) == Ask((A,), changed=True)
    assert made.probed(A, SILENT, 2.3) == Ask()
    assert (made.healthy, made.due()) == (set(), None)


def test_an_answer_from_before_the_announcement_is_of_no_account() -> None:
    made = pods()
    made.observe(NONE, {A}, 0.0)
    made.announce(A, 0.1)
    assert made.probed(A, SILENT, 0.2) == Ask()
    assert made.healthy == {A}


def test_behind_a_mesh_an_announced_pod_waits_for_the_endpoints() -> None:
    assert pods(mesh=MeshMode.ENABLED).announce(A, 0.0) == Ask()
    made = behind_a_mesh()
    made.announce(B, 0.2)
    assert (made.cluster, made.healthy) == (True, set())


ADDRS = [f"10.0.0.{k}:8012" for k in range(4)]


class PodsMachine(RuleBasedStateMachine):
    """Whatever happens: only known pods count, and whoever could count is asked, is being asked, or will be."""

    @initialize(mesh=st.sampled_from(MeshMode), passthrough=st.booleans(), early=st.booleans())
    def begin(self, mesh: MeshMode, passthrough: bool, early: bool) -> None:
        self.made = Pods(Rules(mesh, passthrough, early))
        self.now = 0.0
        self.probes: list[str] = []
        self.announced: dict[str, float] = {}
        self.cluster_probes = 0
        self.seen: tuple[object, ...] = (frozenset(), False, 0)

    def take(self, ask: Ask) -> None:
        assert len(set(ask.pods) | set(self.probes)) == len(ask.pods) + len(self.probes), (
            "asked twice at once"
        )
        self.probes += ask.pods
        self.cluster_probes += ask.cluster
        assert self.cluster_probes <= 1
        made = self.made
        seen = (frozenset(made.healthy), made.cluster, len(made.ready) if made.cluster else 0)
        assert ask.changed == (seen != self.seen)
        self.seen = seen

    @rule(ready=st.sets(st.sampled_from(ADDRS)), not_ready=st.sets(st.sampled_from(ADDRS)))
    def observe(self, ready: set[str], not_ready: set[str]) -> None:
        self.take(self.made.observe(ready, not_ready - ready, self.now))

    @precondition(lambda self: self.probes)
    @rule(data=st.data(), answer=st.sampled_from([OK, DENIED, SILENT, SILENT]))
    def probed(self, data: st.DataObject, answer: int) -> None:
        addr = data.draw(st.sampled_from(sorted(self.probes)))
        self.probes.remove(addr)
        self.take(self.made.probed(addr, answer, self.now))

    @precondition(lambda self: self.cluster_probes)
    @rule(ok=st.booleans())
    def cluster_probed(self, ok: bool) -> None:
        self.cluster_probes = 0
        self.take(self.made.cluster_probed(ok, self.now))

    @rule(addr=st.sampled_from(ADDRS))
    def announce(self, addr: str) -> None:
        asked = self.made.announce(addr, self.now)
        assert addr not in asked.pods or self.made.cluster
        self.take(asked)
        if self.made.rules.mesh is not MeshMode.ENABLED:
            assert self.made.cluster or addr in self.made.healthy
            self.announced[addr] = self.now

    @rule(addr=st.sampled_from(ADDRS))
    def withdraw(self, addr: str) -> None:
        self.take(self.made.withdraw(addr, self.now))
        assert addr not in self.made.healthy
        self.announced.pop(addr, None)

    @rule(addr=st.sampled_from(ADDRS))
    def failed(self, addr: str) -> None:
        self.take(self.made.failed(addr, self.now))

    @rule()
    def cluster_failed(self) -> None:
        self.take(self.made.cluster_failed(self.now))

    @rule(wait=st.one_of(st.floats(0.01, 3.0), st.just(KEEP_S)))
    def time_passes(self, wait: float) -> None:
        self.now += wait
        self.take(self.made.tick(self.now))

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "made"):
            return
        made = self.made
        due = made.due()
        assert due is None or due > self.now, "a timer at once, again and again"
        known = made.ready | made.not_ready | made.announced.addrs
        for addr in made.healthy - made.ready - made.not_ready:
            assert self.now < self.announced[addr] + KEEP_S, "nobody but an agent knows it, and not lately"
        assert made.healthy <= known
        assert not (made.cluster and made.healthy)
        if not made.rules.early and made.rules.mesh is not MeshMode.DISABLED:
            assert made.healthy <= made.ready | made.announced.addrs
        if made.cluster:
            assert made.ready
            assert not made.rules.passthrough
            assert made.rules.mesh is not MeshMode.DISABLED
        elif made.rules.mesh is not MeshMode.ENABLED:
            could = known if made.rules.early else made.ready | made.announced.addrs
            if could - made.healthy - set(self.probes):
                assert made.due() is not None, "nobody will ask"


TestPods = PodsMachine.TestCase
TestPods.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
