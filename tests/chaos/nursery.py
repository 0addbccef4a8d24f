"""Starts the parts of a chaos run as real processes, forked from one that has imported everything already.

    python -m tests.chaos.nursery NODES [BUG]

One JSON object a line on stdin: {"part", "argv", "log", "env", "clock", "net", "frames"}; it answers
{"part", "pid"} on stdout, and says {"died": pid, "status"} of each that ends. A part is a process with a session of
its own: it is killed and stopped by pid like any other. Its wall clock is shifted by the double in the file `clock`,
also while it runs; `net` is the path of a network namespace to live in; `frames` the file that says how its
connections fare (frames.py). Where a BUG is named, it is planted (planted.py) before any fork.
{"follow": pid} and {"network": nodes} are things of the runner's that end with the run. When stdin ends, since the
runner has ended, everything else does, and what the nodes (folders in NODES) run; then the nursery (undertaker.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PRODUCT = (
    "autoscaler_shim.__main__",
    "autoscaler_shim.controller",
    "autoscaler_shim.cluster_mgr",
    "autoscaler_shim.schedule",
    "autoscaler_shim.node.agent",
    "activator_replacement.__main__",
)


class WallClock:
    """time.time and time.time_ns, shifted by what a file says. To be put in place before others import them."""

    def __init__(self) -> None:
        self._real, self._real_ns = time.time, time.time_ns
        self._shift: mmap.mmap | None = None

    def put_in_place(self) -> None:
        time.time = self.time
        time.time_ns = lambda: int(self._real_ns() + self.shift_s * 1e9)

    def follow(self, path: str) -> None:
        handle = os.open(path, os.O_RDWR)
        self._shift = mmap.mmap(handle, 8)
        os.close(handle)

    @property
    def shift_s(self) -> float:
        return float(struct.unpack("d", self._shift[:8])[0]) if self._shift is not None else 0.0

    def time(self) -> float:
        return self._real() + self.shift_s


def run_part(argv: list[str]) -> int:
    """`argv` without the interpreter: MODULE, then its arguments."""
    sys.argv = list(argv)
    main: Callable[[list[str]], int] = importlib.import_module(f"{argv[0]}.__main__").main
    return main(argv[1:])


def become(order: dict[str, Any], nursery: int, clock: WallClock, frames: Any) -> int:
    from tests.chaos.undertaker import end_with

    end_with(nursery)
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    null, log = (
        os.open(os.devnull, os.O_RDONLY),
        os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    )
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.closerange(3, 64)
    os.environ.update(order["env"])
    if order.get("net"):
        handle = os.open(order["net"], os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(handle, 0):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(handle)
    if order.get("clock"):
        clock.follow(order["clock"])
    if order.get("frames"):
        frames.follow(order["frames"], order["part"])
    return run_part(order["argv"])


def main() -> int:
    clock = WallClock()
    clock.put_in_place()
    os.environ["GALAXY_COMPILED"] = "off"
    for module in PRODUCT:
        importlib.import_module(module)
    from tests.chaos.frames import Frames
    from tests.chaos.undertaker import Undertaker

    frames = Frames()
    frames.put_in_place()
    if len(sys.argv) > 2:
        from tests.chaos.planted import plant

        plant(sys.argv[2])
    undertaker, own = Undertaker(Path(sys.argv[1])), os.getpid()
    gc.freeze()
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(tell)
    say({"ready": True})
    import select

    waiting = b""
    while True:
        ready, _, _ = select.select([0, told], [], [])
        if told in ready:
            os.read(told, 4096)
            undertaker.parts -= reap()
        if 0 in ready:
            got = os.read(0, 65536)
            if not got:
                undertaker.end()
                return 0
            waiting += got
            *lines, waiting = waiting.split(b"\n")
            for line in lines:
                order = json.loads(line)
                if "part" not in order:
                    if "network" in order:
                        undertaker.clear(order["network"])
                    else:
                        undertaker.follow(order["follow"])
                    continue
                pid = os.fork()
                if pid == 0:
                    code = 1
                    try:
                        code = become(order, own, clock, frames)
                    except SystemExit as ended:
                        if isinstance(ended.code, str):
                            print(ended.code, file=sys.stderr)
                        code = ended.code if isinstance(ended.code, int) else 1
                    except BaseException:
                        sys.excepthook(*sys.exc_info())
                    finally:
                        os._exit(code)
                undertaker.parts.add(pid)
                say({"part": order["part"], "pid": pid})


def reap() -> set[int]:
    """Which have ended."""
    ended: set[int] = set()
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if not pid:
            return ended
        ended.add(pid)
        say({"died": pid, "status": status})


def say(what: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # the runner has gone: stdin says so, too
        os.write(1, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
