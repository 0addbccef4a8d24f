"""Runs the jobs that decode instances send: one token per prompt, so that its KV is computed and pushed.

Token ids come in and nothing but KV goes out; the token that vLLM samples is thrown away (decode computes the
last position itself). A job that its decode has cancelled is aborted in the engine.
"""

from __future__ import annotations

import asyncio
import time

from runtimes.vllm_pd import jobs
from runtimes.vllm_pd.engine import Engine
from runtimes.vllm_pd.landing import Outcome
from runtimes.vllm_pd.ranks.mixed import MixedPrefill
from runtimes.vllm_pd.ranks.prefill_front import FrontPushes
from runtimes.vllm_pd.timeline import CURRENT, Timeline, Timelines


class PrefillJobs:
    """`start` and `cancel` are called from other threads."""

    def __init__(
        self,
        engine: Engine,
        pushes: MixedPrefill | FrontPushes,
        timelines: Timelines,
    ) -> None:
        self._engine = engine
        self._pushes = pushes
        self._timelines = timelines
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._running: dict[int, Timeline] = {}
        pushes.on_fetched = self._fetched_soon
        pushes.accept_jobs(self._start_soon, self._cancel_soon)

    def _start_soon(self, key: int, job: jobs.Prefill) -> None:
        self._loop.call_soon_threadsafe(self._start, key, job)

    def _cancel_soon(self, key: int) -> None:
        self._loop.call_soon_threadsafe(self._cancel, key)

    def _fetched_soon(self, key: int, outcome: Outcome) -> None:
        self._loop.call_soon_threadsafe(self._fetched, key, outcome)

    def _fetched(self, key: int, outcome: Outcome) -> None:
        timeline = self._running.get(key)
        if timeline is not None:
            what = f"{outcome.rung}, {outcome.bytes} bytes, {outcome.blocks} blocks, {outcome.ms:.2f} ms"
            timeline.mark("not_fetched" if outcome.reason else "fetched", outcome.reason or what)

    def _start(self, key: int, job: jobs.Prefill) -> None:
        task = self._loop.create_task(self._run(key, job))
        self._tasks[key] = task
        task.add_done_callback(lambda _: self._gone(key))

    def _gone(self, key: int) -> None:
        self._tasks.pop(key, None)
        self._running.pop(key, None)
        self._pushes.forget(key)  # a task that is cancelled before its first step ends without a word

    def _cancel(self, key: int) -> None:
        task = self._tasks.get(key)
        if task is not None:
            task.cancel()

    async def _run(self, key: int, job: jobs.Prefill) -> None:
        from vllm import SamplingParams

        timeline = self._running[key] = self._timelines.open(job.request_id)
        CURRENT.set(timeline)
        timeline.mark("prefill_received", f"{len(job.tokens)} tokens")
        params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
        prompt = {"type": "token", "prompt_token_ids": job.tokens}
        started, error, cached = time.time(), "", 0
        timeline.mark("prefill_start", at=started)
        try:
            name = f"prefill-{key}-{job.request_id}"
            async for output in self._engine.generate(prompt, params, name, push=key):
                cached = output.num_cached_tokens or 0
        except asyncio.CancelledError:
            error = "cancelled"
            raise
        except Exception as failure:
            error = f"prefill: {type(failure).__name__}: {failure}"
        finally:
            ended = time.time()
            timeline.mark("prefill_end", error, at=ended)
            if not error and timeline.when("fetched") is None:
                self._pushes.computed(len(job.tokens) - cached, ended - started)
            self._pushes.job_ended(key, started, ended, error)
