"""Requests that begin with output: the engine takes the tokens as its own, put out before, and computes from there.

To vLLM such a request is like one that was preempted and comes again, so that everything counts them as output that
counts output: penalties, min_tokens and max_tokens, stop conditions, bad words, logits processors, grammars. Its
first model runner has no way to be told of a new request with output (the second one has); there the state that it
keeps of a request takes the tokens from where they travel, in the extra arguments of the sampling parameters.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from vllm.v1.engine import FINISH_REASON_STRINGS, EngineCoreOutput, FinishReason
from vllm.v1.engine.output_processor import RequestOutputCollector
from vllm.v1.outputs import LogprobsLists
from vllm.v1.worker import gpu_model_runner
from vllm.v1.worker.gpu_input_batch import CachedRequestState

from runtimes.vllm_pd.continuation import Record

EMITTED = "galaxy_emitted"


def emitted(params: Any) -> list[int]:
    tokens: list[int] = (getattr(params, "extra_args", None) or {}).get(EMITTED) or []
    return tokens


def with_emitted(params: Any, tokens: list[int]) -> Any:
    """A copy of sampling parameters; without tokens none are left in it, whoever has put them there."""
    if not tokens and not emitted(params):
        return params
    params = params.clone()
    extra = {name: value for name, value in (params.extra_args or {}).items() if name != EMITTED}
    params.extra_args = {**extra, EMITTED: tokens} if tokens else extra or None
    return params


class Collector(RequestOutputCollector):  # type: ignore[misc]
    """Hands out what is repeated first, one output at a time."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.repeated: deque[Any] = deque()

    def get_nowait(self) -> Any:
        return self.repeated.popleft() if self.repeated else super().get_nowait()


def repeat(processor: Any, request_id: str, record: Record, queue: Collector) -> bool:
    """Brings the request's state in vLLM's output processor to where the record ends. True: there it has finished."""
    state = processor.request_states[request_id]
    tracing, processor.tracing_enabled = processor.tracing_enabled, False
    repeated = []
    for number, tokens in enumerate(record.outputs, 1):
        output = EngineCoreOutput(request_id, list(tokens))
        if state.logprobs_processor.num_logprobs is not None:
            output.new_logprobs = _some_logprobs(tokens)
        if number == len(record.outputs) and record.finish is not None and not _by_stop_string(record):
            output.finish_reason = FinishReason(FINISH_REASON_STRINGS.index(record.finish.reason))
            output.stop_reason = record.finish.stop
        processor.process_outputs([output])
        repeated.append(queue.get_nowait())
    processor.tracing_enabled = tracing
    queue.repeated.extend(output for output in repeated if output is not None)
    state.is_prefilling = True  # the next output is this engine's first
    return request_id not in processor.request_states


def _by_stop_string(record: Record) -> bool:
    """The output processor finds it itself."""
    finish = record.finish
    return finish is not None and finish.reason == "stop" and isinstance(finish.stop, str)


def _some_logprobs(tokens: tuple[int, ...]) -> LogprobsLists:
    """The client has the real ones; what counts here is how long the tokens' texts are."""
    count = len(tokens)
    return LogprobsLists(np.array(tokens).reshape(count, 1), np.zeros((count, 1)), np.ones(count, np.int32))


# --- in the engine's core, on its thread


def begin(request: Any) -> None:
    """Before the scheduler has it."""
    tokens = emitted(request.sampling_params)
    if tokens:
        request.append_output_token_ids(tokens)
        request.prefill_stats = None  # of prompts: these wouldn't be true of what follows one


def advance_grammars(core: Any) -> None:
    """A grammar of a request that begins with output is where the output has brought it."""
    manager = core.structured_output_manager
    create = manager._create_grammar

    def created(request: Any) -> Any:
        grammar = create(request)
        tokens = emitted(request.sampling_params)
        if tokens and not grammar.accept_tokens(request.request_id, tokens):
            raise ValueError("the tokens that were put out before do not fit the grammar")
        return grammar

    manager._create_grammar = created


# --- in workers


class _State(CachedRequestState):  # type: ignore[misc]
    def __post_init__(self) -> None:
        super().__post_init__()
        self.output_token_ids: list[int] = [*emitted(self.sampling_params), *self.output_token_ids]


def teach_model_runner() -> None:
    gpu_model_runner.CachedRequestState = _State
