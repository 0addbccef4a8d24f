"""The channels that this instance has, on either side: carries out what core/kv_links.py decides, and tells of it.

A side that listens is never told to dial; the other one adds that (channels.py).

Everything here runs on the event loop. Threads of channels only leave the time at which they heard something, or call
back to the loop. The machine hears what has happened to channels (signs of life, open transfers, losses) before
whatever else it is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

from kserve_ext.core.kv_links import Close, Dial, Instruction, Key, Links, Ping, Refusal
from runtimes.transport.channel import ChannelError, Reason, Rung
from runtimes.transport.pair import Channel
from runtimes.vllm_pd import metrics
from runtimes.vllm_pd.keepalive import Ear, Wrap, ask

TICK_S: Final = 0.25
SOON_S: Final = 0.05  # news of many channels at once is told once
COUNTS_S: Final = 5.0  # that more has been transferred is told after so long

Attach = Callable[[Channel, Wrap], None]


class Kept:
    """One channel that stands, and its account."""

    def __init__(
        self, key: Key, channel: Channel, ended: Callable[[Kept], None], dial_s: float = 0.0
    ) -> None:
        self.key = key
        self.channel = channel
        self.number = 0
        self.dial_s = dial_s
        self.transfers = 0
        self.bytes = 0
        self.ear = Ear(lambda error: ended(self))

    def facts(self) -> dict[str, Any]:
        return {
            "rungs": rungs_of(self.channel),
            "passed": list(self.channel.passed),
            "transfers": self.transfers,
            "bytes": self.bytes,
            "dial_ms": round(self.dial_s * 1000, 1),
        }


class Keeper:
    """`attach` hands a channel to whoever moves blocks over it; `open_on` counts what is open there."""

    def __init__(
        self, links: Links, attach: Attach, open_on: Callable[[Channel], int], changed: Callable[[], None]
    ) -> None:
        self._links = links
        self._attach = attach
        self._open_on = open_on
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._epoch_s = time.time() - time.monotonic()
        self._kept: dict[int, Kept] = {}  # by number
        self._tasks: set[asyncio.Task[Any]] = set()
        self._telling: asyncio.TimerHandle | None = None
        self._counting: asyncio.TimerHandle | None = None
        self._closed = False

    def start(self) -> None:
        self._task(self._tick())

    def close(self) -> None:
        """All channels end, and what is open on them."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        for timer in (self._telling, self._counting):
            if timer is not None:
                timer.cancel()
        for kept in self._kept.values():
            kept.channel.close()
        self._kept.clear()

    def count(self, peer: str, rank: int, size: int) -> None:
        """A transfer has ended, after so many bytes."""
        link = self._links.known.get(Key(peer, rank))
        kept = self._kept.get(link.number) if link is not None else None
        if kept is not None:
            kept.transfers += 1
            kept.bytes += size
            if self._counting is None and not self._closed:
                self._counting = self._loop.call_later(COUNTS_S, self._tell_counts)

    def ended(self, channel: Channel, rung: Rung, reason: str, size: int, seconds: float) -> None:
        """A transfer out of this engine has; told by any thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._sent, channel.peer.name, rung, reason, size, seconds)

    def _sent(self, peer: str, rung: Rung, reason: str, size: int, seconds: float) -> None:
        metrics.transferred(peer, rung, reason.partition(":")[0], size, seconds)
        self.count(peer, 0, size)

    @property
    def peers(self) -> int | None:
        """How many there are to be dialled; None: that isn't known."""
        return self._links.eligible

    def usable(self) -> tuple[set[str], dict[str, Refusal]]:
        """Peers with a channel that stands, and those that no lease should name now, with why."""
        return self._links.usable(time.monotonic())

    def facts(self) -> list[dict[str, Any]]:
        """Of each peer and rank: what stands, or why nothing does."""
        found = []
        for key, link in sorted(self._links.known.items()):
            kept = self._kept.get(link.number) if link.state == "up" else None
            why = link.refusal
            entry: dict[str, Any] = {
                "peer": key.peer,
                "rank": key.rank,
                "generation": link.generation,
                "state": link.state,
                "since": round(self._epoch_s + link.since, 3),
                "open": link.transfers,
                **(kept.facts() if kept is not None else {}),
            }
            if why is not None:
                entry["reason"], entry["detail"] = why
            found.append(entry)
        return found

    # --- for whoever makes channels

    def _add(self, kept: Kept, number: int) -> None:
        kept.number = number
        self._kept[number] = kept
        self._tell_soon()

    def _stands(self, key: Key) -> bool:
        link = self._links.known.get(key)
        kept = self._kept.get(link.number) if link is not None else None
        return kept is not None and kept.channel.lost is None

    def _now(self) -> float:
        """Brings the machine up to what has happened."""
        now = time.monotonic()
        for number, kept in list(self._kept.items()):
            if number not in self._kept:
                continue  # closed by what followed from another's loss
            if kept.channel.lost is not None:
                self._tell_soon()
                metrics.CHANNEL_FAILURES.labels(kept.channel.lost.reason).inc()
                del self._kept[number]
                self._carry(self._links.lost(kept.key, number, now))
            else:
                self._links.seen(kept.key, number, kept.ear.heard_at, self._open_on(kept.channel))
        return now

    def _carry(self, instructions: Sequence[Instruction]) -> None:
        for i in instructions:
            match i:
                case Ping():
                    if (kept := self._kept.get(i.number)) is not None:
                        ask(kept.channel)
                case Close():
                    self._close(i)
                case Dial():
                    pass
        if not all(isinstance(i, Ping) for i in instructions):
            self._tell_soon()

    def _tell_soon(self) -> None:
        if self._telling is None and not self._closed:
            self._telling = self._loop.call_later(SOON_S, self._tell)

    def _close(self, i: Close) -> None:
        kept = self._kept.pop(i.number, None)
        if kept is not None:
            if i.reason != "closed":
                metrics.CHANNEL_FAILURES.labels(i.reason).inc()
            kept.channel.lose(ChannelError(_reason(i.reason), i.detail))

    def _ended(self, kept: Kept) -> None:
        """From a channel's thread, or from whoever closed it."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and we with it
            self._loop.call_soon_threadsafe(self._now)

    def _task(self, work: Any) -> asyncio.Task[Any]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _tick(self) -> None:
        while True:
            self._carry(self._links.tick(self._now()))
            await asyncio.sleep(TICK_S)

    def _tell_counts(self) -> None:
        self._counting = None
        self._tell_soon()

    def _tell(self) -> None:
        self._telling = None
        states = Counter(link.state for link in self._links.known.values())
        for state in ("up", "dialling", "down"):
            metrics.CHANNELS.labels(state).set(states[state])
        metrics.QUEUE_PAIRS.set(sum(queue_pairs(kept.channel) for kept in self._kept.values()))
        metrics.keep({key.peer for key in self._links.known})
        self._changed()


def rungs_of(channel: Channel) -> list[dict[str, Any]]:
    """Best first; of RDMA with the devices on this side, their addresses and packet size."""
    found = []
    for rung in channel.rungs:
        ports = [
            {"device": port.device, "gid": _spoken(port.gid), "mtu": port.mtu} for port in channel.ports(rung)
        ]
        found.append({"rung": rung, "ports": ports} if ports else {"rung": rung})
    return found


def queue_pairs(channel: Channel) -> int:
    """One for messages, and one on each port for blocks."""
    most = max((len(channel.ports(rung)) for rung in channel.rungs), default=0)
    return most + 1 if most else 0


def _spoken(gid: str) -> str:
    """As people know it: 10.8.0.1, or fe80::1."""
    address = ipaddress.IPv6Address(gid)
    return str(address.ipv4_mapped or address)


def _reason(word: str) -> Reason:
    known: tuple[Reason, ...] = ("generation", "timeout")
    return next((reason for reason in known if reason == word), "closed")
