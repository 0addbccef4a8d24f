"""Finds out where each revision's requests can go: carries out core/knative/pods.py for every revision.

Endpoints come in from endpoints.py, answers from the prober, refused connections from Dispatch; what follows goes to
Dispatch: the pods that answer, or the Service's own address, and this activator's share of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from typing import Any, Protocol

from kserve_ext.api.knative.endpoints import Addresses, cluster_address, hosts
from kserve_ext.api.knative.revision import Activated
from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.knative.assignment import Share, share_of
from kserve_ext.core.knative.pods import OK, SILENT, Ask, Pods, Rules
from kserve_ext.kube.client import Client, KubeError
from kserve_ext.kube.kinds import SERVICES

log = logging.getLogger(__name__)


class Prober(Protocol):
    async def probe(self, addr: str, mesh_host: str = "", *, keep: bool = False) -> int: ...


class Addressed(Protocol):
    def addresses(self, key: RevisionKey, public: bool, port_name: str) -> tuple[str, Addresses]: ...


class Users(Protocol):
    """Dispatch, as it hears of backends."""

    def use(self, key: RevisionKey, pods: set[str], cluster: str, ready: int, mesh_host: bytes) -> None: ...
    def share(self, key: RevisionKey, share: Share | None, hosts: Iterable[str]) -> None: ...


class Backend:
    """One revision's."""

    __slots__ = ("cluster", "facts", "pods", "service", "timer", "untold")

    def __init__(self, facts: Activated, rules: Rules) -> None:
        self.facts = facts
        self.pods = Pods(rules)
        self.service = ""  # the private Service's name
        self.cluster = ""  # its address, "" = to be looked up
        self.timer: asyncio.TimerHandle | None = None
        self.untold = False  # of a change


class Backends:
    def __init__(
        self,
        client: Client,
        endpoints: Addressed,
        prober: Prober,
        users: Users,
        rules: Rules,
        pod_ip: str,
        *,
        keep_connections: bool = True,
    ) -> None:
        """`rules.early` is each revision's own; `keep_connections`: of probes, for requests over HTTP/1.1."""
        self.backends: dict[RevisionKey, Backend] = {}
        self._client = client
        self._endpoints = endpoints
        self._prober = prober
        self._users = users
        self._rules = rules
        self._pod_ip = pod_ip
        self._keep = keep_connections
        self._loop = asyncio.get_running_loop()
        self._probes: set[asyncio.Task[None]] = set()

    # --- what is told

    def revision(self, facts: Activated) -> None:
        backend = self.backends.get(facts.key)
        if backend is not None and backend.facts.uid == facts.uid:
            backend.facts = facts
            return
        self.forget(facts.key)
        self.backends[facts.key] = Backend(facts, replace(self._rules, early=facts.early))
        self.changed(facts.key, False)
        self.changed(facts.key, True)

    def forget(self, key: RevisionKey) -> None:
        backend = self.backends.pop(key, None)
        if backend is not None and backend.timer is not None:
            backend.timer.cancel()

    def changed(self, key: RevisionKey, public: bool) -> None:
        """The revision's public or private addresses are others."""
        backend = self.backends.get(key)
        if backend is None:
            return
        service, found = self._endpoints.addresses(key, public, backend.facts.port_name)
        if public:
            activators = hosts(found.ready)
            self._users.share(key, share_of(self._pod_ip, activators), activators)
            return
        if service != backend.service:
            backend.service, backend.cluster = service, ""
        self._do(backend, backend.pods.observe(found.ready, found.not_ready, self._loop.time()))

    def unreachable(self, key: RevisionKey, addr: str) -> None:
        """A connection to it could not be made."""
        backend = self.backends.get(key)
        if backend is None:
            return
        pods, now = backend.pods, self._loop.time()
        self._do(backend, pods.cluster_failed(now) if addr == backend.cluster else pods.failed(addr, now))

    def announced(self, key: RevisionKey, addr: str, serves: bool) -> None:
        """The agent of its node says whether a pod serves that the Endpoints needn't list yet."""
        backend = self.backends.get(key)
        if backend is not None:
            pods, now = backend.pods, self._loop.time()
            self._do(backend, pods.announce(addr, now) if serves else pods.withdraw(addr, now))

    def close(self) -> None:
        for key in list(self.backends):
            self.forget(key)
        for probe in self._probes:
            probe.cancel()

    # --- inside

    def _do(self, backend: Backend, ask: Ask) -> None:
        if self.backends.get(backend.facts.key) is not backend:
            return
        for addr in ask.pods:
            self._start(self._ask_pod(backend, addr))
        if ask.cluster:
            self._start(self._ask_service(backend))
        backend.untold |= ask.changed
        if backend.untold:
            self._tell(backend)
        if backend.timer is not None:
            backend.timer.cancel()
            backend.timer = None
        due = self._loop.time() + self._rules.every_s if backend.untold else backend.pods.due()
        if due is not None:
            backend.timer = self._loop.call_at(due, self._tick, backend)

    def _tell(self, backend: Backend) -> None:
        pods = backend.pods
        cluster = backend.cluster if pods.cluster else ""
        mesh_host = self._mesh_host(backend).encode()
        try:
            self._users.use(backend.facts.key, set(pods.healthy), cluster, len(pods.ready), mesh_host)
        except Exception:
            log.exception("what has changed of %s could not be told; it is told again", backend.facts.key)
        else:
            backend.untold = False

    def _tick(self, backend: Backend) -> None:
        backend.timer = None
        self._do(backend, backend.pods.tick(self._loop.time()))

    def _start(self, probe: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(probe)
        self._probes.add(task)
        task.add_done_callback(self._probes.discard)

    async def _ask_pod(self, backend: Backend, addr: str) -> None:
        keep = self._keep and not backend.facts.http2
        answer = SILENT
        try:
            answer = await self._prober.probe(addr, self._mesh_host(backend), keep=keep)
        except Exception:
            log.exception("the probe of %s at %s failed; it is made again", backend.facts.key, addr)
        self._do(backend, backend.pods.probed(addr, answer, self._loop.time()))

    async def _ask_service(self, backend: Backend) -> None:
        """A Service that was made anew has another address: after a failure it is looked up again."""
        answer = SILENT
        try:
            if not backend.cluster:
                service = await self._client.get(SERVICES, backend.facts.namespace, backend.service)
                backend.cluster = cluster_address(service, backend.facts.port_name)
            if backend.cluster:
                answer = await self._prober.probe(backend.cluster)
        except KubeError as error:
            log.debug("%s has no Service to ask: %s", backend.facts.key, error)
        except Exception:
            log.exception("the probe of %s by its Service failed; it is made again", backend.facts.key)
        if answer != OK:
            backend.cluster = ""
        self._do(backend, backend.pods.cluster_probed(answer == OK, self._loop.time()))

    def _mesh_host(self, backend: Backend) -> str:
        if not self._rules.passthrough:
            return ""
        return f"{backend.service}.{backend.facts.namespace}"
