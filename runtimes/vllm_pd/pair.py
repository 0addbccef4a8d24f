"""The prefill/decode side of an instance, as the server sees it: started before the engine, attached after.

Prefill listens for channels, decode dials them, both while the weights are being loaded: a channel never delays
readiness. A unified instance has none of it. Never decides where a prompt is computed (front.py does).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from argparse import Namespace
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from runtimes.transport.channel import ChannelError, Rung
from runtimes.transport.handshake import Identity
from runtimes.transport.listener import Listener
from runtimes.transport.pair import Channel
from runtimes.transport.rungs import RUNGS
from runtimes.vllm_pd import worker_side
from runtimes.vllm_pd.channels import Channels, generation
from runtimes.vllm_pd.home_client import FixedLeases, NoPrefill, cluster_key, make_leases
from runtimes.vllm_pd.kv_memory import KvMemory
from runtimes.vllm_pd.landing import Landings
from runtimes.vllm_pd.layout import layout
from runtimes.vllm_pd.pushing import Pushes
from runtimes.vllm_pd.status import StartRefused, Status
from runtimes.vllm_pd.timeline import Timelines
from runtimes.vllm_pd.worker_side import Worker

_CONNECTOR = {
    "kv_connector": "GalaxyConnector",
    "kv_connector_module_path": "runtimes.vllm_pd.connector",
}
_POLL_S = 0.02


class Pair(Protocol):
    @property
    def kv_transfer(self) -> dict[str, Any] | None:
        """What vLLM is told about its KV connector; None: it has none."""

    async def start(self, entrance: Any) -> None:
        """Listens for channels, or dials its peers, while the weights are being loaded."""

    def attach(self, engine: Any) -> None:
        """The engine answers."""

    async def drain(self, seconds: float) -> None:
        """No new transfers; returns when the open ones have ended."""

    def close(self) -> None: ...


class Unified:
    """No peer."""

    kv_transfer: dict[str, Any] | None = None

    async def start(self, entrance: Any) -> None:
        return

    def attach(self, engine: Any) -> None:
        return

    async def drain(self, seconds: float) -> None:
        return

    def close(self) -> None:
        return


class PrefillPair:
    """Listens; runs jobs once the engine answers."""

    def __init__(self, args: Namespace, status: Status, timelines: Timelines) -> None:
        self.kv_transfer: dict[str, Any] | None = {
            **_CONNECTOR,
            "kv_role": "kv_both",  # it fetches from decode what that one holds
            "kv_load_failure_policy": "recompute",
        }
        self._args = args
        self._status = status
        self._timelines = timelines
        self._who = _identity(args)
        memory = KvMemory()
        self._pushes = Pushes(memory, lease_s=2 * args.kv_transfer_seconds)
        worker_side.CURRENT[:] = [Worker(memory, pushes=self._pushes)]
        self._listener: Listener | None = None
        self._channels: list[Channel] = []

    async def start(self, entrance: Any) -> None:
        try:
            self._listener = Listener(
                cluster_key(), lambda: self._who, self._accepted, rungs(self._args), self._args.kv_host
            )
        except (OSError, ValueError) as error:
            remedy = "give an address of this host, and a cluster key if it isn't loopback"
            raise StartRefused(str(error), "--kv-host", remedy) from error
        entrance.facts = {
            "channel": self._listener.addr,
            "name": self._who.name,
            "generation": self._who.generation,
            "layout": msgspec.structs.asdict(self._who.layout),
        }
        self._status.event("channel_listening")

    def attach(self, engine: Any) -> None:
        from runtimes.vllm_pd.prefill import PrefillJobs

        self._jobs = PrefillJobs(engine, self._pushes, self._timelines)

    async def drain(self, seconds: float) -> None:
        self._pushes.refuse_jobs()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._pushes.open_transfers:  # noqa: ASYNC110  (ended by threads)
                    await asyncio.sleep(_POLL_S)

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        for channel in self._channels:
            channel.close()

    def _accepted(self, channel: Channel) -> None:
        self._channels = [known for known in self._channels if known.lost is None]
        self._channels.append(channel)
        self._pushes.attach(channel)


class DecodePair:
    """Dials; its front asks for prefill engines once the engine answers."""

    def __init__(self, args: Namespace, status: Status, timelines: Timelines) -> None:
        self.kv_transfer: dict[str, Any] | None = {
            **_CONNECTOR,
            "kv_role": "kv_consumer",
            "kv_load_failure_policy": "fail" if args.kv_transfer_required else "recompute",
        }
        self._args = args
        self._status = status
        memory = KvMemory()
        self._landings = Landings(memory, args.kv_transfer_seconds)
        worker_side.CURRENT[:] = [Worker(memory, landings=self._landings)]
        self._leases = make_leases(wait_s=args.prefill_wait_seconds)
        self._channels = Channels(cluster_key(), _identity(args), rungs(args), self._landings.attach)
        self._dialling: list[asyncio.Task[None]] = []

    async def start(self, entrance: Any) -> None:
        if self._args.kv_transfer != "none" and self._args.pd != "never":
            self._dialling.append(asyncio.create_task(self._dial_ahead()))

    def attach(self, engine: Any) -> None:
        from runtimes.vllm_pd.front import Front

        engine.placement = Front(self._args, engine, self._leases, self._channels, self._landings)

    async def drain(self, seconds: float) -> None:
        for task in self._dialling:
            task.cancel()
        await self._leases.close()

    def close(self) -> None:
        self._channels.close()

    async def _dial_ahead(self) -> None:
        """A lease for no tokens tells a peer's address; one that isn't there yet is dialled when it is needed."""
        for _ in range(len(self._leases.addrs) if isinstance(self._leases, FixedLeases) else 1):
            with contextlib.suppress(ChannelError, NoPrefill):
                lease = await self._leases.lease("channel", 0)
                try:
                    await self._channels.get(lease)
                    self._status.event("channel_ready")
                finally:
                    await self._leases.release(lease)


def make_pair(args: Namespace, status: Status, timelines: Timelines) -> Pair:
    if args.role == "prefill":
        return PrefillPair(args, status, timelines)
    if args.role == "decode":
        return DecodePair(args, status, timelines)
    return Unified()


def rungs(args: Namespace) -> Sequence[Rung]:
    chosen: dict[str, Sequence[Rung]] = {"shm": ("shm",), "ipc": ("shm",), "tcp": ("tcp",), "rdma": ("rdma",)}
    return chosen.get(args.kv_transfer, RUNGS)


def _identity(args: Namespace) -> Identity:
    name = os.environ.get("GALAXY_INSTANCE_ID") or f"{args.role}-{os.getpid()}"
    given = os.environ.get("GALAXY_GENERATION", "")
    return Identity(name, int(given) if given.isdigit() else generation(), layout(args))
