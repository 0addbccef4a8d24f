"""What all messages are: arrays of MessagePack, immutable. And the plainest answer."""

from __future__ import annotations

from typing import Final

import msgspec


class Message(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Base of all messages."""


class Ack(Message, frozen=True):
    """Done; `epoch` is the answering side's own."""

    epoch: int = 0


#: What msgspec raises for bytes that are no such message: the second for text that is no UTF-8.
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError)
