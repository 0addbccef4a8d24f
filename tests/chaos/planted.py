"""Bugs that are planted into the real parts, to see that the checker finds them; the product's code stays clean.

`python -m tests.chaos.planted BUG MODULE ARGS` runs one part with a bug, as `python -m MODULE ARGS` would without;
the nursery plants it into all parts of a run (`python -m tests.chaos --bug BUG`). Each replaces a method or two of
the real classes before any part runs.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

Plant = Callable[[], None]


def lost_instance() -> None:
    """A home takes in nothing that it didn't start itself: what its predecessor started is known to nobody."""
    from kserve_ext.core.dispatch.fleet import Fleet
    from kserve_ext.core.dispatch.take_over import TakeOver

    observe = Fleet.observe

    def forgetful(self: Fleet, facts: Any, *rest: Any, **more: Any) -> Any:
        return observe(self, [f for f in facts if f.id in self.known], *rest, **more)

    setattr(Fleet, "observe", forgetful)  # noqa: B010
    setattr(TakeOver, "fill_in", lambda *_: None)  # noqa: B010


def double_home() -> None:
    """Every Dispatch function takes itself for the home of every revision."""
    from activator_replacement.homes import Homes

    setattr(Homes, "home_of", lambda self, home_key: self.me)  # noqa: B010


def stale_epoch() -> None:
    """A node forgets which epoch it has obeyed: an order of a former home is as good as any."""
    from kserve_ext.core.node.homes import Homes

    obey = Homes.obey

    def obeys(self: Homes, key: Any, epoch: int, addr: str) -> None:
        setattr(Homes, "obeyed", lambda *_: 0)  # noqa: B010
        obey(self, key, epoch, addr)

    setattr(Homes, "obeyed", lambda *_: 0)  # noqa: B010
    setattr(Homes, "obey", obeys)  # noqa: B010


def leaked_lease() -> None:
    """What a Dispatch function used is never free again when it has died."""
    from kserve_ext.core.dispatch.leases import Leases
    from kserve_ext.core.dispatch.revision_home import RevisionHome

    setattr(Leases, "expire", lambda *_: False)  # noqa: B010
    setattr(Leases, "void", lambda *_: False)  # noqa: B010
    setattr(Leases, "left", lambda *_: None)  # noqa: B010
    setattr(RevisionHome, "shard_ended", lambda *_: None)  # noqa: B010
    report = Leases.report

    def merged(self: Leases, shard: Any, demand: Any, term: int, now: float) -> bool:
        return report(self, f"{shard}.{demand.incarnation}", demand, term, now)  # type: ignore[arg-type]

    setattr(Leases, "report", merged)  # noqa: B010


def over_commit() -> None:
    """A node admits whatever it is asked for, and says that all of it is free."""
    from kserve_ext.core.node.admission import Held, Ledger

    def admit(self: Ledger, holder: str, needs: Any) -> str:
        self._enter(holder, Held(needs, ()))
        return ""

    setattr(Ledger, "admit", admit)  # noqa: B010
    setattr(Ledger, "free", property(lambda self: self.capacity))  # noqa: B010


def lost_request() -> None:
    """Of the requests that are held, every other one is let go and sent nowhere."""
    from kserve_ext.core.dispatch.shard import Shard

    drain = Shard.drain

    def leaky(self: Any, key: Any, now: float) -> Any:
        for number, (request, tracker) in enumerate(drain(self, key, now)):
            if number % 2:
                yield request, tracker

    setattr(Shard, "drain", leaky)  # noqa: B010


def answered_twice() -> None:
    """What an instance answers is written to the client twice."""
    from activator_replacement.http1 import ClientProtocol

    write = ClientProtocol.write

    def twice(self: Any, data: bytes) -> None:
        write(self, data)
        if b'"request": "' in data:
            write(self, data)

    setattr(ClientProtocol, "write", twice)  # noqa: B010


def placed_twice() -> None:
    """A start whose answer is late is repeated on another node, under the same id."""
    from kserve_ext.core.schedule.machine import ScheduleMachine

    lost = ScheduleMachine.start_lost

    def again(self: Any, op: int, instance: Any, node: Any, reason: str, *, sent: bool) -> Any:
        return lost(self, op, instance, node, reason, sent=False)

    setattr(ScheduleMachine, "start_lost", again)  # noqa: B010


def bound_passed() -> None:
    """A home knows no most of instances."""
    from kserve_ext.core.dispatch.revision_home import RevisionHome

    init = RevisionHome.__init__

    def unbounded(self: Any, me: Any, revision: Any, *rest: Any) -> None:
        init(self, me, revision._replace(scale=revision.scale._replace(max=0)), *rest)

    setattr(RevisionHome, "__init__", unbounded)  # noqa: B010


def never_stopped() -> None:
    """A node says yes to every Stop, and stops nothing."""
    from kserve_ext.core.node.lives import Lives

    setattr(Lives, "stop", lambda *_: None)  # noqa: B010


def not_recalled() -> None:
    """A home that takes over gives slots out before it has asked who uses them."""
    from kserve_ext.core.dispatch.revision_home import RevisionHome

    take_over = RevisionHome.take_over

    def hasty(self: Any, term: int, take: Any, now: float) -> None:
        take_over(self, term, take, now)
        take.silent_shards.clear()
        take.ghosts.clear()
        self.leases.frozen_until = now

    setattr(RevisionHome, "take_over", hasty)  # noqa: B010


def not_told() -> None:
    """A Dispatch function takes in nothing of who left the view before it came."""
    from kserve_ext.core.dispatch.ghosts import Ghosts

    view = Ghosts.view
    setattr(Ghosts, "view", lambda self, members, left, now: view(self, members, (), now))  # noqa: B010


def not_fenced() -> None:
    """A node doesn't tell an instance how many requests it may serve at once."""
    from autoscaler_shim.node.process_backend import ProcessBackend

    environment = ProcessBackend._environment

    def silent(self: Any, spec: Any) -> Any:
        return {k: v for k, v in environment(self, spec).items() if k != "GALAXY_CONCURRENCY"}

    setattr(ProcessBackend, "_environment", silent)  # noqa: B010


def half_a_gang() -> None:
    """Of a gang that doesn't fit as a whole, the part that fits is started."""
    from kserve_ext.core.schedule.facts import SendCommit
    from kserve_ext.core.schedule.machine import ScheduleMachine

    release = ScheduleMachine._release_gang

    def commits(self: Any, op_id: int, op: Any, out: list[Any]) -> None:
        release(self, op_id, op, out)
        out[:] = [i._replace(cancel=False) if isinstance(i, SendCommit) else i for i in out]

    setattr(ScheduleMachine, "_release_gang", commits)  # noqa: B010


def epoch_back() -> None:
    """A controller that comes back begins anew, whatever was stored and whatever members have seen."""
    from kserve_ext.core.facts import View
    from kserve_ext.core.membership import MembershipMachine

    init, join, report = MembershipMachine.__init__, MembershipMachine.join, MembershipMachine.report

    def begins(self: Any, stored: Any, now: float, **more: Any) -> None:
        init(self, View(), now)

    def joins(self: Any, member: Any, epoch: int, connection: int, now: float) -> Any:
        return join(self, member, 0, connection, now)

    def reports(self: Any, member: Any, incarnation: int, epoch: int, connection: int, now: float) -> bool:
        return report(self, member, incarnation, 0, connection, now)

    setattr(MembershipMachine, "__init__", begins)  # noqa: B010
    setattr(MembershipMachine, "join", joins)  # noqa: B010
    setattr(MembershipMachine, "report", reports)  # noqa: B010


def store_in_the_way() -> None:
    """A home asks for an instance only when the store has taken in what it knows."""
    from activator_replacement.homes import Homes

    init = Homes.__init__

    def begins(self: Any, *args: Any, **more: Any) -> None:
        init(self, *args, **more)
        place = self._placing.place

        def waits(home_key: str, i: Any) -> None:
            async def when_written() -> None:
                await self.store.flush(60.0)
                place(home_key, i)

            self._waits = asyncio.ensure_future(when_written())

        self._placing.place = waits

    setattr(Homes, "__init__", begins)  # noqa: B010


def done_though_dead() -> None:
    """The stream of an engine that died ends like one that was done."""
    from activator_replacement import exchange

    setattr(exchange, "event_stream_error", lambda reason: b"data: [DONE]\n\n")  # noqa: B010


def started_twice() -> None:
    """A node launches what it is asked to start, however often it has been asked: only a repeated Start shows it."""
    from kserve_ext.core.node.facts import Launch
    from kserve_ext.core.node.machine import NodeMachine

    start = NodeMachine.start

    def again(self: Any, order: Any, now: float) -> Any:
        life = self.lives.known.get(order.instance)
        verdict, out = start(self, order, now)
        if life is not None and life.launched and not life.ended:
            out.append(Launch(life.id, self.ledger.held(life.id).devices))
        return verdict, out

    setattr(NodeMachine, "start", again)  # noqa: B010


def object_forgotten() -> None:
    """The objects process acknowledges what it has not stored."""
    from autoscaler_shim.objects.storage import OrderedStorage

    write = OrderedStorage.write

    async def hasty(self: Any, items: Any) -> None:
        await write(self, [item for item in items if not item[0].startswith("objects/")])

    setattr(OrderedStorage, "write", hasty)  # noqa: B010


def grant_overtaken() -> None:
    """A shard obeys the Grant that comes last, not the newest."""
    from kserve_ext.core.dispatch.shard import Shard

    grant = Shard.grant

    def obeys(self: Any, came: Any, now: float) -> Any:
        part = self.parts.get(came.revision)
        if part is not None:
            part.granted = min(part.granted, came.seq - 1)
        return grant(self, came, now)

    setattr(Shard, "grant", obeys)  # noqa: B010


BUGS: dict[str, Plant] = {
    plant.__name__.replace("_", "-"): plant
    for plant in (
        lost_instance,
        double_home,
        stale_epoch,
        leaked_lease,
        over_commit,
        lost_request,
        answered_twice,
        placed_twice,
        bound_passed,
        never_stopped,
        not_recalled,
        not_told,
        not_fenced,
        half_a_gang,
        epoch_back,
        store_in_the_way,
        done_though_dead,
        started_twice,
        object_forgotten,
        grant_overtaken,
    )
}


def plant(bug: str) -> None:
    if bug not in BUGS:
        raise SystemExit(f"there is no bug {bug!r}: {', '.join(BUGS)}")
    BUGS[bug]()


def main(argv: list[str]) -> int:
    from tests.chaos.nursery import run_part

    plant(argv[0])
    return run_part(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
