"""KV channels over a link with soft-RoCE, beside perftest, iperf3 and our own TCP rung (`make bench-kv`).

Runs kv_link.py in the machine of tools/rdma_vm: two processes, one device each, and a wire between the two. Rounds
are interleaved, the median counts. That machine has one processor, which both sides, the device (soft-RoCE is
software) and the network stack share: only ratios within this run mean anything.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from bench.record import record
from tools.rdma_vm import kernel, pyverbs
from tools.rdma_vm.machine import Machine
from tools.setup.layout import Layout
from tools.setup.steps import SetupError

NEEDS = {"ib_write_bw": "perftest", "ib_send_lat": "perftest", "iperf3": "iperf3"}
BULK_REACHED, LATENCY_REACHED, SET_UP_MS = 0.9, 1.5, 50.0
MIB = 1 << 20
Samples = dict[str, list[float]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kv", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nice", type=int, default=0, help="added to the priority number of the machine")
    parser.add_argument("--seconds", type=float, default=400.0, help="after which the machine is given up")
    args = parser.parse_args()
    os.nice(args.nice)
    try:
        samples = measure(args.rounds, args.seconds)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    record("kv", rows(samples, args.rounds))
    return verdict({name: statistics.median(values) for name, values in samples.items()})


def measure(rounds: int, seconds: float) -> Samples:
    layout = Layout.of_user()
    kernel.require(NEEDS, "the comparison")
    path = os.pathsep.join((str(pyverbs.bring(layout)), str(Path.cwd())))
    machine = Machine(kernel.find(layout) or kernel.build(layout), "pair", "4G", seconds)
    env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | {
        "PYTHONPATH": path
    }
    out = io.BytesIO()
    command = [shutil.which(sys.executable) or sys.executable, "-m", "bench.kv_link", "--rounds", str(rounds)]
    status = machine.run(command, env, Path.cwd(), out, sys.stderr.buffer)
    if status:
        raise SetupError(f"the measurement ended with status {status}")
    samples: Samples = {}
    for line in out.getvalue().splitlines():
        name, value = json.loads(line)
        samples.setdefault(name, []).append(value)
    return samples


def rows(samples: Samples, rounds: int) -> list[dict[str, Any]]:
    medians = {name: statistics.median(values) for name, values in samples.items()}
    spread = max((max(v) - min(v)) / statistics.median(v) for v in samples.values() if len(v) > 1)
    conditions = (
        f"soft-RoCE over veth, MTU 4096, User-Mode Linux 6.1 with one processor for both sides; median of {rounds} "
        f"interleaved rounds; largest spread {spread:.0%}; nice {os.nice(0)}; load average {os.getloadavg()[0]:.1f}"
    )

    def row(metric: str, ours: str, peer: str, peer_name: str, unit: str, better: str) -> dict[str, Any]:
        known = {name: round(medians[name], 2) if name in medians else None for name in (ours, peer)}
        facts = {"metric": metric, "ours": known[ours], "peer": known[peer], "unit": unit, "better": better}
        return facts | {"peer_name": peer_name if known[peer] is not None else None, "conditions": conditions}

    out = []
    for name in medians:
        kind, _, size = name.partition(" ")
        if kind == "write":
            metric = f"WRITE of {int(size) // 1024} KiB, bandwidth"
            out.append(row(metric, name, f"ib_write_bw {size}", "ib_write_bw", "MB/s", "higher"))
    out += [
        row("message of 64 bytes, one way", "send", "ib_send_lat", "ib_send_lat with events", "us", "lower"),
        row("channel, rung rdma, bandwidth", "channel rdma", "channel tcp", "our rung tcp", "MB/s", "higher"),
        row("channel, rung rdma, bandwidth", "channel rdma", "iperf3", "iperf3", "MB/s", "higher"),
        row("channel, rung rdma, CPU", "cpu rdma", "cpu tcp", "our rung tcp", "s/GiB", "lower"),
        row(
            "channel, rung rdma, bandwidth",
            "channel rdma",
            f"write {MIB}",
            "bare WRITEs of 1 MiB",
            "MB/s",
            "higher",
        ),
        row(
            "channel, rung rdma, bandwidth",
            "channel rdma",
            "channel rdma-staged",
            "rdma-staged",
            "MB/s",
            "higher",
        ),
        row("channel, rung rdma, CPU", "cpu rdma", "cpu rdma-staged", "rdma-staged", "s/GiB", "lower"),
        row("channel, rung tcp, bandwidth", "channel tcp", "iperf3", "iperf3", "MB/s", "higher"),
        row("WRITE of 1024 KiB, CPU", "cpu write", "", "", "s/GiB", "lower"),
        row("channel set-up, without its ring", "set-up", "", "", "ms", "lower"),
        row("channel set-up, registering a ring of 16 MiB", "ring", "", "", "ms", "lower"),
    ]
    return out


def verdict(medians: dict[str, float]) -> int:
    checks = {
        f"WRITE of 1 MiB at {BULK_REACHED:.0%} of ib_write_bw": medians[f"write {MIB}"]
        >= BULK_REACHED * medians[f"ib_write_bw {MIB}"],
        f"message within {LATENCY_REACHED} times ib_send_lat": medians["send"]
        <= LATENCY_REACHED * medians["ib_send_lat"],
        f"set-up within {SET_UP_MS:.0f} ms": medians["set-up"] <= SET_UP_MS,
    }
    for check, reached in checks.items():
        print(f"{'reached' if reached else 'MISSED'}: {check}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
