"""galaxy logs: what the instances of a service printed, one instance, or one part of the cluster.

Reads the files in the data folder, so that it works also for what has died. With --follow new instances of the
service are picked up as they appear.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import click

from kserve_ext.cli.embedded.folder import Folder
from kserve_ext.cli.failure import Failure
from kserve_ext.cli.output import data_option, namespace_option

LOOK_EVERY_S = 0.2
TAIL_BYTES = 256 * 1024


@click.command()
@data_option
@namespace_option
@click.option("-f", "--follow", is_flag=True, help="Go on printing, until Ctrl-C.")
@click.option(
    "--tail", "lines", type=click.IntRange(1), default=200, show_default=True, help="Last lines of each."
)
@click.argument("name")
def command(folder: Folder, namespace: str, follow: bool, lines: int, name: str) -> None:
    """Print the log of NAME: a service, a revision, an instance (node-0 and such: a part of the cluster)."""
    del namespace  # revisions of two namespaces may share a name; all are shown, each with its node
    found = files(folder, name)
    if not found and not follow:
        known = sorted(
            {re.sub(r"-predictor-\d+-[0-9a-f]+$", "", path.parent.name) for path in _instances(folder)}
        )
        parts = sorted(path.stem for path in folder.log.glob("*.log"))
        raise Failure(
            f"{name} has printed nothing here",
            f"there are logs of services {', '.join(known) or '(none)'} and of parts {', '.join(parts) or '(none)'}",
            "name one of them, or send the service a request first",
        )
    offsets: dict[Path, int] = {}
    for path in found:
        _print(path, found, offsets, lines)
    try:
        while follow:
            time.sleep(LOOK_EVERY_S)
            found = files(folder, name)
            for path in found:
                _print(path, found, offsets, lines)
    except KeyboardInterrupt:
        return


def files(folder: Folder, name: str) -> list[Path]:
    """Logs of everything that goes by this name, oldest first."""
    part = folder.log / f"{name}.log"
    if part.exists():
        return [part]
    own = re.compile(rf"{re.escape(name)}(-predictor-\d{{5,}})?(-[0-9a-f]{{8}})?")
    found = [path for path in _instances(folder) if own.fullmatch(path.parent.name)]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def _instances(folder: Folder) -> list[Path]:
    return list(folder.root.glob("nodes/*/instances/*/log"))


def _print(path: Path, found: list[Path], offsets: dict[Path, int], lines: int) -> None:
    try:
        size = path.stat().st_size
        start = offsets.get(path)
        if start is not None and start > size:
            start = 0  # emptied because it was too long
        with path.open("rb") as file:
            file.seek(max(0, size - TAIL_BYTES) if start is None else start)
            data = file.read()
            offsets[path] = file.tell()
    except OSError:
        return
    text = data.decode(errors="replace").splitlines()
    if start is None:
        text = text[-lines:]
    label = f"[{path.parent.name}] " if len(found) > 1 else ""
    for line in text:
        click.echo(label + line)
