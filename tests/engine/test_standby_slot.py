"""A standby pod with our own engine: a revision answers on the pod's port, then another one does."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.cluster.test_standby_slot import first_of_container
from tests.support.container import restricted, why_not
from tests.support.standby_pod import Pod, assignment, standby_pod


async def complete(pod: Pod, name: str) -> int:
    """How many tokens came."""
    reader, writer = await asyncio.open_connection(pod.host, 8012)
    body = json.dumps({"model": name, "prompt": "a b c", "max_tokens": 4, "ignore_eos": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    answer, _, said = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200"), (answer, said)
    tokens: int = json.loads(said)["usage"]["completion_tokens"]
    return tokens


@pytest.mark.parametrize("level", ["S0", "S1"])
def test_one_revision_after_another_answers(level: str, tiny_model: Path) -> None:
    async def test() -> None:
        shape = {"GALAXY_SLOT_SHAPE": f"--model {tiny_model}"} if level == "S1" else {}
        async with standby_pod(run=False) as pod:
            await pod.run(GALAXY_ZYGOTE="runtimes.vllm_pd", GALAXY_SLOT_LEVEL=level, **shape)
            await pod.agent.until(lambda state: state.state == "ready", 300.0)
            # An engine of another shape can't become the last one's.
            for name, more in (("first", ()), ("second", ()), ("other", ("--max-model-len", "64"))):
                if more and level == "S0":
                    continue
                argv = ("python", "-m", "runtimes.vllm_pd", "--port", "$(PORT)", "--model", "/mnt/models")
                asked = assignment(
                    pod.folder,
                    name,
                    argv=(*argv, "--served-model-name", name, *more),
                    model=(("/mnt/models", str(tiny_model)),),
                )
                pod.agent.start(asked)
                state = await pod.agent.until(lambda state: state.state in ("serving", "failed"), 300.0)
                assert state.state == "serving", state.reason
                assert state.started is not None
                assert state.started.level == ("S0" if more else level)
                assert ("--max-model-len" in state.started.why) == bool(more), state.started
                if level == "S1" and not more:
                    assert "weights_into_shape" in dict(state.started.steps)
                assert await complete(pod, name) == 4
                pod.agent.free(asked.revision)
                await pod.agent.until(lambda state: state.state == "ready", 300.0)
            pod.terminate()
            assert await pod.ended() == 0
            assert pod.processes() == {}

    asyncio.run(asyncio.wait_for(test(), 550.0))


@pytest.mark.skipif(bool(why_not()), reason=why_not())
@pytest.mark.parametrize("level", ["S0", "S1"])
def test_in_a_container_without_rights_whose_root_can_not_be_written_to(level: str, tiny_model: Path) -> None:
    """runAsNonRoot, readOnlyRootFilesystem, no capability: /tmp, which is HOME, and /dev/shm are enough for vLLM."""

    async def test() -> None:
        async with standby_pod(run=False) as pod:
            model = shutil.copytree(tiny_model, pod.folder / "model", copy_function=shutil.copyfile)
            for path in (model, *model.iterdir()):
                path.chmod(0o755)
            shape = {"GALAXY_SLOT_SHAPE": f"--model {model}"} if level == "S1" else {}
            own = {"GALAXY_SLOT_DIR": "", "HOME": "/tmp", "GALAXY_SLOT_LEVEL": level, **shape}
            await pod.run(*restricted(pod.folder), GALAXY_ZYGOTE="runtimes.vllm_pd", **own)
            await pod.agent.until(lambda state: state.state == "ready", 300.0)
            for name in ("first", "second"):
                argv = ("python", "-m", "runtimes.vllm_pd", "--port", "$(PORT)", "--model", str(model))
                asked = assignment(pod.folder, name, argv=(*argv, "--served-model-name", name), model=())
                pod.agent.start(asked)
                state = await pod.agent.until(lambda state: state.state in ("serving", "failed"), 300.0)
                assert state.state == "serving", state.reason
                assert state.started is not None
                assert state.started.level == level, state.started
                assert await complete(pod, name) == 4
                pod.agent.free(asked.revision)
                await pod.agent.until(lambda state: state.state == "ready", 300.0)
            os.kill(first_of_container(pod), signal.SIGTERM)
            assert await pod.ended() == 0

    asyncio.run(asyncio.wait_for(test(), 550.0))
