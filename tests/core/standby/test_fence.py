"""A former holder's term is refused for as long as it may be late, and memory has a bound."""

from __future__ import annotations

from kserve_ext.core.ids import RevisionKey
from kserve_ext.core.standby.fence import KEEP_TERMS, KEEP_TERMS_S, Fence

ONE, TWO = RevisionKey("ns/one"), RevisionKey("ns/two")


def test_who_has_been_obeyed_fences_those_before_for_its_own_revision_and_a_while() -> None:
    fence = Fence()
    assert fence.before(ONE, 0, 0.0) is None
    fence.obey(ONE, 3, 1.0)
    assert fence.before(ONE, 2, 2.0) == 3
    assert fence.before(ONE, 3, 2.0) is None, "it goes on"
    assert fence.before(TWO, 2, 2.0) is None
    assert fence.before(ONE, 2, 1.0 + KEEP_TERMS_S) is None


def test_the_revisions_that_were_last_obeyed_about_are_remembered() -> None:
    fence = Fence()
    fence.obey(ONE, 2, 0.0)
    fence.obey(TWO, 2, 0.0)
    fence.obey(ONE, 2, 1.0)
    for number in range(KEEP_TERMS - 1):
        fence.obey(RevisionKey(f"ns/{number}"), 1, 2.0)
    assert (fence.before(ONE, 1, 2.0), fence.before(TWO, 1, 2.0)) == (2, None)
