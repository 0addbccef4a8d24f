"""The instance of chaos runs: one file, no packages, ready in some milliseconds (`python -S -E instance.py`).

    --port N --limit N --history FOLDER [--delay SECONDS]

GET or POST /?delay=S answers {"request", "instance"} after S seconds; /stream?n=N&gap=S sends N events and [DONE].
It writes into the history: that it began, and whenever it is asked to serve more requests at once than `--limit`
(0 = any). As our runtimes do (runtimes/vllm_pd/breaker.py), it refuses what is over what its node has told it.
A request whose client has gone is over at once. SIGTERM: what is open is finished first.
"""

from __future__ import annotations

import heapq
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable

FULL = b"HTTP/1.1 503 Full\r\ncontent-length: 0\r\nx-galaxy-full: 1\r\n\r\n"


def main(argv: list[str]) -> int:
    return serve(argv, Server)


def serve(argv: list[str], kind: type[Server]) -> int:
    options = dict(zip(argv[::2], argv[1::2], strict=True))
    server = kind(int(options["--limit"]), options["--history"], float(options.get("--delay", "0.02")))
    server.say("began")
    server.listen(int(options["--port"]))
    signal.signal(signal.SIGTERM, lambda *_: server.drain())
    server.run()
    return 0


class Connection:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.got = b""
        self.out = b""
        self.busy = False
        self.gone = False


class Server:
    def __init__(self, limit: int, history: str, delay_s: float) -> None:
        self.limit, self.delay_s = limit, delay_s
        env = os.environ
        self.id, self.revision = env.get("GALAXY_INSTANCE_ID", ""), env.get("GALAXY_REVISION", "")
        self.most = int(env.get("GALAXY_CONCURRENCY", "0"))
        self.node = env.get("GALAXY_INSTANCE_DIR", "//").split("/")[-3]
        path = os.path.join(history, f"instance.{os.getpid()}.jsonl")
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.selector = selectors.DefaultSelector()
        self.timers: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.in_flight: set[Connection] = set()
        self.listener: socket.socket | None = None
        self.draining = False

    def say(self, what: str, more: str = "") -> None:
        head = f'{{"t": {time.monotonic()!r}, "by": "instance", "pid": {os.getpid()}, "what": "{what}", '
        facts = f'"instance": "{self.id}", "revision": "{self.revision}", "node": "{self.node}"{more}}}\n'
        os.write(self.file, (head + facts).encode())

    def listen(self, port: int) -> None:
        self.listener = socket.create_server(("", port), backlog=512, reuse_port=True)
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ, None)

    def drain(self) -> None:
        self.draining = True
        if self.listener is not None:
            self.selector.unregister(self.listener)
            self.listener.close()
            self.listener = None

    def run(self) -> None:
        while not (self.draining and not self.in_flight):
            wait = 0.2 if self.draining else 5.0
            if self.timers:
                wait = min(wait, max(0.0, self.timers[0][0] - time.monotonic()))
            ready = [(key.data, events) for key, events in self.selector.select(wait)]
            fresh = [connection for connection, events in ready if connection and self._take(connection)]
            # Clients that have gone free their place before anybody takes it.
            for connection in fresh:
                self._serve(connection)
            if any(connection is None for connection, _ in ready):
                self._accept()
            while self.timers and self.timers[0][0] <= time.monotonic():
                heapq.heappop(self.timers)[2]()

    def _accept(self) -> None:
        while self.listener is not None:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.selector.register(sock, selectors.EVENT_READ, Connection(sock))

    def _take(self, connection: Connection) -> bool:
        try:
            got = connection.sock.recv(65536)
        except BlockingIOError:
            return False
        except OSError:
            got = b""
        if not got:
            self._close(connection)
            return False
        connection.got += got
        return True

    def _close(self, connection: Connection) -> None:
        if not connection.gone:
            connection.gone = True
            self.in_flight.discard(connection)
            self.selector.unregister(connection.sock)
            connection.sock.close()

    def _serve(self, connection: Connection) -> None:
        if connection.busy or connection.gone:
            return
        head, found, rest = connection.got.partition(b"\r\n\r\n")
        if not found:
            return
        lines = head.decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return
        connection.got = rest[length:]
        connection.busy = True
        self.in_flight.add(connection)
        request = headers.get("x-request-id", "")
        over = 0 < self.limit < len(self.in_flight)
        refused = over and 0 < self.most < len(self.in_flight)
        if over:
            facts = f'"in_flight": {len(self.in_flight)}, "limit": {self.limit}, "refused": {int(refused)}'
            self.say("over", f', {facts}, "request": "{request}"')
        if refused:
            self._end(connection, FULL)
            return
        path, _, query = lines[0].split(" ")[1].partition("?")
        asked = dict(pair.split("=") for pair in query.split("&") if "=" in pair)
        if path == "/stream":
            head = (
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
                b"x-instance: " + self.id.encode() + b"\r\n\r\n"
            )
            if self._send(connection, head):
                self._event(connection, request, 0, int(asked["n"]), float(asked["gap"]))
        else:
            self._later(float(asked.get("delay", self.delay_s)), lambda: self._answer(connection, request))

    def _answer(self, connection: Connection, request: str) -> None:
        body = f'{{"request": "{request}", "instance": "{self.id}"}}'.encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        self._end(connection, head + body)

    def _event(self, connection: Connection, request: str, number: int, count: int, gap_s: float) -> None:
        if connection.gone:
            return
        text = b"data: %d\n\n" % number if number < count else b"data: [DONE]\n\n"
        chunk = b"%x\r\n%s\r\n" % (len(text), text)
        if number == count:
            self._end(connection, chunk + b"0\r\n\r\n")
        elif self._send(connection, chunk):
            self._later(gap_s, lambda: self._event(connection, request, number + 1, count, gap_s))

    def _end(self, connection: Connection, data: bytes) -> None:
        """Its place is free before the client can know."""
        if not connection.gone:
            self.in_flight.discard(connection)
            connection.busy = False
            if self._send(connection, data):
                self._serve(connection)

    def _send(self, connection: Connection, data: bytes) -> bool:
        try:
            connection.sock.sendall(data)  # small: they fit into the socket's buffer
        except OSError:
            self._close(connection)
            return False
        return True

    def _later(self, seconds: float, work: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.timers, (time.monotonic() + seconds, self.count, work))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
