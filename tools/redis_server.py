"""A server that speaks Redis' protocol, for tests: the one of this machine, else Debian's, unpacked in the cache.

Nothing is installed. `GALAXY_REDIS_SERVER` names a program to take instead.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from tools.rdma_vm import debian, kernel
from tools.setup import steps
from tools.setup.layout import Layout
from tools.setup.steps import SetupError

CHOSEN = "GALAXY_REDIS_SERVER"
PROGRAMS = ("redis-server", "valkey-server")
#: The server, and the libraries that a small Debian does not have.
PACKAGES = ("redis-tools", "libjemalloc2", "liblzf1", "libatomic1")


class Server(NamedTuple):
    """How it is started."""

    program: Path
    libraries: Path | None = None

    def environment(self) -> dict[str, str]:
        env = dict(os.environ)
        if self.libraries is not None:
            env["LD_LIBRARY_PATH"] = str(self.libraries)
        return env


def bring(layout: Layout) -> Server:
    """Raises SetupError where there is none and none can be had."""
    named = os.environ.get(CHOSEN)
    found = next(filter(None, map(shutil.which, [named] if named else PROGRAMS)), None)
    if found:
        return Server(Path(found))
    if named:
        raise SetupError(f"{CHOSEN}: {named} is no program that can be run")
    target = layout.cache / "redis-server"
    steps.run(
        [steps.Step("redis-server (Debian's)", target.exists, lambda: _fetch(target, layout))], layout.lock
    )
    return Server(target / "redis-server", target)


def _fetch(target: Path, layout: Layout) -> None:
    kernel.require({"apt-get": "apt", "dpkg-deb": "dpkg"}, "fetching redis-server")
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name in PACKAGES:
        content = debian.unpack(name, partial / "work", layout.log / "redis-server.log")
        for file in [*content.glob("usr/bin/redis-check-rdb"), *content.glob("usr/lib/*/*.so*")]:
            shutil.copy(file, partial / ("redis-server" if file.name == "redis-check-rdb" else file.name))
    shutil.rmtree(partial / "work")
    os.replace(partial, target)


def main() -> int:
    try:
        print(bring(Layout.of_user()).program)
    except SetupError as error:
        print(f"there is no redis-server: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
