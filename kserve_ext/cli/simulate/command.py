"""`galaxy simulate`: control planes in virtual time on one trace, ours with its real cores, and the claims beside it.

What comes out depends on the arguments alone: the same are the same bytes. Everything is simulated, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import islice, takewhile
from math import isfinite
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from kserve_ext.cli.failure import Failure
from kserve_ext.cli.output import dump, format_option, table
from kserve_ext.sim import bursts, claims, workloads
from kserve_ext.sim.fleet import World
from kserve_ext.sim.rows import Row, said_of
from kserve_ext.sim.runs import COMPARED, SYSTEMS, Result, run
from kserve_ext.sim.traces import READERS, Arrival, TraceError, format_of

#: short enough to be run by hand: two bursts, which double the rate many times
TRACE: Final = bursts.Shape(seconds=300.0, bursts=2, functions=100, peak=250.0)
MOST_NODES: Final = 5000
MOST_REQUESTS: Final = 1_000_000


def _systems(context: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    from kserve_ext.api.problems import did_you_mean

    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    for name in names:
        if name not in SYSTEMS:
            raise click.BadParameter(f"there is no system {name}; {did_you_mean(name, SYSTEMS)}")
    if not names:
        raise click.BadParameter(f"name at least one of {', '.join(SYSTEMS)}")
    return names


def _number(context: click.Context, param: click.Parameter, value: float | None) -> float | None:
    if value is not None and not isfinite(value):
        raise click.BadParameter(f"{value} is no number; write one above 0, e.g. 0.5")
    return value


@click.command()
@click.option("--trace", type=click.Path(path_type=Path, dir_okay=False), help="A trace  [default: bursts].")
@click.option(
    "--format", "form", type=click.Choice(tuple(READERS)), help="Of the trace  [default: by its first line]."
)
@click.option(
    "--systems",
    callback=_systems,
    default=",".join(COMPARED),
    show_default=True,
    help=f"Of {', '.join(SYSTEMS)}.",
)
@click.option("--nodes", type=click.IntRange(1, MOST_NODES), default=210, show_default=True)
@click.option(
    "--load",
    type=click.FloatRange(0, min_open=True),
    callback=_number,
    default=1.0,
    show_default=True,
    help="Times the trace.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    callback=_number,
    help="Only the first so many of the trace.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--claims/--no-claims", "with_claims", default=True, help="Published claims, as rows: some minutes."
)
@click.option("--full", is_flag=True, help="Also clusters that are 70, 90 and 99 % full: some minutes.")
@click.option("--plots", type=click.Path(path_type=Path, file_okay=False), help="Folder for plots (SVG).")
@format_option("table", "json")
def simulate(
    trace: Path | None,
    form: str | None,
    systems: tuple[str, ...],
    nodes: int,
    load: float,
    seconds: float | None,
    seed: int,
    with_claims: bool,
    full: bool,
    plots: Path | None,
    output: str | None,
) -> None:
    """Run control planes in virtual time on the same nodes and requests."""
    arrivals, what = _arrivals(trace, form, load, seconds, seed)
    world = World(nodes=nodes, seed=seed)
    results = []
    conditions = f"{said_of(world, seed)}; {what}, {len(arrivals)} requests"
    rows: list[Row] = []
    with Console(stderr=True).status("") as working:
        for name in systems:
            working.update(f"{name}: {len(arrivals)} requests")
            results.append(run(SYSTEMS[name], arrivals, world))
        if results[0].system == "galaxy":
            others = [name for name in systems if name != "galaxy"]
            rows += claims.tail(results, conditions)
            if with_claims:
                working.update("the published claims: some minutes; --no-claims leaves them out")
                rows += claims.all_claims(others, world, seed)
            if full:
                working.update("clusters that are 70, 90 and 99 % full: some minutes")
                rows += claims.full_clusters(world, others, seed)
    drawn = _draw(plots, systems, results, world, seed)
    if output == "json":
        dump(
            {"conditions": conditions, "systems": [_plain(r) for r in results], "claims": _rows(rows)}, "json"
        )
        return
    click.echo(conditions)
    click.echo(_summary(results))
    if rows:
        click.echo(f"\n{_claims(rows)}")
    for path in drawn:
        click.echo(f"wrote {path}")


# --- what goes in


def _arrivals(
    trace: Path | None, form: str | None, load: float, seconds: float | None, seed: int
) -> tuple[Sequence[Arrival], str]:
    if trace is None:
        if form is not None:
            raise click.UsageError("--format is of a trace: name it with --trace FILE")
        found = bursts.arrivals(replace(TRACE, seed=seed, seconds=seconds or TRACE.seconds))
        what = "synthetic bursts"
    else:
        form = form or _format_of(trace)
        found, what = READERS[form](trace, seed), f"{trace.name} ({form})"
    try:
        cut = takewhile(lambda arrival: not seconds or arrival.at < seconds, found)
        arrivals = list(islice(workloads.scaled(cut, load, seed), MOST_REQUESTS + 1))
    except OSError as error:
        raise Failure(
            f"can't read {trace}", error.strerror or str(error), "name a file that is there"
        ) from error
    except (TraceError, UnicodeDecodeError) as error:
        raise Failure(f"{trace} is no trace that can be read", str(error), "see docs/simulate.md") from error
    if not arrivals:
        raise Failure(f"{what}: there is no request", "the trace is empty, or --seconds or --load leave none")
    if len(arrivals) > MOST_REQUESTS:
        raise Failure(
            f"{what}: its requests are too many",
            f"a run is bounded to {MOST_REQUESTS:,}",
            "cut it with --seconds, or thin it with --load 0.1",
        )
    if load != 1.0:
        what += f" times {load:g}"
    return arrivals, what


def _format_of(trace: Path) -> str:
    try:
        form = format_of(trace)
    except OSError as error:
        raise Failure(
            f"can't read {trace}", error.strerror or str(error), "name a file that is there"
        ) from error
    except UnicodeDecodeError as error:
        raise Failure(f"{trace} is no trace that can be read", str(error), "see docs/simulate.md") from error
    if not form:
        raise click.UsageError(
            f"{trace}: its first line is of none of {', '.join(READERS)}: name the format with --format"
        )
    return form


# --- what comes out


def _draw(
    plots: Path | None, systems: Sequence[str], results: Sequence[Result], world: World, seed: int
) -> list[Path]:
    if plots is None:
        return []
    from kserve_ext.cli.simulate.pictures import draw

    try:
        return draw(plots, systems, results, world, seed)
    except OSError as error:
        raise Failure(
            f"can't write plots to {plots}", error.strerror or str(error), "name another folder"
        ) from error


def _summary(results: Sequence[Result]) -> str:
    columns = ("SYSTEM", "BEGUN", "P50", "P99", "P99.9", "STARTS", "REFUSED", "MESSAGES", "INSTANCE-S")
    return table(
        columns,
        [
            (
                r.system,
                f"{r.begun}/{r.requests}",
                _seconds(r.p50),
                _seconds(r.p99),
                _seconds(r.p999),
                r.starts,
                r.refused_starts,
                r.messages or "-",
                f"{r.instance_seconds:.0f}",
            )
            for r in results
        ],
    )


def _claims(rows: Sequence[Row]) -> str:
    columns = ("CLAIM", "METRIC", "OURS", "BASELINE", "OF", "OURS IS")
    return table(
        columns,
        [
            (
                r.claim,
                r.metric,
                _figure(r.ours, r.unit),
                _figure(r.baseline, r.unit),
                r.baseline_name,
                change(r),
            )
            for r in rows
        ],
    )


def change(row: Row) -> str:
    if row.change is None:
        return "-"
    if row.better == "higher":
        return f"{row.change:.2f}x"
    percent = f"{abs(row.change):.1%}"
    if percent == "0.0%":  # as exact as the column is
        return "equal"
    return f"{percent} lower" if row.change > 0 else f"{percent} higher"


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "s":
        return _seconds(value)
    return f"{value:,.0f} {unit}".strip() if abs(value) >= 100 else f"{value:.3g} {unit}".strip()


def _seconds(value: float) -> str:
    return f"{value * 1e3:.2f} ms" if value < 1 else f"{value:.2f} s"


def _plain(result: Result) -> dict[str, Any]:
    fields = asdict(result)
    fields["timeline"] = [second._asdict() for second in result.timeline]
    return fields


def _rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [asdict(row) | {"change": row.change} for row in rows]
