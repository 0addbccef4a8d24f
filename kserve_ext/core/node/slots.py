"""Which zygotes a node keeps (slots S0): one a runtime module, from the first start that could use it.

A zygote counts its memory like an instance, but gives way: when an instance needs that memory the zygote ends,
so to the outside its memory is free. One that the instance is to be forked from ends right after the fork: the two
share their pages, and without it the start would take as long as the imports. A zygote that dies is started again
with growing back-off. Nothing here starts or ends a process: the answers say which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from kserve_ext.core.facts import Resources
from kserve_ext.core.ids import InstanceID
from kserve_ext.core.node.admission import Held, Ledger

BACK_OFF_S = 1.0
BACK_OFF_MAX_S = 60.0

State = Literal["starting", "ready", "dead"]


@dataclass(slots=True)
class Zygote:
    state: State
    failures: int = 0  # deaths in a row without having been ready in between
    retry_at: float = 0.0


class Slots:
    """The zygotes of one node, in the node's ledger."""

    def __init__(
        self, ledger: Ledger, memory_mib: int, others: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        """`memory_mib` of each zygote, but for those in `others`."""
        self.ledger = ledger
        self._needs = Resources(memory_mib=memory_mib)
        self._others = {module: Resources(memory_mib=mib) for module, mib in others.items()}
        self.zygotes: dict[str, Zygote] = {}
        #: zygotes that have given their memory to an instance which has yet to be forked from them
        self._leaving: dict[str, InstanceID] = {}

    @property
    def free(self) -> Resources:
        """Free on the node if the zygotes ended."""
        free = self.ledger.free
        if not self.zygotes:
            return free
        for module in self.zygotes:
            if self.ledger.holds(_holder(module)):
                free = free.plus(self.ledger.held(_holder(module)).needs)
        return Resources(*(min(a, b) for a, b in zip(free, self.ledger.capacity, strict=True)))

    def needs(self, module: str) -> Resources:
        return self._others.get(module, self._needs)

    def ready(self) -> tuple[tuple[str, int], ...]:
        if not self.zygotes:
            return ()
        return tuple(sorted((module, 1) for module, z in self.zygotes.items() if z.state == "ready"))

    def want(self, module: str, now: float) -> bool:
        """True: start this zygote now. False: it is there, backs off, or does not fit beside the rest."""
        zygote = self.zygotes.get(module)
        if module in self._leaving or (
            zygote is not None and (zygote.state != "dead" or now < zygote.retry_at)
        ):
            return False
        if self.ledger.admit(_holder(module), self.needs(module)):
            return False
        self.zygotes[module] = Zygote("starting", zygote.failures if zygote else 0)
        return True

    def due(self, now: float) -> list[str]:
        """Dead zygotes whose back-off is over and that fit: to be started now."""
        dead = [module for module, z in self.zygotes.items() if z.state == "dead"]
        return [module for module in dead if self.want(module, now)]

    def adopt(self, module: str) -> None:
        """One that was found running."""
        self.ledger.adopt(_holder(module), Held(self.needs(module), ()))
        self.zygotes[module] = Zygote("starting")

    def is_ready(self, module: str) -> None:
        zygote = self.zygotes.get(module)
        if zygote is not None and zygote.state == "starting":
            zygote.state, zygote.failures = "ready", 0

    def died(self, module: str, now: float) -> None:
        """It ended without having been told to; one that was ended by make_room is already forgotten."""
        self._let_go(module)
        zygote = self.zygotes.get(module)
        if zygote is None or zygote.state == "dead":
            return
        self.ledger.release(_holder(module))
        zygote.state = "dead"
        zygote.retry_at = now + min(BACK_OFF_MAX_S, BACK_OFF_S * 2**zygote.failures)
        zygote.failures += 1

    def make_room(self, instance: InstanceID, needs: Resources, fork_from: str) -> list[str]:
        """The zygotes to end now so that `needs` fits; none if it fits already, or would not even then.

        That of `fork_from` is ended later: see `forked`.
        """
        if needs.fits(self.ledger.free) or not needs.fits(self.free):
            return []
        ended = []
        for module in sorted(self.zygotes, key=lambda m: self.zygotes[m].state == "ready"):
            if self.zygotes[module].state == "dead":
                continue
            self.ledger.release(_holder(module))
            del self.zygotes[module]
            if module == fork_from:
                self._leaving[module] = instance
                # both are there until the fork, but share their pages
                rest = self.needs(module).memory_mib - needs.memory_mib
                if rest > 0:
                    self.ledger.admit(_holder(module), Resources(memory_mib=rest))
            else:
                ended.append(module)
            if needs.fits(self.ledger.free):
                break
        return ended

    def forked(self, instance: InstanceID) -> list[str]:
        """The zygotes to end because this instance has been started, or never will be."""
        if not self._leaving:
            return []
        ended = [module for module, of in self._leaving.items() if of == instance]
        for module in ended:
            self._let_go(module)
        return ended

    @property
    def leaving(self) -> frozenset[str]:
        return frozenset(self._leaving)

    def _let_go(self, module: str) -> None:
        if self._leaving.pop(module, None) is not None and self.ledger.holds(_holder(module)):
            self.ledger.release(_holder(module))


def _holder(module: str) -> str:
    return f"zygote:{module}"
