"""The agent goes and comes back: instances and zygotes live on, and are found; what ended meanwhile is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest

from autoscaler_shim.node import watcher
from autoscaler_shim.node.cleanup import stop_all
from autoscaler_shim.node.folders import read_json
from autoscaler_shim.node.processes import living_in
from kserve_ext.core.ids import InstanceID
from tests.support.node_world import FAKE, World, get, revision, run
from tests.support.processes import lives


def forked(world: World, instance: str) -> str:
    marks = {mark.name: mark.detail for mark in world.told[InstanceID(instance)].marks}
    return marks["forked"]


@pytest.mark.parametrize("zygote", [True, False])
def test_killing_the_agent_ends_no_instance_and_the_next_agent_finds_it(tmp_path: Path, zygote: bool) -> None:
    async def story(world: World) -> None:
        await world.up()
        await world.start("x", revision(zygote=zygote))
        await world.start("y", revision(name="b", zygote=zygote))
        before = await world.state("x", "ready")
        await world.state("y", "ready")
        page = await get(before.addr)
        other = (await world.describe("instance", "y"))["pid"]
        world.kill_agent()
        assert (await get(before.addr))["pid"] == page["pid"], "it serves without its agent"
        os.kill(other, signal.SIGKILL)
        world.told.clear()
        world.full.clear()
        await world.up()
        after = await world.state("x", "ready")
        assert (after.addr, after.generation) == (before.addr, before.generation)
        assert "ready" in [mark.name for mark in after.marks]
        assert [i.id for i in world.full[0].instances] in (["x"], ["y"]), "told in full, at once"
        failed = await world.state("y", "failed")
        assert ("SIGKILL" if zygote else "exit code is not known") in failed.reason
        await world.until(lambda: world.status and world.status.free.cpu_milli == 3500)
        assert not (await world.start("y", revision(name="b"))).admitted, "an ended one is not started again"
        await world.stop("x")
        await world.state("x", "gone")
        assert not lives(page["pid"])

    run(story, tmp_path)


def test_a_drain_is_finished_by_the_next_agent(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.up()
        done = tmp_path / "done"
        await world.start("x", revision("--drain-until", str(done)))
        pid = (await get((await world.state("x", "ready")).addr))["pid"]
        await world.stop("x", drain_s=100.0)
        await world.state("x", "draining")
        world.kill_agent()
        world.told.clear()
        await world.up()
        assert lives(pid)
        done.touch()
        gone = await world.state("x", "gone")
        assert gone.reason == "test"
        assert not lives(pid)

    run(story, tmp_path)


def test_a_zygote_is_found_again_and_forks_for_the_next_agent(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.up()
        await world.start("x", revision())
        await world.state("x", "ready")
        zygote = read_json(tmp_path / f"nodes/node-0/zygotes/{FAKE}.json")["pid"]
        world.kill_agent()
        await world.up()
        await world.until(lambda: world.status and world.status.slots == ((FAKE, 1),))
        await world.start("y", revision())
        await world.state("y", "ready")
        assert "forked from the zygote" in forked(world, "y")
        assert read_json(tmp_path / f"nodes/node-0/zygotes/{FAKE}.json")["pid"] == zygote

    run(story, tmp_path)


def test_a_killed_zygote_takes_no_instance_along_and_is_started_again(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.up()
        await world.start("x", revision())
        ready = await world.state("x", "ready")
        assert "forked from the zygote" in forked(world, "x")
        await world.until(lambda: world.status and world.status.slots == ((FAKE, 1),))
        file = tmp_path / f"nodes/node-0/zygotes/{FAKE}.json"
        first = read_json(file)["pid"]
        os.kill(first, signal.SIGKILL)
        back = asyncio.create_task(world.slots((), ((FAKE, 1),)))
        await get(ready.addr)
        await back
        assert read_json(file)["pid"] != first
        await world.start("y", revision())
        await world.state("y", "ready")
        assert "forked from the zygote" in forked(world, "y")
        await world.stop("x")
        assert (await world.state("x", "gone")).reason == "test"

    run(story, tmp_path)


def test_the_last_instance_that_fits_is_forked_from_the_zygote_that_makes_room_for_it(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.up("--memory", "1Gi", "--zygote-memory", "512Mi")
        await world.start("x", revision())
        await world.state("x", "ready")
        await world.until(lambda: world.status and world.status.slots == ((FAKE, 1),))
        whole = revision(name="b")
        whole = whole._replace(needs=whole.needs._replace(memory_mib=700))
        assert (await world.start("y", whole)).admitted
        await world.state("y", "ready")
        assert "forked from the zygote" in forked(world, "y")
        await world.until(lambda: not (tmp_path / f"nodes/node-0/zygotes/{FAKE}.json").exists())

    run(story, tmp_path)


def test_a_zygote_that_hangs_leaves_no_instance_behind_that_nobody_knows(tmp_path: Path) -> None:
    """Its answer may come too late although it has forked: here it never answers, and forks when it is let go on."""

    async def story(world: World) -> None:
        await world.up()
        await world.start("x", revision())
        await world.state("x", "ready")
        await world.until(lambda: world.status and world.status.slots == ((FAKE, 1),))
        zygote = read_json(tmp_path / f"nodes/node-0/zygotes/{FAKE}.json")["pid"]
        os.kill(zygote, signal.SIGSTOP)
        await world.start("y", revision(name="b"))
        failed = await world.state("y", "failed")
        assert "did not answer" in failed.reason
        await world.until(lambda: not lives(zygote))
        assert living_in(tmp_path / "nodes/node-0/instances/y") == []

    run(story, tmp_path)


def test_without_a_zygote_the_instance_is_executed(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.up(env={"FAKE_IMPORT_FAILS": "1"})
        await world.start("x", revision())
        await world.state("x", "ready")
        assert "executed as" in forked(world, "x")
        assert "zygote" in forked(world, "x"), "and it says why"

    run(story, tmp_path)


def test_a_start_that_waits_for_its_zygote_can_be_stopped_and_times_out(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.up(env={"FAKE_IMPORT_UNTIL": str(tmp_path / "never")})
        await world.start("x", revision())
        await world.state("x", "starting")
        await world.stop("x", drain_s=500.0)
        assert (await world.state("x", "gone")).reason == "test"
        await world.start("y", revision(start_timeout_s=0.5))
        assert "not ready 0.5 s after its start" in (await world.state("y", "failed")).reason
        await world.until(lambda: world.status and world.status.free.cpu_milli == 4000)

    run(story, tmp_path)


def test_an_agent_that_goes_while_a_start_waits_for_the_zygote(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        imported = tmp_path / "imported"
        await world.up(env={"FAKE_IMPORT_UNTIL": str(imported)})
        await world.start("x", revision())
        await world.state("x", "starting")
        await world.until((tmp_path / "nodes/node-0/instances/x/spec.msgpack").exists)
        world.kill_agent()
        world.told.clear()
        await world.up()
        assert "while it was being started" in (await world.state("x", "failed")).reason
        imported.touch()
        await world.start("y", revision())
        await world.state("y", "ready")
        assert "forked from the zygote" in forked(world, "y")
        children = list((tmp_path / "nodes/node-0/instances").glob("*/pid.json"))
        assert [p.parent.name for p in children] == ["y"]

    run(story, tmp_path)


#: Python's own start-up runs it: whoever copies a file comes as far as its first byte.
COPIES_FOR_EVER = """
import errno, fcntl, os, threading
ioctl, sendfile = fcntl.ioctl, os.sendfile
def no_shared_blocks(file, request, *more):
    if request == 0x40049409:  # FICLONE
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    return ioctl(file, request, *more)
fcntl.ioctl = no_shared_blocks
def first_byte(target, source, offset, count):
    if offset:
        threading.Event().wait()
    return sendfile(target, source, offset, 1)
os.sendfile = first_byte
"""


def test_an_agent_that_goes_while_a_model_is_fetched_tells_its_home_when_it_is_back(tmp_path: Path) -> None:
    source, start_up = tmp_path / "m", tmp_path / "start-up"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "weights.bin").write_bytes(bytes(1 << 20))
    start_up.mkdir()
    (start_up / "sitecustomize.py").write_text(COPIES_FOR_EVER)
    path = os.pathsep.join(filter(None, (str(start_up), os.environ.get("PYTHONPATH", ""))))
    models = tmp_path / "nodes/node-0/models"

    async def story(world: World) -> None:
        await world.up(env={"PYTHONPATH": path})
        await world.start("x", revision(model=source))
        await world.state("x", "fetching")
        while (fetched := (await world.describe("instance", "x"))["fetched"]) is None:
            pass
        assert fetched == {"done": 1, "total": (1 << 20) + 2}
        assert list(models.iterdir())
        world.kill_agent()
        world.told.clear()
        await world.up()
        assert "while it was being started" in (await world.state("x", "failed")).reason
        assert not list(models.iterdir()), "what was half copied is gone"

    run(story, tmp_path)


def test_a_process_that_nobody_wrote_down_is_killed_by_the_next_agent(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.up()
        await world.start("x", revision(zygote=False))
        pid = (await get((await world.state("x", "ready")).addr))["pid"]
        world.kill_agent()
        folder = tmp_path / "nodes/node-0/instances/x"
        for name in ("pid.json", "status.json", "ready.json"):
            (folder / name).unlink()
        world.told.clear()
        await world.up()
        assert "while it was being started" in (await world.state("x", "failed")).reason
        await world.until(lambda: not lives(pid))

    run(story, tmp_path)


def test_another_process_under_the_same_pid_is_left_alone(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.up()
        await world.start("x", revision(zygote=False))
        pid = (await get((await world.state("x", "ready")).addr))["pid"]
        world.kill_agent()
        os.kill(pid, signal.SIGKILL)
        bystander = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
        file = tmp_path / "nodes/node-0/instances/x/pid.json"
        file.write_text(f'{{"pid": {bystander.pid}, "ticks": 1, "how": "exec"}}')
        world.told.clear()
        await world.up()
        await world.state("x", "failed")
        stop_all(tmp_path / "nodes/node-0", 0.1)
        assert bystander.returncode is None
        assert lives(bystander.pid)
        bystander.kill()
        await bystander.wait()

    run(story, tmp_path)


def test_cleanup_ends_instances_and_zygotes(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.up()
        await world.start("x", revision())
        await world.start("y", revision("--drain", "600", name="b", zygote=False))
        pids = [(await get((await world.state(i, "ready")).addr))["pid"] for i in ("x", "y")]
        zygote = read_json(tmp_path / f"nodes/node-0/zygotes/{FAKE}.json")["pid"]
        world.kill_agent()
        assert await asyncio.to_thread(stop_all, tmp_path / "nodes/node-0", 0.5) == 3
        assert not any(lives(pid) for pid in (*pids, zygote))
        with contextlib.suppress(ChildProcessError):
            assert await asyncio.to_thread(stop_all, tmp_path / "nodes/node-0", 0.5) == 0

    run(story, tmp_path)


def test_who_was_forked_by_a_zygote_that_has_gone_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody will say how it ended, and its end is known at once; of the others their zygote says it."""

    async def story(world: World) -> None:
        await world.up()
        await world.start("x", revision())
        await world.start("y", revision(name="b"))
        pids = {name: (await get((await world.state(name, "ready")).addr))["pid"] for name in "xy"}
        zygote = read_json(tmp_path / f"nodes/node-0/zygotes/{FAKE}.json")["pid"]
        monkeypatch.setattr(watcher, "EXIT_JSON_LOOKS", 10**9)
        os.kill(pids["x"], signal.SIGKILL)
        assert "SIGKILL" in (await world.state("x", "failed")).reason
        os.kill(zygote, signal.SIGKILL)
        os.kill(pids["y"], signal.SIGKILL)
        await world.state("y", "failed")

    run(story, tmp_path)
