"""`galaxy kv bench`: one rung by itself, between this process and one of its own, or one on another machine.

What it needs of the runtimes is imported when it is used, so that other verbs start without them.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from kserve_ext.cli.embedded.folder import Folder
from kserve_ext.cli.failure import Failure
from kserve_ext.cli.output import data_option, dump, format_option, table
from kserve_ext.cli.peering import key_option, read_address, read_key, serving_options

if TYPE_CHECKING:
    from kserve_ext.cli.kv.bench import Measured

PORT: Final = 18598
RUNGS: Final = ("rdma", "rdma-staged", "ipc", "shm", "nixl", "tcp")
_UNITS: Final = {"": 1, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "k": 10**3, "m": 10**6, "g": 10**9}
_DO: Final = {
    "rdma": "galaxy doctor rdma, on both machines",
    "rdma-staged": "galaxy doctor rdma, on both machines",
    "ipc": "it carries blocks of GPUs, and these lie in the host: python -m bench.kv_gpu_rungs --rungs ipc",
    "shm": "both processes must see one /dev/shm, with 32 MiB free: on another machine there is none",
    "nixl": "pip install nixl, on both sides",
    "tcp": "galaxy kv bench --serve on the other machine, and no firewall in between",
}


def _size(context: click.Context, param: click.Parameter, value: str) -> int:
    found = re.fullmatch(r"(\d+)\s*([kmg]i?)?b?", value.strip().lower())
    if found is None or not int(found[1]):
        raise click.BadParameter(f"{value} is no size: 64Mi, 256Ki, 1Gi, or a number of bytes")
    return int(found[1]) * _UNITS[found[2] or ""]


@click.command("bench")
@data_option
@key_option
@click.option("--rung", type=click.Choice(RUNGS), help="The way that blocks take.")
@click.option("--serve", is_flag=True, help="Wait for measurements from other machines; any rung.")
@serving_options(PORT)
@click.option("--peer", metavar="HOST:PORT", help="A machine that serves.  [default: a process of this one]")
@click.option("--bytes", "size", callback=_size, default="64Mi", show_default=True, help="Of a transfer.")
@click.option("--block", callback=_size, default="256Ki", show_default=True, help="Bytes of a block.")
@click.option("--scattered", is_flag=True, help="No two blocks are neighbours on both sides.")
@click.option(
    "--seconds", type=click.FloatRange(0.1, 3600), default=3, show_default=True, help="To measure for."
)
@format_option("json", "yaml")
def bench(
    folder: Folder,
    key_file: Path | None,
    rung: str | None,
    serve: bool,
    host: str,
    port: int,
    peer: str | None,
    size: int,
    block: int,
    scattered: bool,
    seconds: float,
    output: str | None,
) -> None:
    """Measure one rung: bandwidth, time of a transfer and CPU; every block is checked.

    On one machine `galaxy kv bench --serve`, on another one `galaxy kv bench --rung RUNG --peer HOST:PORT`. Without
    --peer, both sides are on this machine. The exit code is 1 when the rung can't be had; the reason is told.
    """
    if serve:
        if peer is not None or rung is not None:
            raise click.UsageError("--serve is for one machine, --rung and --peer for the other")
        _serve(read_key(folder, key_file, host), host, port)
        return
    if rung is None:
        raise click.UsageError(f"--rung RUNG is needed: {', '.join(RUNGS)}")
    if block > size:
        raise click.UsageError(f"a block of {block} bytes in a transfer of {size}")
    if peer is None:
        got = _measure(b"", None, rung, size, block, seconds, scattered=scattered)
    else:
        there = read_address(peer, PORT)
        key = read_key(folder, key_file, there[0])
        got = _measure(key, there, rung, size, block, seconds, scattered=scattered)
    if output:
        dump(got._asdict(), output)
    else:
        _show(got, peer)
    if not got.intact:
        raise Failure(
            "bytes changed on the way", "", "replace the NIC, its firmware, the cable or the memory"
        )


def _serve(key: bytes, host: str, port: int) -> None:
    from kserve_ext.cli.kv import peer

    try:
        listener = peer.serve(key, host, port)
    except (OSError, ValueError) as error:
        raise Failure(f"can't serve at {host}:{port}", str(error), "another --host or --port") from error
    click.echo(f"serving at {listener.addr}; end with Ctrl-C")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        listener.close()


def _measure(
    key: bytes,
    there: tuple[str, int] | None,
    rung: Any,
    size: int,
    block: int,
    seconds: float,
    *,
    scattered: bool,
) -> Measured:
    from kserve_ext.cli.kv import bench as side
    from kserve_ext.cli.kv.peer import MOST
    from runtimes.transport.channel import ChannelError

    if size > MOST:
        raise click.BadParameter(f"a transfer of {size} bytes: at most {MOST}", param_hint="--bytes")
    try:
        if there is not None:
            return side.measure(*there, key, rung, size, block, seconds, scattered=scattered)
        with side.forked(rung) as (host, port):
            return side.measure(host, port, key, rung, size, block, seconds, scattered=scattered)
    except side.BlockRefused as error:
        raise Failure(f"rung {rung} can't be measured", error.detail, "a smaller --block") from error
    except ChannelError as error:
        do = "the same cluster key on both sides" if error.reason == "unauthenticated" else _DO[rung]
        raise Failure(f"rung {rung} can't be measured", error.detail or error.reason, do) from error


def _show(got: Measured, peer: str | None) -> None:
    where = f"to {peer}" if peer else "between two processes of this machine"
    device = f" ({got.device})" if got.device else ""
    count = got.transfer_bytes // got.block_bytes
    click.echo(f"{got.rung}{device} {where}, {count} blocks of {got.block_bytes} bytes a transfer")
    rows = [
        ("bandwidth", f"{got.mb_s:,.0f} MB/s", f"{got.transfers} transfers, two at a time"),
        ("transfer", f"{got.transfer_ms:.2f} ms", f"one at a time; 99th of 100: {got.transfer_p99_ms:.2f}"),
        ("one block", f"{got.block_us:.0f} us", "asked for, sent, checked"),
        ("CPU here", f"{got.cpu_s_per_gib:.2f} s/GiB", "receiving, with checksums"),
        ("CPU there", f"{got.peer_cpu_s_per_gib:.2f} s/GiB", "sending, with checksums"),
        (
            "bytes",
            "intact" if got.intact else "CHANGED",
            "each block's checksum; all bytes, before and behind",
        ),
    ]
    click.echo(table(("WHAT", "RESULT", "HOW"), rows))
