"""Whether a prompt is computed here or by a prefill engine. Pure; the reason goes into the response's head.

Elsewhere pays when the part that isn't cached here is long: from a threshold on that load and channels shift.
Tokens that wait here make it lower, tokens that wait at the best prefill instance make it higher, and so does a
channel that would have to be set up first. A request that needs something that a prefill engine can't give (another
adapter, prompt log-probabilities, images) is computed here whatever its length.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Setting = Literal["auto", "always", "never"]
#: Of the channel to whichever prefill instance would compute it; "resting": there is none that can be used now.
Channel = Literal["standing", "none", "resting"]

SHORTEST: Final = 2  # one token is always computed here: a prompt of one has nothing to send
LEAST: Final = 16  # a block; load makes nothing shorter worth sending
SETUP_TOKENS: Final = 128  # prompt tokens that are computed while a channel is set up


class Facts(NamedTuple):
    prompt: int  # tokens
    cached: int | None = None  # of these, what this engine holds; None = not looked up yet
    here: int = 0  # tokens of other prompts that wait here for their first token
    there: int | None = None  # that wait at the best prefill instance; None = not known
    channel: Channel = "standing"
    rests: str = "backing-off"  # the word for why there is none that can be used


class Decision(NamedTuple):
    remote: bool
    reason: str


def decide(
    setting: Setting, threshold: int, facts: Facts, obstacle: str = "", *, given: bool = False
) -> Decision | None:
    """`given`: the threshold is the user's, and nothing shorter is sent. None: it depends on what is cached."""
    if obstacle:
        return Decision(False, obstacle)
    if setting == "never":
        return Decision(False, "disabled")
    if facts.channel == "resting":
        return Decision(False, facts.rests)
    usual = SHORTEST if setting == "always" else max(threshold, SHORTEST)
    needed = usual if setting == "always" else _needed(usual, facts, given)
    if facts.prompt < needed:
        return Decision(False, "below-threshold" if facts.prompt < usual else _why_not(usual, facts))
    if facts.cached is None:
        return None
    uncached = facts.prompt - facts.cached
    if uncached < needed:
        return Decision(False, "cached" if uncached < usual else _why_not(usual, facts))
    return Decision(True, f"uncached={uncached}" if uncached >= usual else f"busy-here={facts.here}")


def _needed(usual: int, facts: Facts, given: bool) -> int:
    needed = usual + (SETUP_TOKENS if facts.channel == "none" and not given else 0)
    if facts.there is not None:
        needed += facts.there - facts.here
    return max(needed, usual if given else min(usual, LEAST))


def _why_not(usual: int, facts: Facts) -> str:
    """It would have been sent at any other time."""
    if facts.there is not None and facts.there > facts.here:
        return f"busy-there={facts.there}"
    return "no-channel"
