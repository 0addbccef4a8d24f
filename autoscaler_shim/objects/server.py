"""The objects process: `python -m autoscaler_shim objects`. Puts desk, admin server and overview on one loop.

What the cluster is (domain, claims, addresses) it reads from cluster.json, which `galaxy up` writes. Killed and
started again it finds everything in the store; meanwhile requests flow, since nobody else depends on it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
from pathlib import Path
from typing import Any

from aiohttp import web

from autoscaler_shim.node import model_files
from autoscaler_shim.objects.admin import Admin, failure
from autoscaler_shim.objects.book import Book
from autoscaler_shim.objects.desk import Desk
from autoscaler_shim.objects.overview import Overview
from autoscaler_shim.objects.reconciler import Reconciler
from autoscaler_shim.objects.storage import OrderedStorage
from kserve_ext.api.kserve.storage import Claims
from kserve_ext.fluid.preload import ModelUnavailable, ModelUnusable
from kserve_ext.rpc.membership import Membership
from kserve_ext.rpc.process import Process, steady_clock
from kserve_ext.rpc.rpc import Rpc
from kserve_ext.store.opening import open_store

log = logging.getLogger(__name__)


def check_folder(path: str, ours: bool) -> str:
    """What is wrong with a model folder, "" if nothing can be seen from its texts and the heads of its weights."""
    folder = Path(path)
    if not folder.exists():
        return f"no such folder: {path}"
    if not ours:
        return ""
    try:
        model_files.check(folder, model_files.manifest(folder), transformer=True)
        model_files.check_tokenizer(folder)
    except (ModelUnusable, ModelUnavailable) as error:
        return f"broken model: {error}"
    return ""


def main(args: argparse.Namespace) -> int:
    process = Process.from_args(args, kind="objects")
    cluster: dict[str, Any] = json.loads((process.data / "cluster.json").read_text())

    async def run(rpc: Rpc, membership: Membership) -> None:
        store = open_store(process, rpc)
        claims = Claims(str(process.data / "pvc"), cluster.get("pvc") or {})
        address = f"http://{cluster['http']}"
        reconciler = Reconciler(Book(), claims, cluster["domain"], address, check_folder)
        desk = Desk(reconciler, OrderedStorage(store), steady_clock(), random.Random())
        await desk.load()
        overview = Overview(rpc, membership, reconciler)
        reconciler.too_large = overview.too_large
        reconciler.channels = overview.channels
        admin = Admin(desk, process.key(), overview.look)

        async def status(request: web.Request) -> web.Response:
            return web.json_response(await overview.status())

        async def explain(request: web.Request) -> web.Response:
            found = await overview.request(request.match_info["id"])
            if found is None:
                message = "no Dispatch function remembers this request; each keeps its last 1000"
                return failure(404, "NotFound", message)
            return web.json_response(found)

        admin.extra("/api/status", status)
        admin.extra("/api/explain/{id}", explain)
        runner = web.AppRunner(admin.app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        host, _, port = str(cluster["objects"]).rpartition(":")
        await web.TCPSite(runner, host, int(port), reuse_address=True).start()
        process.info(admin=cluster["objects"])

        def changed(key: str, value: bytes | None) -> None:
            desk.status_changed(key, value)
            overview.news()

        store.watch("status/", lambda items: _took_in(desk, items), changed)
        membership.on_view(lambda view: overview.news())
        await membership.start()
        process.ready()
        follower = asyncio.create_task(overview.follow(desk.look_at_all))
        try:
            await desk.run()
        finally:
            follower.cancel()
            await store.close()
            await runner.cleanup()

    return process.run(run)


def _took_in(desk: Desk, items: dict[str, bytes]) -> None:
    """A scan of status/: what is gone is gone for the observations, too."""
    for revision in set(desk.reconciler.observed) - {key.partition("/")[2] for key in items}:
        desk.status_changed(f"status/{revision}", None)
    for key, value in items.items():
        desk.status_changed(key, value)
