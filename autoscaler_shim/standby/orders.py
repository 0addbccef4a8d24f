"""Orders to slots by way of their nodes' agents: to start a revision, and to give it back; and what came of them.

What is to be ordered is core/standby/adoption.py's to say, which hears of each answer; so do people (saying.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from autoscaler_shim.standby.agents import Agents
from autoscaler_shim.standby.metrics import Tally
from autoscaler_shim.standby.saying import Saying
from kserve_ext.api.standby import assigning
from kserve_ext.api.standby.fitting import Wish
from kserve_ext.core.standby.adoption import Adoption
from kserve_ext.core.standby.known import Known, Seen
from kserve_ext.rpc import RpcError
from kserve_ext.wire.messages import SlotReply

log = logging.getLogger(__name__)


class Orders:
    def __init__(
        self,
        known: Known,
        agents: Agents,
        tally: Tally,
        saying: Saying,
        again: Callable[[str], None],
        term: Callable[[str], int],
        tell: Callable[[], tuple[str, ...]],
    ) -> None:
        """`again` reconciles one PodAutoscaler; `term`: of its bucket; `tell`: where activators are."""
        self._known = known
        self._agents = agents
        self._tally = tally
        self._saying = saying
        self._again = again
        self._term = term
        self._tell = tell
        #: By uid: the run of the agent that was ordered to give it, and told whom to tell.
        self._ordered: dict[str, str] = {}

    def take(self, key: str, adoption: Adoption, wish: Wish, seen: Seen) -> None:
        begun = time.monotonic()
        uid, pod = seen.slot.uid, seen.slot.pod
        given = assigning.assignment(wish, adoption.revision, pod.partition("/")[2])

        def done(reply: SlotReply | RpcError) -> None:
            now = time.monotonic()
            if isinstance(reply, SlotReply) and not reply.reason:
                adoption.assured(uid, now)
                self._saying.accepted(adoption.revision, uid, now)
                self._tally.taken += 1
                return
            log.info("%s: standby pod %s can't be had: %s", key, pod, _why(reply))
            self._tally.refused += 1
            if isinstance(reply, RpcError):
                self._agents.silent(seen.node, reply)
            if isinstance(reply, SlotReply) or not reply.sent:
                adoption.refused(uid, now)
                self._saying.refused(adoption.revision, uid, _why(reply))
            elif adoption.unanswered(uid, now):
                self._saying.unanswered(adoption.revision, uid, _why(reply))
            self._again(key)

        log.info("%s: takes standby pod %s on node %s", key, pod, seen.node)
        self._tally.begun(uid, begun)
        self._saying.took(adoption.revision, seen, begun)
        self._ordered[uid] = self._agents.runs.get(seen.node, "")

        def busy() -> None:
            adoption.assured(uid, time.monotonic())

        self._agents.take(seen, given, self._tell(), self._term(key), done, busy=busy)

    def tell_anew(self, key: str, adoption: Adoption, wish: Wish, uid: str) -> None:
        """An agent that has begun since then doesn't know which activators wait to hear that the slot serves."""
        seen = self._known.slots.get(uid)
        if seen is None or seen.away:
            return
        run = self._agents.runs.get(seen.node, "")
        has_it = seen.slot.revision == adoption.revision and seen.slot.state in ("starting", "serving")
        if has_it and self._ordered.get(uid) != run:
            self._ordered[uid] = run
            given = assigning.assignment(wish, adoption.revision, seen.slot.pod.partition("/")[2])
            self._agents.take(seen, given, self._tell(), self._term(key), lambda _: None)

    def free(self, key: str, adoption: Adoption, uid: str) -> None:
        adoption.freed(uid, time.monotonic())
        seen = self._known.slots.get(uid)
        if seen is None:
            return
        log.info("%s: gives standby pod %s back", key, seen.slot.pod)
        self._tally.returned += 1

        def done(reply: SlotReply | RpcError) -> None:
            if _why(reply):
                log.info("%s: standby pod %s isn't free yet: %s", key, seen.slot.pod, _why(reply))

        self._agents.free(seen, adoption.revision, self._term(key), done)

    def forget(self) -> None:
        """Drops what is kept of pods that are no more; now and then."""
        self._ordered = {uid: run for uid, run in self._ordered.items() if uid in self._known.pods}


def _why(reply: SlotReply | RpcError) -> str:
    return reply.reason if isinstance(reply, SlotReply) else str(reply)
