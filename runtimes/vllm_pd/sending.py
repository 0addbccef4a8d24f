"""The writing side of one channel: carries out what the planner says (core/kv_plan.py), with one thread a rung.

Blocks are written as soon as they are computed and reserved, layer by layer where their owner says so. Where they
are read later than `write` returns (on a direct rung, or by a GPU), a transfer is not over before that has been
waited for. Decides nothing; whoever owns the transfers is told once of each that it is over, and nobody reads its
blocks.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from kserve_ext.core.kv_plan import LEAST, MOST, Batch, Ended, Lane, SendPlan
from kserve_ext.core.kv_transfer import Geometry, Write
from runtimes.transport.channel import ChannelError, Row, Rung
from runtimes.transport.pair import Channel
from runtimes.vllm_pd import jobs
from runtimes.vllm_pd.kv_memory import KvMemory, KvPart

#: Writes of a batch: each is a frame of its own.
_PIECES: Final = 256


class Over(NamedTuple):
    """`reason` is "" when all of it was sent. `seconds`: since its first write began."""

    transfer: int
    reason: str
    bytes: int
    seconds: float


@dataclass(slots=True, eq=False)
class _Going:
    number: int
    rung: Rung
    direct: bool  # blocks that were written are read until `flush`
    memory: KvMemory | KvPart
    blocks: int = 0
    posted: list[Batch] = field(default_factory=list)  # that the device may still read
    stopping: bool = False  # nothing more is to be written
    bytes: int = 0
    first_at: float = 0.0  # its first write began
    final_at: float = 0.0  # its last block was computed


class Sender:
    """All transfers out of one channel, by the receiver's numbers. Every method may be called by any thread."""

    def __init__(self, channel: Channel, over: Callable[[Over], None], clock: Callable[[], float]) -> None:
        self._channel = channel
        self._over = over
        self._clock = clock
        self._changed = threading.Condition()
        self._plan = SendPlan()
        self._going: dict[int, _Going] = {}
        self._rungs: set[Rung] = set()  # that have a thread
        self._waits: dict[Rung, int] = {}  # bytes for which a write waits
        self._gone = False

    def open(self, number: int, rung: Rung, memory: KvMemory | KvPart) -> None:
        """Raises ChannelError when the rung can't be used, ValueError when blocks don't fit."""
        best = self._channel.batch(rung)
        lane = Lane(self._channel.largest_write(rung), _PIECES, best or MOST)
        going = _Going(number, rung, self._channel.lingers(rung), memory)
        with self._changed:
            if number in self._going:
                raise ValueError(f"transfer {number} is open already")
            self._plan.know(rung, lane)
            self._plan.open(number, rung, Geometry(memory.layers, memory.block_bytes, memory.order))
            self._going[number] = going
            self._waits[rung] = max(LEAST, best, memory.block_bytes, self._waits.get(rung, 0))
            if rung not in self._rungs:
                self._rungs.add(rung)
                name = f"kv-sender-{rung}-{self._channel.peer.name}"
                threading.Thread(target=self._send_all, args=(rung,), name=name, daemon=True).start()

    def computed(self, number: int, sources: Sequence[int], whole: int, final: bool) -> None:
        """The first `whole` of its blocks are, all that ever will be if `final`."""
        with self._changed:
            self._plan.computed(number, sources, whole, final, self._clock())
            going = self._going.get(number)
            if final and going is not None:
                going.final_at = self._clock()
            self._changed.notify_all()

    def ahead(self, number: int, sources: Sequence[int], whole: int, turns: int) -> None:
        """While a step is under way: in the first `turns` of the layers, the first `whole` of its blocks are."""
        with self._changed:
            if self._plan.ahead(number, sources, whole, turns, self._clock()):
                self._changed.notify_all()

    def reserved(self, number: int, skip: int, targets: Sequence[int]) -> None:
        """Where blocks skip, skip + 1, ... shall go."""
        with self._changed:
            self._plan.reserved(number, skip, targets)
            going = self._going.get(number)
            if going is not None:
                going.blocks = going.blocks or len(targets)
            self._changed.notify_all()

    def cancel(self, number: int, reason: str) -> None:
        """Nothing more of it. It is over now, or as soon as nobody reads its blocks; then the first reason counts."""
        with self._changed:
            going = self._going.get(number)
            ended = self._plan.cancel(number, reason)
            if going is not None:
                going.stopping = True
            self._changed.notify_all()
        if going is not None and ended is not None:
            self._finish(going, ended)

    def close(self, reason: str) -> None:
        """The channel is lost."""
        with self._changed:
            numbers = list(self._going)
        for number in numbers:
            self.cancel(number, reason)
        with self._changed:  # behind that: threads leave when there is nothing left to wait for
            self._gone = True
            self._changed.notify_all()

    # --- a thread for each rung

    def _send_all(self, rung: Rung) -> None:
        while True:
            with self._changed:
                work = self._next(rung)
                while work is None and not self._gone:
                    self._changed.wait()
                    work = self._next(rung)
                if work is None:
                    return
            going, batch = work
            self._carry(going, batch)

    def _next(self, rung: Rung) -> tuple[_Going, Batch | None] | None:
        """A batch; or None, of a transfer that has to be waited for."""
        for going in self._going.values():
            if going.stopping and going.posted and going.rung == rung:
                return going, None
        credit = self._waits.get(rung, LEAST)
        with contextlib.suppress(ChannelError):  # it will say so itself
            credit = max(min(credit, self._channel.largest_write(rung)), self._channel.free(rung))
        batch = self._plan.next(rung, credit, self._clock())
        return None if batch is None else (self._going[batch.transfer], batch)

    def _carry(self, going: _Going, batch: Batch | None) -> None:
        failed = self._write(going, batch) if batch is not None else ""
        done = [] if batch is None else [batch]
        if going.direct:
            going.posted += done
            last = batch is None or batch.ending is not None or bool(failed) or going.stopping
            failed = (self._flush(going) if last else "") or failed
            done, going.posted = (going.posted, []) if last else ([], going.posted)
        with self._changed:
            ended = [self._plan.sent(each, self._clock(), failed) for each in done]
        for each in ended:
            if each is not None:
                self._finish(going, each)

    def _write(self, going: _Going, batch: Batch) -> str:
        going.first_at = going.first_at or self._clock()
        try:
            if going.memory.on_gpu:
                self._put_pages(going, batch.writes)
            elif len(batch.writes) > 1 and self._channel.scatters(going.rung):
                self._put_rows(going, batch.writes)
            else:
                for write in batch.writes:
                    if going.stopping:
                        break
                    self._put(going, write)
        except Exception as error:
            return _why(error)
        return ""

    def _put(self, going: _Going, write: Write) -> None:
        blocks = [going.memory.view(write.layer, write.source + number, 1) for number in range(write.blocks)]
        together = 1 if isinstance(going.memory, KvPart) else len(blocks)  # they don't land as one
        for at in range(0, len(blocks), together):
            place = going.number, write.layer, write.target + at
            going.bytes += self._channel.write(*place, blocks[at : at + together], going.rung)

    def _put_rows(self, going: _Going, writes: Sequence[Write]) -> None:
        """All in one frame: on a rung through a ring one piece, on a direct one a write for each run."""
        rows = []
        for write in writes:
            for at in range(write.blocks):
                block = going.memory.view(write.layer, write.source + at, 1)
                assert isinstance(block, memoryview)
                rows.append(Row(write.layer, write.target + at, block))
        going.bytes += self._channel.write_rows(going.number, rows, going.rung)

    def _put_pages(self, going: _Going, writes: Sequence[Write]) -> None:
        """In one piece, or a few."""
        runs = [(write.source, write.target, write.blocks) for write in writes]
        going.bytes += self._channel.write_pages(going.number, runs, going.rung)
        self._channel.push(going.rung)

    def _flush(self, going: _Going) -> str:
        """Until nothing of it is under way, or its channel is lost."""
        try:
            self._channel.flush(going.number, going.rung)
        except Exception as error:
            return _why(error)
        return ""

    # --- the end

    def _finish(self, going: _Going, ended: Ended) -> None:
        reason = ended.reason
        if not reason:
            try:
                self._channel.send(jobs.encode(self._sent(going, ended)))
                self._channel.finish(going.number, going.blocks, going.rung)
            except Exception as error:
                reason = _why(error)
        with self._changed:
            del self._going[going.number]
        seconds = self._clock() - going.first_at if going.first_at else 0.0
        self._over(Over(going.number, reason, going.bytes, seconds))

    def _sent(self, going: _Going, ended: Ended) -> jobs.Sent:
        took = self._clock() - going.first_at
        while_computed = max(0.0, going.final_at - going.first_at)
        overlap = min(1.0, while_computed / took) if going.first_at and took > 0 else 0.0
        link_s = ended.took_s if going.direct else 0.0
        return jobs.Sent(going.number, overlap, link_s, ended.lead_s, ended.starved_s, ended.ahead)


def _why(error: Exception) -> str:
    """A transfer ended with it, whatever was raised: without its thread nothing would ever be over on a rung."""
    if isinstance(error, ChannelError):
        return f"channel-{error.reason}"
    word = "unsendable" if isinstance(error, ValueError) else type(error).__name__  # one, for metrics
    return f"{word}: {error}"
