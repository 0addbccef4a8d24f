"""Our Prometheus metrics of KV transfers; they appear in /metrics beside vLLM's."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

TRANSFERS = Counter(
    "galaxy_kv_transfers", "KV transfers into this engine, by rung and outcome", ["rung", "outcome"]
)
BYTES = Counter("galaxy_kv_transfer_bytes", "Bytes of KV that landed in this engine", ["rung"])
TOKENS = Counter("galaxy_kv_transfer_tokens", "Prompt tokens whose KV came whole from prefill", ["rung"])
SECONDS = Histogram(
    "galaxy_kv_transfer_seconds",
    "From the first write to the end of a whole transfer",
    ["rung"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
DECISIONS = Counter("galaxy_prefill_decisions", "Where prompts were computed, and why", ["where", "reason"])
THRESHOLD = Gauge(
    "galaxy_prefill_threshold_tokens", "Prompts with fewer uncached tokens are computed by this engine"
)
