"""The unix socket at which standby pods of this node dial, a JSON object a line (kserve_ext/wire/slot_socket.py).

Anybody on the node who has the folder mounted may dial; who has not said and proven in time which pod it is, is
dropped with the reason. A pod has one connection, so only those count that have yet to prove it; where they are too
many, the oldest goes, and nobody who dials and is silent keeps others out. Carries what slots say to the account
(kserve_ext/core/standby/agent.py), and orders back. Every change of a slot goes to every autoscaler with all slots of
the node, so a pod may say only so much a second: beyond that its latest state is heard, and later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import msgspec

from kserve_ext.core.standby.facts import Slot
from kserve_ext.core.token_bucket import TokenBucket
from kserve_ext.rpc.unix_socket import BACKLOG
from kserve_ext.wire.slot_socket import FromAgent, FromSlot, Hello, Refused, State

log = logging.getLogger(__name__)

#: From dialling to Hello.
HELLO_S: Final = 5.0
#: Longest line of a slot.
MOST_BYTES: Final = 64 * 1024
#: Who is refused may read why for so long.
LINGER_S: Final = 1.0
#: Connections at once that have yet to prove whose they are; a node has a hundred or some hundred pods.
MOST: Final = 1024
#: States and hellos of one pod, at once and a second. From one revision to the next a slot says seven.
BURST: Final = 20
RATE: Final = 5.0
#: Pods that this is remembered of, beyond their connections; they have proven that they are of this node.
KEEP: Final = 4096
#: Whoever runs in a standby pod may write into the socket, which is what connecting asks for.
SOCKET_MODE: Final = 0o666

_decode: Callable[[bytes], FromSlot] = msgspec.json.Decoder(FromSlot).decode
_encode = msgspec.json.Encoder().encode


class Unproven(Protocol):
    async def prove(self, hello: Hello) -> None: ...


class Heard(Protocol):
    """Whoever keeps the account of slots."""

    def connected(self, link: int, slot: Slot) -> None: ...
    def said(self, link: int, state: State) -> None: ...
    def lost(self, link: int) -> None: ...


class Door:
    """`open` once, `close` once."""

    def __init__(self, path: Path, reviews: Unproven, heard: Heard, refusal: type[Exception]) -> None:
        """`refusal`: what `reviews` raises, with the reason, for whoever isn't who it says."""
        self._path = path
        self._reviews = reviews
        self._heard = heard
        self._refusal = refusal
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.AbstractServer | None = None
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: Those of connections that are unproven, in the order in which they came.
        self._unproven: dict[asyncio.Task[None], None] = {}
        #: By the pod's uid: dialling anew makes nobody's voice louder.
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()
        self._last = 0
        self.refused = 0

    async def open(self) -> None:
        """Raises OSError where the folder can't be written to."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_name(f"{self._path.name}.new")
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        self._server = await asyncio.start_unix_server(
            self._accepted, fresh, limit=MOST_BYTES, backlog=BACKLOG
        )
        fresh.chmod(SOCKET_MODE)
        os.replace(fresh, self._path)  # also over one that a former agent has left

    async def close(self) -> None:
        """Slots dial again, at whoever opens next."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def send(self, link: int, message: FromAgent) -> None:
        writer = self._writers.get(link)
        if writer is not None and not writer.is_closing():
            writer.write(_encode(message) + b"\n")

    def drop(self, link: int, reason: str) -> None:
        """It hears why; its end is not told to the account, which has asked for it."""
        writer = self._writers.pop(link, None)
        if writer is not None:
            self.refused += 1
            _refuse(writer, reason)
            self._loop.call_later(LINGER_S, writer.close)

    # --- inside

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._unproven) >= MOST:
            oldest = next(iter(self._unproven))
            del self._unproven[oldest]
            oldest.cancel()
            self.refused += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._unproven[task] = None
        self._last += 1
        link = self._last
        try:
            await self._serve(link, reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # it is gone
        except asyncio.CancelledError:
            pass  # this agent ends, or others need its place; raised on, the stream's own callback would log it
        finally:
            self._tasks.discard(task)
            self._unproven.pop(task, None)
            if self._writers.pop(link, None) is not None:
                self._heard.lost(link)
            writer.close()

    async def _serve(self, link: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HELLO_S):
                hello = await _first(reader)
            if not isinstance(hello, Hello):
                raise _Bad("the first line is no hello: send it first")
            await self._proven(hello, reader)
            bucket = self._bucket(hello.uid)
            if bucket.take_now(self._loop.time()) > 0:
                raise _Bad(f"pod {hello.pod} has dialled or said too much: dial again in a second")
        except (TimeoutError, _Bad, self._refusal) as error:
            self.refused += 1
            reason = str(error) or f"no hello within {HELLO_S:g} s"
            log.warning("a slot is refused: %s", reason)
            _refuse(writer, reason)
            await _until_gone(reader)
            return
        task = asyncio.current_task()
        assert task is not None
        self._unproven.pop(task, None)
        self._writers[link] = writer
        log.info("slot %s (pool %s, %s) is connected", hello.pod, hello.pool, hello.level)
        self._heard.connected(
            link,
            Slot(
                hello.pod,
                hello.uid,
                hello.pool,
                hello.addr,
                hello.level,
                "warming",
                incarnation=hello.incarnation,
                gpus=hello.gpus,
            ),
        )
        lines, often = _Lines(reader), False
        try:
            while link in self._writers:
                line = await lines.next()
                wait_s = bucket.take(self._loop.time())
                if wait_s > 0:
                    if not often:
                        often = True
                        log.warning(
                            "slot %s says more than %g states a second: some are passed over", hello.pod, RATE
                        )
                    await asyncio.sleep(wait_s)
                    line = lines.latest(line)
                said = _read(line)
                if not isinstance(said, State):
                    raise _Bad("a second hello: dial anew instead")
                if link in self._writers:
                    self._heard.said(link, said)
        except _Bad as error:
            if link in self._writers:
                log.warning("slot %s is dropped: %s", hello.pod, error)
                self._writers.pop(link)
                self._heard.lost(link)
                _refuse(writer, str(error))
        await _until_gone(reader)

    def _bucket(self, uid: str) -> TokenBucket:
        bucket = self._buckets.setdefault(uid, TokenBucket(RATE, BURST))
        self._buckets.move_to_end(uid)
        if len(self._buckets) > KEEP:
            self._buckets.popitem(last=False)
        return bucket

    async def _proven(self, hello: Hello, reader: asyncio.StreamReader) -> None:
        await self._reviews.prove(hello)
        if reader.at_eof():
            raise ConnectionResetError  # it didn't wait


class _Bad(Exception):
    """What a slot has sent can't be used."""


class _Lines:
    """What comes after the hello: line by line, or only the last of those that are there.

    Nothing is read before it is asked for, so whoever says too much waits with it.
    """

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._text = b""

    async def next(self) -> bytes:
        """Raises _Bad, and IncompleteReadError at the end."""
        while True:
            line, end, rest = self._text.partition(b"\n")
            if len(line) > MOST_BYTES:
                raise _Bad(f"a line of more than {MOST_BYTES} bytes")
            if end:
                self._text = rest
                return line
            await self._more()

    def latest(self, line: bytes) -> bytes:
        """The last that is there, `line` if there is none; the others are not looked at."""
        lines, end, rest = self._text.rpartition(b"\n")
        if end:
            self._text = rest
            line = lines.rpartition(b"\n")[2]
        return line

    async def _more(self) -> None:
        more = await self._reader.read(2 * MOST_BYTES)  # as much as a reader keeps
        if not more:
            raise asyncio.IncompleteReadError(self._text, None)
        self._text += more


async def _first(reader: asyncio.StreamReader) -> FromSlot:
    try:
        return _read(await reader.readuntil(b"\n"))
    except asyncio.LimitOverrunError:
        raise _Bad(f"a line of more than {MOST_BYTES} bytes") from None


def _read(line: bytes) -> FromSlot:
    try:
        return _decode(line)
    except msgspec.DecodeError as error:
        raise _Bad(f"a line that is no message of a slot: {error}") from None


def _refuse(writer: asyncio.StreamWriter, reason: str) -> None:
    """What it is still sending must not meet a closed socket, or it would hear of that, and of no reason."""
    if not writer.is_closing():
        writer.write(_encode(Refused(reason)) + b"\n")
        writer.write_eof()


async def _until_gone(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(TimeoutError, ValueError):
        async with asyncio.timeout(LINGER_S):
            while await reader.read(MOST_BYTES):
                pass
