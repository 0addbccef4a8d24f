"""Durations as Knative's annotations and ConfigMaps write them: "90s", "1h15m30.5s", "1.5m", "0".

Accepts what Go's time.ParseDuration accepts, to the nanosecond, and nothing else: a plain number other than 0
has no unit, which is the commonest mistake and is answered with the remedy.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

FORMS: Final = "write a number with a unit such as 90s, 1m30s, 1h"
_NANOSECONDS: Final = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,  # micro sign
    "μs": 10**3,  # Greek mu
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_PART: Final = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?P<unit>ns|us|µs|μs|ms|s|m|h)")
_LONGEST: Final = 2**63 - 1


def nanoseconds(text: str) -> int:
    """The exact length; ValueError says what is wrong. Parts below a nanosecond are cut off, part by part."""
    unsigned = text.removeprefix("-") if text.startswith("-") else text.removeprefix("+")
    if unsigned == "0":
        return 0
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", unsigned):
        raise ValueError(f"{text!r} has no unit; {FORMS}")
    total = position = 0
    while position < len(unsigned):
        part = _PART.match(unsigned, position)
        if part is None:
            break
        total += int(Fraction(part["number"].rstrip(".")) * _NANOSECONDS[part["unit"]])
        position = part.end()
    if not unsigned or position < len(unsigned):
        raise ValueError(f"{text!r} is not a duration; {FORMS}")
    if total > _LONGEST:
        raise ValueError(f"{text!r} is longer than 292 years")
    return -total if text.startswith("-") else total


def seconds(text: str) -> float:
    return nanoseconds(text) / 10**9
