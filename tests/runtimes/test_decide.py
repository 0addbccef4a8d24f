"""Where a prompt is computed."""

from __future__ import annotations

import pytest

from runtimes.vllm_pd.decide import Decision, Setting, decide


@pytest.mark.parametrize(
    ("setting", "prompt", "cached", "obstacle", "expected"),
    [
        ("auto", 99, None, "", Decision(False, "below-threshold")),
        ("auto", 100, None, "", None),
        ("auto", 100, 0, "", Decision(True, "uncached=100")),
        ("auto", 300, 201, "", Decision(False, "cached")),
        ("auto", 300, 200, "", Decision(True, "uncached=100")),
        ("always", 1, None, "", Decision(False, "below-threshold")),
        ("always", 2, 0, "", Decision(True, "uncached=2")),
        ("always", 5, 4, "", Decision(False, "cached")),
        ("never", 10_000, 0, "", Decision(False, "disabled")),
        ("always", 10_000, 0, "adapter", Decision(False, "adapter")),
    ],
)
def test_decide(
    setting: Setting, prompt: int, cached: int | None, obstacle: str, expected: Decision | None
) -> None:
    assert decide(setting, 100, prompt, cached, obstacle) == expected
