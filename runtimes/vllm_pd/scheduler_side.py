"""The scheduler's half of the KV connector: which blocks to reserve, and which are computed. Moves nothing.

Works on what vLLM's scheduler tells a connector (kv_connector/v1/base.py); the outcome is a Plan that travels to
the worker's half with the step. Two classes, one a role; neither imports vLLM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

#: Key in kv_transfer_params: the number of a transfer into decode, and of a push out of prefill.
TRANSFER = "galaxy_transfer"
PUSH = "galaxy_push"


class Reservation(NamedTuple):
    """Decode's blocks for one request. `skip`: blocks at the prompt's start that decode has already."""

    transfer: int
    request: str
    skip: int
    targets: list[int]
    tokens: int


class Progress(NamedTuple):
    """Prefill's blocks of one request after this step: the first `whole` of them are computed."""

    push: int
    request: str
    blocks: list[int]
    whole: int
    final: bool


class Plan(NamedTuple):
    """What the worker's half does with this step."""

    reserve: tuple[Reservation, ...] = ()
    unused: tuple[int, ...] = ()  # transfers that decode doesn't need (any more)
    progress: tuple[Progress, ...] = ()
    preempted: tuple[int, ...] = ()


class DecodeSide:
    """Waits for blocks that another engine computes."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._asked: dict[str, int] = {}  # requests with a transfer that isn't reserved yet
        self._waiting: dict[str, int] = {}  # requests whose blocks are reserved
        self._reserve: list[Reservation] = []
        self._unused: list[int] = []

    def arrived(self, request: Any) -> None:
        transfer = (request.kv_transfer_params or {}).get(TRANSFER)
        if transfer is not None:
            self._asked[request.request_id] = transfer

    def matched(self, request: Any, computed: int) -> int:
        """Tokens that will come from outside. May be asked repeatedly; a failed transfer isn't tried again."""
        if request.request_id not in self._asked:
            return 0
        return max(0, int(request.num_prompt_tokens) - computed)

    def allocated(self, request: Any, blocks: list[int], external: int) -> None:
        transfer = self._asked.pop(request.request_id, None)
        if transfer is None:
            return
        if external <= 0:
            self._unused.append(transfer)
            return
        skip = (request.num_prompt_tokens - external) // self._block_size
        end = -(-request.num_prompt_tokens // self._block_size)
        self._waiting[request.request_id] = transfer
        reservation = Reservation(transfer, request.request_id, skip, blocks[skip:end], external)
        self._reserve.append(reservation)

    def finished(self, request: Any) -> bool:
        for known in (self._asked, self._waiting):
            transfer = known.pop(request.request_id, None)
            if transfer is not None:
                self._unused.append(transfer)
        return False

    def step(self, output: Any) -> Plan:
        plan = Plan(reserve=tuple(self._reserve), unused=tuple(self._unused))
        self._reserve, self._unused = [], []
        return plan


class PrefillSide:
    """Computes prompts whose blocks another engine waits for."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._pushes: dict[str, tuple[int, int]] = {}  # request -> push, prompt tokens
        self._begun: set[str] = set()  # requests that the worker's half knows

    def arrived(self, request: Any) -> None:
        push = (request.kv_transfer_params or {}).get(PUSH)
        if push is not None:
            self._pushes[request.request_id] = (push, request.num_prompt_tokens)

    def matched(self, request: Any, computed: int) -> int:
        return 0

    def allocated(self, request: Any, blocks: list[int], external: int) -> None:
        return

    def finished(self, request: Any) -> bool:
        """True: keep its blocks until the worker's half says that they are sent."""
        self._pushes.pop(request.request_id, None)
        begun = request.request_id in self._begun
        self._begun.discard(request.request_id)
        return begun

    def step(self, output: Any) -> Plan:
        cached = output.scheduled_cached_reqs
        before = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        before |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        preempted = (set(output.preempted_req_ids or ()) | cached.resumed_req_ids) & set(self._pushes)
        lost = tuple(self._pushes.pop(name)[0] for name in sorted(preempted))
        progress = []
        for name, start in before.items():
            if name in self._pushes:
                push, prompt = self._pushes[name]
                done = start + output.num_scheduled_tokens.get(name, 0)
                progress.append(self._progress(name, push, prompt, done, output.kv_connector_block_state))
        return Plan(progress=tuple(p for p in progress if p is not None), preempted=lost)

    def _progress(self, name: str, push: int, prompt: int, done: int, state: Any) -> Progress | None:
        resolve: Callable[[str], tuple[list[int], ...] | None] = state.get_block_ids
        groups = resolve(name)
        if groups is None:
            return None
        final = done >= prompt
        total = -(-prompt // self._block_size)
        whole = total if final else done // self._block_size
        self._begun.add(name)
        return Progress(push, name, list(groups[0][:total]), whole, final)
