"""A network of its own for each node of a chaos run: namespaces joined by a bridge, so that a node can be cut off.

Needs root and the `ip` command; where either is missing, runs go without cuts. A cut takes the node's link down at
the bridge: nothing comes through either way, connections stay open, and nobody is told. Names carry the pid, and are
removed whatever happens.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Sequence


def possible() -> bool:
    return os.geteuid() == 0 and shutil.which("ip") is not None


class Network:
    """Addresses 10.213.X.0/24: the bridge, where all but the nodes listen, has .1, node k .(10 + k)."""

    def __init__(self, nodes: Sequence[str], owner: int = 0) -> None:
        """`owner`: the pid of the process that it is for; 0: this one."""
        self.nodes = list(nodes)
        own = (owner or os.getpid()) % 100_000
        self._bridge = f"gxb{own}"
        self._subnet = f"10.213.{own % 250}"
        self._name = {node: f"gx{own}-{k}" for k, node in enumerate(nodes)}
        self._host = {node: f"{self._subnet}.{10 + k}" for k, node in enumerate(nodes)}

    @property
    def host(self) -> str:
        return f"{self._subnet}.1"

    def host_of(self, node: str) -> str:
        return self._host[node]

    def namespace(self, node: str) -> str:
        """The file to enter it by."""
        return f"/run/netns/{self._name[node]}"

    def open(self) -> None:
        """Raises OSError where this machine doesn't let us."""
        try:
            ip("link", "add", self._bridge, "type", "bridge")
            ip("addr", "add", f"{self.host}/24", "dev", self._bridge)
            ip("link", "set", self._bridge, "up")
            for node in self.nodes:
                self._add(node)
        except OSError:
            self.close()
            raise

    def _add(self, node: str) -> None:
        name, link = self._name[node], self._link(node)
        ip("netns", "add", name)
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", link, "master", self._bridge)
        ip("link", "set", link, "up")
        ip("-n", name, "addr", "add", f"{self._host[node]}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            ip("-n", name, "link", "set", device, "up")

    def cut(self, node: str) -> None:
        ip("link", "set", self._link(node), "down")

    def heal(self, node: str) -> None:
        ip("link", "set", self._link(node), "up")

    def close(self) -> None:
        for node in self.nodes:
            for words in (("link", "del", self._link(node)), ("netns", "del", self._name[node])):
                with contextlib.suppress(OSError):
                    ip(*words)
        with contextlib.suppress(OSError):
            ip("link", "del", self._bridge)

    def _link(self, node: str) -> str:
        return f"{self._name[node]}v"


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
