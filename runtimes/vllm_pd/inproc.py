"""vLLM's engine core on a thread of this process, behind the asynchronous client interface of AsyncLLM.

vLLM itself runs the core of an asynchronous engine in a process of its own, which costs a second round of
imports at every start. Here the loop of that process (its EngineCoreProc.run_busy_loop) is a thread: requests
go in through a queue, outputs come back by call_soon_threadsafe. Never serialises; never touches the HTTP side.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.core import EngineCore
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.exceptions import EngineDeadError

from runtimes.vllm_pd import resuming

_Job = Callable[[Any], Any]


class Life:
    """What AsyncLLM looks at to learn that its engine is dead."""

    def __init__(self) -> None:
        self.engine_dead = False


class InprocAsyncClient(EngineCoreClient):  # type: ignore[misc]
    """One engine core, one thread, one event loop."""

    engine_ranks_managed = (0,)

    def __init__(self, vllm_config: Any, executor_class: Any, log_stats: bool) -> None:
        self.resources = Life()
        #: Called once, on the engine's thread, when a request has its first token; forgotten with the request.
        self.first_token: dict[str, Callable[[], None]] = {}
        self.on_death: Callable[[BaseException], None] = lambda error: None
        #: Turns of the engine's thread so far, and whether it waits for something to do.
        self.turns = 0
        self.generated = 0  # tokens, likewise
        self._waits = False
        self._jobs: queue.SimpleQueue[tuple[_Job, Future[Any] | None] | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._early: deque[Any] = deque()  # outputs before the loop is known
        self._outputs: asyncio.Queue[Any] = asyncio.Queue()
        self._lock = threading.Lock()
        built: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(vllm_config, executor_class, log_stats, built), name="engine", daemon=True
        )
        self._thread.start()
        built.result()

    # --- the engine's thread

    def _run(self, vllm_config: Any, executor_class: Any, log_stats: bool, built: Future[None]) -> None:
        try:
            core = EngineCore(vllm_config, executor_class, log_stats, self._worker_ended)
            resuming.advance_grammars(core)
        except BaseException as error:
            built.set_exception(error)
            return
        built.set_result(None)
        try:
            while self._take_jobs(core):
                outputs, executed = core.step_fn()
                for output in (outputs or {}).values():
                    self.generated += sum(len(one.new_token_ids) for one in output.outputs)
                    self._tell_first_tokens(output)
                    self._publish(output)
                core.post_step(executed)
                if not executed and core.scheduler.has_requests():
                    time.sleep(0.0005)  # only a KV transfer can make progress: give it the interpreter
        except BaseException as error:
            self.give_up(error)
        else:
            core.shutdown()

    def _take_jobs(self, core: Any) -> bool:
        """Carries out what was asked for; waits only when the engine has nothing to step. False: stop."""
        while True:
            idle = not (core.scheduler.has_requests() or core.batch_queue)
            self.turns += 1
            self._waits = idle
            try:
                job = self._jobs.get(block=idle)
            except queue.Empty:
                return True
            finally:
                self._waits = False
            if job is None:
                return False
            self._carry_out(core, *job)

    def _carry_out(self, core: Any, call: _Job, done: Future[Any] | None) -> None:
        if done is not None and not done.set_running_or_notify_cancel():
            return  # whoever asked has gone
        try:
            result = call(core)
        except Exception as error:
            if done is None:
                raise
            done.set_exception(error)
            return
        if done is None:
            return
        if isinstance(result, Future):
            result.add_done_callback(lambda finished: _copy(finished, done))
        else:
            done.set_result(result)

    def _fail_jobs(self, error: BaseException) -> None:
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            done = job[1] if job is not None else None
            if done is not None and done.set_running_or_notify_cancel():
                done.set_exception(EngineDeadError())

    def _tell_first_tokens(self, output: Any) -> None:
        if self.first_token:
            for one in output.outputs:
                told = self.first_token.pop(one.request_id, None) if one.new_token_ids else None
                if told is not None:
                    told()

    def _publish(self, output: Any) -> None:
        with self._lock:
            if self._loop is None:
                self._early.append(output)
                return
            loop = self._loop
        try:
            loop.call_soon_threadsafe(self._outputs.put_nowait, output)
        except RuntimeError:
            return  # the loop has ended: nobody waits for it any more

    # --- the event loop's side: whether the thread is well

    def _worker_ended(self) -> None:
        """Of an engine whose ranks are processes; called by the thread that watches them."""
        self.give_up(RuntimeError("a worker process has ended"))

    @property
    def at_rest(self) -> bool:
        return self._waits and self._jobs.empty()

    def give_up(self, error: BaseException) -> None:
        """The thread does not come back: whoever waits for it is told."""
        self.resources.engine_dead = True
        self._publish(EngineDeadError())
        self._fail_jobs(error)
        self.on_death(error)

    # --- the event loop's side: what AsyncLLM calls

    async def get_output_async(self) -> Any:
        if self._loop is None:
            with self._lock:
                self._loop = asyncio.get_running_loop()
                while self._early:
                    self._outputs.put_nowait(self._early.popleft())
        output = await self._outputs.get()
        if isinstance(output, BaseException):
            raise output
        return output

    async def call(self, job: _Job) -> Any:
        """Runs `job(core)` on the engine's thread, between two steps."""
        return await asyncio.wrap_future(self.submit(job))

    def submit(self, job: _Job) -> Future[Any]:
        """The same for any thread, and without waiting: what is asked for later comes later."""
        if self.resources.engine_dead:
            raise EngineDeadError()
        done: Future[Any] = Future()
        self._jobs.put((job, done))
        return done

    def forget(self) -> None:
        """Whoever has used this engine is gone: nothing that it has put out reaches who comes next."""
        self.first_token.clear()
        self.on_death = lambda error: None
        self.generated = 0
        with self._lock:
            self._early.clear()
            self._loop, self._outputs = None, asyncio.Queue()

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        if self.resources.engine_dead:
            raise EngineDeadError()

        def add(core: Any) -> None:
            try:
                prepared, wave = core.preprocess_add_request(request)
                resuming.begin(prepared)
                core.add_request(prepared, wave)
            except Exception:
                print(f"request {request.request_id} was not taken by the engine", file=sys.stderr)
                traceback.print_exc()
                self.first_token.pop(request.request_id, None)
                failed = EngineCoreOutput(request.request_id, [], finish_reason=FinishReason.ERROR)
                self._publish(EngineCoreOutputs(outputs=[failed], finished_requests={request.request_id}))

        self._jobs.put((add, None))

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        for name in request_ids:
            self.first_token.pop(name, None)
        if request_ids and not self.resources.engine_dead:
            self._jobs.put((lambda core: core.abort_requests(request_ids), None))

    def shutdown(self, timeout: float | None = None) -> None:
        self._jobs.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join(timeout if timeout is not None else 5.0)

    def dp_engines_running(self) -> bool:
        return False


def _utility(name: str) -> Any:
    async def utility(self: InprocAsyncClient, *args: Any, **kwargs: Any) -> Any:
        return await self.call(lambda core: getattr(core, name)(*args, **kwargs))

    utility.__name__ = f"{name}_async"
    return utility


for _name in (
    "get_supported_tasks",
    "pause_scheduler",
    "resume_scheduler",
    "is_scheduler_paused",
    "profile",
    "reset_mm_cache",
    "reset_prefix_cache",
    "reset_encoder_cache",
    "sleep",
    "release_kv_cache_memory",
    "wake_up",
    "is_sleeping",
    "execute_dummy_batch",
    "set_weight_version",
    "get_weight_version",
    "add_lora",
    "remove_lora",
    "list_loras",
    "pin_lora",
    "save_sharded_state",
    "collective_rpc",
    "compute_weight_checksums",
):
    setattr(InprocAsyncClient, f"{_name}_async", _utility(_name))


def _copy(source: Future[Any], target: Future[Any]) -> None:
    error = source.exception()
    if error is not None:
        target.set_exception(error)
    else:
        target.set_result(source.result())
