"""ARCHITECTURE.md names every module, in its own words."""

from __future__ import annotations

from tools import code_map


def test_the_code_map_is_current() -> None:
    page = code_map.PAGE.read_text(encoding="utf-8")
    assert code_map.rendered(page) == page, "run `python -m tools.code_map`"


def test_a_module_without_its_line_is_noticed() -> None:
    page = code_map.PAGE.read_text(encoding="utf-8")
    assert code_map.rendered(page.replace("- `throttler`: ", "- `other`: ")) == code_map.rendered(page)
