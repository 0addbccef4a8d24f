"""One node's agent: carries out core/standby/agent.py between the socket of slots, autoscalers and activators.

It begins without a memory: slots of its node dial again and say what they do. Autoscalers watch (WatchSlots) and give
orders (TakeSlot, FreeSlot); all of them, and activators, prove the key of the Secret galaxy-peers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final, assert_never

from autoscaler_shim.node_agent import status
from autoscaler_shim.node_agent.door import Door
from autoscaler_shim.node_agent.metrics import Figures, Metrics, Page
from autoscaler_shim.node_agent.reviews import NotProven, Reviews
from autoscaler_shim.node_agent.settings import Settings
from autoscaler_shim.node_agent.telling import Telling
from kserve_ext.core.facts import NodeStatus, Resources
from kserve_ext.core.ids import NodeID, RevisionKey
from kserve_ext.core.standby.agent import SlotAccount
from kserve_ext.core.standby.effects import Drop, Effect, EmptySlot, News, StartSlot
from kserve_ext.core.standby.facts import Slot
from kserve_ext.kube.client import Client, KubeObject
from kserve_ext.kube.identity import SecretIdentity
from kserve_ext.kube.informer import Informer
from kserve_ext.kube.kinds import NODES
from kserve_ext.kube.peers_key import NoKey, awaited_key, peers_key
from kserve_ext.rpc import Caller, Rpc
from kserve_ext.wire.messages import FreeSlot, NodeSlots, SlotReply, TakeSlot, WatchSlots
from kserve_ext.wire.slot_socket import Free, Start, State

log = logging.getLogger(__name__)

#: A watch is answered after so long at the latest, and before its caller gives up.
WATCH_S: Final = 20.0
EARLIER_S: Final = 0.5
#: Changes so soon after a first one are told with it; no request waits for a watch.
MERGE_S: Final = 0.005
#: Between looks at the folders of models, and at the key.
LOOK_S: Final = 30.0


class AnotherKey(Exception):
    """Parts of ours know each other by another key than when this agent began."""


class NodeAgent:
    """`start` once, then `stop` once; ends by itself only by a fault (`ended`)."""

    def __init__(self, settings: Settings, client: Client) -> None:
        self._settings = settings
        self._client = client
        self._loop = asyncio.get_running_loop()
        self.node = NodeID(settings.node)
        self.incarnation = time.time_ns()
        #: Of the loop's clock: what is told is unix seconds, but no wait may jump with the wall clock.
        self._epoch_s = time.time() - self._loop.time()
        self.account = SlotAccount()
        self.reviews = Reviews(client, settings.node)
        self.door = Door(settings.socket, self.reviews, self, NotProven)
        self.identity: SecretIdentity | None = None
        if settings.mutual_tls != "off":
            self.identity = SecretIdentity(client, settings.namespace, settings.mutual_tls)
        self.page = Page(Metrics(self.figures), lambda: self._ready)
        self.addr = ""
        self._ready = False
        self._key = b""
        self._rpc: Rpc | None = None
        self._telling: Telling | None = None
        self._read: dict[str, Any] = {}
        self._nodes = Informer(
            client, NODES, fields=f"metadata.name={settings.node}", on_change=self._node_changed
        )
        self._capacity = Resources()
        self._models: tuple[str, ...] = ()
        self._looks = 0
        self._watchers: set[asyncio.Future[None]] = set()
        self._woken = self._tag  # of the last time
        self._timer: asyncio.TimerHandle | None = None
        self._running: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Returns when slots may dial; autoscalers may call as soon as the API server has given the key."""
        settings = self._settings
        await self.page.start(settings.pod_ip, settings.metrics_port)
        await self.door.open()
        self._ready = True
        self._nodes.start()
        log.info("slots dial %s", settings.socket)
        self._running = [asyncio.create_task(run()) for run in (self._answer_autoscalers, self._keep_looking)]

    async def ended(self) -> None:
        """Raises what ended it."""
        await asyncio.gather(*self._running)
        await asyncio.get_running_loop().create_future()

    async def stop(self) -> None:
        self._ready = False
        if self._timer is not None:
            self._timer.cancel()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if self._rpc is not None:
            # First, so that nobody is told that slots have ended: they dial again.
            await self._rpc.close()
        await self.door.close()
        await self._nodes.stop()
        if self.identity is not None:
            await self.identity.stop()
        await self.page.stop()

    def figures(self) -> Figures:
        told, lost = (self._telling.told, self._telling.lost) if self._telling is not None else (0, 0)
        return Figures(
            self.account.counts(),
            self.account.idle_by_pool(self._now()),
            self.door.refused,
            self.reviews.waiting,
            told,
            lost,
            self.reviews.asked,
        )

    # --- what the door says

    def connected(self, link: int, slot: Slot) -> None:
        self._do(self.account.connected(link, slot, self._now()))

    def said(self, link: int, state: State) -> None:
        revision, now = RevisionKey(state.revision), self._now()
        said = self.account.said(link, state.state, revision, state.reason, now, state.started, state.asleep)
        self._do(said)

    def lost(self, link: int) -> None:
        if self._ready:
            self._do(self.account.lost(link, self._now()))

    # --- what autoscalers ask

    async def _watched(self, message: WatchSlots, caller: Caller) -> NodeSlots:
        begun, _, change = message.tag.partition(".")
        if begun == str(self.incarnation):
            self.account.heard(int(change.partition(".")[0] or 0))
        if message.tag == self._tag:
            changed = self._loop.create_future()
            self._watchers.add(changed)
            try:
                until = min(WATCH_S, caller.deadline_left_s(self._loop.time()) - EARLIER_S)
                async with asyncio.timeout(max(0.0, until)):
                    await changed
                await asyncio.sleep(MERGE_S)
            except TimeoutError:
                pass
            finally:
                self._watchers.discard(changed)
        return NodeSlots(self._tag, self._status(), self.account.slots)

    def _take(self, message: TakeSlot, caller: Caller) -> SlotReply:
        assert self._rpc is not None
        self._rpc.warm(message.tell)
        verdict, effects = self.account.take(
            message.pod, message.uid, message.assignment, message.tell, message.term, self._now()
        )
        self._do(effects)
        if verdict.reason:
            log.info("%s does not get %s: %s", message.assignment.revision, message.pod, verdict.reason)
        return SlotReply(*verdict)

    def _free(self, message: FreeSlot, caller: Caller) -> SlotReply:
        verdict, effects = self.account.free(
            message.pod, message.uid, message.revision, message.term, self._now()
        )
        self._do(effects)
        return SlotReply(*verdict)

    # --- inside

    async def _answer_autoscalers(self) -> None:
        settings = self._settings
        if self.identity is not None:
            await self.identity.start()
        meanwhile = "autoscalers can't call before there is the key of all parts"
        key = self._key = await awaited_key(self._client, settings.namespace, meanwhile, make=False)
        identity = self.identity.identity if self.identity is not None else None
        rpc = self._rpc = Rpc(f"node-agent/{self.node}", key, identity=identity)
        self._telling = Telling(rpc, self.node, self.incarnation)
        rpc.handle(WatchSlots, self._watched)
        rpc.handle(TakeSlot, self._take)
        rpc.handle(FreeSlot, self._free)
        self.addr = await rpc.listen(settings.pod_ip, settings.port)
        log.info("autoscalers call %s", self.addr)

    def _now(self) -> float:
        return self._epoch_s + self._loop.time()

    @property
    def _tag(self) -> str:
        return f"{self.incarnation}.{self.account.changes}.{self._looks}"

    def _status(self) -> NodeStatus:
        return status.status(
            self.node,
            self.addr,
            self.incarnation,
            self.account.changes + self._looks,
            self._read,
            self._capacity,
            self.account.slots,
            self._models,
        )

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case StartSlot():
                    self.door.send(effect.link, Start(effect.assignment))
                case EmptySlot():
                    self.door.send(effect.link, Free(effect.revision))
                case Drop():
                    log.warning("a slot is dropped: %s", effect.reason)
                    self.door.drop(effect.link, effect.reason)
                case News():
                    assert self._telling is not None
                    self._telling.tell(effect)
                case _:
                    assert_never(effect)
        self._wake()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.account.due()
        if due < float("inf"):
            self._timer = self._loop.call_later(max(0.0, due - self._now()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._do(self.account.tick(self._now()))

    def _wake(self) -> None:
        """Only for news: who watches gets all slots of the node."""
        if self._tag == self._woken:
            return
        self._woken = self._tag
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)

    async def _keep_looking(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(LOOK_S)
            await self._look_at_key()

    async def _look_at_key(self) -> None:
        """It is made anew where activators are uninstalled and installed again, or when somebody wants another."""
        try:
            key = await peers_key(self._client, self._settings.namespace, make=False) if self._key else b""
        except NoKey as error:
            log.warning("the key that this agent began with stays: %s", error)
            return
        if key != self._key:
            raise AnotherKey(
                "the key in the Secret galaxy-peers is another one now: this agent begins anew with it"
            )

    async def _look(self) -> None:
        """At the folders and devices; a change wakes who watches."""
        settings = self._settings
        before = self._models, self._capacity
        self._models = await asyncio.to_thread(status.models, settings.model_cache, settings.fluid_mounts)
        self._capacity = status.resources(self._read)
        if (self._models, self._capacity) != before:
            self._looks += 1
            self._wake()

    def _node_changed(self, old: KubeObject | None, new: KubeObject | None) -> None:
        """Is told as soon as somebody cordons it."""
        if new is None:
            return
        before = self._capacity, self._read.get("spec"), status.labels(self._read)
        self._read = new
        self._capacity = status.resources(new)
        cordoned = bool((new.get("spec") or {}).get("unschedulable"))
        self.account.closed = f"node {self.node} is cordoned" if cordoned else ""
        if (self._capacity, new.get("spec"), status.labels(new)) != before:
            self._looks += 1
            self._wake()
