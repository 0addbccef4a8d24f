"""One server: `--port N --model FILE`. It reads the model, and only then listens and says that it is ready.

GET /            {"model": what the file says, "sha256": of it, "pid", "revision"}
GET /sleep?s=1   the same after so many seconds
GET /events?n=3  an event stream: so many events, every `s` seconds (0.1), and [DONE]
GET /head        the request's own head
POST             its body
GET /exit?code=3 ends the process
GET /leave       starts a process in a session of its own, which nobody here ends
GET /write?path=F  writes a file, or says why it can't
GET /list?path=D   the names in a folder
GET /env?name=N    the value of a variable
An Upgrade to anything echoes bytes from then on. SIGTERM ends it when nothing is under way.

`--wait-for FILE` keeps it loading until there is such a file; `--silent` says nothing of its state.
A file that is not there, or is empty, is refused as our runtimes refuse (status failed, exit code 2).

Plain sockets and a thread a connection: what a start costs is then the pod's, not this server's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from runtimes.vllm_pd.status import StartRefused, Status


class Server:
    def __init__(self, model: bytes, host: str, port: int) -> None:
        facts: dict[str, Any] = {
            "model": model[:64].decode(errors="replace"),
            "sha256": hashlib.sha256(model).hexdigest(),
            "pid": os.getpid(),
            "revision": os.environ.get("GALAXY_REVISION", ""),
        }
        self._said = json.dumps(facts).encode()
        self._busy = 0
        self._changed = threading.Condition()
        self._draining = False
        self._listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((host, port))
        self._listener.listen(1024)

    def run(self) -> None:
        """Until SIGTERM, and what is under way then."""
        signal.signal(signal.SIGTERM, self._drain)
        try:
            while not self._draining:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()
        except InterruptedError:
            pass
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)

    def _drain(self, number: int, frame: object) -> None:
        self._draining = True
        raise InterruptedError  # out of accept

    def _serve(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = b""
        with client, contextlib.suppress(OSError):
            while True:
                while b"\r\n\r\n" not in data:
                    more = client.recv(65536)
                    if not more:
                        return
                    data += more
                self._count(1)
                try:
                    rest = self._answer(client, data)
                finally:
                    self._count(-1)
                if rest is None:
                    return
                data = rest

    def _count(self, more: int) -> None:
        with self._changed:
            self._busy += more
            self._changed.notify()

    def _answer(self, client: socket.socket, data: bytes) -> bytes | None:
        """What follows the request; None: the connection is over."""
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        method, target, _ = first.split(b" ")
        path, _, query = target.decode("latin-1").partition("?")
        given = dict(part.split("=", 1) for part in query.split("&") if "=" in part)
        length = int(fields.get(b"content-length") or 0)
        while len(body) < length:
            body += client.recv(65536)
        body, rest = body[:length], body[length:]
        if b"upgrade" in fields.get(b"connection", b"").lower():
            client.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "
                + fields[b"upgrade"]
                + b"\r\n\r\n"
            )
            while piece := client.recv(65536):
                client.sendall(piece)
            return None
        said = self._said
        if path == "/sleep":
            time.sleep(float(given.get("s", "1")))
        elif path == "/exit":
            os._exit(int(given.get("code", "3")))
        elif path == "/leave":
            words = [sys.executable, "-c", "import time; time.sleep(600)  # left behind"]
            subprocess.Popen(words, start_new_session=True)
        elif path == "/env":
            said = json.dumps(os.environ.get(given["name"])).encode()
        elif path in ("/write", "/list"):
            said = _files(path, given["path"])
        elif path == "/events":
            _events(client, int(given.get("n", "3")), float(given.get("s", "0.1")))
            return rest
        elif path == "/head":
            said = data[: len(head) + 4]
        elif method == b"POST":
            said = body
        client.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (len(said), said)
        )
        return rest


def _events(client: socket.socket, count: int, every_s: float) -> None:
    client.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    for i in range(count):
        event = b"data: %d\n\n" % i
        client.sendall(b"%x\r\n%s\r\n" % (len(event), event))
        time.sleep(every_s)
    client.sendall(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


def _files(what: str, path: str) -> bytes:
    try:
        if what == "/list":
            return json.dumps(sorted(os.listdir(path))).encode()
        Path(path).write_text("of a revision")
    except OSError as error:
        return json.dumps({"error": error.strerror}).encode()
    return json.dumps({"uid": os.getuid()}).encode()


def _load(path: Path) -> bytes:
    file = path / "model.bin" if path.is_dir() else path
    try:
        model = file.read_bytes()
    except OSError as error:
        raise StartRefused(str(error), "--model", "give a file, or a folder with model.bin") from error
    if not model:
        raise StartRefused(f"{file} is empty", "--model", "give a file with something in it")
    return model


def arguments(argv: list[str]) -> dict[str, str]:
    """`--name value`, `--name=value` and `--name`; no parser, which would take as long as all the rest."""
    given: dict[str, str] = {}
    name = ""
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            given[name] = value if equals else ""
        else:
            given[name] = word
    return given


def main(argv: list[str]) -> int:
    given = arguments(argv)
    status = Status(None) if "silent" in given else Status.from_environment()
    status.enter("loading")
    while given.get("wait-for") and not os.path.exists(given["wait-for"]):
        time.sleep(0.01)
    try:
        model = _load(Path(given.get("model", "")))
    except StartRefused as refusal:
        status.fail(refusal)
        return 2
    port = int(given["port"])
    server = Server(model, given.get("host") or "127.0.0.1", port)
    status.listening(port)
    status.event("ready")
    status.enter("ready")
    server.run()
    return 0
