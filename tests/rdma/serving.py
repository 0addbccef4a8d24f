"""A command of ours that serves at the far end of the wire, for tests of what asks it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.rdma.machine import Nics


def environ(device: str) -> dict[str, str]:
    return {**os.environ, "GALAXY_RDMA_DEVICES": device}


@contextmanager
def serving(command: Sequence[str], key: Path) -> Iterator[str]:
    """The address that it says."""
    words = [*command, "--serve", "--host", "127.0.0.1", "--port", "0", "--key-file", str(key)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environ(Nics.far)) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[2].rstrip(";")
        finally:
            process.kill()
