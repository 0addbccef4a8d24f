"""Setting channels up: a listener that joins control and bulk connections to pairs, and `dial` for the other side.

The dialler receives blocks, so it makes the ring; the listener picks the best rung that both can use. A
connection that doesn't finish its handshake in time is dropped. Never keeps half a pair longer than that.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence

from runtimes.transport import sockets
from runtimes.transport.channel import ChannelError, Rung
from runtimes.transport.handshake import Identity, Offer, answer, objection, read_offer
from runtimes.transport.handshake import dial as shake
from runtimes.transport.pair import WINDOW, Channel
from runtimes.transport.shm import Ring, unlink

HANDSHAKE_S = 5.0


class Listener:
    """Accepts pairs; `accepted` is called with each channel, before anything is read from it."""

    def __init__(
        self,
        key: bytes,
        who: Callable[[], Identity],
        accepted: Callable[[Channel], None],
        rungs: Sequence[Rung] = ("shm", "tcp"),
        host: str = "127.0.0.1",
    ) -> None:
        if not key and not host.startswith("127.") and host != "localhost":
            raise ValueError(f"listening on {host} needs a cluster key (GALAXY_CLUSTER_KEY_FILE)")
        self._key = key
        self._who = who
        self._accepted = accepted
        self._rungs = tuple(rungs)
        self._half: dict[str, tuple[float, socket.socket, Identity, Rung, Ring | None, int]] = {}
        #: connections in their handshake, by the thread that does it
        self._meeting: dict[threading.Thread, socket.socket] = {}
        self._closed = False
        self._lock = threading.Lock()
        self._socket = socket.create_server((host, 0), backlog=64)
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
        for connection in meeting.values():
            sockets.wake(
                connection
            )  # its own thread closes it: a number closed here might be another file by then
        for thread in meeting:
            thread.join(2.0)
        with self._lock:
            half, self._half = self._half, {}
        for _, connection, _, _, ring, _ in half.values():
            sockets.close(connection)
            if ring is not None:
                ring.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._meet, args=(connection,), daemon=True)
            with self._lock:
                self._meeting[thread] = connection
            thread.start()

    def _meet(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(HANDSHAKE_S)
            sockets.tune(connection)
            offer, sent = read_offer(connection)
            if offer.kind == "control":
                self._meet_control(connection, offer, sent)
            else:
                self._meet_bulk(connection, offer, sent)
        except ChannelError:
            sockets.close(connection)
        finally:
            with self._lock:
                del self._meeting[threading.current_thread()]

    def _meet_control(self, connection: socket.socket, offer: Offer, sent: bytes) -> None:
        who = self._who()
        refused = objection(offer, who)
        ring = None
        rung: Rung = "tcp"
        if refused is None:
            if "shm" in self._rungs and "shm" in offer.rungs and offer.ring:
                ring = Ring.attach(offer.ring, offer.ring_size, offer.ring_token)
            if ring is not None:
                rung = "shm"
            elif "tcp" not in self._rungs or "tcp" not in offer.rungs:
                refused = ("incompatible", "no rung that both sides may use")
        try:
            answer(connection, self._key, sent, who, rung, refused)
        except ChannelError:
            if ring is not None:
                ring.close()
            raise
        with self._lock:
            self._half[offer.pair] = (time.monotonic(), connection, offer.who, rung, ring, offer.window)
        write_ready(connection)

    def _meet_bulk(self, connection: socket.socket, offer: Offer, sent: bytes) -> None:
        answer(connection, self._key, sent, self._who(), "tcp", None)
        with self._lock:
            known = None if self._closed else self._half.pop(offer.pair, None)
        if known is None or known[2] != offer.who:
            raise ChannelError("protocol", "a bulk connection without its control connection")
        _, control, peer, rung, ring, window = known
        for each in (control, connection):
            each.settimeout(None)
        channel = Channel(control, connection, peer, rung, ring, window or WINDOW)
        self._accepted(channel)
        write_ready(connection)
        self._forget_old()

    def _forget_old(self) -> None:
        limit = time.monotonic() - HANDSHAKE_S
        with self._lock:
            old = [pair for pair, half in self._half.items() if half[0] < limit]
            for pair in old:
                _, connection, _, _, ring, _ = self._half.pop(pair)
                sockets.close(connection)
                if ring is not None:
                    ring.close()


def write_ready(connection: socket.socket) -> None:
    sockets.write_message(connection, b"ready")


def dial(
    addr: str,
    key: bytes,
    who: Identity,
    *,
    peer_generation: int = 0,
    rungs: Sequence[Rung] = ("shm", "tcp"),
    window: int = WINDOW,
    timeout_s: float = HANDSHAKE_S,
) -> Channel:
    """Blocks until both connections stand. The channel is not started."""
    ring, name, token = Ring.create(window) if "shm" in rungs else (None, "", b"")
    control: socket.socket | None = None
    bulk: socket.socket | None = None
    try:
        pair, nonce = secrets.token_hex(16), secrets.token_bytes(16)
        control = _connect(addr, timeout_s)
        offer = Offer(pair, "control", who, peer_generation, nonce, tuple(rungs), name, window, token, window)
        agreed = shake(control, key, offer)
        sockets.read_message(control)
        if agreed.rung == "shm" and (ring is None or not ring.echoed(token)):
            raise ChannelError("protocol", "the listener claims shared memory that it did not write to")
        bulk = _connect(addr, timeout_s)
        shake(bulk, key, Offer(pair, "bulk", who, peer_generation, secrets.token_bytes(16)))
        sockets.read_message(bulk)
    except BaseException:
        for connection in (control, bulk):
            if connection is not None:
                sockets.close(connection)
        if ring is not None:
            ring.close()
        raise
    finally:
        if name:
            unlink(name)
    if agreed.rung != "shm" and ring is not None:
        ring.close()
        ring = None
    for connection in (control, bulk):
        connection.settimeout(None)
    return Channel(control, bulk, agreed.who, agreed.rung, ring, window)


def _connect(addr: str, timeout_s: float) -> socket.socket:
    host, _, port = addr.rpartition(":")
    try:
        connection = socket.create_connection((host, int(port)), timeout_s)
    except (OSError, ValueError) as error:
        raise ChannelError("unreachable", f"{addr}: {error}") from error
    sockets.tune(connection)
    return connection
