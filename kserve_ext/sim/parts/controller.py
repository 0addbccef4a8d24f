"""The top-level controller in virtual time: the real machine of the view, and the messages that carry the view.

It is off the path of requests: while it is dead, nothing is missing but news of who comes and goes. Another one takes
over TAKEOVER_S after its death, with the members that were stored and an epoch above all that members report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from kserve_ext.core.facts import Member, View
from kserve_ext.core.ids import FunctionID
from kserve_ext.core.membership import MembershipMachine, Push
from kserve_ext.sim import costs
from kserve_ext.sim.parts.network import Network, Process

TAKEOVER_S: Final = 3.5  # the lease in the store, and until another candidate looks at it again


class Controller:
    """`process_of` a member; `show` gives it a view."""

    def __init__(
        self,
        network: Network,
        members: Sequence[Member],
        process_of: Callable[[FunctionID], Process],
        show: Callable[[Push], None],
    ) -> None:
        self.network, self.clock = network, network.clock
        self.process_of, self.show = process_of, show
        self.process = network.process("controller")
        self.membership = MembershipMachine(View(0, tuple(members)), self.clock.now)
        #: epochs that members have been shown, the highest of each: they only grow
        self.shown: dict[FunctionID, int] = {}
        #: the Dispatch functions of the view that was pushed last: others than before are more work for everybody
        self._shards: set[tuple[FunctionID, int]] = set()
        self.changed_at = self.clock.now
        self.settled_at: float | None = self.clock.now

    def begin(self) -> None:
        """Everybody has the first view."""
        self._shards = {(m.id, m.incarnation) for m in self.membership.view.of("dispatch")}
        for push in self.membership.tick(self.clock.now):
            self._show(push)
            self.membership.acked(push.member.id, push.view.epoch)

    # --- who comes and goes

    def join(self, member: Member) -> None:
        """`settled_at` is when everybody has the view with it."""
        self.changed_at, self.settled_at = self.clock.now, None
        epoch = self.shown.get(member.id, self.membership.epoch)
        self._push(self.membership.join(member, epoch, 1, self.clock.now))

    def leave(self, member: FunctionID, incarnation: int, reason: str) -> None:
        self._push(self.membership.leave(member, incarnation, reason, self.clock.now))

    def drain(self, member: FunctionID) -> None:
        """By the next view nobody routes to it."""
        self._push(self.membership.drain(member, self.clock.now))

    def lost(self, member: FunctionID) -> None:
        """Its connection has ended: a process is dead."""
        self.membership.lost(member, 1, self.clock.now)

    def report(self, members: Sequence[Member]) -> list[FunctionID]:
        """Those that report now; one that is not a member any more joins again.

        Returns those that are members of the view that they know.
        """
        current: list[FunctionID] = []
        for member in members:
            self.network.aside(self.process, "report")
            epoch = self.shown.get(member.id, 0)
            if not self.membership.report(member.id, member.incarnation, epoch, 1, self.clock.now):
                self._push(self.membership.join(member, epoch, 1, self.clock.now))
            elif epoch == self.membership.epoch:
                current.append(member.id)
        self._push(self.membership.tick(self.clock.now))
        return current

    def die(self) -> None:
        """Until another one has taken over."""
        self.process.dead = True
        self.clock.after(TAKEOVER_S, partial(self._take_over, self.process))

    def pause(self, seconds: float) -> None:
        """It stands still; when it goes on it is no leader any more, if that was for longer than its lease."""
        process, now = self.process, self.clock.now
        process.paused_until = max(process.paused_until, now + seconds)
        process.core.spend(seconds)
        self.clock.after(TAKEOVER_S, partial(self._take_over, process))
        self.clock.after(seconds, partial(self._goes_on, process))

    def _goes_on(self, process: Process) -> None:
        """With what it knows, before it reads what has come meanwhile."""
        if self.process is process and process.runs(self.clock.now):
            self._push(self.membership.tick(self.clock.now))

    def _take_over(self, former: Process) -> None:
        if self.process is not former or former.runs(self.clock.now):
            return
        former.dead = True  # the store lets it write no more
        self.process = self.network.process("controller")
        self.membership = MembershipMachine(self.membership.view, self.clock.now)
        self.changed_at, self.settled_at = self.clock.now, None

    # --- the view

    def _push(self, pushes: Sequence[Push]) -> None:
        """To each member by a message of its own; as in the shell, what it acknowledged comes back."""
        shards = {(m.id, m.incarnation) for m in pushes[0].view.of("dispatch")} if pushes else self._shards
        same, self._shards = shards == self._shards, shards
        for push in pushes:
            self.settled_at = None
            self.membership.pushed(push.member.id, self.clock.now)
            kind = f"view-{push.member.kind}" + ("" if same else "-anew")
            larger = len(push.view.members) / costs.VIEW_MEMBERS
            self.process.core.spend(larger * costs.VIEW_SENT * 1e-6)
            self.process_of(push.member.id).core.spend(max(0.0, larger - 1) * self.network.cost(kind, False))
            show, acked = partial(self._show, push), partial(self._acked, self.membership, push)
            self.network.call(
                self.process,
                self.process_of(push.member.id),
                kind,
                show,
                lambda _, acked=acked: acked(),  # type: ignore[misc]
            )

    def _show(self, push: Push) -> None:
        """Older views come late and are not obeyed."""
        name, epoch = push.member.id, push.view.epoch
        if epoch >= self.shown.get(name, 0):
            self.shown[name] = epoch
            self.show(push)

    def _acked(self, membership: MembershipMachine, push: Push) -> None:
        membership.acked(push.member.id, push.view.epoch)
        if membership is self.membership and self.settled_at is None and membership.consistent():
            self.settled_at = self.clock.now
