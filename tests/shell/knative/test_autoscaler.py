"""A whole autoscaler against a fake API server: from zero and back, bursts, an absent server, hand-over."""

from __future__ import annotations

import time

import pytest

from autoscaler_shim.knative import deciders, reconciler
from autoscaler_shim.knative.autoscaler import Autoscaler
from kserve_ext.api.knative.conditions import rfc3339
from kserve_ext.core.knative.pod_autoscaler import Mode
from kserve_ext.core.knative.waves import MOST, Waves
from kserve_ext.kube.kinds import (
    METRICS,
    POD_AUTOSCALERS,
    SERVERLESS_SERVICES,
)
from kserve_ext.wire.stats import Stat
from tests.support.knative_autoscaler import (
    NAME,
    NAMESPACE,
    QueueProxies,
    activator,
    cluster,
    condition,
    put_pod,
    put_revision,
    put_sks,
    replicas,
    run,
    spec,
    state,
    status,
    until,
)

KEY = f"{NAMESPACE}/{NAME}"
BUCKET = "autoscaler-bucket-00-of-01"


async def looked_at(made: Autoscaler) -> None:
    """Reconciles it once more."""
    queue = made.reconciler.queue
    runs = queue.counters.runs
    queue.add(KEY)
    await until(lambda: queue.counters.runs > runs)
    await queue.idle()


@pytest.fixture(autouse=True)
def _quick_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deciders, "TICK_S", 0.1)


def test_a_new_revision_becomes_active() -> None:
    async def test() -> None:
        async with cluster() as (api, _, _):
            pa = put_revision(api, 1)
            await api.until(lambda: spec(api, SERVERLESS_SERVICES) and condition(api, "Active")[0])
            assert spec(api, SERVERLESS_SERVICES)["mode"] == "Proxy"
            assert condition(api, "Active") == ("Unknown", "Queued")
            assert condition(api, "SKSReady") == ("Unknown", "NotReady")
            put_sks(api, pa)
            await api.until(lambda: spec(api, METRICS) and status(api).get("metricsServiceName"))
            assert spec(api, METRICS) == {
                "stableWindow": 60 * 10**9,
                "panicWindow": 6 * 10**9,
                "scrapeTarget": "",
            }
            put_pod(api, "pod-0")
            await api.until(lambda: condition(api, "Ready")[0] == "True")
            assert condition(api, "ScaleTargetInitialized")[0] == "True"
            assert status(api)["actualScale"] == 1
            assert replicas(api) == 1
            await api.until(lambda: condition(api, "Ready", METRICS)[0] == "True")

    run(test())


def test_a_request_at_zero_starts_a_pod_at_once() -> None:
    async def test() -> None:
        async with cluster() as (api, made, reporter):
            put_sks(api, put_revision(api, 0, status=state("False")))
            await api.until(lambda: status(api).get("metricsServiceName"))
            await reporter.report(1.0)
            await api.until(lambda: replicas(api) == 1)
            await api.until(lambda: condition(api, "Active") == ("Unknown", "Queued"))
            assert made.reconciler.outcomes[KEY].want == 1

    run(test())


def test_our_own_class_is_served_the_same_way_and_no_other() -> None:
    async def test() -> None:
        async with cluster() as (api, made, reporter):
            ours = put_revision(api, 0, status=state("False"), class_="kserve-galaxy.io")
            other = put_revision(
                api, 0, status=state("False"), class_="hpa.autoscaling.knative.dev", name="other"
            )
            put_sks(api, ours)
            put_sks(api, other)
            await api.until(lambda: status(api).get("metricsServiceName"))
            await reporter.report(1.0, name="other")
            await reporter.report(1.0)
            await api.until(lambda: replicas(api) == 1)
            assert set(made.reconciler.outcomes) == {KEY}
            assert replicas(api, "other") == 0

    run(test())


def test_idle_for_a_window_it_goes_to_zero_in_two_steps(caplog: pytest.LogCaptureFixture) -> None:
    """Inactive first, and only then are its last pods gone; statuses are written behind, so they may come later."""
    caplog.set_level("INFO")

    async def test() -> None:
        async with cluster() as (api, _, _):
            pa = put_revision(api, 1, status=state("True"))
            put_pod(api, "pod-0")
            put_sks(api, pa)
            await api.until(lambda: replicas(api) == 0)
            assert "inactive, want 0" in caplog.text
            await api.until(lambda: condition(api, "Active") == ("False", "NoTraffic"))

    run(test())


def test_the_last_pod_stays_until_an_activator_answers_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with QueueProxies() as proxies, cluster(scrape_port=proxies.port) as (api, _, _):
            probes: list[str] = []

            def target(*where: str) -> str:
                probes.append(" ".join(where))
                return f"http://127.0.0.9:{proxies.port}/metrics"

            monkeypatch.setattr(reconciler, "target", target)
            monkeypatch.setattr("kserve_ext.core.scaling.scale_to_zero.NOT_DIVERTED_S", 0.02)
            proxies.answers = {"127.0.0.1": Stat("pod-0"), "127.0.0.9": b"queue"}
            notes = {"autoscaling.knative.dev/target-burst-capacity": "211"}
            put_pod(api, "pod-0")
            put_sks(api, put_revision(api, 1, notes, state("True")))
            await api.until(lambda: condition(api, "Active")[0] == "False")
            await until(lambda: proxies.asked.count("127.0.0.9") > 2)
            assert replicas(api) == 1
            proxies.answers["127.0.0.9"] = b"activator"
            await api.until(lambda: replicas(api) == 0)
            assert set(probes) == {f"{NAME} {NAMESPACE} http1 cluster.local"}

    run(test())


def test_nobody_is_asked_before_the_last_pods_may_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a burst keeps it, and once it is at zero, an answer would be worth nothing."""
    burst = True
    monkeypatch.setattr(Waves, "busy", lambda self, now: burst)
    monkeypatch.setattr(Waves, "_due", lambda self, now: [])

    async def test() -> None:
        nonlocal burst
        async with QueueProxies() as proxies, cluster(scrape_port=proxies.port) as (api, made, _):
            monkeypatch.setattr(reconciler, "target", lambda *_: f"http://127.0.0.9:{proxies.port}/metrics")
            proxies.answers = {"127.0.0.1": Stat("pod-0"), "127.0.0.9": b"activator"}
            notes = {"autoscaling.knative.dev/target-burst-capacity": "211"}
            pa = put_revision(api, 1, notes, state("True"))
            put_pod(api, "pod-0")
            put_sks(api, pa)
            await until(lambda: made._scales.shrinks_later(KEY))
            for _ in range(3):
                await looked_at(made)
            assert "127.0.0.9" not in proxies.asked
            assert replicas(api) == 1
            burst = False
            made._scales._call()
            await api.until(lambda: replicas(api) == 0)
            asked = proxies.asked.count("127.0.0.9")
            assert asked == 1
            await until(lambda: made._scales.at(KEY, pa, 0))
            for _ in range(3):
                await looked_at(made)
            assert not made.reconciler._prober._asking
            assert proxies.asked.count("127.0.0.9") == asked

    run(test())


def test_in_a_burst_pods_whose_requests_all_come_by_activators_are_asked_seldom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    burst = False
    monkeypatch.setattr(Waves, "busy", lambda self, now: burst)
    key = "autoscaling.knative.dev"

    async def test() -> None:
        nonlocal burst
        async with cluster() as (api, made, reporter):
            notes = {f"{key}/target-burst-capacity": "0", f"{key}/min-scale": "1"}
            put_pod(api, "pod-0")
            pa = put_revision(api, 1, notes, state("True", desired=1))
            put_sks(api, pa)
            await until(lambda: KEY in made.reconciler.outcomes)
            await reporter.report(1.0)
            await api.until(lambda: spec(api, SERVERLESS_SERVICES)["mode"] == "Serve")
            put_sks(api, pa)
            await until(lambda: not made.reconciler.diverted(KEY))
            burst = True
            assert not made._asks_little(KEY), "what comes past the activators only its pods know"
            assert made._scales.keeps(KEY)
            assert not made._asks_little(KEY), "it would shrink, and its load is back"
            pa = put_revision(api, 1, {**notes, f"{key}/target-burst-capacity": "10000"}, status(api))
            await api.until(lambda: spec(api, SERVERLESS_SERVICES)["mode"] == "Proxy")
            await until(lambda: made.reconciler.outcomes[KEY].mode is Mode.PROXY)
            assert not made._asks_little(KEY), "its service is to lead to them, and doesn't yet"
            put_sks(api, pa)
            await until(lambda: made._asks_little(KEY))
            burst = False
            made._scales._call()
            assert not made._asks_little(KEY)

    run(test())


def test_not_idle_for_long_enough_it_stays() -> None:
    async def test() -> None:
        async with cluster() as (api, made, _):
            pa = put_revision(api, 3, status=state("True", rfc3339(time.time())))
            put_pod(api, "pod-0")
            put_sks(api, pa)
            await api.until(lambda: replicas(api) == 1)
            await until(lambda: made.reconciler.outcomes[KEY].why == "idle-wait")
            assert condition(api, "Active")[0] == "True"

    run(test())


def test_what_shrinks_later_has_its_path_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Waves, "busy", lambda self, now: True)
    key = "autoscaling.knative.dev"

    async def test() -> None:
        async with cluster() as (api, made, reporter):
            for k in range(3):
                put_pod(api, f"pod-{k}")
            notes = {f"{key}/target-burst-capacity": "0", f"{key}/min-scale": "3"}
            pa = put_revision(api, 3, notes, state("True", desired=3))
            put_sks(api, pa)
            await until(lambda: KEY in made.reconciler.outcomes)
            await reporter.report(1.0)
            await api.until(lambda: spec(api, SERVERLESS_SERVICES)["mode"] == "Serve")
            notes = {f"{key}/target-burst-capacity": "10000", f"{key}/max-scale": "1"}
            put_revision(api, 3, notes, status(api))
            await api.until(lambda: spec(api, SERVERLESS_SERVICES)["mode"] == "Proxy")
            assert replicas(api) == 3

    run(test())


def test_a_burst_does_not_wait_for_the_windows() -> None:
    async def test() -> None:
        async with cluster() as (api, made, reporter):
            pa = put_revision(api, 1, {"autoscaling.knative.dev/target": "10"}, state("True", desired=1))
            put_pod(api, "pod-0")
            put_sks(api, pa)
            await api.until(lambda: status(api).get("metricsServiceName"))
            await reporter.report(5.0)
            await reporter.report(95.0)
            await api.until(lambda: replicas(api) >= 10)
            assert made.deciders.entries[KEY].decider.panicking

    run(test())


def test_a_killed_activators_load_is_not_counted_beside_its_successors() -> None:
    async def test() -> None:
        async with cluster() as (api, made, survivor):
            pa = put_revision(api, 5, {"autoscaling.knative.dev/target": "10"}, state("True", desired=5))
            put_pod(api, "pod-0")
            put_sks(api, pa)
            await api.until(lambda: status(api).get("metricsServiceName"))
            async with activator(made.stat_server.port) as killed:
                await killed.report(50.0, pod="act-1")
                decider = made.deciders.entries[KEY].decider
                await until(lambda: decider.desired > 0)
            await until(lambda: made.stat_server.clients == 1)
            wanted = decider.desired
            await survivor.report(50.0)
            await until(lambda: made.stat_server.taken == 2)
            assert decider.desired == wanted

    run(test())


def test_with_the_api_server_away_it_decides_on_and_scales_when_it_is_back() -> None:
    async def test() -> None:
        async with cluster() as (api, made, reporter):
            put_sks(api, put_revision(api, 0, status=state("False")))
            await api.until(lambda: status(api).get("metricsServiceName"))
            await api.down()
            await reporter.report(1.0)
            decider = made.deciders.entries[KEY].decider
            await until(lambda: not (decider.desired < 1))
            await api.up()
            await api.until(lambda: replicas(api) == 1)
            await api.until(lambda: condition(api, "Active") == ("Unknown", "Queued"))

    run(test())


def test_a_scale_does_not_wait_for_other_writes() -> None:
    async def test() -> None:
        async with cluster() as (api, _, reporter):
            put_sks(api, put_revision(api, 0, status=state("False")))
            await api.until(lambda: status(api).get("metricsServiceName"))
            api.fail(503, 1000, method="PATCH", path="/status")
            await reporter.report(1.0)
            await api.until(lambda: replicas(api) == 1)
            assert condition(api, "Active")[0] == "False"

    run(test())


def test_what_is_deleted_while_in_line_holds_up_nobody() -> None:
    async def test() -> None:
        async with cluster() as (api, made, _):
            notes = {"autoscaling.knative.dev/min-scale": "1"}
            names = [f"r-{number:05d}" for number in range(3 * MOST)]
            for name in names:
                put_sks(api, put_revision(api, 0, notes, name=name))
            await until(lambda: len(made.deciders.entries) == len(names))
            await api.until(lambda: sum(replicas(api, name) for name in names) >= MOST)
            asleep = [name for name in names if not replicas(api, name)]
            for name in names:
                api.remove(POD_AUTOSCALERS, NAMESPACE, name)
            assert asleep
            put_sks(api, put_revision(api, 0, notes))
            await api.until(lambda: replicas(api) == 1)

    run(test())


def test_of_what_was_never_scaled_nothing_is_left_either() -> None:
    async def test() -> None:
        async with cluster() as (api, made, reporter):
            put_sks(api, put_revision(api, 1, {"autoscaling.knative.dev/min-scale": "2"}))
            api.fail(403, 1000, path="/deployments/")
            await until(lambda: KEY in made.deciders.entries)
            await reporter.report(7.0)
            await until(lambda: made.collector.averages(KEY, "concurrency") == (7, 7))
            assert not made.reconciler.outcomes
            api.remove(POD_AUTOSCALERS, NAMESPACE, NAME)
            await until(lambda: not made.deciders.entries)
            assert made.collector.averages(KEY, "concurrency") is None

    run(test())
