"""A storm over standby pods: parts of the system and pods are killed, stopped and changed at random, by a seed.

What it did, and which addresses were hit when, is kept, so that a broken connection can be told from a lost request.
"""

from __future__ import annotations

import datetime
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from e2e.behaviours import parts
from e2e.behaviours.services import NAMESPACE, Service
from e2e.behaviours.standby import AGENT, UID, Pool
from e2e.stack import network, processes
from e2e.stack.api import ApiError, Object, condition
from e2e.stack.cluster import Cluster
from e2e.stack.place import SYSTEM_NAMESPACE

PAUSE_S = (0.5, 4.0)
STOPPED_S = (1.0, 20.0)
#: Longer than requests to the API server are waited for by some, shorter than any Lease lasts.
SILENT_S = (2.0, 8.0)
#: From the death of a process until nobody is sent there: its probe fails, Endpoints change, all have heard.
AFTERMATH_S = 20.0
#: How the processes of a standby pod are told apart: a word of each one's command line.
SLOT, FRONT, ZYGOTE, SERVER = "autoscaler_shim.slot", "--slot-fd", ".zygote", "--model="


class Storm:
    def __init__(self, stack: Cluster, pool: Pool, services: Sequence[Service], seed: int) -> None:
        self._stack = stack
        self._api = stack.api
        self._pool = pool
        self._revisions = [service.revision for service in services]
        self._random = random.Random(seed)
        self._began = time.monotonic()
        self._timers: list[threading.Timer] = []
        #: (IP, when): what was there may have broken connections.
        self._hits: list[tuple[str, float]] = []
        self.done: list[str] = []

    def blow(self, seconds: float) -> None:
        """Until the time is over, and what was stopped goes on again."""
        actions = self._actions()
        self._began = time.monotonic()
        try:
            while time.monotonic() - self._began < seconds:
                time.sleep(self._random.uniform(*PAUSE_S))
                (act,) = self._random.choices([act for act, _ in actions], [weight for _, weight in actions])
                # What was chosen may go meanwhile: then somebody else's act has been done.
                with suppress(ApiError, OSError, ProcessLookupError, KeyError, IndexError):
                    act()
        finally:
            for timer in self._timers:
                timer.join()

    def may_break(self, address: str, since: float, until: float) -> bool:
        """Whether a connection to it may have been cut, or refused, in this time."""
        host = address.rpartition(":")[0]
        return any(ip == host and since - AFTERMATH_S <= at <= until for ip, at in list(self._hits))

    def _actions(self) -> list[tuple[Callable[[], None], int]]:
        return [
            (lambda: self._kill_part("autoscaler"), 3),
            (lambda: self._stop_part("autoscaler"), 2),
            (lambda: self._kill_part("activator"), 2),
            (lambda: self._kill_part(AGENT), 2),
            (lambda: self._stop_part(AGENT), 1),
            (lambda: self._kill_process(SLOT), 2),
            (lambda: self._kill_process(FRONT), 2),
            (lambda: self._kill_process(ZYGOTE), 2),
            (lambda: self._kill_process(SERVER), 3),
            (lambda: self._delete(adopted=False), 2),
            (lambda: self._delete(adopted=True), 3),
            (self._change, 2),
            (self._stop_api_server, 1),
        ]

    def _say(self, text: str) -> None:
        now = datetime.datetime.now().strftime("%H:%M:%S.%f")[:-3]
        self.done.append(f"{now} +{time.monotonic() - self._began:.1f} s: {text}")

    # --- acts

    def _kill_part(self, name: str) -> None:
        pod = self._part(name)
        self._hit(pod)
        self._say(f"kill {pod['metadata']['name']}")
        parts.kill(self._api, SYSTEM_NAMESPACE, pod["metadata"]["name"])

    def _stop_part(self, name: str) -> None:
        pod = self._part(name)["metadata"]["name"]
        seconds = self._random.uniform(*STOPPED_S)
        stopped = parts.processes(self._api, SYSTEM_NAMESPACE, pod)
        self._say(f"stop {pod} for {seconds:.1f} s")
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        timer = threading.Timer(seconds, _go_on, (stopped,))
        timer.start()
        self._timers.append(timer)

    def _kill_process(self, word: str) -> None:
        pods = [pod for pod in self._pool.pods() if pod["status"].get("phase") == "Running"]
        self._random.shuffle(pods)
        for pod in pods:
            first = int(pod["status"]["containerStatuses"][0]["containerID"].removeprefix("process://") or 0)
            found = [pid for pid in _beside(first) if word in processes.command(pid)] if first else []
            if word == SERVER:
                found = [pid for pid in found if ZYGOTE not in processes.command(pid)]
            if found:
                self._hit(pod)
                self._say(f"kill {word} of {_name(pod)}")
                os.kill(found[0], signal.SIGKILL)
                return

    def _delete(self, adopted: bool) -> None:
        pods = [pod for pod in self._pool.pods() if (UID in pod["metadata"]["labels"]) == adopted]
        pod = self._random.choice(pods)
        grace_s = self._random.choice([None, 1])
        self._hit(pod)
        self._say(f"delete {_name(pod)}, grace {grace_s}")
        self._api.delete("v1", "Pod", NAMESPACE, pod["metadata"]["name"], grace_s)

    def _change(self) -> None:
        revision = self._random.choice(self._revisions)
        mark = {"a-change": str(len(self.done))}
        patch = {"spec": {"template": {"metadata": {"annotations": mark}}}}
        self._say(f"change the template of {revision}")
        # A rollout deletes the pods that it replaces.
        for pod in self._api.list("v1", "Pod", NAMESPACE, f"serving.knative.dev/revision={revision}"):
            self._hit(pod)
        self._api.patch("apps/v1", "Deployment", NAMESPACE, f"{revision}-deployment", patch)

    def _stop_api_server(self) -> None:
        record = processes.Record.read(self._stack.place)
        assert record is not None
        pids = [record.processes["kube-apiserver"].pid]
        seconds = self._random.uniform(*SILENT_S)
        self._say(f"the API server is silent for {seconds:.1f} s")
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            _go_on(pids)

    # --- inside

    def _part(self, name: str) -> Object:
        pod = self._random.choice(sorted(parts.system_pods(self._api, name)))
        return self._api.get("v1", "Pod", SYSTEM_NAMESPACE, pod)

    def _hit(self, pod: Object) -> None:
        self._hits.append((pod["status"].get("podIP", ""), time.monotonic()))


def _go_on(pids: Sequence[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _name(pod: Object) -> str:
    revision = pod["metadata"]["labels"].get("serving.knative.dev/revision", "nobody")
    return f"{pod['metadata']['name']} of {revision}, Ready={condition(pod, 'Ready')}"


def _beside(pid: int) -> list[int]:
    """All in its network namespace, which is its pod's."""
    return network.processes(network.ip("netns", "identify", str(pid)).strip())
