"""An autoscaler, a node's agent and standby pods against a fake API server: pools, adoption, and what goes wrong."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from autoscaler_shim.standby import adopting, settling, standby
from kserve_ext.api.standby import names, pods
from kserve_ext.core.standby import giving_way, pools, taken
from kserve_ext.core.standby.turns import Turns
from kserve_ext.kube.kinds import (
    ADMISSION_POLICIES,
    ADMISSION_POLICY_BINDINGS,
    DEPLOYMENTS,
    POD_AUTOSCALERS,
    PODS,
    SECRETS,
    Kind,
)
from kserve_ext.wire.slot_socket import Free, Start
from tests.support.knative_autoscaler import NAMESPACE, SYSTEM, condition, replicas, until
from tests.support.standby_cluster import UID, World, play

NAME, OTHER = "chat-00001", "mail-00001"


def looks(world: World) -> int:
    """How often the ReplicaSet was read."""
    name = f"{NAME}-deployment-hash-of-{NAME}-deployment"
    return world.api.requests.count(f"GET /apis/apps/v1/namespaces/{NAMESPACE}/replicasets/{name}")


def test_a_pool_is_filled_with_pods_that_are_nobodys(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        async with world.standing_by(NAME, size=2):
            first, _ = world.api.standby()
            assert "ownerReferences" not in first["metadata"]
            assert first["spec"]["containers"][0]["command"] == list(names.COMMAND)
            assert replicas(world.api, NAME) == 0

    play(tmp_path, script)


def test_a_request_at_zero_takes_a_standby_pod_that_becomes_the_revisions(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        async with world.standing_by(NAME, size=2) as made:
            await world.reporter.report(1.0, name=NAME)
            await world.api.until(lambda: world.api.adopted())
            assert world.api.scaled == ["scale 1", "label"]
            (pod,) = world.api.adopted()
            (slot,) = world.taken()
            assert slot.hello.pod == f"{NAMESPACE}/{pod['metadata']['name']}"
            (order,) = slot.orders
            assert isinstance(order, Start)
            assert order.assignment.revision == f"{NAMESPACE}/{NAME}"
            assert pod["metadata"]["labels"][names.TEMPLATE_HASH] == f"hash-of-{NAME}-deployment"
            await until(lambda: "ready" in [news[1] for news in world.activator.news])
            await world.api.until(
                lambda: (
                    (world.api.get(POD_AUTOSCALERS, NAMESPACE, NAME) or {})["status"].get("actualScale") == 1
                )
            )
            await world.filled(2)  # filled again
            await world.api.until(lambda: not world.api.plain() and len(world.api.adopted()) == 1)
            assert made.standby is not None
            assert made.standby.tally.taken == 1

    play(tmp_path, script)


def test_nothing_is_written_before_it_serves(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.api.quiet = True
        async with world.standing_by(NAME):
            slot = await world.begun(NAME)
            for _ in range(3):
                await world.reporter.report(1.0, name=NAME)
            assert world.api.scaled == []
            slot.say("serving", f"{NAMESPACE}/{NAME}")
            await world.api.until(lambda: world.api.scaled[:2] == ["scale 1", "label"])

    play(tmp_path, script)


def test_with_a_slot_a_revision_is_not_at_zero_whatever_its_deployment_asks_for(tmp_path: Path) -> None:
    """Before that slot goes, an activator is asked."""

    async def script(world: World) -> None:
        world.api.quiet = True
        async with world.standing_by(NAME) as made:
            pa = world.api.get(POD_AUTOSCALERS, NAMESPACE, NAME)
            assert pa is not None
            assert made._scales.at(f"{NAMESPACE}/{NAME}", pa, 0)
            await world.begun(NAME)
            assert replicas(world.api, NAME) == 0
            assert not made._scales.at(f"{NAMESPACE}/{NAME}", pa, 0)

    play(tmp_path, script)


def test_labels_wait_until_the_replica_set_has_room(tmp_path: Path) -> None:
    """Its controller would take a pod with its labels for one too many."""

    async def script(world: World) -> None:
        async with world.standing_by(NAME):
            world.api.lags = True
            await world.reporter.report(1.0, name=NAME)
            await world.api.until(lambda: replicas(world.api, NAME) == 1)
            await world.api.until(lambda: looks(world) > 3)
            assert "label" not in world.api.scaled
            world.api.catch_up()
            await world.api.until(lambda: world.api.adopted())
            await world.api.until(lambda: not world.api.plain())

    play(tmp_path, script)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Soon after its start an autoscaler knows whether pods can be held."""
    monkeypatch.setattr("autoscaler_shim.standby.standby.SWEEP_S", 0.05)
    monkeypatch.setattr(settling, "HEARD_S", 0.02)


async def _nothing(_: settling.Settling) -> None:
    """Is found out."""


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("kind", [ADMISSION_POLICIES, ADMISSION_POLICY_BINDINGS])
@pytest.mark.parametrize("gone", [True, False])
def test_without_the_policy_no_pod_is_held_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, gone: bool
) -> None:
    """Whom the policy doesn't cover, its ReplicaSet deletes while it serves; the next look would come too late."""

    async def script(world: World) -> None:
        async with world.standing_by(NAME, holds=True):
            # Each is listed, then watched.
            await until(lambda: sum("validatingadmission" in each for each in world.api.requests) == 4)
            monkeypatch.setattr(settling.Settling, "look", _nothing)
            if gone:
                world.api.remove(kind, "", names.POLICY)
            else:
                world.api.put(kind, {"metadata": {"name": names.POLICY}, "spec": {"changed": True}})
            await until(lambda: world.autoscaler.standby and not world.autoscaler.standby.settling.can_hold)

    play(tmp_path, script)


@pytest.mark.usefixtures("held")
def test_where_pods_can_be_held_their_replica_set_makes_no_other(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        async with world.standing_by(NAME, holds=True):
            await world.reporter.report(1.0, name=NAME)
            await world.api.until(
                lambda: [pod for pod in world.api.adopted() if pod["metadata"].get("ownerReferences")]
            )
            await world.api.until(lambda: names.ADOPTION not in world.api.adopted()[0]["metadata"]["labels"])
            assert world.api.scaled[:2] == ["label", "scale 1"]
            assert world.api.made == []

    play(tmp_path, script)


@pytest.mark.usefixtures("held")
def test_a_held_pod_waits_until_the_replica_set_has_a_place(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        async with world.standing_by(NAME, holds=True):
            world.api.lags = True
            await world.reporter.report(1.0, name=NAME)
            await world.api.until(lambda: replicas(world.api, NAME) == 1)
            await world.api.until(lambda: looks(world) > 2)
            (pod,) = world.api.adopted()
            assert pod["metadata"]["labels"][names.ADOPTION] == names.HELD
            world.api.catch_up()
            await world.api.until(lambda: names.ADOPTION not in world.api.adopted()[0]["metadata"]["labels"])
            assert world.api.made == []

    play(tmp_path, script)


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("first_is_stuck", [False, True])
def test_adoptions_go_in_order_and_one_that_is_stuck_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_is_stuck: bool
) -> None:
    monkeypatch.setattr(adopting, "Turns", lambda: Turns(1))
    monkeypatch.setattr(settling, "WAIT_S", 0.3 if first_is_stuck else 60.0)

    def labelled(world: World) -> list[str]:
        revision = "serving.knative.dev/revision"
        return [str(pod["metadata"]["labels"].get(revision)) for pod in world.api.adopted()]

    async def script(world: World) -> None:
        async with world.standing_by(NAME, OTHER, size=2, holds=True):
            world.api.lags = True
            await world.reporter.report(1.0, name=NAME)
            await world.api.until(lambda: labelled(world) == [NAME])
            await world.api.until(lambda: looks(world) > 1)
            await world.reporter.report(1.0, name=OTHER)
            await until(lambda: [news[1] for news in world.activator.news].count("ready") == 2)
            if not first_is_stuck:
                seen = looks(world)
                await world.api.until(lambda: looks(world) > seen + 3)
                assert labelled(world) == [NAME]
                world.api.catch_up()
            await world.api.until(lambda: sorted(labelled(world)) == sorted([NAME, OTHER]))
            world.api.catch_up()
            await world.api.until(
                lambda: not any(names.ADOPTION in p["metadata"]["labels"] for p in world.api.adopted())
            )
            assert (replicas(world.api, NAME), replicas(world.api, OTHER)) == (1, 1)
            assert world.api.made == []

    play(tmp_path, script)


@pytest.mark.usefixtures("held")
def test_killed_while_a_pod_is_held_its_successor_lets_it_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: whether it could hold a pod itself doesn't matter."""

    async def script(world: World) -> None:
        async with world.standing_by(NAME, holds=True):
            world.api.lags = True
            await world.reporter.report(1.0, name=NAME)
            await world.api.until(lambda: replicas(world.api, NAME) == 1)
        (pod,) = world.api.adopted()
        assert pod["metadata"]["labels"][names.ADOPTION] == names.HELD
        monkeypatch.setattr(
            "autoscaler_shim.standby.standby.SWEEP_S", 1000.0
        )  # the next one finds out nothing
        async with world.running():
            await world.reporter.report(1.0, name=NAME)  # the request is still under way
            world.api.catch_up()
            await world.api.until(lambda: names.ADOPTION not in world.api.adopted()[0]["metadata"]["labels"])
            assert [pod["metadata"]["name"] for pod in world.api.adopted()] == [pod["metadata"]["name"]]
            assert replicas(world.api, NAME) == 1
            assert world.api.made == []

    play(tmp_path, script)


def test_where_there_are_standby_pods_an_autoscaler_that_begins_can_hold_them_at_once(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.api.policy = True
        async with world.standing_by(NAME):
            pass
        async with world.running() as made:
            await world.filled(1)
            await until(lambda: f"{NAMESPACE}/{NAME}" in made.reconciler.outcomes)
            await world.reporter.report(1.0, name=NAME)
            await world.api.until(lambda: "scale 1" in world.api.scaled)
            assert world.api.scaled[:2] == ["label", "scale 1"]

    play(tmp_path, script)


def test_what_the_pool_lacks_is_scaled_at_once(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        async with world.standing_by(NAME) as made:
            await world.reporter.report(12.0, name=NAME)  # of 100 x 0.7 each: one
            await world.api.until(lambda: world.api.adopted())
            await world.reporter.report(300.0, name=NAME)
            await world.api.until(lambda: replicas(world.api, NAME) >= 3)
            assert made.standby is not None
            await until(lambda: made.standby and sum(made.standby.tally.misses.values()))

    play(tmp_path, script)


def test_a_revision_that_cant_be_served_starts_the_plain_way_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(world: World) -> None:
        world.revision(NAME, container={"command": ["/bin/other"]})
        async with world.running():
            await world.known(NAME)
            await world.reporter.report(1.0, name=NAME)
            await world.api.until(lambda: replicas(world.api, NAME) == 1)
            assert world.api.standby() == []
            await world.api.until(
                lambda: (
                    condition(world.api, "StandbyReady", name=NAME) == ("False", "RevisionUnfit")
                    and condition(world.api, "StandbyUsed", name=NAME) == ("False", "RevisionUnfit")
                )
            )
        assert "starts without standby pods: container kserve-container runs /bin/other" in caplog.text

    play(tmp_path, script)


def test_a_revision_whose_pool_is_refused_says_so_until_it_has_one(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.api.fail(403, times=2, method="POST", path="/namespaces/default/pods")
        world.revision(NAME, standby="1")
        async with world.running():
            await world.api.until(
                lambda: condition(world.api, "StandbyReady", name=NAME) == ("False", "PodsRefused")
            )
            await world.filled(1)
            await world.api.until(lambda: condition(world.api, "StandbyReady", name=NAME)[0] != "False")

    play(tmp_path, script)


def test_a_pool_that_is_short_says_why_beside_a_slot_that_stands_by(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.api.fail(403, times=1, method="POST", path="/namespaces/default/pods")
        world.revision(NAME, standby="2")
        async with world.running() as made:
            await world.filled(1)
            await world.api.until(
                lambda: condition(world.api, "StandbyReady", name=NAME) == ("False", "PodsRefused")
            )
            assert made.standby is not None
            (figures,) = made.standby.keeper.figures()
            assert (figures.ready, figures.failures) == (1, 1)
            await world.filled(2)
            await world.api.until(lambda: condition(world.api, "StandbyReady", name=NAME)[0] != "False")

    play(tmp_path, script)


def test_idle_pods_give_way_to_a_plain_one_that_no_node_has_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby, "WAY_S", 0.05)
    monkeypatch.setattr(giving_way, "AFTER_S", 0.2)

    async def script(world: World) -> None:
        async with world.standing_by(NAME) as made:
            assert made.standby is not None
            full = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: not helpful."
            condition_of = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            labels = {"serving.knative.dev/revision": OTHER, UID: f"uid-of-{OTHER}"}
            waits = {"metadata": {"namespace": NAMESPACE, "name": "waits", "labels": labels}}
            world.api.put(
                PODS,
                {**waits, "status": {"phase": "Pending", "conditions": [{**condition_of, "message": full}]}},
            )
            await world.api.until(lambda: not world.api.standby())
            await world.api.until(
                lambda: condition(world.api, "StandbyReady", name=NAME) == ("False", "NoNode")
            )
            assert made.standby.tally.pods_made == 1, "none is made while it waits"
            assert made.standby.keeper.short(f"{NAMESPACE}/{_digest(world)}") == 0
            world.api.put(PODS, {**waits, "status": {"phase": "Running", "conditions": []}})
            await world.filled(1)
            await world.api.until(lambda: condition(world.api, "StandbyReady", name=NAME)[0] != "False")

    play(tmp_path, script)


def _digest(world: World) -> str:
    assert world.autoscaler.standby is not None
    (pool,) = world.autoscaler.standby.shapes.pools()
    return pool.rpartition("/")[2]


def test_without_the_component_there_are_none(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.revision(NAME)
        async with world.running(standby=False):
            await world.known(NAME)
            await world.reporter.report(1.0, name=NAME)
            await world.api.until(lambda: replicas(world.api, NAME) == 1)
            assert world.api.standby() == []

    play(tmp_path, script)


def test_a_slot_that_fails_is_made_up_for_and_its_pod_goes(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.api.quiet = True
        async with world.standing_by(NAME):
            (before,) = world.api.slots
            await world.reporter.report(1.0, name=NAME)
            await until(world.taken)
            (slot,) = world.taken()
            slot.say("failed", f"{NAMESPACE}/{NAME}", "no such model")
            await world.api.until(lambda: replicas(world.api, NAME) == 1)
            await world.api.until(lambda: world.api.get(PODS, NAMESPACE, before) is None)
            assert "label" not in world.api.scaled

    play(tmp_path, script)


def test_killed_between_scale_and_labels_its_successor_goes_on(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        async with world.standing_by(NAME):
            (pod,) = world.api.slots
            world.api.fail(503, 1000, method="PATCH", path=f"/pods/{pod}")
            await world.reporter.report(1.0, name=NAME)
            await world.api.until(lambda: "scale 1" in world.api.scaled)
        world.api.failures.clear()
        assert world.api.adopted() == []
        async with world.running():
            await world.reporter.report(1.0, name=NAME)  # the request is still under way
            await world.api.until(lambda: world.api.adopted())
            await world.api.until(lambda: len(world.api.adopted()) == 1 and not world.api.plain())
            assert replicas(world.api, NAME) == 1

    play(tmp_path, script)


def test_killed_before_the_scale_its_successor_goes_on(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.api.quiet = True
        async with world.standing_by(NAME):
            await world.reporter.report(1.0, name=NAME)
            await until(world.taken)
        (slot,) = world.taken()
        slot.say("serving", f"{NAMESPACE}/{NAME}")
        async with world.running():
            await world.reporter.report(1.0, name=NAME)  # the request is still under way
            await world.api.until(lambda: world.api.scaled[:2] == ["scale 1", "label"])

    play(tmp_path, script)


def test_two_revisions_that_want_one_slot(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        async with world.standing_by(NAME, OTHER):
            await world.reporter.report(1.0, name=NAME)
            await world.reporter.report(1.0, name=OTHER)
            await world.api.until(lambda: replicas(world.api, NAME) == replicas(world.api, OTHER) == 1)
            await world.api.until(lambda: world.api.adopted())
            for slot in world.api.slots.values():
                assert len({o.assignment.revision for o in slot.orders if isinstance(o, Start)}) <= 1

    play(tmp_path, script)


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("policy", [False, True])
@pytest.mark.parametrize("conflicts", [0, 2])
def test_down_it_goes_back_to_a_pool_that_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conflicts: int, policy: bool
) -> None:
    """`conflicts`: so often the pod is another one than its copy here when it is to go."""
    monkeypatch.setattr(pools, "BEHIND_S", 1000.0)

    async def script(world: World) -> None:
        world.api.policy = policy
        world.revision(NAME, window="6s", standby="1")
        world.revision(OTHER, standby="1")  # asks for the pool when nobody else does
        async with world.running() as made:
            await world.filled(1)
            if policy:
                await world.can_hold()
            world.api.kubelet = False  # so that nothing fills it but the pod that comes back
            await world.reporter.report(1.0, name=NAME)
            await world.api.until(lambda: world.api.adopted())
            await world.api.until(lambda: names.ADOPTION not in world.api.adopted()[0]["metadata"]["labels"])
            (pod,) = world.api.adopted()
            world.api.scaled.clear()
            world.api.made.clear()
            assert made.standby is not None
            await until(
                lambda: (
                    made.standby
                    and made.standby.keeper.short(
                        pods.key(NAMESPACE, pod["metadata"]["labels"][names.POOL_LABEL])
                    )
                )
            )
            pa = world.api.get(POD_AUTOSCALERS, NAMESPACE, NAME)
            assert pa is not None
            path = f"/pods/{pod['metadata']['name']}"
            world.api.fail(409, conflicts, reason="Conflict", method="PATCH", path=path)
            world.api.put(POD_AUTOSCALERS, {**pa, "spec": {**pa["spec"], "reachability": "Unreachable"}})
            await world.reporter.report(0.0, 0.0, name=NAME)
            await world.api.until(lambda: {"scale 0", "unlabel"} <= {*world.api.scaled})
            assert world.api.failures == []
            assert world.api.scaled == (["scale 0", "unlabel"] if policy else ["unlabel", "scale 0"])
            assert len(world.api.made) == (0 if policy else 1), "its ReplicaSet misses it"
            (slot,) = world.taken()
            await until(lambda: any(isinstance(order, Free) for order in slot.orders))
            found = world.api.get(PODS, NAMESPACE, pod["metadata"]["name"])
            assert found is not None
            assert UID not in found["metadata"]["labels"]
            assert "ownerReferences" not in found["metadata"] or not found["metadata"]["ownerReferences"]

    play(tmp_path, script)


def test_an_agent_that_is_killed_while_a_slot_starts(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        world.api.quiet = True
        async with world.standing_by(NAME):
            slot = await world.begun(NAME)
            await world.kill_agent()
            await world.start_agent()
            await until(lambda: world.autoscaler.standby and world.autoscaler.standby.known.starting)
            slot.say("serving", f"{NAMESPACE}/{NAME}")
            await world.api.until(lambda: world.api.adopted())
            assert world.api.scaled[:2] == ["scale 1", "label"]
            await until(lambda: "ready" in [news[1] for news in world.activator.news])

    play(tmp_path, script)


def test_a_pool_that_nobody_asks_for_is_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "SURPLUS_S", 0.1)

    async def script(world: World) -> None:
        async with world.standing_by(NAME, size=2):
            world.annotate(NAME, standby=None)
            await world.api.until(lambda: not world.api.standby())

    play(tmp_path, script)


def test_another_image_replaces_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "SURPLUS_S", 0.1)

    async def script(world: World) -> None:
        async with world.standing_by(NAME):
            (before,) = world.api.slots
            world.revision(NAME, standby="1", container={"image": "registry.example/vllm-pd@sha256:2"})
            await world.api.until(lambda: before not in world.api.slots)
            await world.filled(1)

    play(tmp_path, script)


def test_a_pod_that_ends_is_deleted_and_made_up_for(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        async with world.standing_by(NAME):
            await world.reporter.report(1.0, name=NAME)
            await world.api.until(lambda: world.api.adopted())
            (pod,) = world.api.adopted()
            name = pod["metadata"]["name"]
            world.api.end(name)
            await world.api.until(lambda: world.api.get(PODS, NAMESPACE, name) is None)
            await world.api.until(lambda: len(world.api.plain()) == 1)  # the ReplicaSet's own

    play(tmp_path, script)


def test_slots_of_a_revision_that_is_deleted_are_free_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoscaler_shim.standby.standby.SWEEP_S", 0.1)

    async def script(world: World) -> None:
        world.api.quiet = True
        async with world.standing_by(NAME, OTHER):
            slot = await world.begun(NAME)
            world.api.remove(POD_AUTOSCALERS, NAMESPACE, NAME)
            world.api.remove(DEPLOYMENTS, NAMESPACE, f"{NAME}-deployment")
            await until(lambda: any(isinstance(order, Free) for order in slot.orders))

    play(tmp_path, script)


def test_a_lost_answer_is_no_lost_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order never arrives: after a while it is made up for."""
    monkeypatch.setattr(taken, "ORDER_S", 0.2)

    async def script(world: World) -> None:
        async with world.standing_by(NAME) as made:
            assert made.standby is not None
            monkeypatch.setattr(made.standby.agents, "take", lambda *_: None)
            await world.reporter.report(1.0, name=NAME)
            await until(lambda: made.standby and made.standby.known.promised)
            monkeypatch.undo()
            await world.api.until(lambda: world.api.plain())
            assert not world.api.adopted()

    play(tmp_path, script)


def test_metrics(tmp_path: Path) -> None:
    async def script(world: World) -> None:
        async with world.standing_by(NAME, size=2) as made:
            await world.reporter.report(1.0, name=NAME)
            await until(lambda: made.standby and made.standby.tally.adoption.sum_s)
            found = {
                (sample.name, sample.labels.get("state", "")): sample.value
                for family in made.metrics_server.registry.collect()
                for sample in family.samples
                if sample.name.startswith("galaxy_standby")
            }
            assert found["galaxy_standby_taken_total", ""] == 1
            assert found["galaxy_standby_pods", "size"] == 2
            assert found["galaxy_standby_pods", "busy"] == 1
            assert found["galaxy_standby_agents_heard", ""] == 1
            assert found["galaxy_standby_adoption_seconds_count", ""] == 1

    play(tmp_path, script)


def test_the_sweep_goes_on_when_a_pod_goes_under_its_hands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoscaler_shim.standby.standby.SWEEP_S", 0.05)

    async def script(world: World) -> None:
        async with world.standing_by(NAME, size=2) as made:
            standby = made.standby
            assert standby is not None
            uids = list(standby.known.pods)
            deleted: list[str] = []

            async def delete(uid: str) -> None:
                deleted.append(uid)
                for other in uids:
                    standby.known.pod(other, None)

            monkeypatch.setattr(standby.pods, "delete", delete)
            monkeypatch.setattr(standby.known, "strays", lambda _: ([], [*uids, "gone"]))
            await until(lambda: len(deleted) >= 1)
            sweeps = [0]
            monkeypatch.setattr(standby.known, "forget", lambda: sweeps.__setitem__(0, sweeps[0] + 1))
            await until(lambda: sweeps[0] >= 2)

    play(tmp_path, script)


def test_another_key_of_the_peers_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoscaler_shim.standby.standby.KEY_LOOK_S", 0.05)

    async def script(world: World) -> None:
        async with world.standing_by(NAME):
            await world.kill_agent()
            await world.filled(0)
            data = {"key": base64.b64encode(b"n" * 32).decode()}
            world.api.put(SECRETS, {"metadata": {"namespace": SYSTEM, "name": "galaxy-peers"}, "data": data})
            await world.start_agent()  # with the new one
            await world.filled(1)

    play(tmp_path, script)
