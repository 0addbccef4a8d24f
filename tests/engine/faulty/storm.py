"""Faults at every step of a transfer, drawn from a seed, and a witness of every block that was sent and taken.

`prefill` and `decode` change this process's runtime for as long as it lives. STORM is the seed. Two files are
written into the instance's folder: `digests`, a line for each block of each layer (request, layer, target block,
digest of its bytes) as it left the sender, or as it lay at the receiver when a transfer was taken for whole; and
`faults`, the name of each fault as it happens.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

#: Name -> chance at each occasion.
PREFILL: Final = {
    "job refused": 0.004,
    "job preempted": 0.01,
    "channel lost with a job": 0.001,
    "channel lost before a write": 0.0002,
    "write left out": 0.001,
    "write twice": 0.002,
    "write to a block that is not expected": 0.001,
    "write late": 0.002,
    "channel lost behind the last write": 0.001,
    "end said twice": 0.01,
    "end never said": 0.0005,
}
DECODE: Final = {
    "byte changed on the way": 0.0005,
    "reservation never said": 0.0005,
    "reservation late": 0.01,
    "cancelled while blocks come": 0.01,
    "channel lost with a reservation": 0.001,
}

_NOWHERE: Final = 1 << 20  # no cache has so many blocks


class Storm:
    def __init__(self, chances: dict[str, float]) -> None:
        self._chances = chances
        self._random = random.Random(int(os.environ["STORM"]))
        self._folder = Path(os.environ["GALAXY_INSTANCE_DIR"])
        self._lock = threading.Lock()

    def strikes(self, fault: str) -> bool:
        with self._lock:
            struck = self._random.random() < self._chances[fault]
            if struck:
                with (self._folder / "faults").open("a") as file:
                    file.write(f"{fault}\n")
        return struck

    def saw(self, request: str, layer: int, target: int, blocks: Sequence[memoryview]) -> None:
        lines = [
            f"{request} {layer} {target + number} {hashlib.blake2b(block, digest_size=8).hexdigest()}\n"
            for number, block in enumerate(blocks)
        ]
        with self._lock, (self._folder / "digests").open("a") as file:
            file.writelines(lines)


def _lose(channel: Any, what: str) -> None:
    from runtimes.transport.channel import ChannelError

    channel.lose(ChannelError("unreachable", f"storm: {what}"))


def prefill() -> None:
    from runtimes.transport.channel import Row
    from runtimes.transport.pair import Channel
    from runtimes.vllm_pd.pushing import Pushes

    storm = Storm(PREFILL)
    requests: dict[tuple[int, int], str] = {}
    opened, write, finish = Pushes._open, Channel.write, Channel.finish
    write_rows = Channel.write_rows

    def open_(self: Any, channel: Any, job: Any) -> None:
        requests[id(channel), job.transfer] = job.request_id
        if storm.strikes("channel lost with a job"):
            _lose(channel, "job")
        start = self._start_job
        if storm.strikes("job refused"):
            self._start_job = None
        opened(self, channel, job)
        self._start_job = start
        if storm.strikes("job preempted"):
            for key, push in list(self._by_key.items()):
                if push.channel is channel and push.number == job.transfer:
                    self.overwritten(key, "preempted")

    def disturbed(channel: Any, name: str, rows: Sequence[Row]) -> list[Row]:
        if storm.strikes("channel lost before a write"):
            _lose(channel, "write")
        if storm.strikes("write late"):
            time.sleep(0.05)
        kept: list[Row] = []
        for row in rows:
            if storm.strikes("write left out"):
                continue
            if storm.strikes("write to a block that is not expected"):
                kept.append(row._replace(target=_NOWHERE))
                continue
            storm.saw(name, row.layer, row.target, [row.block])
            kept += [row, row] if storm.strikes("write twice") else [row]
        return kept

    def written(self: Any, transfer: int, layer: int, target: int, blocks: Any, *rest: Any) -> int:
        rows = [Row(layer, target + number, block) for number, block in enumerate(blocks)]
        kept = disturbed(self, requests[id(self), transfer], rows)
        if kept == rows:
            return write(self, transfer, layer, target, blocks, *rest)
        return sum(write(self, transfer, layer, row.target, [row.block], *rest) for row in kept)

    def rows_written(self: Any, transfer: int, rows: Any, *rest: Any) -> int:
        kept = disturbed(self, requests[id(self), transfer], rows)
        return write_rows(self, transfer, kept, *rest) if kept else 0

    def finished(self: Any, *rest: Any) -> Any:
        if storm.strikes("channel lost behind the last write"):
            _lose(self, "end")
        if storm.strikes("end never said"):
            return None
        if storm.strikes("end said twice"):
            finish(self, *rest)
        return finish(self, *rest)

    Pushes._open = open_  # type: ignore[method-assign]
    Channel.write = written  # type: ignore[method-assign, assignment]
    Channel.write_rows = rows_written  # type: ignore[method-assign, assignment]
    Channel.finish = finished  # type: ignore[method-assign, assignment]


def decode() -> None:
    from runtimes.transport import pair
    from runtimes.vllm_pd.landing import Landings

    storm = Storm(DECODE)
    requests: dict[int, str] = {}
    targets: dict[int, list[int]] = {}
    opened, reserve, end = Landings.open, Landings.reserve, Landings._end

    class Crc:
        """Wherever a block's bytes are checked, they may have changed."""

        @staticmethod
        def crc32(block: memoryview) -> int:
            if storm.strikes("byte changed on the way"):
                block[len(block) // 3] ^= 0x10
            return zlib.crc32(block)

    def open_(self: Any, channel: Any, prompt: Any) -> int:
        number = opened(self, channel, prompt)
        requests[number] = prompt.request_id
        return number

    def reserved(
        self: Any, number: int, engine_request: str, skip: int, blocks: Any, *rest: Any, **more: Any
    ) -> None:
        targets[number] = list(blocks)
        transfer = self._transfers.get(number)
        if storm.strikes("reservation late"):
            time.sleep(0.03)
        if transfer is not None and storm.strikes("channel lost with a reservation"):
            _lose(transfer.channel, "reservation")
        channel = transfer.channel if transfer is not None else None
        silent = channel is not None and storm.strikes("reservation never said")
        if silent:
            transfer.channel = _Mute(channel)
        reserve(self, number, engine_request, skip, blocks, *rest, **more)
        if silent:
            transfer.channel = channel
        if storm.strikes("cancelled while blocks come"):
            threading.Timer(0.01, self.cancel, (number, "storm")).start()

    def ended(self: Any, transfer: Any, reason: str) -> None:
        if transfer is not None and not reason and transfer.ending is None and not transfer.writing:
            name = requests[transfer.number]
            for layer in range(self._memory.layers):
                for block in targets[transfer.number]:
                    storm.saw(name, layer, block, [self._memory.view(layer, block, 1)])
        end(self, transfer, reason)

    pair.zlib = Crc  # type: ignore[attr-defined, assignment]
    Landings.open = open_  # type: ignore[method-assign]
    Landings.reserve = reserved  # type: ignore[method-assign, assignment]
    Landings._end = ended  # type: ignore[method-assign]


class _Mute:
    """A channel whose messages go nowhere."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def send(self, body: bytes) -> None:
        return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)
