"""Which tokens have been checked and what came of it: kept as long as that holds, and never more than so many.

A good one is good until it expires, or for GOOD_S. One that was refused is refused for REFUSED_S, so whoever dials
on with it costs the API server nothing. Questions about tokens that nobody knows yet have a rate, high enough for all
pods of a node at once. Stored are digests, never tokens.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections import OrderedDict
from typing import Final, NamedTuple

from kserve_ext.core.token_bucket import TokenBucket

GOOD_S: Final = 3600.0
#: However soon it expires by this node's clock: the API server, which knows better, has just said that it is good.
LEAST_S: Final = 30.0
REFUSED_S: Final = 5.0
KEEP: Final = 4096
#: Questions to the API server: at once, and a second.
BURST: Final = 512
RATE: Final = 16.0


class Verdict(NamedTuple):
    until: float
    refusal: str  # "" = it is good


class Proofs:
    """Times are seconds of one clock."""

    def __init__(self) -> None:
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._bucket = TokenBucket(RATE, BURST)

    def __len__(self) -> int:
        return len(self._verdicts)

    def of(self, digest: bytes, now: float) -> Verdict | None:
        """None: it has to be asked for."""
        found = self._verdicts.get(digest)
        return found if found is not None and now < found.until else None

    def wait_s(self, now: float) -> float:
        """Before the API server may be asked about one more."""
        return self._bucket.take(now)

    def not_asked(self) -> None:
        """Whoever was to wait has gone."""
        self._bucket.give_back()

    def good(self, digest: bytes, lasts_s: float, now: float) -> None:
        """`lasts_s`: until the token expires."""
        self._keep(digest, Verdict(now + min(GOOD_S, max(LEAST_S, lasts_s)), ""))

    def refused(self, digest: bytes, why: str, now: float) -> None:
        self._keep(digest, Verdict(now + REFUSED_S, why))

    def _keep(self, digest: bytes, verdict: Verdict) -> None:
        self._verdicts[digest] = verdict
        self._verdicts.move_to_end(digest)
        if len(self._verdicts) > KEEP:
            # Of those that were refused the oldest: nobody can push out good ones by dialling with bad ones.
            bad = next((key for key, one in self._verdicts.items() if one.refusal), None)
            if bad is not None:
                del self._verdicts[bad]
            else:
                self._verdicts.popitem(last=False)


def digest(token: str, pod: str, uid: str) -> bytes:
    return hashlib.sha256("\0".join((token, pod, uid)).encode()).digest()


def expires(token: str) -> float:
    """Unix seconds, as the token itself says: of use only once somebody has checked it. Infinity: it doesn't say."""
    try:
        claims = token.split(".")[1]
        found = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"]
        return float(found)
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, binascii.Error, RecursionError):
        return float("inf")
