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

from runtimes.transport.channel import Rung
from runtimes.transport.handshake import Identity
from runtimes.transport.listener import Listener
from runtimes.transport.rungs import RUNGS, VERBS
from runtimes.vllm_pd import worker_side
from runtimes.vllm_pd.accepted import Accepted
from runtimes.vllm_pd.channels import Channels, generation
from runtimes.vllm_pd.given import GivenLeases
from runtimes.vllm_pd.halves import decode_half, prefill_half
from runtimes.vllm_pd.home_client import cluster_key, make_leases
from runtimes.vllm_pd.keeper import Keeper
from runtimes.vllm_pd.layout import layout
from runtimes.vllm_pd.ranks.ahead import dial_ahead
from runtimes.vllm_pd.ranks.decode_front import FrontLandings
from runtimes.vllm_pd.status import StartRefused, Status
from runtimes.vllm_pd.timeline import Timelines

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
        self._half = prefill_half(args, self._who, rungs(args), cluster_key())
        self.kv_transfer["kv_connector_extra_config"] = self._half.extra
        worker_side.CURRENT[:] = [self._half.worker]
        self._listener: Listener | None = None
        self._channels: Accepted | None = None

    async def start(self, entrance: Any) -> None:
        most = self._args.kv_most_channels
        channels = self._channels = Accepted(
            self._who, self._half.attach, self._half.open_on, self._changed, most=most
        )
        try:
            self._listener = Listener(
                cluster_key(), lambda: self._who, channels.take, rungs(self._args), self._args.kv_host
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
        self._half.pushes.on_end = channels.ended
        entrance.channels = self._facts
        entrance.leases = GivenLeases(self._who_and_where)
        channels.start()
        self._status.event("channel_listening")

    def _who_and_where(self) -> dict[str, Any]:
        addr = f"{self._args.kv_host}:{self._status.facts()['port']}"
        return {"instance": self._who.name, "addr": addr, "generation": self._who.generation}

    def attach(self, engine: Any) -> None:
        from runtimes.vllm_pd.prefill import PrefillJobs

        self._jobs = PrefillJobs(engine, self._half.pushes, self._timelines)

    async def drain(self, seconds: float) -> None:
        self._half.pushes.refuse_jobs()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._half.pushes.open_transfers:  # noqa: ASYNC110  (ended by threads)
                    await asyncio.sleep(_POLL_S)

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        if self._channels is not None:
            self._channels.close()

    def _facts(self) -> dict[str, Any]:
        return kv_facts(self._args, self._channels)

    def _changed(self) -> None:
        self._status.tell_kv(self._facts())


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
        self._leases = make_leases(wait_s=args.prefill_wait_seconds)
        self._who = _identity(args)
        self._half = decode_half(args, self._who, rungs(args), cluster_key())
        self.kv_transfer["kv_connector_extra_config"] = self._half.extra
        worker_side.CURRENT[:] = [self._half.worker]
        self._channels: Channels | None = None
        self._ready = False

    async def start(self, entrance: Any) -> None:
        channels = self._channels = Channels(
            cluster_key(),
            self._who,
            rungs(self._args),
            self._half.attach,
            self._half.open_on,
            self._changed,
            pairs=self._args.kv_pairs,
            most=self._args.kv_most_channels,
        )
        if self._half.pushes is not None:
            self._half.pushes.on_end = channels.ended
        entrance.channels = self._facts
        channels.start()
        if self._args.kv_transfer != "none" and self._args.pd != "never":
            channels.follow(self._leases)
        self._changed()

    def attach(self, engine: Any) -> None:
        from runtimes.vllm_pd.front import Front

        assert self._channels is not None
        engine.placement = Front(self._args, engine, self._leases, self._channels, self._half.landings)
        if isinstance(self._half.landings, FrontLandings):
            dial_ahead(engine, self._half.landings)

    async def drain(self, seconds: float) -> None:
        if self._channels is not None:
            self._channels.unfollow()
        await self._leases.close()

    def close(self) -> None:
        if self._channels is not None:
            self._channels.close()

    def _facts(self) -> dict[str, Any]:
        return kv_facts(self._args, self._channels)

    def _changed(self) -> None:
        facts = self._facts()
        self._status.tell_kv(facts)
        if not self._ready and any(pair["state"] == "up" for pair in facts["pairs"]):
            self._ready = True
            self._status.event("channel_ready")


def make_pair(args: Namespace, status: Status, timelines: Timelines) -> Pair:
    if args.role == "prefill":
        return PrefillPair(args, status, timelines)
    if args.role == "decode":
        return DecodePair(args, status, timelines)
    return Unified()


def rungs(args: Namespace) -> Sequence[Rung]:
    chosen: dict[str, Sequence[Rung]] = {"shm": ("shm",), "ipc": ("ipc", "shm"), "rdma": VERBS}
    chosen |= {"nixl": ("nixl",), "tcp": ("tcp",)}
    return chosen.get(args.kv_transfer, RUNGS)


def kv_facts(args: Namespace, channels: Keeper | None) -> dict[str, Any]:
    """What is told of the channels, at /galaxy/channels and to the node agent."""
    return {
        "role": args.role,
        "kv_transfer": args.kv_transfer if args.pd != "never" else "none",
        "required": args.kv_transfer_required,
        "peers": channels.peers if channels is not None else None,
        "pairs": channels.facts() if channels is not None else [],
    }


def _identity(args: Namespace) -> Identity:
    pod = (
        os.environ.get("HOSTNAME", "") if "K_REVISION" in os.environ else ""
    )  # of Knative's, each is process 1
    name = os.environ.get("GALAXY_INSTANCE_ID") or pod or f"{args.role}-{os.getpid()}"
    given = os.environ.get("GALAXY_GENERATION", "")
    return Identity(name, int(given) if given.isdigit() else generation(), layout(args))
