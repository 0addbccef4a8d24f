"""Waiting until a runtime is imported somewhere (its zygote is ready), so that no first request has to.

Shows progress and never fails: without a zygote a first start takes longer, and nothing else is wrong.
`galaxy doctor` says so, too.
"""

from __future__ import annotations

import time
from typing import Any, Final

import click
from rich.console import Console

from kserve_ext.cli.client import Client
from kserve_ext.cli.failure import Failure

#: A node has heard of a new revision by then; one that shows no zygote of its runtime has no room for it.
LEARN_S: Final = 3.0
MOST_S: Final = 90.0


def missing(status: dict[str, Any], waited_s: float) -> list[str]:
    """Runtime modules of the services that are ready nowhere, and that it is worth waiting for."""
    states: dict[str, set[str]] = {}
    for node in status.get("nodes") or ():
        for module, state in (node.get("zygotes") or {}).items():
            states.setdefault(module, set()).add(state)
    found = []
    for module in status.get("zygotes") or ():
        seen = states.get(module, set())
        importing = "starting" in seen and "ready" not in seen
        if importing or (not seen and waited_s < LEARN_S):
            found.append(module)
    return found


def wait(client: Client) -> None:
    """Until every runtime of the services is imported on some node."""
    began = time.monotonic()
    waited_for: list[str] = []
    with Console(stderr=True).status("looking for zygotes") as shown:
        while True:
            waited = time.monotonic() - began
            try:
                now = missing(client.call("GET", "/api/status").body, waited)
            except Failure:
                return
            if not now or waited > MOST_S:
                break
            waited_for = now
            shown.update(f"importing {', '.join(now)}, {waited:.0f} s (--no-wait does not wait for it)")
            time.sleep(0.1)
    if now:
        names = ", ".join(now)
        click.echo(f"note: {names} is not imported yet, a first start takes longer: galaxy doctor", err=True)
    elif waited_for:
        click.echo(f"imported {', '.join(waited_for)} after {waited:.1f} s", err=True)
