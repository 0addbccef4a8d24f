"""The objects process on an in-memory store: admission, revisions, routes, status, restart, the admin server."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import TestClient, TestServer

from autoscaler_shim.objects.admin import Admin
from autoscaler_shim.objects.book import Book, ObjectKey, Refused
from autoscaler_shim.objects.desk import Desk
from autoscaler_shim.objects.reconciler import Items, Reconciler
from kserve_ext.api.access import token
from kserve_ext.api.kserve.rollout import RETIRE_S
from kserve_ext.api.kserve.storage import Claims
from kserve_ext.core.facts import Revision
from tests.api.documents import isvc_document, runtime_document

Client = TestClient[Any, Any]
KEY = b"k" * 32
MODEL = "minReplicas: 0\nmodel: {modelFormat: {name: vLLM}, storageUri: 'pvc://models/tiny'%s}"
ZERO = {"autoscaling.knative.dev/initial-scale": "0"}
R1, R2 = "default/tiny-predictor-00001", "default/tiny-predictor-00002"
HOST = "routes/tiny.default.galaxy.local"


class Memory:
    """Storage in a dictionary; `batches` is every write as it came."""

    def __init__(self, data: dict[str, bytes] | None = None) -> None:
        self.data = data or {}
        self.batches: list[Items] = []

    async def write(self, items: Items) -> None:
        self.batches.append(items)
        for key, value in items:
            if value is None:
                self.data.pop(key, None)
            else:
                self.data[key] = value

    async def scan(self, prefix: str) -> list[tuple[str, bytes]]:
        return sorted((k, v) for k, v in self.data.items() if k.startswith(prefix))

    async def watch(self, prefix: str, changed: Callable[[str, bytes | None], None]) -> None:
        await asyncio.Event().wait()

    def keys(self, prefix: str) -> list[str]:
        return sorted(k.removeprefix(prefix) for k in self.data if k.startswith(prefix))


class Cluster:
    """A desk with a clock that the test moves."""

    def __init__(self, data: dict[str, bytes] | None = None) -> None:
        self.storage = Memory(data)
        self.now = 1000.0
        self.broken = ""
        self.missing: set[str] = set()
        self.too_large = ""
        claims = Claims("/pvc", {})
        reconciler = Reconciler(Book(), claims, "galaxy.local", "http://127.0.0.1:8080", self._check)
        reconciler.too_large = lambda revision: self.too_large
        self.desk = Desk(reconciler, self.storage, lambda: self.now, random.Random(1))

    def _check(self, path: str, ours: bool) -> str:
        return f"no such folder: {path}" if path in self.missing else self.broken

    async def apply(self, predictor: str, name: str = "tiny", notes: dict[str, str] | None = None) -> str:
        document = isvc_document(predictor, name, ZERO if notes is None else notes)
        return (await self.desk.apply(document)).verb

    async def settle(self) -> None:
        await self.desk.turn()

    async def look(self) -> None:
        self.desk._mark(sorted(self.desk.book.services))
        await self.settle()

    def say(self, revision: str, **status: Any) -> None:
        self.desk.status_changed(f"status/{revision}", json.dumps(status).encode())

    def status(self, name: str = "tiny") -> dict[str, Any]:
        found: dict[str, Any] = self.desk.book.documents[ObjectKey("InferenceService", "default", name)][
            "status"
        ]
        return found

    def condition(self, kind: str = "Ready", name: str = "tiny") -> tuple[str, str, str]:
        found = next(c for c in self.status(name)["conditions"] if c["type"] == kind)
        return found["status"], found.get("reason", ""), found.get("message", "")

    def route(self) -> str:
        ((revision, percent),) = msgspec.msgpack.decode(self.storage.data[HOST])
        assert percent == 100
        return str(revision)


def with_cluster(test: Callable[[Cluster], Awaitable[None]]) -> Callable[[], None]:
    async def body() -> None:
        cluster = Cluster()
        await cluster.desk.load()
        await test(cluster)

    def run() -> None:
        asyncio.run(body())

    return run


@with_cluster
async def test_apply_makes_a_revision_routes_and_status(cluster: Cluster) -> None:
    assert await cluster.apply(MODEL % "") == "created"
    revision = msgspec.msgpack.decode(cluster.storage.data[f"revisions/{R1}"], type=Revision)
    assert (revision.key, revision.model.path, revision.created_at) == (R1, "/pvc/models/tiny", 1000.0)
    assert cluster.route() == R1
    assert cluster.storage.keys("routes/") == [
        "tiny-predictor.default.galaxy.local",
        "tiny.default.galaxy.local",
    ]
    assert cluster.condition() == ("True", "", "")
    assert cluster.status()["clusterServingRuntimeName"] == "galaxy-vllm"
    assert cluster.status()["url"] == "http://tiny.default.galaxy.local"
    assert (
        json.loads(cluster.storage.data["objects/InferenceService/default/tiny"])["status"]
        == cluster.status()
    )


@with_cluster
async def test_apply_is_idempotent_and_the_generation_follows_the_spec(cluster: Cluster) -> None:
    key = ObjectKey("InferenceService", "default", "tiny")

    def meta() -> dict[str, Any]:
        found: dict[str, Any] = cluster.desk.book.documents[key]["metadata"]
        return found

    await cluster.apply(MODEL % "")
    first = dict(meta())
    assert await cluster.apply(MODEL % "") == "unchanged"
    assert meta() == first
    assert await cluster.apply(MODEL % "", notes={**ZERO, "example.com/a": "b"}) == "configured"
    assert meta()["generation"] == 1
    assert cluster.storage.keys("revisions/") == [R1], "an annotation that changes nothing makes no revision"
    assert await cluster.apply(MODEL % ", args: [--x]") == "configured"
    assert meta()["generation"] == 2
    assert meta()["uid"] == first["uid"]
    assert len(cluster.storage.keys("revisions/")) == 2


@with_cluster
async def test_the_old_revision_goes_when_the_new_one_is_ready(cluster: Cluster) -> None:
    await cluster.apply(MODEL % "")
    cluster.say(R1, desired=1, ready=1)
    await cluster.apply(MODEL % ", args: [--x]")
    assert cluster.route() == R1
    assert cluster.condition("LatestDeploymentReady")[:2] == ("Unknown", "RollingOut")
    cluster.say(R2, desired=1, ready=1)
    await cluster.settle()
    assert cluster.route() == R2
    assert cluster.storage.keys("revisions/") == [R1, R2]
    cluster.now += RETIRE_S
    await cluster.settle()
    assert cluster.storage.keys("revisions/") == [R2]


@with_cluster
async def test_a_failed_start_is_a_condition_and_a_last_failure(cluster: Cluster) -> None:
    await cluster.apply(MODEL % "")
    cluster.say(R1, desired=1, failed=1, reason="bad flag: --x", permanent=True)
    await cluster.settle()
    assert cluster.condition() == ("False", "ModelLoadFailed", "bad flag: --x")
    assert cluster.status()["modelStatus"]["lastFailureInfo"]["message"] == "bad flag: --x"


@with_cluster
async def test_a_missing_model_is_said_and_heals(cluster: Cluster) -> None:
    cluster.missing = {"/pvc/models/tiny"}
    await cluster.apply(MODEL % "")
    status, reason, message = cluster.condition()
    assert (status, reason) == ("False", "InvalidPredictorSpec")
    assert "spec.predictor.model.storageUri: no such folder" in message
    assert cluster.storage.keys("revisions/") == []
    cluster.missing = set()
    await cluster.look()
    assert cluster.storage.keys("revisions/") == [R1]
    assert cluster.condition()[0] == "True"


@with_cluster
async def test_a_claim_that_nobody_mapped_is_not_a_missing_folder(cluster: Cluster) -> None:
    cluster.missing = {"/pvc/models", "/pvc/models/tiny"}
    await cluster.apply(MODEL % "")
    assert "claim models is not mapped to a folder" in cluster.condition()[2]
    cluster.missing = {"/pvc/models/tiny"}
    await cluster.look()
    assert "no such folder: /pvc/models/tiny" in cluster.condition()[2]
    cluster.missing = {"/data/tiny"}
    cluster.desk.reconciler.claims = Claims("/pvc", {"models": "/data"})
    await cluster.look()
    assert "no such folder: /data/tiny" in cluster.condition()[2]


@with_cluster
async def test_an_unknown_format_heals_when_its_runtime_comes(cluster: Cluster) -> None:
    await cluster.apply("minReplicas: 0\nmodel: {modelFormat: {name: echo}, storageUri: 'pvc://a'}")
    assert cluster.condition()[:2] == ("False", "NoSupportingRuntime")
    formats = "supportedModelFormats: [{name: echo, autoSelect: true}]\n"
    runtime = formats + "containers: [{name: kserve-container, command: [e]}]"
    await cluster.desk.apply(runtime_document(runtime, "echo", "default"))
    await cluster.settle()
    assert cluster.condition()[0] == "True"
    assert cluster.status()["servingRuntimeName"] == "echo"


@with_cluster
async def test_a_group_says_what_it_lacks(cluster: Cluster) -> None:
    notes = {**ZERO, "kserve-galaxy.io/pd-group": "chat"}
    await cluster.apply(MODEL % "", "tiny", {**notes, "kserve-galaxy.io/role": "decode"})
    assert cluster.condition()[1] == "GroupIncomplete"
    assert "has no prefill service" in cluster.condition()[2]
    await cluster.apply(MODEL % "", "half", {**notes, "kserve-galaxy.io/role": "prefill"})
    await cluster.settle()
    assert cluster.condition()[0] == "True"
    assert cluster.condition("IngressReady", "half")[1] == "InGroup"
    assert "url" not in cluster.status("half")


@with_cluster
async def test_both_services_of_a_group_say_whether_kv_reaches_decode(cluster: Cluster) -> None:
    notes = {**ZERO, "kserve-galaxy.io/pd-group": "chat"}
    said: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    cluster.desk.reconciler.channels = lambda revision: said.get(revision, [])
    await cluster.apply(MODEL % "", "tiny", {**notes, "kserve-galaxy.io/role": "decode"})
    assert "KVTransferReady" not in {c["type"] for c in cluster.status()["conditions"]}, "it is half a group"
    await cluster.apply(MODEL % "", "half", {**notes, "kserve-galaxy.io/role": "prefill"})
    await cluster.settle()
    for name in ("tiny", "half"):
        assert cluster.condition("KVTransferReady", name)[:2] == ("Unknown", "NoInstance")
    pair = {"peer": "p-1", "state": "up", "rungs": [{"rung": "shm"}]}
    said[R1] = [("d-1", {"pairs": [pair]})]
    await cluster.look()
    for name in ("tiny", "half"):
        assert cluster.condition("KVTransferReady", name) == ("True", "Shm", "d-1 – p-1: shm")
    detail = "dtype: 'a' at prefill, 'b' at decode; set --dtype equal"
    pair = {"peer": "p-1", "state": "down", "reason": "incompatible", "detail": detail}
    said[R1] = [("d-1", {"pairs": [pair], "required": True})]
    await cluster.look()
    assert cluster.condition("KVTransferReady") == ("False", "Incompatible", f"d-1 – p-1: {detail}")
    assert cluster.condition()[0] == "True", "requests are answered, or refused with the reason"
    await cluster.apply(MODEL % "", "other")
    assert "KVTransferReady" not in {c["type"] for c in cluster.status("other")["conditions"]}


@with_cluster
async def test_a_service_that_no_node_can_run_says_so_at_once_and_heals_with_a_larger_node(
    cluster: Cluster,
) -> None:
    cluster.too_large = "no node is large enough (node-0: cpu: needs 64000m, 2000m there)"
    await cluster.apply(MODEL % "")
    assert cluster.condition()[:2] == ("False", "Unschedulable")
    assert "needs 64000m" in cluster.condition()[2]
    cluster.too_large = ""
    cluster.desk.look_at_all()
    await cluster.settle()
    assert cluster.condition()[0] == "True"


@with_cluster
async def test_delete_drains_everything_and_numbers_go_on(cluster: Cluster) -> None:
    key = ObjectKey("InferenceService", "default", "tiny")
    await cluster.apply(MODEL % "")
    assert await cluster.desk.delete(key) is not None
    assert cluster.storage.keys("revisions/") == cluster.storage.keys("routes/") == []
    assert cluster.storage.keys("objects/InferenceService/") == []
    assert await cluster.desk.delete(key) is None
    await cluster.apply(MODEL % "")
    assert cluster.storage.keys("revisions/") == [R2]


@with_cluster
async def test_stop_annotation(cluster: Cluster) -> None:
    stop = {**ZERO, "serving.kserve.io/stop": "true"}
    await cluster.apply(MODEL % "")
    await cluster.apply(MODEL % "", notes=stop)
    assert cluster.storage.keys("revisions/") == []
    assert msgspec.msgpack.decode(cluster.storage.data[HOST]) is None, "its host says that it is stopped"
    assert cluster.condition("Stopped")[0] == "True"
    await cluster.apply(MODEL % "")
    assert cluster.route() == R2
    await cluster.apply(MODEL % "", notes=stop)
    cluster.broken = "no such folder"
    await cluster.apply(MODEL % "")
    assert msgspec.msgpack.decode(cluster.storage.data[HOST]) == [], (
        "no longer stopped, yet nothing can serve"
    )


@with_cluster
async def test_a_service_that_is_stopped_from_the_start(cluster: Cluster) -> None:
    await cluster.apply(MODEL % "", notes={**ZERO, "serving.kserve.io/stop": "true"})
    assert msgspec.msgpack.decode(cluster.storage.data[HOST]) is None
    await cluster.apply(MODEL % "")
    assert cluster.route() == R1


@with_cluster
async def test_a_restart_finds_everything_and_writes_nothing(cluster: Cluster) -> None:
    await cluster.apply(MODEL % "")
    cluster.storage.data["status/" + R1] = json.dumps({"desired": 1, "ready": 1}).encode()
    cluster.say(R1, desired=1, ready=1)
    await cluster.settle()
    before = dict(cluster.storage.data)
    again = Cluster(dict(before))
    await again.desk.load()
    await again.settle()
    assert again.storage.data == before
    assert again.storage.batches == []


@with_cluster
async def test_a_restart_removes_revisions_of_nobody(cluster: Cluster) -> None:
    cluster.storage.data["revisions/default/ghost-predictor-00001"] = b"x"
    again = Cluster(dict(cluster.storage.data))
    await again.desk.load()
    assert again.storage.keys("revisions/") == []


@with_cluster
async def test_two_runtimes_that_cannot_be_told_apart(cluster: Cluster) -> None:
    spec = (
        "protocolVersions: [v1]\nsupportedModelFormats: [{name: a, version: '1', autoSelect: true, priority: 1}]\n"
        "containers: [{name: kserve-container}]"
    )
    await cluster.desk.apply(runtime_document(spec, "one"))
    with pytest.raises(Refused, match="auto-selects a:1 with priority 1, too"):
        await cluster.desk.apply(runtime_document(spec, "two"))
    await cluster.desk.apply(runtime_document(spec, "one"))


# --- over HTTP


def with_http(test: Callable[[Cluster, Client], Awaitable[None]]) -> Callable[[], None]:
    @with_cluster
    async def run(cluster: Cluster) -> None:
        admin = Admin(cluster.desk, KEY)
        headers = {"Authorization": f"Bearer {token(KEY)}"}
        async with TestClient(TestServer(admin.app), headers=headers) as client:
            await test(cluster, client)

    return run


BASE = "/apis/serving.kserve.io/v1beta1/namespaces/default/inferenceservices"


@with_http
async def test_a_warning_that_names_what_no_header_can_have_is_told_all_the_same(
    cluster: Cluster, http: Client
) -> None:
    document = isvc_document(MODEL % "", notes=ZERO)
    document["spec"]["predictor"]["model"]["resources"] = {"limits": {"hugepages-\r\n2Mi": "1Mi"}}
    created = await http.patch(f"{BASE}/tiny", json=document)
    assert created.status == 201
    assert r"[hugepages-\r\n2Mi]: has no effect" in created.headers["Warning"]


@with_http
async def test_rest_of_an_object(cluster: Cluster, http: Client) -> None:
    document = isvc_document(MODEL % ", env: [{name: A, valueFrom: {}}]", notes=ZERO)
    created = await http.patch(f"{BASE}/tiny", json=document)
    assert created.status == 201
    assert created.headers["X-Galaxy-Verb"] == "created"
    assert "env[0].valueFrom: has no effect" in created.headers["Warning"]
    assert (await http.post(BASE, json=document)).status == 409
    listed = await (await http.get("/apis/serving.kserve.io/v1beta1/inferenceservices")).json()
    assert listed["kind"] == "InferenceServiceList"
    assert [i["metadata"]["name"] for i in listed["items"]] == ["tiny"]
    got = await (await http.get(f"{BASE}/tiny")).json()
    assert got["status"]["conditions"]
    assert (await http.put(f"{BASE}/tiny", json=got)).headers["X-Galaxy-Verb"] == "unchanged"
    assert (await http.delete(f"{BASE}/tiny")).status == 200
    gone = await http.get(f"{BASE}/tiny")
    assert gone.status == 404
    assert "there is none of this kind" in (await gone.json())["message"]


@with_http
async def test_every_problem_is_a_cause(cluster: Cluster, http: Client) -> None:
    answer = await http.patch(f"{BASE}/tiny", json=isvc_document("model: {modelFormat: {}, storageURI: x}"))
    assert answer.status == 422
    causes = (await answer.json())["details"]["causes"]
    assert {c["field"] for c in causes} == {
        "spec.predictor.model.storageURI",
        "spec.predictor.model.modelFormat.name",
    }


@with_http
async def test_bodies_that_are_no_objects(cluster: Cluster, http: Client) -> None:
    for body, status in ((b"{", 400), (b"[]", 400), (b"{}", 404)):
        assert (await http.patch(f"{BASE}/tiny", data=body)).status == status


@with_http
async def test_a_key_that_is_there_twice_is_refused(cluster: Cluster, http: Client) -> None:
    document = json.dumps(isvc_document(MODEL % "", notes=ZERO))
    twice = document.replace('"minReplicas": 0', '"minReplicas": 0, "minReplicas": 3')
    answer = await http.patch(f"{BASE}/tiny", data=twice)
    assert answer.status == 400
    assert "minReplicas: is set twice" in await answer.text()
    assert cluster.storage.keys("objects/InferenceService/") == []
    assert (await http.patch(f"{BASE}/tiny", data=document)).status == 201


@with_http
async def test_nothing_without_the_token(cluster: Cluster, http: Client) -> None:
    assert (await http.get(BASE, headers={"Authorization": "Bearer x"})).status == 401
    assert (await http.get("/healthz", headers={"Authorization": ""})).status == 200


@with_http
async def test_watch(cluster: Cluster, http: Client) -> None:
    async with http.get(f"{BASE}?watch=true") as stream:
        await cluster.apply(MODEL % "")
        event = json.loads(await stream.content.readline())
        assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", "tiny")
