"""The agents of the nodes: where they are, what they say of their slots, and orders to them.

Each is asked all the time for its next news, and what it says goes into what is known. One that doesn't answer is
away: its slots stay as they were said to be, and none is taken, until its pod is gone or it answers again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from autoscaler_shim.standby.metrics import NodeFigures
from kserve_ext.api.standby import names
from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.standby.facts import Assignment
from kserve_ext.core.standby.known import Known, Seen
from kserve_ext.core.standby.patience import MOST_S, Patience
from kserve_ext.kube.client import Client, KubeObject
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import PODS
from kserve_ext.rpc import Rpc, RpcError
from kserve_ext.rpc.background import kept_up
from kserve_ext.wire.frames import ErrorCode
from kserve_ext.wire.messages import FreeSlot, Message, NodeSlots, SlotReply, TakeSlot, WatchSlots

log = logging.getLogger(__name__)

#: Longer than an agent lets a watch last.
WATCH_S: Final = 30.0
#: What has arrived while this process was busy itself is read before it counts as missing.
READ_S: Final = 0.1
AGAIN_S: Final = (0.1, 2.0)
#: Longest wait for the first word of all.
FIRST_S: Final = 2.0

Done = Callable[[SlotReply | RpcError], None]


class Agents:
    """`start` once, `stop` once."""

    def __init__(
        self, client: Client, namespace: str, known: Known, changed: Callable[[set[RevisionKey]], None]
    ) -> None:
        """`changed` is told of the revisions that news are about; none: of pools only."""
        self._known = known
        self._changed = changed
        self._rpc: Rpc | None = None
        self.addrs: dict[str, str] = {}  # by node
        #: By node: which run of its agent was heard last.
        self.runs: dict[str, str] = {}
        #: By node: when it was heard last, in unix seconds, and what it said then.
        self._said: dict[str, tuple[float, NodeSlots]] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._heard: set[str] = set()
        self._patience = Patience()
        self._first = asyncio.Event()
        self.informer = Informer(
            client,
            PODS,
            namespace,
            labels=f"{names.COMPONENT_LABEL}={names.AGENT_COMPONENT}",
            on_change=self._pod,
            keep=_slim,
        )

    @property
    def heard(self) -> int:
        """How many answer."""
        return len(self._heard)

    def figures(self) -> list[NodeFigures]:
        found = []
        for node, (at, news) in sorted(self._said.items()):
            capacity = news.status.capacity
            states: Counter[str] = Counter(slot.state for slot in news.slots)
            found.append(NodeFigures(node, at, states, capacity.gpus, news.status.free.gpus, capacity.rdma))
        return found

    def rooms(self) -> dict[str, int]:
        """By node, where its number is known: GPUs that no revision's standby pod has; other pods aren't known."""
        return {
            node: news.status.capacity.gpus - sum(slot.gpus for slot in news.slots if slot.revision)
            for node, (_, news) in self._said.items()
            if news.status.capacity.gpus
        }

    async def start(self, rpc: Rpc) -> None:
        """Returns when all have been heard that answer within a moment."""
        if self._rpc is None:  # else a former try has failed behind this
            self._rpc = rpc
            self.informer.start()
        await self.informer.synced.wait()
        self._look()
        try:
            async with asyncio.timeout(FIRST_S):
                await self._first.wait()
        except TimeoutError:
            silent = sorted(self.addrs.keys() - self._heard)
            log.warning("no word from the agents of nodes %s yet", ", ".join(silent))

    def speak_by(self, rpc: Rpc) -> None:
        """From now on, to all of them: the key is another one."""
        self._rpc = rpc
        for node, addr in self.addrs.items():
            self._watch_anew(node, addr)

    async def stop(self) -> None:
        await self.informer.stop()
        for task in self._watches.values():
            task.cancel()
        await asyncio.gather(*self._watches.values(), return_exceptions=True)

    def take(
        self,
        seen: Seen,
        assignment: Assignment,
        tell: tuple[str, ...],
        term: int,
        done: Done,
        *,
        busy: Callable[[], None] | None = None,
    ) -> None:
        """`busy` is called while the agent answers others, once in a while."""
        slot = seen.slot
        self._order(seen.node, TakeSlot(slot.pod, slot.uid, assignment, tell, term), done, busy)

    def free(self, seen: Seen, revision: RevisionKey, term: int, done: Done) -> None:
        self._order(seen.node, FreeSlot(seen.slot.pod, seen.slot.uid, revision, term), done)

    def silent(self, node: str, error: RpcError) -> None:
        """It has left an order unanswered: nothing of it is taken until it is heard again."""
        if node not in self._heard:
            return  # that is known
        if error.code is ErrorCode.DEADLINE and not self._patience.silent(node, time.monotonic()):
            return  # it answers others
        log.warning(
            "the agent of node %s has left an order unanswered: its slots aren't taken meanwhile", node
        )
        self._known.away(node)
        self._heard.discard(node)
        self._changed(set())
        if node in self.addrs and self._rpc is not None:
            self._watch_anew(node, self.addrs[node])

    # --- inside

    def _order(self, node: str, message: Message, done: Done, busy: Callable[[], None] | None = None) -> None:
        assert self._rpc is not None
        loop, ordered = asyncio.get_running_loop(), time.monotonic()
        addr, looked = self.addrs.get(node, ""), False
        timer: asyncio.TimerHandle | None = None

        def answered(reply: Message | RpcError) -> None:
            nonlocal timer
            assert isinstance(reply, SlotReply | RpcError)
            if isinstance(reply, SlotReply):
                self._patience.heard(node, time.monotonic())
            if timer is not None:  # else it was given up before
                timer.cancel()
                timer = None
                done(reply)

        def look() -> None:
            nonlocal timer, looked
            left_s = self._patience.left_s(node, ordered, time.monotonic())
            if left_s > 0:
                if busy is not None:
                    busy()
                timer, looked = loop.call_later(left_s, look), False
            elif not looked:
                timer, looked = loop.call_later(READ_S, look), True
            else:
                waited = f"no answer within {time.monotonic() - ordered:.1f} s"
                answered(RpcError(ErrorCode.DEADLINE, waited, addr))

        timer = loop.call_later(self._patience.left_s(node, ordered, ordered), look)
        self._rpc.call_soon(addr, message, answered, MOST_S + 2 * READ_S)

    def _pod(self, old: KubeObject | None, new: KubeObject | None) -> None:
        before, after = _place(old), _place(new)
        if before == after:
            return
        for node in {place[0] for place in (before, after) if place}:
            # During a rolling update a node may have two for a moment; the later one stays.
            places = (_place(pod) for pod in self.informer.objects.values())
            found = sorted((place[2], place[1]) for place in places if place and place[0] == node)
            self._meet(node, found[-1][1] if found else "")

    def _meet(self, node: str, addr: str) -> None:
        """Where its agent is; "" = there is none."""
        if self.addrs.get(node, "") == addr:
            return
        self._heard.discard(node)
        if not addr:
            if (task := self._watches.pop(node, None)) is not None:
                task.cancel()
            self.addrs.pop(node, None)
            self.runs.pop(node, None)
            self._said.pop(node, None)
            self._patience.forget(node)
            log.info("node %s has no agent any more: its standby pods are left alone", node)
            self._known.away(node)
            self._changed(set())
        else:
            self.addrs[node] = addr
            if self._rpc is not None:
                self._watch_anew(node, addr)
        self._look()

    def _watch_anew(self, node: str, addr: str) -> None:
        if (task := self._watches.pop(node, None)) is not None:
            task.cancel()
        what = f"slots of {node}"
        self._watches[node] = asyncio.create_task(kept_up(what, lambda: self._watch(node, addr)), name=what)

    def _look(self) -> None:
        if self._rpc is not None and self.informer.synced.is_set() and self._heard >= self.addrs.keys():
            self._first.set()

    async def _watch(self, node: str, addr: str) -> None:
        assert self._rpc is not None
        tag, pause_s, away = "", AGAIN_S[0], False
        while True:
            try:
                news: NodeSlots = await self._rpc.call(addr, WatchSlots(tag), WATCH_S)
            except RpcError as error:
                if not away:
                    away = True
                    log.warning("the agent of node %s is away, its slots can't be taken: %s", node, error)
                    self._known.away(node)
                    self._heard.discard(node)
                    self._changed(set())
                await asyncio.sleep(pause_s)
                pause_s, tag = min(2 * pause_s, AGAIN_S[1]), ""
                continue
            if away or not tag:
                log.info("node %s: %d slots", node, len(news.slots))
            away, pause_s = False, AGAIN_S[0]
            self._heard.add(node)
            self._patience.heard(node, time.monotonic())
            self._said[node] = time.time(), news
            self.runs[node] = news.tag.partition(".")[0]
            self._look()
            if news.tag != tag:
                tag = news.tag
                closed = not news.status.accepting
                self._changed(self._known.told(node, news.slots, news.status.models, closed))


def _slim(pod: KubeObject) -> KubeObject:
    metadata, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    kept = ("name", "namespace", "uid", "resourceVersion", "deletionTimestamp")
    ports = [port for container in spec.get("containers") or () for port in container.get("ports") or ()]
    numbers = [p["containerPort"] for p in ports if p.get("name") == names.AGENT_PORT_NAME]
    return {
        "metadata": {key: metadata[key] for key in kept if key in metadata},
        "node": spec.get("nodeName") or "",
        "ip": status.get("podIP") or "",
        "port": numbers[0] if numbers else names.AGENT_PORT,
        "started": status.get("startTime") or "",
    }


def _place(pod: dict[str, Any] | None) -> tuple[str, str, str] | None:
    """Node, address and when it began; None while it can't be called."""
    if not pod or not pod["node"] or not pod["ip"] or pod["metadata"].get("deletionTimestamp"):
        return None
    host = f"[{pod['ip']}]" if ":" in pod["ip"] else pod["ip"]
    return pod["node"], f"{host}:{pod['port']}", pod["started"]
