"""Ends whatever a chaos run has started, when its runner has ended: however that came about.

The nursery has it, in a session of its own, so that what kills a runner and its group doesn't meet it. It knows parts
by pid, what others have started (the state store) by a pidfd, instances and zygotes by the folders of the nodes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from pathlib import Path

from autoscaler_shim.node.cleanup import stop_all
from tests.chaos.network import Network

PR_SET_PDEATHSIG = 1
GRACE_S = 1.0


class Undertaker:
    def __init__(self, nodes: Path) -> None:
        """`nodes`: the folder that has one for each node."""
        self.nodes = nodes
        self.parts: set[int] = set()
        self._others: list[int] = []
        self._network: Network | None = None
        self._runner = os.getppid()

    def follow(self, pid: int) -> None:
        """A process that isn't ours, and ends with the run."""
        with contextlib.suppress(ProcessLookupError):
            self._others.append(os.pidfd_open(pid))

    def clear(self, nodes: list[str]) -> None:
        """The runner has made a network for these."""
        self._network = Network(nodes, self._runner)

    def end(self) -> None:
        for pid in self.parts:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for other in self._others:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(other, signal.SIGKILL)
        for node in sorted(self.nodes.glob("*")):
            stop_all(node, GRACE_S)
        if self._network is not None:
            self._network.close()


def end_with(parent: int) -> None:
    """Of this process: when the one that forked it is gone, even if by SIGKILL. Its own children are free of it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
