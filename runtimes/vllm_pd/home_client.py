"""Where decode's front gets a prefill engine for one request: from the group's home, from a fixed list, or through an
activator of a Knative cluster (route_leases.py).

The home (a Dispatch function) accounts for prefill slots as it does for those of requests, and tells which prefill
instances there are; the node agent knows which function that is. The fixed list serves an instance that runs without
a cluster.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from kserve_ext.core.kv_links import Peer
from runtimes.vllm_pd.load import Load

_LOCATE_S = 1.0
_WATCH_S = 10.0  # home answers earlier when its prefill instances change


class Lease(NamedTuple):
    """One slot of one prefill instance, until released."""

    id: str
    instance: str
    addr: str  # host:port of its HTTP server
    generation: int = 0  # 0 = whichever it is
    why: str = ""  # this one, for a person
    queued: int = 0  # prompt tokens that wait there already


class Wanted(NamedTuple):
    """What home should know of a prompt, and of this instance's channels, to choose well."""

    uncached: int = 0
    prefix: tuple[int, ...] = ()
    channels: tuple[str, ...] = ()  # that stand, by instance
    excluded: tuple[str, ...] = ()  # instances that are of no use now


class Computed(NamedTuple):
    """What a lease was used for: tokens, and when, by the prefill instance's clock."""

    tokens: int = 0
    started: float = 0.0
    ended: float = 0.0


class NoPrefill(Exception):
    """None to be had now; the text says why, `reason` in a word for metrics and headers."""

    def __init__(self, why: str, reason: str = "no-prefill") -> None:
        super().__init__(why)
        self.reason = reason


NOTHING = Wanted()
NO_WORK = Computed()


class Leases(Protocol):
    async def lease(
        self, request_id: str, tokens: int, wait_s: float | None = None, wanted: Wanted = NOTHING
    ) -> Lease:
        """Raises NoPrefill, after `wait_s` at the latest (None: after the time that is set)."""

    async def release(self, lease: Lease, failed: str = "", work: Computed = NO_WORK) -> None: ...

    async def report(self, load: Load) -> None:
        """Tells home what this engine has to do, if there is a home that hears it."""

    async def peers(self, tag: str) -> tuple[str, tuple[Peer, ...]]:
        """Which prefill instances there are, when the answer has another tag; "" = not known. Raises NoPrefill."""

    async def close(self) -> None: ...


class FixedLeases:
    """Every address in turn; slots are not counted."""

    def __init__(self, addrs: Sequence[str]) -> None:
        self.addrs = tuple(addrs)
        self._turns = itertools.cycle(self.addrs)
        self._ids = itertools.count(1)

    async def lease(
        self, request_id: str, tokens: int, wait_s: float | None = None, wanted: Wanted = NOTHING
    ) -> Lease:
        for _ in self.addrs:
            addr = next(self._turns)
            if addr not in wanted.excluded:
                return Lease(str(next(self._ids)), addr, addr)
        raise NoPrefill("no-peer")

    async def release(self, lease: Lease, failed: str = "", work: Computed = NO_WORK) -> None:
        return

    async def report(self, load: Load) -> None:
        return

    async def peers(self, tag: str) -> tuple[str, tuple[Peer, ...]]:
        if tag:
            await asyncio.get_running_loop().create_future()  # never
        return "fixed", tuple(Peer(addr, addr) for addr in self.addrs)

    async def close(self) -> None:
        return


class HomeLeases:
    """Asks the home, over the cluster's rpc; finds it through the node agent, again when it has moved."""

    def __init__(self, group: str, instance: str, agent_addr: str, key: bytes, wait_s: float) -> None:
        from kserve_ext.rpc import Rpc

        self._group = group
        self._instance = instance
        self._agent_addr = agent_addr
        self._wait_s = wait_s  # the home holds the call while a prefill instance starts
        self._rpc = Rpc(instance or f"instance-{os.getpid()}", key)
        self._home = ""

    async def lease(
        self, request_id: str, tokens: int, wait_s: float | None = None, wanted: Wanted = NOTHING
    ) -> Lease:
        from kserve_ext.core.ids import InstanceID, RequestID
        from kserve_ext.wire.messages import LeasePrefill

        message = LeasePrefill(
            self._group,
            RequestID(request_id),
            tokens,
            InstanceID(self._instance),
            wanted.uncached,
            wanted.prefix,
            tuple(map(InstanceID, wanted.channels)),
            tuple(map(InstanceID, wanted.excluded)),
        )
        reply = await self._call_home(message, self._wait_s if wait_s is None else wait_s)
        if not reply.lease:
            raise NoPrefill(reply.reason or "no-peer")
        return Lease(reply.lease, reply.instance, reply.addr, reply.generation, reply.why, reply.queued)

    async def release(self, lease: Lease, failed: str = "", work: Computed = NO_WORK) -> None:
        from kserve_ext.wire.messages import ReturnPrefill

        try:
            await self._call_home(ReturnPrefill(self._group, lease.id, failed, *work), _LOCATE_S)
        except NoPrefill:
            return  # the home is gone, and its account of the lease with it

    async def report(self, load: Load) -> None:
        from kserve_ext.core.ids import InstanceID
        from kserve_ext.wire.messages import Decoded

        try:
            await self._call_home(Decoded(self._group, InstanceID(self._instance), *load), _LOCATE_S)
        except NoPrefill:
            return  # the next one finds it

    async def peers(self, tag: str) -> tuple[str, tuple[Peer, ...]]:
        from kserve_ext.wire.messages import WatchPrefill

        reply = await self._call_home(WatchPrefill(self._group, tag), _WATCH_S)
        if not reply.tag:
            self._home = ""  # it may be the home no longer
        return reply.tag, tuple(Peer(peer.instance, peer.addr, peer.generation) for peer in reply.peers)

    async def close(self) -> None:
        await self._rpc.close()

    async def _call_home(self, message: Any, timeout_s: float) -> Any:
        """Once more with the home looked up anew: it may have moved."""
        from kserve_ext.rpc import RpcError
        from kserve_ext.wire.messages import Locate

        for fresh in (False, True):
            try:
                if fresh or not self._home:
                    located = await self._rpc.call(self._agent_addr, Locate(self._group), _LOCATE_S)
                    self._home = located.addr
                return await self._rpc.call(self._home, message, timeout_s)
            except RpcError as error:
                self._home, failure = "", error
        raise NoPrefill(f"home: {failure}")


def cluster_key(environ: Mapping[str, str] = os.environ) -> bytes:
    """b"" outside of a cluster: then channels are for this host only."""
    path = environ.get("GALAXY_CLUSTER_KEY_FILE", "")
    return Path(path).read_bytes() if path else b""


def make_leases(environ: Mapping[str, str] = os.environ, wait_s: float = 5.0) -> Leases:
    peers = [addr.strip() for addr in environ.get("GALAXY_PREFILL_PEERS", "").split(",") if addr.strip()]
    group, agent = environ.get("GALAXY_GROUP", ""), environ.get("GALAXY_NODE_SOCKET", "")
    activator = environ.get("GALAXY_ACTIVATOR", "")
    if activator and not peers and group.rpartition("/")[2]:
        from runtimes.vllm_pd.route_leases import RouteLeases

        return RouteLeases(group, activator, wait_s)
    if peers or not (group and agent):
        return FixedLeases(peers)
    if not agent.startswith("unix:") and "/" in agent:
        agent = f"unix:{agent}"
    return HomeLeases(group, environ.get("GALAXY_INSTANCE_ID", ""), agent, cluster_key(environ), wait_s)
