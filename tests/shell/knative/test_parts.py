"""The autoscaler's smaller parts: wheel, probe, writes behind, scales, configuration, settings."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from autoscaler_shim.knative import probe, scales, wheel, writer
from autoscaler_shim.knative.__main__ import main
from autoscaler_shim.knative.config import ConfigStore
from autoscaler_shim.knative.probe import Prober
from autoscaler_shim.knative.scales import Scales
from autoscaler_shim.knative.settings import BadEnvironment, StatefulSet, read
from autoscaler_shim.knative.wheel import Wheel
from autoscaler_shim.knative.writer import Writer
from kserve_ext.core.knative import waves
from kserve_ext.core.knative.buckets import Holder
from kserve_ext.core.knative.waves import MOST
from kserve_ext.kube.client import Conflict, NotFound, Unavailable
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import DEPLOYMENTS, METRICS, POD_AUTOSCALERS, SERVERLESS_SERVICES, Kind
from kserve_ext.kube.pod import cluster_domain
from tests.support.api_server import ApiServer
from tests.support.knative_autoscaler import (
    NAME,
    NAMESPACE,
    SYSTEM,
    put_config,
    put_revision,
    replicas,
    run,
    spec,
    status,
    until,
)

KEY = f"{NAMESPACE}/{NAME}"


# --- wheel


def test_each_key_gets_its_turns_spread_over_the_period() -> None:
    async def test() -> None:
        turns: list[str] = []
        one = Wheel(0.02, turns.append)
        for i in range(2 * wheel.SLOTS):
            one.add(f"k{i}")
            one.add(f"k{i}")
        one.start()
        one.start()
        await until(lambda: len(turns) >= 4 * wheel.SLOTS)
        assert set(turns[: 2 * wheel.SLOTS]) == {f"k{i}" for i in range(2 * wheel.SLOTS)}
        one.discard("k0")
        one.discard("k0")
        before = turns.count("k0")
        await until(lambda: len(turns) >= 8 * wheel.SLOTS)
        assert turns.count("k0") <= before + 1
        await one.stop()
        await one.stop()

    run(test())


def test_a_turn_that_fails_takes_no_other_with_it(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        turns: list[str] = []

        def turn(key: str) -> None:
            turns.append(key)
            if key == "bad":
                raise RuntimeError("on purpose")

        one = Wheel(0.01, turn)
        one.add("bad")
        one.add("good")
        one.start()
        await until(lambda: turns.count("bad") > 1 and turns.count("good") > 1)
        await one.stop()

    run(test())
    assert "on purpose" in caplog.text


# --- probe


@pytest.mark.parametrize(
    ("code", "body", "answer"),
    [
        (200, "activator", True),
        (200, "queue", False),
        (200, "activator and more", False),
        (503, "activator", False),
    ],
)
def test_only_an_activators_answer_counts(code: int, body: str, answer: bool) -> None:
    async def test() -> None:
        heads: list[Any] = []

        async def handle(request: web.Request) -> web.Response:
            heads.append(request.headers)
            return web.Response(status=code, text=body)

        app = web.Application()
        app.router.add_get("/{path:.*}", handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}//healthz"
        answered: asyncio.Queue[str] = asyncio.Queue()
        prober = Prober(answered.put_nowait)
        assert prober.ask(KEY, url) is None
        assert prober.ask(KEY, url) is None, "one at a time"
        assert await answered.get() == KEY
        assert prober.ask(KEY, url) is answer
        assert prober.ask(KEY, url) is None, "an answer is used once"
        await answered.get()
        assert len(heads) == 2
        assert heads[0]["K-Network-Probe"] == "activator"
        assert heads[0]["User-Agent"] == "Knative-Autoscaling-Probe"
        prober.forget(KEY)
        await prober.close()
        await runner.cleanup()

    run(test())


def test_nobody_there_is_an_answer_too() -> None:
    async def test() -> None:
        answered: asyncio.Queue[str] = asyncio.Queue()
        prober = Prober(answered.put_nowait)
        assert prober.ask(KEY, "http://127.0.0.1:1//healthz") is None
        await answered.get()
        assert prober.ask(KEY, "http://127.0.0.1:1//healthz") is False
        await prober.close()

    run(test())


def test_where_a_probe_goes() -> None:
    assert probe.target("rev", "ns", "http1", "example.org") == "http://rev.ns.svc.example.org:80//healthz"
    assert probe.target("rev", "ns", "h2c", "example.org") == "http://rev.ns.svc.example.org:81//healthz"


# --- writes behind


class Writing:
    """A writer over informers that are in sync."""

    def __init__(self, api: ApiServer) -> None:
        self.api = api
        self.client = api.client()
        self.copies = {k: Informer(self.client, k) for k in (POD_AUTOSCALERS, SERVERLESS_SERVICES, METRICS)}
        self.allowed = True
        self.writer = Writer(self.client, self.copies, lambda _: self.allowed)

    async def __aenter__(self) -> Writing:
        for copy in self.copies.values():
            copy.start()
            await copy.synced.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.writer.stop(5)
        for copy in self.copies.values():
            await copy.stop()
        await self.client.close()

    def pa(self) -> dict[str, Any]:
        found = self.copies[POD_AUTOSCALERS].get(NAMESPACE, NAME)
        assert found is not None
        return found

    def metric(self, window: int = 1) -> dict[str, Any]:
        metadata = self.pa()["metadata"]
        owner = {"kind": "PodAutoscaler", "name": NAME, "uid": metadata["uid"], "controller": True}
        return {
            "metadata": {"name": NAME, "namespace": NAMESPACE, "ownerReferences": [owner]},
            "spec": {"stableWindow": window},
        }

    def writes(self, kind: Kind) -> list[str]:
        return [r for r in self.api.requests if kind.plural in r and not r.startswith("GET")]


def test_of_several_statuses_only_the_last_is_written_and_it_counts_at_once() -> None:
    async def test() -> None:
        async with ApiServer() as api:
            put_revision(api)
            async with Writing(api) as world:
                writer, pa = world.writer, world.pa()
                for scale in range(5):
                    writer.put_status(POD_AUTOSCALERS, pa, {"desiredScale": scale})
                    assert writer.status(POD_AUTOSCALERS, pa) == {"desiredScale": scale}
                writer.start()
                await api.until(lambda: status(api) == {"desiredScale": 4})
                await until(lambda: world.pa().get("status"))
                writer.put_status(POD_AUTOSCALERS, world.pa(), {"desiredScale": 4})
                assert len(world.writes(POD_AUTOSCALERS)) == 1

    run(test())


def test_what_is_not_urgent_waits_a_moment_for_what_replaces_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with ApiServer() as api:
            put_revision(api)
            async with Writing(api) as world:
                world.writer.start()
                world.writer.put_status(POD_AUTOSCALERS, world.pa(), {"desiredScale": 1}, urgent=False)
                world.writer.put_child(METRICS, world.pa(), world.metric(1), urgent=False)
                assert world.writer.status(POD_AUTOSCALERS, world.pa()) == {"desiredScale": 1}
                world.writer.put_status(POD_AUTOSCALERS, world.pa(), {"desiredScale": 2})
                world.writer.put_child(METRICS, world.pa(), world.metric(2))
                await api.until(lambda: status(api) == {"desiredScale": 2})
                await api.until(lambda: spec(api, METRICS) == {"stableWindow": 2})
                monkeypatch.setattr(writer, "MOMENT_S", 0.01)
                world.writer.put_status(POD_AUTOSCALERS, world.pa(), {"desiredScale": 3}, urgent=False)
                await api.until(lambda: status(api) == {"desiredScale": 3})
                assert len(world.writes(POD_AUTOSCALERS)) == 2
                monkeypatch.setattr(writer, "MOMENT_S", 1000.0)
                await until(lambda: world.pa().get("status") == {"desiredScale": 3})
                world.writer.put_status(POD_AUTOSCALERS, world.pa(), {"desiredScale": 4}, urgent=False)
                await world.writer.stop(5)
                assert status(api) == {"desiredScale": 4}

    run(test())


def test_what_is_not_urgent_waits_while_revisions_are_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with ApiServer() as api:
            put_revision(api)
            async with Writing(api) as world:
                monkeypatch.setattr(writer, "MOMENT_S", 0.001)
                asked: asyncio.Queue[None] = asyncio.Queue()
                waking = True

                def busy() -> bool:
                    asked.put_nowait(None)
                    return waking

                one = Writer(world.client, world.copies, lambda _: True, busy)
                one.start()
                one.put_status(POD_AUTOSCALERS, world.pa(), {"desiredScale": 1}, urgent=False)
                for _ in range(5):
                    await asked.get()
                assert world.writes(POD_AUTOSCALERS) == []
                one.put_child(METRICS, world.pa(), world.metric(1))
                await api.until(lambda: spec(api, METRICS) == {"stableWindow": 1})
                assert world.writes(POD_AUTOSCALERS) == []
                one.put_status(POD_AUTOSCALERS, world.pa(), {"desiredScale": 2})
                await api.until(lambda: status(api) == {"desiredScale": 2})
                await until(lambda: world.pa().get("status") == {"desiredScale": 2})
                one.put_status(POD_AUTOSCALERS, world.pa(), {"desiredScale": 3}, urgent=False)
                await asked.get()
                waking = False
                await api.until(lambda: status(api) == {"desiredScale": 3})
                waking = True
                monkeypatch.setattr(writer, "DEFERRED_S", 0.01)
                await until(lambda: world.pa().get("status") == {"desiredScale": 3})
                one.put_status(POD_AUTOSCALERS, world.pa(), {"desiredScale": 4}, urgent=False)
                await api.until(lambda: status(api) == {"desiredScale": 4})
                monkeypatch.setattr(writer, "DEFERRED_S", 1000.0)
                await until(lambda: world.pa().get("status") == {"desiredScale": 4})
                one.put_status(POD_AUTOSCALERS, world.pa(), {"desiredScale": 5}, urgent=False)
                await one.stop(5)
                assert status(api) == {"desiredScale": 5}

    run(test())


def test_in_a_long_burst_few_of_what_has_waited_go_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with ApiServer() as api:
            put_revision(api)
            async with Writing(api) as world:
                for name, value in (("MOMENT_S", 0.001), ("DEFERRED_S", 0.01), ("OVERDUE_QPS", 1e-6)):
                    monkeypatch.setattr(writer, name, value)
                asked: asyncio.Queue[None] = asyncio.Queue()
                waking = True

                def busy() -> bool:
                    asked.put_nowait(None)
                    return waking

                one = Writer(world.client, world.copies, lambda _: True, busy)
                one.start()
                one.put_status(POD_AUTOSCALERS, world.pa(), {"desiredScale": 1}, urgent=False)
                await api.until(lambda: status(api) == {"desiredScale": 1})
                await until(lambda: world.pa().get("status") == {"desiredScale": 1})
                one.put_status(POD_AUTOSCALERS, world.pa(), {"desiredScale": 2}, urgent=False)
                await asyncio.sleep(2 * writer.DEFERRED_S)
                for _ in range(asked.qsize() + 5):
                    await asked.get()
                assert status(api) == {"desiredScale": 1}
                waking = False
                await api.until(lambda: status(api) == {"desiredScale": 2})
                await one.stop(5)

    run(test())


def test_a_status_is_repeated_until_the_server_takes_it() -> None:
    async def test() -> None:
        async with ApiServer() as api:
            put_revision(api)
            async with Writing(api) as world:
                api.fail(503, 3, method="PATCH")
                world.writer.start()
                world.writer.put_status(POD_AUTOSCALERS, world.pa(), {"desiredScale": 1})
                await api.until(lambda: status(api) == {"desiredScale": 1})

    run(test())


def test_a_lost_lease_takes_back_what_is_in_line() -> None:
    async def test() -> None:
        async with ApiServer() as api:
            put_revision(api)
            async with Writing(api) as world:
                world.writer.put_status(POD_AUTOSCALERS, world.pa(), {"desiredScale": 1})
                world.writer.put_child(METRICS, world.pa(), world.metric())
                world.allowed = False
                world.writer.start()
                await world.writer.stop(5)
                assert world.writes(POD_AUTOSCALERS) == world.writes(METRICS) == []
                assert world.writer.status(POD_AUTOSCALERS, world.pa()) == {}

    run(test())


def test_a_lease_that_is_lost_while_a_write_waits_for_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "QPS", 20.0)
    monkeypatch.setattr(writer, "BURST", 1)

    async def test() -> None:
        async with ApiServer() as api:
            put_revision(api)
            async with Writing(api) as world:
                asked: list[str] = []

                def may(key: str) -> bool:
                    asked.append(key)
                    return len(asked) <= 2

                late = Writer(world.client, world.copies, may)
                late.put_child(METRICS, world.pa(), world.metric())
                late.put_status(POD_AUTOSCALERS, world.pa(), {"desiredScale": 1})
                late.start()
                await late.stop(5)
                assert len(world.writes(METRICS)) == 1
                assert world.writes(POD_AUTOSCALERS) == []
                assert late.status(POD_AUTOSCALERS, world.pa()) == {}

    run(test())


def test_whoever_has_missed_a_change_writes_no_status_until_it_has_seen_that() -> None:
    async def test() -> None:
        async with ApiServer() as api:
            put_revision(api)
            async with Writing(api) as world:
                world.writer.start()
                copy, pa = world.copies[POD_AUTOSCALERS], world.pa()
                await copy.stop()
                world.writer.put_status(POD_AUTOSCALERS, pa, {"desiredScale": 1})
                await api.until(lambda: status(api) == {"desiredScale": 1})
                world.writer.put_status(POD_AUTOSCALERS, pa, {"desiredScale": 2})
                await api.until(lambda: status(api) == {"desiredScale": 2})  # what it wrote itself it knows
                assert world.writer.counters.failures == 0
                api.put(POD_AUTOSCALERS, {**pa, "status": {"desiredScale": 9}})
                world.writer.put_status(POD_AUTOSCALERS, pa, {"desiredScale": 3})
                await until(lambda: world.writer.counters.failures)
                assert status(api) == {"desiredScale": 9}
                copy.start()
                await api.until(lambda: status(api) == {"desiredScale": 3})

    run(test())


def test_a_child_is_made_changed_and_put_right_again() -> None:
    async def test() -> None:
        async with ApiServer() as api:
            put_revision(api)
            async with Writing(api) as world:
                world.writer.start()

                async def put(window: int) -> None:
                    world.writer.put_child(METRICS, world.pa(), world.metric(window))
                    await api.until(lambda: spec(api, METRICS) == {"stableWindow": window})
                    await until(lambda: world.copies[METRICS].objects)
                    copy = world.copies[METRICS].objects
                    await until(lambda: copy[NAMESPACE, NAME]["spec"] == {"stableWindow": window})

                await put(1)
                await put(2)
                made = len(world.writes(METRICS))
                world.writer.put_child(METRICS, world.pa(), world.metric(2))
                assert len(world.writes(METRICS)) == made
                api.put(METRICS, world.metric(99))
                copy = world.copies[METRICS].objects
                await until(lambda: copy[NAMESPACE, NAME]["spec"] == {"stableWindow": 99})
                await put(2)

    run(test())


def test_a_child_of_somebody_else_is_left_alone() -> None:
    async def test() -> None:
        async with ApiServer() as api:
            put_revision(api)
            async with Writing(api) as world:
                api.put(
                    METRICS, {"metadata": {"name": NAME, "namespace": NAMESPACE}, "spec": {"stableWindow": 7}}
                )
                world.writer.put_child(METRICS, world.pa(), world.metric())
                world.writer.start()
                await world.writer.stop(5)
                assert spec(api, METRICS) == {"stableWindow": 7}

    run(test())


def test_what_is_gone_is_not_written() -> None:
    async def test() -> None:
        async with ApiServer() as api:
            put_revision(api)
            async with Writing(api) as world:
                pa = world.pa()
                world.writer.put_status(POD_AUTOSCALERS, pa, {"desiredScale": 1})
                api.remove(POD_AUTOSCALERS, NAMESPACE, NAME)
                world.writer.start()
                await world.writer.stop(5)
                assert world.writer.status(POD_AUTOSCALERS, pa) == {}
                other = Writer(world.client, world.copies, lambda _: True)
                other.put_status(POD_AUTOSCALERS, pa, {"desiredScale": 2})
                other.forget(KEY)
                assert other.status(POD_AUTOSCALERS, pa) == {}

    run(test())


# --- scales


@pytest.mark.parametrize(
    ("api_version", "kind", "expected"),
    [
        ("apps/v1", "Deployment", DEPLOYMENTS),
        ("example.org/v1", "Chaos", Kind("example.org", "v1", "chaoses", "Chaos")),
        ("v1", "ReplicationController", Kind("", "v1", "replicationcontrollers", "ReplicationController")),
    ],
)
def test_kinds_of_targets(api_version: str, kind: str, expected: Kind) -> None:
    assert scales.kind_of({"apiVersion": api_version, "kind": kind}) == expected


def test_a_scale_is_written_once_and_only_when_it_is_another() -> None:
    async def test() -> None:
        async with ApiServer() as api, api.client() as client:
            pa = put_revision(api, 1)
            deployments = Informer(client, DEPLOYMENTS, keep=scales.slim)
            writing = Scales(client, deployments, lambda key: None, lambda key: True)
            await writing.apply("a", pa, 1)
            assert writing.patches == 0
            await writing.apply("a", pa, 3)
            await writing.apply("a", pa, 3)
            assert (writing.patches, replicas(api)) == (1, 3)
            deployments.start()
            await deployments.synced.wait()
            await writing.apply("a", pa, 3)
            await writing.apply("a", pa, 4)
            await writing.apply("a", pa, 4)
            assert (writing.patches, replicas(api)) == (2, 4)
            await deployments.stop()
            stranger = {**pa, "spec": {"scaleTargetRef": {**pa["spec"]["scaleTargetRef"], "name": "none"}}}
            with pytest.raises(NotFound):
                await writing.apply("b", stranger, 1)
            await api.down()
            with pytest.raises(Unavailable):
                await writing.apply("a", pa, 7)

    run(test())


def test_a_burst_from_zero_goes_in_waves_and_in_order() -> None:
    async def test() -> None:
        async with ApiServer() as api, api.client() as client:
            names = [f"r{number:02d}" for number in range(MOST + 3)]
            pas = {name: put_revision(api, 0, name=name) for name in names}
            turns: list[str] = []
            deployments = Informer(client, DEPLOYMENTS, keep=scales.slim)
            writing = Scales(client, deployments, turns.append, lambda key: True)
            deployments.start()
            await deployments.synced.wait()
            woken = [await writing.apply(name, pas[name], 1) for name in names]
            assert woken == [True] * MOST + [False] * 3
            assert not turns
            writing.withdraw(names[MOST])
            writing.made(names[0])
            assert turns == [names[MOST + 1]]
            assert await writing.apply(names[MOST + 1], pas[names[MOST + 1]], 1)
            assert not await writing.apply(names[MOST + 2], pas[names[MOST + 2]], 1)
            assert writing.patches == MOST + 1
            await writing.apply(names[1], pas[names[1]], 5)  # what runs already is in no line
            assert replicas(api, names[1]) == 5
            writing.close()
            await deployments.stop()

    run(test())


def test_nothing_shrinks_in_a_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waves, "CALM_S", 0.05)

    async def test() -> None:
        async with ApiServer() as api, api.client() as client:
            names = [f"r{number:02d}" for number in range(MOST + 1)]
            pas = {name: put_revision(api, 0, name=name) for name in names}
            idle = put_revision(api, 2, name="idle")
            turns: list[str] = []
            deployments = Informer(client, DEPLOYMENTS, keep=scales.slim)
            writing = Scales(client, deployments, turns.append, lambda key: True)
            deployments.start()
            await deployments.synced.wait()
            for name in names:
                await writing.apply(name, pas[name], 1)
            assert writing.waking()
            assert not await writing.apply("idle", idle, 0)
            assert replicas(api, "idle") == 2
            for name in ("idle", *names):
                writing.made(name)
            await until(lambda: "idle" in turns)
            assert not writing.waking()
            assert await writing.apply("idle", idle, 0)
            assert replicas(api, "idle") == 0
            writing.close()
            await deployments.stop()

    run(test())


def test_a_patch_of_what_has_changed_since_is_refused_and_the_change_is_seen() -> None:
    async def test() -> None:
        async with ApiServer() as api, api.client() as client:
            pa = put_revision(api, 1)
            deployments = Informer(client, DEPLOYMENTS, keep=scales.slim)
            deployments.start()
            await deployments.synced.wait()

            def stopped_here(key: str) -> bool:
                """The Lease was ours when it was asked for; then another has it, and scales."""
                made = api.get(DEPLOYMENTS, NAMESPACE, f"{NAME}-deployment")
                assert made is not None
                if made["spec"]["replicas"] == 1:
                    api.put(DEPLOYMENTS, {**made, "spec": {**made["spec"], "replicas": 7}})
                return True

            writing = Scales(client, deployments, lambda key: None, stopped_here)
            with pytest.raises(Conflict):
                await writing.apply("a", pa, 3)
            assert replicas(api) == 7
            await until(lambda: deployments.objects[NAMESPACE, f"{NAME}-deployment"]["spec"]["replicas"] == 7)
            made = api.get(DEPLOYMENTS, NAMESPACE, f"{NAME}-deployment")
            assert made is not None
            api.put(DEPLOYMENTS, {**made, "status": {"replicas": 7}})  # no other spec
            assert await writing.apply("a", pa, 3)
            assert await writing.apply("a", pa, 2), "over what it wrote itself, seen or not"
            assert replicas(api) == 2
            await deployments.stop()

    run(test())


def test_whether_it_may_be_scaled_is_asked_right_before_the_patch() -> None:
    async def test() -> None:
        async with ApiServer() as api, api.client() as client:
            pa = put_revision(api, 1)
            deployments = Informer(client, DEPLOYMENTS, keep=scales.slim)
            # lost while the present scale is read
            writing = Scales(client, deployments, lambda key: None, lambda key: not api.requests)
            assert not await writing.apply("a", pa, 3)
            assert (writing.patches, replicas(api)) == (0, 1)

    run(test())


# --- configuration


def test_buckets_and_mesh_are_read_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def test() -> None:
        async with ApiServer() as api, api.client() as client:
            put_config(api, "config-leader-election", buckets="3")
            put_config(api, "something-else", stable_window="soon")
            changes: list[int] = []
            store = ConfigStore(client, SYSTEM, lambda: changes.append(1))
            await store.start()
            assert store.current.leader_election.buckets == 3
            put_config(api, "config-leader-election", buckets="5")
            put_config(api, "config-autoscaler", min_scale="1", min_skale="2")
            await until(lambda: len(changes) == 2)
            assert store.current.leader_election.buckets == 3
            assert store.current.autoscaler.min_scale == 1
            await store.stop()

    run(test())
    assert "read at the next start" in caplog.text
    assert "did you mean min-scale?" in caplog.text
    assert "ConfigMap knative-serving/config-network: not there" in caplog.text


# --- environment

POD = {"POD_NAME": "a-0", "POD_IP": "10.0.0.1"}


def test_the_environment_of_knatives_deployment(tmp_path: Path) -> None:
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 10.96.0.10\nsearch ns.svc.example.org svc.example.org. example.org\n")
    found = read({**POD, "SYSTEM_NAMESPACE": "kn", "CONFIG_LEADERELECTION_NAME": "le"}, resolv_conf)
    assert (found.holder, found.namespace, found.domain) == (Holder("a-0", "10.0.0.1"), "kn", "example.org")
    assert (found.leader_election, found.logging_config, found.stats_port) == ("le", "config-logging", 8080)
    assert read({**POD, "CLUSTER_DOMAIN": "x.y"}, resolv_conf).domain == "x.y"
    assert cluster_domain(tmp_path / "none") == "cluster.local"
    resolv_conf.write_text("nameserver 10.96.0.10\n")
    assert cluster_domain(resolv_conf) == "cluster.local"


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"POD_NAME": "a"}, "POD_IP"),
        ({"POD_IP": "a"}, "POD_NAME"),
        ({**POD, "GALAXY_STATS_PORT": "http"}, "GALAXY_STATS_PORT"),
        ({**POD, "GALAXY_METRICS_PORT": "70000"}, "GALAXY_METRICS_PORT"),
    ],
)
def test_a_bad_environment_is_named(
    environ: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadEnvironment, match=named):
        read(environ)
    for name in ("POD_NAME", "POD_IP"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert main() == 1


def test_a_stateful_set_shares_buckets_by_ordinals() -> None:
    environ = {**POD, "STATEFUL_CONTROLLER_ORDINAL": "autoscaler-1", "STATEFUL_SERVICE_NAME": "as"}
    found = read(environ).stateful_set
    assert found == StatefulSet("autoscaler", 1, "as", "80", "http")
    assert found.buckets(2, "kn", "cluster.local").names == (
        "http://autoscaler-0.as.kn.svc.cluster.local:80",
        "http://autoscaler-1.as.kn.svc.cluster.local:80",
    )
    with pytest.raises(BadEnvironment, match="raise buckets"):
        found.buckets(1, "kn", "cluster.local")
    assert read({**environ, "STATEFUL_SERVICE_NAME": ""}).stateful_set is None
    assert read({**environ, "STATEFUL_CONTROLLER_ORDINAL": "autoscaler"}).stateful_set is None
