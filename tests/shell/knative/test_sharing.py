"""Several activators over real sockets: slots go where requests wait, no pod gets too many, a home that is killed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from activator_replacement.knative.activator import Activator
from activator_replacement.knative.sharing.neighbourhood import ACTIVATORS
from kserve_ext.core import rendezvous
from kserve_ext.core.facts import Instance, InstanceState
from kserve_ext.core.ids import InstanceID, NodeID, RevisionKey
from kserve_ext.kube.kinds import ENDPOINTS, SECRETS
from kserve_ext.kube.peers_key import SECRET, shared_key
from kserve_ext.rpc import Rpc, ports
from kserve_ext.wire.messages import ModInstance
from tests.shell.knative.test_activator_process import line, start
from tests.support.api_server import ApiServer
from tests.support.dataplane import Client, get, run
from tests.support.dispatch_cluster import until
from tests.support.knative_activator import (
    NAMESPACE,
    Pod,
    activator,
    put_config,
    put_endpoints,
    put_revision,
    running,
)

SYSTEM = "knative-serving"
REVISION = "hello-00001"
KEY = f"{NAMESPACE}/{REVISION}"
HEADERS = (f"Knative-Serving-Namespace: {NAMESPACE}", f"Knative-Serving-Revision: {REVISION}")
ONE, TWO, THREE = "127.0.0.2", "127.0.0.3", "127.0.0.4"


def free_port() -> int:
    """On all of the addresses; none that the kernel gives to somebody's connection meanwhile."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            port = ports.free_port()
            probe.bind(("0.0.0.0", port))
            return port


def put_secret(api: ApiServer, key: bytes | None = b"k" * 32) -> None:
    data = {"key": base64.b64encode(key).decode()} if key is not None else {}
    api.put(SECRETS, {"metadata": {"namespace": SYSTEM, "name": SECRET}, "data": data})


def put_activators(api: ApiServer, *ips: str) -> None:
    """Where they are, and that the revision's requests go to all of them."""
    subsets = [{"addresses": [{"ip": ip} for ip in ips], "ports": [{"name": "http", "port": 8012}]}]
    api.put(ENDPOINTS, {"metadata": {"namespace": SYSTEM, "name": ACTIVATORS}, "subsets": subsets})
    put_endpoints(api, REVISION, [f"{ip}:8012" for ip in ips], public=True)


def put_all(api: ApiServer, pods: Sequence[Pod], *ips: str, concurrency: int = 1) -> None:
    put_config(api)
    put_secret(api)
    put_revision(api, REVISION, containerConcurrency=concurrency)
    put_endpoints(api, REVISION, [pod.addr for pod in pods])
    put_activators(api, *ips)


@contextlib.asynccontextmanager
async def activators(api: ApiServer, *ips: str) -> AsyncIterator[list[Activator]]:
    """All that know each other."""
    port = str(free_port())
    async with contextlib.AsyncExitStack() as stack:
        made = [
            await stack.enter_async_context(activator(api, POD_IP=ip, GALAXY_PEER_PORT=port)) for ip in ips
        ]
        for one in made:
            sharing = one.neighbourhood.sharing
            assert sharing is not None
            await until(lambda s=sharing: len(s.peers.alive) == len(ips), "all know each other")  # type: ignore[misc]
            await until(lambda a=one: part(a).activation.share.place >= 0, "its place is known")  # type: ignore[misc]
        yield made


def part(made: Activator):  # type: ignore[no-untyped-def]
    return made.dispatcher.parts[KEY]  # type: ignore[index]


async def pods_of(stack: contextlib.AsyncExitStack, count: int) -> list[Pod]:
    return [await stack.enter_async_context(running(Pod())) for _ in range(count)]


async def ask(port: int, times: int = 1) -> list[int]:
    """The statuses of so many requests, one after the other."""
    client = await Client.connect("127.0.0.1", port)
    try:
        found = []
        for _ in range(times):
            client.send(get("/", *HEADERS))
            found.append((await client.response())[0])
        return found
    finally:
        client.close()


def test_all_slots_go_to_the_one_that_needs_them() -> None:
    async def test() -> None:
        async with ApiServer() as api, contextlib.AsyncExitStack() as stack:
            pods = await pods_of(stack, 6)
            for pod in pods:
                pod.gate.clear()
            put_all(api, pods, ONE, TWO, THREE)
            async with activators(api, ONE, TWO, THREE) as (_, busy, _):
                asking = [asyncio.ensure_future(ask(busy.http1[1])) for _ in range(8)]
                await until(lambda: sum(pod.in_flight for pod in pods) == 6, "every pod has one")
                await until(lambda: part(busy).activation.held == 2, "two are held")
                sharing = busy.neighbourhood.sharing
                assert sharing is not None
                figures = sharing.figures(part(busy).facts.key)
                assert figures.home in (ONE, TWO, THREE)
                assert figures.leased == 6
                for pod in pods:
                    pod.gate.set()
                assert await asyncio.gather(*asking) == [[200]] * 8
                assert {pod.most_in_flight for pod in pods} == {1}

    run(test())


@pytest.mark.parametrize("pods", [1, 2, 5])
def test_no_pod_is_sent_more_than_it_takes(pods: int) -> None:
    """Fewer pods than activators, too, where Knative's would all send one."""

    async def test() -> None:
        async with ApiServer() as api, contextlib.AsyncExitStack() as stack:
            made_pods = await pods_of(stack, pods)
            put_all(api, made_pods, ONE, TWO, THREE)
            async with activators(api, ONE, TWO, THREE) as made:
                asking = [ask(one.http1[1], 20) for one in made for _ in range(4)]
                assert {status for answers in await asyncio.gather(*asking) for status in answers} == {200}
                assert max(pod.most_in_flight for pod in made_pods) == 1

    run(test())


def test_what_is_anothers_by_position_is_left_to_it() -> None:
    """One of Knative's own beside two of ours: it doesn't answer on the port."""

    async def test() -> None:
        async with ApiServer() as api, contextlib.AsyncExitStack() as stack:
            pods = await pods_of(stack, 6)
            for pod in pods:
                pod.gate.clear()
            put_all(api, pods, ONE, TWO, THREE)
            async with activators(api, ONE, THREE) as (busy, _):
                asking = [asyncio.ensure_future(ask(busy.http1[1])) for _ in range(8)]
                await until(lambda: sum(pod.in_flight for pod in pods) == 4, "the others' four have one")
                in_order = sorted(pods, key=lambda pod: pod.addr)
                assert [pod.in_flight for pod in in_order] == [1, 1, 0, 0, 1, 1]
                for pod in pods:
                    pod.gate.set()
                assert await asyncio.gather(*asking) == [[200]] * 8
                assert [pod.most_in_flight for pod in in_order] == [1, 1, 0, 0, 1, 1]

    run(test())


@pytest.mark.parametrize("key", [None, b"another key of 32 bytes and more"])
def test_without_the_same_key_slots_are_divided_by_position(key: bytes | None) -> None:
    async def test() -> None:
        async with ApiServer() as api, contextlib.AsyncExitStack() as stack:
            pods = await pods_of(stack, 4)
            put_all(api, pods, ONE, TWO)
            port = str(free_port())
            one = await stack.enter_async_context(activator(api, POD_IP=ONE, GALAXY_PEER_PORT=port))
            if key is None:
                api.remove(SECRETS, SYSTEM, SECRET)
            else:
                put_secret(api, key)
            two = await stack.enter_async_context(activator(api, POD_IP=TWO, GALAXY_PEER_PORT=port))
            assert (two.neighbourhood.sharing is None) == (key is None)
            for made in (one, two):
                await until(lambda m=made: len(part(m).activation.assigned) == 2, "its own")  # type: ignore[misc]
            assert not {t.addr for t in part(one).activation.assigned} & {
                t.addr for t in part(two).activation.assigned
            }
            assert await ask(one.http1[1], 3) == await ask(two.http1[1], 3) == [200] * 3

    run(test())


def test_one_that_ends_leaves_its_slots_to_the_others() -> None:
    async def test() -> None:
        async with ApiServer() as api, contextlib.AsyncExitStack() as stack:
            pods = await pods_of(stack, 4)
            put_all(api, pods, ONE, TWO)
            async with activators(api, ONE, TWO) as (one, two):
                assert await ask(one.http1[1], 3) == await ask(two.http1[1], 3) == [200] * 3
                put_activators(api, TWO)
                await one.close()
                for pod in pods:
                    pod.gate.clear()
                asking = [asyncio.ensure_future(ask(two.http1[1])) for _ in range(4)]
                await until(lambda: sum(pod.in_flight for pod in pods) == 4, "all are its own")
                for pod in pods:
                    pod.gate.set()
                assert await asyncio.gather(*asking) == [[200]] * 4

    run(test())


def test_the_home_is_killed(tmp_path: Path) -> None:
    """kill -9 with requests held by all three: those of the other two are answered, no pod ever gets two."""

    async def test() -> None:
        ips = (ONE, TWO, THREE)
        home = rendezvous.ranked(KEY, ips)[0]
        async with ApiServer() as api, contextlib.AsyncExitStack() as stack:
            pods = await pods_of(stack, 2)
            put_all(api, pods, *ips)
            port = str(free_port())
            processes, ports = {}, {}
            for ip in ips:
                environ = {"POD_IP": ip, "GALAXY_PEER_PORT": port, "GALAXY_ENDPOINTS": "endpoints"}
                process = await start(tmp_path, api.url, GALAXY_DRAIN="0s", **environ)
                stack.callback(lambda p=process: p.returncode is None and p.kill())  # type: ignore[misc]
                ports[ip] = int((await line(process, "serving 1 revisions"))["message"].split()[5])
                processes[ip] = process
            for ip in ips:
                assert await ask(ports[ip], 2) == [200, 200]
            for pod in pods:
                pod.gate.clear()
            victims = [asyncio.ensure_future(ask(ports[ip])) for ip in ips if ip == home for _ in range(4)]
            await until(lambda: sum(pod.in_flight for pod in pods) == 2, "the home uses both pods")
            asking = [asyncio.ensure_future(ask(ports[ip])) for ip in ips if ip != home for _ in range(6)]
            processes[home].send_signal(signal.SIGKILL)
            await processes[home].wait()
            for pod in pods:
                pod.gate.set()
            put_activators(api, *(ip for ip in ips if ip != home))
            assert await asyncio.gather(*asking) == [[200]] * 12
            await asyncio.gather(*victims, return_exceptions=True)
            assert {pod.most_in_flight for pod in pods} == {1}
            for ip in ips:
                if ip != home:
                    processes[ip].terminate()
                    assert await processes[ip].wait() == 0

    run(test())


def test_the_first_to_find_the_secret_empty_makes_the_key(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with ApiServer() as api:
            client = api.client()
            assert await shared_key(client, SYSTEM) is None
            assert caplog.messages[-1].endswith("slots are divided by position until the next start")
            put_secret(api, None)
            first, second = await asyncio.gather(shared_key(client, SYSTEM), shared_key(client, SYSTEM))
            assert first == second
            assert first is not None
            assert len(first) == 32
            assert await shared_key(client, SYSTEM) == first
            put_secret(api, b"short")
            assert await shared_key(client, SYSTEM) is None
            await client.close()

    run(test())


def test_an_api_server_that_is_away_for_a_moment_costs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kserve_ext.kube.peers_key.AGAIN_S", 0.01)

    async def test() -> None:
        async with ApiServer() as api, api.client() as client:
            put_secret(api)
            api.fail(503, 3, path=SECRET)
            assert await shared_key(client, SYSTEM) == b"k" * 32

    run(test())


async def announce(made: Sequence[Activator], pod: Pod, state: InstanceState = "ready") -> None:
    """As the agent of its node does."""
    agent = Rpc("node-agent/node-1", b"k" * 32)
    instance = Instance(InstanceID("standby-a"), RevisionKey(KEY), NodeID("node-1"), state, pod.addr)
    for one in made:
        port = one.settings.peer_port
        await agent.call(
            f"{one.settings.pod_ip}:{port}",
            ModInstance(RevisionKey(KEY), NodeID("node-1"), 1, (instance,), 0),
        )
    await agent.close()


def test_a_pod_that_only_its_agent_knows_is_used_within_its_limit_by_all() -> None:
    async def test() -> None:
        async with ApiServer() as api, contextlib.AsyncExitStack() as stack:
            (pod,) = await pods_of(stack, 1)
            put_all(api, [], ONE, TWO)
            async with activators(api, ONE, TWO) as made:
                asking = [asyncio.ensure_future(ask(one.http1[1], 3)) for one in made for _ in range(4)]
                await until(lambda: all(part(one).activation.held == 4 for one in made), "all are held")
                await announce(made, pod)
                assert await asyncio.gather(*asking) == [[200] * 3] * 8
                assert pod.most_in_flight == 1
                assert pod.probes == 0
                await announce(made, pod, "gone")
                assert [part(one).activation.pods for one in made] == [[], []]

    run(test())


def test_an_activator_that_was_not_told_holds_and_one_that_was_serves() -> None:
    async def test() -> None:
        async with ApiServer() as api, contextlib.AsyncExitStack() as stack:
            (pod,) = await pods_of(stack, 1)
            put_all(api, [], ONE, TWO)
            async with activators(api, ONE, TWO) as (told, other):
                late = asyncio.ensure_future(ask(other.http1[1], 2))
                await announce([told], pod)
                assert await ask(told.http1[1], 3) == [200] * 3
                assert not late.done()
                put_endpoints(api, REVISION, [pod.addr])
                assert await late == [200] * 2
                assert await ask(told.http1[1], 3) == [200] * 3
                assert pod.most_in_flight == 1
                put_endpoints(api, REVISION, [])
                await until(lambda: part(told).activation.pods == [], "the Endpoints have the last word")

    run(test())
