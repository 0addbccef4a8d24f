"""AsyncLLM with its engine core on a thread of this process, and a hook before each request for prefill/decode.

Matches vLLM's v1/engine/async_llm.py: everything that its HTTP handlers call is inherited. What is ours: which
engine client is made, the marks on a request's timeline, asking `pd` where a prompt is to be computed, and requests
that begin with the output of another instance (resuming.py).
"""

from __future__ import annotations

import contextlib
from argparse import Namespace
from collections.abc import AsyncGenerator, Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine import FINISH_REASON_STRINGS, async_llm
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.executor import Executor

from runtimes.vllm_pd import resuming
from runtimes.vllm_pd.continuation import ASKED, Finish
from runtimes.vllm_pd.inproc import InprocAsyncClient
from runtimes.vllm_pd.options import kv_cache_bytes
from runtimes.vllm_pd.ranks import forking
from runtimes.vllm_pd.scheduler_side import PUSH
from runtimes.vllm_pd.timeline import CURRENT

_WORKER = "runtimes.vllm_pd.worker.Worker"
_TRANSFER_PARAMS = "kv_transfer_params"


class Prepared(NamedTuple):
    """`params` to use; `transfer` is the number of one that brings the prompt's KV into this engine, 0 = none.

    `tokens` of the prompt are to be computed, since `at` (unix seconds); 0 = it says nothing of other prompts.
    """

    params: Any
    transfer: int = 0
    tokens: int = 0
    at: float = 0.0
    waiting: int = 0  # its number among the prompts that are computed here, 0 = none


class Placement(Protocol):
    """Decides where the prompt of a request is computed (runtimes/vllm_pd/front.py)."""

    async def prepare(self, request_id: str, prompt: Any, params: Any, more: dict[str, Any]) -> Prepared: ...

    def finished(self, prepared: Prepared, first_token: float | None, cached: int) -> None:
        """The request has ended, in whatever way. `first_token`: unix seconds; `cached`: tokens it began with."""


class Engine(AsyncLLM):  # type: ignore[misc]
    """One engine of this process."""

    placement: Placement | None = None
    #: Streams may be gone on with: its workers know of requests that begin with output.
    continues = True
    #: Its connector is ours: which blocks come and go is not for clients to say.
    transfers = False

    @property
    def client(self) -> InprocAsyncClient:
        client: InprocAsyncClient = self.engine_core
        return client

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, *, push: int | None = None, **more: Any
    ) -> AsyncGenerator[Any, None]:
        """`push`: of a prompt that is computed for another engine."""
        if self.transfers:
            sampling_params = with_transfer(sampling_params, {} if push is None else {PUSH: push})
        timeline = CURRENT.get()
        if timeline is not None:
            timeline.mark_once("tokenised", f"{len(prompt_tokens(prompt) or ())} tokens")
        asked = ASKED.get()
        record = None
        if asked is not None:
            asked.begins(self._continues(prompt, sampling_params))
            record = asked.record
        tokens = record.tokens if record is not None else []
        if record is not None:
            self._check(prompt, sampling_params, tokens, record.finish)
            if timeline is not None:
                timeline.mark("resumed", f"{len(tokens)} tokens of another instance")
        prepared = Prepared(sampling_params)
        if self.placement is not None:
            prepared = await self.placement.prepare(request_id, prompt, sampling_params, more)
        elif timeline is not None:
            timeline.local("one-engine")
        if tokens:
            prepared = prepared._replace(tokens=0)
        params = resuming.with_emitted(prepared.params, tokens)
        outputs = super().generate(prompt, params, request_id, **more)
        cached = 0
        try:
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    cached = output.num_cached_tokens or 0
                    if asked is not None:
                        asked.put_out(output)
                    yield output
        finally:
            if timeline is not None:
                timeline.mark("last_token")
            if self.placement is not None:
                first_token = timeline.when("first_token") if timeline is not None else None
                self.placement.finished(prepared, first_token, cached)

    async def _add_request(self, request: Any, prompt: Any, parent: Any, index: int, queue: Any) -> None:
        timeline = CURRENT.get()
        if timeline is not None:
            self.client.first_token[request.request_id] = lambda: timeline.mark_once("first_token")
        asked = ASKED.get()
        if asked is None or asked.record is None or not asked.record.outputs:
            await super()._add_request(request, prompt, parent, index, queue)
            return
        self.check_admission(request_id=request.request_id)
        self.output_processor.add_request(request, prompt, parent, index, queue)
        finished = resuming.repeat(self.output_processor, request.request_id, asked.record, queue)
        asked.repeated = len(queue.repeated)
        if not finished:
            await self.client.add_request_async(request)

    def _continues(self, prompt: Any, params: Any) -> bool:
        """Whether another engine that is given the tokens so far puts out what this one would."""
        reasons = self.vllm_config.structured_outputs_config.reasoning_parser
        return (
            self.continues
            and prompt_tokens(prompt) is not None
            and params.n == 1
            and params.output_kind == RequestOutputKind.DELTA
            and params.prompt_logprobs is None
            and not params.logprob_token_ids
            and not (
                params.structured_outputs is not None and reasons
            )  # where the grammar began is not known
            and not (params.extra_args or {}).get(_TRANSFER_PARAMS)
        )

    def _check(self, prompt: Any, params: Any, tokens: list[int], finish: Finish | None) -> None:
        """What a record says goes into the engine: it must be what such an engine can have put out."""
        known = range(self.model_config.get_vocab_size())
        length = len(prompt_tokens(prompt) or ()) + len(tokens)
        most = self.model_config.max_model_len if finish else self.model_config.max_model_len - 1
        if not all(token in known for token in tokens):
            raise VLLMValidationError("the record of the stream has tokens that this model does not have")
        if len(tokens) > (params.max_tokens or length) or length > most:
            raise VLLMValidationError("the record of the stream has more tokens than it may have")
        if finish is not None and finish.reason not in FINISH_REASON_STRINGS:
            raise VLLMValidationError(
                f"the record of the stream ends for no reason that there is: {finish.reason}"
            )


def with_transfer(params: Any, transfer: dict[str, int]) -> Any:
    """A copy of sampling parameters; without a transfer none is left in it, whoever has put it there."""
    if not transfer and _TRANSFER_PARAMS not in (params.extra_args or {}):
        return params
    params = params.clone()
    extra = {name: value for name, value in (params.extra_args or {}).items() if name != _TRANSFER_PARAMS}
    params.extra_args = {**extra, _TRANSFER_PARAMS: transfer} if transfer else extra or None
    return params


def prompt_tokens(prompt: Any) -> list[int] | None:
    """The token ids of a rendered prompt of plain tokens; None for text and for multi-modal prompts."""
    if isinstance(prompt, dict) and prompt.get("type", "token") == "token":
        return prompt.get("prompt_token_ids")
    return None


def build_engine(args: Namespace, kv_transfer: dict[str, Any] | None, event: Callable[[str], None]) -> Engine:
    """Reads the model's config and loads it; blocks. Errors are vLLM's own (refusals.py makes sense of them)."""
    config = configuration(args, kv_transfer)
    executor = _telling(Executor.get_class(config), event)
    with _ranks_forked():
        engine = front(args, config, executor, lambda: InprocAsyncClient(config, executor, log_stats(args)))
    engine.transfers = kv_transfer is not None
    return engine


def configuration(args: Namespace, kv_transfer: dict[str, Any] | None) -> Any:
    """vLLM's configuration of an engine, complete."""
    engine_args = AsyncEngineArgs.from_cli_args(args)
    engine_args.worker_extension_cls = engine_args.worker_extension_cls or _WORKER
    if kv_transfer is not None:
        from vllm.config import KVTransferConfig

        engine_args.kv_transfer_config = KVTransferConfig(**kv_transfer)
    config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    if current_platform.is_cpu() and config.cache_config.kv_cache_memory_bytes is None:
        config.cache_config.kv_cache_memory_bytes = kv_cache_bytes(
            kv_bytes_per_token(config), config.model_config.max_model_len
        )
    return config


def front(args: Namespace, config: Any, executor: Any, make: Callable[[], InprocAsyncClient]) -> Engine:
    """What speaks for the engine that `make` starts, or finds: tokenizer, requests, streams, statistics."""
    with _engine_on_a_thread(make):
        engine = Engine(
            vllm_config=config,
            executor_class=executor,
            log_requests=args.enable_log_requests,
            log_stats=log_stats(args),
        )
    engine.continues = config.parallel_config.worker_extension_cls == _WORKER
    return engine


def log_stats(args: Namespace) -> bool:
    return not args.disable_log_stats


def _telling(executor: Any, event: Callable[[str], None]) -> Any:
    """The same executor, which says when its workers have loaded their weights."""

    def init(self: Any) -> None:
        executor._init_executor(self)
        event("weights_loaded")

    return type(executor.__name__, (executor,), {"_init_executor": init})


def kv_bytes_per_token(config: Any) -> int:
    model, parallel = config.model_config, config.parallel_config
    size = model.dtype.itemsize if config.cache_config.cache_dtype == "auto" else 1
    return int(
        2 * model.get_num_layers(parallel) * model.get_num_kv_heads(parallel) * model.get_head_size() * size
    )


@contextlib.contextmanager
def _engine_on_a_thread(client: Callable[[], InprocAsyncClient]) -> Iterator[None]:
    """While this lasts, AsyncLLM takes our client instead of one with processes of its own; our collectors stay."""

    def make(**_ignored: Any) -> InprocAsyncClient:
        return client()

    async_llm.RequestOutputCollector = resuming.Collector
    original = async_llm.EngineCoreClient
    async_llm.EngineCoreClient = SimpleNamespace(make_async_mp_client=make)
    try:
        yield
    finally:
        async_llm.EngineCoreClient = original


@contextlib.contextmanager
def _ranks_forked() -> Iterator[None]:
    """While this lasts, vLLM's executor forks its workers from the server that was made for them, if one was."""
    if not forking.serves():
        yield
        return
    from vllm.v1.executor import multiproc_executor

    original = multiproc_executor.get_mp_context
    multiproc_executor.get_mp_context = forking.Context
    try:
        yield
    finally:
        multiproc_executor.get_mp_context = original
        forking.all_started()
