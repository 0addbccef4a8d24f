"""galaxy top: CPU and memory of every process of the cluster, instances included."""

from __future__ import annotations

import time
from typing import NamedTuple

import click
import psutil
from rich.live import Live

from kserve_ext.cli.client import Client
from kserve_ext.cli.embedded.folder import Folder
from kserve_ext.cli.failure import Failure
from kserve_ext.cli.output import data_option, screen, table, watched

EVERY_S = 2.0


class Usage(NamedTuple):
    name: str
    pid: int
    cpu_percent: float
    memory_mib: int
    threads: int


@click.command()
@data_option
@click.option(
    "--once", is_flag=True, help="One look, over half a second; so it is where stdout is no terminal."
)
def command(folder: Folder, once: bool) -> None:
    """Show what every process uses, the hungriest first; Ctrl-C ends."""
    folder.required()
    seen: dict[int, psutil.Process] = {}
    _measure(folder, seen)
    if once or not watched():
        time.sleep(0.5)
        click.echo(_picture(_measure(folder, seen)))
        return
    try:
        with Live(refresh_per_second=2) as live:
            while True:
                time.sleep(EVERY_S)
                live.update(screen(_picture(_measure(folder, seen))))
    except KeyboardInterrupt:
        return


def _pids(folder: Folder) -> dict[int, str]:
    found = {part.pid: part.id for part in folder.living()}
    supervisor = folder.supervisor()
    if supervisor:
        found[supervisor] = "supervisor"
    try:
        instances = Client(folder, 3.0).call("GET", "/api/status").body["instances"]
    except Failure:
        instances = []
    found.update({int(i["pid"]): str(i["id"]) for i in instances if i.get("pid")})
    return found


def _measure(folder: Folder, seen: dict[int, psutil.Process]) -> list[Usage]:
    """CPU is since the look before, 0 for what is new."""
    usage = []
    for pid, name in _pids(folder).items():
        try:
            process = seen.setdefault(pid, psutil.Process(pid))
            with process.oneshot():
                memory = process.memory_info().rss >> 20
                usage.append(Usage(name, pid, process.cpu_percent(), memory, process.num_threads()))
        except psutil.Error:
            seen.pop(pid, None)
    return sorted(usage, key=lambda u: (-u.cpu_percent, -u.memory_mib, u.name))


def _picture(usage: list[Usage]) -> str:
    rows = [(u.name, u.pid, f"{u.cpu_percent:.1f}", f"{u.memory_mib}Mi", u.threads) for u in usage]
    return table(("NAME", "PID", "CPU %", "MEMORY", "THREADS"), rows)
