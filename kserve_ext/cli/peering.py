"""What two sides of a test between machines need to meet: where the other one is, and the key of the cluster."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from kserve_ext.cli.embedded.folder import Folder
from kserve_ext.cli.failure import Failure

_LEAST_KEY: Final = 16
F = TypeVar("F", bound=Callable[..., Any])


def key_option(function: F) -> F:
    """--key-file FILE, given to the verb as `key_file`."""
    return click.option(
        "--key-file",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="GALAXY_CLUSTER_KEY_FILE",
        help="File with the cluster key, the same on both sides.  [default: cluster.key of the data folder]",
    )(function)


def serving_options(port: int) -> Callable[[F], F]:
    """--host and --port of the side that serves."""

    def add(function: F) -> F:
        where = click.option("--host", default="0.0.0.0", show_default=True, help="Address to serve at.")
        number = click.option(
            "--port", default=port, show_default=True, type=click.IntRange(0, 65535), help="Port to serve at."
        )
        return where(number(function))

    return add


def read_key(folder: Folder, key_file: Path | None, host: str) -> bytes:
    """b"" is enough within one machine."""
    path = key_file or folder.key
    try:
        key = path.read_bytes()
    except OSError as error:
        if key_file is None and loopback(host):
            return b""
        do = "--key-file FILE: the cluster key, or 16 random bytes or more, the same on both machines"
        raise Failure("no cluster key", f"{path}: {error.strerror}", do) from error
    if len(key) < _LEAST_KEY:
        raise Failure("the cluster key is too short", f"{path} has {len(key)} bytes", "16 bytes or more")
    return key


def loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_address(peer: str, port: int) -> tuple[str, int]:
    """`port`: where it serves unless it says otherwise."""
    host, colon, number = peer.rpartition(":")
    if not colon:
        host, number = peer, str(port)
    if not host or not number.isdecimal() or not 0 < int(number) < 1 << 16:
        raise click.BadParameter(f"{peer!r} is not HOST:PORT", param_hint="--peer")
    return host.strip("[]"), int(number)
