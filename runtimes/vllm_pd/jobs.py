"""What decode and prefill say to each other on a channel's control connection. Token ids, never text.

`transfer` is a number that decode has chosen; it is unique among the transfers of the decode process.
"""

from __future__ import annotations

import msgspec


class _Job(msgspec.Struct, frozen=True, tag=True, array_like=True):
    transfer: int


class Prefill(_Job, frozen=True):
    """Decode -> prefill: compute this prompt; Reserve follows when decode has blocks for it."""

    request_id: str
    tokens: list[int]
    rung: str = ""  # that its blocks shall take; "" = the channel's best


class Reserve(_Job, frozen=True):
    """Decode -> prefill: write blocks skip, skip + 1, ... of the prompt to these."""

    skip: int
    targets: list[int]
    layers: int
    block_bytes: int


class Cancel(_Job, frozen=True):
    """Decode -> prefill: nobody waits for it any more."""

    reason: str


class Failed(_Job, frozen=True):
    """Prefill -> decode: it won't come, and nothing of it is under way any more."""

    reason: str


class Stopped(_Job, frozen=True):
    """Prefill -> decode: the answer to Cancel. Nothing of it is under way any more."""


class Computed(_Job, frozen=True):
    """Prefill -> decode: the prompt was computed between these unix times."""

    started: float
    ended: float


class Sent(_Job, frozen=True):
    """Prefill -> decode: everything is written; during `overlap` of that time (0 to 1) blocks were still computed."""

    overlap: float


Job = Prefill | Reserve | Cancel | Failed | Stopped | Computed | Sent

_decoder = msgspec.msgpack.Decoder(Job)


def encode(job: Job) -> bytes:
    return msgspec.msgpack.encode(job)


def decode(body: bytes) -> Job:
    """Raises one of UNREADABLE (kserve_ext/wire/messages/)."""
    job: Job = _decoder.decode(body)
    return job
