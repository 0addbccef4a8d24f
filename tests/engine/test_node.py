"""A node agent with the real runtime: zygote, model cache, readiness, drain; and what a broken start says."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path

from kserve_ext.core.facts import Resources, Revision
from tests.support import node_world
from tests.support.node_world import World, run

ARGV = (
    *("python", "-m", "runtimes.vllm_pd", "--port=8080", "--model=/mnt/models", "--served-model-name=tiny"),
    *("--max-model-len=512", "--enforce-eager"),
)
NEEDS = Resources(cpu_milli=1000, memory_mib=2048)


def revision(model: Path, *argv: str, name: str = "tiny") -> Revision:
    of = node_world.revision(*argv, name=name, model=model, command=ARGV, needs=NEEDS)
    command = of.command._replace(zygote="runtimes.vllm_pd", env=(("VLLM_CPU_KVCACHE_SPACE", "1"),))
    return of._replace(command=command)


def ask(addr: str) -> str:
    body = json.dumps({"model": "tiny", "prompt": "a b c", "max_tokens": 4, "temperature": 0}).encode()
    request = urllib.request.Request(
        f"http://{addr}/v1/completions", body, headers={"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        text: str = json.loads(answer.read())["choices"][0]["text"]
        return text


def test_from_start_to_ready_and_through_a_restart_of_the_agent(tiny_model: Path, tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.up("--memory", "16Gi")
        for instance in ("first", "second"):
            assert (await world.start(instance, revision(tiny_model))).admitted
            ready = await world.state(instance, "ready", "failed")
            assert ready.state == "ready", ready.reason
            base = ready.marks[0].at
            print(instance, *(f"{m.name} +{m.at - base:.2f}" for m in ready.marks), sep="  ")
        marks = {mark.name: mark.detail for mark in ready.marks}
        assert "forked from the zygote" in marks["forked"]
        assert marks["model_cached"] == "cached"
        said = ask(ready.addr)
        world.kill_agent()
        assert ask(ready.addr) == said
        world.told.clear()
        await world.up("--memory", "16Gi")
        assert (await world.state("second", "ready")).generation == ready.generation
        await world.stop("second")
        assert (await world.state("second", "gone")).reason == "test"

    run(story, tmp_path, patience_s=120.0)


def test_a_start_that_vllm_rejects_and_a_broken_model_say_why(tiny_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    (broken / "config.json").unlink()

    async def story(world: World) -> None:
        await world.up("--memory", "16Gi")
        await world.start("x", revision(broken, name="broken"))
        failed = await world.state("x", "failed")
        assert failed.permanent
        assert f"{broken} has no config.json" in failed.reason
        await world.start("y", revision(tiny_model, "--no-such-option"))
        failed = await world.state("y", "failed")
        assert failed.permanent
        assert "--no-such-option" in failed.reason

    run(story, tmp_path, patience_s=120.0)
