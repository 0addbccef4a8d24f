"""`python -m e2e.behaviours.dial`: a standby pod that is only its connection: dials the agent of its node, and obeys.

What it hears goes to stdout. Once it has a revision it answers requests on 8012 with its pod's name.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

SOCKET = "/run/kserve-galaxy/agent.sock"
TOKEN = Path("/var/run/secrets/kserve-galaxy.io/token")
PORT = 8012


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            body = b"queue" if b"k-network-probe" in head else os.environ["POD_NAME"].encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def heard(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except OSError:
        return b""


async def main() -> None:
    begun = time.time_ns()
    token = await asyncio.to_thread(TOKEN.read_text)
    state: dict[str, str] = {"type": "state", "state": "ready"}
    server: asyncio.Server | None = None
    while True:
        try:
            reader, writer = await asyncio.open_unix_connection(SOCKET)
        except OSError:
            await asyncio.sleep(0.1)
            continue

        def say(message: dict[str, object] | dict[str, str], to: asyncio.StreamWriter = writer) -> None:
            to.write(json.dumps(message).encode() + b"\n")

        hello = {
            "type": "hello",
            "token": token,
            "pool": "x",
            "level": "S0",
            "incarnation": begun,
        }
        pod = f"{os.environ['POD_NAMESPACE']}/{os.environ['POD_NAME']}"
        say({**hello, "pod": pod, "uid": os.environ["POD_UID"], "addr": os.environ["POD_IP"], "gpus": 1})
        say(state)
        while line := await heard(reader):
            print(line.decode().strip(), flush=True)
            order = json.loads(line)
            if order["type"] == "start":
                revision = order["assignment"][0]  # its fields in order
                server = server or await asyncio.start_server(answer, "0.0.0.0", PORT)
                say({"type": "state", "state": "starting", "revision": revision})
                state = {"type": "state", "state": "serving", "revision": revision}
                say(state)
            elif order["type"] == "free":
                say({"type": "state", "state": "draining", "revision": order["revision"]})
                state = {"type": "state", "state": "ready"}
                say(state)
        writer.close()
        await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(main())
