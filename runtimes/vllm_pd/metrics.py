"""Our Prometheus metrics of KV transfers and channels; they appear in /metrics beside vLLM's.

`peer` is the other instance of the pair; its series end when it is no longer known.
"""

from __future__ import annotations

from collections.abc import Collection

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

TRANSFERS = Counter(
    "galaxy_kv_transfers",
    "KV transfers of this engine, by pair, rung and outcome (whole, or why not)",
    ["peer", "rung", "outcome"],
)
BYTES = Counter(
    "galaxy_kv_transfer_bytes", "Bytes of KV that went between this engine and its peer", ["peer", "rung"]
)
TOKENS = Counter(
    "galaxy_kv_transfer_tokens", "Prompt tokens whose KV came whole from prefill", ["peer", "rung"]
)
SECONDS = Histogram(
    "galaxy_kv_transfer_seconds",
    "From the first write to the end of a whole transfer",
    ["peer", "rung"],
    buckets=_SECONDS,
)
OVERLAP = Histogram(
    "galaxy_kv_transfer_overlap",
    "Share of a transfer's time during which prefill was still computing",
    buckets=(0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0),
)
CHANNELS = Gauge("galaxy_kv_channels", "Channels to the other role's instances, by state", ["state"])
QUEUE_PAIRS = Gauge("galaxy_kv_queue_pairs", "RDMA queue pairs in use")
DIAL_SECONDS = Histogram(
    "galaxy_kv_channel_dial_seconds", "How long it took until a channel stood", buckets=_SECONDS
)
CHANNEL_FAILURES = Counter(
    "galaxy_kv_channel_failures", "Channels that were lost or could not be had, by reason", ["reason"]
)
DECISIONS = Counter("galaxy_prefill_decisions", "Where prompts were computed, and why", ["where", "reason"])
THRESHOLD = Gauge(
    "galaxy_prefill_threshold_tokens", "Prompts with fewer uncached tokens are computed by this engine"
)

_BY_PAIR = (TRANSFERS, BYTES, TOKENS, SECONDS)
_known: set[str] = set()


def transferred(peer: str, rung: str, reason: str, size: int, seconds: float, tokens: int = 0) -> None:
    """A transfer has ended; `reason` is "" when it is whole."""
    if peer:
        _known.add(peer)
    TRANSFERS.labels(peer, rung, reason or "whole").inc()
    BYTES.labels(peer, rung).inc(size)
    if not reason:
        TOKENS.labels(peer, rung).inc(tokens)
        SECONDS.labels(peer, rung).observe(seconds)


def keep(peers: Collection[str]) -> None:
    """The series of all other peers end."""
    for peer in _known - set(peers):
        for metric in _BY_PAIR:
            metric.remove_by_labels({"peer": peer})
    _known.intersection_update(peers)
