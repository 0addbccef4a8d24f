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

PAUSE_S = (0.2, 3.0)
#: For so long a pod is looked for that is being taken.
MIDDLE_S = 5.0
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
                with suppress(ApiError, OSError, network.NetworkError, KeyError, IndexError, ValueError):
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
            (lambda: self._stop_part("autoscaler", 20.0), 2),
            (lambda: self._kill_part("activator"), 2),
            (lambda: self._kill_part(AGENT), 2),
            (lambda: self._stop_part(AGENT, 6.0), 1),  # without it nothing can be adopted
            (lambda: self._kill_process(SLOT), 2),
            (lambda: self._kill_process(FRONT), 2),
            (lambda: self._kill_process(ZYGOTE), 2),
            (lambda: self._kill_process(SERVER), 3),
            (lambda: self._delete(adopted=False), 2),
            (lambda: self._delete(adopted=True), 3),
            (self._in_the_middle, 6),
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

    def _stop_part(self, name: str, most_s: float) -> None:
        pod = self._part(name)["metadata"]["name"]
        seconds = self._random.uniform(1.0, most_s)
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
        # Rather one that somebody has.
        busy = {pod["metadata"]["uid"] for pod in pods if _processes(pod, SERVER)}
        for pod in sorted(pods, key=lambda pod: pod["metadata"]["uid"] not in busy):
            if found := _processes(pod, word):
                self._hit(pod)
                self._say(f"kill {word} of {_name(pod)}")
                os.kill(found[0], signal.SIGKILL)
                return

    def _in_the_middle(self) -> None:
        """A pod that starts or serves a revision whose labels it has not yet."""
        until = time.monotonic() + MIDDLE_S
        while time.monotonic() < until:
            for pod in self._pool.pods():
                if UID not in pod["metadata"]["labels"] and (found := _processes(pod, SERVER)):
                    self._hit(pod)
                    word = self._random.choice((SLOT, SERVER, "pod", "autoscaler", AGENT))
                    self._say(f"in the middle, {word}: {_name(pod)}")
                    if word == "pod":
                        self._api.delete("v1", "Pod", NAMESPACE, pod["metadata"]["name"], 1)
                    elif word in ("autoscaler", AGENT):
                        self._kill_part(word)
                    else:
                        os.kill((_processes(pod, word) or found)[0], signal.SIGKILL)
                    return
            time.sleep(0.05)

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


def _processes(pod: Object, word: str) -> list[int]:
    """Of the pod, which all are in one network namespace; those whose command line has the word."""
    statuses = pod["status"].get("containerStatuses") or [{}]
    first = str(statuses[0].get("containerID") or "").removeprefix("process://")
    if not first:
        return []
    found = network.processes(network.ip("netns", "identify", first).strip())
    commands = {pid: processes.command(pid) for pid in found}
    return [pid for pid, said in commands.items() if word in said and (word != SERVER or ZYGOTE not in said)]
