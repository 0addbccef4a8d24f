"""The side of `galaxy kv bench` that receives: it claims blocks again and again, by one rung, and looks at the clock.

What is measured is what an instance does: both halves of a transfer with their planner and checksums, on a channel of
their own. Every block's checksum is compared as it lands; before and behind the measurement so are the bytes.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple

from kserve_ext.cli.kv.peer import CPU, SECONDS, SIZE, SIZES, SOURCE, contents, identity, made
from runtimes.transport.channel import ChannelError, Landing, Receiver, Rung
from runtimes.transport.listener import dial
from runtimes.transport.pair import Channel
from runtimes.vllm_pd.kv_memory import KvMemory
from runtimes.vllm_pd.landing import Landings, Outcome
from runtimes.vllm_pd.peers import TOKEN_S

_USABLE_S: Final = 60.0  # what can't be had is said at once; memory of many devices is registered slowly
_LOOK_S: Final = 0.01
_MOST_S: Final = 60.0  # for one transfer
_TOKENS: Final = int(_MOST_S / TOKEN_S)  # of a prompt whose blocks may take so long
_AHEAD: Final = 2  # transfers under way when bandwidth is measured


class BlockRefused(ChannelError):
    """The rung is there, and does not take blocks of this size."""


class Measured(NamedTuple):
    rung: str
    device: str  # "mlx5_0:1"; "" on a rung without one
    block_bytes: int
    transfer_bytes: int
    transfers: int  # in which bandwidth was measured
    mb_s: float
    transfer_ms: float  # one at a time: the median
    transfer_p99_ms: float
    block_us: float  # a transfer of one block: the median
    cpu_s_per_gib: float  # of this process
    peer_cpu_s_per_gib: float
    intact: bool  # whether all bytes are what they were


class _Asides:
    """Between a channel and its transfers: what is no job."""

    def __init__(self, receiver: Receiver, heard: SimpleQueue[bytes]) -> None:
        self._receiver = receiver
        self._heard = heard

    def message(self, channel: object, body: bytes) -> None:
        if body.startswith(CPU):
            self._heard.put(body[len(CPU) :])
        else:
            self._receiver.message(channel, body)

    def lost(self, channel: object, error: ChannelError) -> None:
        self._receiver.lost(channel, error)


@contextlib.contextmanager
def forked(rung: Rung) -> Iterator[tuple[str, int]]:
    """A peer on this machine, as long as it is needed: where it is."""
    command = [sys.executable, "-m", "kserve_ext.cli.kv.peer", rung]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            host, _, port = process.stdout.readline().strip().rpartition(":")
            if not port:
                raise ChannelError("unreachable", "the other process has ended")
            yield host, int(port)
        finally:
            process.stdin.close()
            process.wait()


def measure(
    host: str,
    port: int,
    key: bytes,
    rung: Rung,
    size: int,
    block: int,
    seconds: float,
    *,
    scattered: bool = False,
) -> Measured:
    """Raises ChannelError: the rung can't be had, or a transfer failed."""
    channel = dial(f"{host}:{port}", key, identity(), rungs=(rung,))
    try:
        return _Bench(channel, rung, block, max(1, size // block), scattered=scattered).run(seconds)
    finally:
        channel.close()


class _Bench:
    def __init__(self, channel: Channel, rung: Rung, block: int, blocks: int, *, scattered: bool) -> None:
        self._channel = channel
        self._rung = rung
        self._blocks = blocks
        # Scattered: the last one first, so that no two are neighbours on both sides.
        self._targets = range(blocks)[::-1] if scattered else range(blocks)
        self._view = made(block, blocks)
        right = contents(len(self._view))
        self._right = b"".join(right[at * block : (at + 1) * block] for at in self._targets)
        memory = KvMemory()
        memory.register_views([self._view], blocks)
        self._landings = Landings(memory, _MOST_S)
        self._heard: SimpleQueue[bytes] = SimpleQueue()
        self._ended: SimpleQueue[Outcome] = SimpleQueue()

        def wrap(receiver: Receiver, landing: Landing | None) -> tuple[Receiver, Landing | None]:
            return _Asides(receiver, self._heard), landing

        self._landings.attach(channel, wrap)
        channel.send(SIZE + SIZES.pack(block, blocks))
        self._await_rung()

    def run(self, seconds: float) -> Measured:
        everything, first = self._targets, range(1)
        intact = self._intact()
        single = _times(lambda: self._one(first), seconds / 6)
        serial = _times(lambda: self._one(everything), seconds / 3)
        cpu, peer_cpu = time.process_time(), self._peer_cpu()
        began = time.perf_counter()
        transfers = self._stream(everything, began + seconds / 2)
        took = time.perf_counter() - began
        moved = transfers * len(self._view)
        cpu, peer_cpu = time.process_time() - cpu, self._peer_cpu() - peer_cpu
        ports = self._channel.ports(self._rung)
        return Measured(
            rung=self._rung,
            device=", ".join(port.device for port in ports),
            block_bytes=len(self._view) // self._blocks,
            transfer_bytes=len(self._view),
            transfers=transfers,
            mb_s=moved / took / 1e6,
            transfer_ms=statistics.median(serial) * 1e3,
            transfer_p99_ms=sorted(serial)[len(serial) * 99 // 100] * 1e3,
            block_us=statistics.median(single) * 1e6,
            cpu_s_per_gib=cpu / moved * (1 << 30),
            peer_cpu_s_per_gib=peer_cpu / moved * (1 << 30),
            intact=intact and self._intact(),
        )

    def _await_rung(self) -> None:
        """Memory of both sides is registered while the channel stands already."""
        end = time.monotonic() + _USABLE_S
        while self._rung not in self._channel.rungs:
            if self._channel.lost is not None:
                raise self._channel.lost
            if self._channel.passed or time.monotonic() > end:
                why = "; ".join(self._channel.passed) or f"not agreed on within {_USABLE_S:g} s"
                raise ChannelError("incompatible", why)
            time.sleep(_LOOK_S)

    def _intact(self) -> bool:
        self._view[:] = bytes(len(self._view))
        self._one(self._targets)
        return self._view == self._right

    def _claim(self, blocks: Sequence[int]) -> None:
        self._landings.claim(self._channel, SOURCE, "bench", 0, blocks, _TOKENS, self._ended.put)

    def _wait(self) -> None:
        try:
            outcome = self._ended.get(timeout=_MOST_S)
        except Empty:
            raise ChannelError("timeout", f"a transfer has not ended in {_MOST_S:g} s") from None
        self._landings.results()
        if outcome.reason.startswith("rung-unavailable: "):
            raise BlockRefused("protocol", outcome.reason.partition(": ")[2])
        if outcome.reason:
            raise self._channel.lost or ChannelError("protocol", f"a transfer failed: {outcome.reason}")

    def _one(self, blocks: Sequence[int]) -> None:
        self._claim(blocks)
        self._wait()

    def _stream(self, blocks: Sequence[int], end: float) -> int:
        """How many transfers, one claimed before the last one is whole."""
        for _ in range(_AHEAD):
            self._claim(blocks)
        count = 0
        while time.perf_counter() < end:
            self._wait()
            self._claim(blocks)
            count += 1
        for _ in range(_AHEAD):
            self._wait()
        return count + _AHEAD

    def _peer_cpu(self) -> float:
        self._channel.send(CPU)
        (seconds,) = SECONDS.unpack(self._heard.get(timeout=_MOST_S))
        return float(seconds)


def _times(carry: Callable[[], None], seconds: float) -> list[float]:
    """Of each call; three at least."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        began = time.perf_counter()
        carry()
        times.append(time.perf_counter() - began)
    return times
