"""Former holders of a bucket are refused, for each revision apart: who has been obeyed fences those before."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from kserve_ext.core.ids import RevisionKey

#: Revisions whose last obeyed term is remembered, and for how long: a former holder is late by seconds, and
#: terms begin anew where there are more buckets, or fewer.
KEEP_TERMS: Final = 10_000
KEEP_TERMS_S: Final = 300.0


class Fence:
    def __init__(self) -> None:
        #: The term, and when it was obeyed; in that order.
        self._obeyed: OrderedDict[RevisionKey, tuple[int, float]] = OrderedDict()

    def before(self, revision: RevisionKey, term: int, now: float) -> int | None:
        """The term that fences this one; None: it is to be obeyed."""
        obeyed, at = self._obeyed.get(revision, (0, 0.0))
        return obeyed if term < obeyed and now < at + KEEP_TERMS_S else None

    def obey(self, revision: RevisionKey, term: int, now: float) -> None:
        self._obeyed[revision] = term, now
        self._obeyed.move_to_end(revision)
        if len(self._obeyed) > KEEP_TERMS:
            self._obeyed.popitem(last=False)
