"""Whether a prompt is computed here or by a prefill engine. Pure; the reason goes into the response's head.

Elsewhere pays when the part that isn't cached here is long; a request that needs something that a prefill
engine can't give (another adapter, prompt log-probabilities, images) is computed here whatever its length.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Setting = Literal["auto", "always", "never"]


class Decision(NamedTuple):
    remote: bool
    reason: str


def decide(
    setting: Setting, threshold: int, prompt: int, cached: int | None, obstacle: str = ""
) -> Decision | None:
    """`cached`: tokens of the prompt that this engine holds; None = not looked up yet.

    Returns None when the answer depends on what is cached. At least one token is always computed here, so a
    prompt of one token, or one that is cached but for its last token, has nothing to send.
    """
    if obstacle:
        return Decision(False, obstacle)
    if setting == "never":
        return Decision(False, "disabled")
    needed = 2 if setting == "always" else max(threshold, 2)
    if prompt < needed:
        return Decision(False, "below-threshold")
    if cached is None:
        return None
    if prompt - cached < needed:
        return Decision(False, "cached")
    return Decision(True, f"uncached={prompt - cached}")
