"""Which prefill instance computes a prompt for a decode instance: the one whose KV would be there first.

What is known of each is brought into one unit, seconds: the prompt tokens that wait there already (tokens, not
requests: one long prompt outweighs many short ones) and this prompt's own, less what the instance is likely to hold
of it, over its token velocity; the set-up of a channel where none stands; the way of the KV. Instances that decode
leaves alone or can't use are out. Which of equal ones it is, the given function draws. Pure: loads come from leases
and releases, and nothing is asked of anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from kserve_ext.core.dispatch.affinity import BLOCK_BYTES, PrefixTree
from kserve_ext.core.dispatch.choosing import Chosen
from kserve_ext.core.dispatch.throttler import Tracker
from kserve_ext.core.ids import InstanceID
from kserve_ext.core.scaling.velocity import PrefillVelocity

TOKEN_BYTES: Final = 4  # of token ids, in the blocks that prompts are known by
BLOCK_TOKENS: Final = BLOCK_BYTES // TOKEN_BYTES
FIRST_TOKENS_S: Final = 2000.0  # velocity while nothing was measured anywhere
SETUP_S: Final = 0.05  # of a channel
AWAY_TOKEN_S: Final = 1e-5  # what another host costs a token that has to travel: 128 KiB at 12 GB/s
KEPT_BLOCKS: Final = 65_536
MOST_INSTANCES: Final = 1000


class Ask(NamedTuple):
    """What a decode instance says of the prompt that it wants computed."""

    tokens: int = 0
    uncached: int = 0  # of these, what decode does not hold: what travels
    prefix: tuple[int, ...] = ()  # hashes of the prompt's first blocks of BLOCK_TOKENS
    channels: tuple[InstanceID, ...] = ()  # to which it has one that stands
    excluded: tuple[
        InstanceID, ...
    ] = ()  # that it leaves alone for a while, or whose blocks are of no use to it
    place: str = ""  # where it is itself, as the places of prefill instances are named


class Cost(NamedTuple):
    """Seconds."""

    queue_s: float
    compute_s: float
    channel_s: float
    way_s: float

    @property
    def total_s(self) -> float:
        return sum(self)


class Wanting(Protocol):
    """A lease that waits, or is given."""

    ask: Ask
    why: str  # set when it goes somewhere
    ahead: int  # tokens that waited there before it, likewise


class _Load:
    __slots__ = ("queued", "velocity")

    def __init__(self) -> None:
        self.queued = 0  # tokens leased and not released
        self.velocity = PrefillVelocity()


class Pairing:
    """Of one prefill revision; a Chooser. `place_of` says where an instance is, "" = not known."""

    def __init__(
        self,
        draw: Callable[[Sequence[InstanceID]], InstanceID],
        place_of: Callable[[InstanceID], str] = lambda instance: "",
    ) -> None:
        self._draw = draw
        self._place_of = place_of
        self._loads: dict[InstanceID, _Load] = {}
        self._prefixes = PrefixTree(KEPT_BLOCKS)

    # --- Chooser

    def choose(self, request: Wanting, there: Sequence[Tracker], now: float) -> Chosen | None:
        by_id = {t.id: t for t in there}
        best = self.best(request.ask, by_id)
        if best is None:
            return None
        instance, why = best
        return Chosen(by_id[instance], why)

    def chosen(self, request: Wanting, chosen: Chosen, now: float) -> None:
        instance = chosen.tracker.id
        load = self._loads.pop(instance, None) or _Load()
        self._loads[instance] = load
        self._bound()
        request.why, request.ahead = chosen.why, load.queued
        load.queued += request.ask.tokens
        self._prefixes.note(request.ask.prefix, instance)

    # --- pure choice

    def best(self, ask: Ask, instances: Iterable[InstanceID]) -> tuple[InstanceID, str] | None:
        """The cheapest, and why, for a person; None: it can use none of these."""
        held = self._held(ask)
        costs = {i: self._cost(ask, i, held.get(i, 0)) for i in instances if i not in ask.excluded}
        if not costs:
            return None
        least = min(cost.total_s for cost in costs.values())
        equal = sorted(i for i, cost in costs.items() if cost.total_s <= least + 1e-9)
        instance = equal[0] if len(equal) == 1 else self._draw(equal)
        return instance, self._why(ask, instance, costs[instance], held.get(instance, 0))

    def cost(self, ask: Ask, instance: InstanceID) -> Cost:
        return self._cost(ask, instance, self._held(ask).get(instance, 0))

    def velocity_of(self, instance: InstanceID) -> float:
        """Tokens a second, 0 = neither its own nor that of others is known."""
        load = self._loads.get(instance)
        return (load.velocity.tokens_s if load is not None else 0.0) or self.tokens_s

    # --- what happens

    def released(
        self, instance: InstanceID, ask: Ask, tokens: int = 0, started: float = 0.0, ended: float = 0.0
    ) -> None:
        """A lease is back. `tokens`, when they were computed between these times of the instance's clock."""
        load = self._loads.get(instance)
        if load is None:
            return
        load.queued = max(0, load.queued - ask.tokens)
        load.velocity.ran(tokens, started, ended)

    def queued(self, instance: InstanceID) -> int:
        load = self._loads.get(instance)
        return load.queued if load is not None else 0

    @property
    def tokens_s(self) -> float:
        """Velocity of an instance on average, 0 = not known yet."""
        known = [v for load in self._loads.values() if (v := load.velocity.tokens_s)]
        return sum(known) / len(known) if known else 0.0

    # --- inside

    def _bound(self) -> None:
        """Instances that are gone have owed nothing for long."""
        if len(self._loads) > MOST_INSTANCES:
            gone = next((i for i, load in self._loads.items() if not load.queued), None)
            if gone is not None:
                del self._loads[gone]

    def _held(self, ask: Ask) -> dict[InstanceID, int]:
        """Tokens of the prompt that instances are likely to hold; the last one is always computed."""
        most = max(0, ask.tokens - 1)
        return {i: min(d * BLOCK_TOKENS, most) for i, d in self._prefixes.depths(ask.prefix).items()}

    def _cost(self, ask: Ask, instance: InstanceID, held: int) -> Cost:
        load = self._loads.get(instance)
        tokens_s = self.velocity_of(instance) or FIRST_TOKENS_S
        near = bool(ask.place) and ask.place == self._place_of(instance)
        return Cost(
            (load.queued if load else 0) / tokens_s,
            (ask.tokens - held) / tokens_s,
            0.0 if instance in ask.channels else SETUP_S,
            0.0 if near else ask.uncached * AWAY_TOKEN_S,
        )

    def _why(self, ask: Ask, instance: InstanceID, cost: Cost, held: int) -> str:
        parts = [f"{cost.total_s:.3f} s: {self.queued(instance)} tokens wait there"]
        if held:
            parts.append(f"holds {held} of {ask.tokens}")
        parts.append("channel stands" if not cost.channel_s else "channel is to be set up")
        if not cost.way_s and ask.uncached:
            parts.append("same host")
        return ", ".join(parts)
