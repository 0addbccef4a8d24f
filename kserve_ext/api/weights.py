"""Weights of namespaces as people write them: "team-a=2,team-b=0.5"; one that is not named has 1."""

from __future__ import annotations

import re
from typing import Final

_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def read_weights(text: str) -> dict[str, float]:
    """ValueError says which is wrong."""
    weights: dict[str, float] = {}
    for item in filter(None, text.split(",")):
        name, _, number = item.partition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not _NAMESPACE.fullmatch(name) or not 0 < weight < 1e6:
            raise ValueError(f"{item!r}: write NAMESPACE=WEIGHT with a number above 0, e.g. team-a=2")
        if name in weights:
            raise ValueError(f"{item!r}: {name} is given twice")
        weights[name] = weight
    return weights
