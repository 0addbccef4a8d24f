"""A standby pod as processes of this machine, on a loopback address of its own, and an agent that a test plays.

The slot and all below it are real; the agent only listens, remembers what it was told, and says what the test says.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec

from kserve_ext.core.ids import InstanceID, RevisionKey
from kserve_ext.core.standby.facts import Assignment, Timeouts
from kserve_ext.rpc.ports import free_port
from kserve_ext.wire.slot_socket import Free, FromAgent, FromSlot, Hello, Refused, Start, State

ROOT = Path(__file__).resolve().parents[2]
TINY = "bench.peers.tiny_runtime"
POD = "standby-1"
TOKEN = "a token of the pod's ServiceAccount"
_addresses = itertools.count(1)


class Agent:
    """Plays the node agent to one pod."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._server: asyncio.AbstractServer | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.hellos: list[Hello] = []
        self.states: list[State] = []
        self._changed = asyncio.Event()

    async def listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, str(self._path), limit=1 << 22)
        self._path.chmod(0o666)  # as the real one's, for pods of any user

    async def close(self) -> None:
        """As if it had died."""
        if self._server is not None:
            self._server.close()
        if self._writer is not None:
            self._writer.close()
        self._path.unlink(missing_ok=True)

    def say(self, message: FromAgent) -> None:
        assert self._writer is not None
        self._writer.write(msgspec.json.encode(message) + b"\n")

    def start(self, assignment: Assignment) -> None:
        self.say(Start(assignment))

    def free(self, revision: str) -> None:
        self.say(Free(revision))

    def refuse(self, reason: str) -> None:
        self.say(Refused(reason))

    async def until(self, condition: Callable[[State], bool], seconds: float = 60.0) -> State:
        """The first state from now on, the last one included, of which it is true; each is looked at once."""
        async with asyncio.timeout(seconds):
            while True:
                while self.states:
                    state = self.states.pop(0)
                    if condition(state):
                        return state
                self._changed.clear()
                await self._changed.wait()

    async def until_is(self, state: str) -> State:
        return await self.until(lambda said: said.state == state)

    async def until_gone(self) -> None:
        """The pod has closed its connection."""
        while self._writer is not None:
            self._changed.clear()
            await self._changed.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        decode = msgspec.json.Decoder(FromSlot).decode
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                message = decode(line)
                if isinstance(message, Hello):
                    self.hellos.append(message)
                else:
                    self.states.append(message)
                self._changed.set()
        if self._writer is writer:
            self._writer = None
        self._changed.set()
        writer.close()


class Pod:
    """One standby pod; `process` is its slot."""

    def __init__(self, folder: Path, agent: Agent, host: str) -> None:
        self.folder = folder
        self.agent = agent
        self.host = host
        self.process: asyncio.subprocess.Process
        self.log = folder / "pod.log"

    async def run(self, *before: str, **env: str) -> None:
        """`before`: a command that runs it."""
        own = {
            "POD_NAME": POD,
            "POD_NAMESPACE": "team-a",
            "POD_UID": "uid-1",
            "POD_IP": self.host,
            "GALAXY_POOL": "pool-1",
            "GALAXY_ZYGOTE": TINY,
            "GALAXY_AGENT_SOCKET": str(self.folder / "agent.sock"),
            "GALAXY_TOKEN_FILE": str(self.folder / "token"),
            "GALAXY_SLOT_LEVEL": "S0",
            "GALAXY_SLOT_DIR": str(self.folder / "slot"),
            "GALAXY_FRONT_HOST": self.host,
            "GALAXY_SLOT_QUIET": "300ms",
        }
        (self.folder / "token").write_text(TOKEN + "\n")
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *before,
                sys.executable,
                "-m",
                "autoscaler_shim.slot",
                env={**os.environ, **own, **env},
                cwd=ROOT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def ended(self) -> int:
        """Its exit code."""
        async with asyncio.timeout(60.0):
            return await self.process.wait()

    def processes(self) -> dict[int, str]:
        """All that belong to it, by pid: their command lines. What they were given has its address, or its folder."""
        found = {}
        mark = f"GALAXY_SLOT_DIR={self.folder / 'slot'}".encode()
        marks = (mark, f"POD_IP={self.host}".encode())
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    environ = (entry / "environ").read_bytes().split(b"\0")
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                    ours = any(mark in environ for mark in marks) or os.fsencode(self.folder) in words
                    if ours and words:
                        found[int(entry.name)] = words.decode(errors="replace").strip()
        return found

    def pid_of(self, word: str) -> int:
        """The process whose command line has this word."""
        [pid] = [pid for pid, line in self.processes().items() if word in line]
        return pid


@contextlib.asynccontextmanager
async def standby_pod(*before: str, run: bool = True, **env: str) -> AsyncIterator[Pod]:
    """Ready, unless `run` is False: then nothing but the agent is there."""
    host = address()
    with tempfile.TemporaryDirectory(prefix="pod-") as name:
        folder = Path(name)
        agent = Agent(folder / "agent.sock")
        await agent.listen()
        pod = Pod(folder, agent, host)
        try:
            if run:
                await pod.run(*before, **env)
                await agent.until_is("ready")
            yield pod
        except BaseException:
            if pod.log.exists():
                print(pod.log.read_text())
            raise
        finally:
            await end(pod)
            if hasattr(pod, "process"):
                await pod.process.wait()
            await agent.close()


async def end(pod: Pod) -> None:
    """Again until there are none: one that is killed may just have made another, as a zygote does."""
    async with asyncio.timeout(60.0):
        while found := pod.processes():
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.01)


def assignment(folder: Path, name: str = "rev-1", **fields: object) -> Assignment:
    """A revision whose model is a file with its name in it; its server is the tiny runtime."""
    model = folder / f"{name}.bin"
    if not model.exists():
        model.write_text(f"model of {name}")
    port = free_port()
    made = Assignment(
        revision=RevisionKey(f"team-a/{name}"),
        instance=InstanceID(POD),
        argv=("python", "-m", TINY, "--port", "$(PORT)", "--model", "/mnt/models"),
        env=(("PORT", str(port)), ("K_REVISION", name)),
        port=port,
        http2=False,
        concurrency=0,
        timeouts=Timeouts(),
        probe="",
        labels=(("SERVING_SERVICE", "svc"), ("SERVING_CONFIGURATION", "conf"), ("SERVING_REVISION", name)),
        model=(("/mnt/models", str(model)),),
        drain_s=20.0,
    )
    return made._replace(**fields)  # type: ignore[arg-type]


def address() -> str:
    """A loopback address that nobody else is likely to use: a front's ports are the same everywhere."""
    pid = os.getpid()
    return f"127.{pid >> 8 & 0x7F | 0x40}.{pid & 0xFF}.{next(_addresses) % 250 + 2}"
