"""`galaxy doctor rdma`: the checks of this machine; with --serve and --peer the two sides of a test of the link.

What it needs of the runtimes is imported when it is used, so that other verbs start without them.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import click

from kserve_ext.cli.embedded.folder import Folder
from kserve_ext.cli.failure import Failure
from kserve_ext.cli.findings import show
from kserve_ext.cli.output import data_option, dump, format_option, table
from kserve_ext.cli.peering import key_option, read_address, read_key, serving_options

PORT: Final = 18599


@click.command("rdma")
@data_option
@key_option
@click.option("--serve", is_flag=True, help="Wait for tests of the link from other machines.")
@serving_options(PORT)
@click.option("--peer", metavar="HOST:PORT", help="Test the link to a machine that serves.")
@format_option("json", "yaml")
def command(
    folder: Folder,
    key_file: Path | None,
    serve: bool,
    host: str,
    port: int,
    peer: str | None,
    output: str | None,
) -> None:
    """Check what KV over RDMA needs; the exit code is 1 when it can't be used.

    On one machine `galaxy doctor rdma --serve`, on another one `galaxy doctor rdma --peer HOST:PORT`: a test of the
    link between them, of some seconds.
    """
    if serve and peer is not None:
        raise click.UsageError("--serve is for one machine, --peer for the other")
    if serve:
        _serve(read_key(folder, key_file, host), host, port)
    elif peer is not None:
        name, number = read_address(peer, PORT)
        _measure(read_key(folder, key_file, name), name, number, output)
    else:
        _check(output)


def _check(output: str | None) -> None:
    from kserve_ext.cli.rdma import findings, reading
    from runtimes.transport.channel import ChannelError
    from runtimes.transport.verbs import cards

    try:
        wanted = cards.wanted()
    except ChannelError as error:
        raise Failure("RDMA can't be used", error.detail, "") from error
    facts = reading.read(pfc=reading.ask_dcb, verbs=reading.ask_verbs, wanted=wanted)
    found, rows = findings.judge(facts), findings.rows(facts)
    if output:
        names = [name.lower() for name in findings.COLUMNS]
        ports = [dict(zip(names, row, strict=True)) for row in rows]
        dump({"ports": ports, "checks": [finding._asdict() for finding in found]}, output)
    else:
        if rows:
            click.echo(table(findings.COLUMNS, rows) + "\n")
        show(found)
    verdict, *checks = found
    failed = sum(finding.level == "failed" for finding in checks)
    if failed or verdict.level == "failed":
        raise Failure(f"{failed} of {len(checks)} checks failed", "", "follow the remedies above")


def _serve(key: bytes, host: str, port: int) -> None:
    from kserve_ext.cli.rdma import link
    from runtimes.transport.channel import ChannelError
    from runtimes.transport.verbs import cards

    try:
        cards.find()
        listening = link.listen(host, port)
    except ChannelError as error:
        raise _no_link(error) from error
    except OSError as error:
        raise Failure(f"can't serve at {host}:{port}", str(error), "another --host or --port") from error
    click.echo(f"serving at {host}:{listening.getsockname()[1]}; end with Ctrl-C")
    with listening, contextlib.suppress(KeyboardInterrupt):
        link.serve(listening, key, click.echo)


def _measure(key: bytes, host: str, port: int, output: str | None) -> None:
    from kserve_ext.cli.rdma import findings, link
    from runtimes.transport.channel import ChannelError

    try:
        got = link.measure(host, port, key)
    except ChannelError as error:
        raise _no_link(error) from error
    if output:
        dump(got._asdict(), output)
    else:
        mine = f"{got.device} ({findings.spoken(got.address)}, GID {got.gid_index})"
        click.echo(f"{mine} to {got.peer_device} of {host}, packets of {got.mtu} bytes")
        rows = [
            ("write", f"{got.write_mb_s:,.0f} MB/s", "1 MiB each, in the peer's memory when counted"),
            ("read", f"{got.read_mb_s:,.0f} MB/s", "1 MiB each"),
            (
                "message",
                f"{got.message_us:.1f} us",
                f"one way, 64 bytes; 99th of 100: {got.message_p99_us:.1f}",
            ),
            ("bytes", "intact" if got.intact else "CHANGED", "16 MiB written, read back and compared"),
        ]
        click.echo(table(("WHAT", "RESULT", "HOW"), rows))
    if not got.intact:
        raise Failure("bytes changed on the way", "", "replace the NIC, its firmware or the cable")


def _no_link(error: Exception) -> Failure:
    return Failure("the link can't be tested", str(error), "galaxy doctor rdma, on both machines")
