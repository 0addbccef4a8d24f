"""The course of one request over two legs: who is asked for what, and what becomes of it when somebody fails.

Events in, steps out; the shell carries them out in order and feeds each outcome back. What holds at every moment:
KV that prefill keeps is at one engine's disposal at most; it is pulled by the decode leg that carries its
parameters, or given back by a Release. A decode engine that may have pulled is never followed by another with the
same parameters. Until decode's answer begins, no failure of one engine is the client's; after it, nothing is tried
again.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

from kserve_ext.core.two_leg.engines import Engines

REMEDY: Final = "see that a decode engine runs and that --decode or --engine-url names it"


class Take(NamedTuple):
    """A prefill engine is wanted -> `taken` or `not_taken`."""


class GiveBack(NamedTuple):
    """The prefill engine is not needed any more; `failed` says what went wrong with it, "" nothing."""

    failed: str


class Prefill(NamedTuple):
    """Send the prefill leg -> `prefilled` or `prefill_failed`."""

    addr: str


class Decode(NamedTuple):
    """Send the decode leg -> `answered` or `lost`. No params: it computes the prompt itself."""

    addr: str
    params: dict[str, Any] | None


class Release(NamedTuple):
    """Have this decode engine give KV back; nobody waits for it."""

    addr: str
    params: dict[str, Any]


class Pass(NamedTuple):
    """Decode's answer goes to the client as it comes -> `ended`."""


class Refuse(NamedTuple):
    status: int
    reason: str


class Cancel(NamedTuple):
    """End the leg that is under way: its engine sees that nobody listens, and frees what it holds."""


class Linger(NamedTuple):
    """The client has gone, but the leg's engine may be about to keep KV, or to take it over: look a moment later.

    A prefill leg ends with `prefilled` or `prefill_failed` as ever, a decode leg is cancelled then.
    """


Step = Take | GiveBack | Prefill | Decode | Release | Pass | Refuse | Cancel | Linger


class Course:
    """`reason`: why decode computes alone, "" if prefill is to be asked first."""

    def __init__(self, decodes: Engines, reason: str, *, required: bool = False) -> None:
        self._decodes = decodes
        self._required = required
        self.state: Literal["new", "taking", "prefilling", "decoding", "passing", "lingering", "over"] = "new"
        self.prefill = ""
        self.decode = ""
        #: Said in x-kv-transfer: the word, or why there was none.
        self.reason = reason
        self.tokens = 0
        self.ms = 0.0
        self._params: dict[str, Any] | None = None  # of KV that is kept for the leg under way
        self._tried: set[str] = set()

    @property
    def transfer(self) -> str:
        if self.reason:
            return f"none;reason={self.reason}"
        return f"vllm;tokens={self.tokens};ms={self.ms:.2f};prefill={self.prefill}"

    # --- events

    def begin(self, now: float) -> list[Step]:
        if self.reason:
            return self._decode(now)
        self.state = "taking"
        return [Take()]

    def taken(self, addr: str) -> list[Step]:
        self.state, self.prefill = "prefilling", addr
        return [Prefill(addr)]

    def not_taken(self, reason: str, now: float) -> list[Step]:
        return self._alone(reason, now)

    def prefilled(self, params: dict[str, Any], tokens: int, ms: float, now: float) -> list[Step]:
        if self.state == "lingering":
            self.state = "over"
            helper = self._decodes.pick(now, unwell=True)
            return [GiveBack(""), *([Release(helper, params)] if helper else [])]
        self._params, self.tokens, self.ms = params, tokens, ms
        return [GiveBack(""), *self._decode(now)]

    def prefill_failed(self, reason: str, failed: str, now: float) -> list[Step]:
        """`failed`: what the engine is to blame for; "": it refused the request, or handed nothing over."""
        if self.state == "lingering":
            self.state = "over"
            return [GiveBack(failed)]
        return [GiveBack(failed), *self._alone(reason, now)]

    def answered(self, status: int, now: float) -> list[Step]:
        """The head of decode's answer. A server error may be that of the KV, or of this engine alone."""
        params = self._params
        if status < 500:
            self._decodes.answered(self.decode)
            # Not every refusal is one that vLLM gives KV back for by itself.
            back: list[Step] = [Release(self.decode, params)] if params is not None and status >= 400 else []
            return [*back, *self._pass()]
        if params is not None:
            self._leave()
            self._tried.discard(self.decode)  # without the KV it may do
            return [Cancel(), Release(self.decode, params), *self._alone("decode-failed", now)]
        if not self._decodes.pick(now, self._tried):
            return self._pass()
        self._leave()
        return [Cancel(), *self._decode(now)]

    def lost(self, sent: bool, alive: bool, now: float) -> list[Step]:
        """Decode can't be reached, or has ended the connection before its answer began.

        `sent`: it may have begun to pull; and it may go on, if it is still `alive`: then prefill's lease on the KV
        has to run out, for what is given back under a pull would be overwritten while it is read.
        """
        self._decodes.failed(self.decode, now)
        params = self._params
        self._leave()
        if params is None:
            return self._decode(now)
        if not sent:
            self._params = params
            return self._decode(now)
        helper = "" if alive else self._decodes.pick(now, self._tried)
        release: list[Step] = [Release(helper, params)] if helper else []
        return [*release, *self._alone("decode-failed", now)]

    def ended(self) -> list[Step]:
        """Decode's answer is over, whole or not."""
        if self.state == "passing":
            self._leave()
            self.state = "over"
        return []

    def client_gone(self, sent: bool) -> list[Step]:
        """`sent`: the leg under way is on its way to its engine, which frees by itself what it holds for it."""
        state, self.state = self.state, "over"
        if state == "prefilling":
            self.state = "lingering"
            return [Linger()]
        if state not in ("decoding", "passing"):
            return []
        params = self._params
        self._leave()
        if params is None or state == "passing":
            return [Cancel()]
        return [Linger()] if sent else [Cancel(), Release(self.decode, params)]

    # --- inside

    def _alone(self, reason: str, now: float) -> list[Step]:
        self.reason = reason
        if self._required:
            self.state = "over"
            return [Refuse(503, f"the KV transfer that this service requires is not possible: {reason}")]
        return self._decode(now)

    def _decode(self, now: float) -> list[Step]:
        addr = self._decodes.pick(now, self._tried, unwell=True)
        if not addr:
            self.state = "over"
            tried = ", ".join(sorted(self._tried)) or "none is known"
            return [Refuse(503, f"no decode engine answers ({tried}); {REMEDY}")]
        self.state, self.decode = "decoding", addr
        self._tried.add(addr)
        self._decodes.begun(addr)
        return [Decode(addr, self._params)]

    def _pass(self) -> list[Step]:
        self.state = "passing"
        return [Pass()]

    def _leave(self) -> None:
        """The decode leg is over."""
        self._params = None
        self._decodes.ended(self.decode)
