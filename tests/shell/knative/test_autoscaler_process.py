"""The autoscaler as a process: what the kubelet sees of it while there is no API server, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import aiohttp
import yaml

from kserve_ext.rpc.ports import free_port
from tests.support.api_server import ApiServer
from tests.support.knative_autoscaler import put_pod, put_revision, put_sks, replicas, run, state, status


def kubeconfig(folder: Path, url: str) -> Path:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": {}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


async def start(config: Path, port: int) -> asyncio.subprocess.Process:
    environ = {
        **os.environ,
        "KUBECONFIG": str(config),
        "POD_NAME": "autoscaler-0",
        "POD_IP": "127.0.0.1",
        "GALAXY_STATS_PORT": str(port),
        "GALAXY_METRICS_PORT": "0",
    }
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "autoscaler_shim.knative", env=environ, stdout=asyncio.subprocess.PIPE
    )


async def probe(port: int) -> int:
    """Asked until somebody answers, as the kubelet does."""
    async with aiohttp.ClientSession(headers={"User-Agent": "kube-probe/1.36"}) as session:
        while True:
            try:
                async with session.get(f"http://127.0.0.1:{port}/") as answer:
                    return answer.status
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)


def test_it_waits_for_an_api_server_and_ends_when_told(tmp_path: Path) -> None:
    async def test() -> None:
        port = free_port()
        process = await start(kubeconfig(tmp_path, "http://127.0.0.1:1"), port)
        assert await probe(port) == 503
        process.send_signal(signal.SIGTERM)
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()

    run(test())


def test_it_serves_a_cluster_and_gives_its_lease_back(tmp_path: Path) -> None:
    async def test() -> None:
        port = free_port()
        async with ApiServer() as api:
            put_pod(api, "pod-0")
            put_sks(api, put_revision(api, 1, status=state("True")))
            process = await start(kubeconfig(tmp_path, api.url), port)
            await api.until(lambda: status(api).get("observedGeneration"))
            await api.until(lambda: replicas(api) == 0)
            assert await probe(port) == 200
            process.send_signal(signal.SIGTERM)
            output, _ = await process.communicate()
            assert process.returncode == 0, output.decode()
            assert "given back" in output.decode()

    run(test())
