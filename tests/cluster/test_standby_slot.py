"""A standby pod's slot, front, zygote and server as real processes: starts, refusals, kills, reuse, drains, ends."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from kserve_ext.wire import stats
from tests.support.container import USER, restricted, why_not
from tests.support.standby_pod import POD, TOKEN, Pod, assignment, standby_pod

#: For how long a slot waits for somebody to come where a test comes meanwhile, and more than that.
QUIET, QUIET_S = "3s", 3.2
PROBE = ("User-Agent: Knative-Activator-Probe", "K-Network-Probe: queue")
KUBELET = ("User-Agent: kube-probe/1.36", "K-Network-Probe: queue")


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 150.0))


async def ask(pod: Pod, path: str = "/", *lines: str, port: int = 8012) -> tuple[int, bytes]:
    """Status and body, of a connection of its own; 0: it was broken off, or not made."""
    try:
        reader, writer = await asyncio.open_connection(pod.host, port)
    except OSError:
        return 0, b""
    try:
        head = ["GET " + path + " HTTP/1.1", "Host: x", "Connection: close", *lines, "", ""]
        writer.write("\r\n".join(head).encode())
        head_, _, body = (await reader.read()).partition(b"\r\n\r\n")
    except ConnectionError:
        return 0, b""
    finally:
        writer.close()
    return (int(head_[9:12]), body) if head_ else (0, b"")


async def model(pod: Pod) -> dict[str, Any]:
    status, body = await ask(pod)
    assert status == 200, (status, body)
    found: dict[str, Any] = json.loads(body)
    return found


async def serve(pod: Pod, name: str = "rev-1", **fields: object) -> str:
    asked = assignment(pod.folder, name, **fields)
    pod.agent.start(asked)
    state = await pod.agent.until(lambda state: state.state in ("serving", "failed"))
    assert (state.state, state.revision) == ("serving", asked.revision), state
    return asked.revision


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():  # noqa: ASYNC110  what is waited for is another process's
        await asyncio.sleep(0.01)


async def answers(pod: Pod, *lines: str) -> bool:
    return (await ask(pod, "/", *lines))[0] == 200


async def another(pod: Pod, zygote: int) -> bool:
    return any("zygote" in line and pid != zygote for pid, line in pod.processes().items())


async def gone(pod: Pod, pid: int) -> bool:
    return pid not in pod.processes()


async def nothing_left(pod: Pod) -> bool:
    return not pod.processes()


def first_of_container(pod: Pod) -> int:
    found = pod.processes().items()
    [slot] = [pid for pid, line in found if "-m autoscaler_shim.slot" in line and "unshare" not in line]
    return slot


class Stream:
    """A response that goes on until the test says so: an upgraded connection that echoes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, pod: Pod) -> Stream:
        reader, writer = await asyncio.open_connection(pod.host, 8012)
        writer.write(b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 101 " in head
        return cls(reader, writer)

    async def echo(self, data: bytes) -> bytes:
        """What came back; b"": nothing, since it was cut off."""
        self._writer.write(data)
        try:
            return await self._reader.readexactly(len(data))
        except (ConnectionError, asyncio.IncompleteReadError):
            return b""

    def close(self) -> None:
        self._writer.close()


def test_a_standby_pod_is_ready_and_refuses_requests_until_it_has_a_revision() -> None:
    async def test() -> None:
        async with standby_pod() as pod:
            [hello] = pod.agent.hellos
            assert (hello.token, hello.pod, hello.uid) == (TOKEN, f"team-a/{POD}", "uid-1")
            assert (hello.pool, hello.addr, hello.level) == ("pool-1", pod.host, "S0")
            assert await ask(pod) == (503, b"this standby pod has no revision yet\n")
            assert await ask(pod, "/", *KUBELET) == (200, b"queue")
            assert (await ask(pod, "/", "K-Network-Probe: probe", "K-Network-Hash: h"))[0] == 503
            assert await ask(pod, "/wait-for-drain", port=8022) == (200, b"")

    run(test())


@pytest.mark.parametrize("silent", [False, True])
def test_from_start_to_an_answer_of_its_own_model(silent: bool) -> None:
    async def test() -> None:
        async with standby_pod() as pod:
            asked = assignment(pod.folder)
            argv = (*asked.argv, "--silent") if silent else asked.argv
            await serve(pod, argv=argv)
            facts = await model(pod)
            assert facts["model"] == "model of rev-1"
            assert facts["revision"] == "team-a/rev-1"
            for lines in (PROBE, KUBELET):
                assert await ask(pod, "/", *lines) == (200, b"queue")
            status, body = await ask(
                pod, "/head", "K-Original-Host: svc.example", "K-Proxy-Request: activator"
            )
            assert status == 200
            assert b"\r\nHost: svc.example\r\n" in body
            status, body = await ask(pod, "/metrics", port=9091)
            assert b'kn_serving_invocation_duration_seconds_count{http_response_status_code="200"' in body
            assert b'kn_configuration_name="conf"' in body
            status, body = await ask(pod, "/metrics", port=9090)
            assert stats.decode_stat(body).pod_name == POD

    run(test())


def test_every_refusal_says_why_and_changes_nothing() -> None:
    async def test() -> None:
        async with standby_pod() as pod:
            agent = pod.agent
            for fields, why in (
                ({"instance": "another-pod"}, "'another-pod'"),
                ({"argv": ()}, "argv is empty"),
                ({"port": 8012}, "port 8012"),
            ):
                agent.start(assignment(pod.folder, **fields))
                assert why in (await agent.until(lambda state: bool(state.reason))).reason
            await serve(pod)
            agent.start(assignment(pod.folder, "rev-2"))
            state = await agent.until(lambda state: bool(state.reason))
            assert (state.state, state.revision) == ("serving", "team-a/rev-1")
            assert "it has team-a/rev-1" in state.reason
            agent.free("team-a/rev-2")
            assert "can't free team-a/rev-2" in (await agent.until(lambda state: bool(state.reason))).reason
            assert (await model(pod))["model"] == "model of rev-1"
            assert (
                await ask(pod, "/", "Knative-Serving-Namespace: team-a", "Knative-Serving-Revision: old")
            )[0] == 503

    run(test())


def test_a_model_that_is_not_there_fails_the_slot_with_the_reason_and_free_mends_it() -> None:
    async def test() -> None:
        async with standby_pod() as pod:
            pod.agent.start(assignment(pod.folder, model=(("/mnt/models", "/nowhere"),)))
            state = await pod.agent.until_is("failed")
            assert "--model" in state.reason
            assert "/nowhere" in state.reason

            async def blank() -> bool:
                """The front hears of it when the agent does, not before."""
                return (await ask(pod))[0] == 503

            await until(blank)
            assert (await ask(pod, "/", *KUBELET))[0] == 503
            pod.agent.free("team-a/rev-1")
            await pod.agent.until_is("ready")
            await serve(pod, "rev-2")

    run(test())


def test_free_while_it_starts_leaves_nothing_of_it() -> None:
    async def test() -> None:
        async with standby_pod() as pod:
            asked = assignment(pod.folder)
            pod.agent.start(asked._replace(argv=(*asked.argv, "--wait-for", "/nowhere")))
            await pod.agent.until_is("starting")
            pod.agent.free(asked.revision)
            await pod.agent.until_is("ready")
            await serve(pod, "rev-2")
            assert (await model(pod))["model"] == "model of rev-2"
            assert len(pod.processes()) == 4

    run(test())


def test_a_zygote_that_is_killed_comes_back_and_a_server_serves_on() -> None:
    async def test() -> None:
        async with standby_pod() as pod:
            os.kill(pod.pid_of("tiny_runtime.zygote"), signal.SIGKILL)
            assert "signal 9" in (await pod.agent.until_is("warming")).reason
            await pod.agent.until_is("ready")
            revision = await serve(pod)
            before = await model(pod)
            zygote = pod.pid_of("tiny_runtime.zygote")
            os.kill(zygote, signal.SIGKILL)
            await until(lambda: another(pod, zygote))
            assert (await model(pod))["pid"] == before["pid"]
            pod.agent.free(revision)
            await pod.agent.until_is("ready")
            await serve(pod, "rev-2")
            assert len(pod.processes()) == 4

    run(test())


#: A zygote that keeps a process beside it, as one of level S1 keeps an engine.
KEEPING = """
import os, sys, time
if not os.fork():
    time.sleep(600)
    os._exit(0)
os.execv(sys.executable, [sys.executable, "-m", "bench.peers.tiny_runtime.zygote", *sys.argv[1:]])
"""


def test_what_a_killed_zygote_kept_goes_with_it_and_its_server_stays() -> None:
    async def test() -> None:
        async with standby_pod(run=False) as pod:
            package = pod.folder / "keeping"
            package.mkdir()
            (package / "zygote.py").write_text(KEEPING)
            await pod.run(GALAXY_ZYGOTE="keeping", PYTHONPATH=str(pod.folder))
            await pod.agent.until_is("ready")
            await serve(pod)
            server = (await model(pod))["pid"]
            [kept] = [pid for pid, line in pod.processes().items() if "keeping.zygote" in line]
            os.kill(pod.pid_of("tiny_runtime.zygote"), signal.SIGKILL)
            await until(lambda: gone(pod, kept))
            await until(lambda: another(pod, kept))
            assert (await model(pod))["pid"] == server

    run(test())


def test_what_a_server_has_left_goes_before_the_next_revision_is_served() -> None:
    async def test() -> None:
        async with standby_pod() as pod:
            revision = await serve(pod)
            assert (await ask(pod, "/leave"))[0] == 200
            left = pod.pid_of("left behind")
            pod.agent.free(revision)
            await pod.agent.until_is("ready")
            assert left not in pod.processes()
            await serve(pod, "rev-2")
            assert (await model(pod))["model"] == "model of rev-2"

    run(test())


async def said(pod: Pod, path: str) -> Any:
    status, body = await ask(pod, path)
    assert status == 200, (status, body)
    return json.loads(body)


def test_the_next_revision_sees_no_file_of_the_one_before() -> None:
    async def test() -> None:
        async with standby_pod(run=False) as pod:
            place = pod.folder / "scratch"
            place.mkdir()
            (place / "base").write_text("was there before")
            await pod.run(GALAXY_SLOT_SCRATCH=str(place))
            await pod.agent.until_is("ready")
            revision = await serve(pod)
            assert "uid" in await said(pod, f"/write?path={place}/secret")
            pod.agent.free(revision)
            await pod.agent.until_is("ready")
            await serve(pod, "rev-2")
            assert await said(pod, f"/list?path={place}") == ["base"]

    run(test())


def test_a_slot_that_keeps_an_engine_says_from_what_it_started_and_the_next_engine_keeps_its_files() -> None:
    async def test() -> None:
        async with standby_pod(run=False) as pod:
            place = pod.folder / "scratch"
            place.mkdir()
            zygote = "tests.support.keeping_runtime"
            await pod.run(GALAXY_ZYGOTE=zygote, GALAXY_SLOT_LEVEL="S1", GALAXY_SLOT_SCRATCH=str(place))
            await pod.agent.until_is("ready")
            (first,) = os.listdir(place)
            asked = assignment(pod.folder)
            pod.agent.start(asked)
            started = (await pod.agent.until_is("serving")).started
            assert started is not None
            assert (started.level, started.why) == ("S1", "")
            assert [name for name, _ in started.steps] == ["listening", "ready"]
            assert first == f"engine-{(await model(pod))['pid']}"
            await said(pod, f"/write?path={place}/secret")
            pod.agent.free(asked.revision)
            await pod.agent.until_is("ready")
            left = sorted(os.listdir(place))
            assert len(left) == 2, "the next engine's is there"
            assert first in left
            assert "secret" not in left
            other = assignment(pod.folder, "rev-2")
            pod.agent.start(other._replace(argv=(*other.argv, "--other")))
            started = (await pod.agent.until_is("serving")).started
            assert started is not None
            assert (started.level, started.why) == ("S0", "--other: the engine has nothing")
            assert (await model(pod))["model"] == "model of rev-2"
            assert "from S0: --other: the engine has nothing" in pod.log.read_text()

    run(test())


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_another_user_without_rights_in_a_container_that_can_not_be_written_to() -> None:
    """runAsNonRoot, readOnlyRootFilesystem, no capability; and what a revision leaves in /tmp and /dev/shm goes."""

    async def test() -> None:
        async with standby_pod(run=False) as pod:
            await pod.run(*restricted(pod.folder), GALAXY_SLOT_DIR="", HOME="/tmp")
            await pod.agent.until_is("ready")
            revision = await serve(pod)
            assert await said(pod, "/write?path=/etc/x") == {"error": "Read-only file system"}
            for place in ("/tmp", "/dev/shm"):
                assert await said(pod, f"/write?path={place}/secret") == {"uid": USER}
                assert "secret" in await said(pod, f"/list?path={place}")
            pod.agent.free(revision)
            await pod.agent.until_is("ready")
            await serve(pod, "rev-2")
            for place in ("/tmp", "/dev/shm"):
                assert "secret" not in await said(pod, f"/list?path={place}")
            os.kill(first_of_container(pod), signal.SIGTERM)
            assert await pod.ended() == 0

    run(test())


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_a_container_that_was_written_to_elsewhere_is_replaced() -> None:
    async def test() -> None:
        async with standby_pod(run=False) as pod:
            await pod.run(*restricted(pod.folder, read_only=False), GALAXY_SLOT_DIR="")
            await pod.agent.until_is("ready")
            revision = await serve(pod)
            assert await said(pod, "/write?path=/srv/x") == {"uid": USER}
            pod.agent.free(revision)
            state = await pod.agent.until_is("failed")
            assert "/srv/x was written, where nothing can be put back" in state.reason
            assert await pod.ended() == 0

    run(test())


def test_a_front_that_is_killed_comes_back_and_knows_the_revision() -> None:
    async def test() -> None:
        async with standby_pod() as pod:
            os.kill(pod.pid_of("activator_replacement.queue"), signal.SIGKILL)
            await pod.agent.until_is("warming")
            await pod.agent.until_is("ready")
            await serve(pod)
            front = pod.pid_of("activator_replacement.queue")
            os.kill(front, signal.SIGKILL)
            await until(lambda: gone(pod, front))
            await until(lambda: answers(pod))
            await until(lambda: answers(pod, *PROBE))

    run(test())


def test_a_server_that_dies_while_it_serves_ends_the_pod() -> None:
    async def test() -> None:
        async with standby_pod() as pod:
            await serve(pod)
            os.kill((await model(pod))["pid"], signal.SIGKILL)
            state = await pod.agent.until_is("failed")
            assert "signal 9" in state.reason
            assert await pod.ended() == 1
            assert pod.processes() == {}

    run(test())


@pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("unshare"), reason="a container takes root and unshare"
)
def test_a_slot_that_is_killed_takes_everything_with_it_as_the_first_of_its_container() -> None:
    async def test() -> None:
        container = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
        async with standby_pod(*container) as pod:
            await serve(pod)
            assert len(pod.processes()) == 5
            os.kill(first_of_container(pod), signal.SIGKILL)
            await pod.ended()
            await until(lambda: nothing_left(pod))

    run(test())


def test_free_serves_until_nobody_comes_finishes_what_is_under_way_and_the_pod_is_used_again() -> None:
    async def test() -> None:
        async with standby_pod(GALAXY_SLOT_QUIET=QUIET) as pod:
            for number in range(2):
                revision = await serve(pod, f"rev-{number}")
                stream = await Stream.open(pod)
                first = await model(pod)
                pod.agent.free(revision)
                await pod.agent.until_is("draining")
                assert (await ask(pod))[0] == 200, "who sends may not have heard yet"
                while (answer := await ask(pod))[0] == 200:  # noqa: ASYNC110  nobody comes meanwhile
                    await asyncio.sleep(QUIET_S)
                assert answer[0] == 503
                assert b"done with" in answer[1]
                assert await stream.echo(b"still here") == b"still here"
                stream.close()
                await pod.agent.until_is("ready")
                assert await ask(pod) == (503, b"this standby pod has no revision yet\n")
                assert first["model"] == f"model of rev-{number}"
                assert len(pod.processes()) == 3

    run(test())


def test_what_is_not_done_when_the_drain_is_over_is_cut_off() -> None:
    async def test() -> None:
        async with standby_pod() as pod:
            revision = await serve(pod, drain_s=0.3)
            stream = await Stream.open(pod)
            pod.agent.free(revision)
            await pod.agent.until_is("ready")
            assert await stream.echo(b"gone") == b""
            stream.close()

    run(test())


def test_connections_that_were_kept_open_end_with_the_revision() -> None:
    async def test() -> None:
        async with standby_pod() as pod:
            revision = await serve(pod)
            reader, writer = await asyncio.open_connection(pod.host, 8012)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"}")
            pod.agent.free(revision)
            assert await reader.read() == b""
            writer.close()

    run(test())


def test_a_pod_that_is_deleted_drains_with_streams_open_and_leaves_nothing() -> None:
    async def test() -> None:
        async with standby_pod(GALAXY_SLOT_QUIET=QUIET) as pod:
            await serve(pod)
            stream = await Stream.open(pod)
            hook = asyncio.create_task(ask(pod, "/wait-for-drain", port=8022))
            while (await ask(pod, "/", *KUBELET))[0] == 200:
                pass
            assert (await ask(pod))[0] == 200  # until nobody comes any more
            assert await hook == (200, b"")
            pod.terminate()
            assert (await pod.agent.until_is("draining")).reason == "the pod is deleted"
            assert await stream.echo(b"still here") == b"still here"
            stream.close()
            assert await pod.ended() == 0
            assert pod.processes() == {}

    run(test())


@pytest.mark.parametrize("when", ["ready", "starting", "failed"])
def test_a_pod_that_is_deleted_without_requests_ends_at_once(when: str) -> None:
    async def test() -> None:
        async with standby_pod() as pod:
            asked = assignment(pod.folder)
            if when == "starting":
                pod.agent.start(asked._replace(argv=(*asked.argv, "--wait-for", "/nowhere")))
            elif when == "failed":
                pod.agent.start(asked._replace(model=(("/mnt/models", "/nowhere"),)))
            if when != "ready":
                await pod.agent.until_is(when)
            pod.terminate()
            assert await pod.ended() == 0
            assert pod.processes() == {}

    run(test())


def test_an_agent_that_begins_anew_hears_what_the_slot_does() -> None:
    async def test() -> None:
        async with standby_pod() as pod:
            await serve(pod)
            await pod.agent.close()
            await pod.agent.until_gone()
            assert (await model(pod))["model"] == "model of rev-1"
            await pod.agent.listen()
            state = await pod.agent.until_is("serving")
            assert state.revision == "team-a/rev-1"
            assert len(pod.agent.hellos) == 2
            pod.agent.refuse("the token is not this pod's")
            await pod.agent.until_is("serving")  # it dials again
            assert "the token is not this pod's" in pod.log.read_text()
            pod.agent.free("team-a/rev-1")
            await pod.agent.until_is("ready")

    run(test())


def test_a_start_that_is_asked_twice_starts_once() -> None:
    async def test() -> None:
        async with standby_pod() as pod:
            asked = assignment(pod.folder)
            pod.agent.start(asked)
            pod.agent.start(asked)
            await pod.agent.until_is("serving")
            assert len(pod.processes()) == 4

    run(test())


def test_a_zygote_that_can_not_begin_says_so() -> None:
    async def test() -> None:
        async with standby_pod(run=False) as pod:
            await pod.run(GALAXY_ZYGOTE="no.such.runtime")
            state = await pod.agent.until_is("failed")
            assert state.reason.startswith("the image has no module no.such.runtime.zygote: ")
            pod.terminate()
            assert await pod.ended() == 0

    run(test())


def test_a_zygote_that_ends_each_time_is_given_up() -> None:
    async def test() -> None:
        async with standby_pod(run=False) as pod:
            package = pod.folder / "broken"
            package.mkdir()
            (package / "zygote.py").write_text("import no_such_library")
            await pod.run(GALAXY_ZYGOTE="broken", PYTHONPATH=str(pod.folder))
            assert (await pod.agent.until(lambda state: "exit code 1" in state.reason)).state == "warming"
            state = await pod.agent.until_is("failed")
            assert "6 times in a row: see the pod's log" in state.reason

    run(test())


def test_a_variable_that_is_missing_is_named() -> None:
    async def test() -> None:
        async with standby_pod(run=False) as pod:
            await pod.run(GALAXY_POOL="")
            assert await pod.ended() == 1
            assert "GALAXY_POOL is not set" in pod.log.read_text()

    run(test())


def test_a_pod_whose_secret_has_changed_serves_what_it_has_and_ends() -> None:
    def write(folder: Path, version: str) -> None:
        """As the kubelet does."""
        (folder / version).mkdir(parents=True)
        (folder / "..new").symlink_to(version)
        (folder / "..new").rename(folder / "..data")

    async def test(serves: bool) -> None:
        async with standby_pod(run=False) as pod:
            keys = pod.folder / "secret" / "keys"
            write(keys, "..1")
            await pod.run(GALAXY_SLOT_VALUES=str(keys))
            await pod.agent.until_is("ready")
            revision = await serve(pod) if serves else ""
            write(keys, "..2")
            if serves:
                await until(lambda: logged(pod, "secret keys, which variables come from, has changed"))
                assert (await model(pod))["model"] == "model of rev-1"
                pod.agent.free(revision)
            assert await pod.ended() == 0
            assert await logged(pod, "the slot ends: secret keys")
            assert await nothing_left(pod)

    async def logged(pod: Pod, words: str) -> bool:
        return words in pod.log.read_text()

    for serves in (False, True):
        run(test(serves))
