"""Atoll (SoCC '21): a load balancer over semi-global schedulers, each with a pool of workers and deadlines to meet.

The balancer sends a function to one scheduler, and to more while those that it has are slow, in proportion to the
instances that they keep for it. A scheduler starts the request with the least slack first. Where there is room it
starts instances ahead: as many as arrivals of so many during one execution come to, at the percentile promised. What
a decision costs was not to be found in the paper's summaries; the numbers of Costs are ours.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from math import ceil, exp, sqrt
from statistics import NormalDist
from zlib import crc32

from kserve_ext.sim.clock import Core
from kserve_ext.sim.fleet import Fleet, Instance, Node, Request
from kserve_ext.sim.systems.placing import Placing

ESTIMATE_S = 0.1  # between two estimates of what will be needed
WINDOW_S = 2.0  # arrivals counted
SLOW = 0.3  # of the slack spent waiting: one more scheduler
WEIGHT = 0.2  # of what is new, in averages


@dataclass(frozen=True)
class Costs:
    pools: int = 10
    balance_s: float = 0.0001
    decide_s: float = 0.0002
    slack_s: float = 0.2  # a request may wait so long
    promised: float = 0.99
    proactive: bool = True


@dataclass(slots=True)
class App:
    """One function at one scheduler."""

    seconds: float = 0.1  # of an execution, in the mean
    arrived: deque[float] = field(default_factory=deque)
    waited: float = 0.0  # of the slack, in the mean
    instances: int = 0  # that it keeps, busy ones included


class Pool:
    """One semi-global scheduler and its workers."""

    def __init__(self, core: Core, nodes: list[Node]) -> None:
        self.core, self.nodes = core, nodes
        self.waiting: list[tuple[float, int, Request]] = []  # by slack
        self.apps: dict[str, App] = {}


class Atoll(Placing):
    def __init__(self, fleet: Fleet, costs: Costs = Costs(), name: str = "atoll") -> None:
        super().__init__(fleet)
        self.name, self.costs = name, costs
        pools = min(costs.pools, len(fleet.nodes))
        self.pools = [Pool(Core(self.clock), fleet.nodes[k::pools]) for k in range(pools)]
        self._balancer = Core(self.clock)
        self._of: dict[str, list[Pool]] = {}  # the schedulers of each function
        self._pool_of = {n.number: pool for pool in self.pools for n in pool.nodes}
        if costs.proactive:
            self.clock.every(ESTIMATE_S, self._estimate)

    def arrive(self, request: Request) -> None:
        self._balancer.do(self.costs.balance_s, partial(self._balance, request))

    def _balance(self, request: Request) -> None:
        name = request.function
        pools = self._of.get(name)
        if pools is None:
            pools = self._of[name] = [self.pools[crc32(name.encode()) % len(self.pools)]]
        newest = pools[-1].apps.get(name)
        if newest is not None and newest.waited > SLOW and len(pools) < len(self.pools):
            following = self.pools[(self.pools.index(pools[-1]) + 1) % len(self.pools)]
            following.apps.setdefault(name, App(newest.seconds)).waited = 0.0
            pools.append(following)
        weights = [1 + (p.apps[name].instances if name in p.apps else 0) for p in pools]
        pool = self.fleet.rng.choices(pools, weights)[0]
        self.fleet.hop(lambda: pool.core.do(self.costs.decide_s, partial(self._queue, pool, request)))

    def _queue(self, pool: Pool, request: Request) -> None:
        app = pool.apps.setdefault(request.function, App())
        app.arrived.append(self.clock.now)
        heapq.heappush(pool.waiting, (request.at + self.costs.slack_s, request.number, request))
        self._dispatch(pool)

    def _dispatch(self, pool: Pool) -> None:
        while pool.waiting:
            request = pool.waiting[0][2]
            node = self._worker(pool, request.function)
            if node is None:
                return
            heapq.heappop(pool.waiting)
            app = pool.apps[request.function]
            cold = not self.warm(node, request.function)
            app.seconds += WEIGHT * (request.seconds - app.seconds)
            waits = self.clock.now - request.at + (self.fleet.world.start_s if cold else 0.0)
            app.waited += WEIGHT * (waits / self.costs.slack_s - app.waited)
            self.fleet.count("messages")
            self.run(request, node)

    def _worker(self, pool: Pool, function: str) -> Node | None:
        """One with a warm instance of it, else the one with most places."""
        free = [node for node in pool.nodes if self.places(node) > 0]
        if not free:
            return None
        return max(free, key=lambda node: (self.warm(node, function) > 0, self.places(node)))

    def freed(self, node: Node) -> None:
        self._dispatch(self._pool_of[node.number])

    def _estimate(self) -> None:
        """Starts what is missing, on the workers with most room; nothing ends for it."""
        before = self.clock.now - WINDOW_S
        for pool in self.pools:
            for name, app in pool.apps.items():
                while app.arrived and app.arrived[0] < before:
                    app.arrived.popleft()
                if not app.arrived:
                    continue
                during = len(app.arrived) / WINDOW_S * app.seconds
                for _ in range(percentile(during, self.costs.promised) - app.instances):
                    node = max(pool.nodes, key=lambda n: n.free)
                    if node.free <= 0:
                        break
                    self.prepare(name, node)

    def started(self, function: str, node: Node) -> None:
        self._pool_of[node.number].apps[function].instances += 1

    def ended(self, instance: Instance) -> None:
        self._pool_of[instance.node.number].apps[instance.function].instances -= 1


def percentile(mean: float, share: float) -> int:
    """Of a Poisson distribution."""
    if mean > 300:
        return ceil(mean + NormalDist().inv_cdf(share) * sqrt(mean))
    count, chance = 0, exp(-mean)
    below = chance
    while below < share and count < 10 * mean + 50:
        count += 1
        chance *= mean / count
        below += chance
    return count
