"""What waits here for a first token."""

from __future__ import annotations

from runtimes.vllm_pd.backlog import Backlog


def test_a_prompt_waits_until_its_first_token_or_its_end() -> None:
    backlog = Backlog()
    begun: set[str] = set()
    first = backlog.add(100, lambda: "first" in begun)
    second = backlog.add(30, lambda: "second" in begun)
    assert backlog.tokens == 130
    begun.add("first")
    assert backlog.tokens == 30
    backlog.remove(second)
    backlog.remove(first)
    assert backlog.tokens == 0
