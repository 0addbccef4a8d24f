"""One instance: loads a model with vLLM in this process, serves it, drains on SIGTERM.

`main` is callable after a fork (zygote.py): everything slow that needs no model was imported before it. It
listens at once, answers "not ready" while the engine loads on a thread, and is ready when the model has
answered one token. Exit codes: 0 drained, 1 trouble of this machine or a dead engine, 2 the start can't succeed.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import functools
import os
import signal
import sys
import traceback
from argparse import Namespace
from pathlib import Path
from typing import Any

from runtimes.vllm_pd import options
from runtimes.vllm_pd.control import Control
from runtimes.vllm_pd.hang import LOOK_S, Steps
from runtimes.vllm_pd.http_server import http_server, listen
from runtimes.vllm_pd.ranks import forking
from runtimes.vllm_pd.sleep import Sleeper, why_not
from runtimes.vllm_pd.status import StartRefused, Status

#: Kept from being collected: tearing an engine down takes a second, ending the process does it at once.
_left_alone: list[object] = []

_LAST_WORDS_S = 2.0  # for streams to end with their error event when the engine has died


def main(argv: list[str]) -> int:
    options.apply_environment()
    status = Status.from_environment()
    status.enter("importing")
    try:
        from runtimes.vllm_pd.preimport import preimport
        from runtimes.vllm_pd.refusals import explain

        preimport()
        status.event("imported")
        args = arguments(argv)
        if _forks_ranks(args):
            forking.serve()
        os.environ.setdefault(forking.METHOD, "spawn")  # other processes of an engine: it has threads by then
        forking.use_threads(os.environ["OMP_NUM_THREADS"])
    except StartRefused as refusal:
        return _refuse(status, refusal)
    except Exception as error:
        return _refuse(status, explain(error, "arguments", set()))
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        instance = Instance(args, status)
        _left_alone.append(instance)
        return runner.run(instance.run())


def arguments(argv: list[str], *, weights: bool = True) -> Namespace:
    """Without `weights` the model's folder needs no more than its config.json."""
    from vllm.platforms import current_platform

    from runtimes.vllm_pd.model_folder import architectures, check_model_folder
    from runtimes.vllm_pd.preimport import register_architecture

    args = options.parse(argv)
    options.fill_cpu_defaults(args, current_platform.is_cpu())
    if args.enable_sleep_mode and current_platform.is_cpu():  # vLLM says it of the model
        error = "vLLM's CPU backend can't sleep: there is no device whose memory it could give back"
        raise StartRefused(error, "--enable-sleep-mode", "leave it out on CPUs")
    needs_tokenizer = not (args.skip_tokenizer_init or args.tokenizer)
    if weights and args.load_format != "dummy":
        check_model_folder(args.model, needs_tokenizer=needs_tokenizer)
    if current_platform.is_cpu():
        for architecture in architectures(args.model):
            register_architecture(architecture)
    return args


def _forks_ranks(args: Namespace) -> bool:
    """On CPUs: what a GPU's driver makes of a fork is its own affair."""
    from vllm.platforms import current_platform

    several = args.tensor_parallel_size > 1
    return several and bool(current_platform.is_cpu()) and forking.possible()


def _refuse(status: Status, refusal: StartRefused) -> int:
    status.fail(refusal)
    print(f"error: {refusal.line}", file=sys.stderr, flush=True)
    return 2 if refusal.permanent else 1


class Instance:
    """The life of one server, from listening to drained."""

    def __init__(self, args: Namespace, status: Status) -> None:
        from runtimes.vllm_pd.entrance import Entrance
        from runtimes.vllm_pd.pair import make_pair
        from runtimes.vllm_pd.timeline import Timelines

        self.args = args
        self.status = status
        self.timelines = Timelines()
        self.entrance = Entrance(status, self.timelines)
        self.pair = make_pair(args, status, self.timelines)
        self.engine: Any = None
        self.control: Control | None = None
        self.server: Any = None
        self.started = asyncio.Event()
        self.stop = asyncio.Event()
        self.death: BaseException | None = None

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        self.status.enter("loading")
        try:
            listener = listen(self.args.host, self.args.port)
        except OSError as error:
            return _refuse(
                self.status,
                StartRefused(str(error), "--port", "choose another port, or 0", permanent=False),
            )
        level = self.args.uvicorn_log_level
        server = self.server = http_server(
            self.entrance, self.args.drain_seconds, level if level != "info" else "warning"
        )
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        self.status.listening(listener.getsockname()[1])
        try:
            async with contextlib.AsyncExitStack() as stack:
                refusal = await self._load(stack)
                if refusal is None:
                    watching = asyncio.create_task(self._watch())
                    await self.stop.wait()
                    watching.cancel()
                    self.status.enter("draining")
                code = await self._end(refusal)
                server.should_exit = True
                await serving
                await self.pair.drain(self.args.drain_seconds)
                self.status.leave_behind(self.timelines.facts())
        finally:
            if self.control is not None:
                self.control.close()
            self.pair.close()
            self.status.close()
        return code

    async def _load(self, stack: contextlib.AsyncExitStack) -> StartRefused | None:
        """Engine, application, one token. None: ready."""
        from runtimes.vllm_pd.refusals import explain

        known = set(vars(self.args))
        try:
            await self.pair.start(self.entrance)
            engine = self.engine = await asyncio.to_thread(self._build)
            self.status.event("engine_ready")
            loop = asyncio.get_running_loop()
            engine.client.on_death = lambda error: loop.call_soon_threadsafe(self._on_death, error)
            app = await self._application(engine)
            await stack.enter_async_context(app.router.lifespan_context(app))
            await self._weights()
            await _first_token(engine)
            self.status.event("first_token")
            self.pair.attach(engine)
            await self._listen_to_node(engine)
        except Exception as error:
            refusal = explain(error, "loading", known)
            if not refusal.permanent and not isinstance(error, StartRefused):
                traceback.print_exc()
            return refusal
        self.entrance.app = app
        self.status.enter("ready")
        self.started.set()
        return None

    async def _listen_to_node(self, engine: Any) -> None:
        from vllm.platforms import current_platform

        folder = os.environ.get("GALAXY_INSTANCE_DIR")
        if not folder:
            return
        refusal = why_not(bool(current_platform.is_cpu()), bool(self.args.enable_sleep_mode))
        close = functools.partial(setattr, self.entrance, "asleep", True)
        open_ = functools.partial(setattr, self.entrance, "asleep", False)
        sleeper = Sleeper(engine, _Channels(self), refusal, close, open_)
        self.control = Control(sleeper, self._on_death)
        await self.control.listen(Path(folder))

    async def _watch(self) -> None:
        """Says that this loop turns, and ends an instance whose engine has stuck."""
        client, steps = self.engine.client, Steps(self.args.hung_seconds)
        while True:
            self.status.beat()
            if steps.hung(client.turns, client.at_rest, asyncio.get_running_loop().time()):
                faulthandler.dump_traceback()  # where it is stuck
                client.give_up(TimeoutError(f"no step has ended for {self.args.hung_seconds:g} s"))
            await asyncio.sleep(LOOK_S)

    def _build(self) -> Any:
        from runtimes.vllm_pd.engine import build_engine

        return build_engine(self.args, self.pair.kv_transfer, self.status.event)

    async def _weights(self) -> None:
        """Waits for what the engine was built without (shaped.py)."""

    async def _application(self, engine: Any) -> Any:
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state

        tasks = await engine.get_supported_tasks()
        app = self._routes(tasks, engine.model_config)
        await init_app_state(engine, app.state, self.args, tasks)
        app.state.server = self.server  # vLLM's error handlers look at it when the engine has died
        return app

    def _routes(self, tasks: Any, model_config: Any) -> Any:
        return routes(self.args, tasks, model_config)

    async def _end(self, refusal: StartRefused | None) -> int:
        if refusal is not None:
            return _refuse(self.status, refusal)
        if self.death is None:
            return 0
        text = f"the engine has died: {type(self.death).__name__}: {self.death}"
        _refuse(self.status, StartRefused(text, "engine", "see the log", permanent=False))
        await asyncio.sleep(0.05)  # the handlers of open streams get to run before the server closes
        return 1

    def _on_signal(self) -> None:
        if self.status.phase in ("importing", "loading"):
            self.status.enter("draining")
            self.pair.close()
            os._exit(0)  # nothing was promised to anybody yet, and the engine's thread can't be interrupted
        self.stop.set()

    def _on_death(self, error: BaseException) -> None:
        if self.death is not None:
            return
        traceback.print_exception(error)
        self.death = error
        self.args.drain_seconds = _LAST_WORDS_S
        self.server.config.timeout_graceful_shutdown = _LAST_WORDS_S
        self.stop.set()


def routes(args: Namespace, tasks: Any, model_config: Any) -> Any:
    """The application, without what it is to speak for (its state)."""
    import vllm
    from vllm.entrypoints.launchers.app import build_app

    from runtimes.vllm_pd.protocols import add_routes

    app = build_app(args, tasks, model_config)
    add_routes(app, vllm.__version__)
    return app


class _Channels:
    """Of an instance: its side of prefill and decode, which is made anew when the engine wakes."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance

    async def leave(self) -> None:
        from runtimes.vllm_pd.connector import settle

        instance = self._instance
        await instance.pair.drain(instance.args.drain_seconds)
        instance.pair.close()
        await instance.engine.client.call(settle)  # blocks that are held can't be forgotten
        instance.status.event("asleep")

    async def join(self, generation: int) -> None:
        from runtimes.vllm_pd.connector import join_instance
        from runtimes.vllm_pd.pair import make_pair

        instance = self._instance
        os.environ["GALAXY_GENERATION"] = str(generation)
        instance.pair = make_pair(instance.args, instance.status, instance.timelines)
        await instance.engine.client.call(join_instance)
        await instance.pair.start(instance.entrance)
        instance.pair.attach(instance.engine)
        instance.status.event("awake")


async def _first_token(engine: Any) -> None:
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
    async for _ in engine.generate({"prompt_token_ids": [1]}, params, "galaxy-first-token"):
        return


def run() -> None:
    """Entry of the process: leaves without the interpreter's clean-up, which waits for threads of libraries."""
    code = 1
    try:
        code = main(sys.argv[1:])
    except SystemExit as leaving:  # --help
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
