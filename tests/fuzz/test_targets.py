"""Every fuzz target with its seeds, with each seed cut and flipped, and with random bytes: without atheris."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.targets import SEEDS, TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_what_is_near_them(name: str) -> None:
    target = TARGETS[name]
    for seed in SEEDS[name]:
        target(seed)
        for at in range(len(seed)):
            target(seed[:at])
            target(seed[:at] + bytes([seed[at] ^ 0x21]) + seed[at + 1 :])


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes(name: str) -> None:
    target = TARGETS[name]

    @given(st.binary(max_size=200), st.sampled_from(SEEDS[name]), st.integers(0, 200))
    def holds(noise: bytes, seed: bytes, at: int) -> None:
        target(noise)
        target(seed[:at] + noise + seed[at:])

    holds()
