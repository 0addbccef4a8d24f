"""Ranks' processes, forked from one that has done the imports; vLLM would start each with imports of its own.

A fork server is forked from an instance that has no threads yet: vLLM's workers cannot be forked from the instance
itself, whose engine, event loop and torch have them by then. It is the standard library's, but for how it comes to
be: not started, but forked. What a worker finds in its environment is what the instance has when it starts the
worker, as vLLM expects. Where threads are there already, or the user has asked for it, ranks import for themselves.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, Final

#: vLLM's, of how workers come to be: "fork" or "spawn".
METHOD: Final = "VLLM_WORKER_MULTIPROC_METHOD"

_ENDING: Final = (signal.SIGTERM, signal.SIGINT)

_folders: list[str] = []  # with the address of the server


def serve() -> None:
    """From now on `context` is one whose processes are forked. By a process of one thread."""
    folder = tempfile.mkdtemp(prefix="galaxy-ranks-")
    address = str(Path(folder) / "socket")
    alive, ours = os.pipe()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(ours)
                for number in _ENDING:
                    signal.signal(number, signal.SIG_IGN)  # it ends with the last of its processes
                forkserver.main(listener.fileno(), alive, ())
            finally:
                shutil.rmtree(
                    folder, ignore_errors=True
                )  # of an instance that was killed before it had done so
                os._exit(0)
    os.close(alive)
    server: Any = forkserver._forkserver
    server._forkserver_address, server._forkserver_alive_fd, server._forkserver_pid = address, ours, pid
    _folders.append(folder)


def serves() -> bool:
    return bool(_folders)


def all_started() -> None:
    """Nobody else is to be forked: the server's address is no more."""
    while _folders:
        shutil.rmtree(_folders.pop(), ignore_errors=True)


def possible(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process has one thread, and its user has not asked for workers that import for themselves."""
    return environ.get(METHOD) != "spawn" and len(os.listdir("/proc/self/task")) == 1


class Context(ForkServerContext):
    """What vLLM's executor makes its processes with."""

    def Process(self, *, target: Callable[..., None], kwargs: Mapping[str, Any], **more: Any) -> Any:  # type: ignore[override]
        made = get_context("forkserver").Process
        return made(target=run, args=(dict(os.environ), target, kwargs), **more)


def run(environ: Mapping[str, str], target: Callable[..., None], kwargs: Mapping[str, Any]) -> None:
    """In the process of a rank."""
    for number in _ENDING:  # its server ignores them
        signal.signal(number, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environ)
    use_threads(environ.get("OMP_NUM_THREADS", ""))
    target(**kwargs)


def use_threads(wanted: str) -> None:
    """A forked process has inherited the number that its zygote's OpenMP read."""
    if not wanted.isdigit() or int(wanted) < 1:
        return
    import torch

    if int(wanted) != torch.get_num_threads():
        torch.set_num_threads(int(wanted))
