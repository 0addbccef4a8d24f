"""What `galaxy status` and `galaxy explain` say of a Kubernetes cluster's standby pods, agents and webhook."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kserve_ext.api.standby import fitting, names, pods
from kserve_ext.cli.knative import checks, explain, standby, webhook
from kserve_ext.core.standby.pools import Lack
from kserve_ext.kube import certificates
from kserve_ext.kube.kinds import (
    DAEMON_SETS,
    DEPLOYMENTS,
    EVENTS,
    KNATIVE_SERVICES,
    POD_AUTOSCALERS,
    PODS,
)
from tests.api.standby.deployments import NAMESPACE, deployment
from tests.support.knative_cluster import PLACE, KnativeCluster

Obj = dict[str, Any]
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[KnativeCluster]:
    made = KnativeCluster(tmp_path)
    made.install_knative()
    yield made
    made.close()


def pod_of(made: Obj, suffix: str, **status: Any) -> Obj:
    wish = fitting.read(made)
    assert isinstance(wish, fitting.Wish)
    found = pods.pod(pods.pool(wish), suffix)
    found["metadata"] = {**found["metadata"], "uid": f"uid-{suffix}"}
    found["metadata"]["labels"] = dict(found["metadata"]["labels"])
    ready = {"type": "Ready", "status": "True"}
    return {**found, "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [ready], **status}}


def test_pools_have_what_revisions_wish_for_and_what_is_there() -> None:
    one, other = deployment("one-00001", standby="3"), deployment("two-00001", standby="9")
    adopted = pod_of(one, "c")
    adopted["metadata"]["labels"]["serving.knative.dev/revision"] = "one-00001"
    starting = pod_of(one, "b", conditions=[])
    unreachable = {
        "metadata": {"namespace": NAMESPACE, "name": "two-00001"},
        "spec": {"reachability": "Unreachable"},
    }
    (row,) = standby.pools_of([pod_of(one, "a"), starting, adopted], [one, other], [unreachable])
    assert (row["wanted"], row["free"], row["starting"], row["taken"]) == (3, 1, 1, 1)
    assert (row["runtime"], row["level"]) == ("runtimes.vllm_pd", "S0")
    assert row["shape"] == "cpu=525m memory=1Gi gpu=1"
    assert row["why"] == ""
    waiting = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    (row,) = standby.pools_of([pod_of(one, "a", conditions=[], containerStatuses=[waiting])], [one], [])
    assert (row["why"], row["amiss"]) == ("ImagePullBackOff: no such image", True)


def test_a_pool_whose_pods_are_refused_says_what_the_condition_of_its_revisions_says() -> None:
    one = deployment("one-00001", standby="2")
    problem = Lack("refused by the API server: pods is forbidden", False, False, True)

    def row(found: list[Obj], severity: str, **spec: str) -> tuple[str, bool]:
        condition = {"type": names.STANDBY_READY, "status": "False", "severity": severity}
        message = f"metadata.annotations[{names.SIZE}]: {problem.words}"
        pa = {
            "metadata": {"namespace": NAMESPACE, "name": "one-00001"},
            "spec": spec,
            "status": {"conditions": [{**condition, "message": message}]},
        }
        (pool,) = standby.pools_of(found, [one], [pa])
        return pool["why"], pool["amiss"]

    assert row([], "Warning") == (problem.why, True)
    assert row([pod_of(one, "a")], "Warning") == (problem.why, True)
    adopted = pod_of(one, "a")
    adopted["metadata"]["labels"]["serving.knative.dev/revision"] = "one-00001"
    assert row([adopted], "Info") == (problem.why, False)
    assert row([pod_of(one, "a"), pod_of(one, "b")], "Warning") == ("", False)
    assert row([pod_of(one, "a")], "Warning", reachability="Unreachable") == ("", False)


def test_a_pool_that_has_no_pods_and_wants_none_is_not_listed() -> None:
    """Each image that a service has ever had is one, as long as Knative keeps its revisions."""
    former = deployment("one-00001", standby="3")
    unreachable = {
        "metadata": {"namespace": NAMESPACE, "name": "one-00001"},
        "spec": {"reachability": "Unreachable"},
    }
    assert standby.pools_of([], [former], [unreachable]) == []
    assert [row["wanted"] for row in standby.pools_of([], [former], [])] == [3]
    (row,) = standby.pools_of([pod_of(former, "a")], [former], [unreachable])
    assert (row["wanted"], row["free"]) == (0, 1)


def test_what_fits_no_standby_pod_is_listed() -> None:
    (row,) = standby.unfit_of([deployment("one-00001", container={"command": ["/bin/x"]}), deployment()])
    assert row["revision"] == "default/one-00001"
    assert "/bin/x" in row["why"]


def test_agents_are_as_autoscalers_have_heard_them() -> None:
    heard = "galaxy_standby_node_heard_timestamp_seconds"
    metrics: Any = [
        (heard, {"node": "n1"}, 90.0),
        (heard, {"node": "n1"}, 95.0),  # another autoscaler
        ("galaxy_standby_node_slots", {"node": "n1", "state": "ready"}, 2.0),
        ("galaxy_standby_node_devices", {"node": "n1", "kind": "gpu"}, 8.0),
        ("galaxy_standby_node_devices", {"node": "n1", "kind": "free-gpu"}, 6.0),
        ("galaxy_standby_node_devices", {"node": "n1", "kind": "rdma"}, 1.0),
    ]
    agents = [{"metadata": {"name": f"agent-{n}"}, "spec": {"nodeName": n}} for n in ("n2", "n1")]
    one, two = standby.agents_of_nodes(agents, metrics, 100.0)
    assert (one["node"], one["heard_s"], one["slots"], one["gpus"], one["free_gpus"], one["rdma"]) == (
        *("n1", 5.0, {"ready": 2}),
        *(8, 6, 1),
    )
    assert (two["node"], two["heard_s"], two["gpus"]) == ("n2", None, None)
    shown = standby.picture({"pools": [], "unfit": [], "agents": [one, two], "errors": ["pods: forbidden"]})
    assert "5 s ago" in shown
    assert "never" in shown
    assert shown.endswith("not seen: pods: forbidden")


def hook(bundle: bytes) -> Obj:
    text = certificates.as_data({"x": bundle})["x"]
    return {"webhooks": [{"clientConfig": {"caBundle": text}}]}


def test_the_webhook_fails_where_nobody_answers_or_nobody_trusts_it() -> None:
    files = certificates.make(["w"], NOW, datetime.timedelta(days=90))
    secret = {"data": certificates.as_data(files)}
    ready = {
        "metadata": {"generation": 1},
        "spec": {"replicas": 2},
        "status": {
            "observedGeneration": 1,
            **dict.fromkeys(("updatedReplicas", "replicas", "availableReplicas", "readyReplicas"), 2),
        },
    }
    good = hook(files[certificates.AUTHORITIES])
    found = webhook.facts_of(ready, secret, {"A": good, "B": good}, NOW)
    assert found["failing"] == []
    assert "trusted" in webhook.picture(found)
    for deployed, kinds, now, why in (
        ({**ready, "status": {}}, {"A": good}, NOW, "no pod of it is ready"),
        (ready, {"A": hook(b"")}, NOW, "A has no CA"),
        (ready, {"A": hook(b"another")}, NOW, "A has another CA than the Secret"),
        (ready, {"A": None}, NOW, "there is no A galaxy-webhook"),
        (ready, {"A": "A can't be seen: forbidden"}, NOW, "can't be seen"),
        (ready, {"A": good}, NOW + datetime.timedelta(days=91), "its certificate has ended"),
        (None, {"A": good}, NOW, "there is no Deployment"),
    ):
        (said,) = webhook.facts_of(deployed, secret, kinds, now)["failing"]
        assert why in said
    assert webhook.picture(webhook.facts_of(None, None, {"A": None}, NOW)).startswith(
        "\nWebhook: not installed"
    )


def test_status_says_it_all(cluster: KnativeCluster) -> None:
    said = cluster("status").stdout
    assert "Standby pods: not installed" in said
    assert "Webhook: not installed" in said
    agent = {"metadata": {"namespace": PLACE, "name": "galaxy-node-agent"}, "spec": {}}
    cluster.server.put(DAEMON_SETS, agent)
    made = deployment(standby="2")
    cluster.server.put(DEPLOYMENTS, made)
    cluster.server.put(PODS, pod_of(made, "a"))
    said = cluster("status").stdout
    assert "Standby pools:" in said
    assert "runtimes.vllm_pd   S0" in said
    (pool,) = yaml.safe_load(cluster("status", "-o", "json").stdout)["standby"]["pools"]
    assert (pool["wanted"], pool["free"]) == (2, 1)


def test_explain_says_how_a_revision_was_woken(cluster: KnativeCluster) -> None:
    start = {
        **{"pod": "default/standby-x", "node": "n1", "level": "S1", "from": "S0", "at": 1767225600.0},
        **{
            "why": "--dtype: differs",
            "accepted_ms": 4,
            "steps_ms": [["a_step_of_before_the_answer_came", 1], ["weights_loaded", 310], ["ready", 340]],
        },
        **{"serving_ms": 362, "own_ms": 420},
    }
    condition = {
        "type": names.STANDBY_USED,
        "status": "True",
        "reason": "FellBack",
        "message": "pod x, level S0",
    }
    pa = {
        "metadata": {"namespace": "default", "name": "chat-00001", "annotations": {names.SIZE: "2"}},
        "status": {
            **{"desiredScale": 1, "actualScale": 1, "conditions": [condition]},
            "annotations": {names.STARTS: json.dumps([start])},
        },
    }
    cluster.server.put(POD_AUTOSCALERS, pa)
    event = {"reason": "StandbyFellBack", "type": "Warning", "message": "told", "count": 3}
    involved = {"involvedObject": {"name": "chat-00001"}}
    for name, reason in (("a", "StandbyFellBack"), ("b", "Pulled")):
        metadata = {"metadata": {"namespace": "default", "name": name}}
        cluster.server.put(EVENTS, {**metadata, **event, **involved, "reason": reason})
    service = {"metadata": {"namespace": "default", "name": "chat"}}
    cluster.server.put(KNATIVE_SERVICES, {**service, "status": {"latestReadyRevisionName": "chat-00001"}})
    for name in ("chat-00001", "chat"):
        said = cluster("explain", name).stdout
        assert "revision default/chat-00001: 1 pods ready, 1 wanted" in said
        assert "taken at 2026-01-01 00:00:00 UTC, level S0, not its own S1: --dtype: differs" in said
        assert "      310  weights loaded" in said
        assert "      420  it has the revision's labels" in said
        assert "StandbyFellBack" in said
        assert "Pulled" not in said
    assert yaml.safe_load(cluster("explain", "chat", "-o", "json").stdout)["starts"] == [start]
    assert [line[11:] for line in said.splitlines() if line[:9].strip().isdigit()] == [
        "a step of before the answer came",
        "its node's agent has accepted",
        "weights loaded",
        "its server is ready",
        "the autoscaler has heard that it serves",
        "it has the revision's labels",
    ]
    assert (
        "there is no revision, Knative Service or InferenceService nobody"
        in cluster("explain", "nobody").output
    )


@pytest.mark.parametrize(
    ("notes", "conditions", "why"),
    [
        ({}, [], "it wishes for none"),
        ({names.SIZE: "1"}, [], f"{names.SIZE} does nothing without {names.ENGINE}: galaxy"),
        (
            {names.SIZE: "1", names.ENGINE: "galaxy"},
            [],
            "as far as is known it has needed none yet",
        ),
        (
            {names.SIZE: "1", names.ENGINE: "galaxy"},
            [{"type": names.STANDBY_USED, "status": "False", "message": "its pool had no slot"}],
            "see the condition StandbyUsed for why",
        ),
    ],
)
def test_explain_of_a_revision_that_no_standby_pod_has_served(
    notes: Obj, conditions: list[Obj], why: str
) -> None:
    metadata = {"namespace": "default", "name": "chat-00001", "annotations": notes}
    for wanted in ({"desiredScale": -1}, {}):
        pa = {"metadata": metadata, "status": {**wanted, "conditions": conditions}}
        said = explain.lines(explain.facts_of(pa, []))
        assert said[0] == "revision default/chat-00001: 0 pods ready, how many are wanted isn't known yet"
        assert f"No standby pod has served it lately: {why}" in said
    pa = {"metadata": metadata, "status": {"desiredScale": 0}}
    assert explain.lines(explain.facts_of(pa, []))[0].endswith("0 pods ready, 0 wanted")


def test_explain_of_a_service_names_a_newer_revision_that_is_not_ready(cluster: KnativeCluster) -> None:
    """It is told of the one that serves; what is asked about may be why the other doesn't."""
    cluster.server.put(POD_AUTOSCALERS, {"metadata": {"namespace": "default", "name": "chat-00001"}})
    there = {"metadata": {"namespace": "default", "name": "chat"}}
    for made, told in (("chat-00002", True), ("chat-00001", False)):
        status = {"latestReadyRevisionName": "chat-00001", "latestCreatedRevisionName": made}
        cluster.server.put(KNATIVE_SERVICES, {**there, "status": status})
        said = cluster("explain", "chat").stdout
        assert "revision default/chat-00001:" in said
        assert ("galaxy explain chat-00002 -n default" in said) == told


def test_doctor_says_what_is_amiss_and_what_to_do() -> None:
    agent = {"node": "n1", "pod": "agent-1", "ready": "True", "why": "", "heard_s": 3.0}
    pool = {"namespace": "a", "pool": "p", "wanted": 2, "free": 2, "taken": 0, "why": "", "amiss": False}
    good: Obj = {
        "namespace": "knative-serving",
        "parts": [{"part": "autoscaler", "whose": "ours"}],
        "webhook": {"present": True, "pods": "2 of 2", "failing": []},
        "standby": {"agents": [agent], "pools": [pool], "unfit": [], "errors": []},
    }
    assert {found.level for found in checks.findings(good)} == {"ok"}

    def amiss(part: str, **fields: Any) -> tuple[str, str]:
        facts = {**good, part: {**good[part], **fields}}
        (found,) = [each for each in checks.findings(facts) if each.level != "ok"]
        return found.level, found.what

    assert amiss("webhook", failing=["no pod of it is ready: look"])[1] == "webhook: no pod of it is ready"
    assert amiss("standby", agents=[{**agent, "ready": "False", "why": "probe"}]) == (
        "failed",
        "agent of node n1 is not ready: probe",
    )
    for heard_s in (None, 100.0):
        assert "heard by no autoscaler" in amiss("standby", agents=[{**agent, "heard_s": heard_s}])[1]
    assert (
        "has 0 of 2 pods: no node"
        in amiss("standby", pools=[{**pool, "free": 0, "why": "no node", "amiss": True}])[1]
    )
    full = {**pool, "free": 0, "taken": 2, "why": "no node"}
    said = [
        found.what for found in checks.findings({**good, "standby": {**good["standby"], "pools": [full]}})
    ]
    assert said[-1] == "standby pool p in a: 0 free of 2, 2 in use: no node"
    assert "can have no" in amiss("standby", unfit=[{"revision": "a/b", "why": "x"}])[1]
    assert amiss("standby", errors=["pods: forbidden"])[1] == "not seen: pods: forbidden"


def test_doctor_of_a_cluster(cluster: KnativeCluster) -> None:
    said = cluster("doctor", "--context", "here").stdout
    assert "ours in knative-serving: nothing" in said
    assert "Python" not in said
