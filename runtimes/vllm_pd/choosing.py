"""Decode's side of the choice of rungs: a cost model for each pair (core/kv_cost.py), fed by what transfers took.

A trip is one transfer: it learns how it ended here and what the sender says of it, in either order. Everything runs
on the event loop. The rate of a link is what the kernel says of the device; one in software says nothing of use.
"""

from __future__ import annotations

import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from kserve_ext.core.kv_cost import Choice, Costs, prior
from runtimes.transport.channel import Port, Rung
from runtimes.vllm_pd import jobs
from runtimes.vllm_pd.landing import Outcome

_PAIRS: Final = 1024  # those used last
_TOKEN_BYTES: Final = 128 << 10  # until a transfer has told: 32 layers with 8 heads of 128, two bytes each
_DEVICES: Final = Path("/sys/class/infiniband")


class Rungs(Protocol):
    """What a channel has."""

    @property
    def rungs(self) -> tuple[Rung, ...]: ...

    def ports(self, rung: Rung) -> Sequence[Port]: ...


class Trip:
    """One transfer on the rung that was chosen for it."""

    def __init__(
        self,
        costs: Costs,
        number: int,
        alike: Sequence[Rung],
        learn: Callable[[Outcome], None],
        clock: Callable[[], float],
    ) -> None:
        self._costs = costs
        self._number = number
        self._alike = alike
        self._learn = learn
        self._clock = clock
        self._began = clock()
        self._outcome: Outcome | None = None
        self._sent: jobs.Sent | None = None

    def end(self) -> None:
        """Nothing more is under way."""
        self._costs.end(self._number)

    def closed(self, outcome: Outcome) -> None:
        now = self._clock()
        self.end()
        self._outcome = outcome
        if not outcome.reason:
            self._learn(outcome)
        elif blamed(outcome.reason):
            for rung in self._alike:
                self._costs.failed(rung, now - self._began, now)
        self._measure()

    def sent(self, job: jobs.Sent) -> None:
        self._sent = job
        self._measure()

    def _measure(self) -> None:
        outcome, sent = self._outcome, self._sent
        if outcome is None or sent is None or outcome.reason or not outcome.bytes:
            return
        seconds = sent.link_s or sent.lead_s + outcome.ms / 1000 - sent.starved_s
        self._costs.took(outcome.rung, outcome.bytes + sent.ahead, seconds, self._clock())


class Choosing:
    """All pairs of this instance."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, devices: Path = _DEVICES) -> None:
        self._clock = clock
        self._devices = devices
        self._pairs: OrderedDict[str, Costs] = OrderedDict()
        self._ports: dict[str, dict[Rung, tuple[Port, ...]]] = {}
        self._token_bytes = float(_TOKEN_BYTES)
        self._numbers = itertools.count()

    def choose(self, peer: str, channel: Rungs, tokens: int, here_s: float | None) -> Choice | None:
        """For so many tokens' KV from this peer. None: the channel has no rung now.

        `here_s`: what computing them here would take; None: not known, or not allowed.
        """
        costs = self._costs(peer)
        rungs = channel.rungs
        ports = self._ports[peer] = {rung: tuple(channel.ports(rung)) for rung in rungs}
        for rung in rungs:
            if not costs.knows(rung):
                link = sum(link_rate(port.device, self._devices) for port in ports[rung])
                costs.know(rung, prior(rung, link))
        if not rungs:
            return None
        return costs.choose(self._size(tokens), rungs, self._clock(), here_s)

    def begin(self, peer: str, rung: Rung, tokens: int) -> Trip:
        """On the rung that was chosen."""
        costs, number = self._costs(peer), next(self._numbers)
        ports = self._ports.get(peer, {})
        mine = ports.get(rung)
        # What fails is the device: rungs over the same one are as bad.
        alike = [rung, *(other for other in ports if mine and other != rung and ports[other] == mine)]
        costs.begin(number, rung, self._size(tokens))
        return Trip(costs, number, alike, self._learn, self._clock)

    def _size(self, tokens: int) -> int:
        return int(tokens * self._token_bytes)

    def _learn(self, outcome: Outcome) -> None:
        if outcome.tokens and outcome.bytes:
            self._token_bytes = outcome.bytes / outcome.tokens

    def _costs(self, peer: str) -> Costs:
        costs = self._pairs.pop(peer, None) or Costs()
        self._pairs[peer] = costs
        while len(self._pairs) > _PAIRS:
            self._ports.pop(self._pairs.popitem(last=False)[0], None)
        return costs


def blamed(reason: str) -> bool:
    """Whether a transfer that ended like this says something of its rung: a peer that has gone does not."""
    if reason == "channel-closed":
        return False
    return reason in ("timeout", "checksum") or reason.startswith(("channel-", "rung-"))


def link_rate(device: str, devices: Path = _DEVICES) -> float:
    """Bytes a second of "mlx5_0:1"; 0: not known."""
    name, _, port = device.partition(":")
    folder = devices / name
    try:
        if not (folder / "device").exists():
            return 0.0
        word = (folder / "ports" / (port or "1") / "rate").read_text().split()[0]  # "100 Gb/sec (4X EDR)"
        return float(word) * 1e9 / 8
    except (OSError, ValueError, IndexError):
        return 0.0
