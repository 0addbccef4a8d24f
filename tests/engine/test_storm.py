"""A short storm (storm.py): faults at every step of a transfer cost time, never a token or a block."""

from __future__ import annotations

import pytest

from tests.engine import storm
from tests.engine.instances import Nursery

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


def test_no_token_is_wrong_and_every_block_that_was_taken_is_the_one_that_was_sent(nursery: Nursery) -> None:
    outcome = storm.run(nursery, 200, seed=7)
    assert outcome.wrong == []
    assert outcome.unequal == []
    assert outcome.blocks > 500
    assert len(outcome.faults) >= 5, outcome.faults
