"""An answer that a handler gives later, at the cost of neither a task nor a future nor a turn of the loop.

Hot file (STYLE 4).
"""

from __future__ import annotations

from collections.abc import Callable

from kserve_ext.wire.messages import Message


class Answer:
    """A handler returns it and calls `give` once, sooner or later; whoever asked is told by `then`."""

    __slots__ = ("_reply", "_then")

    def __init__(self) -> None:
        self._reply: Message | None = None
        self._then: Callable[[Message], None] | None = None

    def give(self, reply: Message) -> None:
        """What comes after the first is not heard."""
        if self._reply is None:
            self._reply = reply
            if self._then is not None:
                self._then(reply)

    def then(self, told: Callable[[Message], None]) -> None:
        """For rpc: `told` hears the reply, at once if it is there."""
        self._then = told
        if self._reply is not None:
            told(self._reply)
