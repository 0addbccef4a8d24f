"""`make demo` ends well, shows what it promises, and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.test_command import running
from tests.support.embedded import ROOT

pytestmark = pytest.mark.cluster


@pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: run `make setup`"
)
def test_the_demo(tmp_path: Path, tiny_model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT,
        env={**os.environ, "GALAXY_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in (
        "✓ no instance runs",
        "✓ the answer says that it was a cold start",
        "✓ the KV cache went from prefill to decode over shm",
        "✓ 32 tokens of prefill/decode equal those of one engine",
        "✓ nothing runs any more",
    ):
        assert words in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert not list((tmp_path / "demo" / "run").glob("*.json"))
    pids = [
        int(f.read_text().split('"pid":')[1].split(",")[0])
        for f in tmp_path.glob("demo/nodes/*/zygotes/*.json")
    ]
    assert running(pids) == []
