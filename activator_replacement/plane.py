"""What all connections of one data-plane process share: limits, counters, the connection cache, the clients.

Limits are the bounds that no single client or instance can push the process over; they hold per process.
Counters are plain integers that metrics.py exports when it is scraped: nothing is locked on the request path.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from activator_replacement.connections import ConnectionCache
from activator_replacement.http2.connections import Http2Connections
from activator_replacement.http2.upstream import Http2Upstream
from activator_replacement.seam import Dispatch
from activator_replacement.upstream import UpstreamProtocol

if TYPE_CHECKING:
    from activator_replacement.http1 import ClientProtocol

BUCKETS_S: Final[tuple[float, ...]] = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the data plane; all times in seconds."""

    connections: int = 20_000
    head_bytes: int = 32_768  # of a request or a response head
    #: What is read of a request's body while it is held; a longer one waits in the kernel's buffers.
    held_body_bytes: int = 65_536
    #: Bodies that are kept while their stream can go on at another instance: the longest, and all together.
    continued_body_bytes: int = 1_048_576
    continued_bytes: int = 67_108_864
    pipelined_bytes: int = 65_536  # read ahead of the exchange that is under way
    write_buffer_bytes: int = 262_144  # per connection; above it the other side is not read
    timeout_s: float = 300.0  # until the response's head, when Dispatch sets no other
    head_timeout_s: float = 10.0  # from the first byte of a request head to its last
    idle_timeout_s: float = 75.0  # between exchanges of a connection
    stall_timeout_s: float = 60.0  # a client that neither sends its body nor reads the response
    linger_s: float = 2.0  # a refused body is read and dropped for so long, so that the answer is seen
    tick_s: float = 0.25  # how often the above are looked at
    connect_timeout_s: float = 5.0
    upstream_idle_s: float = 4.0
    upstream_idle: int = 4096
    upstream_idle_per_instance: int = 256


class Counters:
    """Since start; see metrics.py for the names they are exported under."""

    __slots__ = (
        "accepted",
        "continued",
        "first_byte_buckets",
        "first_byte_sum_s",
        "not_continued",
        "outcomes",
        "refused_connections",
        "requests",
        "responses",
        "retried",
    )

    def __init__(self) -> None:
        self.accepted = 0
        self.refused_connections = 0
        self.requests = 0
        self.responses: dict[int, int] = {}  # by status, of instances and our own
        self.outcomes = [0, 0, 0, 0]  # by seam.OUTCOMES, of exchanges that were sent
        self.continued = 0  # streams that went on at another instance, each time
        self.not_continued = 0  # marked streams that ended with an error event all the same
        self.retried = 0  # on a fresh connection, unseen by client and Dispatch
        self.first_byte_buckets = [0] * (len(BUCKETS_S) + 1)
        self.first_byte_sum_s = 0.0

    def first_byte(self, status: int, after_s: float) -> None:
        self.responses[status] = self.responses.get(status, 0) + 1
        self.first_byte_buckets[bisect_left(BUCKETS_S, after_s)] += 1
        self.first_byte_sum_s += after_s

    def refused(self, status: int) -> None:
        self.responses[status] = self.responses.get(status, 0) + 1


class Client(Protocol):
    """A client connection, whatever it speaks."""

    @property
    def active(self) -> int: ...
    def check(self, now: float) -> None: ...
    def drain(self) -> None: ...
    def abort(self) -> None: ...


class Plane:
    __slots__ = (
        "_id_prefix",
        "_ids",
        "cache",
        "client_type",
        "clients",
        "counters",
        "dispatch",
        "draining",
        "http2_cache",
        "kept_bytes",
        "limits",
        "loop",
        "now",
        "unhealthy",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        dispatch: Dispatch,
        limits: Limits,
        id_prefix: bytes,
        client_type: type[ClientProtocol],
    ) -> None:
        self.loop = loop
        self.now: Callable[[], float] = loop.time
        self.client_type = client_type
        self.dispatch = dispatch
        self.limits = limits
        self.counters = Counters()
        self.clients: set[Client] = set()
        self.draining = False
        self.kept_bytes = 0  # of bodies whose stream can be continued
        self.unhealthy = ""  # why probes of this process fail, where the request path answers them
        self.cache = ConnectionCache(
            loop,
            lambda addr: UpstreamProtocol(self, addr),
            idle_s=limits.upstream_idle_s,
            per_addr=limits.upstream_idle_per_instance,
            total=limits.upstream_idle,
            connect_timeout_s=limits.connect_timeout_s,
        )
        self.http2_cache = Http2Connections(
            loop,
            lambda addr: Http2Upstream(self, addr),
            per_addr=limits.upstream_idle_per_instance,
            connect_timeout_s=limits.connect_timeout_s,
        )
        self._id_prefix = id_prefix
        self._ids = 0

    def next_id(self) -> bytes:
        """A request id: unique by the process's random prefix and a count."""
        self._ids += 1
        return b"%s-%x" % (self._id_prefix, self._ids)

    def sweep(self) -> None:
        """Looks at every client's limits; called each tick."""
        now = self.now()
        for client in list(self.clients):
            client.check(now)
        self.cache.sweep()
        self.http2_cache.sweep()
