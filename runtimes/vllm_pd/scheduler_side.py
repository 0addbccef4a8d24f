"""The scheduler's half of the KV connector: which blocks to reserve, and which are computed. Moves nothing.

Works on what vLLM's scheduler tells a connector (kv_connector/v1/base.py); the outcome is a Plan that travels to
the worker's half with the step. Two classes, one a role; neither imports vLLM. Blocks go both ways: decode waits for
what prefill computes, and prefill may first fetch what decode holds of the prompt (an earlier turn and its answer).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from runtimes.vllm_pd.ranks.words import Begin, PeerRanks

#: Key in kv_transfer_params: the number of a transfer into decode, and of a push out of prefill.
TRANSFER = "galaxy_transfer"
PUSH = "galaxy_push"


class Reservation(NamedTuple):
    """Decode's blocks for one request. `held`: those at the prompt's start that it has already, in order."""

    transfer: int
    request: str
    held: list[int]
    targets: list[int]
    tokens: int
    peer: PeerRanks | None = None  # where to claim them, if the engine's ranks are processes


class Fetch(NamedTuple):
    """Prefill's blocks for what decode holds of a prompt, from its block number `skip` on."""

    push: int
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
    fetch: tuple[Fetch, ...] = ()
    dropped: tuple[str, ...] = ()  # requests whose fetch prefill doesn't need any more
    progress: tuple[Progress, ...] = ()
    withdrawn: tuple[int, ...] = ()  # jobs whose blocks nobody may read any more
    why: str = "preempted"  # these are
    # Said by the front to ranks that are processes (ranks/): its jobs, those that won't be computed, and requests
    # whose transfer has ended before it was reserved.
    begin: tuple[Begin, ...] = ()
    ended: tuple[int, ...] = ()
    failed: tuple[str, ...] = ()

    def failed_step(self) -> Plan:
        """Instead of it, when the step has raised: nobody knows what is in the blocks that it was to compute."""
        return Plan(withdrawn=tuple(p.push for p in self.progress), why="step-failed")


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

    def matched(self, request: Any, computed: int) -> int | None:
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
        held, targets = blocks[:skip], blocks[skip:end]
        self._reserve.append(Reservation(transfer, request.request_id, held, targets, external))

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


class Holdings(Protocol):
    """What decode has of a prompt already: blocks that need not be computed here."""

    def held(self, push: int) -> int | None:
        """How many blocks at the prompt's start decode keeps for us; None: it hasn't said yet, ask again."""

    def pays(self, tokens: int) -> bool:
        """Whether so many tokens are better fetched from there than computed here. Asked once a request."""


class PrefillSide:
    """Computes prompts whose blocks another engine waits for, after fetching what that one holds of them."""

    def __init__(self, block_size: int, holdings: Holdings) -> None:
        self._block_size = block_size
        self._holdings = holdings
        self._pushes: dict[str, tuple[int, int]] = {}  # request -> push, prompt tokens
        self._begun: set[str] = set()  # requests that the worker's half knows
        self._asked: dict[
            str, bool | None
        ] = {}  # requests not allocated yet: whether to fetch, None = undecided
        self._fetching: set[str] = set()  # requests whose blocks are reserved
        self._fetch: list[Fetch] = []
        self._dropped: list[str] = []

    def arrived(self, request: Any) -> None:
        push = (request.kv_transfer_params or {}).get(PUSH)
        if push is not None:
            self._pushes[request.request_id] = (push, request.num_prompt_tokens)
            self._asked[request.request_id] = None

    def matched(self, request: Any, computed: int) -> int | None:
        """Tokens that decode holds and we lack; None: ask again. A failed fetch isn't tried again."""
        name = request.request_id
        if name not in self._asked or self._asked[name] is False:
            return 0
        held = self._holdings.held(self._pushes[name][0])
        if held is None:
            return None
        lacking = max(0, held * self._block_size - computed)
        if self._asked[name] is None:
            self._asked[name] = lacking > 0 and self._holdings.pays(lacking)
        return lacking if self._asked[name] else 0

    def allocated(self, request: Any, blocks: list[int], external: int) -> None:
        name = request.request_id
        if self._asked.pop(name, None) is None or external <= 0:
            return
        push = self._pushes[name][0]
        held = self._holdings.held(push) or 0
        skip = held - external // self._block_size
        self._fetching.add(name)
        self._fetch.append(Fetch(push, name, skip, blocks[skip:held], external))

    def finished(self, request: Any) -> bool:
        """True: keep its blocks until the worker's half says that they are sent."""
        name = request.request_id
        self._pushes.pop(name, None)
        self._asked.pop(name, None)
        if name in self._fetching:
            self._fetching.remove(name)
            self._dropped.append(name)
        begun = name in self._begun
        self._begun.discard(name)
        return begun

    def step(self, output: Any) -> Plan:
        cached = output.scheduled_cached_reqs
        before = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        before |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        preempted = (set(output.preempted_req_ids or ()) | cached.resumed_req_ids) & set(self._pushes)
        lost = tuple(self._pushes.pop(name)[0] for name in sorted(preempted))
        progress = []
        for name, start in before.items():
            self._fetching.discard(name)
            if name in self._pushes:
                push, prompt = self._pushes[name]
                done = start + output.num_scheduled_tokens.get(name, 0)
                progress.append(self._progress(name, push, prompt, done, output.kv_connector_block_state))
        plan = Plan(
            fetch=tuple(self._fetch),
            dropped=tuple(self._dropped),
            progress=tuple(p for p in progress if p is not None),
            withdrawn=lost,
        )
        self._fetch, self._dropped = [], []
        return plan

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
