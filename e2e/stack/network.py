"""Network namespaces of a stack: one for the node, one for each pod, and the links between them.

A pod's link is routed, not bridged: all its traffic passes the node's tables, where kube-proxy rewrites service
addresses, and sources stay as they are. Nothing has a way out of the machine, and nothing outside the namespaces
is touched but `/etc/netns`, where `ip netns exec` finds the files it mounts over resolv.conf and hosts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Collection
from pathlib import Path

from e2e.stack.place import GATEWAY, NODE_IP, Place

_ETC = Path("/etc/netns")
_RUN = Path("/run/netns")
_CLONE_NEWNET = 0x40000000


class NetworkError(Exception):
    """The message says what was asked of the kernel and what it answered."""


def require() -> None:
    """Says what is missing before anything is made."""
    if os.geteuid() != 0:
        raise NetworkError("network namespaces need root: run as root, or with sudo")
    for tool, package in (("ip", "iproute2"), ("nft", "nftables"), ("nsenter", "util-linux")):
        if shutil.which(tool) is None:
            raise NetworkError(f"`{tool}` not found: apt install {package} (the stack is made with it)")


def ip(*words: str, batch: str = "") -> str:
    command = ["ip", *words, *(["-batch", "-"] if batch else [])]
    done = subprocess.run(command, input=batch, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NetworkError(f"`{' '.join(command)}`: {done.stderr.strip()}\n{batch}")
    return done.stdout


def namespaces() -> list[str]:
    return sorted(path.name for path in _RUN.iterdir()) if _RUN.exists() else []


def make_node(place: Place) -> None:
    _make(place.node)
    ip(
        "-n",
        place.node,
        batch=f"link set lo up\nlink add node type bridge\naddr add {NODE_IP}/32 dev node\nlink set node up\n"
        # Somewhere to send what has no route, so that service addresses reach the tables that rewrite them.
        "route add default dev node\n",
    )
    subprocess.run(
        [
            "ip",
            "netns",
            "exec",
            place.node,
            "sysctl",
            "-qw",
            "net.ipv4.ip_forward=1",
            "net.ipv4.conf.all.rp_filter=0",
        ],
        check=True,
    )


def plug_in(place: Place, link: str, address: str) -> None:
    """A pod's link that was set down, with the routes that went with it."""
    ip(
        "-n",
        place.node,
        batch=f"link set {link} up\nroute replace {address}/32 dev {link} src {NODE_IP}\n",
    )


def make_pod(place: Place, number: int, address: str, hostname: str) -> str:
    """The namespace's name. Blocks for some tens of milliseconds."""
    namespace = place.pod(number)
    _make(namespace, f"{address} {hostname}\n")
    ip(
        "-n",
        place.node,
        batch=f"link add p{number} type veth peer name eth0 netns {namespace}\naddr add {GATEWAY}/32 dev p{number}\n"
        f"link set p{number} up\nroute add {address}/32 dev p{number} src {NODE_IP}\n",
    )
    ip(
        "-n",
        namespace,
        batch=f"link set lo up\naddr add {address}/32 dev eth0\nlink set eth0 up\n"
        f"route add {GATEWAY} dev eth0 scope link\nroute add default via {GATEWAY} src {address}\n",
    )
    return namespace


def _make(namespace: str, host: str = "") -> None:
    files = _ETC / namespace
    files.mkdir(parents=True, exist_ok=True)
    (files / "resolv.conf").write_text(
        f"nameserver {NODE_IP}\nsearch svc.cluster.local cluster.local\noptions ndots:5\n", encoding="ascii"
    )
    (files / "hosts").write_text(f"127.0.0.1 localhost\n{host}", encoding="ascii")
    ip("netns", "add", namespace)


def remove(namespace: str) -> None:
    """Also when it is half made or already gone. Its processes must have ended: they would keep it alive unnamed."""
    shutil.rmtree(_ETC / namespace, ignore_errors=True)
    if (_RUN / namespace).exists():
        ip("netns", "del", namespace)


def processes(namespace: str, others: Collection[int] = ()) -> list[int]:
    """Without this process, which may have entered, and without `others` and what shares their mounts.

    `ip netns exec` gives each program mounts of its own, which all that it starts shares."""
    found = []
    mounts = {mount for pid in others if (mount := _mounts(pid)) is not None}
    try:
        wanted = (_RUN / namespace).stat()
    except FileNotFoundError:
        return []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                actual = (entry / "ns" / "net").stat()
            except OSError:
                continue  # it has just ended, or is dead and not yet waited for
            if (actual.st_dev, actual.st_ino) != (wanted.st_dev, wanted.st_ino):
                continue
            if int(entry.name) not in others and _mounts(int(entry.name)) not in mounts:
                found.append(int(entry.name))
    return found


def _mounts(pid: int) -> int | None:
    """The mount namespace; None: the process is gone."""
    try:
        return (Path("/proc") / str(pid) / "ns" / "mnt").stat().st_ino
    except OSError:
        return None


def end(namespace: str, others: Collection[int] = ()) -> None:
    """Kills all that runs in it but `others`, as `processes` knows them, and waits for their end."""
    patience = time.monotonic() + 10
    while pids := processes(namespace, others):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > patience:
            raise NetworkError(f"processes {pids} in {namespace} do not end")
        time.sleep(0.02)


def enter(namespace: str) -> None:
    """Move this thread, and what it starts later, into the namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with (_RUN / namespace).open("rb") as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET):
            number = ctypes.get_errno()
            raise NetworkError(f"entering {namespace}: {os.strerror(number)}")


def environment() -> dict[str, str]:
    """Without proxies: they are out of reach from a stack, whose addresses need none."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


def command(namespace: str, argv: list[str]) -> list[str]:
    """`ip netns exec` becomes the program: the process id is the program's own."""
    return ["ip", "netns", "exec", namespace, *argv]


def joined(namespace: str, argv: list[str]) -> list[str]:
    """As `command`, in this process's mounts: `ip netns exec` would hide the namespaces that the program makes."""
    return ["nsenter", f"--net={_RUN / namespace}", "--", *argv]
