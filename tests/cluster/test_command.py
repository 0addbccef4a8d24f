"""The command against a cluster of real processes: up, what it shows, what it refuses, and down in every state."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.support.embedded import Embedded, echo_runtime, echo_service
from tests.support.processes import lives

pytestmark = pytest.mark.cluster


def processes(cluster: Embedded) -> dict[str, int]:
    """Every part by id, and the supervisor."""
    found = {path.stem: cluster.pid(path.stem) for path in (cluster.data / "run").glob("*.json")}
    found["supervisor"] = json.loads((cluster.data / "cluster.json").read_text())["supervisor"]["pid"]
    return found


def running(pids: list[int]) -> list[int]:
    return [pid for pid in pids if lives(pid)]


def test_up_shows_everything_refuses_a_second_one_and_down_leaves_nothing(tmp_path: Path) -> None:
    with Embedded(tmp_path / "data", "--dispatch", "2", "--schedule", "2", "--nodes", "2") as cluster:
        pids = processes(cluster)
        assert len(pids) == 10
        status = cluster.status()
        assert {m["id"] for m in status["members"]} == set(pids) - {"supervisor", "controller-0"}
        assert [n["node"] for n in status["nodes"]] == ["node-0", "node-1"]
        owned = [n["node"] for f in status["functions"] if f["kind"] == "schedule" for n in f["nodes"]]
        assert sorted(owned) == ["node-0", "node-1"]
        assert "a cluster runs in this data folder" in cluster.galaxy("up", code=1)
        assert "node-0" in cluster.galaxy("top", "--once")
        assert "started 9 parts" in cluster.galaxy("logs", "supervisor")
        cluster.galaxy("doctor", "-o", "json")
    assert running(list(pids.values())) == []
    assert "nothing ran" in cluster.galaxy("down")


def test_down_cleans_up_after_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    with Embedded(tmp_path / "data") as cluster:
        pids = processes(cluster)
        os.kill(pids["supervisor"], signal.SIGKILL)
        cluster.wait("supervisor gone", lambda: not running([pids["supervisor"]]))
        cluster.galaxy("get", "isvc")
        cluster.galaxy("down")
        assert running(list(pids.values())) == []


def test_up_takes_over_what_a_killed_supervisor_left(tmp_path: Path) -> None:
    with Embedded(tmp_path / "data") as cluster:
        before = processes(cluster)
        os.kill(before["supervisor"], signal.SIGKILL)
        cluster.wait("supervisor gone", lambda: not running([before["supervisor"]]))
        assert cluster.json("status")["nodes"]
        assert f"took over {len(before) - 1} parts" in cluster.galaxy("up")
        after = processes(cluster)
        assert after.pop("supervisor") != before.pop("supervisor")
        assert after == before
        cluster.back("node-0", cluster.kill("node-0"))
        pids = [*before.values(), *processes(cluster).values()]
    assert running(pids) == []


def test_objects_outlive_the_cluster(tmp_path: Path) -> None:
    (tmp_path / "claim" / "m").mkdir(parents=True)
    data = tmp_path / "data"
    pvc = ("--pvc", f"models={tmp_path / 'claim'}")
    with Embedded(data, *pvc) as cluster:
        cluster.apply(echo_runtime())
        cluster.apply(echo_service("tiny", "pvc://models/m"))
        before = cluster.json("get", "isvc", "tiny")
    with Embedded(data, *pvc) as cluster:
        after = cluster.json("get", "isvc", "tiny")
        assert after["metadata"]["uid"] == before["metadata"]["uid"]
        assert after["status"]["conditions"] == before["status"]["conditions"]
        assert cluster.apply(echo_service("tiny", "pvc://models/m")).endswith("tiny unchanged\n")


def test_an_apply_right_after_kills_is_durable(tmp_path: Path) -> None:
    with Embedded(tmp_path / "data") as cluster:
        for part in ("controller-0", "objects-0"):
            cluster.kill(part)
            cluster.wait("apply", lambda: cluster.apply(echo_runtime("echo", "--after")))
        cluster.kill("controller-0")
        found = cluster.json("get", "sr", "echo")
        assert found["spec"]["containers"][0]["args"][-1] == "--after"


BAD = [
    ("kind: InferenceServis\nmetadata: {name: x}\n", "did you mean InferenceService?"),
    (echo_service("x", "pvc://m").replace("storageUri", "storageURI"), "did you mean storageUri?"),
    (
        echo_service("x", "pvc://m", annotations={"kserve-galaxy.io/rol": "decode"}),
        "did you mean kserve-galaxy.io/role?",
    ),
    (echo_service("x", "pvc://m", annotations={"kserve-galaxy.io/role": "both"}), "unified, prefill, decode"),
    (echo_service("x", "pvc://m", fmt="ecko"), "no runtime serves model format ecko"),
    (
        echo_service("x", "pvc://m").replace("model:", "model:\n      runtime: nope"),
        "no runtime is named nope",
    ),
    (echo_service("x", "s3://bucket/m"), "use pvc://CLAIM/path"),
    (echo_service("x", "pvc://nope/none"), "--pvc nope=FOLDER"),
    (echo_service("x", "pvc://models/none"), "no such folder"),
]


def test_bad_input_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "claim").mkdir()
    with Embedded(tmp_path / "data", "--pvc", f"models={tmp_path / 'claim'}") as cluster:
        cluster.apply(echo_runtime())
        for manifest, words in BAD:
            said = cluster.apply(manifest, code=1)
            assert words in said, said
            assert "\n  do: " in said
        state = cluster.json("get", "isvc", "x")["status"]
        assert state["modelStatus"]["transitionStatus"] == "InvalidSpec"
        assert "no such folder" in next(c["message"] for c in state["conditions"] if c["type"] == "Ready")
