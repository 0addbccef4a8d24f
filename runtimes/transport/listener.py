"""Setting channels up: a listener that joins control and bulk connections to pairs, and `dial` for the other side.

The dialler receives blocks, so it makes the rings; the listener says which rungs both can use, once the dialler has
proved that it may offer any. A connection that doesn't finish its handshake in time is dropped, however busily it
sends, and only so many are in theirs at once. Half a pair is not kept for longer either, whether or not anybody else
dials.
"""

from __future__ import annotations

import errno
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runtimes.transport import sockets
from runtimes.transport.channel import ChannelError, Rung
from runtimes.transport.handshake import (
    NO_RUNG,
    Identity,
    Offer,
    Ready,
    answer,
    objection,
    read_offer,
    ready,
    refuse,
)
from runtimes.transport.handshake import dial as shake
from runtimes.transport.kinds import Setting
from runtimes.transport.pair import WINDOW, Channel
from runtimes.transport.rungs import RUNGS, Begun, Offered, begin
from runtimes.transport.verbs.choice import Wanted

HANDSHAKE_S = 5.0
PAUSE_S = 0.05
_LONGEST = 2  # times the wait for one message: a whole handshake, with its devices
_MOST = 256  # handshakes at once: whoever dials has proved nothing yet
#: What accept says of one connection, or of the process for a while: the listener goes on.
_PASSING = frozenset((errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


@dataclass(frozen=True, slots=True, eq=False)
class _Half:
    """A control connection that waits for its bulk connection."""

    since: float
    control: socket.socket
    peer: Identity
    begun: Begun

    def close(self) -> None:
        sockets.close(self.control)
        self.begun.close()


class Listener:
    """Accepts pairs; `accepted` is called with each channel, before anything is read from it."""

    def __init__(
        self,
        key: bytes,
        who: Callable[[], Identity],
        accepted: Callable[[Channel], None],
        rungs: Sequence[Rung] = RUNGS,
        host: str = "127.0.0.1",
        handshake_s: float = HANDSHAKE_S,
        rdma: Wanted | None = None,
        port: int = 0,
    ) -> None:
        if not key and not host.startswith("127.") and host != "localhost":
            raise ValueError(f"listening on {host} needs a cluster key (GALAXY_CLUSTER_KEY_FILE)")
        self._key = key
        self._who = who
        self._accepted = accepted
        self._setting = Setting(tuple(rungs), WINDOW, rdma)
        self._handshake_s = handshake_s
        self._half: dict[str, _Half] = {}
        #: connections in their handshake and since when, by the thread that does it; None: it is over
        self._meeting: dict[threading.Thread, tuple[float, socket.socket | None]] = {}
        self._closed = False
        self._lock = threading.Lock()
        self._socket = socket.create_server((host, port), backlog=64)
        self._socket.settimeout(handshake_s / 4)  # time to look for halves whose other half never came
        self.addr = f"{host}:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, name="kv-listener", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends handshakes, too; channels that were accepted live on."""
        sockets.close(self._socket)
        self._thread.join(2.0)
        with self._lock:
            self._closed = True
            meeting = dict(self._meeting)
        for _, connection in meeting.values():
            if (
                connection is not None
            ):  # its thread closes it: a number closed here might be another file by then
                sockets.wake(connection)
        for thread in meeting:
            thread.join(2.0)
        with self._lock:
            halves, self._half = self._half, {}
        for half in halves.values():
            half.close()

    def _accept(self) -> None:
        while True:
            self._forget_old()
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                continue
            except OSError as error:
                if self._socket.fileno() < 0 or error.errno not in _PASSING:
                    return
                time.sleep(PAUSE_S)  # others' handshakes end meanwhile
                continue
            thread = threading.Thread(target=self._meet, args=(connection,), daemon=True)
            with self._lock:
                full = len(self._meeting) >= _MOST
                if not full:
                    self._meeting[thread] = time.monotonic(), connection
            if full:
                sockets.close(connection)
            else:
                thread.start()

    def _meet(self, connection: socket.socket) -> None:
        me, channel = threading.current_thread(), None
        try:
            connection.settimeout(self._handshake_s)
            sockets.tune(connection)
            offer, sent = read_offer(connection, self._key, self._who())
            if offer.kind == "control":
                self._meet_control(connection, offer, sent)
            else:
                channel = self._meet_bulk(connection, offer, sent)
            with self._lock:
                self._meeting[me] = time.monotonic(), None
            if channel is not None:
                self._accepted(channel)
        except ChannelError:
            sockets.close(connection)
        finally:
            with self._lock:
                del self._meeting[me]

    def _meet_control(self, connection: socket.socket, offer: Offer, sent: bytes) -> None:
        who = self._who()
        refused = objection(offer, who)
        if refused is not None:
            refuse(connection, self._key, sent, who, refused)
        nonce = answer(connection, self._key, sent, who)
        begun = begin(offer, self._setting)
        word = Ready(begun.rungs, begun.words(), tuple(begun.passed))
        if not begun.rungs:
            ready(connection, self._key, sent, nonce, word)
            raise ChannelError("incompatible", NO_RUNG)
        half = _Half(time.monotonic(), connection, offer.who, begun)
        with self._lock:
            before = self._half.pop(offer.pair, None)
            self._half[offer.pair] = half
        if before is not None:
            before.close()
        ready(connection, self._key, sent, nonce, word)

    def _meet_bulk(self, connection: socket.socket, offer: Offer, sent: bytes) -> Channel:
        nonce = answer(connection, self._key, sent, self._who())
        with self._lock:
            half = None if self._closed else self._half.pop(offer.pair, None)
        if half is None or half.peer != offer.who:
            if half is not None:
                half.close()
            raise ChannelError("protocol", "a bulk connection without its control connection")
        for each in (half.control, connection):
            each.settimeout(None)
        link = half.begun.link(half.control, connection)
        channel = Channel(link, half.peer, half.begun.passed)
        try:  # the last word that isn't a frame, thus before whoever gets the channel can send one
            ready(connection, self._key, sent, nonce, Ready(half.begun.rungs))
        except ChannelError:
            channel.close()
            raise
        return channel

    def _forget_old(self) -> None:
        now = time.monotonic()
        limit, longest = now - self._handshake_s, now - _LONGEST * self._handshake_s
        with self._lock:
            late = [each for since, each in self._meeting.values() if each is not None and since < longest]
            old = [pair for pair, half in self._half.items() if half.since < limit]
            forgotten = [self._half.pop(pair) for pair in old]
        for connection in late:
            sockets.wake(connection)
        for half in forgotten:
            half.close()


def dial(
    addr: str,
    key: bytes,
    who: Identity,
    *,
    peer_generation: int = 0,
    rungs: Sequence[Rung] = RUNGS,
    window: int = WINDOW,
    timeout_s: float = HANDSHAKE_S,
    rdma: Wanted | None = None,
) -> Channel:
    """Blocks until both connections stand. The channel is not started."""
    offered = Offered(Setting(tuple(rungs), window, rdma))
    control: socket.socket | None = None
    bulk: socket.socket | None = None
    try:
        pair = secrets.token_hex(16)
        control = _connect(addr, timeout_s)
        peer, word = shake(control, key, offered.offer(pair, who, peer_generation))
        offered.agreed(word)
        bulk = _connect(addr, timeout_s)
        shake(bulk, key, Offer(pair, "bulk", who, peer_generation, secrets.token_bytes(16)))
    except BaseException:
        for connection in (control, bulk):
            if connection is not None:
                sockets.close(connection)
        offered.forget()
        offered.close()
        raise
    offered.forget()
    for connection in (control, bulk):
        connection.settimeout(None)
    return Channel(offered.link(control, bulk), peer, offered.passed)


def _connect(addr: str, timeout_s: float) -> socket.socket:
    host, _, port = addr.rpartition(":")
    try:
        connection = socket.create_connection((host, int(port)), timeout_s)
    except (OSError, ValueError) as error:
        raise ChannelError("unreachable", f"{addr}: {error}") from error
    sockets.tune(connection)
    return connection
