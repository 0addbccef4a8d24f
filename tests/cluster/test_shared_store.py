"""`galaxy up --store redis://... --controllers 2`: invariant 5, and everything killed at once, on real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from kserve_ext.cli.embedded.folder import runs
from kserve_ext.rpc.process import start_ticks
from tests.cluster.conftest import SIZE, TWO_OF_EACH
from tests.cluster.test_at_zero import instances, shard_urls
from tests.cluster.test_kills import under_load
from tests.support.embedded import Embedded, echo_runtime, echo_service
from tests.support.load import volley
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.cluster

HOST = "steady.default.galaxy.local"
FUNCTIONS = [
    *("controller-0", "controller-1", "cluster-mgr-0", "cluster-mgr-1", "schedule-0", "schedule-1"),
    *("dispatch-0", "dispatch-1", "node-0", "node-1", "objects-0"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """On disk at once, so that killing it with everything else loses nothing."""
    with RedisServer(tmp_path_factory.mktemp("redis"), "--requirepass", "s3cret", kept=True) as server:
        yield server


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, store: RedisServer) -> Iterator[Embedded]:
    folder = tmp_path_factory.mktemp("galaxy")
    model = folder / "claim" / "anything"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    url = f"redis://:s3cret@127.0.0.1:{store.port}/0"
    more = ("--store", url, "--controllers", "2", "--pvc", f"models={folder / 'claim'}")
    with Embedded(folder / "data", *TWO_OF_EACH, *SIZE, *more) as up:
        up.apply(echo_runtime())
        spec = "    maxReplicas: 4\n    containerConcurrency: 4\n"
        up.apply(echo_service("steady", "pvc://models/anything", spec=spec))
        for k in range(4):  # each from zero once, whatever the store does
            up.apply(echo_service(f"cold-{k}", "pvc://models/anything"))
        assert asyncio.run(volley(shard_urls(up), HOST, 8)).ok == 8
        yield up


def terms_ended(cluster: Embedded, controller: str) -> int:
    """How often it has led no more: on a machine that stood still for longer than a lease it gives up."""
    return (cluster.data / "log" / f"{controller}.log").read_text().count("leads no more")


def cold(cluster: Embedded, number: int) -> None:
    tally = asyncio.run(volley(shard_urls(cluster), f"cold-{number}.default.galaxy.local", 4))
    assert tally.ok == 4, str(tally)


@pytest.mark.parametrize("how", ["paused", "emptied", "restarted empty"])
def test_requests_flow_and_instances_start_whatever_becomes_of_the_store(
    cluster: Embedded, store: RedisServer, how: str
) -> None:
    number = ["paused", "emptied", "restarted empty"].index(how)

    def act() -> None:
        if how == "paused":
            store.pause()
            cold(cluster, number)
            store.resume()
        elif how == "emptied":
            assert b"OK" in store.command("AUTH s3cret\r\nFLUSHALL")
            cold(cluster, number)
        else:
            store.kill()
            cold(cluster, number)
            for file in store.folder.rglob("*"):
                if file.is_file() and file.name != "redis.log":
                    file.unlink()
            store.start()

    before = {str(i["id"]) for i in instances(cluster, "steady")}
    for url, tally in under_load(cluster, act).items():
        assert (tally.reset, dict(tally.refused)) == (0, {}), f"{how}, {url}: {tally}"
    assert {str(i["id"]) for i in instances(cluster, "steady")} & before
    cluster.wait("whole", lambda: cluster.whole(FUNCTIONS))
    # What is applied is there, and is served by a Dispatch function that has only the store to learn it from.
    assert {"steady", "cold-0"} <= {str(s["metadata"]["name"]) for s in cluster.json("get", "isvc")["items"]}
    cluster.back("dispatch-1", cluster.kill("dispatch-1"))
    cluster.wait("whole again", lambda: cluster.whole(FUNCTIONS))
    assert asyncio.run(volley([shard_urls(cluster)[1]], HOST, 4)).ok == 4


@pytest.mark.parametrize("how", ["killed", "paused"])
def test_the_leader_is_killed_or_paused_under_load(cluster: Embedded, how: str) -> None:
    def leader() -> str:
        return str(cluster.status()["controller"]["id"])

    def restart_one() -> None:
        """Whoever leads publishes that."""
        cluster.kill("cluster-mgr-1")
        cluster.wait("the next cluster-mgr-1 in the view", lambda: cluster.whole(FUNCTIONS))

    cluster.wait("whole", lambda: cluster.whole(FUNCTIONS))
    first = leader()

    def act() -> None:
        pid = cluster.kill(first, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        if how == "paused":
            cluster.wait("the other leads", lambda: leader() != first)
        restart_one()
        if how == "paused":
            second = leader()
            given_up = terms_ended(cluster, second)
            with contextlib.suppress(ProcessLookupError):  # where this took long, the supervisor has ended it
                os.kill(pid, signal.SIGCONT)
            restart_one()
            assert leader() == second or terms_ended(cluster, second) > given_up

    for url, tally in under_load(cluster, act).items():
        assert (tally.reset, dict(tally.refused)) == (0, {}), f"{how}, {url}: {tally}"


def test_everything_is_killed_at_once_and_known_again_none_twice_none_leaked(
    cluster: Embedded, store: RedisServer
) -> None:
    cluster.wait("whole", lambda: cluster.whole(FUNCTIONS))
    asyncio.run(volley(shard_urls(cluster), HOST, 16))
    ready = [i for i in instances(cluster, "steady") if i["state"] == "ready"]
    before = {str(i["id"]): int(i["pid"]) for i in ready}
    ticks = {pid: start_ticks(pid) for pid in before.values()}
    assert before
    pids = {name: cluster.running(name) for name in FUNCTIONS}
    store.kill()
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    store.start()

    def back() -> bool:
        return all(cluster.pid(name) != pid for name, pid in pids.items()) and cluster.whole(FUNCTIONS)

    took = cluster.wait("everything is back", back)
    tally = asyncio.run(volley(shard_urls(cluster), HOST, 16))
    assert tally.ok == 16, str(tally)
    print(f"whole again after {took:.1f} s")
    found = [(str(i["id"]), int(i["pid"])) for i in instances(cluster, "steady")]
    assert len(found) == len(dict(found)) <= 4
    assert dict(found).items() & before.items(), "instances lived on, and are used"
    for name, pid in before.items():
        assert name in dict(found) or not runs(pid, ticks[pid]), f"{name} runs and nobody knows it"
