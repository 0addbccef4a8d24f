"""How long to wait after the n-th failure in a row: doubled each time, bounded, and spread so that many don't return
as one.

`chance` is a random number of the caller's from 0 to 1: the wait is between half of the full time and all of it.
"""

from __future__ import annotations


def pause_s(failures: int, least_s: float, most_s: float, chance: float) -> float:
    """The pause after `failures` failures in a row, 1 or more."""
    full = min(most_s, least_s * 2.0 ** min(failures - 1, 60))
    return full * (0.5 + 0.5 * chance)
