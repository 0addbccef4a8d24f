"""Keeps the parts of an embedded cluster running: `python -m kserve_ext.cli.embedded.supervisor --data DIR`.

Starts them, starts again what dies (with back-off, said in its log), and on SIGTERM ends them: first those that
answer requests, the controller last. It holds a lock on the data folder for as long as it lives. Parts that a killed
supervisor left are adopted as they are. Instances are not its children: they belong to node agents and outlive these.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kserve_ext.cli.embedded.adopted import UNKNOWN, Adopted
from kserve_ext.cli.embedded.backoff import Backoff
from kserve_ext.cli.embedded.folder import Folder
from kserve_ext.cli.embedded.parts import ROOT, Part, environment, parts
from kserve_ext.core.pulse import HUNG_S, LOOK_S, Pulse
from kserve_ext.rpc.process import start_ticks

LOOK_EVERY_S: Final = 0.02
#: What a part gets to end by itself.
GRACE_S: Final = 8.0


@dataclass(slots=True)
class Child:
    part: Part
    process: subprocess.Popen[bytes] | Adopted
    started: float
    backoff: Backoff = field(default_factory=Backoff)
    pulse: Pulse = field(default_factory=Pulse)
    again_at: float = 0.0  # 0 = it runs


class Supervisor:
    """`run` once; returns the exit code."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.children: list[Child] = []
        self._ending = False
        self._felt_at = 0.0

    def run(self) -> int:
        handle = os.open(self.folder.lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"data folder {self.folder.root} is in use by another supervisor")
            return 1
        for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(sig, self._end)
        cluster = self.folder.cluster()
        cluster["supervisor"] = {"pid": os.getpid(), "started": start_ticks(os.getpid())}
        self.folder.write_cluster(cluster)
        self._take_over(parts(cluster, self.folder.root))
        while not self._ending:
            self._look(time.monotonic())
            self._feel(time.monotonic())
            time.sleep(LOOK_EVERY_S)
        self._stop_all()
        return 0

    def _take_over(self, wanted: list[Part]) -> None:
        """Adopts what lives, starts the rest."""
        files = self.folder.run_files()
        living = {part.id: part.pid for part in self.folder.living()}
        for part in wanted:
            pid = living.get(part.id)
            process = Adopted(pid, int(files[part.id]["started"])) if pid else self._start(part)
            self.children.append(Child(part, process, time.monotonic()))
        adopted = sum(isinstance(child.process, Adopted) for child in self.children)
        say(f"started {len(self.children) - adopted} parts" + (f", adopted {adopted}" if adopted else ""))

    def _end(self, number: int, frame: object) -> None:
        self._ending = True

    def _start(self, part: Part) -> subprocess.Popen[bytes]:
        with (self.folder.log / f"{part.id}.log").open("ab") as log:
            return subprocess.Popen(
                part.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=environment(),
                start_new_session=True,
            )

    def _look(self, now: float) -> None:
        for child in self.children:
            if child.again_at:
                if now >= child.again_at:
                    child.process, child.started, child.again_at = self._start(child.part), now, 0.0
                    child.pulse = Pulse()
                    say(f"{child.part.id}: started again as pid {child.process.pid}")
                continue
            code = child.process.poll()
            if code is not None:
                pause = child.backoff.died(child.started, now)
                child.again_at = now + pause
                how = (
                    "it was adopted"
                    if code == UNKNOWN
                    else f"signal {-code}"
                    if code < 0
                    else f"exit code {code}"
                )
                say(
                    f"{child.part.id}: pid {child.process.pid} ended ({how}) after {now - child.started:.1f} s; "
                    f"restart {child.backoff.restarts} in {pause:g} s; see {child.part.id}.log"
                )

    def _feel(self, now: float) -> None:
        """Ends what lives but does not turn; `_look` then starts it again."""
        gap = now - self._felt_at
        if gap < LOOK_S:
            return
        self._felt_at = now
        for child in self.children:
            file = self.folder.run / f"{child.part.id}.json"
            if child.again_at or not file.exists():
                continue
            if gap > HUNG_S / 2:
                child.pulse.rest(now)  # this process was stopped itself
            elif (quiet := child.pulse.quiet_s(file.stat().st_mtime_ns, now)) > HUNG_S:
                say(f"{child.part.id}: pid {child.process.pid} has not answered for {quiet:.0f} s: killed")
                child.process.kill()

    def _stop_all(self) -> None:
        for kind in ("dispatch", "objects", "schedule", "cluster-mgr", "node", "controller"):
            self._stop([c.process for c in self.children if c.part.kind == kind and not c.again_at])
        say("all parts have ended")

    def _stop(self, processes: list[subprocess.Popen[bytes] | Adopted]) -> None:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        until = time.monotonic() + GRACE_S
        for process in processes:
            try:
                process.wait(max(0.01, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                say(f"pid {process.pid} does not end within {GRACE_S:g} s: killed")
                process.kill()
                process.wait()


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} supervisor: {text}", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args(argv)
    return Supervisor(Folder(args.data)).run()


if __name__ == "__main__":
    sys.exit(main())
