"""A rank's half of the connector, in the process that vLLM has started for the rank."""

from __future__ import annotations

from typing import Any

from runtimes.vllm_pd.home_client import cluster_key
from runtimes.vllm_pd.ranks.decode_rank import DecodeRank
from runtimes.vllm_pd.ranks.prefill_rank import PrefillRank
from runtimes.vllm_pd.ranks.words import PeerRanks, Settings

#: The one of this process.
RANK: list[DecodeRank | PrefillRank] = []


def make_rank(plain: dict[str, Any], rank: int) -> DecodeRank | PrefillRank:
    settings = Settings.read(plain)
    made = (DecodeRank if settings.role == "decode" else PrefillRank)(settings, rank, cluster_key())
    RANK[:] = [made]
    return made


def prepare(worker: Any, peer: PeerRanks) -> None:
    """Run in every rank's process by the executor: channels to this peer are dialled. Does not wait for them."""
    for rank in RANK:
        if isinstance(rank, DecodeRank):
            rank.prepare(peer)
