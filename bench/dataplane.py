"""The data plane beside nginx, a plain Go reverse proxy and a plain aiohttp proxy (`make bench-dataplane`).

One run, interleaved rounds: every proxy, alone on cpu 0, serves each case in turn; the load (wrk, or a reader of
token streams) and the instance (nginx, or a sender of token streams) share cpu 1. CPU per request is the exact
run time of all threads of the proxy (schedstat); medians over rounds. Ours is a Dispatch function with its
controller (bench/peers/ours.py), and the CPU of both counts: routes, slots, records and reports are on. A peer
whose program is missing is named with the command that installs it, and left out.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bench.record import ROOT, record

HEADERS = ("-H", "Knative-Serving-Namespace: default", "-H", "Knative-Serving-Revision: bench-00001")
MISSING = {
    "wrk": "apt install wrk",
    "nginx": "apt install nginx-light",
    "go": "apt install golang-go (or go.dev/dl)",
}


class Sample(NamedTuple):
    per_s: float  # requests or events
    p50_ms: float
    p99_ms: float
    cpu_us: float  # of the proxy, per request or event


class Proxy(NamedTuple):
    name: str
    port: int  # to the short answers and the 64 KiB ones
    events_port: int
    process: subprocess.Popen[bytes]
    events_process: subprocess.Popen[bytes]


Load = Callable[[int, float], tuple[int, float, float]]  # (port, seconds) -> requests, p50, p99 in ms


def on_cpu(cpu: int, *argv: str, **kwargs: Any) -> subprocess.Popen[bytes]:
    """What it prints is dropped: peers report every client that closes."""
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(
        ["taskset", "-c", str(cpu), *argv], cwd=ROOT, stdout=nowhere, stderr=nowhere, **kwargs
    )


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_listening(port: int, what: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise SystemExit(f"{what} does not listen on port {port} after 20 s") from None
            time.sleep(0.05)
        else:
            return


def family(pid: int) -> list[int]:
    """A process and its children (nginx: master and worker)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in family(int(child)))]


def cpu_ns(pid: int) -> int:
    return sum(
        int((task / "schedstat").read_text().split()[0])
        for each in family(pid)
        for task in Path(f"/proc/{each}/task").iterdir()
    )


NGINX = """
worker_processes 1; daemon off; pid {folder}/{name}.pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; client_body_temp_path {folder}/{name}-body;
  proxy_temp_path {folder}/{name}-proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
  scgi_temp_path {folder}/s;
  {body}
}}
"""
INSTANCE = """
  server {{ listen 127.0.0.1:{port} backlog=4096; root {folder};
    location = / {{ default_type text/plain; return 200 "{short}"; }} }}
"""
PEER = """
  upstream instance {{ server {target}; keepalive 512; keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{
    proxy_pass http://instance; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_buffering {buffering}; }} }}
"""


def nginx(folder: Path, name: str, body: str, cpu: int) -> subprocess.Popen[bytes]:
    config = folder / f"{name}.conf"
    config.write_text(NGINX.format(folder=folder, name=name, body=body))
    return on_cpu(cpu, "nginx", "-c", str(config), "-p", str(folder))


def wrk(connections: int, path: str) -> Load:
    def load(port: int, seconds: float) -> tuple[int, float, float]:
        command = [
            "taskset",
            "-c",
            "1",
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds:g}s",
            "--latency",
            *HEADERS,
        ]
        out = subprocess.run(
            [*command, f"http://127.0.0.1:{port}{path}"], capture_output=True, text=True, check=True
        ).stdout
        bad = re.search(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)", out)
        if bad:
            raise SystemExit(f"port {port}: {bad[0]}")
        requests = re.search(r"(\d+) requests in", out)
        assert requests
        return int(requests[1]), *(_ms(out, percent) for percent in ("50%", "99%"))  # type: ignore[return-value]

    return load


def _ms(out: str, percent: str) -> float:
    match = re.search(rf"{percent}\s+([\d.]+)(us|ms|s)\b", out)
    assert match
    return float(match[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[match[2]]


def streams(count: int) -> Load:
    def load(port: int, seconds: float) -> tuple[int, float, float]:
        command = ["taskset", "-c", "1", sys.executable, "-m", "bench.peers.events", "read"]
        out = subprocess.run(
            [*command, f"127.0.0.1:{port}", str(count), str(seconds)],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        events, p50, p99 = out.stdout.split()
        return int(events), float(p50), float(p99)

    return load


CASES: dict[str, tuple[str, Load, bool]] = {  # name -> (unit, load, on the events port)
    "1 connection": ("request", wrk(1, "/"), False),
    "16 connections": ("request", wrk(16, "/"), False),
    "128 connections": ("request", wrk(128, "/"), False),
    "64 KiB answers, 16 connections": ("request", wrk(16, "/64k"), False),
    "64 streams, an event per 20 ms each": ("event", streams(64), True),
}


def start_all(folder: Path, stack: list[subprocess.Popen[bytes]]) -> list[Proxy]:
    target, events = (f"127.0.0.1:{free_port()}" for _ in range(2))
    (folder / "64k").write_bytes(bytes(65536))
    port = int(target.rpartition(":")[2])
    instance = INSTANCE.format(port=port, folder=folder, short="x" * 100)
    stack.append(nginx(folder, "instance", instance, cpu=1))
    stack.append(on_cpu(1, sys.executable, "-m", "bench.peers.events", "serve", events))
    wait_listening(port, "the nginx instance")

    go_program = folder / "reverseproxy"
    subprocess.run(
        ["go", "build", "-o", str(go_program), "bench/peers/reverseproxy.go"], cwd=ROOT, check=True
    ) if (shutil.which("go")) else None

    def peer_nginx(name: str, port: int, to: str) -> subprocess.Popen[bytes]:
        buffering = "off" if to == events else "on"
        return nginx(folder, name, PEER.format(port=port, target=to, buffering=buffering), cpu=0)

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
    }  # fmt: skip
    proxies = []
    for name, make in makers.items():
        if name == "go" and not go_program.exists():
            continue
        ports = free_port(), free_port()
        pair = make(f"{name}-short", ports[0], target), make(f"{name}-events", ports[1], events)
        stack.extend(pair)
        for each in ports:
            wait_listening(each, name)
        proxies.append(Proxy(name, *ports, *pair))
    return proxies


def measure(proxy: Proxy, load: Load, unit: str, on_events: bool, seconds: float) -> Sample:
    pid = (proxy.events_process if on_events else proxy.process).pid
    before, began = cpu_ns(pid), time.monotonic()
    count, p50, p99 = load(proxy.events_port if on_events else proxy.port, seconds)
    spent = time.monotonic() - began
    return Sample(count / (spent if on_events else seconds), p50, p99, (cpu_ns(pid) - before) / count / 1000)


def rows_of(case: str, unit: str, samples: dict[str, list[Sample]], conditions: str) -> list[dict[str, Any]]:
    fields = (
        (f"{unit}s/s", 0, f"{unit}s/s", "higher"),
        ("p50", 1, "ms", "lower"),
        ("p99", 2, "ms", "lower"),
        (f"CPU per {unit}", 3, "us", "lower"),
    )
    rows = []
    for label, index, its_unit, better in fields:
        if unit == "event" and index in (0, 1):
            continue  # set by the sender, the same for all
        medians = {name: statistics.median(s[index] for s in each) for name, each in samples.items()}
        for name, value in medians.items():
            if name != "ours":
                rows.append(
                    {
                        "metric": f"{case}: {label}"
                        + (" between events" if unit == "event" and index == 2 else ""),
                        "ours": round(medians["ours"], 3),
                        "peer": round(value, 3),
                        "peer_name": {"go": "Go httputil.ReverseProxy", "aiohttp": "aiohttp proxy"}.get(
                            name, name
                        ),
                        "unit": its_unit,
                        "better": better,
                        "conditions": conditions,
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--only", default="", help="part of the names of the cases to run")
    parser.add_argument("--peers", default="nginx,go,aiohttp")
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
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        try:
            proxies = [
                p for p in start_all(folder, stack) if p.name == "ours" or p.name in args.peers.split(",")
            ]
            for proxy in proxies:
                measure(proxy, wrk(16, "/"), "request", False, 1)  # caches warm, connections open
            for number in range(args.rounds):
                for case, (unit, load, on_events) in cases.items():
                    for proxy in proxies:
                        sample = measure(proxy, load, unit, on_events, args.seconds)
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
    conditions = (
        f"one Dispatch function and its controller; proxy on one core, load and instance on another; "
        f"{args.rounds} interleaved rounds of {args.seconds:g} s, medians; load average "
        f"of the machine {busy:.1f} before, {os.getloadavg()[0]:.1f} after (of which the bench itself makes up to 2)"
    )
    record(
        "dataplane",
        [
            row
            for case, (unit, _, _) in cases.items()
            for row in rows_of(case, unit, samples[case], conditions)
        ],
    )


if __name__ == "__main__":
    main()
