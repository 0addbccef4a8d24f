"""Every status of enum ibv_wc_status says what happened and what to look at."""

from __future__ import annotations

import pytest

from runtimes.transport.verbs import reasons


@pytest.mark.parametrize("status", range(1, 22))
def test_every_status_has_a_name_and_a_sentence(status: int) -> None:
    known = reasons.meaning(status)
    assert known.name.isupper()
    assert " " in known.text
    said = str(reasons.error(status, "WRITE of 4096 bytes", "mlx5_0:1", 0x81))
    assert said == (
        f"{known.reason}: WRITE of 4096 bytes on mlx5_0:1: {known.text} ({known.name}, vendor error 0x81)"
    )


def test_a_status_of_a_newer_version_is_an_error_too() -> None:
    assert reasons.error(99, "a request", "mlx5_0:1").reason == "closed"
    assert "status 99" in str(reasons.error(99, "a request", "mlx5_0:1"))
