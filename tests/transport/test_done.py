"""A transfer is done when every stream has said so; a peer that only ever uses one of them is no peer."""

from __future__ import annotations

from typing import Any, cast

import pytest

from runtimes.transport import pair
from runtimes.transport.channel import DONE, ChannelError, Frame, Link
from runtimes.transport.handshake import Identity
from runtimes.transport.layout import Layout
from runtimes.transport.pair import Channel


class _Way:
    rung, streams, usable, why = "tcp", (1, 2), True, ""


class _Link:
    ways = (_Way(),)


class _Landing:
    def __init__(self) -> None:
        self.whole: list[int] = []

    def done(self, transfer: int, blocks: int) -> None:
        self.whole.append(transfer)


def test_transfers_that_only_one_stream_calls_complete_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair, "_HALF_DONE", 3)
    channel = Channel(cast(Link, _Link()), Identity("d", 1, Layout()))
    landing = _Landing()
    channel._landing = cast(Any, landing)
    way = cast(Any, _Link.ways[0])
    for transfer in (1, 2, 3, 2, 4):
        channel._count(way, Frame(DONE, 0, transfer=transfer))
    assert landing.whole == [2]
    with pytest.raises(ChannelError, match="complete on some streams only"):
        channel._count(way, Frame(DONE, 0, transfer=5))
    channel._count(way, Frame(DONE, 0, transfer=1))
    assert landing.whole == [2, 1]
