"""A node's orders between the wire and its machine: what a Start asks for, and what its verdict says to who asked."""

from __future__ import annotations

from kserve_ext.core.facts import NodeStatus
from kserve_ext.core.node.facts import Order, Verdict
from kserve_ext.wire.messages import Start, StartReply


def order_of(message: Start) -> Order:
    return Order(
        message.instance,
        message.revision,
        message.epoch,
        message.home,
        message.home_addr,
        message.waiting,
        message.reserve,
        message.reserve_s,
        message.marks,
        message.term,
    )


def reply_of(verdict: Verdict, status: NodeStatus) -> StartReply:
    """`status`: as it is after what the verdict brought about."""
    return StartReply(not verdict.reason, verdict.reason, status, verdict.stale, verdict.moved)
