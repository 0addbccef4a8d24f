"""One router process: listens, waits for its engines, is ready, checks on them, drains on SIGTERM.

As an instance of a revision it tells its node agent about its life as our own engines do (vllm_pd/status.py). Exit
codes: 0 drained, 1 its engine has ended or the machine is in trouble, 2 the start can't succeed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import socket
import sys
from argparse import Namespace
from typing import Any, Final

import uvloop

from kserve_ext.core.two_leg.engines import Engines
from runtimes.two_leg import metrics, options
from runtimes.two_leg.app import App, get
from runtimes.two_leg.calls import Lost, NotReached
from runtimes.two_leg.child import Child
from runtimes.two_leg.prefills import Leasing, LeastLoaded
from runtimes.two_leg.router import Router, Settings
from runtimes.vllm_pd.home_client import make_leases
from runtimes.vllm_pd.http_server import http_server, listen
from runtimes.vllm_pd.status import StartRefused, Status
from runtimes.vllm_pd.timeline import Timelines

log = logging.getLogger(__name__)

_LOOK_S: Final = 0.2  # while the engine starts, and at what prefill still keeps
_USAGE: Final = re.compile(r"^vllm:kv_cache_usage_perc\S* (\S+)$", re.MULTILINE)


def main(argv: list[str]) -> int:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    status = Status.from_environment()
    status.enter("importing")
    try:
        args = options.parse(argv)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(Front(args, status).run())
    except StartRefused as refusal:
        return _refuse(status, refusal)


def _refuse(status: Status, refusal: StartRefused) -> int:
    status.fail(refusal)
    print(f"error: {refusal.line}", file=sys.stderr, flush=True)
    return 2 if refusal.permanent else 1


class Front:
    def __init__(self, args: Namespace, status: Status) -> None:
        self._args = args
        self._status = status
        self._stop = asyncio.Event()
        self._prefills: Engines | None = None
        self._asked: set[str] = set()  # engines, for their health

    async def run(self) -> int:
        args, status = self._args, self._status
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        status.enter("loading")
        try:
            listener = listen(args.host, args.port)
        except OSError as error:
            remedy = "choose another port, or 0"
            raise StartRefused(str(error), "--port", remedy, permanent=False) from error
        with listener:
            return await self._serve(listener)

    async def _serve(self, listener: socket.socket) -> int:
        args, status = self._args, self._status
        leases = self._leases()
        child = await Child.start(args.engine) if args.engine else None
        own = child.url if child is not None else args.engine_url
        router = self._router([own] if own else args.decode, leases)
        server = http_server(App(router, status, Timelines(), own), args.drain_seconds)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        ending = asyncio.create_task(self._ending(child))
        checking = asyncio.create_task(self._check(router))
        host, port = listener.getsockname()[:2]
        status.listening(port)
        log.info("listening at %s:%d", host, port)
        try:
            code = await ending
            status.enter("draining" if code == 0 else "failed")
            server.should_exit = True
            await serving
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(args.drain_seconds):
                    await router.drain()
                    await self._pulled(router, own)
        finally:
            checking.cancel()
            if child is not None:
                await child.stop()
            await router.leases.close()
            status.close()
        return code

    def _leases(self) -> Leasing:
        args = self._args
        if args.prefill or args.role != "decode":
            self._prefills = Engines(args.prefill)
            return LeastLoaded(self._prefills, asyncio.get_running_loop().time)
        return make_leases(wait_s=args.prefill_wait_seconds)

    def _router(self, decodes: list[str], leases: Leasing) -> Router:
        args = self._args
        settings = Settings(
            args.pd,
            args.pd_threshold_tokens,
            args.chars_per_token,
            args.prefill_seconds,
            args.prefill_wait_seconds,
            args.kv_transfer_required,
            args.role == "prefill",
        )
        return Router(Engines(decodes), leases, settings)

    async def _ending(self, child: Child | None) -> int:
        """Until it is told to stop, or its engine ends by itself."""
        stopping = asyncio.create_task(self._stop.wait())
        waiting: set[asyncio.Task[Any]] = {stopping}
        if child is not None:
            waiting.add(asyncio.create_task(child.ended()))
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if stopping in done:
                return 0
            code = done.pop().result()
        finally:
            for task in waiting:
                task.cancel()
        print(f"error: command: the engine has ended with exit code {code}; see the log", file=sys.stderr)
        return 1

    async def _check(self, router: Router) -> None:
        """Every engine is asked for its health; the first decode engine that passes makes this ready."""
        for engine in router.decodes.all.values():
            engine.healthy = False
        while True:
            self._status.beat()
            checks = [self._check_one(router, router.decodes, "decode", addr) for addr in router.decodes.all]
            if self._prefills is not None:
                checks += [self._check_one(router, self._prefills, "prefill", a) for a in self._prefills.all]
            await asyncio.gather(*checks)
            if self._status.phase == "loading" and router.decodes.any_healthy:
                self._status.enter("ready")
                log.info("ready")
            ready = self._status.phase == "ready"
            await asyncio.sleep(self._args.check_seconds if ready else _LOOK_S)

    async def _check_one(self, router: Router, engines: Engines, role: str, addr: str) -> None:
        why, within = "", max(1.0, self._args.check_seconds)
        try:
            await get(router, addr, b"/health", within)
        except TimeoutError:
            why = f"no answer to /health within {within:g} s"
            news = engines.late(addr)
        except (NotReached, Lost) as error:
            why = str(error)
            news = engines.checked(addr, healthy=False)
        else:
            news = engines.checked(addr, healthy=True)
        metrics.WELL.labels(role, addr).set(engines.all[addr].healthy)
        first = addr not in self._asked
        self._asked.add(addr)
        if news or (first and why and not engines.all[addr].healthy):
            log.warning("%s engine %s: %s", role, addr, why or "is well again")

    async def _pulled(self, router: Router, own: str) -> None:
        """Prefill stays until others have what it keeps for them; an engine that can't say is not waited for."""
        while own and self._args.role == "prefill":
            try:
                found = _USAGE.search((await get(router, own, b"/metrics")).decode())
            except (NotReached, Lost, TimeoutError):
                return
            if found is None or float(found[1]) == 0:
                return
            await asyncio.sleep(_LOOK_S)
