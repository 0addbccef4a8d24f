"""Which connections to peers are kept: bounded, least recently used out first, and looked after while nobody calls.

A connection with calls under way, or one that is not open yet, is never put out: then the bound waits. One on which
nothing has come for QUIET_S (BUSY_QUIET_S while a call waits for its answer) is pinged, and is dead when nothing has
come PONG_S later either, so that a network that drops everything silently is noticed within FOUND_IDLE_S, or
FOUND_BUSY_S. Time in which this process itself did not run is nobody's silence. It opens and closes nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

#: kept at most, unless more are in use at once; a process may have 1,024 files open where nobody raised that
BOUND: Final = 512
#: the shell looks so often
LOOK_S: Final = 1.0
QUIET_S: Final = 5.0
BUSY_QUIET_S: Final = 1.0
PONG_S: Final = 3.0
FOUND_IDLE_S: Final = QUIET_S + PONG_S + 2 * LOOK_S
FOUND_BUSY_S: Final = BUSY_QUIET_S + PONG_S + 2 * LOOK_S
#: a longer gap between looks means that this process did not run
DEAF_S: Final = 2.5 * LOOK_S
#: of those that are opened ahead of calls, so many at once: their hellos take processor time on both sides
WARM_AT_ONCE: Final = 8


class Kept(Protocol):
    """What a connection tells the cache."""

    #: something has come; taken back by look()
    heard: bool

    @property
    def open(self) -> bool: ...

    @property
    def busy(self) -> bool:
        """Calls are under way, or it is not open yet."""
        ...


C = TypeVar("C", bound=Kept)


class Look(NamedTuple, Generic[C]):
    """What is to be done after a look."""

    ping: list[C]
    dead: list[C]
    evicted: list[C]


class ConnectionCache(Generic[C]):
    """Connections by address. Every address has one at most."""

    def __init__(self, bound: int = BOUND, now: float = 0.0) -> None:
        self.bound = bound
        self.dials = self.evictions = self.pings = self.dead = 0
        #: least recently used first
        self._kept: OrderedDict[str, C] = OrderedDict()
        #: since when nothing has come, and when it was pinged since
        self._quiet: dict[str, float] = {}
        self._pinged: dict[str, float] = {}
        self._looked = now

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, addr: str) -> bool:
        return addr in self._kept

    def connections(self) -> list[C]:
        return list(self._kept.values())

    def get(self, addr: str) -> C | None:
        """The connection to use for a call; using it makes it the most recently used one."""
        found = self._kept.get(addr)
        if found is not None:
            self._kept.move_to_end(addr)
        return found

    def put(self, addr: str, connection: C, now: float) -> list[C]:
        """A new connection; those that have to go for it, which are no longer here."""
        assert addr not in self._kept, f"{addr} has a connection already"
        self.dials += 1
        self._kept[addr] = connection
        self._quiet[addr] = now
        return self._evict(addr)

    def drop(self, addr: str, connection: C) -> None:
        """It has ended. Another one to the same address stays."""
        if self._kept.get(addr) is connection:
            self._forget(addr)

    def look(self, now: float) -> Look[C]:
        """Once every LOOK_S. Dead and evicted ones are no longer here."""
        gap, self._looked = now - self._looked, now
        if gap > DEAF_S:
            self._quiet = {addr: min(now, since + gap) for addr, since in self._quiet.items()}
            self._pinged = {addr: min(now, since + gap) for addr, since in self._pinged.items()}
        out: Look[C] = Look([], [], [])
        for addr, connection in list(self._kept.items()):
            if connection.heard or not connection.open:
                connection.heard = False
                self._quiet[addr] = now
                self._pinged.pop(addr, None)
                continue
            pinged = self._pinged.get(addr)
            if pinged is None:
                if now - self._quiet[addr] >= (BUSY_QUIET_S if connection.busy else QUIET_S):
                    self._pinged[addr] = now
                    out.ping.append(connection)
            elif now - pinged >= PONG_S:
                self._forget(addr)
                out.dead.append(connection)
        self.pings += len(out.ping)
        self.dead += len(out.dead)
        out.evicted.extend(self._evict(""))
        return out

    def missing(self, addrs: Iterable[str], caller: str) -> list[str]:
        """Of those that will be called, whom to connect to ahead, without putting anybody out.

        Each caller has an order of its own, so that a view which everybody gets at once does not bring everybody
        to the same door.
        """
        wanted = sorted({a for a in addrs if a and a not in self._kept}, key=lambda a: _spread(caller, a))
        return wanted[: max(0, self.bound - len(self._kept))]

    # --- inside

    def _evict(self, newest: str) -> list[C]:
        over = len(self._kept) - self.bound
        if over <= 0:
            return []
        idle = [addr for addr, c in self._kept.items() if not c.busy and addr != newest][:over]
        out = [self._kept[addr] for addr in idle]
        for addr in idle:
            self._forget(addr)
        self.evictions += len(out)
        return out

    def _forget(self, addr: str) -> None:
        del self._kept[addr], self._quiet[addr]
        self._pinged.pop(addr, None)


def _spread(caller: str, addr: str) -> tuple[bytes, str]:
    return blake2b(f"{caller}\0{addr}".encode(), digest_size=8).digest(), addr
