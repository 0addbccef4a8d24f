"""Sparrow (SOSP '13): schedulers that know nothing, d probes a task, and tasks bound when a worker is free for them.

For a job of m tasks a scheduler puts d * m reservations into the queues of random workers. A worker that comes to one
with a place free asks the scheduler for a task; the first m to ask get one, the others hear that there is none left.
Workers know nothing of warm instances elsewhere, and neither does anybody else. With early binding (an ablation of
the paper) workers answer probes with the length of their queue, and the m shortest get the tasks at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from kserve_ext.sim.clock import Core
from kserve_ext.sim.fleet import Fleet, Node, Request
from kserve_ext.sim.systems.placing import Placing


@dataclass(frozen=True)
class Sampling:
    probes: int = 2  # a task
    late: bool = True
    schedulers: int = 10
    task_s: float = 0.0001  # processor time of a scheduler for one task


class Job:
    """Tasks that have not been bound to a worker."""

    def __init__(self, requests: Sequence[Request], scheduler: Core) -> None:
        self.unbound, self.scheduler = deque(requests), scheduler


class Sparrow(Placing):
    def __init__(
        self, fleet: Fleet, sampling: Sampling = Sampling(), name: str = "sparrow", *, paid: bool = False
    ) -> None:
        super().__init__(fleet, paid=paid)
        self.name, self.sampling = name, sampling
        self._schedulers = [Core(self.clock) for _ in range(sampling.schedulers)]
        self._queues: list[deque[Callable[[], None]]] = [deque() for _ in fleet.nodes]

    def arrive(self, request: Request) -> None:
        self.submit([request])

    def submit(self, requests: Sequence[Request]) -> None:
        """A job."""
        scheduler = self._schedulers[self.fleet.rng.randrange(len(self._schedulers))]
        scheduler.do(self.sampling.task_s * len(requests), partial(self._sample, Job(requests, scheduler)))

    def _sample(self, job: Job) -> None:
        nodes = self.fleet.nodes
        count = min(len(nodes), self.sampling.probes * len(job.unbound))
        sampled = self.fleet.rng.sample(nodes, count)
        self.fleet.count("probes", count)
        if self.sampling.late:
            for node in sampled:
                self.message(job.scheduler, self.agents[node.number], partial(self._reserve, job, node))
            return
        # Lengths are those of now: the way of a probe is short beside a task.
        load = {n.number: self.taken[n.number] + len(self._queues[n.number]) for n in sampled}
        while job.unbound:
            node = min(sampled, key=lambda n: load[n.number])
            load[node.number] += 1
            bound = partial(self._queue, node, partial(self.run, job.unbound.popleft(), node))
            self.message(job.scheduler, self.agents[node.number], bound)

    def _queue(self, node: Node, then: Callable[[], None]) -> None:
        self._queues[node.number].append(then)
        self.freed(node)

    def _reserve(self, job: Job, node: Node) -> None:
        self._queue(node, partial(self._ask, job, node))

    def _ask(self, job: Job, node: Node) -> None:
        """The place is kept until the scheduler has answered."""
        self.taken[node.number] += 1
        self.message(self.agents[node.number], job.scheduler, lambda: self._bind(job, node))

    def _bind(self, job: Job, node: Node) -> None:
        request = job.unbound.popleft() if job.unbound else None

        def bound() -> None:
            self.taken[node.number] -= 1
            if request is None:
                self.freed(node)
            else:
                self.run(request, node)

        self.message(job.scheduler, self.agents[node.number], bound)

    def freed(self, node: Node) -> None:
        queue = self._queues[node.number]
        while queue and self.places(node) > 0:
            queue.popleft()()
