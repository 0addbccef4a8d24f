"""The data plane beside nginx and plain proxies in Go, Rust and aiohttp (`make bench-dataplane`).

One run, interleaved rounds: every proxy, alone on cpu 0, serves each case in turn; the load (wrk, or a reader of
token streams) and the instance (nginx, or a sender of token streams) share cpu 1. CPU per request is the exact
run time of all threads of the proxy (schedstat); medians over rounds. Ours is a Dispatch function with its
controller (bench/peers/ours.py), and the CPU of both counts: routes, slots, records and reports are on. A peer
whose program is missing is named with the command that installs it, and left out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench import quiet
from bench.loads import Load, Target, streams, wrk
from bench.peers import build, nginx
from bench.processes import on_cpu, wait_listening
from bench.record import record
from bench.samples import Sample, measure, rows_of
from kserve_ext.rpc.ports import free_port
from tools import compiled

MISSING = {
    "wrk": "apt install wrk",
    "nginx": "apt install nginx-light",
    "go": "apt install golang-go (or go.dev/dl)",
    "cargo": "apt install cargo (or rustup.rs)",
}


class Proxy(NamedTuple):
    name: str
    port: int  # to the short answers and the 64 KiB ones
    events_port: int
    process: subprocess.Popen[bytes]
    events_process: subprocess.Popen[bytes]


CASES: dict[str, tuple[str, Load, bool]] = {  # name -> (unit, load, on the events port)
    "1 connection": ("request", wrk(1, "/"), False),
    "16 connections": ("request", wrk(16, "/"), False),
    "128 connections": ("request", wrk(128, "/"), False),
    "64 KiB answers, 16 connections": ("request", wrk(16, "/64k"), False),
    "64 streams, an event per 20 ms each": ("event", streams(64), True),
}


def start_all(folder: Path, stack: list[subprocess.Popen[bytes]]) -> list[Proxy]:
    target, events = (f"127.0.0.1:{free_port()}" for _ in range(2))
    stack.append(on_cpu(1, *nginx.instance(folder, "instance", target)))
    stack.append(on_cpu(1, sys.executable, "-m", "bench.peers.events", "serve", events))
    wait_listening(int(target.rpartition(":")[2]), "the nginx instance")

    go_program, rust_program = build.reverse_proxy(), build.rust_hyper()

    def peer_nginx(name: str, port: int, to: str) -> subprocess.Popen[bytes]:
        return on_cpu(0, *nginx.proxy(folder, name, f"127.0.0.1:{port}", to, buffering=to != events))

    makers: dict[str, Callable[[str, int, str], subprocess.Popen[bytes]]] = {
        "ours": lambda _, port, to: on_cpu(
            0, sys.executable, "-m", "bench.peers.ours", str(port), to
        ),
        "nginx": peer_nginx,
        "go": lambda _, port, to: on_cpu(
            0, str(go_program), f"127.0.0.1:{port}", to, env={**os.environ, "GOMAXPROCS": "1"}
        ),
        "aiohttp": lambda _, port, to: on_cpu(
            0, sys.executable, "-m", "bench.peers.aiohttp_proxy", f"127.0.0.1:{port}", to
        ),
        "rust": lambda _, port, to: on_cpu(0, str(rust_program), f"127.0.0.1:{port}", to),
    }  # fmt: skip
    proxies = []
    for name, make in makers.items():
        if (name == "go" and not go_program) or (name == "rust" and not rust_program):
            continue
        ports = free_port(), free_port()
        pair = make(f"{name}-short", ports[0], target), make(f"{name}-events", ports[1], events)
        stack.extend(pair)
        for each in ports:
            wait_listening(each, name)
        proxies.append(Proxy(name, *ports, *pair))
    return proxies


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--only", default="", help="part of the names of the cases to run")
    parser.add_argument("--peers", default="nginx,go,aiohttp,rust")
    args = parser.parse_args()
    for program, remedy in MISSING.items():
        if shutil.which(program) is None:
            print(f"{program} is missing ({remedy}); what needs it is left out")
    if shutil.which("wrk") is None or shutil.which("nginx") is None:
        print("wrk makes the load and nginx is the instance: nothing can be measured without them")
        return
    if len(os.sched_getaffinity(0)) < 2:
        print("two processors are needed: one for the proxy, one for the load and the instance")
        return
    cases = {name: case for name, case in CASES.items() if args.only in name}
    samples: dict[str, dict[str, list[Sample]]] = {name: {} for name in cases}
    stack: list[subprocess.Popen[bytes]] = []
    form = "compiled" if compiled.main() == 0 else "interpreted"
    watch = quiet.Watch()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        try:
            proxies = [
                p for p in start_all(folder, stack) if p.name == "ours" or p.name in args.peers.split(",")
            ]
            for proxy in proxies:
                wrk(16, "/")(Target(proxy.port), 1)  # caches warm, connections open
            for number in range(args.rounds):
                for case, (_, load, on_events) in cases.items():
                    for proxy in proxies:
                        process = proxy.events_process if on_events else proxy.process
                        target = Target(proxy.events_port if on_events else proxy.port)
                        sample = measure(process.pid, target, load, args.seconds)
                        samples[case].setdefault(proxy.name, []).append(sample)
                        print(
                            f"round {number + 1}  {case:36} {proxy.name:8} {sample.per_s:9.0f}/s  "
                            f"p50 {sample.p50_ms:7.3f} ms  p99 {sample.p99_ms:7.3f} ms  {sample.cpu_us:7.1f} us CPU",
                            flush=True,
                        )
        finally:
            for process in reversed(stack):
                process.send_signal(signal.SIGTERM)
            for process in stack:
                process.wait(60)
    verdict = watch.verdict()
    conditions = (
        f"one Dispatch function and its controller; proxy on one core, load and instance on another; "
        f"{args.rounds} interleaved rounds of {args.seconds:g} s, medians; ours {form}; "
        f"{verdict.text}"
    )
    record(
        "dataplane",
        [
            row
            for case, (unit, _, _) in cases.items()
            for row in rows_of(case, unit, samples[case], conditions)
        ],
        refused=verdict.refused,
    )


if __name__ == "__main__":
    main()
