"""The front of a standby pod: queue-proxy's ports on one plane, doing what the pod's slot says.

It listens on the ports of both protocols from its beginning, since a pod does not know what it will be; without a
revision requests are refused, and probes hear whether the slot is ready. What the slot says comes as messages
(wire/slot_front.py), which are carried out in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from time import monotonic
from typing import Final

import msgspec

from activator_replacement.plane import Limits, Plane
from activator_replacement.queue import measures, pages
from activator_replacement.queue.client import QueueClient
from activator_replacement.queue.dispatcher import QueueDispatcher
from activator_replacement.upstream import keep_alive
from kserve_ext.core.queue.draining import Draining
from kserve_ext.core.queue.probing import BadProbe
from kserve_ext.core.standby.facts import Assignment
from kserve_ext.wire.slot_front import Assign, Assigned, Blank, Drain, Drained, Serve, ToFront, ToSlot, Up
from kserve_ext.wire.stats import Stat, encode_stat

log = logging.getLogger(__name__)

HTTP1_PORT: Final = 8012
HTTP2_PORT: Final = 8013
ADMIN_PORT: Final = 8022
STATS_PORT: Final = 9090
METRICS_PORT: Final = 9091
PERIOD_S: Final = 1.0
#: A preStop hook waits until nobody has come for so long.
QUIET_S: Final = 30.0
#: SIGTERM follows the hook; where it doesn't, nobody is deleting the pod.
HOOKED_S: Final = 10.0
_IDLE_TICK_S: Final = 2.0
_NEVER: Final = float("inf")
LIMITS: Final = Limits(
    head_bytes=1 << 20,
    head_timeout_s=60.0,
    idle_timeout_s=_NEVER,
    stall_timeout_s=600.0,
    connect_timeout_s=2.0,
    upstream_idle_s=90.0,
    upstream_idle=1000,
    upstream_idle_per_instance=1000,
)
_encode = msgspec.json.Encoder().encode


class Front:
    """`start` once, then `obey` each message; `close` once."""

    def __init__(
        self, pod: str, namespace: str, host: str, quiet_s: float = QUIET_S, limits: Limits = LIMITS
    ) -> None:
        loop = asyncio.get_running_loop()
        self._pod = pod
        self._namespace = namespace
        self._host = host
        self._quiet_s = quiet_s
        self.dispatcher = QueueDispatcher()
        self.dispatcher.idle = self._idle
        self.plane = Plane(loop, self.dispatcher, limits, secrets.token_hex(4).encode(), QueueClient)
        self._stat = Stat(pod)
        self._listeners: list[asyncio.Server] = []
        self._sweep: asyncio.TimerHandle | None = None
        self._reporting: asyncio.TimerHandle | None = None
        self._drains: set[asyncio.Task[None]] = set()
        self._is_idle = asyncio.Event()
        self._quiet: asyncio.Task[None] | None = None
        self._terminated = False
        #: Where what the front says goes.
        self.writer: asyncio.StreamWriter | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        plane, host = self.plane, self._host
        for port in (HTTP1_PORT, HTTP2_PORT):
            server = await loop.create_server(lambda: QueueClient(plane), host, port, backlog=4096)
            self._listeners.append(server)
            for sock in server.sockets:
                keep_alive(sock)
        for port, path, make in (
            (ADMIN_PORT, "/wait-for-drain", self._wait_for_drain),
            (STATS_PORT, "/metrics", self._stats),
            (METRICS_PORT, "/metrics", self._metrics),
        ):
            self._listeners.append(await pages.listen(host, port, {path: make}))
        self._tick()
        self.say(Up())

    def obey(self, message: ToFront) -> None:
        dispatcher = self.dispatcher
        if isinstance(message, Blank):
            dispatcher.blank()
            dispatcher.standby_ready = message.ready
        elif isinstance(message, Assign):
            self._assign(message.assignment)
        elif isinstance(message, Serve):
            if dispatcher.part is not None and dispatcher.part.key == message.revision:
                dispatcher.part.serving = True
        else:
            task = asyncio.get_running_loop().create_task(self._drain(message))
            self._drains.add(task)
            task.add_done_callback(self._drains.discard)

    def say(self, message: ToSlot) -> None:
        if self.writer is not None:
            self.writer.write(_encode(message) + b"\n")

    def close(self) -> None:
        """At once; what is under way is cut off."""
        for listener in self._listeners:
            listener.close()
        for client in list(self.plane.clients):
            client.abort()
        self.plane.cache.close()
        self.plane.http2_cache.close()
        for timer in (self._sweep, self._reporting):
            if timer is not None:
                timer.cancel()
        for task in (*self._drains, *([self._quiet] if self._quiet is not None else [])):
            task.cancel()

    # --- a revision

    def _assign(self, assignment: Assignment) -> None:
        try:
            self.dispatcher.assign(assignment)
        except BadProbe as error:
            log.error("%s: %s; its port is asked instead", assignment.revision, error)
            self.dispatcher.assign(assignment._replace(probe=""))
        self._stat = Stat(self._pod)
        self.say(Assigned(assignment.revision))
        if self._reporting is not None:
            self._reporting.cancel()
        self._reporting = asyncio.get_running_loop().call_later(PERIOD_S, self._report)
        if self._sweep is not None:
            self._sweep.cancel()
        self._tick()

    def _report(self) -> None:
        part = self.dispatcher.part
        if part is None:
            self._stat = Stat(self._pod)
            self._reporting = None
            return
        report = self.dispatcher.report()
        self._stat = Stat(
            self._pod,
            report.concurrency,
            report.proxied_concurrency,
            report.arrivals / PERIOD_S,
            report.proxied_arrivals / PERIOD_S,
            monotonic() - part.began,
            0,
        )
        self._reporting = asyncio.get_running_loop().call_later(PERIOD_S, self._report)

    # --- its end

    async def _drain(self, drain: Drain) -> None:
        """Of a revision that goes (the pod stays), or of the pod."""
        dispatcher = self.dispatcher
        part = dispatcher.part
        cut = 0
        if part is not None and part.key == drain.revision:
            until = monotonic() + drain.seconds
            self._terminated |= drain.ends
            if dispatcher.draining is None:
                dispatcher.draining = Draining(drain.quiet_s, monotonic())
            await self._until_quiet(until)
            if drain.ends:
                self.plane.draining = True
                for listener in self._listeners[:2]:
                    listener.close()
            part.refusing = f"this pod is done with {part.key}: ask for another one"
            for client in list(self.plane.clients):
                client.drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, until - monotonic())):
                    while part.stats.under_way:
                        self._is_idle.clear()
                        await self._is_idle.wait()
            cut = part.stats.under_way
            for client in list(self.plane.clients):  # also the idle ones: theirs is another revision
                if client.active and not cut:
                    client.drain()
                else:
                    client.abort()
            dispatcher.blank()
            dispatcher.standby_ready = False
            if not drain.ends:
                dispatcher.draining = None
            self.plane.cache.close()
            self.plane.http2_cache.close()
        self.say(Drained(drain.revision, cut))

    def _idle(self) -> None:
        self._is_idle.set()

    async def _until_quiet(self, until: float = _NEVER) -> None:
        draining = self.dispatcher.draining
        while draining is not None and draining is self.dispatcher.draining:
            now = monotonic()
            left_s = min(draining.left_s(now), until - now)
            if left_s <= 0:
                break
            await asyncio.sleep(left_s)

    async def _wait_for_drain(self) -> pages.Page:
        """A preStop hook: the pod is about to be deleted."""
        if self.dispatcher.part is None:
            return pages.Page()
        if self.dispatcher.draining is None:
            log.info("a preStop hook waits until nobody has come for %g s", self._quiet_s)
            self.dispatcher.draining = Draining(self._quiet_s, monotonic())
        await self._until_quiet()
        asyncio.get_running_loop().call_later(HOOKED_S, self._hooked, self.dispatcher.draining)
        return pages.Page()

    def _hooked(self, draining: Draining | None) -> None:
        if not self._terminated and self.dispatcher.draining is draining and draining is not None:
            log.warning("nobody ended this pod after its preStop hook: it serves on")
            self.dispatcher.draining = None

    # --- pages, and what is done now and then

    async def _stats(self) -> pages.Page:
        return pages.Page(encode_stat(self._stat), "application/protobuf")

    async def _metrics(self) -> pages.Page:
        part = self.dispatcher.part
        if part is None:
            return pages.Page()
        labels = {name.removeprefix("SERVING_").lower(): value for name, value in part.assignment.labels}
        service, configuration = labels.get("service", ""), labels.get("configuration", "")
        target = {
            "k8s_namespace_name": self._namespace,
            "k8s_pod_name": self._pod,
            "k8s_container_name": "queue-proxy",
            "service_name": service or configuration or part.name.decode(),
            "service_instance_id": self._pod,
            "kn_service_name": service,
            "kn_configuration_name": configuration,
            "kn_revision_name": part.name.decode(),
        }
        pending = part.breaker.pending if part.assignment.concurrency else None
        body = measures.text(part.durations, pending, {k: v for k, v in target.items() if v})
        return pages.Page(body, "text/plain; version=0.0.4; charset=utf-8")

    def _tick(self) -> None:
        self.plane.sweep()
        busy = self.dispatcher.part is not None or self.plane.clients
        after = self.plane.limits.tick_s if busy else _IDLE_TICK_S
        self._sweep = asyncio.get_running_loop().call_later(after, self._tick)
