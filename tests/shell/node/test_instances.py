"""Instances on a real node agent: started, drained, crashed, refused, killed; each in processes of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest

from kserve_ext.core.facts import Resources
from kserve_ext.core.ids import FunctionID, InstanceID, RevisionKey
from kserve_ext.rpc import Rpc
from kserve_ext.wire import messages as m
from tests.support.node_world import KEY, World, get, revision, run
from tests.support.processes import lives


def group_of(leader: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(ProcessLookupError):  # of one that has just ended
            if lives(int(path.name)) and os.getpgid(int(path.name)) == leader:
                found.append(int(path.name))
    return found


@pytest.mark.parametrize("zygote", [True, False])
def test_start_serve_and_drain(tmp_path: Path, zygote: bool) -> None:
    async def story(world: World) -> None:
        await world.up()
        of = revision(zygote=zygote, env=(("GREETING", "port $(PORT)"),))
        reply = await world.start("x", of)
        assert reply.admitted
        assert reply.status.free.cpu_milli == 3500
        ready = await world.state("x", "ready")
        page = await get(ready.addr)
        env = page["env"]
        port = ready.addr.rpartition(":")[2]
        assert env["GREETING"] == f"port {port}"
        assert (env["PORT"], env["GALAXY_INSTANCE_ID"], env["GALAXY_REVISION"]) == (port, "x", "default/a")
        assert env["GALAXY_GENERATION"] == str(ready.generation)
        assert env["CUDA_VISIBLE_DEVICES"] == ""
        assert float(env["GALAXY_DRAIN_SECONDS"]) == of.command.drain_s
        assert int(env["GALAXY_CONCURRENCY"]) == of.concurrency
        assert f"--port={port}" in page["argv"]
        names = [mark.name for mark in ready.marks]
        expected = ["admitted", "forked", "ready"]
        if zygote:
            expected = ["admitted", "starting", "forked", "imported", "weights_loaded", "ready"]
        assert [n for n in names if n in expected] == expected
        assert "the fake instance starts" in (await world.describe("log", "x"))["text"]
        assert (await world.describe("instance", "x"))["pid"] == page["pid"]
        await world.stop("x")
        gone = await world.state("x", "gone")
        assert gone.reason == "test"
        (world.data / "nodes/node-0/instances/x/requests.json").write_text(
            '{"r1": {"id": "r1", "marks": []}}'
        )
        assert (await world.describe("request", "x:r1"))["id"] == "r1"
        assert await world.describe("request", "x:r2") == {}
        assert await world.describe("request", "../x:r1") == {}
        assert not lives(page["pid"])
        assert (x_states := [s for i, s in world.states if i == "x"]).index("draining") < x_states.index(
            "gone"
        )
        await world.until(lambda: world.status and world.status.free.cpu_milli == 4000)

    run(story, tmp_path)


def test_a_duplicate_start_makes_one_process_and_an_unknown_stop_is_done(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.up()
        replies = await asyncio.gather(*(world.start("x", revision()) for _ in range(5)))
        assert all(r.admitted for r in replies)
        await world.state("x", "ready")
        status = await world.describe("status")
        assert (status["admitted"], status["duplicates"]) == (1, 4)
        assert len(list((tmp_path / "nodes/node-0/instances").iterdir())) == 1
        await world.stop("never-heard-of")

    run(story, tmp_path)


def test_a_start_that_cannot_succeed_fails_for_good_with_the_instances_own_words(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.up()
        await world.start("x", revision("--refuse", "no such thing"))
        failed = await world.state("x", "failed")
        assert failed.permanent
        assert failed.reason == (
            "the process ended with exit code 2: --model: no such thing; give another one"
        )
        await world.start("y", revision("--no-such-option"))
        failed = await world.state("y", "failed")
        assert failed.permanent
        assert "unrecognized arguments: --no-such-option" in failed.reason
        await world.start("z", revision(zygote=False, command=("no-such-program",)))
        failed = await world.state("z", "failed")
        assert failed.permanent
        assert "no program 'no-such-program'" in failed.reason
        await world.until(lambda: world.status and world.status.free.cpu_milli == 4000)

    run(story, tmp_path)


def test_a_crash_is_told_with_the_last_words_and_takes_its_children_along(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.up()
        await world.start("x", revision("--child", "--crash", "7"))
        failed = await world.state("x", "failed")
        assert not failed.permanent
        assert "exit code 7" in failed.reason
        assert "last words" in failed.reason
        await world.start("y", revision("--child"))
        ready = await world.state("y", "ready")
        pid = (await get(ready.addr))["pid"]
        group = group_of(pid)
        assert len(group) >= 2
        os.kill(pid, signal.SIGKILL)
        failed = await world.state("y", "failed")
        assert "was killed by SIGKILL" in failed.reason
        await world.until(lambda: not any(lives(p) for p in group))

    run(story, tmp_path)


def test_a_drain_that_takes_too_long_is_cut_short(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.up()
        await world.start("x", revision("--drain", "600"))
        ready = await world.state("x", "ready")
        pid = (await get(ready.addr))["pid"]
        await world.stop("x", drain_s=-4.9)  # the five seconds of grace come on top
        gone = await world.state("x", "gone")
        assert "killed" in [mark.name for mark in gone.marks]
        assert not lives(pid)

    run(story, tmp_path)


def test_a_start_that_takes_too_long_fails(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.up()
        await world.start("x", revision("--stuck", start_timeout_s=1.0))
        failed = await world.state("x", "failed")
        assert "not ready 1 s after its start" in failed.reason
        assert not failed.permanent

    run(story, tmp_path)


def test_a_foreign_server_is_ready_when_it_answers(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.up()
        command = ("python", "-m", "http.server", "--bind", "127.0.0.1", "$(PORT)")
        await world.start("x", revision(zygote=False, command=command, ready_path="/"))
        await world.start("y", revision(zygote=False, command=command, name="b"))
        await world.state("x", "ready")
        await world.state("y", "ready")
        await world.stop("x")
        await world.state("x", "gone")

    run(story, tmp_path)


def test_what_does_not_fit_is_refused_with_the_true_status(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.up("--gpus", "1", "--gpu-devices", "3")
        whole = revision(needs=Resources(cpu_milli=3000, gpus=1))
        assert (await world.start("x", whole)).admitted
        reply = await world.start("y", whole)
        assert not reply.admitted
        assert reply.reason == "node node-0: cpu: needs 3000m, 1000m free; gpus: needs 1, 0 free"
        assert reply.status.free.cpu_milli == 1000
        ready = await world.state("x", "ready")
        env = (await get(ready.addr))["env"]
        assert (env["CUDA_VISIBLE_DEVICES"], env["OMP_NUM_THREADS"]) == ("3", "3")

    run(story, tmp_path)


def test_reserve_commit_cancel_and_stale_epochs(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.up()
        assert (await world.start("x", revision(), reserve=True)).admitted
        assert (await world.start("y", revision(), reserve=True)).admitted
        commit = m.Commit((InstanceID("x"),), world.view.epoch)
        assert (await world.rpc.call(world.node, commit)).admitted
        await world.rpc.call(
            world.node, m.Commit((InstanceID("y"),), world.view.epoch, cancel=True, reason="no")
        )
        assert (await world.state("y", "gone")).reason == "no"
        await world.state("x", "ready")
        key = RevisionKey("default/a")
        recalled = await world.rpc.call(world.node, m.Recall(9, FunctionID("dispatch-0"), world.addr, (key,)))
        assert [(i.id, i.state) for i in recalled.instances if i.state != "gone"] == [("x", "ready")]
        stale = await world.start("z", revision(), epoch=8)
        assert not stale.admitted
        assert stale.stale
        await world.stop("x", epoch=8)
        assert (await world.describe("instance", "x"))["state"] == "ready"

    run(story, tmp_path)


def test_an_unwanted_instance_is_stopped(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.up()
        await world.start("x", revision())
        await world.state("x", "ready")
        world.unwanted.add(InstanceID("x"))
        assert "does not want" in (await world.state("x", "gone")).reason

    run(story, tmp_path)


def test_sleep_is_refused_with_the_reason_and_instances_can_ask_for_their_home(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.up()
        await world.start("x", revision())
        ready = await world.state("x", "ready")
        reply = await world.rpc.call(world.node, m.Sleep(InstanceID("x"), 1))
        assert not reply.admitted
        assert "process backend" in reply.reason
        socket = (await get(ready.addr))["env"]["GALAXY_NODE_SOCKET"]
        instance = Rpc("x", KEY)
        located = await instance.call(f"unix:{socket}", m.Locate("default/a"))
        await instance.close()
        assert (located.home, located.addr) == ("dispatch-0", world.addr)

    run(story, tmp_path)


def test_a_data_folder_with_a_long_name_works(tmp_path: Path) -> None:
    data = tmp_path / ("long" * 30)
    data.mkdir()

    async def story(world: World) -> None:
        await world.up()
        await world.start("x", revision())
        ready = await world.state("x", "ready")
        socket = Path((await get(ready.addr))["env"]["GALAXY_NODE_SOCKET"])
        assert await asyncio.to_thread(socket.exists)
        elsewhere.append(socket.parent)

    elsewhere: list[Path] = []
    run(story, data)
    assert not elsewhere[0].exists(), "nothing is left outside of its folder"
