"""What people hear of a revision that standby pods were to wake: conditions, notes, Events and metrics."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from autoscaler_shim.standby.saying import cause
from kserve_ext.api.standby import names
from kserve_ext.core.standby.facts import Started
from kserve_ext.kube.kinds import EVENTS, POD_AUTOSCALERS, PODS
from kserve_ext.rpc import RpcError
from kserve_ext.wire.frames import ErrorCode
from tests.support.knative_autoscaler import NAMESPACE, condition, replicas, status
from tests.support.standby_cluster import World, play

NAME = "chat-00001"
S1 = {names.LEVEL: "S1"}


def events(world: World, kind: str = "Revision") -> dict[str, dict[str, Any]]:
    """By reason."""
    found = world.api.objects.of(EVENTS).values()
    return {event["reason"]: event for event in found if event["involvedObject"]["kind"] == kind}


def message(world: World, type_: str) -> str:
    conditions = status(world.api, NAME).get("conditions") or ()
    return next((str(c.get("message", "")) for c in conditions if c["type"] == type_), "")


def service(world: World) -> None:
    """Its PodAutoscaler says which Knative Service it is of, as Knative's controller writes it."""
    pa = world.api.get(POD_AUTOSCALERS, NAMESPACE, NAME)
    assert pa is not None
    labels = {**pa["metadata"]["labels"], "serving.knative.dev/serviceUID": "uid-of-service"}
    world.api.put(POD_AUTOSCALERS, {**pa, "metadata": {**pa["metadata"], "labels": labels}})


def test_which_slot_woke_a_revision_and_how_long_each_step_took(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.api.quiet = True
        world.revision(NAME, standby="1")
        service(world)
        async with world.running() as made:
            await world.filled(1)
            slot = await world.begun(NAME)
            started = Started("S0", "", (("weights_loaded", 310), ("ready", 340)))
            slot.say("serving", f"{NAMESPACE}/{NAME}", "", started)
            await world.api.until(lambda: "was its own after" in message(world, "StandbyUsed"))
            assert condition(world.api, "StandbyUsed", name=NAME) == ("True", "Taken")
            said = message(world, "StandbyUsed")
            assert said.startswith(f"pod {slot.hello.pod} on node node-1, level S0, accepted after ")
            assert "weights loaded 310 ms" in said
            assert condition(world.api, "StandbyReady", name=NAME) == ("", "")
            (start,) = json.loads(status(world.api, NAME)["annotations"][names.STARTS])
            assert (start["pod"], start["level"], start["from"]) == (slot.hello.pod, "S0", "S0")
            assert start["steps_ms"] == [["weights_loaded", 310], ["ready", 340]]
            assert start["accepted_ms"] <= start["serving_ms"] <= start["own_ms"]
            await world.api.until(lambda: "StandbyTaken" in events(world))
            told = events(world)["StandbyTaken"]
            assert (told["type"], told["involvedObject"]["name"]) == ("Normal", NAME)
            assert told["involvedObject"]["uid"] == f"uid-of-{NAME}"
            assert not events(world, "Service"), "what goes well is the revision's affair"
        async with world.running():  # whoever has its bucket next says the same
            await world.reporter.report(1.0, name=NAME)
            await world.known(NAME)
            assert condition(world.api, "StandbyUsed", name=NAME) == ("True", "Taken")
        assert made.standby is not None

    play(tmp_path, script)


def test_a_slot_that_fell_back_says_from_what_and_why(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.api.quiet = True
        world.revision(NAME, standby="1")
        world.annotate(NAME, **{"standby-level": "S1"})
        service(world)
        async with world.running() as made:
            await world.filled(1)
            slot = await world.begun(NAME)
            assert slot.hello.level == "S1"
            slot.say("serving", f"{NAMESPACE}/{NAME}", "", Started("S0", "--max-model-len: 2048, not 4096"))
            await world.api.until(
                lambda: condition(world.api, "StandbyUsed", name=NAME) == ("True", "FellBack")
            )
            assert "not from its level S1: --max-model-len: 2048, not 4096" in message(world, "StandbyUsed")
            for kind in ("Revision", "Service"):
                await world.api.until(lambda kind=kind: "StandbyFellBack" in events(world, kind))  # type: ignore[misc]
                assert events(world, kind)["StandbyFellBack"]["type"] == "Warning"
            assert events(world, "Service")["StandbyFellBack"]["involvedObject"]["uid"] == "uid-of-service"
            assert made.standby is not None
            shown = generate_latest(made.metrics_server.registry).decode()
            assert 'galaxy_standby_fell_back_total{level="S1",used="S0"} 1.0' in shown
            assert 'galaxy_standby_node_slots{node="node-1",state="serving"} 1.0' in shown
            assert 'galaxy_standby_node_devices{kind="gpu",node="node-1"} 2.0' in shown

    play(tmp_path, script)


def test_a_slot_that_could_not_start_it_says_why_and_what_takes_its_place(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.api.quiet = True
        async with world.standing_by(NAME):
            slot = await world.begun(NAME)
            slot.say("failed", f"{NAMESPACE}/{NAME}", "--model: no such folder; copy it")
            await world.api.until(lambda: replicas(world.api, NAME) == 1)
            await world.api.until(lambda: "StandbySlotFailed" in events(world))
            assert "--model: no such folder; copy it" in events(world)["StandbySlotFailed"]["message"]
            await world.api.until(
                lambda: (
                    condition(world.api, "StandbyUsed", name=NAME)[1] in ("SlotFailed", "RestingAfterFailure")
                )
            )

    play(tmp_path, script)


def test_an_order_that_an_agent_leaves_unanswered_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script(world: World) -> None:
        world.revision(NAME, standby="1")
        service(world)
        async with world.running() as made:
            await world.filled(1)
            assert made.standby is not None

            def lost(*args: Any, **_: Any) -> None:
                asyncio.get_running_loop().call_soon(
                    args[-1], RpcError(ErrorCode.DEADLINE, "no answer within 2 s")
                )

            monkeypatch.setattr(made.standby.agents, "take", lost)
            await world.reporter.report(1.0, name=NAME)
            for kind in ("Revision", "Service"):
                await world.api.until(lambda kind=kind: "StandbyAgentSilent" in events(world, kind))  # type: ignore[misc]
                told = events(world, kind)["StandbyAgentSilent"]
                assert told["type"] == "Warning"
                assert "the agent of node node-1 has left the order unanswered" in told["message"]
            await world.api.until(lambda: world.api.plain())

    play(tmp_path, script)


def test_an_empty_pool_is_said(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.api.kubelet = False
        world.revision(NAME, standby="1")
        async with world.running():
            await world.known(NAME)
            await world.api.until(lambda: world.api.standby())
            await world.reporter.report(1.0, name=NAME)
            await world.api.until(
                lambda: condition(world.api, "StandbyUsed", name=NAME) == ("False", "PoolEmpty")
            )
            assert "a pod was asked for the plain way" in message(world, "StandbyUsed")

    play(tmp_path, script)


def test_a_pool_without_room_for_more_beside_those_in_use_is_said_to_who_looks(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        async with world.standing_by(NAME):
            world.api.kubelet = False
            await world.reporter.report(1.0, name=NAME)
            await world.api.until(lambda: world.api.standby() and world.api.adopted())
            (pod,) = world.api.standby()
            full = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes: Insufficient gpu"}
            world.api.put(PODS, {**pod, "status": {"phase": "Pending", "conditions": [full]}})
            await world.api.until(lambda: message(world, "StandbyReady"))
            assert condition(world.api, "StandbyReady", name=NAME) == ("False", "NoNode")
            assert "its standby pods are in use, and no other comes up: no node" in message(
                world, "StandbyReady"
            )
            await world.api.until(lambda: "StandbyTaken" in events(world))
            assert "StandbyNoNode" not in events(world)

    play(tmp_path, script)


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        ("x: has no effect yet, as none of its standby pods comes up: no node: 0/3 nodes", "NoNode"),
        ("x: as none of its standby pods comes up: ImagePullBackOff: Back-off pulling", "ImagePullBackOff"),
        ("x: as none of its standby pods comes up: the zygote of x ended (exit code 1)", "ZygoteFails"),
        ("x: comes up: the image has no module x.zygote: give", "ZygoteFails"),
        ("x: comes up: refused by the API server: pods is forbidden", "PodsRefused"),
        ("x: comes up: no slot after 900 s: see its log", "NoSlot"),
        ("x: comes up: Something else", "PoolNotReady"),
    ],
)
def test_a_problem_has_a_reason_of_its_own(problem: str, reason: str) -> None:
    assert cause(problem, False) == reason
    assert cause(problem, True) == "RevisionUnfit"
