"""gRPC calls to a service's endpoint: single ones, ones whose messages are sent one by one, and a load of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from typing import Self

import grpc

from e2e.behaviours.ingress import Backend

CALL_S = 60


def metadata(found: Backend, **more: str) -> list[tuple[str, str]]:
    marks = {name.lower(): value for name, value in found.headers.items() if name != "Host"}
    return [*marks.items(), *((name.replace("_", "-"), value) for name, value in more.items())]


@contextmanager
def channel(found: Backend) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(found.address, [("grpc.default_authority", found.headers["Host"])]) as opened:
        yield opened


class Conversation:
    """A context: one call that lasts, and each message is answered before the next is sent."""

    def __init__(self, opened: grpc.Channel, found: Backend) -> None:
        self._messages: SimpleQueue[bytes | None] = SimpleQueue()
        self._answers = opened.stream_stream("/e2e.Echo/Stream")(
            iter(self._messages.get, None), metadata=metadata(found)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._messages.put(None)

    def turn(self, message: bytes) -> bytes:
        self._messages.put(message)
        answer: bytes = next(self._answers)
        return answer

    def end(self) -> grpc.StatusCode:
        self._messages.put(None)
        assert list(self._answers) == []
        status: grpc.StatusCode = self._answers.code()
        return status


class Calls:
    """Unary calls one after the other until stopped, in a thread of its own."""

    def __init__(self, find: Callable[[], Backend], kept: bool = False) -> None:
        """`kept`: over one channel, to what `find` says first; else each over its own."""
        self._find = find
        self._kept = kept
        self._stopping = threading.Event()
        self.good = 0
        self.failures: list[str] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run, name="calls")
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            thread.join()

    def _run(self) -> None:
        with ExitStack() as kept:
            found = self._find()
            opened = kept.enter_context(channel(found)) if self._kept else None
            while not self._stopping.wait(0.02):
                if opened is not None:
                    self._call(opened, found)
                    continue
                found = self._find()
                with channel(found) as own:
                    self._call(own, found)

    def _call(self, opened: grpc.Channel, found: Backend) -> None:
        try:
            opened.unary_unary("/e2e.Echo/Unary")(b"x", metadata=metadata(found), timeout=CALL_S)
            self.good += 1
        except grpc.RpcError as error:
            self.failures.append(f"{error.code()} {error.details()}")
