"""A standby pod of level S2 as real processes: engines fall asleep one after the other, one wakes, and sleeps again.

The engines are a stand-in's (tests/support/sleeping_runtime): its device is a lock of the pod, which fails whoever
finds it taken, and it obeys either vLLM's endpoints or, by the code of runtimes/vllm_pd, its control socket.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kserve_ext.core.standby.facts import Assignment
from kserve_ext.wire.slot_socket import State
from tests.cluster.test_standby_slot import ask
from tests.support.standby_pod import Pod, assignment, standby_pod

RUNTIME = "tests.support.sleeping_runtime"
HTTP, CONTROL = ("--enable-sleep-mode",), ("--enable-sleep-mode", "--control")


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 300.0))


def model_of(pod: Pod, name: str) -> Path:
    return pod.folder / f"{name}.bin"


@asynccontextmanager
async def sleeping_pod(*models: str, more: tuple[str, ...] = CONTROL, **env: str) -> AsyncIterator[Pod]:
    """It has begun; not ready yet."""
    async with standby_pod(run=False) as pod:
        for name in models:
            model_of(pod, name).write_text(f"model of {name}")
        await begin(pod, *models, more=more, **env)
        yield pod


async def begin(pod: Pod, *models: str, more: tuple[str, ...] = CONTROL, **env: str) -> None:
    common = ["python", "-m", RUNTIME, "--device", str(pod.folder), *more]
    engines = [
        {
            "name": name,
            "model": str(model_of(pod, name)),
            "argv": [*common, "--model", str(model_of(pod, name)), "--served-model-name", name],
        }
        for name in models
    ]
    await pod.run(
        **{
            "GALAXY_ZYGOTE": RUNTIME,
            "GALAXY_SLOT_LEVEL": "S2",
            "GALAXY_SLOT_ENGINES": json.dumps({"env": ["A_SETTING"], "engines": engines}),
            "GALAXY_SLOT_HOST_MIB": "64",
            "A_SETTING": "of $(NOBODY)",
            **env,
        }
    )


def revision(pod: Pod, name: str, more: tuple[str, ...] = CONTROL, **fields: object) -> Assignment:
    """Whose model is called like it."""
    model = model_of(pod, name)
    argv = (
        "python",
        "-m",
        RUNTIME,
        "--port",
        "$(PORT)",
        "--device",
        str(pod.folder),
        *more,
        "--model",
        str(model),
    )
    return assignment(pod.folder, name, argv=argv, model=(), engine=name, **fields)


async def serve(pod: Pod, asked: Assignment) -> State:
    pod.agent.start(asked)
    state = await pod.agent.until(lambda said: said.state in ("serving", "failed"))
    assert (state.state, state.revision) == ("serving", asked.revision), state
    return state


async def facts(pod: Pod) -> dict[str, Any]:
    status, body = await ask(pod)
    assert status == 200, (status, body)
    found: dict[str, Any] = json.loads(body)
    return found


def done(pod: Pod, name: str) -> list[str]:
    """By the engine."""
    log = Path(f"{model_of(pod, name)}.log")
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.parametrize("more", [HTTP, CONTROL])
def test_engines_sleep_one_wakes_for_its_revision_and_sleeps_again(more: tuple[str, ...]) -> None:
    async def test() -> None:
        async with sleeping_pod("one", "two", more=more) as pod:
            ready = await pod.agent.until_is("ready")
            assert ready.asleep == ("one", "two")
            pids = dict(engine_pids(pod))
            generations = []
            for name in ("two", "one", "two"):
                state = await serve(pod, revision(pod, name, more))
                assert state.started is not None
                assert (state.started.level, state.started.why) == ("S2", "")
                assert state.asleep == tuple({"one", "two"} - {name})
                said = await facts(pod)
                assert (said["model"], said["name"], said["pid"]) == (f"model of {name}", name, pids[name])
                generations.append(said["generation"])
                pod.agent.free(f"team-a/{name}")
                assert (await pod.agent.until_is("ready")).asleep == ("one", "two")
                assert (await ask(pod))[0] == 503
            loaded = ["loaded", "leave", "sleep"] if more is CONTROL else ["loaded", "sleep"]
            cycle = ["wake", "join", "leave", "sleep"] if more is CONTROL else ["wake", "sleep"]
            assert done(pod, "one") == [*loaded, *cycle]
            assert done(pod, "two") == [*loaded, *cycle, *cycle]
            assert dict(engine_pids(pod)) == pids
            if more is CONTROL:
                assert generations == sorted(set(generations)), (
                    "KV memory is registered in a new one each time"
                )

    run(test())


def test_while_one_is_awake_another_is_refused_with_the_reason() -> None:
    async def test() -> None:
        async with sleeping_pod("one", "two") as pod:
            await pod.agent.until_is("ready")
            await serve(pod, revision(pod, "one"))
            pod.agent.start(revision(pod, "two"))
            state = await pod.agent.until(lambda said: bool(said.reason))
            assert (state.state, state.revision, state.asleep) == ("serving", "team-a/one", ("two",))
            assert "can't start team-a/two" in state.reason
            assert "it has team-a/one" in state.reason
            assert done(pod, "two") == ["loaded", "leave", "sleep"]

    run(test())


def test_an_engine_that_dies_in_its_sleep_is_started_again() -> None:
    async def test() -> None:
        async with sleeping_pod("one", "two") as pod:
            await pod.agent.until_is("ready")
            pids = engine_pids(pod)
            os.kill(pids["one"], signal.SIGKILL)
            state = await pod.agent.until_is("warming")
            assert "one" in state.reason
            assert "in its sleep" in state.reason
            assert state.asleep == ("two",)
            assert (await pod.agent.until_is("ready")).asleep == ("one", "two")
            assert engine_pids(pod)["one"] != pids["one"]
            assert engine_pids(pod)["two"] == pids["two"]
            assert woken(await serve(pod, revision(pod, "one")))

    run(test())


def test_one_that_dies_while_the_other_serves_comes_back_when_the_device_is_free() -> None:
    async def test() -> None:
        async with sleeping_pod("one", "two") as pod:
            await pod.agent.until_is("ready")
            await serve(pod, revision(pod, "one"))
            os.kill(engine_pids(pod)["two"], signal.SIGKILL)
            while "two" in engine_pids(pod):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            assert (await facts(pod))["model"] == "model of one"
            pod.agent.free("team-a/one")
            assert (await pod.agent.until_is("ready")).asleep == ("one", "two")
            assert done(pod, "two") == ["loaded", "leave", "sleep"] * 2

    run(test())


@pytest.mark.parametrize(
    ("how", "says"),
    [("wake-hangs", "no wake within 0.3 s"), ("wake-fails", "the allocator refuses to map")],
)
@pytest.mark.parametrize("more", [HTTP, CONTROL])
def test_what_does_not_wake_is_started_from_the_zygote_and_its_pod_goes_after_that(
    how: str, says: str, more: tuple[str, ...]
) -> None:
    async def test() -> None:
        limit = "300ms" if how == "wake-hangs" else "120s"
        async with sleeping_pod("one", "two", more=more, GALAXY_SLOT_WAKE=limit) as pod:
            await pod.agent.until_is("ready")
            model_of(pod, "one").with_suffix(f".bin.{how}").touch()
            state = await serve(pod, revision(pod, "one", more))
            assert state.started is not None
            assert (state.started.level, state.asleep) == ("S0", ("two",))
            assert says in state.started.why
            said = await facts(pod)
            assert said["model"] == "model of one"
            assert "one" not in engine_pids(pod)
            pod.agent.free("team-a/one")
            assert await pod.ended() == 1, "another is made"
            assert pod.processes() == {}

    run(test())


def test_what_can_not_go_back_to_sleep_ends_its_pod() -> None:
    async def test() -> None:
        async with sleeping_pod("one") as pod:
            await pod.agent.until_is("ready")
            await serve(pod, revision(pod, "one"))
            model_of(pod, "one").with_suffix(".bin.sleep-fails").touch()
            pod.agent.free("team-a/one")
            assert await pod.ended() == 1
            assert "the allocator refuses" in pod.log.read_text()

    run(test())


def test_what_does_not_come_up_or_fit_is_left_out_and_the_reason_told() -> None:
    async def test() -> None:
        async with standby_pod(run=False) as pod:
            for name in ("one", "gone", "large"):
                model_of(pod, name).write_text(f"model of {name}")
            with model_of(pod, "large").open("r+b") as file:
                file.truncate(60 << 20)  # sparse; 48 MiB of 64 are for weights
            model_of(pod, "gone").unlink()
            await begin(pod, "one", "gone", "large")
            ready = await pod.agent.until_is("ready")
            assert ready.asleep == ("one",)
            assert "gone does not sleep here: " in ready.reason
            assert "No such file" in ready.reason
            assert (
                "large does not sleep here: its weights need 60 MiB of host memory, 47 are left"
                in ready.reason
            )
            model_of(pod, "large").write_text("model of large")
            state = await serve(pod, revision(pod, "large"))
            assert state.started is not None
            assert state.started.level == "S0"
            assert "its weights need 60 MiB" in state.started.why
            assert (await facts(pod))["model"] == "model of large"
            pod.agent.free("team-a/large")
            assert (await pod.agent.until_is("ready")).asleep == ("one",)

    run(test())


def test_a_zygote_that_dies_leaves_sleepers_alone() -> None:
    async def test() -> None:
        async with sleeping_pod("one") as pod:
            await pod.agent.until_is("ready")
            pids = engine_pids(pod)
            os.kill(pod.pid_of(f"{RUNTIME}.zygote"), signal.SIGKILL)
            await pod.agent.until_is("warming")
            assert (await pod.agent.until_is("ready")).asleep == ("one",)
            assert engine_pids(pod) == pids
            assert woken(await serve(pod, revision(pod, "one")))

    run(test())


def test_an_engine_that_ends_while_it_serves_ends_its_pod() -> None:
    async def test() -> None:
        async with sleeping_pod("one", "two") as pod:
            await pod.agent.until_is("ready")
            await serve(pod, revision(pod, "one"))
            assert (await ask(pod, "/exit"))[0] in (0, 502)
            assert "exit code 3" in (await pod.agent.until_is("failed")).reason
            assert await pod.ended() == 1
            assert pod.processes() == {}

    run(test())


def test_a_pod_that_is_deleted_drains_the_one_that_is_awake_and_leaves_nothing() -> None:
    async def test() -> None:
        async with sleeping_pod("one", "two") as pod:
            await pod.agent.until_is("ready")
            await serve(pod, revision(pod, "one"))
            pod.terminate()
            assert await pod.ended() == 0
            assert pod.processes() == {}

    run(test())


def woken(state: State) -> bool:
    return state.started is not None and state.started.level == "S2"


def engine_pids(pod: Pod) -> dict[str, int]:
    """Of those that sleep or are awake, by their names."""
    found = {}
    for pid, line in pod.processes().items():
        words = line.split()
        if "--served-model-name" in words:
            found[words[words.index("--served-model-name") + 1]] = pid
    return found
