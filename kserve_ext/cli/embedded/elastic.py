"""How many functions of each kind an embedded cluster may have: the option MIN:MAX, and what parts are told of it.

The first MIN of a kind are parts of the cluster, started and restarted by the supervisor; the controller starts the
others through node agents, and ends them.
"""

from __future__ import annotations

from typing import Any, Final

import click

from kserve_ext.core.control.facts import Bounds

MOST: Final = 64
Document = dict[str, Any]


class BoundsType(click.ParamType[Bounds]):
    """`3`: always three; `2:8`: two, and up to eight under load."""

    name = "min[:max]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Bounds:
        if isinstance(value, Bounds):
            return value
        low, colon, high = str(value).partition(":")
        if not low.isdigit() or (colon and not high.isdigit()):
            self.fail(f"{value!r}: write a number, or MIN:MAX, e.g. 2:8", param, ctx)
        bounds = Bounds(int(low), int(high) if colon else int(low))
        if not 1 <= bounds.min <= MOST or not 1 <= bounds.max <= MOST:
            self.fail(f"{value!r}: there may be 1 to {MOST}", param, ctx)
        if bounds.max < bounds.min:
            self.fail(f"{value!r}: the most is less than the least", param, ctx)
        return bounds


class ThresholdType(click.ParamType[str]):
    """`schedule=500`: as the controller reads it."""

    name = "kind=rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from autoscaler_shim.elastic import read_threshold

        try:
            read_threshold(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return str(value)


#: Kinds of which there are always as many as were asked for.
FIXED: Final = ("node", "controller", "objects")


def document(bounds: dict[str, Bounds], thresholds: tuple[str, ...], stable_s: float) -> Document:
    """For cluster.json."""
    return {
        "bounds": {kind: list(b) for kind, b in bounds.items() if b.max > b.min},
        "thresholds": list(thresholds),
        "stable_s": stable_s,
    }


def controller_args(cluster: Document) -> list[str]:
    elastic = cluster.get("elastic") or {}
    bounds = {kind: (count, count) for kind, count in cluster["counts"].items() if kind not in FIXED}
    bounds |= elastic.get("bounds") or {}
    args = [word for kind, (low, high) in bounds.items() for word in ("--bounds", f"{kind}={low}:{high}")]
    for threshold in elastic.get("thresholds") or ():
        args += ["--threshold", threshold]
    if "stable_s" in elastic:
        args += ["--stable", str(elastic["stable_s"])]
    return [*args, "--http", str(cluster["http"]), "--domain", str(cluster["domain"])]


def node_args(cluster: Document) -> list[str]:
    """Zygotes of the functions that may come."""
    bounds = (cluster.get("elastic") or {}).get("bounds") or {}
    modules = {"activator_replacement" if kind == "dispatch" else "autoscaler_shim" for kind in bounds}
    return [word for module in sorted(modules) for word in ("--functions", module)]
