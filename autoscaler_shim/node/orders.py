"""A node's orders between the wire and its machine: what a Start asks for, and what its verdict says to who asked."""

from __future__ import annotations

from kserve_ext.core.node.facts import Order, Verdict
from kserve_ext.core.node.machine import NodeMachine
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


def reply_of(verdict: Verdict, machine: NodeMachine, *, start: bool = False) -> StartReply:
    """With the status as it is after what the verdict brought about, to a `start` that was admitted a brief one."""
    admitted = not verdict.reason
    brief = start and admitted
    status = machine.status(brief=brief)
    return StartReply(admitted, verdict.reason, status, verdict.stale, verdict.moved, brief)
