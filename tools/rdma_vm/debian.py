"""A package of Debian's, fetched and unpacked beside the system: nothing is installed."""

from __future__ import annotations

import shutil
from pathlib import Path

from tools.setup import commands
from tools.setup.steps import SetupError


def unpack(name: str, work: Path, log: Path) -> Path:
    """Makes the folder `work` anew; what the package holds lies below the folder returned. Raises SetupError."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        commands.run(["apt-get", "-q", "download", name], log, cwd=work)
    except SetupError as error:
        raise SetupError(f"{error}\n(if the package is not known: apt update)") from None
    (package,) = work.glob("*.deb")
    content = work / "package"
    commands.run(["dpkg-deb", "-x", package, content], log)
    package.unlink()
    return content
