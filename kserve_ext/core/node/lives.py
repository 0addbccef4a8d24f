"""What happens to the instances of one node between their admission and their end, and who is told of it.

The machine of kserve_ext/core/node/machine.py decides whether something may be asked; here it is done: the model is
fetched, the process launched, watched, drained, killed when its time is up. An instance holds its part of the
ledger until its process is gone, and stays known until its home has acknowledged the end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from kserve_ext.core.control.facts import kind_of
from kserve_ext.core.facts import Holding, InstanceState, Mark
from kserve_ext.core.ids import InstanceID, NodeID, RevisionKey
from kserve_ext.core.node.admission import Held, Ledger
from kserve_ext.core.node.facts import (
    Ended,
    EndZygote,
    Fetch,
    Instruction,
    Launch,
    Order,
    Report,
    Signal,
    StartZygote,
    Tell,
    Timing,
)
from kserve_ext.core.node.homes import Homes
from kserve_ext.core.node.instance_life import End, Life, holding_of, how_it_ended
from kserve_ext.core.node.slots import Slots

KEEP_ENDED_S = 60.0  # an end that no home takes notice of is told this long
CHANNEL_MARK = "channel_listening"  # of a prefill instance: its KV channels can be opened
KEEP_IDS = 10_000  # ended ids remembered, so that a late duplicate of a Start starts nothing


class Lives:
    def __init__(self, node: NodeID, ledger: Ledger, slots: Slots, homes: Homes, timing: Timing) -> None:
        self.node, self.timing = node, timing
        self.ledger, self.slots, self.homes = ledger, slots, homes
        #: everything that holds resources, and what has ended until its home knows
        self.known: dict[InstanceID, Life] = {}
        #: how many of them have not ended
        self.running = 0
        self._by_revision: dict[RevisionKey, dict[InstanceID, Life]] = {}
        #: what each revision holds here, until one of its instances changes
        self._held: dict[RevisionKey, Holding | None] = {}
        self._gone: OrderedDict[InstanceID, None] = OrderedDict()

    def has_ended(self, instance: InstanceID) -> bool:
        life = self.known.get(instance)
        return life.ended if life is not None else instance in self._gone

    def of(self, key: RevisionKey) -> list[Life]:
        return list(self._by_revision.get(key, {}).values())

    def holdings(self) -> tuple[Holding, ...]:
        """What could become free if somebody gave it up: by revision, without what drains already."""
        found = (self._holding(key) for key in self._by_revision)
        return tuple(holding for holding in found if holding is not None)

    def _holding(self, key: RevisionKey) -> Holding | None:
        if key not in self._held:
            lives = self._by_revision.get(key, {}).values()
            self._held[key] = holding_of([life for life in lives if life.stays])
        return self._held[key]

    def check(self) -> None:
        for key in self._by_revision:
            staying = [life for life in self.of(key) if life.stays]
            assert self._holding(key) == holding_of(staying), f"what {key} holds is out of date"
        assert self.running == sum(not life.ended for life in self.known.values())
        assert self.known == {i: life for of in self._by_revision.values() for i, life in of.items()}

    # --- outcomes of instructions

    def fetched(self, instance: InstanceID, detail: str, now: float) -> list[Instruction]:
        life = self.known.get(instance)
        if life is None or life.state != "fetching":
            return []
        life.mark(Mark("model_cached", now, detail))
        out: list[Instruction] = []
        self._launch(life, now, out)
        self._changed(life, now, out)
        return out

    def fetch_failed(
        self, instance: InstanceID, reason: str, permanent: bool, now: float
    ) -> list[Instruction]:
        life = self.known.get(instance)
        if life is None or life.state != "fetching":
            return []
        out: list[Instruction] = []
        self.finish(life, End(True, reason, permanent), now, out)
        return out

    def launched(self, instance: InstanceID, how: str, generation: int, now: float) -> list[Instruction]:
        """The process exists. One that was stopped meanwhile drains at once."""
        life = self.known[instance]
        life.launched, life.generation = True, generation
        life.mark(Mark("forked", now, how))
        out: list[Instruction] = [EndZygote(module) for module in self.slots.forked(instance)]
        if life.state == "draining":
            out.append(Signal(instance, kill=now >= life.deadline, kill_at=life.deadline))
        return out

    def launch_failed(
        self, instance: InstanceID, reason: str, permanent: bool, now: float
    ) -> list[Instruction]:
        life = self.known[instance]
        out: list[Instruction] = []
        self.finish(life, life.end or End(True, reason, permanent), now, out)
        return out

    def observed(
        self, instance: InstanceID, phase: str, addr: str, marks: Sequence[Mark], now: float
    ) -> list[Instruction]:
        """What the process says of itself, or a probe of it: "ready", "draining", or just marks."""
        life = self.known.get(instance)
        if life is None or life.ended:
            return []
        life.mark(*marks)
        out: list[Instruction] = []
        if phase == "ready" and life.state == "starting":
            life.addr = addr
            life.to("ready", now)
            self._changed(life, now, out)
            life.waiting = ()
        elif life.state == "starting" and not life.addr and any(mark.name == CHANNEL_MARK for mark in marks):
            life.addr = addr  # decode instances dial it while it loads
            self._changed(life, now, out)
        elif phase == "draining" and life.state in ("starting", "ready"):
            limit = life.revision.command.drain_s + self.timing.kill_grace_s
            life.end = End(False, "it was asked to drain by somebody other than its node agent")
            life.to("draining", now, deadline=now + limit)
            self._changed(life, now, out)
        return out

    def exited(
        self, instance: InstanceID, code: int | None, signum: int | None, detail: str, now: float
    ) -> list[Instruction]:
        """The process is gone, with everything in its group."""
        life = self.known.get(instance)
        if life is None or life.ended:
            return []
        out: list[Instruction] = []
        end = life.end or how_it_ended(code, signum, detail)
        if life.state == "ready":
            end = end._replace(permanent=False)  # it has worked before
        self.finish(life, end, now, out)
        return out

    def hung(self, instance: InstanceID, quiet_s: float, now: float) -> list[Instruction]:
        """Its process lives, and has given no sign of life for so long."""
        life = self.known.get(instance)
        out: list[Instruction] = []
        if life is not None and life.state == "ready":
            self._kill(life, f"its process has given no sign of life for {quiet_s:.0f} s", now, out)
        return out

    def acknowledged(
        self, tell: Tell, home: bool, unwanted: Sequence[InstanceID], epoch: int, now: float
    ) -> list[Instruction]:
        """The answer to a Tell. Only a home's counts, and not that of one under an older epoch."""
        out: list[Instruction] = []
        if not home or epoch < self.homes.obeyed(tell.revision):
            self.tell_failed(tell, now)
            return out
        if tell.full:
            self.homes.heard(tell.revision, tell.addr, now)
        for told in tell.instances:
            life = self.known.get(told.id)
            if life is None:
                continue
            life.acked_at = now
            if told.state in ("failed", "gone"):
                self._forget(life)
            elif told.id in unwanted:
                drain_s = life.revision.command.drain_s
                self.stop(life, End(False, "its home does not want it"), drain_s, now, out)
        if tell.full and not tell.instances and not self.of(tell.revision):
            self.homes.forget(tell.revision)  # its home knows that nothing of it is left here
        return out

    def tell_failed(self, tell: Tell, now: float) -> None:
        if tell.home:
            self.homes.retry(tell.revision, tell.addr, now, full=tell.full)

    # --- found after a restart of the agent

    def adopt(
        self,
        order: Order,
        state: InstanceState,
        addr: str,
        generation: int,
        held: Held,
        end: End | None,
        now: float,
    ) -> list[Instruction]:
        """A process that was found running after a restart of the agent."""
        life = Life(
            order.instance, order.revision, order.epoch, now, (), state, addr, generation, launched=True
        )
        life.mark(*order.marks, Mark("adopted", now, "its node agent was started again"))
        life.end = end
        if state == "starting":
            life.deadline = now + order.revision.command.start_timeout_s
        elif state == "draining":
            life.end = end or End(False, "it was draining when its node agent came back")
            life.deadline = now + order.revision.command.drain_s + self.timing.kill_grace_s
        self.ledger.adopt(life.id, held)
        self._enter_found(life, order, now)
        return [Report()]

    def found_dead(self, order: Order, end: End, generation: int, now: float) -> None:
        """An instance whose process ended while the agent was away: its home has yet to hear of it."""
        life = Life(
            order.instance, order.revision, order.epoch, now, (), "starting", "", generation, launched=True
        )
        life.mark(*order.marks)
        life.end = end
        life.to("failed" if end.failed else "gone", now, deadline=now + KEEP_ENDED_S)
        self._enter_found(life, order, now)

    # --- asked for by the machine

    def add(self, life: Life) -> None:
        self.known[life.id] = life
        self._by_revision.setdefault(life.revision.key, {})[life.id] = life
        self._held.pop(life.revision.key, None)
        self.running += not life.ended

    def begin(self, life: Life, now: float, out: list[Instruction]) -> list[Instruction]:
        module = life.revision.command.zygote
        if module and self.slots.want(module, now):
            out.append(StartZygote(module))
        if not life.revision.model.uri:
            self._launch(life, now, out)  # the answer to who asked says it, and home hears that
            return out
        life.to("fetching", now, life.revision.model.key)
        out.append(Fetch(life.id))
        self._changed(life, now, out)
        return out

    def _launch(self, life: Life, now: float, out: list[Instruction]) -> None:
        life.to("starting", now, deadline=now + life.revision.command.start_timeout_s)
        out.append(Launch(life.id, self.ledger.held(life.id).devices))
        self._held.pop(life.revision.key, None)

    def stop(self, life: Life, end: End, drain_s: float, now: float, out: list[Instruction]) -> None:
        if life.ended:
            return
        if life.state in ("reserved", "fetching"):
            self.finish(life, end, now, out)
            return
        deadline = now + drain_s + self.timing.kill_grace_s
        if life.state == "draining":
            life.deadline = min(life.deadline, deadline)  # asked twice: the shorter patience counts
            return
        life.end = end
        life.to("draining", now, end.reason, deadline)
        out.append(Signal(life.id, kill=False, kill_at=deadline))
        self._changed(life, now, out)

    def tick(self, life: Life, now: float, out: list[Instruction]) -> None:
        if life.ended:
            if now >= life.deadline:
                self._forget(life)
        elif now >= life.deadline:
            if life.state == "reserved":
                self.finish(life, End(False, "its reservation lapsed"), now, out)
            elif life.state == "starting":
                limit = life.revision.command.start_timeout_s
                why = f"not ready {limit:g} s after its start: see its log, or raise the start timeout"
                self._kill(life, why, now, out)
            elif life.state == "draining":
                life.deadline = now + self.timing.kill_grace_s
                life.mark(Mark("killed", now, "it had not drained in time"))
                out.append(Signal(life.id, kill=True))
        elif now - life.acked_at > self.timing.orphan_s and not kind_of(life.revision.key):
            # A control function serves on while there is no controller.
            why = f"no home has taken notice of it for {self.timing.orphan_s:g} s"
            self.stop(life, End(False, why), life.revision.command.drain_s, now, out)

    def _kill(self, life: Life, why: str, now: float, out: list[Instruction]) -> None:
        """It has failed, and ends at once."""
        life.end = End(True, why)
        life.to("draining", now, why, now + self.timing.kill_grace_s)
        out.append(Signal(life.id, kill=True))
        self._changed(life, now, out)

    def finish(self, life: Life, end: End, now: float, out: list[Instruction]) -> None:
        self.ledger.release(life.id)
        out.extend(EndZygote(module) for module in self.slots.forked(life.id))
        self.running -= 1
        life.end = end
        life.to("failed" if end.failed else "gone", now, end.reason, now + KEEP_ENDED_S)
        out.append(Ended(life.id))
        self._changed(life, now, out)
        out.append(Report())

    def _changed(self, life: Life, now: float, out: list[Instruction]) -> None:
        """Home and the waiting shards are told at once."""
        key = life.revision.key
        self.homes.changed(key, now)
        self._held.pop(key, None)
        home, epoch = self.homes.addr(key), self.homes.epoch(key)
        if not home and not life.waiting:
            return
        facts = (life.fact(self.node),)
        if home:
            out.append(Tell(key, home, True, facts, False, epoch))
        if life.state != "fetching":
            out.extend(Tell(key, a, False, facts, False, epoch) for a in life.waiting if a != home)

    def _enter_found(self, life: Life, order: Order, now: float) -> None:
        self.add(life)
        key = life.revision.key
        if order.epoch >= self.homes.obeyed(key):
            self.homes.obey(key, order.epoch, order.home_addr)
        self.homes.follow(life.revision, now)

    def _forget(self, life: Life) -> None:
        del self.known[life.id]
        of = self._by_revision[life.revision.key]
        del of[life.id]
        self._held.pop(life.revision.key, None)
        if not of:
            del self._by_revision[life.revision.key]
        self._gone[life.id] = None
        if len(self._gone) > KEEP_IDS:
            self._gone.popitem(last=False)
