"""One run of the machine: boots the kernel over the host's root, runs a command in it, brings back what it said.

Inside, `/` is the host's root under a layer that is thrown away; /tmp, /run and /dev/shm are fresh, but for folders
of the host's /tmp that the command needs. Output is streamed, the exit status is the command's. The machine is a
process of this user and lives no longer than the call.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tools.rdma_vm import guest, kernel

GUEST_NEEDS = {
    "ip": "iproute2",
    "rdma": "iproute2",
    "mount": "mount",
    "chroot": "coreutils",
    "perl": "perl-base",
    "setsid": "util-linux",
}
#: Mappings that a process of the host may have: the kernel makes one for every page that stands alone.
MAPPINGS = 1 << 20
_MAPPINGS = Path("/proc/sys/vm/max_map_count")
_LOG_SHOWN = 4000
TIMED_OUT, BROKEN = 124, 125


@dataclass(frozen=True, slots=True)
class Machine:
    kernel: Path
    links: str = "pair"  # a key of guest.LINKS
    memory: str = "4G"
    seconds: float = 600.0
    needed: tuple[Path, ...] = ()  # folders that the command reads, besides the one that it runs in

    def run(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        out: IO[bytes],
        err: IO[bytes],
    ) -> int:
        """The command's exit status; 124 when its time is over, 125 when the machine ended before it."""
        kernel.require(GUEST_NEEDS, "the machine")
        _allow_mappings(err)
        with tempfile.TemporaryDirectory(prefix="rdma-vm.") as folder:
            control = Path(folder)
            folders = [path for path in (cwd, *self.needed) if path.is_relative_to("/tmp")]
            guest.write(control, command, self.links, {**env, "GALAXY_RDMA_VM": guest.CONTROL}, cwd, folders)
            (control / "cpuinfo").write_text(_one_processor(), encoding="utf-8")
            return self._boot(control, out, err)

    def _boot(self, control: Path, out: IO[bytes], err: IO[bytes]) -> int:
        pumps = [_Pump(out), _Pump(err), _Pump(log := (control / "log").open("wb"))]
        inputs = [os.pipe() for _ in range(2)]  # of the consoles; nothing ever comes
        consoles = [
            f"con{n}=fd:{read},fd:{pump.end}"
            for n, (read, _), pump in zip((1, 2), inputs, pumps, strict=False)
        ]
        arguments = [
            str(self.kernel),
            f"mem={self.memory}",
            "root=/dev/root",
            "rootfstype=hostfs",
            "rootflags=/",
            "ro",
            f"init={control}/first",
            f"umid=rdma-vm-{os.getpid()}",
            f"uml_dir={control}/",
            "panic=-1",
            "con=null",
            "con0=null,fd:2",
            *consoles,
            "console=tty0",
        ]
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=pumps[2].end,
            stderr=pumps[2].end,
            pass_fds=[descriptor for pair in inputs for descriptor in pair]
            + [pump.end for pump in pumps[:2]],
            start_new_session=True,
            env={"PATH": os.environ.get("PATH", ""), "HOME": str(control), "TMPDIR": "/dev/shm"},
        )
        _as_nice_as_we(process.pid)
        try:
            for pump in pumps:
                pump.begin()
            try:
                process.wait(self.seconds)
            except subprocess.TimeoutExpired:
                err.write(f"rdma-vm: given up after {self.seconds:g} s\n".encode())
                return TIMED_OUT
            for pump in pumps:
                pump.join(5.0)
            try:
                return int((control / "status").read_text())
            except (OSError, ValueError):
                said = (control / "log").read_bytes()[-_LOG_SHOWN:]
                err.write(said + b"\nrdma-vm: the machine ended before the command\n")
                return BROKEN
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # the machine and its helpers: a session of their own
                process.wait()
            for pair in inputs:
                for descriptor in pair:
                    os.close(descriptor)
            for pump in pumps:
                pump.join(5.0)
            log.close()
            err.flush()


class _Pump(threading.Thread):
    """Copies a pipe to a file: the machine changes the flags of what it writes to, and must not do so to ours."""

    def __init__(self, to: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._from, self.end = os.pipe()
        self._to = to

    def begin(self) -> None:
        """To be called when the machine has its end."""
        os.close(self.end)
        self.start()

    def run(self) -> None:
        with open(self._from, "rb", buffering=0) as pipe:
            while data := pipe.read(1 << 16):
                self._to.write(data)
                self._to.flush()


def _as_nice_as_we(process: int) -> None:
    """A session is a group of its own to the scheduler, where ours counts for nothing."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{process}/autogroup").write_text(str(os.getpriority(os.PRIO_PROCESS, 0)))


def _allow_mappings(err: IO[bytes]) -> None:
    try:
        if int(_MAPPINGS.read_text()) < MAPPINGS:
            _MAPPINGS.write_text(str(MAPPINGS))
            err.write(f"rdma-vm: {_MAPPINGS} raised to {MAPPINGS}\n".encode())
    except OSError as error:
        err.write(
            f"rdma-vm: {_MAPPINGS} cannot be raised to {MAPPINGS} ({error.strerror}): "
            "processes above 250 MiB may be killed\n".encode()
        )


def _one_processor() -> str:
    """The host's first processor as /proc/cpuinfo shows it; the kernel's own view lacks the clock rate."""
    return Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0] + "\n\n"
