"""What the zygote imports: next to nothing."""

from __future__ import annotations

from tests.chaos import instance


def preimport() -> None:
    assert instance


def assert_forkable() -> None:
    pass
