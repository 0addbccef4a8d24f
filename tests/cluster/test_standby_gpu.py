"""A standby pod of level S2 whose GPU is short of memory, as real processes: who goes for whom, and what is said.

Engines and GPU are stand-ins (tests/support/sleeping_runtime, tests/support/gpu.py): what each holds of it is counted
and refused as a driver does, and the slot hears of it from a library with the functions of NVIDIA's.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from autoscaler_shim.slot.gpus import Gpus
from kserve_ext.core.standby.room import Memory
from tests.cluster.test_standby_sleep import begin, engine_pids, facts, model_of, revision, run, serve, woken
from tests.support.gpu import Gpu, library
from tests.support.standby_pod import Pod, standby_pod

TOTAL, AWAKE, KEPT = 10_000, 6_000, 700
SHARE = 0.8


def own(pod: Pod) -> tuple[str, ...]:
    gpu = ("--gpu", str(pod.folder / "gpu"), "--awake-mib", str(AWAKE), "--kept-mib", str(KEPT))
    return ("--enable-sleep-mode", "--control", *gpu, "--gpu-memory-utilization", str(SHARE))


def takes(pod: Pod, mib: int) -> None:
    """Others have so much of the GPU: this process stands for them."""
    (pod.folder / "gpu" / str(os.getpid())).write_text(str(mib))


@asynccontextmanager
async def pod_with(*models: str, others: int = 0) -> AsyncIterator[Pod]:
    """It has begun; `others`: MiB that aren't its own."""
    async with standby_pod(run=False) as pod:
        (pod.folder / "gpu").mkdir()
        (pod.folder / "gpu" / "total").write_text(str(TOTAL))
        takes(pod, others)
        for name in models:
            model_of(pod, name).write_text(f"model of {name}")
        nvml = str(library(pod.folder))
        gpu = {"GALAXY_SLOT_NVML": nvml, "STAND_IN_GPU": str(pod.folder / "gpu")}
        await begin(pod, *models, more=own(pod), **gpu)
        yield pod


def test_who_finds_no_room_is_left_out_and_takes_the_oldest_ones_place_when_it_is_asked_for() -> None:
    async def test() -> None:
        async with pod_with("one", "two", "three", others=0) as pod:
            ready = await pod.agent.until_is("ready")
            assert ready.asleep == ("one", "two")
            assert (
                "three does not sleep here: the GPU has no room: three starts with 8640 MiB free"
                in ready.reason
            )
            assert (
                f"engine one: gave {AWAKE - KEPT} MiB of the GPU back and keeps {KEPT}" in pod.log.read_text()
            )
            before = engine_pids(pod)
            state = await serve(pod, revision(pod, "three", own(pod)))
            assert state.started is not None
            assert state.started.level == "S0"
            assert state.started.steps[0][0] == "sleepers_ended"
            assert state.asleep == ("two",)
            assert (await facts(pod))["model"] == "model of three"
            pod.agent.free("team-a/three")
            ready = await pod.agent.until_is("ready")
            assert ready.asleep == ("two", "three")
            assert "one does not sleep here: the GPU has no room" in ready.reason
            assert engine_pids(pod)["two"] == before["two"]
            said = pod.log.read_text()
            assert (
                "engine one: it was ended for the server of three since 8600 of the GPU's 10000 MiB were free"
                in said
            )
            assert woken(await serve(pod, revision(pod, "three", own(pod))))

    run(test())


def test_a_wake_that_lacks_what_another_keeps_ends_that_one_first() -> None:
    async def test() -> None:
        async with pod_with("one", "two") as pod:
            await pod.agent.until_is("ready")
            takes(pod, TOTAL - AWAKE - KEPT // 2)
            state = await serve(pod, revision(pod, "two", own(pod)))
            assert woken(state)
            assert state.started is not None
            assert [name for name, _ in state.started.steps] == ["sleepers_ended", "awake"]
            assert state.asleep == ()
            assert "one" not in engine_pids(pod)
            takes(pod, 0)
            pod.agent.free("team-a/two")
            assert (await pod.agent.until_is("ready")).asleep == ("one", "two"), "there is room again"

    run(test())


def test_what_would_not_fit_without_any_sleeper_is_failed_at_once_and_nobody_ends() -> None:
    async def test() -> None:
        async with pod_with("one", "two") as pod:
            await pod.agent.until_is("ready")
            before = engine_pids(pod)
            takes(pod, AWAKE)
            pod.agent.start(revision(pod, "one", own(pod)))
            state = await pod.agent.until_is("failed")
            numbers = f"one wakes with {AWAKE - KEPT} MiB free, {TOTAL - AWAKE - 2 * KEPT} of {TOTAL} are"
            assert f"the GPU has no room: {numbers}" in state.reason
            assert state.asleep == ("one", "two")
            assert engine_pids(pod) == before
            takes(pod, 0)
            pod.agent.free("team-a/one")
            await pod.agent.until_is("ready")
            assert woken(await serve(pod, revision(pod, "one", own(pod))))

    run(test())


def test_a_wake_that_runs_out_of_memory_is_survived() -> None:
    """Here an engine takes more than when it slept last."""

    async def test() -> None:
        async with pod_with("one", "two") as pod:
            await pod.agent.until_is("ready")
            model_of(pod, "one").with_suffix(".bin.wake-grows").write_text(str(TOTAL))
            state = await serve(pod, revision(pod, "one", own(pod)))
            assert state.started is not None
            assert state.started.level == "S0"
            assert "out of memory" in state.started.why
            assert (await facts(pod))["model"] == "model of one"
            pod.agent.free("team-a/one")
            ready = await pod.agent.until_is("ready")
            assert ready.asleep == ("two",)
            assert "one does not sleep here: CUDA Error: out of memory" in ready.reason
            assert woken(await serve(pod, revision(pod, "two", own(pod))))

    run(test())


def test_what_the_library_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "total").write_text("5000")
    nvml = str(library(tmp_path))
    assert Gpus(None).memory() is None
    assert not Gpus(str(tmp_path / "no-such")).there
    assert not Gpus(nvml).there, "it has no GPU"
    monkeypatch.setenv("STAND_IN_GPU", str(tmp_path))
    assert Gpus(nvml).memory() == Memory(5000, 5000), "without what the driver keeps"
    (tmp_path / str(os.getpid())).write_text("1200")
    assert Gpus(nvml).memory() == Memory(5000, 3800)
    assert Gpu(str(tmp_path)).free_mib == 3800
    (tmp_path / "mig").write_text("1")
    assert not Gpus(nvml).there, "a part of a GPU isn't counted"
