"""A standby process with a shaped engine: `python -m runtimes.vllm_pd.shaped --socket PATH -- --model FOLDER ...`.

It becomes an instance by one request on its unix socket, a JSON object a line, in a zygote's words ({"argv", "env",
"cwd", "stdout", "stderr"} -> {"pid"}), so that whoever starts instances can ask either. A service of another shape is
refused with the field and nothing has happened; once loading has begun a failure ends the process, with an instance's
exit codes. {"free": true} drains it and makes it a standby again; {"ping": true} says what it is.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
import traceback
from argparse import Namespace
from concurrent.futures import Future
from typing import Any, Literal, NoReturn

from kserve_ext.rpc.zygote import arguments_only, redirect
from runtimes.vllm_pd import options
from runtimes.vllm_pd.server import Instance, arguments
from runtimes.vllm_pd.shaped_engine import ShapedEngine, Spent
from runtimes.vllm_pd.status import StartRefused, Status

State = Literal["warming", "ready", "starting", "serving", "draining", "failed"]
_LINE = 1 << 20  # bytes, of a request
_PR_SET_PDEATHSIG = 1


class ShapedInstance(Instance):
    """An instance whose engine is there already."""

    def __init__(
        self, args: Namespace, status: Status, shaped: ShapedEngine, env: dict[str, str], *, load: bool = True
    ) -> None:
        super().__init__(args, status)
        self._shaped = shaped
        self._load_weights = load
        try:
            self._config = shaped.configure(args, self.pair.kv_transfer, env)
        except BaseException:
            self.pair.close()
            raise
        self._loading: Future[int] | None = None
        #: From here on the engine is this service's.
        self.began = False

    def _build(self) -> Any:
        self.began = True
        engine, self._loading = self._shaped.take(self.args, self._config, load=self._load_weights)
        engine.transfers = self.pair.kv_transfer is not None
        return engine

    async def _weights(self) -> None:
        assert self._loading is not None
        await asyncio.wrap_future(self._loading)
        self.status.event("weights_into_shape")

    def _routes(self, tasks: Any, model_config: Any) -> Any:
        return self._shaped.routes(self.args, tasks, model_config)


class Standby:
    """One shaped engine and the socket where it is asked for."""

    def __init__(self, path: str, argv: list[str]) -> None:
        self._path = path
        self._argv = argv
        self._shaped: ShapedEngine | None = None
        self._state: State = "warming"
        self._reason = ""
        self._instance: ShapedInstance | None = None
        self._task: asyncio.Task[int] | None = None
        self._told: asyncio.Event = asyncio.Event()  # whenever the state changes
        self._code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._replaced: dict[str, str | None] = {}  # the environment before the service's

    async def run(self) -> int:
        """Until SIGTERM, or until the engine is spent. The exit code."""
        _remove(self._path)
        server = await asyncio.start_unix_server(self._serve, self._path, limit=_LINE)
        os.chmod(self._path, 0o600)
        self._catch_signals()
        try:
            if (refusal := await self._warm()) is not None:
                self._enter("failed", refusal.line)
                print(f"error: {refusal.line}", file=sys.stderr, flush=True)
                return 2 if refusal.permanent else 1
            self._enter("ready")
            _log(f"a shaped engine waits for weights: {' '.join(self._argv)}")
            return await self._code
        finally:
            server.close()
            _remove(self._path)

    def _catch_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._end, 0)

    async def _warm(self) -> StartRefused | None:
        from runtimes.vllm_pd.refusals import explain
        from runtimes.vllm_pd.rehearsal import rehearse

        args = None
        try:
            args = arguments(self._argv, weights=False)
            self._shaped = await asyncio.to_thread(_build, args)
            await rehearse(self._shaped, self._argv)
            await self._build_routes()
        except Exception as error:
            if not isinstance(error, StartRefused):
                traceback.print_exc()
            return explain(error, "loading" if args else "arguments", set(vars(args)) if args else set())
        self._catch_signals()  # the rehearsal had its own
        return None

    async def _build_routes(self) -> None:
        assert self._shaped is not None
        await asyncio.to_thread(self._shaped.build_routes, arguments(self._argv, weights=False))

    # --- the socket

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            try:
                request = json.loads(await reader.readuntil(b"\n"))
                if not isinstance(request, dict):
                    raise ValueError("the request is not a JSON object")
                await self._answer(request, lambda answer: _say(writer, answer))
            except (ValueError, KeyError, TypeError) as error:
                _say(writer, {"error": f"{type(error).__name__}: {error}"})
            except StartRefused as refusal:
                _log(f"the shaped engine did not take a service: {refusal.line}")
                _say(writer, _refused(refusal))
            await writer.drain()
        writer.close()

    async def _answer(self, request: dict[str, Any], say: Any) -> None:
        if request.get("ping"):
            say(self._facts())
        elif request.get("free"):
            await self._free(request.get("drain_s"))
            say(self._facts())
        else:
            self._start(request)
            say({"pid": os.getpid()})
            if request.get("wait"):
                await self._until(lambda: self._state in ("serving", "failed"))
                say(self._facts())

    def _facts(self) -> dict[str, Any]:
        instance = self._instance
        return {
            "state": self._state,
            "ready": self._state == "ready",
            "reason": self._reason,
            "pid": os.getpid(),
            "port": instance.status.facts()["port"] if instance else 0,
        }

    # --- a service

    def _start(self, request: dict[str, Any]) -> None:
        """Raises StartRefused: nothing has happened."""
        if self._state != "ready" or self._shaped is None:
            raise StartRefused(f"this standby is {self._state}", "slot", "take another", permanent=False)
        argv = arguments_only([str(word) for word in request["argv"]])
        env = {str(k): str(v) for k, v in (request.get("env") or {}).items()}
        self._replace_environment(env)
        try:
            status = Status.from_environment()
            status.event("shape_asked")
            instance = ShapedInstance(_arguments(argv), status, self._shaped, env)
        except BaseException:
            self._restore_environment()
            raise
        if request.get("cwd"):
            os.chdir(request["cwd"])
        if request.get("stdio") != "inherit" and request.get("stdout"):
            redirect(request["stdout"], request.get("stderr") or request["stdout"])
        end_with_parent(False)
        status.event("shape_taken")
        self._instance = instance
        self._enter("starting")
        self._task = asyncio.get_running_loop().create_task(self._live(instance))

    async def _live(self, instance: ShapedInstance) -> int:
        watching = asyncio.create_task(self._watch(instance))
        try:
            code = await instance.run()
        finally:
            watching.cancel()
            self._catch_signals()
        if self._state != "draining":  # SIGTERM, or it has failed: an instance's end is its process's
            error = instance.status.facts()["error"]
            self._enter("failed", f"{error['field']}: {error['error']}; {error['remedy']}" if error else "")
            self._end(code, soon=True)
        return code

    async def _watch(self, instance: ShapedInstance) -> None:
        await instance.started.wait()
        self._enter("serving")

    async def _free(self, drain_s: float | None) -> None:
        instance, task = self._instance, self._task
        if instance is None or task is None or self._state != "serving" or self._shaped is None:
            raise StartRefused(
                f"this standby is {self._state}", "slot", "only one that serves can be freed", permanent=False
            )
        if drain_s is not None:
            instance.args.drain_seconds = drain_s
            instance.server.config.timeout_graceful_shutdown = max(1, round(drain_s))
        self._enter("draining")
        instance.stop.set()
        await task
        try:
            if instance.death is not None:
                raise Spent(f"the engine has died: {instance.death}")
            await asyncio.to_thread(self._shaped.release, instance.engine)
        except Spent as error:
            self._enter("failed", f"the engine can't serve another: {error}; its process is to be replaced")
            self._end(1, soon=True)
            return
        self._restore_environment()
        self._instance = self._task = None
        await self._build_routes()
        self._enter("ready")

    def _end(self, code: int, soon: bool = False) -> None:
        """`soon`: who waits for the state is answered before."""
        if soon:
            asyncio.get_running_loop().call_later(0.1, self._end, code)
        elif not self._code.done():
            self._code.set_result(code)

    def _enter(self, state: State, reason: str = "") -> None:
        self._state, self._reason = state, reason
        told, self._told = self._told, asyncio.Event()
        told.set()

    async def _until(self, condition: Any) -> None:
        while not condition():
            await self._told.wait()

    def _replace_environment(self, env: dict[str, str]) -> None:
        self._replaced = {name: os.environ.get(name) for name in env}
        os.environ.update(env)

    def _restore_environment(self) -> None:
        for name, value in self._replaced.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._replaced = {}


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _arguments(argv: list[str]) -> Namespace:
    """Raises StartRefused."""
    from runtimes.vllm_pd.refusals import explain

    try:
        return arguments(argv)
    except StartRefused:
        raise
    except Exception as error:
        raise explain(error, "arguments", set()) from error


def _build(args: Namespace) -> ShapedEngine:
    """An engine of a role finds a half of a connector while it is built; it is another for each service."""
    from runtimes.vllm_pd.pair import make_pair
    from runtimes.vllm_pd.timeline import Timelines

    pair = make_pair(args, Status(None), Timelines())
    try:
        return ShapedEngine(args, pair.kv_transfer)
    finally:
        pair.close()


def _refused(refusal: StartRefused) -> dict[str, Any]:
    return {
        "error": refusal.error,
        "field": refusal.field,
        "remedy": refusal.remedy,
        "permanent": refusal.permanent,
    }


def _say(writer: asyncio.StreamWriter, answer: dict[str, Any]) -> None:
    writer.write(json.dumps(answer).encode() + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="runtimes.vllm_pd.shaped", description="A shaped engine that waits."
    )
    parser.add_argument("--socket", required=True, help="unix socket to listen on")
    parser.add_argument(
        "arguments", nargs="*", help="after --: an instance's; of the model config.json is enough"
    )
    given = parser.parse_args()
    serve(given.socket, arguments_only(given.arguments))


def end_with_parent(on: bool) -> None:
    """While it serves nobody it is its zygote's; an instance outlives that."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM if on else 0)


def serve(path: str, argv: list[str]) -> NoReturn:
    """Until it has served, or is told to end. May be called after a fork."""
    options.apply_environment()
    from runtimes.vllm_pd.preimport import preimport
    from runtimes.vllm_pd.ranks import forking

    preimport()
    forking.use_threads(os.environ["OMP_NUM_THREADS"])
    import uvloop

    async def run() -> int:
        return await Standby(path, argv).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(run())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # without the clean-up of libraries, which waits for their threads


if __name__ == "__main__":
    main()
