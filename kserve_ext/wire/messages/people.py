"""What people ask, by way of the command and the objects process: of any function or node."""

from __future__ import annotations

from kserve_ext.wire.messages.base import Message


class Describe(Message, frozen=True):
    """CLI, by way of the objects process -> any function or node: its state for status, top and doctor."""

    what: str = "status"  # status | request | instance | log
    key: str = ""


class Description(Message, frozen=True):
    """`body` is JSON: its shape belongs to the part that answers (docs/protocol.md)."""

    body: bytes
