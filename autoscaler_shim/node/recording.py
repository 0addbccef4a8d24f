"""What a node agent writes into its history (kserve_ext/rpc/history.py): capacity, verdicts, lives, epochs obeyed."""

from __future__ import annotations

from collections.abc import Iterable

from kserve_ext.core.ids import InstanceID, RevisionKey
from kserve_ext.core.node.facts import Ended, Instruction, Launch, Order, Verdict
from kserve_ext.core.node.machine import NodeMachine
from kserve_ext.rpc.history import History


class NodeHistory:
    """Every method writes one line, or none; callers needn't ask whether anything is written."""

    def __init__(self, history: History, machine: NodeMachine) -> None:
        self.history, self.machine = history, machine

    def opened(self) -> None:
        """With what an earlier agent has left."""
        if self.history.on:
            found = [
                [life.id, life.revision.key, life.state, life.revision.needs, life.epoch]
                for life in self.machine.lives.known.values()
                if not life.ended
            ]
            self.history.say("opened", capacity=self.machine.ledger.capacity, found=found)

    def start(self, order: Order, verdict: Verdict) -> None:
        if self.history.on:
            self.history.say(
                "start",
                instance=order.instance,
                revision=order.revision.key,
                needs=order.revision.needs,
                epoch=order.epoch,
                home=order.home,
                reserve=order.reserve,
                refused=verdict.reason,
                stale=verdict.stale,
            )

    def commit(self, instances: Iterable[InstanceID], epoch: int, cancel: bool, verdict: Verdict) -> None:
        if self.history.on:
            ids = list(instances)
            self.history.say("commit", instances=ids, epoch=epoch, cancel=cancel, refused=verdict.reason)

    def stop(self, instance: InstanceID, epoch: int, reason: str, verdict: Verdict) -> None:
        """Of one that is known here; before it is carried out."""
        if self.history.on:
            life = self.machine.lives.known.get(instance)
            key = life.revision.key if life is not None else ""
            self.history.say(
                "stop", instance=instance, revision=key, epoch=epoch, why=reason, stale=verdict.stale
            )

    def recall(self, epoch: int, revisions: Iterable[RevisionKey], highest: int) -> None:
        if self.history.on:
            self.history.say("recall", epoch=epoch, revisions=list(revisions), obeyed=epoch >= highest)

    def carried(self, i: Instruction) -> None:
        if not self.history.on:
            return
        if isinstance(i, Launch):
            self.history.say("launch", instance=i.instance, devices=i.devices)
        elif isinstance(i, Ended):
            life = self.machine.lives.known.get(i.instance)
            why = life.end.reason if life is not None and life.end is not None else ""
            self.history.say("ended", instance=i.instance, why=why)
