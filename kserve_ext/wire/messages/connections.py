"""What the two ends of a kept connection say about the connection itself; rpc answers these, no handler does.

A peer of an older release answers either with an error, which is as good a sign of life.
"""

from __future__ import annotations

from kserve_ext.wire.messages.base import Message


class Ping(Message, frozen=True):
    """Is anybody there? Any answer will do."""


class Bye(Message, frozen=True):
    """The caller keeps this connection no longer, as it is little used: it closes, and nobody is lost. No answer."""
