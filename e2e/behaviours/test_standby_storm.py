"""A storm under load: whatever is killed, stopped or changed, no answer is another model's, and all agree afterwards.

What is done comes from a seed, which is printed; `--seed` repeats the acts, if not the moments at which they hit.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from e2e.behaviours import parts
from e2e.behaviours.crowd import Crowd
from e2e.behaviours.follower import Follower
from e2e.behaviours.ingress import Ingress
from e2e.behaviours.services import NAMESPACE, Service
from e2e.behaviours.standby import RUNTIME, Pool, installing, wait_agreed
from e2e.behaviours.storm import Storm
from e2e.behaviours.test_node_agent import Autoscaler
from e2e.behaviours.test_settings import settings
from e2e.stack import knative, network, processes
from e2e.stack.api import Api, Object, wait_until
from e2e.stack.cluster import Cluster
from e2e.stack.place import Place
from kserve_ext.api.standby import names

REVISIONS = 8
SIZE = 4
STORM_S = 80
AGREED_S = 150


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    given = request.config.getoption("--seed")
    chosen = random.SystemRandom().randrange(10_000) if given is None else int(given)
    print(f"--seed {chosen}")
    return chosen


@pytest.fixture
def installed(stack: Cluster) -> Iterator[Api]:
    """Two activators and two autoscalers, of which one may be away. In the end nothing is left of all of it."""
    with (
        installing(stack) as api,
        settings(api, scale_to_zero_grace_period="6s"),
        parts.replicas(api, "activator", 2),
        parts.replicas(api, "autoscaler", 2),
    ):
        yield api
    wait_until("no standby pods", lambda: not api.list("v1", "Pod", NAMESPACE, names.POOL_LABEL), 60)
    wait_until("no processes of them", lambda: not _running(stack), 60, detail=lambda: str(_running(stack)))


def _running(stack: Cluster) -> list[str]:
    found = []
    for space in network.namespaces():
        if stack.place.owns(space):
            for pid in network.processes(space):
                command = processes.command(pid)
                if RUNTIME in command or "autoscaler_shim.slot" in command:
                    found.append(f"{space}: {pid} {command}")
    return found


class Witness(Follower):
    """That no address is an endpoint of two revisions; of which revisions each pod was."""

    def __init__(self, place: Place) -> None:
        path = f"/api/v1/namespaces/{NAMESPACE}/"
        super().__init__(
            place, {path + "endpoints": self._endpoints_changed, path + "pods": self._pod_changed}
        )
        self._owners: defaultdict[str, set[str]] = defaultdict(set)
        self._revisions: dict[str, list[str]] = {}
        self.shared: list[str] = []

    def _endpoints_changed(self, change: str, obj: Object) -> None:
        name = obj["metadata"]["name"]
        if not name.endswith("-private"):
            return
        subsets = (obj.get("subsets") or []) if change == "SET" else []
        ready = {entry["ip"] for subset in subsets for entry in subset.get("addresses") or []}
        for owners in self._owners.values():
            owners.discard(name)
        for ip in ready:
            self._owners[ip].add(name)
            if len(self._owners[ip]) > 1:
                self.shared.append(f"{ip}: {sorted(self._owners[ip])}")

    def _pod_changed(self, change: str, obj: Object) -> None:
        labels = obj["metadata"].get("labels") or {}
        revision = labels.get("serving.knative.dev/revision", "")
        history = self._revisions.setdefault(obj["metadata"]["uid"], [])
        if names.POOL_LABEL in labels and (not history or history[-1] != revision):
            history.append(revision)

    @property
    def handed_on(self) -> list[list[str]]:
        """Pods that became another revision's without being nobody's in between."""
        return [
            history
            for history in self._revisions.values()
            if any(a and b and a != b for a, b in itertools.pairwise(history))
        ]

    @property
    def adopted(self) -> int:
        return sum(any(history) for history in self._revisions.values())


@pytest.mark.timeout(900, method="signal")
def test_a_storm(stack: Cluster, installed: Api, ingress: Ingress, tmp_path: Path, seed: int) -> None:
    pool = Pool(installed, tmp_path)
    with ExitStack() as open_:
        services: list[Service] = []
        for number in range(REVISIONS):
            # Requests go to pods directly, once there are any, or always past an activator.
            capacity = "0" if number % 2 else "-1"
            marks: dict[str, Any] = {"window": "6s", "target-burst-capacity": capacity}
            services.append(open_.enter_context(pool.service(f"storm{number}", SIZE, **marks)))
        pool.wait_filled(SIZE)
        with Witness(stack.place) as witness, Crowd(ingress, services, seed) as crowd:
            storm = Storm(stack, pool, services, seed)
            try:
                storm.blow(STORM_S)
                crowd.steady = True
                over = time.monotonic()
                _wait_parts(installed)
                for service in services:
                    wait_agreed(service, 1, AGREED_S)
                    print(f"{service.revision}: all agree {time.monotonic() - over:.1f} s after the storm")
                after = Counter(crowd.good)
                wait_until(
                    "answers of all", lambda: all(crowd.good[s.name] > after[s.name] for s in services), 60
                )
            finally:
                print("\n".join(storm.done))
                _tell(crowd, witness)
        assert crowd.wrong == []
        assert witness.shared == []
        assert witness.handed_on == []
        assert {pid: asked for pid, asked in crowd.servers.items() if len(asked) > 1} == {}
        assert crowd.lost(storm.may_break) == []
        for service in services:
            service.wait_zero(AGREED_S)
            wait_agreed(service, 0)
        pool.wait_filled(SIZE)
        assert len(pool.pods()) == SIZE
        _wait_idle(installed)


def _wait_parts(api: Api) -> None:
    wait_until("the API server", lambda: api.raw("GET", "/readyz")[0] == 200, 60)
    for name in knative.DEPLOYMENTS:
        knative.wait_rolled_out(api, name)


def _wait_idle(api: Api) -> None:
    """The agent tells of the pool's slots, and that nobody has them."""
    autoscaler = Autoscaler(api)
    seen: list[str] = []

    def idle() -> bool:
        slots = autoscaler.slots().slots
        seen[:] = [f"{slot.pod} {slot.state} {slot.revision}" for slot in slots]
        return len(slots) == SIZE and all(slot.state == "ready" and not slot.revision for slot in slots)

    wait_until(f"{SIZE} slots of nobody", idle, 60, detail=lambda: str(seen))


def _tell(crowd: Crowd, witness: Witness) -> None:
    waits = sorted(crowd.waits_s) or [0.0]
    print(
        f"{sum(crowd.good.values())} answers, {len(crowd.broken)} broken, {witness.adopted} pods adopted; "
        f"p50 {waits[len(waits) // 2]:.3f} s, p99 {waits[len(waits) * 99 // 100]:.2f} s, most {waits[-1]:.1f} s"
    )
    for text, count in crowd.refusals.most_common():
        print(f"{count} times {text}")
    for one in crowd.broken:
        print(one)
