"""Channels on both sides over real sockets: dialled ahead, restarted, silent, refused, and dials nobody waits for."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from kserve_ext.core import kv_links
from kserve_ext.core.kv_links import Peer
from runtimes.transport.channel import ChannelError, Frame, Rung
from runtimes.transport.handshake import Identity
from runtimes.transport.layout import Layout
from runtimes.transport.listener import Listener, dial
from runtimes.transport.pair import Channel
from runtimes.transport.verbs.choice import Wanted
from runtimes.vllm_pd import channels, keeper
from runtimes.vllm_pd.accepted import Accepted
from runtimes.vllm_pd.channels import Channels, lookup
from runtimes.vllm_pd.home_client import FixedLeases, Lease, NoPrefill
from runtimes.vllm_pd.keepalive import Ear, Wrap, plain

WAIT_S = 60.0
KEY = b"k" * 32


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WAIT_S):
            await test

    asyncio.run(bounded())


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  (it happens on threads)
        await asyncio.sleep(0.005)


class Owner:
    """Of a channel on which nothing is ever sent."""

    def message(self, channel: object, body: bytes) -> None:
        raise AssertionError(body)

    def lost(self, channel: object, error: ChannelError) -> None:
        return

    def window(self, frame: Frame) -> memoryview | None:
        return None

    def landed(self, frame: Frame, broken: list[int]) -> None:
        return

    def done(self, transfer: int, blocks: int) -> None:
        return


def attach(channel: Channel, wrap: Wrap) -> None:
    channel.start(*wrap(Owner(), Owner()))


def deaf(channel: Channel, wrap: Wrap) -> None:
    """Neither answers nor asks: what a machine that has gone looks like."""

    class Deaf(Owner):
        def message(self, channel: object, body: bytes) -> None:
            return

    channel.start(*plain(Deaf(), Deaf()))


class Prefill:
    """A process of this name: its HTTP server, its listener and the channels that it has accepted."""

    def __init__(
        self,
        name: str,
        generation: int = 1,
        attach: keeper.Attach = attach,
        rungs: Sequence[Rung] = ("tcp",),
        rdma: Wanted | None = None,
        **layout: Any,
    ) -> None:
        self.who = Identity(name, generation, Layout(**layout))
        self.offers = self.lookups = 0
        self.accepted = Accepted(self.who, attach, lambda channel: 0, most=8)
        if attach is not deaf:
            self.accepted.start()
        self.listener = Listener(KEY, self._identity, self.accepted.take, rungs, rdma=rdma)
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.asked = threading.Event()
        here = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                here.lookups += 1
                here.asked.set()
                here.may_answer.wait(WAIT_S)
                facts = {"channel": here.listener.addr, "generation": here.who.generation}
                body = json.dumps(facts).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # Whoever fails before the end of a test does not keep the whole run from ending.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.addr = f"127.0.0.1:{self._server.server_port}"
        self.peer = Peer(name, self.addr, generation)
        self.lease = Lease("l", name, self.addr, generation)

    def _identity(self) -> Identity:
        self.offers += 1
        return self.who

    def end(self) -> None:
        """Killed: its sockets close."""
        self.may_answer.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.listener.close()
        self.accepted.close()


class Told(FixedLeases):
    """A home that tells of its prefill instances when the test says so."""

    def __init__(self) -> None:
        super().__init__([])
        self._lists: asyncio.Queue[tuple[Peer, ...]] = asyncio.Queue()
        self._tags = iter(range(1, 1000))

    def tell(self, *of: Prefill) -> None:
        self._lists.put_nowait(tuple(each.peer for each in of))

    async def peers(self, tag: str) -> tuple[str, tuple[Peer, ...]]:
        return str(next(self._tags)), await self._lists.get()


def decode(name: str = "d", generation: int = 1, attach: keeper.Attach = attach, **more: Any) -> Channels:
    made = Channels(
        KEY,
        Identity(name, generation, Layout()),
        more.pop("rungs", ("tcp",)),
        attach,
        more.pop("open_on", lambda channel: 0),
        **more,
    )
    if attach is not deaf:
        made.start()
    return made


def up(side: Channels | Accepted) -> dict[str, int]:
    """Peers with a channel, and in which generation."""
    return {pair["peer"]: pair["generation"] for pair in side.facts() if pair["state"] == "up"}


def channel_of(side: Channels | Accepted, peer: str) -> Channel:
    return next(kept.channel for kept in side._kept.values() if kept.key.peer == peer)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody rests for long here."""
    monkeypatch.setattr(keeper, "TICK_S", 0.01)
    monkeypatch.setattr(keeper, "COUNTS_S", 0.05)
    monkeypatch.setattr(kv_links, "LEAST_REST_S", 0.02)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noticed soon, and sooner that nobody has run here for a while."""
    monkeypatch.setattr(kv_links, "STALLED_S", 0.2)
    monkeypatch.setattr(kv_links, "IDLE_QUIET_S", 0.05)
    monkeypatch.setattr(kv_links, "IDLE_ANSWER_S", 0.5)


def test_peers_are_dialled_before_anybody_asks_and_let_go_when_home_says_so() -> None:
    async def test() -> None:
        p, q, r = Prefill("p"), Prefill("q"), Prefill("r")
        home, side = Told(), decode(pairs=2)
        side.follow(home)
        home.tell(p, q)
        await until(lambda: up(side) == {"p": 1, "q": 1})
        assert await side.get(p.lease) == (channel_of(side, "p"), False), "no request pays for the set-up"
        channel, waited = await side.get(r.lease)
        assert waited, "one that a lease names first is dialled then"
        assert channel.peer.name == "r"
        kept = channel_of(side, "q")
        home.tell(q)
        await until(lambda: set(up(side)) == {"q"})
        await until(lambda: up(p.accepted) == {} and up(r.accepted) == {})
        assert channel_of(side, "q") is kept
        assert kept.lost is None
        side.close()
        for each in (p, q, r):
            each.end()

    run(test())


def test_the_loop_goes_on_while_a_channel_registers_the_cache() -> None:
    """Seconds, of a large one; the loop answers other requests meanwhile."""
    begun, may_end, ended = threading.Event(), threading.Event(), []

    def registers(channel: Channel, wrap: Wrap) -> None:
        begun.set()
        ended.append(may_end.wait(5.0))
        attach(channel, wrap)

    async def test() -> None:
        p = Prefill("p")
        side = decode(attach=registers)
        asked = asyncio.create_task(side.get(p.lease))
        await until(begun.is_set)
        assert up(side) == {}
        may_end.set()
        channel, _ = await asked
        assert ended == [True]
        assert channel is channel_of(side, "p")
        side.close()
        p.end()

    run(test())


def test_a_dial_that_ends_in_a_way_that_nobody_foresaw_is_a_failure_like_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        p, side = Prefill("p"), decode()

        def wrong(*args: Any, **more: Any) -> Channel:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(channels, "dial", wrong)
        with pytest.raises(ChannelError, match="can't start new thread"):
            await side.get(p.lease)
        assert side.facts()[0]["state"] == "down"
        monkeypatch.setattr(channels, "dial", dial)
        await until(lambda: not side.usable()[1])
        assert (await side.get(p.lease))[0].peer.name == "p"
        side.close()
        p.end()

    run(test())


def test_a_prefill_that_starts_again_is_dialled_anew_and_nobody_else_is_touched() -> None:
    async def test() -> None:
        p, q = Prefill("p"), Prefill("q")
        home, side = Told(), decode()
        side.follow(home)
        home.tell(p, q)
        await until(lambda: len(up(side)) == 2)
        other = channel_of(side, "q")
        p.end()
        await until(lambda: set(up(side)) == {"q"})
        again = Prefill("p", 2)
        home.tell(again, q)
        await until(lambda: up(side) == {"p": 2, "q": 1})
        assert channel_of(side, "q") is other
        assert other.lost is None
        await until(lambda: up(again.accepted) == {"d": 1})
        side.close()
        again.end()
        q.end()

    run(test())


def test_a_later_generation_ends_the_channel_of_one_that_has_gone_without_a_word() -> None:
    async def test() -> None:
        frozen = Prefill("p")  # its sockets stay open
        home, side = Told(), decode(open_on=lambda channel: 1)
        side.follow(home)
        home.tell(frozen)
        await until(lambda: up(side) == {"p": 1})
        old = channel_of(side, "p")
        again = Prefill("p", 2)
        home.tell(again)
        await until(lambda: up(side) == {"p": 2})
        assert old.lost is not None
        assert old.lost.reason == "generation", "although transfers were open on it"
        side.close()
        again.end()
        frozen.end()

    run(test())


def test_a_decode_that_starts_again_takes_the_place_of_its_former_self() -> None:
    async def test() -> None:
        p = Prefill("p")
        former = decode(generation=1)
        await former.get(p.lease)
        await until(lambda: up(p.accepted) == {"d": 1})
        old = channel_of(p.accepted, "d")
        later = decode(generation=2)
        await later.get(p.lease)
        await until(lambda: up(p.accepted) == {"d": 2})
        assert old.lost is not None
        later.close()
        await until(lambda: up(p.accepted) == {})
        former.close()
        p.end()

    run(test())


@pytest.mark.usefixtures("silent")
def test_a_silent_peer_is_found_on_an_idle_channel_by_either_side() -> None:
    async def test() -> None:
        gone = Prefill("p", attach=deaf)
        side = decode()
        channel, _ = await side.get(gone.lease)
        await until(lambda: channel.lost is not None)
        assert channel.lost is not None
        assert channel.lost.reason == "timeout"
        here = Prefill("q")
        vanished = decode("e", attach=deaf)
        await vanished.get(here.lease)
        await until(lambda: up(here.accepted) == {"e": 1})
        at_prefill = channel_of(here.accepted, "e")
        await until(lambda: at_prefill.lost is not None)
        assert at_prefill.lost is not None
        assert at_prefill.lost.reason == "timeout"
        assert up(here.accepted) == {}
        for each in (side, vanished):
            each.close()
        gone.end()
        here.end()

    run(test())


@pytest.mark.usefixtures("silent")
def test_idle_peers_that_live_keep_their_channel() -> None:
    async def test() -> None:
        p, side = Prefill("p"), decode()
        channel, _ = await side.get(p.lease)
        await until(lambda: up(p.accepted) == {"d": 1})
        ears = [each._kept[1].ear for each in (side, p.accepted)]
        for _ in range(5):
            before = [ear.heard_at for ear in ears]
            await until(partial(_later, ears, before))
        assert channel.lost is None
        side.close()
        p.end()

    run(test())


def _later(ears: list[Ear], than: list[float]) -> bool:
    return all(ear.heard_at > at for ear, at in zip(ears, than, strict=True))


def test_why_blocks_are_of_no_use_is_logged_once_for_each_cause_and_nobody_dials_for_it_in_a_loop(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def test() -> list[str]:
        why = []
        home, side = Told(), decode()
        side.follow(home)
        for generation, dtype in ((1, "float32"), (2, "float32"), (3, "float16")):
            p = Prefill("p", generation, dtype=dtype)
            home.tell(p)
            await until(partial(getattr, p, "offers"))
            for _ in range(3):
                with pytest.raises(ChannelError) as caught:
                    await side.get(p.lease)
                assert caught.value.reason == "incompatible"
                why.append(str(caught.value))
            before = p.offers
            await _ticks(side, 20)
            assert (p.lookups, p.offers) == (1, before)
            [pair] = side.facts()
            assert (pair["state"], pair["reason"]) == ("down", "incompatible")
            assert "dtype" in pair["detail"]
            p.end()
        side.close()
        return why

    found: list[str] = []

    async def keep() -> None:
        found.extend(await test())

    run(keep())
    assert len(set(found)) == 2
    logged = capsys.readouterr().err.splitlines()
    assert logged == [f"warning: no KV transfer from p: {text}" for text in dict.fromkeys(found)]


async def _ticks(side: Channels, count: int) -> None:
    """So many more of its ticks have passed."""
    passed, right = [0.0], side._links.tick

    def tick(now: float) -> Any:
        passed.append(now)
        return right(now)

    side._links.tick = tick  # type: ignore[method-assign]
    await until(lambda: len(passed) > count)
    side._links.tick = right  # type: ignore[method-assign]


def test_where_generations_are_not_told_who_refused_is_only_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kv_links, "MOST_REST_S", 0.02)

    async def test() -> None:
        p = Prefill("p", dtype="float16")
        side = decode()
        side.follow(FixedLeases([p.addr]))
        await until(lambda: p.lookups > 3)
        offers = p.offers
        await until(lambda: p.lookups > 6)
        assert p.offers == offers, "a look is not a dial"
        again = p
        again.who = Identity("p", 2, Layout())
        await until(lambda: up(side) == {p.addr: 2})
        side.close()
        p.end()

    run(test())


def test_no_request_waits_for_a_peer_that_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_links, "LEAST_REST_S", 30.0)
    monkeypatch.setattr(kv_links, "MOST_REST_S", 30.0)

    async def test() -> None:
        p = Prefill("p")
        p.end()
        side = decode()
        for _ in range(3):
            with pytest.raises(ChannelError) as caught:
                await side.get(p.lease)
            assert caught.value.reason == "unreachable"
        assert not side._dials
        side.close()

    run(test())


def test_channels_with_open_transfers_make_no_room() -> None:
    async def test() -> None:
        p, q = Prefill("p"), Prefill("q")
        side = decode(most=1, open_on=lambda channel: 1)
        await side.get(p.lease)
        with pytest.raises(NoPrefill) as caught:
            await side.get(q.lease)
        assert caught.value.reason == "channel-limit"
        assert set(up(side)) == {"p"}
        side.close()
        p.end()
        q.end()

    run(test())


class Waiting:
    """A dial whose only waiter has gone, and which goes on when the test says so."""

    def __init__(self) -> None:
        self.p, self.side = Prefill("p"), decode()
        self.errors: list[dict[str, Any]] = []
        self.p.may_answer.clear()

    async def begin(self) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: self.errors.append(context))
        waiter = asyncio.create_task(self.side.get(self.p.lease))
        await asyncio.to_thread(self.p.asked.wait, WAIT_S)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter

    async def end(self) -> None:
        [dial] = self.side._dials.values()
        self.p.may_answer.set()
        await asyncio.wait([dial])


def test_a_channel_whose_requests_have_gone_is_kept_for_the_next() -> None:
    async def test() -> None:
        waiting = Waiting()
        await waiting.begin()
        await waiting.end()
        channel, waited = await waiting.side.get(waiting.p.lease)
        assert not waited
        waiting.side.close()
        assert channel.lost is not None
        waiting.p.end()

    run(test())


def test_a_failed_dial_that_nobody_waits_for_is_not_reported_as_an_error() -> None:
    async def test() -> None:
        waiting = Waiting()
        await waiting.begin()
        waiting.p.listener.close()
        await waiting.end()
        gc.collect()
        with pytest.raises(ChannelError):
            await waiting.side.get(waiting.p.lease)
        assert not waiting.errors
        waiting.side.close()
        waiting.p.end()

    run(test())


def test_a_channel_that_stands_after_the_end_is_closed() -> None:
    async def test() -> None:
        waiting = Waiting()
        await waiting.begin()
        waiting.side.close()
        await waiting.end()
        assert not waiting.errors
        await until(lambda: up(waiting.p.accepted) == {})
        assert not waiting.side._kept
        waiting.p.end()

    run(test())


def test_what_is_told_of_a_pair() -> None:
    async def test() -> None:
        told: list[list[dict[str, Any]]] = []
        p = Prefill("p", 7)
        side: Channels = decode(changed=lambda: told.append(side.facts()))
        await side.get(p.lease)
        side.count("p", 0, 4096)
        side.count("p", 0, 4096)
        [pair] = side.facts()
        assert {
            name: pair[name] for name in ("peer", "rank", "generation", "state", "transfers", "bytes")
        } == {
            "peer": "p",
            "rank": 0,
            "generation": 7,
            "state": "up",
            "transfers": 2,
            "bytes": 8192,
        }
        assert [rung["rung"] for rung in pair["rungs"]] == ["tcp"]
        await until(lambda: any(pair.get("transfers") == 2 for facts in told for pair in facts))
        p.end()
        await until(lambda: told[-1][0]["state"] != "up" if told[-1] else True)
        side.close()

    run(test())


def test_it_is_told_that_there_is_nobody_and_that_somebody_refuses() -> None:
    async def test() -> None:
        told: list[tuple[int | None, list[dict[str, Any]]]] = []
        p = Prefill("p", dtype="float16")
        side: Channels = decode(changed=lambda: told.append((side.peers, side.facts())))
        home = Told()
        side.follow(home)
        home.tell()
        await until(lambda: told and told[-1] == (0, []))
        home.tell(p)
        await until(lambda: told[-1][1] and told[-1][1][0].get("reason") == "incompatible")
        assert told[-1][0] == 1
        side.close()
        p.end()

    run(test())


class _Answers(BaseHTTPRequestHandler):
    answer = b'{"channel": "127.0.0.1:4711", "generation": 3}'

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/galaxy/channel" else 404)
        self.send_header("content-length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def addr() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_a_proxy_is_not_asked_for_a_peer(addr: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert lookup(addr) == {"channel": "127.0.0.1:4711", "generation": 3}


_ENDLESS = b'{"channel": "127.0.0.1:4711", "more": "%s"}' % bytes(2 << 20).replace(b"\0", b"x")


@pytest.mark.parametrize("answer", [b"not JSON", b"{}", b"", b"[]", _ENDLESS], ids=lambda answer: answer[:8])
def test_whoever_is_no_prefill_instance_is_unreachable(
    addr: str, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(_Answers, "answer", answer)
    with pytest.raises(ChannelError) as caught:
        channels.lookup(addr)
    assert caught.value.reason == "unreachable"
