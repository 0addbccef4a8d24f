"""Processes of a bench: pinned to a core, their exact CPU time and their memory."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from bench.record import ROOT

START_S = 60.0


def on_cpu(cpu: int, *argv: str, **kwargs: Any) -> subprocess.Popen[bytes]:
    """What it prints is dropped: peers report every client that closes."""
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(
        ["taskset", "-c", str(cpu), *argv], cwd=ROOT, **{"stdout": nowhere, "stderr": nowhere, **kwargs}
    )


def wait_listening(port: int, what: str, host: str = "127.0.0.1") -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection((host, port), 1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise SystemExit(f"{what} does not listen on port {port} after {START_S:.0f} s") from None
            time.sleep(0.05)
        else:
            return


def well(port: int) -> bool:
    """Whether the server there says so."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def end_group(process: subprocess.Popen[bytes]) -> None:
    """It leads a process group of its own."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def family(pid: int) -> list[int]:
    """A process and its children (nginx: master and worker)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in family(int(child)))]


def of_stack(folder: Path) -> list[int]:
    """Processes of an e2e stack's pods: their kubeconfig lies in its folder."""
    mark = f"KUBECONFIG={folder}/kubeconfig-".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # ended, or not ours to read
            if any(word.startswith(mark) for word in words):
                found.append(int(entry.name))
    return found


def own_cpu_ns(pid: int) -> int:
    """Of all its threads. 0 when it has ended."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)
    except OSError:
        return 0


def cpu_ns(pid: int) -> int:
    """Of all threads of the family, in nanoseconds."""
    return sum(own_cpu_ns(each) for each in family(pid))


def memory_bytes(pid: int) -> int:
    """Resident, with shared pages shared out (PSS)."""
    total = 0
    for each in family(pid):
        lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total
