"""An embedded cluster for tests and benchmarks: `galaxy up` in a folder of its own, and what to do to it.

Everything goes through the command that users have; only what is said of single processes (pid(), running(),
kill(), whole()) looks into the data folder.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from kserve_ext.cli.embedded.folder import alive
from kserve_ext.rpc.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
ECHO = Path(__file__).with_name("echo_instance.py")
NAMESPACE = "default"


class CommandFailed(AssertionError):
    """`galaxy` ended with an exit code other than the expected one; the message holds its output."""


#: Why a check can't be made at this moment: a part is away, or has not said enough.
_NOT_YET = (OSError, ValueError, LookupError, StopIteration, http.client.HTTPException, CommandFailed)


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

    def lives(self, member: str) -> bool:
        """Whether the process that the run file names runs: it names the dead until the next one is back."""
        return bool(alive(self.run_file(member)))

    def running(self, member: str) -> int:
        """Waits until the part runs and returns its pid."""
        self.wait(f"{member} runs", lambda: self.lives(member))
        return self.pid(member)

    def kill(self, member: str, sig: int = signal.SIGKILL) -> int:
        """Signals one part, once it runs, and sees SIGKILL take it; the supervisor restarts it. Returns its pid."""
        pid = self.running(member)
        os.kill(pid, sig)
        if sig == signal.SIGKILL:
            self.wait(f"the end of {member}", lambda: self.pid(member) != pid or not self.lives(member))
        return pid

    def back(self, member: str, old: int) -> float:
        """Waits until a later process than `old` is this part and runs; the seconds that it took."""
        return self.wait(f"{member} is back", lambda: self.pid(member) != old and self.lives(member))

    def status(self) -> dict[str, Any]:
        """What every part says. One that does not answer in time is asked again: what it would have told, a node's
        instances, say, is not in that answer, as if there were none."""
        found: dict[str, Any] = {}

        def complete() -> bool:
            found.update(self.json("status"))
            return _complete(found)

        self.wait("an answer of every part", complete)
        return found

    def whole(self, parts: Collection[str]) -> bool:
        """Whether each of these parts runs and answers, and all but controllers are in the view as what runs: a view
        lists a part that was killed for some time yet."""
        if not all(self.lives(part) for part in parts):
            return False
        status = self.json("status")
        view = {str(m["id"]): int(m["incarnation"]) for m in status["members"]}
        members = [part for part in parts if not part.startswith("controller-")]
        return _complete(status) and all(view.get(part) == self._incarnation(part) for part in members)

    def _incarnation(self, member: str) -> int:
        """Of the last process that began as this part."""
        return int((self.data / "run" / f"{member}.incarnation").read_text())

    def wait(self, what: str, check: Callable[[], object], timeout_s: float = 120.0) -> float:
        """Polls until check() is true; returns the seconds it took, fails with `what` and the last error."""
        began = time.monotonic()
        last: object = None
        while time.monotonic() - began < timeout_s:
            try:
                if check():
                    return time.monotonic() - began
            except _NOT_YET as error:
                last = error
            time.sleep(0.1)
        raise AssertionError(f"not within {timeout_s} s: {what} (last error: {last})")


def _complete(status: dict[str, Any]) -> bool:
    return not any("error" in said for said in (status["controller"], *status["functions"], *status["nodes"]))


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
