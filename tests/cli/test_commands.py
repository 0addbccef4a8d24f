"""The verbs against a real admin server on an in-memory store, as a person runs them: output and exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from click.testing import CliRunner, Result

from autoscaler_shim.objects.admin import Admin, failure
from kserve_ext.cli.__main__ import VERBS, main
from kserve_ext.cli.embedded.folder import Folder
from kserve_ext.cli.verbs import doctor, status
from kserve_ext.rpc.process import start_ticks
from tests.api.documents import isvc_document
from tests.shell.test_objects import KEY, MODEL, R1, ZERO, Cluster

STATUS: dict[str, Any] = {
    "epoch": 7,
    "members": [{"id": "dispatch-0", "kind": "dispatch"}],
    "controller": {
        "scaled": {
            "schedule": {
                "running": 2,
                "wanted": 3,
                "starting": 1,
                "draining": 0,
                "min": 2,
                "max": 8,
                "threshold": 900.0,
                "srps": 1234.5,
                "short": "",
                "decision": {"at": 0.0, "wanted": 3, "reason": "2 -> 3: schedule-1 applied"},
            }
        }
    },
    "functions": [
        {"id": "dispatch-0", "kind": "dispatch", "held": 2, "in_flight": 1},
        {
            "id": "schedule-0",
            "kind": "schedule",
            "waiting": [
                {
                    "waiter": "team/vip-00001",
                    "instances": 3,
                    "priority": 1000,
                    "waited_s": 12.3,
                    "share": 0.25,
                    "kept_on": ["node-0"],
                    "preempting": True,
                }
            ],
        },
    ],
    "nodes": [
        {
            "node": "node-0",
            "slots": {"runtimes.vllm_pd": 1},
            "free": {"cpu_milli": 500, "memory_mib": 2048, "gpus": 0},
            "capacity": {"cpu_milli": 4000, "memory_mib": 4096, "gpus": 0},
            "instances": 1,
            "labels": {"kubernetes.io/hostname": "node-0", "zone": "a"},
        }
    ],
    "instances": [
        {
            "id": "i1",
            "node": "node-0",
            "revision": R1,
            "state": "ready",
            "addr": "h:1",
            "pid": 5,
            "kv": {
                "pairs": [
                    {
                        "peer": "p1",
                        "state": "up",
                        "since": 1.0,
                        "transfers": 7,
                        "bytes": 3 << 20,
                        "rungs": [{"rung": "tcp"}],
                        "passed": ["rdma: no RDMA device here"],
                    },
                    {
                        "peer": "p2",
                        "state": "down",
                        "since": 1.0,
                        "reason": "unreachable",
                        "detail": "refused",
                    },
                ]
            },
        }
    ],
    "revisions": [
        {
            "revision": R1,
            "service": "default/tiny",
            "traffic": 100,
            "home": "dispatch-0",
            "desired": 1,
            "ready": 1,
            "starting": 0,
            "held": 2,
            "reason": "",
        }
    ],
    "held": 2,
}


class Running:
    """A data folder whose cluster is this process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = Folder(root)
        self.loop = asyncio.new_event_loop()
        self.cluster = Cluster()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._serve(), self.loop).result(10)
        self.folder.key.write_bytes(KEY)
        me = {"pid": os.getpid(), "started": start_ticks(os.getpid())}
        self.folder.write_cluster(
            {"objects": f"127.0.0.1:{port}", "supervisor": me, "counts": {}, "node": {}}
        )

    async def _serve(self) -> int:
        await self.cluster.desk.load()
        admin = Admin(self.cluster.desk, KEY)

        async def status(request: web.Request) -> web.Response:
            return web.json_response(STATUS)

        async def explain(request: web.Request) -> web.Response:
            return failure(404, "NotFound", "no Dispatch function remembers this request")

        admin.extra("/api/status", status)
        admin.extra("/api/explain/{id}", explain)
        self.runner = web.AppRunner(admin.app)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        port: int = self.runner.addresses[0][1]
        return port

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()

    def __call__(self, *args: str, stdin: str | None = None) -> Result:
        verb, *rest = args
        return CliRunner().invoke(main, [verb, "--data", str(self.root), *rest], input=stdin)

    def apply(self, predictor: str, name: str = "tiny", notes: dict[str, str] | None = None) -> Result:
        document = isvc_document(predictor, name, ZERO if notes is None else notes)
        return self("apply", "-f", "-", stdin=yaml.safe_dump(document))


@pytest.fixture
def galaxy(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    running.close()


def test_apply_get_delete(galaxy: Running) -> None:
    assert galaxy.apply(MODEL % "").output == "inferenceservice.serving.kserve.io/tiny created\n"
    assert galaxy.apply(MODEL % "").output.endswith("tiny unchanged\n")
    assert galaxy.apply(MODEL % ", args: [--x]").output.endswith("tiny configured\n")
    listed = galaxy("get", "isvc")
    assert listed.exit_code == 0
    header, row = listed.output.splitlines()
    assert header.split() == ["NAME", "URL", "READY", "LATESTREADYREVISION", "AGE"]
    assert row.split()[:4] == ["tiny", "http://tiny.default.galaxy.local", "True", "tiny-predictor-00002"]
    assert json.loads(galaxy("get", "isvc", "tiny", "-o", "json").output)["metadata"]["generation"] == 2
    assert yaml.safe_load(galaxy("get", "isvc", "-o", "yaml").output)["kind"] == "List"
    assert galaxy("get", "isvc", "-o", "name").output == "inferenceservice.serving.kserve.io/tiny\n"
    assert "galaxy-vllm" in galaxy("get", "isvc", "-A", "-o", "wide").output
    assert "vLLM,huggingface" in galaxy("get", "clusterservingruntimes").output
    assert galaxy("delete", "isvc", "tiny").output == "inferenceservice.serving.kserve.io/tiny deleted\n"
    again = galaxy("delete", "isvc", "tiny")
    assert (again.exit_code, "not found in namespace default" in again.output) == (1, True)
    assert galaxy("delete", "isvc", "tiny", "--ignore-not-found").exit_code == 0


def test_get_takes_several_names(galaxy: Running) -> None:
    for name in ("a", "b", "c"):
        galaxy.apply(MODEL % "", name)
    rows = galaxy("get", "isvc", "c", "a").output.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["c", "a"]
    listed = json.loads(galaxy("get", "isvc", "a", "b", "-o", "json").output)
    assert [item["metadata"]["name"] for item in listed["items"]] == ["a", "b"]
    some = galaxy("get", "isvc", "a", "none", "-o", "name")
    assert some.exit_code == 1
    assert some.output.startswith("inferenceservice.serving.kserve.io/a\n")
    assert "none not found" in some.output


def test_apply_of_a_change_names_the_revision_that_rolls_out(galaxy: Running) -> None:
    galaxy.apply(MODEL % "", notes={})
    changed = galaxy.apply(MODEL % ", args: [--x]", notes={})
    assert changed.output.endswith("tiny configured, rolling out tiny-predictor-00002\n")


def test_a_file_is_named_once(galaxy: Running, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("kind: InferenceServce\nmetadata: {name: x}")
    for verb in ("apply", "delete"):
        said = galaxy(verb, "-f", str(file)).output
        assert f"error: {file}: unknown kind InferenceServce" in said
        assert said.count(str(file)) == 1


def test_every_problem_of_every_object_is_said_and_good_ones_are_applied(galaxy: Running) -> None:
    bad = isvc_document("model: {modelFormat: {name: x}, storageURI: a}\nminReplica: 1", "bad")
    good = isvc_document(MODEL % "", "good", ZERO)
    result = galaxy("apply", "-f", "-", stdin=yaml.safe_dump_all([bad, good]))
    assert result.exit_code == 1
    assert "good created" in result.output
    assert "error: (stdin), document 1: refused because of 2 problems" in result.output
    assert "  why: spec.predictor.model.storageURI: unknown field" in result.output
    assert "  do: spec.predictor.minReplica: did you mean minReplicas?" in result.output


def test_a_service_that_cannot_work_is_said_at_once(galaxy: Running) -> None:
    result = galaxy.apply("model: {modelFormat: {name: vlm}, storageUri: 'pvc://a'}")
    assert result.exit_code == 1
    assert "tiny was accepted, but can't work" in result.output
    assert "did you mean vLLM?" in result.output


def test_wait_is_bounded(galaxy: Running) -> None:
    document = isvc_document("minReplicas: 1\n" + (MODEL % "").partition("\n")[2])
    result = galaxy("apply", "-f", "-", "--wait", "0.3", stdin=yaml.safe_dump(document))
    assert result.exit_code == 1
    assert "tiny is not ready after 0.3 s" in result.output


def test_wait_ends_when_the_newest_revision_can_never_start(galaxy: Running) -> None:
    galaxy.apply(MODEL % "")
    document = isvc_document(MODEL % ", args: [--bad]", notes={})
    galaxy("apply", "-f", "-", stdin=yaml.safe_dump(document))

    async def fail() -> None:
        galaxy.cluster.say(
            "default/tiny-predictor-00002", desired=1, failed=1, reason="bad flag", permanent=True
        )
        await galaxy.cluster.settle()

    asyncio.run_coroutine_threadsafe(fail(), galaxy.loop).result(10)
    result = galaxy("apply", "-f", "-", "--wait", "30", stdin=yaml.safe_dump(document))
    assert result.exit_code == 1
    assert "error: tiny can't start\n  why: bad flag" in result.output


def test_warnings(galaxy: Running) -> None:
    result = galaxy.apply(f"{MODEL % ''}\ntolerations: [{{key: b}}]")
    assert result.exit_code == 0
    assert "warning: inferenceservice/tiny: spec.predictor.tolerations: has no effect" in result.output


def test_describe_and_status(galaxy: Running) -> None:
    galaxy.apply(MODEL % "")
    described = galaxy("describe", "isvc", "tiny").output
    for part in ("Runtime:     galaxy-vllm", "storageUri: pvc://models/tiny", "AtZero", R1, "i1"):
        assert part in described
    rows = {line.split()[1]: line for line in described.splitlines() if line.split()[:1] == ["i1"]}
    assert "tcp [not rdma: no RDMA device here]" in rows["p1"]
    assert rows["p1"].split()[2:6:2] == ["up", "7"]
    assert rows["p2"].endswith("unreachable: refused")
    status = galaxy("status").output
    for part in ("epoch 7", "2 held requests", "500m/4", "2Gi/4Gi", "runtimes.vllm_pd:1", "ready"):
        assert part in status
    for part in ("2:8", "1,234/s of 900/s each", "2 -> 3: schedule-1 applied"):
        assert part in status
    (waits,) = (line for line in status.splitlines() if "team/vip-00001" in line)
    assert " ".join(waits.split()) == "schedule-0 team/vip-00001 3 1000 12 s 25 % node-0 (preempting)"
    assert "zone=a" in status
    assert "hostname" not in status
    assert json.loads(galaxy("status", "-o", "json").output) == STATUS


@pytest.mark.parametrize(
    "said",
    [{"standby": "no controller leads yet"}, {"error": "no controller leads yet"}],
    ids=["standby", "gone"],
)
def test_status_and_doctor_say_that_no_controller_leads(said: dict[str, str]) -> None:
    facts = {**STATUS, "controller": said}
    assert "Control plane: no controller leads yet; galaxy doctor" in status.picture(facts)
    (found,) = doctor._controller(facts, set())
    assert found.level == "failed"
    assert "no controller leads yet" in found.what
    assert not list(doctor._controller(STATUS, set()))


def test_what_is_watched_is_printed_once_where_nobody_watches(galaxy: Running) -> None:
    watched = galaxy("status", "--watch")
    assert (watched.exit_code, watched.output) == (0, galaxy("status").output)
    top = galaxy("top")
    assert top.exit_code == 0
    assert top.output.startswith("NAME")
    assert f" {os.getpid()} " in top.output


def test_unknown_things_name_the_nearest(galaxy: Running) -> None:
    assert "did you mean InferenceService?" in galaxy("get", "inferenceservices2").output
    assert "did you mean apply?" in galaxy("aply").output
    assert galaxy("aply").exit_code == 2
    assert "there are galaxy-vllm" in galaxy("get", "csr", "nope").output


def test_a_request_that_nobody_remembers(galaxy: Running) -> None:
    result = galaxy("explain", "abc/def")
    assert result.exit_code == 1
    assert "error: no Dispatch function remembers this request" in result.output


def test_usage_errors_have_exit_code_2(galaxy: Running) -> None:
    for args in (
        ("apply",),
        ("get",),
        ("delete",),
        ("delete", "isvc"),
        ("get", "isvc", "x", "-A"),
        ("get", "isvc", "-o", "xml"),
    ):
        assert galaxy(*args).exit_code == 2, args


def test_nothing_runs(tmp_path: Path) -> None:
    for verb in (("get", "isvc"), ("status",), ("apply", "-f", "-"), ("explain", "x"), ("top", "--once")):
        given = yaml.safe_dump(isvc_document(MODEL % ""))
        result = CliRunner().invoke(main, [verb[0], "--data", str(tmp_path), *verb[1:]], input=given)
        assert result.exit_code == 1, verb
        assert "error: there is no cluster here" in result.output
        assert f"do: start one: galaxy up --data {tmp_path}" in result.output
    assert CliRunner().invoke(main, ["down", "--data", str(tmp_path)]).exit_code == 0


def test_the_server_is_away(galaxy: Running) -> None:
    cluster = galaxy.folder.cluster()
    galaxy.folder.write_cluster({**cluster, "objects": "127.0.0.1:1"})
    result = galaxy("get", "isvc")
    assert result.exit_code == 1
    assert "the objects process (127.0.0.1:1) does not answer" in result.output


def test_up_refuses_what_cannot_work(galaxy: Running, tmp_path: Path) -> None:
    running = galaxy("up")
    assert (running.exit_code, "a cluster runs in this data folder" in running.output) == (1, True)
    taken = str(galaxy.folder.cluster()["objects"]).rpartition(":")[2]
    other = CliRunner().invoke(main, ["up", "--data", str(tmp_path / "other"), "--http-port", taken])
    assert other.exit_code == 1
    assert f"error: port {taken} is not free" in other.output
    assert not (tmp_path / "other" / "cluster.json").exists()
    for args in (("--pvc", "x"), ("--pvc", "x=/no/such"), ("--node-cpu", "lots"), ("--nodes", "0")):
        result = CliRunner().invoke(main, ["up", "--data", str(tmp_path / "other"), *args])
        assert result.exit_code == 2, args


def test_usage_names_the_command() -> None:
    argv = [sys.executable, "-m", "kserve_ext.cli", "get", "-h"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("Usage: galaxy get ")


def test_every_verb_has_help() -> None:
    for verb in VERBS:
        result = CliRunner().invoke(main, [verb, *(("bench",) if verb == "kv" else ()), "-h"])
        assert result.exit_code == 0, verb
        told = {"install": "--context", "uninstall": "--context", "simulate": "--trace"}
        assert told.get(verb, "--data") in result.output
