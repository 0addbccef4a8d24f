"""The store on a server that speaks Redis' protocol (Redis 6 or later, Valkey): values, revisions, changes to follow.

All keys begin with `{NAMESPACE}:`, so that they share a slot and a server may hold several clusters:

    values      hash: key -> REVISION:VALUE          index   sorted set of the keys, for scans by prefix
    revision    counter of all writes                life    names the content: an emptied server gets another
    changes:S   stream of what was written under the first segment S/ of keys, numbered without gaps by counts[S]
    lives       stream of the lives                  writer:W  what writer W asked last: nothing older is done

A write is one script, so it is done whole or not, and its conditions hold when it is done. A watcher reads the stream
of its segment; one that finds a number missing (it was away for longer than the stream is long) scans. Pub/sub would
lose what is said while a watcher reconnects, and key events don't carry values.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from kserve_ext.store import Conflict, Items, OnChange, OnItems, Unavailable
from kserve_ext.store.behind import WHOLE, Batch, WriteBehind, end
from kserve_ext.store.following import Following, follow
from kserve_ext.store.location import Location

CALL_TIMEOUT_S: Final = 3.0
#: A watcher that hears nothing asks after so long whether the store is still the same.
POLL_S: Final = 20.0
#: Changes of one segment that are kept for watchers that were away; fewer of large values.
HISTORY: Final = 4096
HISTORY_BYTES: Final = 16 * 1024 * 1024
LEAST_HISTORY: Final = 16
READ_AT_ONCE: Final = 500
WRITER_FORGOTTEN_S: Final = 3600

#: KEYS: life, lives, revision. ARGV: new life, life to replace ("" = only where there is none), a number. Returns the
#: life. Revisions begin far from those of any other life, so that no condition of that one holds by accident.
_BEGIN: Final = """
local life = redis.call('GET', KEYS[1])
if not life or life == ARGV[2] then
  life = ARGV[1]
  redis.call('SET', KEYS[1], life)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', 100, '*', 'l', life)
  redis.call('INCRBY', KEYS[3], ARGV[3])
end
return life
"""

#: KEYS: life, revision, values, index, counts, writer, then a stream for each segment.
#: ARGV: life, sequence, expectations, (key, revision)..., then key, segment, stream ("0": of a key without a segment,
#: which nobody can watch), "1" or "0" (delete), value...
_PUT: Final = f"""
local life = redis.call('GET', KEYS[1])
if life ~= ARGV[1] then return {{'life'}} end
local asked = redis.call('GET', KEYS[6])
if asked and tonumber(asked) >= tonumber(ARGV[2]) then return {{'late'}} end
redis.call('SET', KEYS[6], ARGV[2], 'EX', {WRITER_FORGOTTEN_S})
local at = 4
for _ = 1, tonumber(ARGV[3]) do
  local held = redis.call('HGET', KEYS[3], ARGV[at])
  local found = held and string.match(held, '^(%d+):') or '0'
  if found ~= ARGV[at + 1] then
    return {{'conflict', ARGV[at] .. ': expected revision ' .. ARGV[at + 1] .. ', found ' .. found}}
  end
  at = at + 2
end
while at <= #ARGV do
  local key, segment, stream = ARGV[at], ARGV[at + 1], KEYS[tonumber(ARGV[at + 2])]
  if ARGV[at + 3] == '1' then
    local revision = redis.call('INCR', KEYS[2])
    redis.call('HSET', KEYS[3], key, string.format('%.0f', revision) .. ':' .. ARGV[at + 4])
    redis.call('ZADD', KEYS[4], 0, key)
    if stream then
      local n = redis.call('HINCRBY', KEYS[5], segment, 1)
      local most = math.floor({HISTORY_BYTES} / (#ARGV[at + 4] + 1))
      most = math.max({LEAST_HISTORY}, math.min({HISTORY}, most))
      redis.call('XADD', stream, 'MAXLEN', '~', most, '*', 'k', key, 'n', n, 'v', ARGV[at + 4])
    end
  elseif redis.call('HDEL', KEYS[3], key) == 1 then
    redis.call('INCR', KEYS[2])
    redis.call('ZREM', KEYS[4], key)
    if stream then
      local n = redis.call('HINCRBY', KEYS[5], segment, 1)
      redis.call('XADD', stream, 'MAXLEN', '~', {HISTORY}, '*', 'k', key, 'n', n)
    end
  end
  at = at + 5
end
return {{'ok', redis.call('GET', KEYS[2]) or '0', asked or '0'}}
"""

#: KEYS: life, values, index, counts, stream of the segment, lives. ARGV: prefix, what is behind it, segment.
#: Returns life, number and id of the segment's last change, id of the last life, key, value, key, value...
_SCAN: Final = """
local function last(stream)
  local found = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)
  return found[1] and found[1][1] or '0-0'
end
local number = redis.call('HGET', KEYS[4], ARGV[3]) or '0'
local out = {redis.call('GET', KEYS[1]) or '', number, last(KEYS[5]), last(KEYS[6])}
local keys = redis.call('ZRANGEBYLEX', KEYS[3], '[' .. ARGV[1], ARGV[2])
for at = 1, #keys, 1000 do
  local some = {unpack(keys, at, math.min(at + 999, #keys))}
  local values = redis.call('HMGET', KEYS[2], unpack(some))
  for k = 1, #some do
    out[#out + 1] = some[k]
    out[#out + 1] = values[k] or ''
  end
end
return out
"""


class RedisStore:
    """A Store on the server at `where`. Raises ValueError for parameters that the client doesn't take."""

    def __init__(self, where: Location) -> None:
        self.where = where
        self.behind = WriteBehind(self._write)
        self._base = f"{{{where.namespace}}}:"
        self._writer = secrets.token_hex(8)
        self._asked = 0
        #: the last of our writes that the store acknowledged, and when: one that doesn't know it has lost it
        self._known = 0
        self._known_at = 0.0
        self._writing = asyncio.Lock()
        self._client = self._connect()
        self._reader = self._connect()
        self._watchers: set[asyncio.Task[None]] = set()

    def put(self, items: Items) -> None:
        self.behind.put(items)

    async def put_now(self, items: Items, expect: Iterable[tuple[str, int]] = ()) -> int:
        batch = dict(items)
        for key in batch:
            self.behind.pending.forget(key)  # this write takes the place of one that still waits
        return await self._put(batch, tuple(expect))

    async def scan(self, prefix: str) -> dict[str, tuple[bytes, int]]:
        _, _, _, _, found = await self._scan(prefix)
        return {key: value for key, value in found.items() if not key.endswith(WHOLE)}

    def watch(self, prefix: str, on_items: OnItems, on_change: OnChange) -> None:
        segment, slash, _ = prefix.partition("/")
        if not slash:
            raise ValueError(
                f"prefix {prefix!r}: a watch is of one segment or of a part of one, as `instances/`"
            )
        following = Following(prefix, on_items, on_change)
        stream, lives = self._key(f"changes:{segment}").encode(), self._key("lives").encode()
        number, at, lives_at = 0, b"", b""

        async def turn(scan: bool) -> bool:
            nonlocal number, at, lives_at
            if scan:
                life, number, at, lives_at, found = await self._scan(prefix)
                following.scanned(life, {key: value for key, (value, _) in found.items()})
            read = await self._read({stream: at, lives: lives_at})
            if lives in read:
                lives_at = read[lives][-1][0]
            if (lives in read or not read) and await self._begin() != following.life:
                return True
            for at, fields in read.get(stream, []):  # noqa: B007  the next turn reads on from there
                number += 1
                if int(fields[b"n"]) != number:
                    return True
                key = fields[b"k"].decode()
                if key.startswith(prefix) and following.changed(key, fields.get(b"v")):
                    return True
            return False

        task = asyncio.get_running_loop().create_task(follow(prefix, turn))
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    def restate(self, items: Callable[[], Items], whole: Iterable[str] = ()) -> None:
        self.behind.restate(items, whole)

    async def flush(self, timeout_s: float) -> bool:
        return await self.behind.flush(timeout_s)

    async def close(self) -> None:
        await self.behind.close()
        await end(self._watchers)
        await self._client.aclose()
        await self._reader.aclose()

    # --- writing

    async def _write(self, batch: Batch) -> None:
        await self._put(batch, ())

    async def _put(self, batch: Batch, expect: tuple[tuple[str, int], ...]) -> int:
        """One at a time: what is asked later is done later."""
        async with self._writing:
            while True:
                life = self.behind.life or await self._begin()
                keys, items = self._arguments(batch)
                self._asked += 1
                conditions = [word for key, revision in expect for word in (key, revision)]
                said, *more = await self._script(
                    _PUT, keys, [life, self._asked, len(expect), *conditions, *items]
                )
                if said == b"life":
                    await self._begin()
                    if expect:
                        raise Conflict(f"state store {self.where} has lost its content: no revision holds")
                elif said == b"conflict":
                    raise Conflict(more[0].decode())
                elif said == b"ok":
                    now = asyncio.get_running_loop().time()
                    remembers = now < self._known_at + WRITER_FORGOTTEN_S / 2
                    lags = remembers and int(more[1]) < self._known
                    self._known, self._known_at = self._asked, now
                    if not lags:
                        return int(more[0])
                    await self._begin(over=life)  # a copy that lags behind has taken its place
                else:
                    raise Unavailable(
                        f"state store {self.where}: a later write of this process was done before"
                    )

    def _arguments(self, batch: Batch) -> tuple[list[str], list[str | int | bytes]]:
        keys = [self._key(name) for name in ("life", "revision", "values", "index", "counts")]
        keys.append(self._key(f"writer:{self._writer}"))
        streams: dict[str, int] = {}
        items: list[str | int | bytes] = []
        for key, value in batch.items():
            segment, slash, _ = key.partition("/")
            if slash and segment not in streams:
                keys.append(self._key(f"changes:{segment}"))
                streams[segment] = len(keys)
            items += [key, segment, streams[segment] if slash else 0, int(value is not None), value or b""]
        return keys, items

    async def _begin(self, over: str = "") -> str:
        """The life of the store, which begins now if there is none, or if it is `over`."""
        keys = [self._key("life"), self._key("lives"), self._key("revision")]
        args = [secrets.token_hex(8), over, secrets.randbits(40)]
        life: str = (await self._script(_BEGIN, keys, args)).decode()
        if life != self.behind.life:
            self._known = 0
        self.behind.heard(life)
        return life

    # --- reading

    async def _scan(self, prefix: str) -> tuple[str, int, bytes, bytes, dict[str, tuple[bytes, int]]]:
        """Life, number and id of the last change, id of the last life, and what lies under the prefix."""
        await self._begin()
        segment = prefix.partition("/")[0]
        names = ("life", "values", "index", "counts", f"changes:{segment}", "lives")
        behind = f"({prefix[:-1]}{chr(ord(prefix[-1]) + 1)}" if prefix else "+"
        found = await self._script(_SCAN, [self._key(n) for n in names], [prefix, behind, segment])
        life, number, at, lives_at, *flat = found
        items = {}
        for key, held in zip(flat[::2], flat[1::2], strict=True):
            revision, _, value = held.partition(b":")
            items[key.decode()] = (value, int(revision))
        return life.decode(), int(number), at, lives_at, items

    async def _read(self, after: dict[bytes, bytes]) -> dict[bytes, list[tuple[bytes, dict[bytes, bytes]]]]:
        """New entries of the streams; empty when nothing came for POLL_S."""
        try:
            async with asyncio.timeout(POLL_S + CALL_TIMEOUT_S):
                found = await self._reader.xread(dict(after), count=READ_AT_ONCE, block=int(POLL_S * 1000))  # type: ignore[arg-type]
        except (RedisError, OSError, TimeoutError) as error:
            raise self._away(error) from error
        return dict(found)  # type: ignore[arg-type]

    # --- the server

    def _key(self, name: str) -> str:
        return self._base + name

    async def _script(self, text: str, keys: list[str], args: list[Any]) -> Any:
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                try:
                    return await self._client.evalsha(_digest(text), len(keys), *keys, *args)
                except NoScriptError:
                    return await self._client.eval(text, len(keys), *keys, *args)
        except (RedisError, OSError, TimeoutError) as error:
            raise self._away(error) from error

    def _away(self, error: Exception) -> Unavailable:
        why = str(error) or f"no answer within {CALL_TIMEOUT_S:g} s"
        return Unavailable(f"state store {self.where}: {why}; {self.where.remedy(type(error).__name__, why)}")

    def _connect(self) -> Redis:
        """Time limits of calls are set around them: with one of its own the client sends by wait_for, which up to
        Python 3.11 forgets a cancellation that comes as it is done; who was to end would go on."""
        try:
            client: Redis = Redis.from_url(
                self.where.url,
                protocol=2,
                socket_connect_timeout=CALL_TIMEOUT_S,
                socket_timeout=None,
                # a write that is repeated must say so: _PUT tells attempts apart
                retry=Retry(NoBackoff(), 0),
            )
            client.connection_pool.make_connection()  # type: ignore[no-untyped-call]  # looks at all of them
        except (TypeError, ValueError, RedisError) as error:
            why = str(error).rpartition("() ")[2]
            raise ValueError(f"{str(self.where)!r}: its parameters are not redis-py's: {why}") from None
        return client


@cache
def _digest(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
