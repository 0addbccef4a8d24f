"""What is kept writes a file into the scratch folder of its pod, and is of another shape than who asks --other."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from bench.peers.tiny_runtime.server import main
from kserve_ext.api.standby.names import ENV_SCRATCH
from kserve_ext.rpc import zygote

PACKAGE = "tests.support.keeping_runtime"


def keep(path: str) -> int:
    (Path(os.environ[ENV_SCRATCH]) / f"engine-{os.getpid()}").write_text("its own")
    Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rwb") as file:
            asked = json.loads(file.readline())
            argv = zygote.arguments_only(asked.get("argv") or [])
            answer: dict[str, object] = {"pid": os.getpid()}
            if asked.get("ping"):
                answer = {"ready": True}
            elif "--other" in argv:
                answer = {"error": "the engine has nothing", "field": "--other"}
            file.write(json.dumps(answer).encode() + b"\n")
        if "pid" in answer:
            listener.close()
            os.environ.update(asked["env"])
            return main(argv)


if __name__ == "__main__":
    made = zygote.Program(PACKAGE, lambda: None, main, keep)
    zygote.serve(zygote.command_line(PACKAGE).parse_args(), made)
