"""What a failed work request means to a person: ibv_wc_status -> the channel's word, what happened, what to look at.

The numbers are those of enum ibv_wc_status in verbs.h. A queue pair that has failed answers everything else with
FLUSHED: whoever reports an error looks for the first one that is something else.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from runtimes.transport.channel import ChannelError, Reason

SUCCESS: Final = 0
FLUSHED: Final = 5


class Meaning(NamedTuple):
    name: str
    reason: Reason
    text: str


_STATUS: Final[dict[int, Meaning]] = {
    1: Meaning("LOC_LEN_ERR", "protocol", "a message is longer than the buffer that was posted for it"),
    2: Meaning(
        "LOC_QP_OP_ERR", "protocol", "the device does not understand the request (queue pair operation)"
    ),
    3: Meaning(
        "LOC_EEC_OP_ERR", "protocol", "the device does not understand the request (end-to-end context)"
    ),
    4: Meaning("LOC_PROT_ERR", "memory", "local memory is not registered with the key that was used"),
    FLUSHED: Meaning("WR_FLUSH_ERR", "closed", "the queue pair has ended"),
    6: Meaning("MW_BIND_ERR", "memory", "a memory window could not be bound"),
    7: Meaning(
        "BAD_RESP_ERR", "protocol", "the peer's device answered with something else than what was asked"
    ),
    8: Meaning(
        "LOC_ACCESS_ERR", "memory", "local memory may not be written: it was registered without that right"
    ),
    9: Meaning(
        "REM_INV_REQ_ERR", "protocol", "the peer's device refuses the request: too long, or not allowed"
    ),
    10: Meaning(
        "REM_ACCESS_ERR",
        "memory",
        "the peer's memory is not registered (any more) for this key, place and right",
    ),
    11: Meaning("REM_OP_ERR", "closed", "the peer's device could not carry it out"),
    12: Meaning(
        "RETRY_EXC_ERR",
        "unreachable",
        "the peer's device does not answer: link down, peer gone, or a lossy network",
    ),
    13: Meaning(
        "RNR_RETRY_EXC_ERR", "timeout", "the peer takes no messages: nothing is posted to receive them"
    ),
    14: Meaning("LOC_RDD_VIOL_ERR", "protocol", "reliable datagram domain violated"),
    15: Meaning("REM_INV_RD_REQ_ERR", "protocol", "reliable datagram request refused"),
    16: Meaning("REM_ABORT_ERR", "closed", "the peer has aborted the operation"),
    17: Meaning("INV_EECN_ERR", "protocol", "end-to-end context number unknown"),
    18: Meaning("INV_EEC_STATE_ERR", "protocol", "end-to-end context in the wrong state"),
    19: Meaning("FATAL_ERR", "closed", "the device has failed: see the kernel's log"),
    20: Meaning("RESP_TIMEOUT_ERR", "timeout", "the peer's device does not answer in time"),
    21: Meaning("GENERAL_ERR", "closed", "the device reports an error without a kind: see the kernel's log"),
}


def meaning(status: int) -> Meaning:
    return _STATUS.get(status) or Meaning(
        f"status {status}", "closed", "an error that this version does not know"
    )


def error(status: int, what: str, place: str, vendor: int = 0) -> ChannelError:
    """`what` was asked for, as in "WRITE of 4096 bytes"; `place` is the device and its peer."""
    known = meaning(status)
    extra = f", vendor error {vendor:#x}" if vendor else ""
    return ChannelError(known.reason, f"{what} on {place}: {known.text} ({known.name}{extra})")
