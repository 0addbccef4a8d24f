"""What KV transfer costs of the time to first token, from bandwidths and rates: the arithmetic behind modelled rows.

A prompt of n tokens is computed at `prefill_rate`, in chunks of `chunk` tokens; its KV goes GPU -> host -> wire ->
host -> GPU in pieces that the stages work on at once, so the slowest stage counts, and each other one is paid once,
for a piece. Serial: it leaves when all is computed. Overlapped: a chunk leaves while the next one is computed, and
only what is not hidden counts. Pure: nothing is measured here, and every figure made of it is labelled `modelled`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

GB = 1e9
#: Llama-3-70B: layers x KV heads x head size x (K and V) x bytes.
LLAMA_70B_TOKEN = 80 * 8 * 128 * 2 * 2


@dataclass(frozen=True)
class Path:
    """Bytes per second of each stage; `piece`: bytes that a stage hands on at once; `setup`: seconds a transfer."""

    down: float
    wire: float
    up: float
    piece: int = 8 << 20
    setup: float = 0.0

    def seconds(self, size: float) -> float:
        """From the first byte's departure to the last one's arrival."""
        if size <= 0:
            return 0.0
        stages = [self.down, self.wire, self.up]
        slowest = min(stages)
        piece = min(float(self.piece), size)
        others = sum(piece / stage for stage in stages) - piece / slowest
        return self.setup + size / slowest + others


@dataclass(frozen=True)
class Service:
    """A model where it runs. `others`: seconds to first token that are neither prefill nor transfer."""

    token_bytes: float
    prefill_rate: float  # tokens a second
    chunk: int = 2048
    others: float = 0.0


class Cost(NamedTuple):
    """Seconds to first token, and those of them that were spent on nothing but the transfer."""

    total: float
    transfer: float

    @property
    def share(self) -> float:
        return self.transfer / self.total


def serial(service: Service, path: Path, tokens: int) -> Cost:
    transfer = path.seconds(tokens * service.token_bytes)
    return Cost(tokens / service.prefill_rate + service.others + transfer, transfer)


def overlapped(service: Service, path: Path, tokens: int) -> Cost:
    """Chunk k may leave when it is computed and chunk k - 1 has gone."""
    computed = arrived = 0.0
    for number in range(math.ceil(tokens / service.chunk)):
        size = min(service.chunk, tokens - number * service.chunk)
        computed += size / service.prefill_rate
        arrived = max(computed, arrived) + path.seconds(size * service.token_bytes)
    return Cost(arrived + service.others, arrived - computed)


class Claim(NamedTuple):
    """One end of what the original reports: share of latency on TCP, speed-up, share on RDMA, latency saved."""

    tcp_share: float
    speed_up: float
    rdma_share: float
    saved: float


#: The two ends. Any two of the four fix the others: share' = (s/k) / (1 - s + s/k), saved = s (1 - 1/k).
ORIGINAL = (Claim(0.237, 7.4, 0.04, 0.205), Claim(0.374, 8.1, 0.068, 0.329))


def service_at(claim: Claim, tcp: Path, tokens: int, token_bytes: float = LLAMA_70B_TOKEN) -> Service:
    """The prefill rate at which TCP takes the claimed share of `tokens`."""
    transfer = tcp.seconds(tokens * token_bytes)
    return Service(token_bytes, tokens / (transfer / claim.tcp_share - transfer))


def slowed(rdma: Path, claim: Claim, tokens: int, token_bytes: float = LLAMA_70B_TOKEN) -> Path:
    """A TCP path, the claimed number of times slower than this one."""
    size = tokens * token_bytes
    wanted = rdma.seconds(size) * claim.speed_up
    low, high = wanted / 1e3, size / wanted * 2  # bytes a second: the wire's rate lies between
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if replace(rdma, wire=middle).seconds(size) > wanted else (low, middle)
    return replace(rdma, wire=high)
