"""The model of a transfer's share: its limits, and the figures of the original that it must come to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.kv_model import GB, ORIGINAL, Claim, Path, Service, overlapped, serial, service_at, slowed

STAGED = Path(50 * GB, 12 * GB, 52 * GB)
rates = st.floats(0.1 * GB, 400 * GB)
paths = st.builds(Path, rates, rates, rates, st.sampled_from([1 << 18, 8 << 20]), st.floats(0, 0.01))
services = st.builds(
    Service, st.floats(1e3, 1e6), st.floats(100, 1e5), st.sampled_from([512, 2048, 8192]), st.floats(0, 1)
)


def test_the_slowest_stage_counts_and_the_others_once_for_a_piece() -> None:
    path = Path(down=50, wire=10, up=25, piece=100, setup=3)
    assert path.seconds(1000) == pytest.approx(3 + 1000 / 10 + 100 / 50 + 100 / 25)
    assert path.seconds(50) == pytest.approx(3 + 50 / 10 + 50 / 50 + 50 / 25)
    assert path.seconds(0) == 0


@given(services, paths, st.integers(1, 40_000))
def test_overlap_never_costs_more_than_the_set_up_of_its_pieces(
    service: Service, path: Path, tokens: int
) -> None:
    chunks = -(-tokens // service.chunk)
    piece = path.piece * (1 / path.down + 1 / path.wire + 1 / path.up)
    limit = serial(service, path, tokens).total + (chunks - 1) * (path.setup + piece)
    cost = overlapped(service, path, tokens)
    assert cost.total <= limit * (1 + 1e-9)
    assert 0 <= cost.transfer <= cost.total


@given(services, paths, st.integers(1, 2000))
def test_a_prompt_of_one_chunk_has_nothing_to_overlap(service: Service, path: Path, tokens: int) -> None:
    if tokens <= service.chunk:
        assert overlapped(service, path, tokens) == pytest.approx(serial(service, path, tokens))


@pytest.mark.parametrize("claim", ORIGINAL)
def test_share_and_speed_up_of_the_original_lead_to_its_other_two_figures(claim: Claim) -> None:
    tokens = 32_768
    tcp = slowed(STAGED, claim, tokens)
    service = service_at(claim, tcp, tokens)
    before, after = serial(service, tcp, tokens), serial(service, STAGED, tokens)
    assert before.share == pytest.approx(claim.tcp_share)
    assert before.transfer / after.transfer == pytest.approx(claim.speed_up)
    assert after.share == pytest.approx(claim.rdma_share, abs=0.002)
    assert 1 - after.total / before.total == pytest.approx(claim.saved, abs=0.002)


@pytest.mark.parametrize("claim", ORIGINAL)
def test_overlap_beats_the_original_on_its_own_path(claim: Claim) -> None:
    service = service_at(claim, slowed(STAGED, claim, 32_768), 32_768)
    assert overlapped(service, STAGED, 32_768).share < claim.rdma_share / 5
