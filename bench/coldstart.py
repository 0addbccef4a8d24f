"""Time from a request at zero to its first token, beside starting a plain vLLM server (`make bench-coldstart`).

Ours: an embedded cluster, a revision at zero, one streamed completion; the clock runs from the request to the
first token's event. Plain: vLLM's own OpenAI server on the same model; the clock runs from the start of the
process to the first token of the same request, asked as soon as /health answers. A pair: prefill and decode at
zero woken by one request, beside two plain servers started at once. Rounds are interleaved; the median counts.
No instance has seen the model before its request; the zygote has vLLM's imports done, which is the point, and its
own start-up is printed as well.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.record import record
from kserve_ext.rpc.ports import free_port
from tests.support.embedded import Embedded
from tools.setup.layout import Layout

PROMPT = "the quick brown fox jumps over the lazy dog " * 40  # ~360 tokens: past the prefill threshold
TIMEOUT_S = 300.0
UNIFIED, PAIR = "tiny.default.galaxy.local", "tiny-pd-decode.default.galaxy.local"
ROOT = Path(__file__).resolve().parents[1]


def first_token(port: int, model: str, host: str = "", prompt: str = "hello") -> float:
    """Seconds from sending a streamed completion to its first token's event."""
    body = json.dumps({"model": model, "prompt": prompt, "max_tokens": 4, "stream": True, "temperature": 0})
    headers = {"Content-Type": "application/json", **({"Host": host} if host else {})}
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    connection.request("POST", "/v1/completions", body, headers)
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"{host or port}: {response.status} {response.read(500)!r}")
    while line := response.readline():
        if line.startswith(b"data: {"):
            if b'"error"' in line:
                raise RuntimeError(f"{host or port}: {line!r}")
            took = time.monotonic() - began
            response.read()
            connection.close()
            return took
    raise RuntimeError(f"{host or port}: the stream ended without a token")


class Plain:
    """vLLM's own API server, as a user starts it."""

    def __init__(self, model: Path) -> None:
        self.port = free_port()
        env = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        argv += ["--served-model-name", "tiny", "--port", str(self.port), "--host", "127.0.0.1"]
        argv += ["--max-model-len", "2048", "--enforce-eager", "--dtype", "float32"]
        self.process = subprocess.Popen(
            argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def wait_healthy(self) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the plain vLLM server ended with {self.process.returncode}")
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.02)
        raise RuntimeError(f"the plain vLLM server was not healthy within {TIMEOUT_S} s")

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(20)


def plain_round(model: Path, count: int) -> float:
    """Seconds from starting `count` plain servers at once until each has given a first token."""
    began = time.monotonic()
    servers = [Plain(model) for _ in range(count)]
    try:
        for server in servers:
            server.wait_healthy()
            first_token(server.port, "tiny")
        return time.monotonic() - began
    finally:
        for server in servers:
            server.stop()


def our_round(cluster: Embedded, host: str, model: str, prompt: str) -> float:
    """Waits until the service is at zero, then asks."""
    cluster.wait(f"{host} at zero", lambda: at_zero(cluster, host.split(".")[0]), timeout_s=120)
    return first_token(cluster.port, model, host, prompt)


def at_zero(cluster: Embedded, service: str) -> bool:
    prefix = service.removesuffix("-decode")
    instances = cluster.json("status")["instances"]
    return not any(i["revision"].split("/")[1].startswith(prefix) for i in instances)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds: int = parser.parse_args().rounds
    model = Layout.of_user().tiny_model
    results: dict[str, list[float]] = {"ours": [], "plain": [], "our pair": [], "plain pair": []}
    claim = ("--pvc", f"models={model.parent}")
    with tempfile.TemporaryDirectory() as folder:
        for k in range(rounds):
            results["plain"].append(plain_round(model, 1))
            results["plain pair"].append(plain_round(model, 2))
            with Embedded(
                Path(folder) / f"c{k}", "--nodes", "1", "--node-cpu", "4", "--node-memory", "8Gi", *claim
            ) as cluster:
                cluster.galaxy("apply", "-f", str(ROOT / "examples"))
                cluster.wait("zygotes ready", lambda: zygotes(cluster), timeout_s=120)
                results["ours"].append(our_round(cluster, UNIFIED, "tiny", "hello"))
                results["our pair"].append(our_round(cluster, PAIR, "tiny-pd", PROMPT))
            print({name: [round(s, 2) for s in values] for name, values in results.items()}, flush=True)
    rows = []
    for ours, peer, what in (("ours", "plain", "one"), ("our pair", "plain pair", "pair")):
        mine, theirs = statistics.median(results[ours]), statistics.median(results[peer])
        rows.append(
            {
                "metric": f"request to first token at zero, {what}",
                "ours": round(mine, 3),
                "peer": round(theirs, 3),
                "peer_name": f"start of {'a plain vLLM server' if what == 'one' else 'two plain vLLM servers'}",
                "unit": "s",
                "better": "lower",
                "ratio": round(theirs / mine, 2),
                "conditions": f"tiny model, CPU, fp32, zygote ready, median of {rounds}",
            }
        )
    record("coldstart", rows)
    return 0


def zygotes(cluster: Embedded) -> bool:
    nodes = cluster.json("status")["nodes"]
    return bool(nodes) and all(sum(n["slots"].values()) > 0 for n in nodes)


if __name__ == "__main__":
    sys.exit(main())
