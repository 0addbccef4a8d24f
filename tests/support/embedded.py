"""An embedded cluster for tests and benchmarks: `galaxy up` in a folder of its own, and what to do to it.

Everything goes through the command that users have; only kill(), running() and pid() look into the data folder.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kserve_ext.cli.embedded.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
ECHO = Path(__file__).with_name("echo_instance.py")
NAMESPACE = "default"


class CommandFailed(AssertionError):
    """`galaxy` ended with an exit code other than the expected one; the message holds its output."""


class Embedded:
    """One cluster. Use as a context manager: it is taken down whatever happens."""

    def __init__(self, data: Path, *up: str) -> None:
        self.data = data
        self.port = free_port()
        self.up_args = up

    def __enter__(self) -> Embedded:
        self.galaxy("up", "--http-port", str(self.port), *self.up_args, timeout=240)
        return self

    def __exit__(self, *exc: object) -> None:
        self.galaxy("down", timeout=240)

    def galaxy(self, *args: str, stdin: str | None = None, timeout: float = 180, code: int | None = 0) -> str:
        """Runs `galaxy ARGS --data DIR`; returns its standard output."""
        verb, *rest = args
        done = subprocess.run(
            [sys.executable, "-m", "kserve_ext.cli", verb, "--data", str(self.data), *rest],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=ROOT,
            check=False,
        )
        if code is not None and done.returncode != code:
            raise CommandFailed(
                f"galaxy {' '.join(args)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done.stdout if code == 0 else done.stdout + done.stderr

    def apply(self, manifest: str, *, code: int = 0) -> str:
        return self.galaxy("apply", "-f", "-", stdin=manifest, code=code)

    def json(self, *args: str) -> Any:
        return json.loads(self.galaxy(*args, "-o", "json"))

    def run_file(self, member: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.data / "run" / f"{member}.json").read_text())
        return found

    def pid(self, member: str) -> int:
        return int(self.run_file(member)["pid"])

    def running(self, member: str) -> int:
        """Waits until the part runs and returns its pid: the file of one that died names the dead until it is
        back, and a view may still list it."""
        found: list[int] = []

        def runs() -> bool:
            found[:] = [self.pid(member)]
            return Path(f"/proc/{found[0]}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"

        self.wait(f"{member} runs", runs)
        return found[0]

    def kill(self, member: str, sig: int = signal.SIGKILL) -> int:
        """Signals one part, once it runs; the supervisor restarts it. Returns the pid that was signalled."""
        pid = self.running(member)
        os.kill(pid, sig)
        return pid

    def wait(self, what: str, check: Any, timeout_s: float = 120.0) -> float:
        """Polls until check() is true; returns the seconds it took, fails with `what` and the last error."""
        began = time.monotonic()
        last: object = None
        while time.monotonic() - began < timeout_s:
            try:
                if check():
                    return time.monotonic() - began
            except (OSError, ValueError, KeyError, IndexError, CommandFailed) as error:
                last = error
            time.sleep(0.1)
        raise AssertionError(f"not within {timeout_s} s: {what} (last error: {last})")


def echo_runtime(name: str = "echo", *args: str) -> str:
    """A ServingRuntime that runs the echo server as a plain command."""
    quoted = json.dumps([sys.executable, str(ECHO)])
    return f"""
apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata: {{name: {name}, namespace: {NAMESPACE}}}
spec:
  supportedModelFormats: [{{name: {name}, version: "1", autoSelect: true}}]
  protocolVersions: [v1]
  containers:
  - name: kserve-container
    image: example.com/echo:1
    command: {quoted}
    args: {json.dumps(["--port=8080", *args])}
    resources: {{requests: {{cpu: 100m, memory: 64Mi}}}}
"""


def echo_service(
    name: str, model: str, *, fmt: str = "echo", spec: str = "", annotations: dict[str, str] | None = None
) -> str:
    """An InferenceService of the echo runtime; `spec` is further YAML of the predictor (flow style lines)."""
    notes = json.dumps({"autoscaling.knative.dev/initial-scale": "0", **(annotations or {})})
    return f"""
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {{name: {name}, namespace: {NAMESPACE}, annotations: {notes}}}
spec:
  predictor:
    minReplicas: 0
{spec}
    model:
      modelFormat: {{name: {fmt}}}
      storageUri: {model}
"""
