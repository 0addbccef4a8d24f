"""PodAutoscaler, ServerlessService, Metric, pods and ConfigMaps of Knative: what is read, and what is written."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_ext.api.knative import children as knative_children
from kserve_ext.api.knative import config as knative_config
from kserve_ext.api.knative import pa as knative_pa
from kserve_ext.api.knative.autoscaler_config import AutoscalerConfig
from kserve_ext.api.knative.conditions import Condition, dated, find, ready, rfc3339, unix
from kserve_ext.api.knative.config import LeaderElection, Network
from kserve_ext.api.knative.pods import Unplaced, count, fact, scrapable, slim
from kserve_ext.api.problems import Findings
from kserve_ext.core.knative.pod_autoscaler import Known, Mode, Outcome, Pods, Service
from kserve_ext.core.knative.sampling import MeshMode, Pod

NOW = 1_700_000_000.0
Document = dict[str, Any]


def pa(annotations: dict[str, str] | None = None, **spec: Any) -> Document:
    return {
        "metadata": {
            "name": "hello-00001",
            "namespace": "default",
            "uid": "u1",
            "generation": 3,
            "labels": {"serving.knative.dev/revision": "hello-00001"},
            "annotations": {
                "autoscaling.knative.dev/class": "kpa.autoscaling.knative.dev",
                **(annotations or {}),
            },
        },
        "spec": {
            "scaleTargetRef": {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "name": "hello-00001-deployment",
            },
            "protocolType": "http1",
            **spec,
        },
    }


def settings(annotations: dict[str, str] | None = None, **spec: Any) -> knative_pa.Settings:
    return knative_pa.settings(pa(annotations, **spec), AutoscalerConfig(), 600)


OUTCOME = Outcome(None, 1, Mode.SERVE, 2, "active", False, True, "demand")


# --- conditions


def test_times_are_seconds_in_utc() -> None:
    assert rfc3339(NOW + 0.9) == "2023-11-14T22:13:20Z"
    assert unix("2023-11-14T22:13:20Z") == NOW
    assert unix("2023-11-14T23:13:20+01:00") == NOW
    assert unix(None) is unix("yesterday") is None


def test_a_time_moves_only_with_what_the_condition_says() -> None:
    first = dated([Condition("B", "True"), Condition("A", "Unknown", "R", "m")], None, NOW)
    assert [c["type"] for c in first] == ["A", "B"]
    assert dated([Condition("A", "Unknown", "R", "m"), Condition("B", "True")], first, NOW + 9) == first
    later = dated([Condition("A", "Unknown", "R", "other"), Condition("B", "True")], first, NOW + 9)
    assert [c["lastTransitionTime"] for c in later] == [rfc3339(NOW + 9), rfc3339(NOW)]


@pytest.mark.parametrize(
    ("leading", "others", "status"),
    [("True", ["True", "True"], "True"), ("Unknown", ["True"], "Unknown"), ("False", ["Unknown"], "False"),
     ("True", ["Unknown", "False"], "False"), ("True", ["Unknown"], "Unknown")],
)  # fmt: skip
def test_ready_sums_up(leading: str, others: list[str], status: str) -> None:
    found = ready(Condition("A", leading, "a"), [Condition("O", other, "o") for other in others])
    assert (found.type, found.status) == ("Ready", status)


@pytest.mark.parametrize("conditions", [None, "x", [1], [{"type": "B"}]])
def test_a_broken_status_has_no_condition(conditions: object) -> None:
    assert find(conditions, "A") is None


# --- PodAutoscaler


def test_settings_are_annotations_over_the_clusters_defaults() -> None:
    found = settings(
        {
            "autoscaling.knative.dev/target": "20",
            "autoscaling.knative.dev/minScale": "1",
            "autoscaling.knative.dev/window": "30s",
            "autoscaling.knative.dev/target-burst-capacity": "-1",
            "serving.knative.dev/progress-deadline": "5s",
        },
        containerConcurrency=10,
        reachability="Unreachable",
    )
    spec = found.spec
    assert (spec.total, spec.target, spec.min, spec.stable_window_s) == (10, 7, 1, 30)
    assert (spec.start_deadline_s, spec.reachable, found.scraped, found.panic_window_s) == (
        35,
        False,
        False,
        3,
    )
    assert found.problems == ()


def test_defaults_are_knatives() -> None:
    spec = settings().spec
    assert (spec.total, spec.target, spec.target_burst_capacity, spec.initial) == (100, 70, 211, 1)
    assert (spec.stable_window_s, spec.start_deadline_s, spec.reachable) == (60, 630, True)


@pytest.mark.parametrize(
    ("key", "text", "named", "reason"),
    [
        ("autoscaling.knative.dev/target", "many", "autoscaling.knative.dev/target", "InvalidAnnotation"),
        ("autoscaling.knative.dev/window", "1", "has no unit", "InvalidAnnotation"),
        ("autoscaling.knative.dev/min-scale", "-1", "min-scale", "InvalidAnnotation"),
        (
            "autoscaling.knative.dev/initial-scale",
            "0",
            "not allowed by this cluster",
            "NotAllowedByCluster",
        ),
        ("serving.knative.dev/progress-deadline", "soon", "progress-deadline", "InvalidAnnotation"),
    ],
)
def test_a_bad_annotation_counts_as_absent_and_the_status_says_so(
    key: str, text: str, named: str, reason: str
) -> None:
    found = settings({key: text})
    assert found.spec == settings().spec
    written = knative_pa.status(pa(), {}, OUTCOME, knative_pa.Services(), Pods(1), found, NOW)
    condition = find(written["conditions"], "AnnotationsUnderstood")
    assert condition is not None
    assert (condition["status"], condition["severity"]) == ("False", "Warning")
    assert condition["reason"] == reason
    assert named in condition["message"]


def test_a_concurrency_that_is_no_number_is_named() -> None:
    found = settings(containerConcurrency="ten")
    assert found.spec.total == 100
    assert "spec.containerConcurrency" in found.problems[0]
    assert found.reason == "InvalidField"


def test_annotations_that_contradict_each_other_are_called_so() -> None:
    notes = {"autoscaling.knative.dev/min-scale": "5", "autoscaling.knative.dev/max-scale": "2"}
    assert settings(notes).reason == "ContradictsAnnotation"


def test_which_are_served_here() -> None:
    assert knative_pa.is_ours(pa())
    assert knative_pa.is_ours(pa({"autoscaling.knative.dev/class": "kserve-galaxy.io"}))
    assert not knative_pa.is_ours(pa({"autoscaling.knative.dev/class": "hpa.autoscaling.knative.dev"}))
    assert not knative_pa.is_ours({"metadata": {"name": "a", "namespace": "b"}})
    going = pa()
    going["metadata"]["deletionTimestamp"] = rfc3339(NOW)
    assert not knative_pa.is_ours(going)


def test_a_new_one_is_activating() -> None:
    assert knative_pa.known(pa(), {}, NOW) == Known("activating", NOW)


def test_what_was_written_is_known_again() -> None:
    services = knative_pa.Services("hello-00001", "hello-00001-private", True)
    written = knative_pa.status(pa(), {}, OUTCOME, services, Pods(1), settings(), NOW)
    assert knative_pa.known(pa(), written, NOW + 50) == Known("active", NOW, True, "hello-00001")
    assert [(c["type"], c["status"]) for c in written["conditions"]] == [
        ("Active", "True"), ("Ready", "True"), ("SKSReady", "True"), ("ScaleTargetInitialized", "True")
    ]  # fmt: skip
    assert {k: v for k, v in written.items() if k != "conditions"} == {
        "observedGeneration": 3,
        "serviceName": "hello-00001",
        "metricsServiceName": "hello-00001-private",
        "desiredScale": 1,
        "actualScale": 1,
    }


@pytest.mark.parametrize(
    ("phase", "timed_out", "status", "reason"),
    [("activating", False, "Unknown", "Queued"), ("inactive", False, "False", "NoTraffic"),
     ("inactive", True, "False", "TimedOut")],
)  # fmt: skip
def test_why_it_is_not_active(phase: Any, timed_out: bool, status: str, reason: str) -> None:
    outcome = Outcome(None, 0, Mode.PROXY, 2, phase, timed_out, False, "no-traffic")
    written = knative_pa.status(
        pa(), {}, outcome, knative_pa.Services("a", "b", True), Pods(), settings(), NOW
    )
    for name in ("Active", "Ready"):
        condition = find(written["conditions"], name)
        assert condition is not None
        assert (condition["status"], condition["reason"]) == (status, reason)


def test_a_known_scale_is_not_overwritten_by_an_unknown_one() -> None:
    unknown = Outcome(None, -1, Mode.PROXY, 2, "inactive", False, True, "unknown")
    for before, desired in (
        ({"desiredScale": 3}, 3),
        ({"desiredScale": 0}, 0),
        ({}, -1),
        ({"desiredScale": "x"}, -1),
    ):
        written = knative_pa.status(pa(), before, unknown, knative_pa.Services(), Pods(), settings(), NOW)
        assert written["desiredScale"] == desired


def test_a_service_that_is_not_ready_keeps_it_unready() -> None:
    for services, message in (
        (knative_pa.Services(), "No Private Service Name"),
        (knative_pa.Services("a", "b", False, "no endpoints"), "no endpoints"),
    ):
        written = knative_pa.status(pa(), {}, OUTCOME, services, Pods(1), settings(), NOW)
        condition = find(written["conditions"], "Ready")
        assert condition is not None
        assert (condition["status"], condition["reason"], condition["message"]) == (
            "Unknown",
            "NotReady",
            message,
        )


def test_not_owned() -> None:
    before = {"desiredScale": 3, "actualScale": 2, "serviceName": "a", "metricsServiceName": "b"}
    written = knative_pa.not_owned(pa(), before, "Metric", "hello-00001", NOW)
    condition = find(written["conditions"], "Ready")
    assert condition is not None
    assert (condition["status"], condition["reason"]) == ("False", "NotOwned")
    assert condition["message"] == 'There is an existing Metric "hello-00001" that we do not own.'
    assert {k: written[k] for k in before} == before


# --- ServerlessService and Metric


def test_the_service_it_makes() -> None:
    made = knative_children.make_sks(pa({"autoscaling.knative.dev/metric": "rps", "x": "y"}), Mode.PROXY, 2)
    assert made["spec"] == {
        "mode": "Proxy",
        "objectRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "hello-00001-deployment"},
        "protocolType": "http1",
        "numActivators": 2,
    }
    assert "autoscaling.knative.dev/metric" not in made["metadata"]["annotations"]
    assert made["metadata"]["annotations"]["x"] == "y"
    assert knative_children.owned(made, pa())
    other = pa()
    other["metadata"]["uid"] = "u2"
    assert not knative_children.owned(made, other)
    del made["metadata"]["ownerReferences"]
    assert not knative_children.owned(made, pa())


def sks(**status: Any) -> Document:
    return {"metadata": {"generation": 2}, "spec": {"mode": "Proxy"}, "status": status}


def test_what_is_read_of_a_service() -> None:
    assert knative_children.service(sks()) == Service(Mode.PROXY)
    proxying = {"type": "ActivatorEndpointsPopulated", "status": "True", "lastTransitionTime": rfc3339(NOW)}
    full = sks(
        serviceName="a",
        privateServiceName="b",
        observedGeneration=2,
        conditions=[proxying, {"type": "Ready", "status": "True"}],
    )
    assert knative_children.service(full) == Service(Mode.PROXY, "a", "b", NOW)
    assert knative_children.services(full) == knative_pa.Services("a", "b", True)
    proxying["status"] = "False"
    assert knative_children.service(full).proxying_since is None
    full["metadata"]["generation"] = 3
    assert knative_children.services(full).ready is False


def test_the_metric_it_makes_is_the_one_it_reads() -> None:
    annotations = {
        "autoscaling.knative.dev/window": "30s",
        "autoscaling.knative.dev/metric-aggregation-algorithm": "weightedExponential",
    }
    made = knative_children.make_metric(pa(annotations), settings(annotations), "hello-00001-private")
    assert made["spec"] == {
        "stableWindow": 30_000_000_000,
        "panicWindow": 3_000_000_000,
        "scrapeTarget": "hello-00001-private",
    }
    assert knative_children.windows(made) == (30, 3, "hello-00001-private", "weighted-exponential")
    unlimited = {"autoscaling.knative.dev/target-burst-capacity": "-1"}
    assert knative_children.make_metric(pa(), settings(unlimited), "p")["spec"]["scrapeTarget"] == ""


@pytest.mark.parametrize("length", [0, -1, "60s", None, 1.5, 10**30])
def test_a_metric_with_impossible_windows_is_named(length: object) -> None:
    found = knative_children.windows({"metadata": {}, "spec": {"stableWindow": length, "panicWindow": 10**9}})
    assert isinstance(found, str)
    assert "spec.stableWindow" in found


def test_the_status_of_a_metric() -> None:
    metric: Document = {"metadata": {"generation": 1}, "status": {"annotations": {"a": "b"}}}
    good = knative_children.metric_status(metric, None, NOW)
    assert good["conditions"] == [{"type": "Ready", "status": "True", "lastTransitionTime": rfc3339(NOW)}]
    assert good["annotations"] == {"a": "b"}
    bad = knative_children.metric_status(metric, knative_children.Trouble("DidNotReceiveStat", "m"), NOW)
    assert bad["conditions"][0]["status"] == "False"
    none = knative_children.metric_status(metric, knative_children.Trouble("NoEndpoints", "m"), NOW)
    assert none["conditions"][0]["status"] == "Unknown"


# --- pods


def pod(
    phase: str = "Running", ready: bool = True, terminating: bool = False, address: str = "10.0.0.1"
) -> Document:
    metadata: Document = {
        "name": "p", "namespace": "ns", "uid": "u", "resourceVersion": "1",
        "labels": {"serving.knative.dev/revision": "rev"}, "annotations": {"large": "x" * 1000},
    }  # fmt: skip
    if terminating:
        metadata["deletionTimestamp"] = rfc3339(NOW)
    status = {
        "phase": phase,
        "podIP": address,
        "startTime": rfc3339(NOW),
        "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": str(ready)}],
    }
    return {"metadata": metadata, "spec": {"containers": []}, "status": status}


def test_pods_are_counted_as_knative_counts_them() -> None:
    pods = [
        pod(),
        pod(ready=False),
        pod(terminating=True),
        pod("Pending", ready=False),
        pod("Pending", terminating=True),
        pod("Failed"),
        pod("Succeeded"),
        pod(address=""),
    ]
    facts = [found for p in pods if (found := fact(slim(p)))]
    assert count(facts) == Pods(ready=2, not_ready=4, pending=2, terminating=1)
    assert scrapable(facts) == [Pod("10.0.0.1", NOW)]
    assert facts == [fact(p) for p in pods]


def test_a_pod_that_no_node_has_room_for_says_why() -> None:
    labels = {"serving.knative.dev/revision": "r"}
    pod: Any = {"metadata": {"namespace": "ns", "name": "p", "labels": labels}, "status": {}}
    no_node = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
    gated = {**no_node, "reason": "SchedulingGated"}
    there = {"type": "PodScheduled", "status": "True"}
    gpus = [{"resources": {"limits": {"nvidia.com/gpu": "2", "cpu": "1"}}}, {}]
    for condition, said in ((no_node, Unplaced("0/1 nodes", 2)), (gated, None), (there, None)):
        status = {"conditions": [condition]}
        found = fact(slim({**pod, "spec": {"containers": gpus}, "status": status}))
        assert found is not None
        assert found.unplaced == said


def test_a_pod_of_no_revision_is_none_of_ours() -> None:
    other = pod()
    other["metadata"]["labels"] = None
    assert fact(other) is None
    assert fact({"metadata": {"name": "x", "namespace": "y", "labels": {"serving.knative.dev/revision": "r"}}}) == (
        "y/r", "", False, False, "", 0.0, None
    )  # fmt: skip


# --- ConfigMaps


def test_config_maps_that_knative_accepts() -> None:
    findings = Findings()
    data = {
        "_example": "lots of text",
        "pod-autoscaler-class": "hpa.autoscaling.knative.dev",
        "panic-threshold-percentage": "100",
        "scale-to-zero-grace-period": "2h",
    }
    assert knative_config.autoscaler(data, findings).scale_to_zero_grace_period == 7200
    assert knative_config.network({}, findings) == Network()
    assert knative_config.network(
        {"mesh-compatibility-mode": "Disabled", "enable-mesh-pod-addressability": "true"}, findings
    ) == Network(MeshMode.DISABLED, True)
    assert knative_config.network({"mesh-compatibility-mode": "?"}, findings).mesh is MeshMode.AUTO
    assert knative_config.progress_deadline_s({}, findings) == 600
    assert knative_config.progress_deadline_s({"progressDeadline": "60s"}, findings) == 60
    assert (
        knative_config.progress_deadline_s({"progressDeadline": "60s", "progress-deadline": "90s"}, findings)
        == 90
    )
    assert knative_config.leader_election({}, findings) == LeaderElection()
    assert knative_config.leader_election(
        {"buckets": "3", "lease-duration": "15s", "renewDeadline": "10s", "retry-period": "2s"}, findings
    ) == LeaderElection(3, 15, 10, 2)
    assert findings, findings.problems


@pytest.mark.parametrize(
    ("read", "data", "named"),
    [
        (knative_config.autoscaler, {"stable-window": "soon"}, "config-autoscaler data[stable-window]"),
        (
            knative_config.network,
            {"enable-mesh-pod-addressability": "on"},
            "data[enable-mesh-pod-addressability]",
        ),
        (
            knative_config.progress_deadline_s,
            {"progress-deadline": "-1s"},
            "config-deployment data[progress-deadline]",
        ),
        (knative_config.leader_election, {"buckets": "11"}, "config-leader-election data[buckets]"),
        (knative_config.leader_election, {"lease-duration": "30s"}, "renew-deadline"),
    ],
)
def test_a_bad_value_is_named_with_its_remedy(read: Any, data: dict[str, str], named: str) -> None:
    findings = Findings()
    read(data, findings)
    assert len(findings.problems) == 1
    assert named in findings.problems[0].field
    assert findings.problems[0].remedy
