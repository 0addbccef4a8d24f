"""What makes the load, each a program of its own on the load's core: wrk, a reader of events, gRPC calls."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench.record import ROOT

LOAD_CPU = 1
POST = ROOT / "bench" / "peers" / "post.lua"


class Target(NamedTuple):
    port: int
    #: Before the command of a load that runs elsewhere: `ip netns exec NAME`.
    prefix: tuple[str, ...] = ()


class Done(NamedTuple):
    total: int
    p50_ms: float
    p99_ms: float


Load = Callable[[Target, float], Done]  # (where to, seconds)


def run(target: Target, *argv: str) -> str:
    command = [*target.prefix, "taskset", "-c", str(LOAD_CPU), *argv]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)}: status {done.returncode}\n{done.stdout[-500:]}{done.stderr[-2000:]}"
        )
    return done.stdout


def wrk(connections: int, path: str, revision: str = "bench-00001", post: bool = False) -> Load:
    """`post`: requests have a body of 64 KiB."""

    def load(target: Target, seconds: float) -> Done:
        options = [f"-c{connections}", f"-d{seconds:g}s", "--latency", *(["-s", str(POST)] if post else [])]
        headers = [
            "-H", "Knative-Serving-Namespace: default",
            "-H", f"Knative-Serving-Revision: {revision}",
        ]  # fmt: skip
        out = run(target, "wrk", "-t1", *options, *headers, f"http://127.0.0.1:{target.port}{path}")
        bad = re.search(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)", out)
        if bad:
            raise SystemExit(f"port {target.port}: {bad[0]}")
        requests = re.search(r"(\d+) requests in", out)
        assert requests
        return Done(int(requests[1]), _ms(out, "50%"), _ms(out, "99%"))

    return load


def _ms(out: str, percent: str) -> float:
    match = re.search(rf"{percent}\s+([\d.]+)(us|ms|s)\b", out)
    assert match
    return float(match[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[match[2]]


def streams(count: int, revision: str = "bench-00001") -> Load:
    """Server-sent events, one per 20 ms on each; times are between events."""

    def load(target: Target, seconds: float) -> Done:
        where = (f"127.0.0.1:{target.port}", revision, str(count), str(seconds))
        return _done(run(target, sys.executable, "-m", "bench.peers.events", "read", *where))

    return load


def calls(program: Path, kind: str, count: int, connections: int = 1, revision: str = "calls-00001") -> Load:
    """gRPC; the kinds are those of bench/peers/calls."""

    def load(target: Target, seconds: float) -> Done:
        numbers = (str(connections), str(count), str(seconds))
        return _done(run(target, str(program), kind, f"127.0.0.1:{target.port}", revision, *numbers))

    return load


def _done(out: str) -> Done:
    count, p50, p99 = out.split()
    return Done(int(count), float(p50), float(p99))
