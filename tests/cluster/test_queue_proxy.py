"""Our front and Knative's queue-proxy in the same situations: the same answers, heads, counts and names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from e2e import build
from tests.support.queue_proxies import OURS, SITUATIONS
from tests.support.standby_pod import ROOT

PROGRAM = build.program("queue")
pytestmark = [
    pytest.mark.skipif(not PROGRAM.exists(), reason="queue-proxy is not built: `python -m e2e.build queue`"),
    pytest.mark.skipif(
        os.getuid() != 0 or not shutil.which("unshare"), reason="a network of its own takes root and unshare"
    ),
]


@cache
def facts(program: str) -> dict[str, Any]:
    command = ["unshare", "-n", "--", sys.executable, "-m", "tests.support.queue_proxies", program]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=400, cwd=ROOT)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("situation", [situation.__name__ for situation in SITUATIONS])
def test_the_same_as_queue_proxy(situation: str) -> None:
    assert facts(OURS)[situation] == facts(str(PROGRAM))[situation]
