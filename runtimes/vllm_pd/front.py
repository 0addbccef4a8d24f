"""Decode's front: for each request decides where its prompt is computed, and arranges for it.

The outcome is on the request's timeline and in the response's head (x-kv-transfer). Whatever goes wrong before
or during a transfer, the prompt is computed here: a prefill engine makes a request faster, never possible. One that
failed is left alone for a while (peers.py), and home hears of each failure with the lease that comes back.
"""

from __future__ import annotations

import asyncio
import time
from argparse import Namespace
from array import array
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, cast

from vllm.exceptions import GracefulHTTPError

from kserve_ext.core.dispatch.affinity import READ_BYTES, prefix_blocks
from kserve_ext.core.dispatch.pairing import TOKEN_BYTES
from kserve_ext.core.kv_cost import RECOMPUTE
from runtimes.transport.channel import ChannelError, Rung
from runtimes.vllm_pd import jobs, metrics
from runtimes.vllm_pd.backlog import Backlog
from runtimes.vllm_pd.break_even import BreakEven
from runtimes.vllm_pd.channels import Channels
from runtimes.vllm_pd.choosing import Choosing, Rungs, Trip
from runtimes.vllm_pd.decide import Channel, Facts, Setting, decide
from runtimes.vllm_pd.engine import Engine, Prepared, prompt_tokens, with_transfer
from runtimes.vllm_pd.home_client import NO_WORK, Computed, Lease, Leases, NoPrefill, Wanted
from runtimes.vllm_pd.landing import Outcome, Prompt
from runtimes.vllm_pd.load import LoadReports
from runtimes.vllm_pd.peers import Backoff
from runtimes.vllm_pd.ranks.decode_front import FrontLandings
from runtimes.vllm_pd.ranks.mixed import MixedDecode
from runtimes.vllm_pd.scheduler_side import TRANSFER
from runtimes.vllm_pd.timeline import CURRENT, Timeline

#: While a peer rests, home is not waited for: what it would give is likely to be that peer.
_SHORT_WAIT_S = 0.25
_MOST_LEASES = 3
_FRESH_S = 2.0  # what waits at prefill instances is known for so long
RESTS = "backing-off"


class Front:
    """A Placement (engine.py) for role decode."""

    def __init__(
        self,
        args: Namespace,
        engine: Engine,
        leases: Leases,
        channels: Channels,
        landings: MixedDecode | FrontLandings,
    ) -> None:
        self._setting: Setting = args.pd if args.kv_transfer != "none" else "never"
        self._even = BreakEven(args.pd_threshold_tokens)
        self._required, self._allowed = args.kv_transfer_required, args.kv_transfer
        self._engine = engine
        self._leases = leases
        self._channels = channels
        self._landings = landings
        self._loop = asyncio.get_running_loop()
        self._releases: set[asyncio.Task[None]] = set()
        self._backoff = Backoff()
        self._choosing = Choosing()
        self._given = args.pd_threshold_tokens is not None
        self._backlog = Backlog()
        self._there = (0, float("-inf"))  # tokens that waited at the best prefill instance, and when
        self._load = LoadReports(engine.client, leases)
        self._reporting = self._loop.create_task(self._load.run())

    async def prepare(self, request_id: str, prompt: Any, params: Any, more: dict[str, Any]) -> Prepared:
        timeline = CURRENT.get() or Timeline(request_id)
        tokens = prompt_tokens(prompt)
        obstacle = _obstacle(tokens, prompt, params, more)
        count = len(tokens or ())
        needed = self._even.needed(count)
        facts = self._facts(count)
        decision = decide(self._setting, needed, facts, obstacle, given=self._given)
        cached = 0
        if decision is None:
            assert tokens is not None
            cached = await self._engine.client.call(lambda core: cached_tokens(core, tokens))
            decision = decide(self._setting, needed, facts._replace(cached=cached), given=self._given)
            assert decision is not None
        comparable = Prepared(params, 0, 0 if obstacle else count, time.time())
        timeline.mark("decided", f"{'prefill' if decision.remote else 'local'}: {decision.reason}")
        metrics.DECISIONS.labels("prefill" if decision.remote else "local", _word(decision.reason)).inc()
        if not decision.remote or tokens is None:
            timeline.local(decision.reason)
            if _word(decision.reason) == "busy-there":
                self._load.unsent(count - cached)
            elif decision.reason == facts.rests:
                self._mark_refusals(timeline)
            return comparable._replace(waiting=self._waits(timeline, count - cached))
        try:
            transfer = await self._arrange(tokens, cached, timeline)
        except (NoPrefill, ChannelError) as error:
            timeline.mark("recompute", str(error))
            timeline.local(error.reason)
            metrics.TRANSFERS.labels(timeline.prefill.get("instance", ""), "none", error.reason).inc()
            self._refuse_if_required(str(error))
            return Prepared(params, waiting=self._waits(timeline, count - cached))
        return Prepared(with_transfer(params, {TRANSFER: transfer}), transfer, count - cached, comparable.at)

    def finished(self, prepared: Prepared, first_token: float | None, cached: int) -> None:
        self._backlog.remove(prepared.waiting)
        if prepared.transfer:
            self._landings.cancel(prepared.transfer, "request ended")  # it usually has ended long before
        if first_token is None or not prepared.tokens:
            return
        tokens = prepared.tokens if prepared.transfer else prepared.tokens - cached
        self._even.took(bool(prepared.transfer), tokens, first_token - prepared.at)
        metrics.THRESHOLD.set(self._even.threshold)

    def _facts(self, prompt: int) -> Facts:
        queued, at = self._there
        there = queued if self._loop.time() - at <= _FRESH_S else None
        facts = Facts(prompt, None, self._backlog.tokens, there, self._channel())
        if facts.channel != "resting":
            return facts
        words = {why.reason for why in self._channels.usable()[1].values()}
        return facts._replace(rests="incompatible") if words == {"incompatible"} else facts

    def _channel(self) -> Channel:
        standing, excluded = self._peers()
        if standing or self._required:  # then it is tried, and refused if it can't be
            return "standing"
        return "resting" if excluded and len(excluded) == self._channels.peers else "none"

    def _mark_refusals(self, timeline: Timeline) -> None:
        """Why no peer can be used, as the last one that was asked has said."""
        for reason, detail in set(self._channels.usable()[1].values()):
            timeline.mark("recompute", f"{reason}: {detail}")

    def _raise_if_all_refuse(self) -> None:
        """Home has nobody else to give: it isn't waited for."""
        refused = self._channels.usable()[1]
        if refused and len(refused) == self._channels.peers:
            words = {why.reason for why in refused.values()}
            says = sorted({f"{why.reason}: {why.detail}" for why in refused.values()})
            raise NoPrefill("; ".join(says), words.pop() if len(words) == 1 else RESTS)

    def _peers(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Those with a channel that stands, and those that are of no use now."""
        standing, refused = self._channels.usable()
        out = refused.keys() | set(self._backoff.resting(self._loop.time()))
        return tuple(sorted(standing - out)), tuple(sorted(out))

    def _waits(self, timeline: Timeline, tokens: int) -> int:
        return self._backlog.add(tokens, lambda: timeline.when("first_token") is not None)

    async def _lease(self, timeline: Timeline, tokens: int, wanted: Wanted) -> Lease:
        """Of a peer that does not rest."""
        for _ in range(_MOST_LEASES):
            wait_s = _SHORT_WAIT_S if self._backoff.anyone_rests(self._loop.time()) else None
            try:
                lease = await self._next_lease(timeline, tokens, wait_s, wanted)
            except NoPrefill as error:
                raise NoPrefill(str(error), RESTS if wait_s is not None else error.reason) from error
            if self._backoff.may_ask(lease.instance, self._loop.time()):
                return lease
            self._release(lease, RESTS)  # so that home gives another one, if there is any
        raise NoPrefill(f"{lease.instance} has failed and is left alone for a while", RESTS)

    async def _next_lease(
        self, timeline: Timeline, tokens: int, wait_s: float | None, wanted: Wanted
    ) -> Lease:
        """A lease that is granted after its request has gone is given back."""
        asking = asyncio.ensure_future(self._leases.lease(timeline.id, tokens, wait_s, wanted))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            asking.add_done_callback(self._give_back)
            raise

    def _give_back(self, asked: asyncio.Future[Lease]) -> None:
        if not asked.cancelled() and asked.exception() is None:
            self._release(asked.result(), "")

    async def _arrange(self, tokens: list[int], cached: int, timeline: Timeline) -> int:
        self._raise_if_all_refuse()
        wanted = Wanted(len(tokens) - cached, _prefix(tokens), *self._peers())
        lease = await self._lease(timeline, len(tokens), wanted)
        self._there = lease.queued, self._loop.time()
        timeline.mark("prefill_leased", f"{lease.instance} ({lease.why})" if lease.why else lease.instance)
        timeline.prefill = {"instance": lease.instance, "addr": lease.addr}
        try:
            channel, made = await self._channels.get(lease)
            how = f"{channel.rung}, {'dialled' if made else 'cached'}"
            timeline.mark("channel", "; ".join((how, *channel.passed)))
            timeline.prefill |= {"generation": channel.peer.generation, "passed": list(channel.passed)}
            rung, why = self._choose(lease, channel, len(tokens) - cached)
            timeline.mark("rung", why)
            timeline.prefill["rung"] = why
            trip = self._choosing.begin(lease.instance, rung, len(tokens) - cached)
            work: list[Computed] = []  # what prefill says of it, which it may do before or after the end

            def closed(outcome: Outcome) -> None:
                self._loop.call_soon_threadsafe(self._closed, lease, timeline, outcome, work, trip)

            def told(job: jobs.Computed | jobs.Sent) -> None:
                if isinstance(job, jobs.Computed):
                    work.append(Computed(len(tokens), job.started, job.ended))
                self._loop.call_soon_threadsafe(_told, timeline, job, trip)

            held = cached // self._engine.vllm_config.cache_config.block_size
            try:
                return self._landings.open(
                    channel, Prompt(timeline.id, tokens, closed, told, rung, held=held)
                )
            except BaseException:
                trip.end()
                raise
        except ChannelError as error:
            self._failed(lease, str(error))
            raise
        except BaseException:
            self._release(lease, "")
            raise

    def _choose(self, lease: Lease, channel: Rungs, tokens: int) -> tuple[Rung, str]:
        """The rung, and why. Raises NoPrefill: this engine would compute so many tokens before they were moved."""
        here_s = self._even.here_s(tokens) if self._setting == "auto" and not self._required else None
        choice = self._choosing.choose(lease.instance, channel, tokens, here_s)
        if choice is None:
            raise ChannelError("incompatible", "no rung can be used now")
        if choice.rung == RECOMPUTE:
            raise NoPrefill(choice.reason, "faster-here")
        return cast(Rung, choice.rung), choice.reason

    def _closed(
        self,
        lease: Lease,
        timeline: Timeline,
        outcome: Outcome,
        work: Sequence[Computed] = (),
        trip: Trip | None = None,
    ) -> None:
        if trip is not None:
            trip.closed(outcome)
        if outcome.reason == "timeout" or outcome.reason.startswith("channel-"):
            self._failed(lease, outcome.reason)
        else:
            self._release(lease, "", work[0] if work else NO_WORK)
        if not outcome.reason:
            self._backoff.succeeded(lease.instance)
        word = _word(outcome.reason)
        metrics.transferred(
            lease.instance, outcome.rung, word, outcome.bytes, outcome.ms / 1000, outcome.tokens
        )
        self._channels.count(lease.instance, 0, outcome.bytes)
        if outcome.reason:
            timeline.mark("recompute", outcome.reason)
            timeline.local(word, outcome.rung)
            return
        detail = f"{outcome.rung}, {outcome.bytes} bytes, {outcome.blocks} blocks, {outcome.ms:.2f} ms"
        timeline.mark("transfer", detail)
        timeline.transferred(outcome.rung, outcome.bytes, outcome.tokens, outcome.blocks, outcome.ms)

    def _refuse_if_required(self, why: str) -> None:
        """kv-transfer-required: better no answer now than one that prefill had no part in."""
        if self._required:
            raise GracefulHTTPError(
                f"kv-transfer-required: the KV transfer is not possible (kv-transfer is {self._allowed}): {why}",
                HTTPStatus.SERVICE_UNAVAILABLE,
            )

    def _failed(self, lease: Lease, why: str) -> None:
        self._backoff.failed(lease.instance, self._loop.time())
        self._release(lease, why)

    def _release(self, lease: Lease, failed: str, work: Computed = NO_WORK) -> None:
        task = self._loop.create_task(self._leases.release(lease, failed, work))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)


def cached_tokens(core: Any, tokens: list[int]) -> int:
    """How many of these tokens the engine's prefix cache holds. Runs on the engine's thread."""
    if core.request_block_hasher is None or not core.vllm_config.cache_config.enable_prefix_caching:
        return 0
    from vllm import SamplingParams
    from vllm.v1.request import Request

    request = Request(
        request_id="galaxy-lookup",
        prompt_token_ids=tokens,
        sampling_params=SamplingParams(max_tokens=1),
        pooling_params=None,
        block_hasher=core.request_block_hasher,
    )
    return int(core.scheduler.kv_cache_manager.get_computed_blocks(request)[1])


def _obstacle(tokens: list[int] | None, prompt: Any, params: Any, more: dict[str, Any]) -> str:
    """Why only this engine can compute this prompt; "" if another can."""
    if tokens is None:
        return "not-plain-tokens"
    if getattr(params, "n", 1) != 1:
        return "several-choices"
    if getattr(params, "prompt_logprobs", None) is not None:
        return "prompt-logprobs"
    if more.get("lora_request") is not None:
        return "adapter"
    if isinstance(prompt, dict) and prompt.get("cache_salt"):
        return "cache-salt"
    return ""


def _prefix(tokens: list[int]) -> tuple[int, ...]:
    """What home knows the beginning of a prompt by."""
    return prefix_blocks(array("I", tokens[: READ_BYTES // TOKEN_BYTES]).tobytes())


def _told(timeline: Timeline, job: jobs.Computed | jobs.Sent, trip: Trip) -> None:
    if isinstance(job, jobs.Sent):
        trip.sent(job)
        timeline.overlapped(job.overlap)
        metrics.OVERLAP.observe(job.overlap)
        return
    timeline.mark("prefill_start", at=job.started)
    timeline.mark("prefill_end", at=job.ended)


def _word(reason: str) -> str:
    return reason.split("=")[0].split(":")[0].replace(" ", "-")
