"""What the objects process gathers from the cluster: status, the marks of a request, nodes that are too small."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from autoscaler_shim.objects.overview import Overview
from kserve_ext.core.facts import Command, Member, Model, Resources, Revision, Scale, View
from kserve_ext.core.ids import FunctionID, RevisionKey
from kserve_ext.rpc.errors import RpcError
from kserve_ext.rpc.membership import Membership
from kserve_ext.rpc.rpc import Rpc
from kserve_ext.wire.frames import ErrorCode
from kserve_ext.wire.messages import Describe, Description
from tests.shell.test_objects import MODEL, R1, Cluster

KINDS = {"dispatch-0": "dispatch", "dispatch-1": "dispatch", "schedule-0": "schedule", "node-0": "node"}
INSTANCE = {
    "id": "i1",
    "revision": R1,
    "state": "ready",
    "addr": "",
    "marks": [["decided", 1.0, ""], ["ready", 2.0, ""]],
}
NODE = {"capacity": {"cpu_milli": 2000, "memory_mib": 4096}, "slots": {"r": 1}, "instances": [INSTANCE]}
SHARDS: dict[str, Any] = {
    "dispatch-0": {"held": 1, "revisions": [{"revision": R1, "home": True, "held": 1}]},
    "dispatch-1": {"held": 2, "revisions": [{"revision": R1, "home": False, "held": 2}]},
}
REQUEST = {"id": "r", "revision": R1, "instance": "i1", "cold": True, "marks": [["arrived", 0.5, ""]]}


class Answers:
    """In place of Rpc: what each member says, None = it is away."""

    def __init__(self, said: dict[tuple[str, str], Any]) -> None:
        self.said = said

    async def call(self, addr: str, message: Describe, timeout_s: float) -> Description:
        body = self.said.get((addr, message.what), {})
        if body is None:
            raise RpcError(ErrorCode.UNAVAILABLE, "connection refused", addr)
        return Description(json.dumps(body).encode())


def overview(cluster: Cluster, **away: None) -> Overview:
    said: dict[tuple[str, str], Any] = {
        ("node-0", "status"): NODE,
        ("schedule-0", "status"): {"nodes": [{"node": "node-0"}]},
        ("dispatch-1", "request"): REQUEST,
    }
    said.update({(name, "status"): facts for name, facts in SHARDS.items()})
    said.update({(name.replace("_", "-"), "status"): None for name in away})
    members = tuple(Member(FunctionID(k), cast(Any, kind), k, 1) for k, kind in KINDS.items())
    membership = SimpleNamespace(view=View(5, members), controller="controller")
    return Overview(cast(Rpc, Answers(said)), cast(Membership, membership), cluster.desk.reconciler)


def gather(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


async def served() -> Cluster:
    cluster = Cluster()
    await cluster.desk.load()
    await cluster.apply(MODEL % "")
    cluster.say(R1, desired=1, ready=1)
    return cluster


def test_status_lays_side_by_side_what_everybody_says() -> None:
    status = gather(overview(gather(served())).status())
    assert (status["epoch"], status["held"]) == (5, 3)
    assert [f["id"] for f in status["functions"]] == ["dispatch-0", "dispatch-1", "schedule-0"]
    assert status["nodes"] == [{**NODE, "node": "node-0", "instances": 1}]
    assert status["instances"] == [{**INSTANCE, "node": "node-0"}]
    (revision,) = status["revisions"]
    assert (revision["home"], revision["held"], revision["ready"], revision["traffic"]) == (
        "dispatch-0",
        3,
        1,
        100,
    )


def test_what_a_revision_is_short_of_is_listed_and_leaves_it_ready() -> None:
    cluster = gather(served())
    cluster.say(R1, desired=6, ready=1, short="partition schedule-0 is full")
    (revision,) = gather(overview(cluster).status())["revisions"]
    assert revision["reason"] == "partition schedule-0 is full"
    assert all(c["status"] == "True" for c in cluster.status()["conditions"])


def test_the_runtimes_that_nodes_keep_imported_are_listed_while_a_service_wants_them() -> None:
    async def run() -> None:
        cluster = await served()
        view = overview(cluster)
        assert (await view.status())["zygotes"] == ["runtimes.vllm_pd"]
        await cluster.apply(MODEL % "", notes={"serving.kserve.io/stop": "true"})
        assert (await view.status())["zygotes"] == []

    asyncio.run(run())


def test_a_part_that_does_not_answer_is_listed_with_the_reason() -> None:
    status = gather(overview(gather(served()), node_0=None, dispatch_1=None).status())
    assert "connection refused" in status["nodes"][0]["error"]
    assert "connection refused" in status["functions"][1]["error"]
    assert status["held"] == 1


def test_marks_of_a_request_come_from_shard_node_and_instance() -> None:
    found = gather(overview(gather(served())).request("r"))
    assert found["shard"] == "dispatch-1"
    assert [(m["where"], m["source"], m["name"]) for m in found["marks"]] == [
        ("dispatch-1", "dispatch", "arrived"),
        ("i1", "node", "decided"),
        ("i1", "node", "ready"),
    ]
    assert found["instances"] == [{"instance": "i1", "revision": R1, "node": "node-0"}]


def test_a_request_is_explained_when_its_instance_has_gone() -> None:
    view = overview(gather(served()))

    gather(view.request("r"))
    cast(Answers, view.rpc).said["node-0", "status"] = {**NODE, "instances": []}
    found = gather(view.request("r"))
    assert [m["name"] for m in found["marks"]] == ["arrived", "decided", "ready"]


def test_of_an_instance_that_was_killed_its_end_is_told() -> None:
    view = overview(gather(served()))
    killed = {**INSTANCE, "state": "failed", "reason": "the process was killed by SIGKILL"}
    cast(Answers, view.rpc).said["node-0", "status"] = {**NODE, "instances": [killed]}
    (lane,) = gather(view.request("r"))["instances"]
    assert lane["ended"] == "the process was killed by SIGKILL; what it did with the request is not known"
    left = {"id": "r", "marks": [["received", 3.0, ""]]}
    cast(Answers, view.rpc).said["node-0", "request"] = left
    (lane,) = gather(view.request("r"))["instances"]
    assert lane["ended"] == "the process was killed by SIGKILL"


def test_an_instance_that_nobody_has_seen_is_named() -> None:
    view = overview(gather(served()))
    cast(Answers, view.rpc).said["node-0", "status"] = {**NODE, "instances": []}
    (lane,) = gather(view.request("r"))["instances"]
    assert (lane["instance"], lane["node"]) == ("i1", "")
    assert "no node knows it any more" in lane["ended"]


def test_what_an_instance_has_left_behind_is_part_of_the_explanation() -> None:
    view = overview(gather(served()))
    left = {"id": "r", "marks": [["received", 3.0, "/v1/completions"]], "header": "tcp;bytes=1"}
    cast(Answers, view.rpc).said["node-0", "request"] = left
    found = gather(view.request("r"))
    assert ("i1", "instance", "received") in [(m["where"], m["source"], m["name"]) for m in found["marks"]]
    assert found["instances"][0]["header"] == "tcp;bytes=1"


def test_an_unknown_request() -> None:
    view = overview(gather(served()))
    view.rpc = cast(Rpc, Answers({}))
    assert gather(view.request("r")) is None


def test_a_revision_larger_than_every_node() -> None:
    def needing(cpu_milli: int) -> Revision:
        needs = Resources(cpu_milli, 64)
        return Revision(RevisionKey(R1), "default/tiny", 1, Command(("a",)), Model(), needs, Scale())

    view = overview(gather(served()))
    assert view.too_large(needing(2001)) == ""  # no node has said its size
    gather(view.look())
    assert view.too_large(needing(2000)) == ""
    assert view.too_large(needing(2001)) == "no node is large enough (node-0: cpu: needs 2001m, 2000m there)"
    view.membership.view = View(6, ())
    gather(view.look())
    assert view.too_large(needing(2001)) == ""  # none is there, so none is too small


def test_a_revision_whose_labels_no_node_has() -> None:
    def selecting(disk: str, cpu_milli: int = 100) -> Revision:
        command, needs = Command(("a",)), Resources(cpu_milli, 64)
        revision = Revision(RevisionKey(R1), "default/tiny", 1, command, Model(), needs, Scale())
        return revision._replace(node_selector=(("disk", disk),))

    view = overview(gather(served()))
    cast(Answers, view.rpc).said["node-0", "status"] = {**NODE, "labels": {"disk": "nvme", "zone": "a"}}
    assert view.too_large(selecting("tape")) == ""  # no node has said what it is
    gather(view.look())
    assert view.too_large(selecting("nvme")) == ""
    assert view.too_large(selecting("tape")) == "no node has the labels that nodeSelector names: disk=tape"
    assert view.too_large(selecting("nvme", 9000)).startswith("no node is large enough (node-0: cpu")


@pytest.mark.parametrize("pairs", ["up", ["up"], [{"state": "up", "rungs": "tcp"}], [{"passed": [1]}]])
def test_what_an_instance_says_of_channels_is_left_out_where_it_makes_no_sense(pairs: Any) -> None:
    """An instance's program is its user's: it must not end what looks at all of them."""

    async def run() -> None:
        view = overview(await served())
        said = cast(Answers, view.rpc).said
        other = {**INSTANCE, "id": "i2", "kv": {"pairs": [{"state": "down", "since": 1.5}]}}
        said["node-0", "status"] = {**NODE, "instances": [{**INSTANCE, "kv": {"pairs": pairs}}, other]}
        await view.look()
        assert view.channels(RevisionKey(R1)) == [("i2", other["kv"])]

    asyncio.run(run())


def test_channels_are_looked_at_without_news_and_only_other_channels_are_a_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("autoscaler_shim.objects.overview.LOOK_AFTER_S", 0)
    monkeypatch.setattr("autoscaler_shim.objects.overview.LOOK_AT_CHANNELS_S", 0.01)

    async def run() -> None:
        view = overview(await served())
        node = cast(Answers, view.rpc).said
        changes: asyncio.Queue[list[tuple[str, Any]]] = asyncio.Queue()
        looks: asyncio.Queue[None] = asyncio.Queue()
        right = view.look

        async def look() -> None:
            await right()
            looks.put_nowait(None)

        monkeypatch.setattr(view, "look", look)

        def says(**pair: Any) -> list[tuple[str, Any]]:
            kv = {"pairs": [{"peer": "p-1", **pair}]}
            node["node-0", "status"] = {**NODE, "instances": [{**INSTANCE, "kv": kv}]}
            return [("i1", kv)]

        async def next_change() -> list[tuple[str, Any]]:
            return await asyncio.wait_for(changes.get(), 60)

        following = asyncio.create_task(
            view.follow(lambda: changes.put_nowait(view.channels(RevisionKey(R1))))
        )
        expected = says(state="dialling")
        view.news()
        assert await next_change() == expected
        expected = says(state="up", rungs=[{"rung": "tcp"}])
        assert await next_change() == expected, "nobody has said that there is news"
        says(state="up", rungs=[{"rung": "tcp"}], transfers=7, bytes=4096)
        while not looks.empty():
            looks.get_nowait()
        for _ in range(3):
            await asyncio.wait_for(looks.get(), 60)
        assert changes.empty()
        assert view.channels(RevisionKey(R1))[0][1]["pairs"][0]["transfers"] == 7
        node["node-0", "status"] = None
        await asyncio.wait_for(looks.get(), 60)
        assert view.channels(RevisionKey(R1)), "what a silent node has said last"
        node["node-0", "status"] = {**NODE, "instances": [{**INSTANCE, "state": "draining"}]}
        assert await next_change() == []
        following.cancel()

    asyncio.run(run())
