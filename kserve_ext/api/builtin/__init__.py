"""The runtimes that every cluster has: YAML files beside this one, as an operator would install them."""

from __future__ import annotations

from pathlib import Path


def texts() -> list[str]:
    """The YAML of each, in order of file name."""
    return [path.read_text() for path in sorted(Path(__file__).parent.glob("*.yaml"))]
