"""Our activator beside Knative's own, a Rust hyper proxy, a Go reverse proxy and nginx (`make bench-activator`).

The real Go activator and ours in one setting (bench/setting.py): the same API server, revisions, instances, headers.
Each proxy, alone on cpu 0, serves each case in turn, in another order each round; load, instances and control plane
share cpu 1. CPU is the exact run time of all threads of the proxy (schedstat) per request, message or event; medians
over rounds. Before, in fresh processes: what 1,000 idle connections and 1,000 held requests take in memory.
A machine that does other work meanwhile gives figures to look at, but none that are recorded.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import quiet
from bench.loads import LOAD_CPU, Load, calls, streams, wrk
from bench.peers import build, nginx
from bench.processes import memory_bytes, on_cpu
from bench.proxies import PEERS, ROLES, Activator, Proxy, proxies
from bench.record import record
from bench.samples import NAMES, Sample, measure, rows_of
from bench.setting import INSTANCE_IP, Setting, Site, setting
from tools import compiled

CONNECTIONS = 1000
SETTLE_S = 2.0
MISSING = {"wrk": "apt install wrk", "nginx": "apt install nginx-light", "go": "go.dev/dl"}
#: Case -> peer -> the largest share of the peer's CPU that ours may take.
REACH = {
    "1 connection": {"activator": 1.0, "rust": 1.2},
    "16 connections": {"activator": 0.33, "rust": 1.2},
    "128 connections": {"activator": 0.22, "rust": 1.2},
}

Samples = Mapping[str, Sequence[Sample]]  # proxy -> one a round


class Case(NamedTuple):
    unit: str
    role: str
    load: Load


def cases(calls_program: Path) -> dict[str, Case]:
    def grpc(kind: str, count: int, connections: int = 1) -> Load:
        return calls(calls_program, kind, count, connections)

    return {
        "1 connection": Case("request", "http", wrk(1, "/")),
        "16 connections": Case("request", "http", wrk(16, "/")),
        "128 connections": Case("request", "http", wrk(128, "/")),
        "64 KiB answers, 16 connections": Case("request", "http", wrk(16, "/64k")),
        "64 KiB requests, 16 connections": Case("request", "http", wrk(16, "/", post=True)),
        "24 streams, an event per 20 ms each": Case("event", "events", streams(24, "events-00001")),
        "64 streams, an event per 20 ms each": Case("event", "events", streams(64, "events-00001")),
        "gRPC unary, 1 in flight": Case("request", "calls", grpc("unary", 1)),
        "gRPC unary, 16 in flight": Case("request", "calls", grpc("unary", 16)),
        "gRPC unary, 128 in flight, 4 connections": Case("request", "calls", grpc("unary", 128, 4)),
        "gRPC, 16 streams, messages back and forth": Case("message", "calls", grpc("echo", 16)),
        "gRPC, 64 streams, a message per 20 ms each": Case("event", "calls", grpc("tokens", 64)),
    }


def start_instances(site: Site, folder: Path, calls_program: Path) -> None:
    at = {role: f"{INSTANCE_IP}:{port}" for role, port in ROLES.items()}
    site.start(LOAD_CPU, *nginx.instance(folder, f"instance-{site.name}", at["http"]))
    site.start(LOAD_CPU, sys.executable, "-m", "bench.peers.events", "serve", at["events"])
    site.start(LOAD_CPU, str(calls_program), "serve", at["calls"])


def memory_mib(proxy: Proxy, kind: str) -> float:
    """What CONNECTIONS connections add to a fresh process that has served a second of requests."""
    proxy.start()
    try:
        wrk(16, "/")(proxy.target("http"), 1)
        time.sleep(SETTLE_S)
        before = memory_bytes(proxy.pid("http"))
        revision = "bench-00001" if kind == "idle" else "cold-00001"
        argv = [sys.executable, "-m", "bench.peers.connections"]
        argv += [f"127.0.0.1:{proxy.ports['http']}", revision, str(CONNECTIONS), kind]
        client = on_cpu(
            LOAD_CPU, *proxy.site.prefix, *argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None
        )
        assert client.stdout
        if client.stdout.readline() != b"all\n":
            raise SystemExit(f"{proxy.name} did not take {CONNECTIONS} {kind} connections")
        time.sleep(SETTLE_S)
        after = memory_bytes(proxy.pid("http"))
        client.communicate()
        return (after - before) / (1 << 20)
    finally:
        proxy.end()


def memory_rows(found: Mapping[tuple[str, str], Sequence[float]], conditions: str) -> list[dict[str, Any]]:
    what = {"idle": "1,000 idle connections", "held": "1,000 held requests"}
    return [
        {
            "metric": f"memory of {what[kind]}",
            "ours": round(statistics.median(found["ours", kind]), 2),
            "peer": round(statistics.median(each), 2),
            "peer_name": NAMES.get(name, name),
            "unit": "MiB",
            "better": "lower",
            "conditions": conditions,
        }
        for (name, kind), each in found.items()
        if name != "ours"
    ]


def verdicts(samples: Mapping[str, Samples]) -> list[str]:
    """What issue and DESIGN ask for, against what was found."""
    lines = []
    for case, peers in REACH.items():
        for name, most in peers.items():
            of_case = samples.get(case, {})
            if name in of_case:
                share = statistics.median(s.cpu_us for s in of_case["ours"])
                share /= statistics.median(s.cpu_us for s in of_case[name])
                word = "reached" if share <= most else "MISSED"
                lines.append(f"{word}: {case}, {share:.2f} of the CPU of {NAMES[name]}, at most {most}")
    return lines


def run_rounds(
    found: Sequence[Proxy], chosen: Mapping[str, Case], rounds: int, seconds: float
) -> dict[str, dict[str, list[Sample]]]:
    samples: dict[str, dict[str, list[Sample]]] = {name: {} for name in chosen}
    for number in range(rounds):
        first = number % len(found)
        for name, case in chosen.items():
            for proxy in [*found[first:], *found[:first]]:
                sample = measure(proxy.pid(case.role), proxy.target(case.role), case.load, seconds)
                samples[name].setdefault(proxy.name, []).append(sample)
                print(
                    f"round {number + 1}  {name:42} {proxy.name:9} {sample.per_s:8.0f}/s  "
                    f"p50 {sample.p50_ms:7.3f} ms  p99 {sample.p99_ms:7.3f} ms  {sample.cpu_us:7.1f} us CPU",
                    flush=True,
                )
    return samples


def measured(
    made: Setting, folder: Path, args: argparse.Namespace
) -> tuple[dict[tuple[str, str], list[float]], dict[str, dict[str, list[Sample]]]]:
    program = build.calls()
    assert program
    for site in made.sites.values():
        start_instances(site, folder, program)
    found = proxies(made, folder, args.peers.split(","))
    memory: dict[tuple[str, str], list[float]] = {}
    if args.only in "memory":
        for _ in range(args.rounds):
            for proxy in found:
                for kind in ("idle", "held") if isinstance(proxy, Activator) else ("idle",):
                    memory.setdefault((proxy.name, kind), []).append(memory_mib(proxy, kind))
                    print(
                        f"memory  {kind} {proxy.name:9} {memory[proxy.name, kind][-1]:7.2f} MiB", flush=True
                    )
    chosen = {name: case for name, case in cases(program).items() if args.only in name}
    if not chosen:
        return memory, {}
    for proxy in found:
        proxy.start()
        wrk(16, "/")(proxy.target("http"), 1)  # caches warm, connections open
    return memory, run_rounds(found, chosen, args.rounds, args.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement, at least 1")
    parser.add_argument("--only", default="", help="part of the names of the cases to run; or: memory")
    parser.add_argument("--peers", default=",".join(PEERS))
    args = parser.parse_args()
    if absent := [f"{name} ({remedy})" for name, remedy in MISSING.items() if shutil.which(name) is None]:
        raise SystemExit(f"missing: {', '.join(absent)}")
    if shutil.which("cargo") is None:
        print("cargo is missing (apt install cargo, or rustup.rs); the Rust proxy is left out")
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("two processors are needed: one for the proxy, one for load and instances")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    build.calls(), build.reverse_proxy(), build.rust_hyper()
    form = "compiled" if compiled.main() == 0 else "interpreted"
    watch = quiet.Watch()
    with tempfile.TemporaryDirectory(prefix="bench-") as name, setting() as made:
        folder = Path(name)
        memory, samples = measured(made, folder, args)
    verdict = watch.verdict()
    conditions = (
        f"loopback of a network namespace, proxy on one core, load, instances and control plane on another; "
        f"{args.rounds} interleaved rounds of {args.seconds:g} s, medians; ours {form}; {verdict.text}"
    )
    rows = memory_rows(memory, conditions)
    for name, case in cases(Path()).items():
        if name in samples:
            rows += rows_of(name, case.unit, samples[name], conditions)
    record("activator", rows, refused=verdict.refused)
    print("\n".join(verdicts(samples)))


if __name__ == "__main__":
    main()
