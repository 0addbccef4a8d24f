"""Entry of a Dispatch function: `python -m activator_replacement --id ID --data DIR --controller ADDR --http ADDR`.

Joins shard (dispatch.py), homes (homes.py) and data plane (server.py) in one process; decides nothing itself.
"""

from __future__ import annotations

# ruff: noqa: E402  the form is chosen before anything of it is imported
from activator_replacement import compiled

compiled.use()

import argparse
import asyncio
import logging
import sys
from time import monotonic
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from activator_replacement.copies import status_of
from activator_replacement.dispatch import TICK_S, Dispatcher
from activator_replacement.homes import Homes
from activator_replacement.metrics import ConnectionCollector
from activator_replacement.peers import PeerWatches
from activator_replacement.prefill import PrefillLeases
from activator_replacement.routes import Routes
from activator_replacement.server import Address, Server
from kserve_ext.core.facts import Revision, View
from kserve_ext.core.ids import RevisionKey
from kserve_ext.rpc import Caller, Rpc
from kserve_ext.rpc.membership import Membership
from kserve_ext.rpc.process import Process, common_args
from kserve_ext.store import Store
from kserve_ext.store.opening import open_store
from kserve_ext.wire.messages import Describe, Description, Load

log = logging.getLogger(__name__)

DRAIN_S = 30.0
FLUSH_S = 1.0


class DispatchFunction:
    """Shard, homes and data plane of one process."""

    def __init__(self, rpc: Rpc, membership: Membership, store: Store) -> None:
        self._rpc, self.membership = rpc, membership
        self.routes = Routes(self._revision, lambda key: self.homes.routed(key))
        self.dispatcher = Dispatcher(membership.me, membership.member.incarnation, rpc, self.routes)
        self.homes = Homes(rpc, membership, store, self.routes, self.dispatcher)
        self.prefill = PrefillLeases(rpc, self.dispatcher, self.routes, self.homes)
        self.peers = PeerWatches(rpc, self.routes, self.homes.peers_of)
        registry = CollectorRegistry()
        registry.register(ConnectionCollector(rpc.connections))
        self.server = Server(self.dispatcher, registry=registry, status=self.status, ready=self.not_ready)
        rpc.handle(Describe, self.describe)
        membership.on_view(self._view)
        membership.report_load(self.load)
        self.routes.follow(store)

    def _revision(self, key: RevisionKey, revision: Revision | None, created: bool) -> None:
        self.dispatcher.revision(key, revision)
        self.homes.revision(key, revision, created=created)

    def _view(self, view: View) -> None:
        self._rpc.warm(m.addr for kind in ("schedule", "dispatch") for m in view.of(kind))
        self.homes.view(view)
        self.dispatcher.view(view, self.homes.home_of)

    async def run(self) -> None:
        while True:
            due = monotonic() + TICK_S
            await asyncio.sleep(TICK_S)
            late_s = max(0.0, monotonic() - due)
            for ticks in (self.dispatcher.ticks(), self.homes.ticks(late_s)):
                for _ in ticks:
                    if monotonic() - due < TICK_S:  # what has come meanwhile is not to wait for all of it;
                        await asyncio.sleep(0)  # behind, homes are not to wait for all that comes

    def load(self) -> Load:
        dispatcher = self.dispatcher
        return Load(requests=dispatcher.submitted, queued=dispatcher.held, instances=dispatcher.in_flight)

    def not_ready(self) -> str:
        return "" if self.routes.loaded else "has not heard from the state store yet"

    def status(self) -> dict[str, Any]:
        return {
            "id": self.membership.me,
            "kind": "dispatch",
            "epoch": self.membership.view.epoch,
            "held": self.dispatcher.held,
            "in_flight": self.dispatcher.in_flight,
            "requests": self.dispatcher.submitted,
            "connections": self._rpc.connections(),
            "revisions": [self._status_of(key) for key in sorted(self.dispatcher.shard.parts)],
        }

    def _status_of(self, key: RevisionKey) -> dict[str, Any]:
        throttler = self.dispatcher.shard.parts[key].throttler
        found: dict[str, Any] = {
            "revision": key,
            "home": False,
            "held": throttler.held,
            "in_flight": throttler.in_flight,
        }
        home = self.homes.of_revision(key)
        if home is not None:
            of_home = status_of(home[1].revisions[key])
            of_home.pop("held")
            found |= {"home": True, **of_home}
        return found

    def describe(self, message: Describe, caller: Caller) -> Description:
        body = self.dispatcher.requests.find(message.key) if message.what == "request" else self.status()
        return Description(msgspec.json.encode(body))


def _address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host, int(port)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m activator_replacement", description=__doc__)
    common_args(parser)
    parser.add_argument(
        "--http", type=_address, required=True, help="public address, shared by all functions"
    )
    parser.add_argument(
        "--own-http", type=int, default=0, help="port of this function alone, 0 = any free one"
    )
    parser.add_argument(
        "--admin-port", type=int, default=0, help="metrics, checks and status, 0 = any free one"
    )
    parser.add_argument(
        "--domain", default="galaxy.local", help="accepted for symmetry; routes carry full names"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    process = Process.from_args(args, kind="dispatch")

    async def run(rpc: Rpc, membership: Membership) -> None:
        store = open_store(process, rpc)
        function = DispatchFunction(rpc, membership, store)
        own = (args.host, args.own_http)
        _, own, admin = await function.server.start([], own, (args.host, args.admin_port))
        http = f"{own[0]}:{own[1]}"
        membership.set_info(http=http)
        process.info(http=http, admin=f"{admin[0]}:{admin[1]}" if admin else "")
        # Who knows no revisions can't be their home, nor take requests that others of this port could serve.
        await function.routes.complete.wait()
        await function.homes.copies.complete.wait()
        await membership.start()
        ticks = asyncio.create_task(function.run())
        try:
            await function.server.listen(args.http)
            process.ready()
            await asyncio.shield(ticks)
        except asyncio.CancelledError:  # SIGTERM: its revisions have their home here until it leaves the view
            cut = await function.server.drain(DRAIN_S)
            if cut:
                log.warning("cut off %d clients that were not done within %g s", cut, DRAIN_S)
            raise
        finally:
            ticks.cancel()
            await function.server.close()
            await store.flush(FLUSH_S)
            await store.close()

    return process.run(run)


if __name__ == "__main__":
    sys.exit(main())
