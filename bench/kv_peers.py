"""KV blocks between two processes of one host: our rungs beside UCX, NIXL and the Mooncake transfer engine.

    python -m bench.kv_peers [--rounds N]

Every contender moves the same bytes in writes of 1 MiB from 64 MiB of one process into 64 MiB of another, round
after round in turn, and the median counts. Ours checks each block of 64 KiB by CRC-32 at both ends and waits until
the other side says that all has landed; the peers check nothing. Over loopback every transport is the kernel's TCP,
so this compares the software above it; what a network card would do is in bench-kv. The peers are fetched into the
cache folder (bench/peers/packages.py) and have programs of their own (bench/peers/nixl_pair.py, mooncake_pair.py).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from bench.peers import packages
from bench.quiet import Watch
from bench.record import ROOT, record
from tools.setup.steps import SetupError

Samples = dict[str, list[float]]
MIB: Final = 1 << 20
#: What UCX may use. NIXL always needs a way that notices when a peer fails, thus TCP beside memory.
WAYS: Final = {"tcp": "tcp,self", "memory": "sm,tcp,self"}
RUNGS: Final = {"tcp": "tcp", "memory": "shm"}
ROUND_S: Final = 120.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kv_peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    try:
        folders = {name: packages.bring(name) for name in packages.PACKAGES}
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    watch, samples = Watch(), Samples()
    for number in range(args.rounds):
        one_round(samples, folders)
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
    verdict = watch.verdict()
    record("kv_peers", rows(samples, args.rounds, verdict.text), refused=verdict.refused)
    return 0


def one_round(samples: Samples, folders: dict[str, Path]) -> None:
    for way, ucx in WAYS.items():
        for contender, rung in (("ours", RUNGS[way]), ("ours over nixl", "nixl")):
            _run(samples, f"{contender} {way}", ["bench.kv_peers_pair", rung], ucx, folders["nixl"])
        _run(samples, f"nixl {way}", ["bench.peers.nixl_pair"], ucx, folders["nixl"])
        _add(samples, f"ucx {way} MB/s", perftest(folders["ucx"], ucx, "ucp_put_bw", MIB, 1500)[0])
    _run(samples, "mooncake tcp", ["bench.peers.mooncake_pair"], "tcp", folders["mooncake"])
    _add(samples, "ucx tcp us", perftest(folders["ucx"], WAYS["tcp"], "ucp_am_lat", 64, 10_000)[1])


def _add(samples: Samples, name: str, value: float) -> None:
    samples.setdefault(name, []).append(value)


def _run(samples: Samples, contender: str, module: list[str], ucx: str, folder: Path) -> None:
    """A program that prints one JSON object: unit -> value."""
    env = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}",
        "UCX_TLS": ucx,
        "NIXL_LOG_LEVEL": "WARN",
    }
    if ucx == WAYS["tcp"]:
        env["UCX_NET_DEVICES"] = "lo"
    command = [sys.executable, "-m", *module]
    done = subprocess.run(
        command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=ROUND_S, check=False
    )
    if done.returncode:
        raise SystemExit(f"{contender}: status {done.returncode}\n{done.stderr[-3000:]}")
    for unit, value in json.loads(done.stdout.splitlines()[-1]).items():
        _add(samples, f"{contender} {unit}", value)


def perftest(folder: Path, ucx: str, test: str, size: int, count: int) -> tuple[float, float]:
    """MB/s and microseconds of one, by UCX's own program."""
    program = folder / "libucx" / "bin" / "ucx_perftest"
    program.chmod(0o755)  # a wheel may lose it
    env = {**os.environ, "LD_LIBRARY_PATH": str(folder / "libucx" / "lib"), "UCX_TLS": ucx}
    if ucx == WAYS["tcp"]:
        env["UCX_NET_DEVICES"] = "lo"
    port = ["-p", "13337"]
    server = subprocess.Popen([program, *port], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _listens(13337)
        words = ["127.0.0.1", *port, "-t", test, "-s", str(size), "-n", str(count), "-w", "50", "-f"]
        done = subprocess.run(
            [program, *words], env=env, capture_output=True, text=True, timeout=ROUND_S, check=True
        )
    finally:
        server.terminate()
        server.wait()
    return figures(done.stdout)


def figures(text: str) -> tuple[float, float]:
    """MB/s and microseconds over all, of the last line of its table; its MB are MiB."""
    found = [line.split() for line in text.splitlines() if re.fullmatch(r"\s*\d+(\s+[\d.]+){7}\s*", line)]
    if not found:
        raise SystemExit(f"ucx_perftest says nothing: {text[-1000:]}")
    return float(found[-1][5]) * 1.048576, float(found[-1][3])


def _listens(port: int) -> None:
    """By the kernel's table: a connection of ours would be taken for the client's."""
    wanted, deadline = f":{port:04X}", time.monotonic() + 10
    while time.monotonic() < deadline:
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            for line in Path(table).read_text().splitlines()[1:]:
                local, _, state = line.split()[1:4]
                if local.endswith(wanted) and state == "0A":
                    return
        time.sleep(0.02)
    raise SystemExit("ucx_perftest does not listen")


def rows(samples: Samples, rounds: int, quiet: str) -> list[dict[str, Any]]:
    medians = {name: statistics.median(values) for name, values in samples.items()}
    spread = max((max(v) - min(v)) / statistics.median(v) for v in samples.values())
    conditions = (
        f"two processes of one host, host memory, writes of 1 MiB out of and into 64 MiB; median of {rounds} "
        f"interleaved rounds, largest spread {spread:.0%}; ours with CRC-32 at both ends, peers without checks; "
        f"ucx_perftest writes the same MiB again and again; {quiet}"
    )

    def row(metric: str, ours: str, peer: str, peer_name: str, unit: str, better: str) -> dict[str, Any]:
        known = {"ours": round(medians[ours], 2), "peer": round(medians[peer], 2)}
        facts = {"metric": metric, "peer_name": peer_name, "unit": unit, "better": better}
        return {**facts, **known, "conditions": conditions}

    names = {"nixl": "NIXL 1.5.1 WRITE", "ucx": "ucx_perftest 1.22 ucp_put_bw", "mooncake": "Mooncake 0.3.13"}
    out = []
    for way, rung in RUNGS.items():
        where = "TCP on loopback" if way == "tcp" else "memory of one host"
        peers = [peer for peer in names if f"{peer} {way} MB/s" in medians]
        for peer in peers:
            ours, theirs = f"ours {way} MB/s", f"{peer} {way} MB/s"
            out.append(row(f"{where}, rung {rung}, bandwidth", ours, theirs, names[peer], "MB/s", "higher"))
        for peer in peers:
            if f"{peer} {way} s/GiB" in medians:
                ours, theirs = f"ours {way} s/GiB", f"{peer} {way} s/GiB"
                out.append(row(f"{where}, rung {rung}, CPU", ours, theirs, names[peer], "s/GiB", "lower"))
                ours, theirs = f"ours {way} ms", f"{peer} {way} ms"
                metric = f"{where}, rung {rung}, from nothing to the first write landed"
                out.append(row(metric, ours, theirs, names[peer], "ms", "lower"))
        ours, theirs = f"ours over nixl {way} MB/s", f"nixl {way} MB/s"
        out.append(row(f"{where}, rung nixl, bandwidth", ours, theirs, names["nixl"], "MB/s", "higher"))
    metric = "TCP on loopback, message of 64 bytes, one way"
    out.append(
        row(metric, "ours tcp us", "ucx tcp us", "ucx_perftest 1.22 ucp_am_lat, spinning", "us", "lower")
    )
    return out


if __name__ == "__main__":
    sys.exit(main())
