"""The zygote: what a start still imports after the fork, and who outlives whom."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kserve_ext.rpc.zygote import arguments_only
from tests.engine.instances import ROOT, WAIT_S, Instance, Nursery, ask_zygote, until
from tests.support.processes import lives

pytestmark = pytest.mark.engine

#: What vLLM imports by the settings of one instance; anything else belongs into preimport.MODULES.
EXPECTED_LATE = {"runtimes.vllm_pd.server", "tests.engine.faulty.server"}


def test_a_ping_tells_who_and_how_long(nursery: Nursery) -> None:
    assert nursery.facts["ready"] is True
    assert nursery.facts["name"] == "tests"
    assert nursery.facts["imported_s"] > 0


def test_bad_requests_are_answered_and_change_nothing(nursery: Nursery) -> None:
    assert "error" in ask_zygote(nursery.path, {"argv": 7})
    assert "error" in ask_zygote(nursery.path, {})
    assert ask_zygote(nursery.path, {"ping": True})["ready"] is True


def test_arguments_of_a_whole_command() -> None:
    assert arguments_only(["python", "-m", "runtimes.vllm_pd", "--model", "m"]) == ["--model", "m"]
    assert arguments_only(["--model", "m"]) == ["--model", "m"]


def test_a_process_without_a_zygote(tmp_path: Path, tiny_model: Path) -> None:
    command = [sys.executable, "-m", "runtimes.vllm_pd", "--model", str(tiny_model)]
    command += ["--port", "0", "--host", "127.0.0.1", "--served-model-name", "tiny"]
    environ = {**os.environ, "GALAXY_INSTANCE_DIR": str(tmp_path)}
    process = subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.DEVNULL)
    instance = Instance(tmp_path, process.pid)
    until(lambda: instance.status()["phase"] == "ready" or process.poll() is not None, "ready")
    assert instance.ask("/v1/completions", {"model": "tiny", "prompt": "hello"}).status == 200
    process.terminate()
    assert process.wait(WAIT_S) == 0


def test_a_start_imports_next_to_nothing_after_the_fork(tmp_path: Path, tiny_model: Path) -> None:
    script = f"""
import json, os, threading
from kserve_ext.rpc.zygote import assert_forkable
from runtimes.vllm_pd.preimport import late_modules, preimport
preimport()
assert_forkable()
from runtimes.vllm_pd import server, status
enter = status.Status.enter
def told(self, phase):
    enter(self, phase)
    if phase in ("ready", "failed"):
        print(json.dumps([phase, late_modules()]), flush=True)
        os._exit(0)
status.Status.enter = told
server.main(["--model", {str(tiny_model)!r}, "--port", "0", "--max-model-len", "512", "--role", "decode"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S
    )
    phase, late = json.loads(done.stdout.splitlines()[-1])
    assert phase == "ready", done.stderr[-2000:]
    assert set(late) <= EXPECTED_LATE, sorted(set(late) - EXPECTED_LATE)


def test_it_outlives_its_parent_and_its_children_outlive_it(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "zygote.sock"
    command = [sys.executable, "-m", "runtimes.vllm_pd.zygote", "--socket", str(path), "--name", "orphan"]
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, time; subprocess.Popen({command!r}); time.sleep(600)"],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    until(path.exists, "zygote's socket")
    parent.kill()
    parent.wait(WAIT_S)
    zygote = ask_zygote(path, {"ping": True})["pid"]
    folder = tmp_path / "instance"
    folder.mkdir()
    log = str(folder / "log")
    argv = ["--model", str(tiny_model), "--port", "0", "--served-model-name", "tiny"]
    env = {"GALAXY_INSTANCE_DIR": str(folder)}
    request = {"argv": argv, "env": env, "stdout": log, "stderr": log, "instance_dir": str(folder)}
    instance = Instance(folder, ask_zygote(path, request)["pid"]).ready()
    os.kill(zygote, signal.SIGTERM)
    until(lambda: not path.exists(), "the zygote's end")
    assert instance.ask("/v1/completions", {"model": "tiny", "prompt": "still here"}).status == 200
    instance.kill()
    until(lambda: not lives(instance.pid), "the instance's end")
