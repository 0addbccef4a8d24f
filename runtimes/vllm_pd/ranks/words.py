"""What the front of an instance and the processes of its tensor-parallel ranks tell each other. Plain values.

The front opens transfers and jobs; blocks move between the ranks of the two sides, on channels of their own. Towards
the ranks, words travel with the steps of the engine (Plan); back, with what a step returns (News).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from runtimes.transport.channel import Rung
from runtimes.transport.handshake import Identity
from runtimes.transport.layout import Layout
from runtimes.vllm_pd.landing import Outcome


class PeerRanks(NamedTuple):
    """Where the ranks of one incarnation of a prefill instance listen, in order of their ranks."""

    name: str
    generation: int
    addrs: tuple[str, ...]


class Begin(NamedTuple):
    """A job of prefill: its ranks will be asked for its blocks by `transfer`, which decode's front calls it."""

    push: int
    opener: str
    generation: int
    transfer: int
    ranks: int  # of decode


class Landed(NamedTuple):
    """A transfer has ended at one rank of decode."""

    transfer: int
    outcome: Outcome


class Pushed(NamedTuple):
    """A push has ended at one rank of prefill: reason ("" = whole), bytes and seconds of writing.

    `rung`: None where nothing was to be written.
    """

    push: int
    rung: Rung | None
    reason: str
    bytes: int
    seconds: float


class News(NamedTuple):
    landed: tuple[Landed, ...] = ()
    pushed: tuple[Pushed, ...] = ()


class Settings(msgspec.Struct, frozen=True):
    """What a rank's process must know, as JSON can say it (kv_connector_extra_config)."""

    role: str
    name: str  # of the instance
    generation: int
    layout: Layout
    rungs: tuple[Rung, ...]
    host: str
    transfer_s: float
    lease_s: float

    def identity(self, rank: int) -> Identity:
        return Identity(rank_name(self.name, rank), self.generation, self.layout)

    def plain(self) -> dict[str, Any]:
        made: dict[str, Any] = msgspec.to_builtins(self)
        return made

    @classmethod
    def read(cls, plain: dict[str, Any]) -> Settings:
        return msgspec.convert(plain, cls)


def rank_name(instance: str, rank: int) -> str:
    """How a rank introduces itself on its channels."""
    return f"{instance}#{rank}"


def instance_of(rank: str) -> str:
    return rank.rpartition("#")[0]


def together(outcomes: Iterable[Outcome]) -> Outcome:
    """Of one transfer, from all that had a part in it: the first reason counts, blocks are each rank's own."""
    known = list(outcomes)
    reason = next((outcome.reason for outcome in known if outcome.reason), "")
    return Outcome(
        reason,
        next((outcome.rung for outcome in known if outcome.rung != "none"), "none"),
        sum(outcome.bytes for outcome in known),
        max(outcome.blocks for outcome in known),
        max(outcome.tokens for outcome in known) if not reason else 0,
        max(outcome.ms for outcome in known),
    )
