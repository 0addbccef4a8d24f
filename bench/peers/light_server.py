"""What a light standby pod runs once it has a revision: a process that loads that revision's model, and answers.

`python -m bench.peers.light_server --socket PATH --name NAME` is its zygote. A fork has `--address IP --model FILE
--tell SOCKET --uid UID --pod NAME`: it reads the file, listens as a queue-proxy would, and says so with a datagram.
GET answers the SHA-256 of the model, so that who asks sees whose it is.
"""

from __future__ import annotations

import argparse
import hashlib
import selectors
import socket
import time
from pathlib import Path

from kserve_ext.rpc import zygote
from kserve_ext.wire.stats import Stat, encode_stat

PACKAGE = "bench.peers.light_server"
REQUEST_PORT, STATS_PORT = 8012, 9090
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"


def serve(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    for name in ("address", "model", "tell", "uid", "pod"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args(arguments)
    digest = hashlib.sha256(Path(args.model).read_bytes()).hexdigest().encode()
    began = time.time()

    def stats() -> bytes:
        stat = Stat(pod_name=args.pod, process_uptime=time.time() - began, timestamp=int(time.time()))
        return encode_stat(stat)

    with selectors.DefaultSelector() as selector:
        for port in (REQUEST_PORT, STATS_PORT):
            listener = socket.create_server((args.address, port), backlog=256, reuse_port=True)
            listener.setblocking(False)
            selector.register(listener, selectors.EVENT_READ, port)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as teller:
            teller.sendto(args.uid.encode(), args.tell)
        while True:
            for key, _ in selector.select():
                ready: socket.socket = key.fileobj  # type: ignore[assignment]
                if isinstance(key.data, int):
                    connection, _ = ready.accept()
                    selector.register(connection, selectors.EVENT_READ, (key.data, bytearray()))
                    continue
                port, buffer = key.data
                try:
                    data = ready.recv(65536)
                except OSError:
                    data = b""
                if not data:
                    selector.unregister(ready)
                    ready.close()
                    continue
                buffer += data
                while (end := buffer.find(b"\r\n\r\n")) >= 0:
                    head = bytes(buffer[:end]).lower()
                    del buffer[: end + 4]
                    ready.sendall(_answer(head, digest) if port == REQUEST_PORT else _statistics(stats()))


def _answer(head: bytes, digest: bytes) -> bytes:
    body = b"queue" if b"k-network-probe: queue" in head else digest
    return _HEAD % (b"text/plain", len(body)) + body


def _statistics(body: bytes) -> bytes:
    return _HEAD % (b"application/protobuf", len(body)) + body


def main() -> None:
    args = zygote.command_line(PACKAGE).parse_args()
    zygote.serve(args, zygote.Program(PACKAGE, lambda: None, serve))


if __name__ == "__main__":
    main()
