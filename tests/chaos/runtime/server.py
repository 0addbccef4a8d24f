"""One forked instance: tests/chaos/instance.py, and what an instance of a runtime of ours says of its life."""

from __future__ import annotations

from runtimes.vllm_pd.status import Status
from tests.chaos import instance


def main(argv: list[str]) -> int:
    status = Status.from_environment()
    status.enter("loading")

    class Server(instance.Server):
        def listen(self, port: int) -> None:
            super().listen(port)
            status.event("ready")
            status.enter("ready")

        def drain(self) -> None:
            super().drain()
            status.enter("draining")

    return instance.serve(argv, Server)
