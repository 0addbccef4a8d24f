"""The activator as a process: its environment, its log, its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import yaml

from tests.support.api_server import ApiServer
from tests.support.dataplane import Client, get, run
from tests.support.knative_activator import put_config, put_revision


def kubeconfig(folder: Path, url: str) -> str:
    path = folder / "kubeconfig"
    entry = {"name": "x", "cluster": {"server": url}}
    context = {"name": "x", "context": {"cluster": "x", "user": "x"}}
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "x",
                "clusters": [entry],
                "contexts": [context],
                "users": [{"name": "x", "user": {}}],
            }
        )
    )
    return str(path)


async def start(folder: Path, url: str, **environ: str) -> asyncio.subprocess.Process:
    pod = {"POD_NAME": "act-0", "POD_IP": "127.0.0.1"}
    ports = dict.fromkeys(("GALAXY_HTTP1_PORT", "GALAXY_HTTP2_PORT", "GALAXY_METRICS_PORT"), "0")
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "activator_replacement.knative",
        env={**os.environ, **pod, **ports, "KUBECONFIG": kubeconfig(folder, url), **environ},
        stdout=asyncio.subprocess.PIPE,
    )


async def line(process: asyncio.subprocess.Process, text: str) -> dict[str, str]:
    assert process.stdout is not None
    while data := await process.stdout.readline():
        found: dict[str, str] = json.loads(data)
        if text in found["message"]:
            return found
    raise AssertionError(f"ended without {text!r}")


def test_from_start_to_end(tmp_path: Path) -> None:
    async def test() -> None:
        async with ApiServer() as api:
            put_config(api)
            put_revision(api, "hello-00001")
            process = await start(tmp_path, api.url, GALAXY_DRAIN="2s", GALAXY_GRACE="60s")
            said = await line(process, "serving 1 revisions")
            assert said["severity"] == "INFO"
            client = await Client.connect("127.0.0.1", int(said["message"].split()[5]))
            client.send(get("/", "User-Agent: kube-probe/1.36"))
            assert (await client.response())[0] == 200
            process.send_signal(signal.SIGTERM)
            await line(process, "probes fail from here on")
            client.send(get("/", "User-Agent: kube-probe/1.36"))
            assert (await client.response())[0] == 500
            assert await process.wait() == 0

    run(test())


def test_an_end_before_the_api_server_has_answered(tmp_path: Path) -> None:
    async def test() -> None:
        async with ApiServer() as api:
            api.hold()
            process = await start(tmp_path, api.url)
            await api.until(lambda: api.requests)
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
            api.release()

    run(test())


def test_a_bad_environment_ends_it_with_the_reason(tmp_path: Path) -> None:
    async def test() -> None:
        process = await start(tmp_path, "http://127.0.0.1:1", PROBE_TIMEOUT="300")
        assert "PROBE_TIMEOUT" in (await line(process, "can't serve"))["message"]
        assert await process.wait() == 1

    run(test())
