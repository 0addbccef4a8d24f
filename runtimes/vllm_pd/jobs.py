"""What decode and prefill say to each other on a channel's control connection. Token ids, never text.

`transfer` is a number that the receiver of the blocks has chosen; it is unique among the transfers into its process.
Numbers have the bounds that a frame gives them: what does not fit is no word of a peer.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from kserve_ext.wire.messages import UNREADABLE
from runtimes.transport.channel import ChannelError

_Number = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
_Blocks = Annotated[list[_Number], msgspec.Meta(max_length=1 << 20)]


class _Job(msgspec.Struct, frozen=True, tag=True, array_like=True):
    transfer: _Number


class Prefill(_Job, frozen=True):
    """Decode -> prefill: compute this prompt; Reserve follows when decode has blocks for it."""

    request_id: str
    tokens: list[int]
    rung: str = ""  # that its blocks shall take; "" = the channel's best
    held: _Number = (
        0  # blocks at the prompt's start that decode seems to have; Reserve says how many it keeps
    )


class Reserve(_Job, frozen=True):
    """Decode -> prefill: write blocks skip, skip + 1, ... of the prompt to these."""

    skip: _Number
    targets: _Blocks
    layers: int
    block_bytes: int


class Claim(_Job, frozen=True):
    """Receiver -> sender: write what you have, or get, of blocks skip, skip + 1, ... of transfer `source` to these.

    `source` is a number that was told otherwise: between ranks by their fronts; by prefill, which fetches what decode
    holds, the number that decode gave the transfer. Of each block `block_bytes` from `offset` on are wanted.
    """

    source: _Number
    skip: _Number
    targets: _Blocks
    layers: int
    block_bytes: int
    offset: int
    rung: str


class Cancel(_Job, frozen=True):
    """Receiver -> sender: nobody waits for it any more."""

    reason: str


class Renew(_Job, frozen=True):
    """Receiver -> sender: it still wants these, which its engine said just now. Says nothing of `transfer`."""

    transfers: list[int]


class Failed(_Job, frozen=True):
    """Sender -> receiver: it won't come, and nothing of it is under way any more."""

    reason: str


class Stopped(_Job, frozen=True):
    """Sender -> receiver: the answer to Cancel. Nothing of it is under way any more."""


class Computed(_Job, frozen=True):
    """Prefill -> decode: the prompt was computed between these unix times."""

    started: float
    ended: float


class Sent(_Job, frozen=True):
    """Sender -> receiver: everything is written; during `overlap` of that time (0 to 1) blocks were still computed.

    The rest is for the cost model: what the link took, where the sender knows it (0: it doesn't); else how long its
    first batch took to go out, and how long there was nothing to send. `ahead`: bytes of others that went meanwhile.
    """

    overlap: float
    link_s: float = 0.0
    lead_s: float = 0.0
    starved_s: float = 0.0
    ahead: int = 0


class Ranks(_Job, frozen=True):
    """Prefill's front -> decode's front: where the ranks of the engine listen. Says nothing of a transfer."""

    addrs: list[str]


#: What the receiver of blocks says, and what their sender says: on a channel either side may be both.
FromReceiver = Prefill | Reserve | Claim | Cancel | Renew
FromSender = Failed | Stopped | Computed | Sent

Job = FromReceiver | FromSender | Ranks

_decoder = msgspec.msgpack.Decoder(Job)


def encode(job: Job) -> bytes:
    return msgspec.msgpack.encode(job)


def decode(body: bytes) -> Job:
    """Raises one of UNREADABLE (kserve_ext/wire/messages/)."""
    job: Job = _decoder.decode(body)
    return job


def read(body: bytes) -> Job:
    """Raises ChannelError."""
    try:
        return decode(body)
    except UNREADABLE as error:
        raise ChannelError("protocol", str(error)) from error
