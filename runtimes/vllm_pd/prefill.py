"""Runs the jobs that decode instances send: one token per prompt, so that its KV is computed and pushed.

Token ids come in and nothing but KV goes out; the token that vLLM samples is thrown away (decode computes the
last position itself). A job that its decode has cancelled is aborted in the engine.
"""

from __future__ import annotations

import asyncio
import time

from runtimes.vllm_pd import jobs
from runtimes.vllm_pd.engine import Engine
from runtimes.vllm_pd.pushing import Pushes
from runtimes.vllm_pd.scheduler_side import PUSH
from runtimes.vllm_pd.timeline import CURRENT, Timelines


class PrefillJobs:
    """`start` and `cancel` are called from other threads."""

    def __init__(self, engine: Engine, pushes: Pushes, timelines: Timelines) -> None:
        self._engine = engine
        self._pushes = pushes
        self._timelines = timelines
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        pushes.accept_jobs(self._start_soon, self._cancel_soon)

    def _start_soon(self, key: int, job: jobs.Prefill) -> None:
        self._loop.call_soon_threadsafe(self._start, key, job)

    def _cancel_soon(self, key: int) -> None:
        self._loop.call_soon_threadsafe(self._cancel, key)

    def _start(self, key: int, job: jobs.Prefill) -> None:
        task = self._loop.create_task(self._run(key, job))
        self._tasks[key] = task
        task.add_done_callback(lambda _: self._gone(key))

    def _gone(self, key: int) -> None:
        self._tasks.pop(key, None)
        self._pushes.forget(key)  # a task that is cancelled before its first step ends without a word

    def _cancel(self, key: int) -> None:
        task = self._tasks.get(key)
        if task is not None:
            task.cancel()

    async def _run(self, key: int, job: jobs.Prefill) -> None:
        from vllm import SamplingParams

        timeline = self._timelines.open(job.request_id)
        CURRENT.set(timeline)
        timeline.mark("prefill_received", f"{len(job.tokens)} tokens")
        params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
        params.extra_args = {"kv_transfer_params": {PUSH: key}}
        prompt = {"type": "token", "prompt_token_ids": job.tokens}
        started, error = time.time(), ""
        timeline.mark("prefill_start", at=started)
        try:
            async for _ in self._engine.generate(prompt, params, f"prefill-{key}-{job.request_id}"):
                pass
        except asyncio.CancelledError:
            error = "cancelled"
            raise
        except Exception as failure:
            error = f"prefill: {type(failure).__name__}: {failure}"
        finally:
            ended = time.time()
            timeline.mark("prefill_end", error, at=ended)
            self._pushes.job_ended(key, started, ended, error)
